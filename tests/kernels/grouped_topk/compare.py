"""Is this the routing that the float64 reference means?

Experts are compared exactly wherever keys are exact. Where keys are computed in float32, they are
compared exactly for every token whose decisions are clear, and judged by their keys elsewhere.
Weights are held to an error budget: what plain float32 PyTorch makes of the same scores, plus
rounding.
"""

from inspect import signature
from typing import Any

import numpy as np
import torch
from torch import Tensor
from triselect.kernels.grouped_topk import reference

import triselect

EPS = float(np.finfo(np.float32).eps)
LARGEST = float(np.finfo(np.float32).max)
TINY = float(np.finfo(np.float32).tiny)  # below it float32 has fewer digits, or none at all
FEW = 32  # values that a mean of errors can do with
DEFAULTS = {
    name: parameter.default
    for name, parameter in signature(triselect.grouped_topk).parameters.items()
    if name not in ("logits", "top_k", "backend")
}


def complete(options: dict[str, Any]) -> dict[str, Any]:
    """All options as the reference takes them, tensors as float32 arrays."""
    options = {
        name: value.detach().float().cpu().numpy() if isinstance(value, Tensor) else value
        for name, value in (DEFAULTS | options).items()
    }
    options["topk_group"] = options["topk_group"] or options["num_expert_group"]
    return options


def reference_routing(
    logits: Tensor, options: dict[str, Any], allowed: np.ndarray | None = None
) -> tuple[np.ndarray, np.ndarray]:
    """Weights float64 and experts int32 ``(T, top_k)``."""
    x = logits.detach().float().cpu().numpy()
    return reference.grouped_topk(x, **complete(options), allowed=allowed)


def assert_same_routing(
    got: tuple[Tensor, Tensor],
    logits: Tensor,
    options: dict[str, Any],
    *,
    clear_share: float = 0.9,
    allowed: np.ndarray | None = None,
) -> None:
    """`got` is the reference's routing of `logits`; `options` are those of the public function.

    `allowed` ``(E,)`` bool leaves experts out, as in the reference.

    At least `clear_share` of the tokens must leave no doubt about their experts, so that comparing
    them means something. Data made of near ties cannot promise that and pass 0.
    """
    weights, experts = (t.detach().cpu() for t in got)
    assert weights.shape == experts.shape == (logits.shape[0], options["top_k"])
    assert weights.dtype == torch.float32
    assert experts.dtype == torch.int32
    if not weights.numel():
        return
    x = logits.detach().float().cpu().numpy().astype(np.float64)
    o = complete(options)
    keys = Keys(x, o, allowed)
    clear = keys.clear()
    ids = experts.numpy()
    expected = reference_routing(logits, options, allowed)[1]
    np.testing.assert_array_equal(ids[clear], expected[clear])
    assert clear.mean() >= clear_share, f"only {clear.mean():.0%} of the tokens are clear"
    for token in np.flatnonzero(~clear):
        keys.assert_permitted(token, ids[token])
    assert_weights(weights.numpy(), x, ids, o)


