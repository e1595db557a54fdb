"""Routing by table or by hash in NumPy: what the operator means.

The token's id decides, not its hidden state. With E experts in G contiguous groups of N = E / G,
token id v, its domain d (0 without domains) and slot k:

    local(v, k) = table[v, k]                              a table, one per layer
                | (h(v) mod N + k * floor(N / K)) mod N    without one: no two slots alike
    expert      = d * N + local(v, k)
    p           = scores(logits)[expert] | 1 without logits
    w           = routed_scaling_factor * (p / (sum over k of p) if renormalize else p)

h(v) = fmix32(v xor fmix32(seed)) in 32-bit integers, with MurmurHash3's finaliser fmix32: the same
on every backend, nothing to store, one seed per layer.

PanGu-Sigma (random routed experts, arXiv 2303.10845): domains, weight 1. Hash layers
(arXiv 2106.04426): a table, weight 1. DeepSeek-V4: a table for the experts, and weights from
logits by sqrt(softplus), renormalised.

A token id of -1, and any id, domain or entry out of range, is padding: expert -1, weight 0.
"""

import numpy as np
from triselect.kernels.grouped_topk.reference import EPSILON, nan_last, scores


@np.errstate(invalid="ignore", over="ignore")  # infinite logits are meant to go through
def table_route(
    token_ids,
    table,
    num_experts,
    domains,
    num_expert_group,
    logits,
    scoring_func,
    renormalize,
    routed_scaling_factor,
    top_k,
    seed,
):
    """Weights ``(T, top_k)`` float64 and experts ``(T, top_k)`` int32 of token ids ``(T,)``."""
    size = num_experts // num_expert_group
    real = token_ids >= 0
    if table is None:
        first = hashed(np.where(real, token_ids, 0), seed) % np.uint32(size)
        local = (first[:, None].astype(np.int64) + np.arange(top_k) * (size // top_k)) % size
    else:
        real &= token_ids < len(table)
        local = table[np.where(real, token_ids, 0)] if len(table) else np.zeros((len(real), top_k))
        local = local.reshape(len(token_ids), top_k)
    real = real[:, None] & (local >= 0) & (local < size)
    if domains is not None:
        real &= ((domains >= 0) & (domains < num_expert_group))[:, None]
        local = local + size * domains[:, None]
    experts = np.where(real, local, -1).astype(np.int32)

    p = np.ones(experts.shape)
    if logits is not None:
        s = scores(nan_last(logits.astype(np.float64)), scoring_func)
        p = np.take_along_axis(s, np.maximum(experts, 0), axis=-1)
    p = np.where(real, p, 0.0)
    if renormalize:
        p = p / (p.sum(-1, keepdims=True) + EPSILON)
    return p * routed_scaling_factor, experts


def hashed(token_ids, seed):
    """``(T,)`` uint32."""
    return fmix32(token_ids.astype(np.uint32) ^ fmix32(np.array([seed], np.uint32)))


def fmix32(h):
    h = (h ^ (h >> np.uint32(16))) * np.uint32(0x85EBCA6B)
    h = (h ^ (h >> np.uint32(13))) * np.uint32(0xC2B2AE35)
    return h ^ (h >> np.uint32(16))
