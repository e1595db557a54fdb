"""Builds and calls the loops of floors.cpp."""

from collections.abc import Callable
from functools import cache
from pathlib import Path

import torch
from torch import Tensor

from triselect.report.routers import Router

HERE = Path(__file__).parent


@cache
def missing() -> str | None:
    """Why the loops cannot be measured here, or None where they can; builds them the first time."""
    from torch.utils import cpp_extension

    try:
        cpp_extension.load(
            "triselect_floors",
            [str(HERE / "floors.cpp")],
            extra_include_paths=[str(HERE), str(HERE.parent / "kernels" / "shared")],
            extra_cflags=["-O3", "-fopenmp", "-Wno-psabi", "-Wno-unknown-pragmas"],
            extra_ldflags=["-fopenmp"],
            is_python_module=False,
        )
    except (RuntimeError, OSError) as error:
        return f"floors.cpp cannot be built here: {str(error).splitlines()[0]}"
    return None


def loops(router: Router, logits: Tensor) -> tuple[Callable[[], object], Callable[[], object]]:
    """Moving the bytes and computing the keys of one call, with the kernel's share per thread."""
    isa = torch.ops.triselect.cpu_capability()
    grain = max(1, 8192 // router.experts)
    weights = torch.empty(len(logits), router.top_k)
    experts = torch.empty(len(logits), router.top_k, dtype=torch.int32)
    softmax = router.scoring_func == "softmax"
    bias = router.options().get("e_score_correction_bias", torch.zeros(router.experts))
    floors = torch.ops.triselect_floors
    return (
        lambda: floors.bytes(logits, weights, experts, isa, grain),
        lambda: floors.keys(logits, softmax, bias, isa, grain),
    )