class Keys:
    """Keys and group scores in float64, with the error that float32 may have made in each.

    That error is one unit in the last place of the terms, so that two keys are told apart when they
    differ by two. Equal terms make equal keys: those are ties, and as clear as any. Experts that
    are not `allowed` have the lowest of keys, and none in a group's score.
    """

    def __init__(self, x: np.ndarray, o: dict[str, Any], allowed: np.ndarray | None = None):
        self.o = o
        self.allowed = np.ones(x.shape[1], bool) if allowed is None else allowed
        bias = o["e_score_correction_bias"]
        x = reference.nan_last(x)
        with np.errstate(invalid="ignore", over="ignore"):
            s = reference.scores(x, o["scoring_func"])
            self.key, values, self.error = x, s, np.zeros_like(x)
            self.terms = x[..., None]
            if bias is not None:
                self.key = values = reference.nan_last(s + bias.astype(np.float64))
                self.error = ulp(np.maximum(abs(s), abs(bias)))
                self.terms = np.stack((x, np.broadcast_to(bias, x.shape)), -1)
            self.key = np.where(self.allowed, self.key, -np.inf)
            by_group = (len(x), o["num_expert_group"], -1)
            self.groups = self.key.reshape(by_group)
            if o["group_score"] == "max":
                self.rank = self.groups.max(-1)
                self.rank_error = self.error.reshape(by_group).max(-1)
                self.rank_terms = self.rank[..., None]
            else:
                values = np.where(self.allowed, values, -np.inf).reshape(by_group)
                two = -np.sort(-values, axis=-1)[..., :2]
                count = self.allowed.reshape(by_group[1:]).sum(-1, keepdims=True)
                self.rank_terms = np.where(np.arange(two.shape[-1]) < count, two, 0)
                self.rank = reference.nan_last(self.rank_terms.sum(-1))
                error = self.error if bias is not None else ulp(s)
                self.rank_error = 2 * error.reshape(by_group).max(-1)

    def exact(self) -> bool:
        """Are all decisions made on inputs, or on a single float32 operation on inputs?"""
        o = self.o
        ranked = o["topk_group"] < o["num_expert_group"] and o["group_score"] != "max"
        plain = o["e_score_correction_bias"] is None and not ranked
        return plain or o["scoring_func"] == "identity"

    def pools(self, kept: np.ndarray) -> np.ndarray:
        """Experts ``(..., pools, size)`` among which `take` are chosen, by the groups kept."""
        size = self.groups.shape[-1]
        ids = kept[..., None] * size + np.arange(size)
        return ids if self.o["balanced"] else ids.reshape(*kept.shape[:-1], 1, -1)

    @property
    def take(self) -> int:
        return self.o["top_k"] // (self.o["topk_group"] if self.o["balanced"] else 1)

    def clear(self) -> np.ndarray:
        """Tokens ``(T,)`` whose routing follows from keys that float32 tells apart."""
        tokens = len(self.key)
        if self.exact():
            return np.ones(tokens, bool)
        count = self.o["topk_group"]
        groups = decided(self.rank, self.rank_error, self.rank_terms, count)
        kept = np.sort(reference.first_largest(self.rank, count), -1)
        pools = self.pools(kept)
        rows = np.arange(tokens)[:, None, None]
        experts = decided(
            self.key[rows, pools], self.error[rows, pools], self.terms[rows, pools], self.take
        )
        return groups.all(-1) & experts.all((-1, -2))

    def assert_permitted(self, token: int, ids: np.ndarray) -> None:
        """An unclear routing keeps the right number of groups, and the best keys up to rounding."""
        groups, size = self.groups.shape[1:]
        assert ids.min() >= 0
        assert ids.max() < groups * size
        assert self.allowed[ids].all()
        assert len(set(ids)) == len(ids)
        used = ids // size
        kept = np.unique(used)
        assert len(kept) <= self.o["topk_group"]
        rank, slack = self.rank[token], 2 * self.rank_error[token].max()
        assert rank[kept].min() >= np.sort(rank)[-self.o["topk_group"]] - slack
        if self.o["balanced"]:
            np.testing.assert_array_equal(used, np.repeat(kept, self.take))
        key, slack = self.key[token], 2 * self.error[token].max()
        pools = self.pools(kept)
        for pool, chosen in zip(pools, ids.reshape(len(pools), -1), strict=True):
            best = -np.sort(-key[pool])[: self.take]
            assert (key[chosen] >= best - slack).all()


def ulp(x: np.ndarray) -> np.ndarray:
    """The float32 unit in the last place at ``|x|``, that of zero where `x` is not finite."""
    return EPS * np.maximum(np.where(np.isfinite(x), abs(x), 0), TINY)


def decided(keys: np.ndarray, error: np.ndarray, terms: np.ndarray, k: int) -> np.ndarray:
    """``(..., k)``: does each of the `k` largest keys stand apart from the next, or tie with it?"""
    order = np.argsort(-keys, axis=-1, kind="stable")[..., : k + 1]
    keys, error = (np.take_along_axis(a, order, -1) for a in (keys, error))
    terms = np.take_along_axis(terms, order[..., None], -2)
    upper, lower = keys[..., :-1], keys[..., 1:]
    with np.errstate(invalid="ignore"):
        apart = upper - lower > error[..., :-1] + error[..., 1:]
    same = (terms[..., :-1, :] == terms[..., 1:, :]).all(-1)
    return apart | same | (np.isinf(upper) & (upper == lower))


