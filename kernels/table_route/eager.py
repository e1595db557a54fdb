"""Routing by table or by hash in plain PyTorch: any device.

Same steps and names as `reference.py`.
"""

import torch
from torch import Tensor
from triselect.kernels.grouped_topk.eager import EPSILON, nan_last, scores


def table_route(
    token_ids: Tensor,
    table: Tensor | None,
    num_experts: int,
    domains: Tensor | None,
    num_expert_group: int,
    logits: Tensor | None,
    scoring_func: str,
    renormalize: bool,
    routed_scaling_factor: float,
    top_k: int,
    seed: int,
) -> tuple[Tensor, Tensor]:
    """Weights ``(T, top_k)`` float32 and experts ``(T, top_k)`` int32 of token ids ``(T,)``."""
    size = num_experts // num_expert_group
    ids = token_ids.long()
    real = ids >= 0
    if table is None:
        slot = torch.arange(top_k, device=ids.device)
        local = (hashed(ids, seed)[:, None] % size + slot * (size // top_k)) % size
    else:
        real = real & (ids < len(table))
        # What is out of range reads the first row, if there is one.
        rows = table.view(-1, top_k) if len(table) else table.new_zeros(1, top_k)
        local = rows[ids.masked_fill(~real, 0)].long()
    real = real[:, None] & (local >= 0) & (local < size)
    if domains is not None:
        domain = domains.long()[:, None]
        real = real & (domain >= 0) & (domain < num_expert_group)
        local = local + size * domain
    experts = local.masked_fill(~real, -1)

    if logits is None:
        p = real.float()
    else:
        s = scores(nan_last(logits.float()), scoring_func)
        p = s.gather(1, experts.clamp_min(0)).masked_fill(~real, 0.0)
    if renormalize:
        p = p / (p.sum(-1, keepdim=True) + EPSILON)
    return p * routed_scaling_factor, experts.int()


def hashed(ids: Tensor, seed: int) -> Tensor:
    """``(T,)`` int64 holding 32 bits: torch multiplies no unsigned integers everywhere."""
    return fmix32(ids ^ fmix32(ids.new_full((1,), seed)))


def fmix32(h: Tensor) -> Tensor:
    # The low 32 bits of a product do not depend on what overflows above them.
    h = ((h ^ (h >> 16)) * 0x85EBCA6B) & 0xFFFFFFFF
    h = ((h ^ (h >> 13)) * 0xC2B2AE35) & 0xFFFFFFFF
    return h ^ (h >> 16)
