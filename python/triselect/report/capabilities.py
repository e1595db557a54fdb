"""What can run here, why the rest cannot, and what ``backend="auto"`` chooses."""

import pkgutil
from typing import NamedTuple

import torch

import triselect.kernels
from triselect.ops import backends
from triselect.ops.operator import has_kernel
from triselect.report.machine import cpu_capability


class Backend(NamedTuple):
    """A backend: what it is, and why it cannot run here (None where it can)."""

    name: str
    meaning: str
    missing: str | None


class Choice(NamedTuple):
    """What ``backend="auto"`` takes for tensors of a device, and why."""

    operator: str
    device: str
    backend: str
    why: str


def available() -> list[Backend]:
    """Every backend."""
    native = cpu_capability()
    return [
        Backend("reference", "NumPy in float64: what the operator means; slow", None),
        Backend("eager", "plain PyTorch: every device", None),
        Backend(
            "native",
            f"C++ on the CPU{f' ({native})' if native else ''}",
            backends.missing_native(),
        ),
        Backend("triton", "one Triton kernel on the GPU", backends.missing_triton()),
    ]


def operators() -> list[str]:
    """Operators that the package has kernels for: of each room the one named as it is, or all."""
    names = [str(name).partition(".")[0] for name in torch._C._dispatch_get_all_op_names()]
    defined = {name.removeprefix("triselect::") for name in names if "triselect::" in name}
    rooms = [room.name for room in pkgutil.iter_modules(triselect.kernels.__path__)]
    parts = {name for name in defined for room in rooms if name.startswith(f"{room}_")}
    whole = {room for room in rooms if room in defined}
    return sorted(whole | {p for p in parts if not any(p.startswith(f"{w}_") for w in whole)})


def choices() -> list[Choice]:
    """What ``auto`` takes, for every operator, on the CPU and on the GPU."""
    return [choose(name) for name in operators() for choose in (_on_cpu, _on_gpu)]


def _on_cpu(operator: str) -> Choice:
    if has_kernel(operator, "CPU"):
        why = f"the C++ extension is built and loaded ({cpu_capability()})"
        return Choice(operator, "CPU", "native", why)
    return Choice(operator, "CPU", "eager", backends.missing_native() or "it has no C++ kernel")


def _on_gpu(operator: str) -> Choice:
    if not torch.cuda.is_available():
        return Choice(operator, "GPU", "none", "torch sees no GPU here")
    if has_kernel(operator, "CUDA"):
        return Choice(operator, "GPU", "triton", f"on {torch.cuda.get_device_name()}")
    return Choice(operator, "GPU", "eager", backends.missing_triton() or "it has no Triton kernel")
