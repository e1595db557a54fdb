"""Lower the kernels of a launch for a GPU that is not here, and read what became of them.

The launcher itself runs, up to where Triton would load and start the kernel: arguments are
specialised, constants and warps chosen, as on the device. Only the tensors are on the CPU.
"""

import re
import subprocess
import tempfile
from collections.abc import Callable, Mapping
from pathlib import Path
from types import MappingProxyType, SimpleNamespace
from typing import Any, NamedTuple
from unittest import mock

TARGETS = {
    "sm_75": ("cuda", 75, 32),
    "sm_80": ("cuda", 80, 32),
    "sm_89": ("cuda", 89, 32),
    "sm_90": ("cuda", 90, 32),
    "sm_100": ("cuda", 100, 32),
    "gfx942": ("hip", "gfx942", 64),
}


class Case(NamedTuple):
    """A launch that users run, and what its kernels must be made of.

    `unsupported` says, by target, why it cannot be lowered; the gate checks that it still cannot.
    """

    name: str
    launch: Callable[[], Any]
    wide_loads: bool = True  # streams its input: 128 bits at a time
    tensor_cores: bool = False  # has a dot
    unsupported: Mapping[str, str] = MappingProxyType({})


class Kernel(NamedTuple):
    """A compiled kernel: `registers` of a thread, registers `spilled`, bytes of `shared` memory,
    and how many loads of 128 bits and tensor-core instructions its code has.
    """

    name: str
    registers: int
    spilled: int
    shared: int
    wide_loads: int
    tensor_cores: int


def lower(case: Case, target: str) -> list[Kernel]:
    """The kernels that the case launches, lowered for the target; in a process of its own."""
    from triton.backends.compiler import GPUTarget
    from triton.runtime import driver
    from triton.runtime.jit import JITFunction

    backend, arch, warp_size = TARGETS[target]
    device = list(TARGETS).index(target)  # Triton keeps what it compiled by device
    driver.set_active(
        SimpleNamespace(
            get_current_device=lambda: device,
            get_current_stream=lambda device: 0,
            get_current_target=lambda: GPUTarget(backend, arch, warp_size),
        )
    )
    compiled = []
    run = JITFunction.run

    def only_compile(self: Any, *args: Any, warmup: bool, **options: Any) -> None:
        compiled.append(run(self, *args, warmup=True, **options))

    with mock.patch.object(JITFunction, "run", only_compile):
        case.launch()
    assert compiled, f"{case.name} launched no kernel"
    read = amd if backend == "hip" else nvidia
    return [Kernel(k.metadata.name, shared=k.metadata.shared, **read(k.asm)) for k in compiled]


def nvidia(asm: dict[str, Any]) -> dict[str, int]:
    with tempfile.NamedTemporaryFile(suffix=".cubin") as cubin:
        cubin.write(asm["cubin"])
        cubin.flush()
        usage = cuobjdump("--dump-resource-usage", cubin.name)
        sass = cuobjdump("-sass", cubin.name)
    # /*0070*/ @!P0 LDG.E.128 R4, ... : address, predicate, instruction
    code = re.findall(r"/\*[0-9a-f]{4,}\*/\s+(?:@!?\w+\s+)?([A-Z][\w.]*)", sass)
    return {
        "registers": number(r"\bREG:(\d+)", usage),
        "spilled": sum(op.startswith(("LDL", "STL")) for op in code),
        "wide_loads": sum(op.startswith("LDG") and ".128" in op for op in code),
        "tensor_cores": sum(re.match("[A-Z]*MMA", op) is not None for op in code),
    }


def amd(asm: dict[str, Any]) -> dict[str, int]:
    code = asm["amdgcn"]
    return {
        "registers": number(r"\.vgpr_count:\s*(\d+)", code),
        # Vector registers go to memory; scalar ones to lanes of vector registers, counted above.
        "spilled": number(r"\.vgpr_spill_count:\s*(\d+)", code),
        "wide_loads": len(re.findall(r"\b(?:global|buffer)_load_dwordx4\b", code)),
        "tensor_cores": len(re.findall(r"\bv_s?mfmac?_", code)),
    }


def number(pattern: str, text: str) -> int:
    return int(re.findall(pattern, text)[0])


def cuobjdump(*arguments: str) -> str:
    import triton.backends.nvidia

    tool = Path(triton.backends.nvidia.__file__).parent / "bin" / "cuobjdump"
    return subprocess.run([tool, *arguments], check=True, capture_output=True, text=True).stdout