def combine(scores: Tensor, experts: Tensor, o: dict[str, Any]) -> Tensor:
    """Weights of the chosen experts, in the dtype of the scores, as anyone would write it.

    An expert of -1 is padding: its weight is 0.
    """
    padding, experts = experts < 0, experts.clamp_min(0)
    weights = scores.gather(1, experts).masked_fill(padding, 0)
    if o["renormalize"]:
        weights = weights / (weights.sum(-1, keepdim=True) + reference.EPSILON)
    weights = weights * o["routed_scaling_factor"]
    if o["expert_scale"] is not None:
        weights = weights * torch.as_tensor(o["expert_scale"]).to(scores)[experts]
    return weights


def plain_scores(x: Tensor, scoring_func: str) -> Tensor:
    match scoring_func:
        case "softmax":
            return x.clamp(-LARGEST, LARGEST).softmax(-1)  # inf - inf would be NaN
        case "sigmoid":
            return x.sigmoid()
        case "sqrt_softplus":
            return torch.nn.functional.softplus(x).sqrt()
    return x


def condition(x: np.ndarray, s: np.ndarray, scoring_func: str) -> np.ndarray:
    """By how much a relative error of the exponential's argument grows in the score: |x s'/s|."""
    with np.errstate(all="ignore"):
        match scoring_func:
            case "softmax":
                c = x.max(-1, keepdims=True) - x
            case "sigmoid":
                c = abs(x) * (1 - s)
            case "sqrt_softplus":
                c = abs(x) / (1 + np.exp(-x)) / (2 * s * s)
            case _:
                c = np.zeros_like(x)
    return np.where(np.isfinite(c), c, 0)


@np.errstate(all="ignore")
def assert_weights(weights: np.ndarray, x: np.ndarray, ids: np.ndarray, o: dict[str, Any]) -> None:
    """Errors are counted in roundings: of the score's argument, of the score, of the sum."""
    x = reference.nan_last(x)
    experts = torch.from_numpy(ids).long()
    s = reference.scores(x, o["scoring_func"])
    exact = combine(torch.from_numpy(s), experts, o).numpy()
    plain = combine(
        plain_scores(torch.from_numpy(x).float(), o["scoring_func"]), experts, o
    ).numpy()

    rounded = exact.astype(np.float32)
    for kind in (np.isnan, np.isposinf, np.isneginf):
        np.testing.assert_array_equal(kind(weights), kind(rounded), err_msg=kind.__name__)

    real = np.maximum(ids, 0)
    score = np.where(ids < 0, 0, np.take_along_axis(s, real, -1))
    grown = np.take_along_axis(condition(x, s, o["scoring_func"]), real, -1)
    lost = np.full_like(score, TINY)  # what flushing a subnormal costs, under the root more
    if o["scoring_func"] == "sqrt_softplus":
        lost /= np.maximum(2 * score, TINY**0.5)
    error = np.maximum(EPS * abs(score) * (1 + grown), lost)
    share = abs(exact / score)
    if o["renormalize"]:
        total = abs(score.sum(-1, keepdims=True) + reference.EPSILON)
        share = 1 / total * abs(o["routed_scaling_factor"])
        if o["expert_scale"] is not None:
            share = share * abs(o["expert_scale"][real])
        error = error + abs(score) * error.sum(-1, keepdims=True) / total
    unit = error * share
    unit = np.where(np.isfinite(unit), unit, 0) + TINY  # an infinite score leaves nothing to round

    finite = np.isfinite(rounded)
    if not finite.any():
        return
    mine = (abs(weights - exact) / unit)[finite]
    theirs = (abs(plain - exact) / unit)[finite & np.isfinite(plain)]
    limit = theirs if theirs.size else np.zeros(1)
    assert mine.max() <= limit.max() + 2
    if np.unique(x).size < FEW:
        return  # the same few values round the same way every time: their mean says nothing more
    # The weights of a token share the rounding of its sum.
    assert mine.mean() <= limit.mean() + 0.25 + 2 / np.sqrt(len(x))
