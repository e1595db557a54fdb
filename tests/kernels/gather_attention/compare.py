"""Is this the attention that the float64 reference means?

Errors are counted in roundings, and may be no more than those of plain PyTorch in the same dtype
plus rounding: logits and softmax in float32, rotated keys, weights and outputs in the dtype. Means
and maxima apart.
"""

import numpy as np
import torch
from torch import Tensor
from triselect.kernels.gather_attention import reference

from triselect.ops import Attention

from .cases import Step, expected

EPS = float(np.finfo(np.float32).eps)
FEW = 32  # values that a mean of errors can do with


def assert_attention(kind: str, got: Attention, step: Step) -> None:
    """`got` is the reference's attention of that kind."""
    out, lse = expected(kind, step)
    assert got.out.shape == out.shape
    assert got.out.dtype == step.q.dtype
    assert got.lse.shape == lse.shape
    assert got.lse.dtype == torch.float32
    empty = np.isneginf(lse)
    np.testing.assert_array_equal(np.isneginf(got.lse.numpy()), empty)
    assert (got.out[torch.from_numpy(empty)] == 0).all()
    if empty.all():
        return
    plain = Plain(kind, step)
    seen = ~empty
    both = {
        "out": (got.out.double().numpy(), plain.out, out, plain.out_unit),
        "lse": (got.lse.double().numpy(), plain.lse, lse, plain.lse_unit),
    }
    for name, (*found, exact, unit) in both.items():
        mine, theirs = (abs(x[seen] - exact[seen]) / unit[seen] for x in found)
        assert mine.max() <= theirs.max() + 2, f"{name}: {mine.max()} and {theirs.max()}"
        if mine.size >= FEW:
            limit = theirs.mean() + 0.5
            assert mine.mean() <= limit, f"{name}: mean {mine.mean()}, may be {limit}"


class Plain:
    """What anyone would write, with a mask over all tokens, and the unit of its rounding."""

    def __init__(self, kind: str, step: Step):
        dtype = step.q.dtype
        low = 0.0 if dtype == torch.float32 else torch.finfo(dtype).eps
        logits, sizes, values = [], [], []
        rotated = False
        for half in ("far", "window") if kind == "selected" else (kind,):
            q, k, v, mask = dense(half, step)
            rotated |= half == "window" and step.cos is not None
            masked = (~mask)[:, :, None]  # over the heads
            s = torch.einsum("bchd,bnhd->bchn", q, k) * step.scale
            logits.append(s.masked_fill(masked, -torch.inf))
            size = torch.einsum("bchd,bnhd->bchn", q.abs(), k.abs()) * abs(step.scale)
            sizes.append(size.masked_fill(masked, 0))
            values.append(v)
        s, size, v = torch.cat(logits, -1), torch.cat(sizes, -1), torch.cat(values, 1)
        p = s.softmax(-1)
        self.lse = s.logsumexp(-1).double().numpy()
        out = torch.einsum("bchn,bnhd->bchd", p.to(dtype).float(), v).to(dtype)
        self.out = out.double().numpy()
        spread = torch.einsum("bchn,bnhd->bchd", p, v.abs()).double().numpy()
        # Logits are sums of D products, which round with the largest of them.
        largest = size.amax(-1).double().numpy()
        self.out_unit = spread * (low + EPS * (2 + largest[..., None])) + 1e-30
        self.lse_unit = (low * rotated + EPS) * largest + EPS * (1 + abs(self.lse))


def dense(half: str, step: Step) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Queries, keys and values in float32, a head for each query head, and who attends to whom."""
    table = None if step.block_table is None else step.block_table.numpy()
    k, v, there = reference.unpaged(step.k.float().numpy(), step.v.float().numpy(), table)
    start, end = (None if x is None else x.numpy() for x in (step.start, step.end))
    q = step.q_far if half == "far" else step.q
    masks = []
    for b in range(len(q)):
        if half == "far":
            index = step.index.numpy()
            masks.append(reference.far(b, q, index, step.num_initial, start, there))
        else:
            masks.append(reference.window(b, q, start, end, there))
    mask = torch.from_numpy(np.stack(masks))
    if half == "window" and step.cos is not None and step.sin is not None:
        with np.errstate(invalid="ignore"):
            k = reference.rotated(k, start, step.cos.numpy(), step.sin.numpy())
    k, v = (torch.from_numpy(np.nan_to_num(x)).to(q.dtype).float() for x in (k, v))
    shared = q.shape[2] // k.shape[2]
    return q.float(), k.repeat_interleave(shared, 2), v.repeat_interleave(shared, 2), mask
