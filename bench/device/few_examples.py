"""A pytest plugin: hypothesis's profile `device`. Every example compiles a kernel of its own."""

try:
    from hypothesis import settings
except ImportError:  # what draws examples skips itself
    pass
else:
    settings.register_profile(
        "device", deadline=None, max_examples=10, derandomize=True, database=None, print_blob=True
    )
