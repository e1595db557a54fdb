"""Makes `bench` importable by its name, without the root of the repository on Python's path."""

import sys
from importlib.util import module_from_spec, spec_from_file_location
from pathlib import Path

ROOT = Path(__file__).parents[2]

if "bench" not in sys.modules:
    spec = spec_from_file_location("bench", ROOT / "bench" / "__init__.py")
    assert spec is not None
    assert spec.loader is not None
    sys.modules["bench"] = module_from_spec(spec)
    spec.loader.exec_module(sys.modules["bench"])
