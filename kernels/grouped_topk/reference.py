"""Grouped top-k routing in NumPy and float64: what the operator means.

For one token with logits x over E experts in G contiguous groups of N = E / G (MoGE: Pangu Pro
MoE, arXiv 2505.21411, eq. 5-7; group-limited: DeepSeek-V3, arXiv 2412.19437, eq. 12-16):

    s   = softmax(x) | sigmoid(x) | sqrt(softplus(x)) | x       scores
    key = x  without a bias (every score grows with x),  s + bias  with one
    r_g = max of group g's keys | sum of its two largest         group scores
    kept = the topk_group groups with the largest r_g
    selected = the top_k / topk_group largest keys of every kept group       (balanced: MoGE)
             | the top_k largest keys over all kept groups                   (group-limited, plain)
    w   = s[selected];  w /= sum(w) if renormalize
    w  *= routed_scaling_factor * expert_scale[selected]

and backwards, with p = s[selected], q = p / sum(p) if renormalize else p, c the scaling factor and
g = dL/dw:

    dq = c * expert_scale[selected] * g          dL/dexpert_scale = sum over tokens of c * q * g
    dp = (dq - <dq, q>) / sum(p) if renormalize else dq
    ds = dp at the selected experts, 0 elsewhere (the selection itself has no gradient)
    dx = s * (ds - <ds, s>)  softmax, dense over all E  |  s'(x) * ds  the other scores

Keys are float32. The larger key comes first, of equal keys the lower index; NaN counts as -inf.
"""

import numpy as np

EPSILON = 1e-20  # keeps the renormalised weights of an all-zero selection at zero


def scores(x, scoring_func):
    """Scores of logits ``(T, E)``. Infinite maxima share the softmax's mass equally."""
    if scoring_func == "softmax":
        top = x.max(-1, keepdims=True)
        e = np.exp(np.where(x == top, 0.0, x - top))
        return e / e.sum(-1, keepdims=True)
    if scoring_func == "sigmoid":
        return 1 / (1 + np.exp(-x))
    if scoring_func == "sqrt_softplus":
        return np.sqrt(np.logaddexp(x, 0.0))
    return x  # identity


def first_largest(keys, k, out=False):
    """Indices of the ``k`` largest keys, largest first, ties to the lowest index.

    Those that are `out` come after all others.
    """
    return np.lexsort((-keys, np.broadcast_to(out, keys.shape)), axis=-1)[..., :k]


def group_scores(keys, values, group_score, out):
    """Scores ``(T, G)`` of the groups: the largest key, or the sum of the two largest values.

    Of those that are not `out`, ``(G, N)``; where that leaves one, it is the sum.
    """
    if group_score == "max":
        return np.where(out, -np.inf, keys).max(-1)
    two = -np.sort(np.where(out, np.inf, -values), axis=-1)[..., :2]
    exist = np.arange(two.shape[-1]) < (~out).sum(-1, keepdims=True)
    return nan_last(np.where(exist, two, 0).sum(-1, dtype=np.float32))


def nan_last(keys):
    return np.where(np.isnan(keys), -np.inf, keys).astype(keys.dtype)


@np.errstate(invalid="ignore", over="ignore")  # infinite logits are meant to go through
def grouped_topk(
    logits,
    top_k,
    num_expert_group,
    topk_group,
    balanced,
    scoring_func,
    group_score,
    e_score_correction_bias,
    renormalize,
    routed_scaling_factor,
    expert_scale,
    allowed=None,
):
    """Weights ``(T, top_k)`` float64 and experts ``(T, top_k)`` int32 of logits ``(T, E)``.

    `allowed` ``(E,)`` bool leaves experts out of the selection, not of the scores.
    """
    tokens, experts = logits.shape
    out = np.zeros(experts, bool) if allowed is None else ~allowed
    groups, size = num_expert_group, experts // num_expert_group
    x = nan_last(logits.astype(np.float64))
    s = scores(x, scoring_func)
    if e_score_correction_bias is None:
        key, value = x.astype(np.float32), s.astype(np.float32)
    else:
        key = nan_last(s.astype(np.float32) + e_score_correction_bias.astype(np.float32))
        value = key

    by_group = (tokens, groups, size)
    rank = group_scores(
        key.reshape(by_group), value.reshape(by_group), group_score, out.reshape(groups, size)
    )
    kept = np.sort(
        first_largest(rank, topk_group), axis=-1
    )  # ascending, so that ties stay in order
    ids = kept[:, :, None] * size + np.arange(size)  # (T, topk_group, N): the experts still in
    if not balanced:
        ids = ids.reshape(tokens, 1, topk_group * size)
    keys = np.take_along_axis(key[:, None, :], ids, axis=-1)
    picked = first_largest(keys, top_k // topk_group if balanced else top_k, out[ids])
    selected = np.take_along_axis(ids, picked, axis=-1).reshape(tokens, top_k)

    weights = np.take_along_axis(s, selected, axis=-1)
    if renormalize:
        weights = weights / (weights.sum(-1, keepdims=True) + EPSILON)
    weights = weights * routed_scaling_factor
    if expert_scale is not None:
        weights = weights * expert_scale.astype(np.float64)[selected]
    return weights, selected.astype(np.int32)


@np.errstate(invalid="ignore", over="ignore")
def grouped_topk_backward(
    grad, logits, experts, scoring_func, renormalize, routed_scaling_factor, expert_scale
):
    """Gradients of logits ``(T, E)`` and expert_scale ``(E,)`` (empty without one), in float64.

    From ``grad = dL/dw (T, top_k)``. An expert of -1 is padding: its weight is 0, and stays it.
    """
    tokens, num_experts = logits.shape
    x = nan_last(logits.astype(np.float64))
    s = scores(x, scoring_func)
    rows = np.arange(tokens)[:, None]
    p = np.where(experts < 0, 0.0, s[rows, experts])
    g = np.where(experts < 0, 0.0, grad * np.float64(routed_scaling_factor))
    total = p.sum(-1, keepdims=True) + EPSILON
    q = p / total if renormalize else p
    d_scale, dq = np.empty(0), g
    if expert_scale is not None:
        d_scale = np.zeros(num_experts)
        np.add.at(d_scale, experts, g * q)
        dq = g * expert_scale.astype(np.float64)[experts]
    dp = (dq - (dq * q).sum(-1, keepdims=True)) / total if renormalize else dq

    ds = np.zeros_like(x)
    np.add.at(ds, (rows, experts), np.where(experts < 0, 0.0, dp))
    if scoring_func == "softmax":
        return s * (ds - (ds * s).sum(-1, keepdims=True)), d_scale
    return np.where(ds == 0, 0.0, ds * slope(x, s, scoring_func)), d_scale


def slope(x, s, scoring_func):
    """Derivative of an element-wise score by its logit."""
    if scoring_func == "sigmoid":
        return s * (1 - s)
    if scoring_func == "sqrt_softplus":
        return scores(x, "sigmoid") / np.maximum(2 * s, EPSILON)
    return np.ones_like(x)  # identity
