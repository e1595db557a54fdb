"""Is this the gradient that the float64 reference means?

Gradients are held to an error budget: what PyTorch's autograd makes of the plain float32 formula,
plus rounding, the mean and the maximum apart.
"""

from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor
from triselect.kernels.grouped_topk import reference

from .compare import EPS, TINY, combine, condition, plain_scores


class Upstream(NamedTuple):
    """The arguments of `grouped_topk_backward`."""

    grad: Tensor
    logits: Tensor
    experts: Tensor
    scoring_func: str
    renormalize: bool
    routed_scaling_factor: float
    expert_scale: Tensor | None

    def arrays(self) -> list[Any]:
        """As the reference takes them."""
        return [
            (t.float() if t.is_floating_point() else t).numpy() if isinstance(t, Tensor) else t
            for t in self
        ]


def differences(function, at: np.ndarray, step: float = 1e-5) -> np.ndarray:
    """Central differences of a scalar function, element by element."""
    gradient = np.empty_like(at)
    for i in np.ndindex(at.shape):
        ends = []
        for sign in (1, -1):
            moved = at.copy()
            moved[i] += sign * step
            ends.append(function(moved))
        gradient[i] = (ends[0] - ends[1]) / (2 * step)
    return gradient


def assert_gradients(got: tuple[Tensor, Tensor], call: Upstream) -> None:
    """`got` are the gradients of finite logits and of their scale, in the dtypes of those."""
    scale = call.expert_scale
    assert got[0].shape == call.logits.shape
    assert got[0].dtype == call.logits.dtype
    assert got[1].shape == ((0,) if scale is None else scale.shape)
    assert got[1].dtype == (torch.float32 if scale is None else scale.dtype)
    exact = reference.grouped_topk_backward(*call.arrays())
    for mine, truth, plain, unit in zip(got, exact, by_autograd(call), units(call), strict=True):
        if truth.size:
            assert_within_budget(mine, truth, plain, unit)


def by_autograd(call: Upstream) -> tuple[np.ndarray, np.ndarray]:
    """The gradients of the formula as anyone would write it, in float32."""
    x = call.logits.float().clone().requires_grad_()
    leaves = [x]
    options = {"renormalize": call.renormalize, "expert_scale": None}
    options["routed_scaling_factor"] = call.routed_scaling_factor
    if call.expert_scale is not None:
        options["expert_scale"] = call.expert_scale.float().clone().requires_grad_()
        leaves.append(options["expert_scale"])
    weights = combine(plain_scores(x, call.scoring_func), call.experts.long(), options)
    found = torch.autograd.grad(weights, leaves, call.grad)
    return found[0].numpy(), found[1].numpy() if len(found) > 1 else np.empty(0)


def units(call: Upstream) -> tuple[np.ndarray, np.ndarray]:
    """One rounding of the largest thing that is added up on the way to each gradient.

    That is the formula of the reference with every difference made a sum of absolute values.
    """
    grad, x, experts, scoring_func, renormalize, factor, scale = call.arrays()
    x = x.astype(np.float64)
    s = reference.scores(x, scoring_func)
    rows, real = np.arange(len(x))[:, None], experts >= 0
    p = np.where(real, abs(s[rows, experts]), 0)
    g = np.where(real, abs(grad * np.float64(factor)), 0)
    total = abs(np.where(real, s[rows, experts], 0).sum(-1, keepdims=True)) + reference.EPSILON
    q = p / total if renormalize else p
    dq = g if scale is None else g * abs(scale.astype(np.float64))[experts]
    dp = (dq + (dq * q).sum(-1, keepdims=True)) / total if renormalize else dq
    ds = np.zeros_like(x)
    np.add.at(ds, (rows, experts), np.where(real, dp, 0))
    match scoring_func:
        case "softmax":
            dx = s * (ds + (ds * s).sum(-1, keepdims=True))
        case "sigmoid":
            dx = s * ds  # 1 - s loses what s has lost
        case _:
            dx = ds * reference.slope(x, s, scoring_func)
    grown = 1 + condition(x, s, scoring_func)
    chosen = np.where(real, grown[rows, experts], 1).max(-1, keepdims=True)
    d_scale = np.empty(0)
    if scale is not None:
        d_scale = np.zeros(x.shape[1])
        np.add.at(d_scale, experts, g * q * chosen)
    return EPS * dx * (grown + chosen) + TINY, EPS * d_scale + TINY


def assert_within_budget(
    mine: Tensor, exact: np.ndarray, plain: np.ndarray, unit: np.ndarray
) -> None:
    low = mine.dtype
    mine = mine.double().numpy()
    error = abs(mine - exact)
    if low != torch.float32:  # rounded once more
        info = torch.finfo(low)
        largest = np.maximum(abs(mine), abs(exact))
        step = 2.0 ** np.floor(np.log2(np.maximum(largest, info.tiny))) * info.eps
        error = np.maximum(error - step / 2, 0)
    mine, theirs = error / unit, abs(plain - exact) / unit
    assert mine.max() <= theirs.max() + 2
    assert mine.mean() <= theirs.mean() + 0.25
