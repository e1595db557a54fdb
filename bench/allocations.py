"""What one call of the public function asks of the allocator, seen from below: malloc itself.

PyTorch's profiler sees tensors only; a kernel's own buffers would pass it by. So the count is taken
by a library that stands before malloc (count_allocations.c), in a process of its own.
"""

import ctypes
import json
import os
import shutil
import subprocess
import sys
import tempfile
from functools import cache, partial
from pathlib import Path
from typing import NamedTuple

HERE = Path(__file__).parent
RESULT = "allocations: "


class Allocations(NamedTuple):
    """Requests of at least a page, their bytes, and the bytes of the outputs."""

    requests: int
    bytes: int
    outputs: int


@cache
def missing() -> str | None:
    """Why allocations cannot be counted here, or None."""
    if not sys.platform.startswith("linux") or os.confstr("CS_GNU_LIBC_VERSION") is None:
        return "allocations are counted with glibc"
    return None if shutil.which("cc") else "counting allocations needs a C compiler"


@cache
def _counter() -> Path:
    library = Path(tempfile.mkdtemp(prefix="triselect-")) / "count_allocations.so"
    source = HERE / "count_allocations.c"
    subprocess.run(["cc", "-O2", "-shared", "-fPIC", source, "-o", library], check=True)
    return library


@cache
def of_calls(tokens: int) -> dict[str, Allocations]:
    """Allocations of one warm call, by ``call router dtype``: ``triselect``, or the composition."""
    result = subprocess.run(
        [sys.executable, __file__, str(_counter()), str(tokens)],
        env={**os.environ, "LD_PRELOAD": str(_counter())},
        capture_output=True,
        text=True,
        check=True,
    )
    found = json.loads(result.stdout.split(RESULT, 1)[1])
    return {name: Allocations(*numbers) for name, numbers in found.items()}


def _measure(library: str, tokens: int) -> dict[str, Allocations]:
    import torch

    import triselect
    from triselect.report import baselines, routers

    counter = ctypes.CDLL(library)
    numbers = (ctypes.c_longlong * 2)()
    found = {}
    for router in (routers.PANGU, routers.DEEPSEEK_V3):
        options = router.options()
        calls = {
            "triselect": partial(triselect.grouped_topk, **options),
            "composition": baselines.composition(router),
        }
        for dtype in (torch.float32, torch.bfloat16):
            logits = routers.tokens_of(router, tokens, dtype)
            for name, call in calls.items():
                for _ in range(3):
                    call(logits)
                counter.start_counting()
                outputs = call(logits)
                counter.stop_counting(numbers)
                size = sum(t.numel() * t.element_size() for t in outputs)
                key = f"{name} {router.name} {str(dtype).removeprefix('torch.')}"
                found[key] = Allocations(*numbers, size)
    return found


if __name__ == "__main__":
    library, tokens = sys.argv[1:]
    print(RESULT + json.dumps(_measure(library, int(tokens))))
