import importlib.util
from pathlib import Path
from types import ModuleType

import pytest


@pytest.fixture(scope="session")
def example() -> ModuleType:
    """`examples/train_byte_moe.py` as a module."""
    pytest.importorskip("rich")
    pytest.importorskip("safetensors")
    path = Path(__file__).parents[3] / "examples" / "train_byte_moe.py"
    spec = importlib.util.spec_from_file_location("train_byte_moe", path)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module
