"""Packages that only some functions need, with how to get them."""

from types import ModuleType


def safetensors() -> ModuleType:
    """`safetensors.torch`."""
    try:
        import safetensors.torch
    except ImportError as error:
        raise ImportError(
            "triselect's files are safetensors files: pip install 'triselect[cli]'"
        ) from error
    return safetensors.torch
