"""Attention over some of the cached tokens on GPUs.

`attend.py` is one kernel for all three operators; few rows share the tokens out among several
programs, whose parts `combine.py` puts together in a second launch.

Floors: of a decode step, the keys and values of the tokens attended to, 2 * G * D * itemsize bytes
of memory each (and 4 of the index, 4 * D of the angles, from the cache if there are few), or the
launches; of a prefill chunk, 4 * C * H * D operations for each token at the rate of the tensor
cores. Neither has been measured yet.
"""

import torch
import triton
from torch import Tensor
from triselect.kernels.gather_attention.triton.attend import attend
from triselect.kernels.gather_attention.triton.combine import combine
from triselect.kernels.shared.dot import INTERPRETED, tensor_cores

PROGRAMS = 264  # two for each of an H100's processors: as many as tokens are shared out to
SHARES = 128  # at most


def gather_attention(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    index: Tensor,
    num_initial: int,
    end: Tensor | None,
    block_table: Tensor | None,
    scale: float,
) -> tuple[Tensor, Tensor]:
    """``out (B, C, H, D)`` and ``lse (B, C, H)`` float32 over far tokens."""
    return launch(q, None, k, v, index, num_initial, None, end, None, None, block_table, scale)


def window_attention(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    start: Tensor | None,
    end: Tensor | None,
    cos: Tensor | None,
    sin: Tensor | None,
    block_table: Tensor | None,
    scale: float,
) -> tuple[Tensor, Tensor]:
    """``out (B, C, H, D)`` and ``lse (B, C, H)`` float32 over a window of tokens."""
    return launch(None, q, k, v, None, 0, start, end, cos, sin, block_table, scale)


def selected_attention(
    q_far: Tensor,
    q: Tensor,
    k: Tensor,
    v: Tensor,
    index: Tensor,
    num_initial: int,
    start: Tensor | None,
    end: Tensor | None,
    cos: Tensor | None,
    sin: Tensor | None,
    block_table: Tensor | None,
    scale: float,
) -> tuple[Tensor, Tensor]:
    """``out (B, C, H, D)`` and ``lse (B, C, H)`` float32 over both, in one softmax."""
    return launch(q_far, q, k, v, index, num_initial, start, end, cos, sin, block_table, scale)


def launch(
    q_far: Tensor | None,
    q: Tensor | None,
    k: Tensor,
    v: Tensor,
    index: Tensor | None,
    num_initial: int,
    start: Tensor | None,
    end: Tensor | None,
    cos: Tensor | None,
    sin: Tensor | None,
    block_table: Tensor | None,
    scale: float,
) -> tuple[Tensor, Tensor]:
    like = q_far if q is None else q
    assert like is not None
    batch, queries, heads, dim = like.shape
    rows = batch * queries * heads
    out = like.new_empty(like.shape)
    lse = like.new_empty(like.shape[:-1], dtype=torch.float32)
    if not rows:
        return out, lse
    q_far, q, k, v, cos, sin = map(with_rows, (q_far, q, k, v, cos, sin))
    groups = k.shape[2]
    tokens = k.shape[1] * (1 if block_table is None else block_table.shape[1])
    angles = tokens if cos is None else len(cos)
    entries = 0 if index is None else index.shape[1]
    num_initial = min(num_initial, tokens)

    tile = plan(queries * heads // groups, dim, like.dtype)
    row_tiles = triton.cdiv(queries * heads // groups, tile["ROWS"])
    programs = row_tiles * groups * batch
    most = num_initial + entries + (0 if q is None else min(tokens, angles))
    shares = min(PROGRAMS // programs, SHARES, triton.cdiv(most, tile["TOKENS"]))
    parts, parts_lse = out, lse
    if shares > 1:
        parts = out.new_empty((shares, *out.shape), dtype=torch.float32)
        parts_lse = lse.new_empty((shares, *lse.shape))
    with torch.cuda.device_of(out):
        attend[(batch * groups, row_tiles, max(shares, 1))](
            q_far,
            q,
            k,
            v,
            index,
            start,
            end,
            cos,
            sin,
            block_table,
            parts,
            parts_lse,
            queries,
            num_initial,
            entries,
            tokens,
            len(k),
            angles,
            scale,
            *strides(q_far, 0, 1, 2),
            *strides(q, 0, 1, 2),
            *strides(k, 0, 1, 2),
            *strides(v, 0, 1, 2),
            *strides(index, 0, 1),
            *strides(start, 0),
            *strides(end, 0),
            *strides(cos, 0),
            *strides(sin, 0),
            *strides(block_table, 0, 1),
            GROUPS=groups,
            SHARED=heads // groups,
            D=dim,
            SIZE=k.shape[1] if block_table is not None else 1,
            CAUSAL=queries > 1,
            **tile,
        )
        if shares > 1:
            combine[(rows,)](
                parts,
                parts_lse,
                out,
                lse,
                rows,
                shares,
                D=dim,
                WIDTH=tile["WIDTH"],
                SHARES=triton.next_power_of_2(shares),
                num_warps=4,
            )
    return out, lse


def with_rows(x: Tensor | None) -> Tensor | None:
    """Vectors whose elements lie side by side; the rest of the layout is as it is."""
    return x if x is None or x.stride(-1) == 1 else x.contiguous()


def strides(x: Tensor | None, *dims: int) -> list[int]:
    return [0 if x is None else x.stride(d) for d in dims]


def plan(rows: int, dim: int, dtype: torch.dtype) -> dict[str, int]:
    """Tiles of a kernel, and what it is compiled with: as much as registers hold.

    More rows read keys and values less often; more tokens keep more of them under way.
    """
    half = max(16, triton.next_power_of_2(triton.cdiv(dim, 2)))
    large = half > 64
    if dtype == torch.float32 or not tensor_cores():
        tile = (16, 16, 8 if half > 32 else 4)
    elif rows <= 16:
        tile = (16, 16 if large else 32, 4)
    elif large:
        tile = (32, 16, 8)
    elif warpgroups():
        tile = (128, 32, 8)
    else:
        tile = (64, 32, 4)
    named = dict(zip(("ROWS", "TOKENS", "num_warps"), tile, strict=True))
    return named | {"HALF": half, "WIDTH": 2 * half, "num_stages": 2}


def warpgroups() -> bool:
    """Whether tensor cores take their operands from shared memory: those of NVIDIA from sm_90."""
    if INTERPRETED.value:
        return False
    target = triton.runtime.driver.active.get_current_target()
    return bool(target.backend == "cuda" and target.arch >= 90)
