import importlib.util
from collections.abc import Callable
from pathlib import Path
from types import ModuleType

import pytest

EXAMPLES = Path(__file__).parents[3] / "examples"


@pytest.fixture(scope="session")
def load_example() -> Callable[[str], ModuleType]:
    """A script of `examples/` as a module, by name."""

    def load(name: str) -> ModuleType:
        pytest.importorskip("rich")
        pytest.importorskip("safetensors")
        spec = importlib.util.spec_from_file_location(name, EXAMPLES / f"{name}.py")
        assert spec is not None
        assert spec.loader is not None
        module = importlib.util.module_from_spec(spec)
        spec.loader.exec_module(module)
        return module

    return load


@pytest.fixture(scope="session")
def example(load_example: Callable[[str], ModuleType]) -> ModuleType:
    """`examples/train_byte_moe.py`; tests of other models have their own."""
    return load_example("train_byte_moe")
