"""Which backends can run here, what the others answer, and which instructions native uses."""

import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from triselect.ops import backends

TORCH = torch.__version__.split("+")[0].replace(".", "_")
CAPABILITIES = ("portable", "avx2", "avx512")  # in this order, each contains the one before
missing_native = backends.missing_native()
needs_native = pytest.mark.skipif(missing_native is not None, reason=missing_native or "")


@pytest.fixture
def package(monkeypatch, tmp_path):
    """A folder in place of the package's own, looked at anew by every call."""
    monkeypatch.setattr(backends, "__file__", str(tmp_path / "ops" / "backends.py"))
    monkeypatch.setattr(backends, "missing_native", backends.missing_native.__wrapped__)
    return tmp_path


def test_not_built(package):
    assert backends.missing_native().startswith("the C++ extension was not built: install ")


def test_built_for_another_torch(package):
    """Refused by name, and never opened: this one is no library at all."""
    (package / "_native_torch_1_2_3.so").write_bytes(b"")
    reason = backends.missing_native()
    version = TORCH.replace("_", ".")
    assert reason.startswith(f"_native_torch_1_2_3 was built for another torch than {version}: ")


def test_one_for_this_torch_beside_another(package):
    (package / "_native_torch_1_2_3.so").write_bytes(b"")
    (package / f"_native_torch_{TORCH}.so").write_bytes(b"not a library")
    reason = backends.missing_native()
    assert reason.startswith(f"_native_torch_{TORCH}.so does not load: ")


def test_named_and_missing_is_an_error(package):
    with pytest.raises(backends.BackendUnavailable, match="'native' cannot run here: the C"):
        backends.require("native", torch.device("cpu"))


def test_native_is_for_cpu_tensors(monkeypatch):
    monkeypatch.setattr(backends, "missing_native", lambda: None)
    backends.require("native", torch.device("cpu"))
    with pytest.raises(backends.BackendUnavailable, match="runs on CPU tensors, got cuda:1"):
        backends.require("native", torch.device("cuda:1"))


def test_triton_is_for_gpu_tensors_or_the_interpreter(monkeypatch):
    monkeypatch.setattr(backends, "missing_triton", lambda: None)
    monkeypatch.delenv("TRITON_INTERPRET", raising=False)
    backends.require("triton", torch.device("cuda"))
    with pytest.raises(backends.BackendUnavailable, match="runs on GPU tensors, got cpu"):
        backends.require("triton", torch.device("cpu"))
    monkeypatch.setenv("TRITON_INTERPRET", "1")
    backends.require("triton", torch.device("cpu"))


def test_why_triton_is_missing(monkeypatch):
    why = backends.missing_triton.__wrapped__
    monkeypatch.delenv("TRITON_INTERPRET", raising=False)
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    monkeypatch.setattr(backends, "find_spec", lambda name: None)
    assert why() == "triton is not installed: pip install 'triselect[triton]'"
    monkeypatch.setattr(backends, "find_spec", lambda name: name)
    assert why().startswith("there is no GPU")
    monkeypatch.setenv("TRITON_INTERPRET", "1")
    assert why() is None


def test_eager_and_reference_run_anywhere():
    for name in ("auto", "eager", "reference"):
        backends.require(name, torch.device("cpu"))


def capable(asked: str | None, code: str = "") -> str:
    """What a new process names when asked for an instruction set: one is chosen per process."""
    environment = {k: v for k, v in os.environ.items() if k != "TRISELECT_CPU_CAPABILITY"}
    if asked is not None:
        environment["TRISELECT_CPU_CAPABILITY"] = asked
    code = f"import torch, triselect\n{code}\nprint(torch.ops.triselect.cpu_capability())"
    done = subprocess.run(
        [sys.executable, "-c", code],
        env=environment,
        capture_output=True,
        text=True,
        timeout=120,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    return done.stdout.strip()


def here() -> tuple[str, ...]:
    """The instruction sets of this CPU, as PyTorch sees it."""
    best = torch.backends.cpu.get_cpu_capability().lower()
    return CAPABILITIES[: CAPABILITIES.index(best) + 1 if best in CAPABILITIES else 1]


@needs_native
def test_the_best_instruction_set_is_the_default():
    assert capable(None) == here()[-1]


@needs_native
@pytest.mark.parametrize("asked", CAPABILITIES)
def test_instruction_sets_can_be_chosen(asked):
    """Asking for more than the CPU has gets the best that it has."""
    assert capable(asked) == (asked if asked in here() else here()[-1])


@needs_native
def test_an_instruction_set_is_chosen_once():
    later = "import os; torch.ops.triselect.cpu_capability()\n"
    later += "os.environ['TRISELECT_CPU_CAPABILITY'] = 'avx2'"
    assert capable("portable", later) == "portable"


# Of each operator, what depends on vectors and their tails.
EVERY_ISA = {
    "grouped_topk": (
        "test_equivalence.py",
        "test_properties.py",
        "test_backward.py::test_models",
        "test_backward.py::test_padding_and_duplicates",
        "test_backward.py::test_sizes",
    ),
    "permute": ("test_properties.py",),
    "route_and_permute": ("test_properties.py",),
    "table_route": ("test_equivalence.py::test_weights", "test_properties.py"),
    "limit_experts": ("test_equivalence.py::test_models", "test_properties.py"),
    "select_tokens": ("test_equivalence.py", "test_properties.py"),
    "token_confidence": (
        "test_equivalence.py",
        "test_properties.py",
        "test_invariants.py::test_the_mask_token_takes_no_part",
        "test_invariants.py::test_a_row_with_nan_or_infinity_is_the_least_confident",
    ),
    "token_scores": ("test_equivalence.py",),
    "finalize": ("test_equivalence.py", "test_properties.py"),
    "compress": ("test_equivalence.py",),
    "gather_attention": ("test_properties.py",),
    "merge": ("test_merge.py",),
    "grouped_swiglu": ("test_equivalence.py", "test_properties.py"),
    "norm_add_norm": ("test_equivalence.py", "test_invariants.py"),
}


@needs_native
@pytest.mark.parametrize("asked", CAPABILITIES)
def test_every_instruction_set_does_as_the_reference_does(asked):
    """The tests of the native backend, in a process of their own."""
    if asked not in here():
        pytest.skip(f"this CPU has no {asked}")
    if asked == here()[-1]:
        pytest.skip(f"{asked} is the default here: all other tests run with it")
    repository = Path(__file__).parents[3]
    kernels = repository / "tests" / "kernels"
    done = subprocess.run(
        [
            sys.executable,
            *("-m", "pytest", "-q", "-p", "no:cacheprovider", "-k", "native", "-m", "not slow"),
            *(str(kernels / room / test) for room, tests in EVERY_ISA.items() for test in tests),
        ],
        cwd=repository,
        env=os.environ | {"TRISELECT_CPU_CAPABILITY": asked, "HYPOTHESIS_PROFILE": "brief"},
        capture_output=True,
        text=True,
        timeout=600,
        check=False,
    )
    assert done.returncode == 0, done.stdout[-4000:]
