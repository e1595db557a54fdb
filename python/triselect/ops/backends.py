"""Which backends can run here, and why not where they cannot.

A named backend that cannot run raises `BackendUnavailable`; only ``backend="auto"`` chooses.
"""

import os
from functools import cache
from importlib.util import find_spec
from pathlib import Path

import torch

BACKENDS = ("auto", "reference", "eager", "triton", "native")


class BackendUnavailable(RuntimeError):
    """The named backend cannot run here; the message says why and what to do about it."""


@cache
def missing_native() -> str | None:
    """Loads the C++ extension. Returns why it cannot be used, or None where it can."""
    package = Path(__file__).parents[1]
    version = torch.__version__.split("+")[0]
    library = package / f"_native_torch_{version.replace('.', '_')}.so"
    install = "install g++ and run `pip install --no-build-isolation` on triselect again"
    if not library.exists():
        others = sorted(path.stem for path in package.glob("_native_torch_*.so"))
        if others:
            return f"{', '.join(others)} was built for another torch than {version}: {install}"
        return f"the C++ extension was not built: {install}"
    try:
        torch.ops.load_library(str(library))
    except OSError as error:
        return f"{library.name} does not load: {error}"
    return None


def triton_installed() -> bool:
    """Whether GPU tensors can go to Triton. Asks CUDA nothing: that would rule out a later fork."""
    return find_spec("triton") is not None


@cache
def missing_triton() -> str | None:
    """Why Triton kernels cannot run here, or None where they can."""
    if not triton_installed():
        return "triton is not installed: pip install 'triselect[triton]'"
    if os.environ.get("TRITON_INTERPRET") == "1" or torch.cuda.is_available():
        return None
    return "there is no GPU (TRITON_INTERPRET=1 runs Triton's interpreter on the CPU, slowly)"


def must_be_known(backend: str) -> None:
    if backend not in BACKENDS:
        raise ValueError(f"backend must be one of {BACKENDS}, got {backend!r}")


def require(backend: str, device: torch.device) -> None:
    """Raises `BackendUnavailable` unless the named backend can run on tensors of `device`."""
    reason = None
    match backend:
        case "native":
            reason = missing_native()
            if reason is None and device.type != "cpu":
                reason = f"it runs on CPU tensors, got {device}"
        case "triton":
            reason = missing_triton()
            if (
                reason is None
                and device.type == "cpu"
                and os.environ.get("TRITON_INTERPRET") != "1"
            ):
                reason = (
                    "it runs on GPU tensors, got cpu (or set TRITON_INTERPRET=1 before importing)"
                )
    if reason:
        raise BackendUnavailable(f"backend {backend!r} cannot run here: {reason}")
