"""`import triselect` is light, stands alone, and leaves the name `kernels` to others."""

import doctest
import importlib
import importlib.metadata
import importlib.util
import os
import subprocess
import sys
from importlib.machinery import PathFinder
from pathlib import Path

import pytest

import triselect

PACKAGE = Path(triselect.__file__).parent
REPOSITORY = Path(__file__).parents[2]
OPTIONAL = (
    "triton",
    "transformers",
    "torch_npu",
    "typer",
    "rich",
    "plotly",
    "jinja2",
    "safetensors",
    "hypothesis",
    "pytest",
)
HIDE = """
import sys
class Hiding:
    def __init__(self, finder):
        self.finder = finder
    def find_spec(self, name, path=None, target=None):
        if name.partition(".")[0] in {hidden!r}:
            return None
        return self.finder.find_spec(name, path, target)
    def __getattr__(self, name):
        return getattr(self.finder, name)
sys.meta_path[:] = [Hiding(finder) for finder in sys.meta_path]
"""


def fresh(code: str, cwd: Path, **environment: str) -> str:
    """What a new interpreter prints, in a folder that has nothing to do with the repository."""
    done = subprocess.run(
        [sys.executable, "-c", code],
        cwd=cwd,
        env=os.environ | environment,
        capture_output=True,
        text=True,
        timeout=120,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    return done.stdout.strip()


def test_imports_nothing_optional_that_torch_does_not(tmp_path):
    code = "import {}, sys; print(*{{name.partition('.')[0] for name in sys.modules}})"
    torch_alone, with_us = (
        set(fresh(code.format(names), tmp_path).split()) for names in ("torch", "triselect")
    )
    assert not (with_us - torch_alone) & set(OPTIONAL)
    assert "triselect" in with_us


def test_works_where_nothing_optional_is_installed(tmp_path):
    code = HIDE.format(hidden=OPTIONAL) + (
        "import torch, triselect\n"
        "logits = torch.arange(16.).view(2, 8)\n"
        "print(triselect.grouped_topk(logits, 2, num_expert_group=2).experts.tolist())\n"
        "try:\n"
        "    triselect.grouped_topk(logits, 2, backend='triton')\n"
        "except triselect.BackendUnavailable as error:\n"
        "    print(error)\n"
    )
    routed, refusal = fresh(code, tmp_path, TRITON_INTERPRET="0").splitlines()
    assert routed == "[[7, 6], [7, 6]]"
    assert refusal.startswith("backend 'triton' cannot run here: triton is not installed")


def test_asks_cuda_nothing(tmp_path):
    """A process that has asked CUDA for its devices cannot use them after a fork."""
    code = (
        "import torch\n"
        "def asked(*_): raise AssertionError('CUDA was asked')\n"
        "torch.cuda.is_available = torch.cuda.device_count = asked\n"
        "import triselect; print('imported')"
    )
    assert fresh(code, tmp_path, TRITON_INTERPRET="0") == "imported"


def test_the_backends_import_none_of_each_other(tmp_path):
    code = (
        "import sys, torch, triselect\n"
        "triselect.grouped_topk(torch.zeros(1, 8), 2, backend='eager')\n"
        "print(*(m for m in sys.modules if m.startswith('triselect.kernels.grouped_topk.')))"
    )
    assert fresh(code, tmp_path) == "triselect.kernels.grouped_topk.eager"


def test_the_reference_needs_only_numpy():
    source = Path(importlib.util.find_spec("triselect.kernels.grouped_topk.reference").origin)
    imports = [
        line for line in source.read_text().splitlines() if line.startswith(("import", "from"))
    ]
    assert imports == ["import numpy as np"]


def in_repository(paths: list[str]) -> bool:
    return any(Path(path).is_relative_to(REPOSITORY) for path in paths)


def test_kernels_is_no_top_level_package(tmp_path):
    """Hugging Face ships one of that name, which may well be installed: only not ours."""
    code = (
        "import triselect; from importlib.util import find_spec; spec = find_spec('kernels')\n"
        "print(*(spec.submodule_search_locations if spec else ()), sep='\\n')"
    )
    assert not in_repository(fresh(code, tmp_path).splitlines())


def test_the_tests_do_not_make_it_one():
    """Except by `python -m pytest`, where Python itself adds the current folder: not looked at."""
    path = [entry for entry in sys.path if entry not in ("", os.getcwd())]
    spec = PathFinder.find_spec("kernels", path)
    assert spec is None or not in_repository(list(spec.submodule_search_locations))
    assert "kernels" not in sys.modules or not in_repository(list(sys.modules["kernels"].__path__))
    assert __name__ == "tests.python.test_imports"


def test_is_typed():
    assert (PACKAGE / "py.typed").is_file()


def test_has_one_version():
    assert triselect.__version__ == importlib.metadata.version("triselect")
    assigned = [
        path.name
        for path in PACKAGE.rglob("*.py")
        if any(line.startswith("__version__") for line in path.read_text().splitlines())
    ]
    assert assigned == ["__init__.py"]


@pytest.mark.parametrize("module", ["triselect", "triselect.ops.grouped_topk"])
def test_examples_in_docstrings_run(module):
    results = doctest.testmod(importlib.import_module(module))
    assert results.attempted > 0
    assert results.failed == 0
