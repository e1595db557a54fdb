"""Routing in segments of tokens, each with the number of assignments to every expert.

For operators that route first: their next launch needs these counts, and reads all of them.
"""

import triton
import triton.language as tl
from torch import Tensor
from triselect.kernels.grouped_topk.triton.route import Launch, route_tile
from triselect.kernels.grouped_topk.triton.tile import axis

SEGMENTS = 128  # at most: about one for every processor of a GPU
WARPS = 8


@triton.jit(do_not_specialize=["tokens", "segment"])
def route_segment(
    logits,
    bias,
    scale,
    tokens,
    token_stride,
    expert_stride,
    bias_stride,
    scale_stride,
    factor,
    weights,
    experts,
    counts,
    segment,
    E: tl.constexpr,
    BINS: tl.constexpr,
    router: tl.constexpr,
):
    begin = tl.program_id(0).to(tl.int64) * segment
    count = tl.zeros((BINS,), tl.int32)
    for first in range(begin, tl.minimum(begin + segment, tokens), router.t):
        w, ids, at, out = route_tile(
            first + axis(router.t, 2),
            logits,
            bias,
            scale,
            tokens,
            token_stride,
            expert_stride,
            bias_stride,
            scale_stride,
            factor,
            None,
            router,
        )
        tl.store(weights + at, w, mask=out)
        tl.store(experts + at, ids, mask=out)
        count += tl.histogram(ids.reshape(ids.numel), BINS, mask=out.reshape(ids.numel))
    e = tl.arange(0, BINS)
    tl.store(counts + tl.program_id(0) * E + e, count, mask=e < E)


def route_segments(launch: Launch) -> tuple[Tensor, int]:
    """Routes; counts ``(segments, E)`` int32, and the tokens of a segment."""
    tokens, experts = launch.inputs[0].shape
    router, warps = launch.wider(WARPS)
    segment = triton.cdiv(triton.cdiv(tokens, SEGMENTS), router.t) * router.t
    segments = triton.cdiv(tokens, segment) if tokens else 0
    counts = launch.experts.new_empty((segments, experts))
    if segments:
        route_segment[(segments,)](
            *launch.inputs,
            launch.weights,
            launch.experts,
            counts,
            segment,
            E=experts,
            BINS=triton.next_power_of_2(experts),
            router=router,
            num_warps=warps,
            enable_fp_fusion=False,
        )
    return counts, segment
