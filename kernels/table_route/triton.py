"""Routing by table or by hash in one Triton launch.

Same steps and names as `reference.py`. Floor: what is read and written per token, 4 bytes of an id
and 12 of each expert's entry, index and weight, or the launch. Logits add the lines of memory that
the chosen experts' are in, softmax the whole row.
"""

import torch
import triton
import triton.language as tl
from torch import Tensor
from triselect.kernels.grouped_topk.triton.scores import (
    EPSILON,
    load,
    mass,
    nan_last,
    score,
    sum_in_pairs,
)

TILE = 1024  # slots, or with softmax logits, of a program: 8 in a thread


@triton.jit
def fmix32(h):
    h = (h ^ (h >> 16)) * tl.full((), 0x85EBCA6B, tl.uint32)
    h = (h ^ (h >> 13)) * tl.full((), 0xC2B2AE35, tl.uint32)
    return h ^ (h >> 16)


@triton.jit(do_not_specialize=["tokens", "rows", "seed"])
def route_by_table(
    token_ids,
    table,
    domains,
    logits,
    weights,
    experts,
    tokens,
    rows,
    id_stride,
    row_stride,
    column_stride,
    domain_stride,
    token_stride,
    expert_stride,
    factor,
    seed,
    SCORING: tl.constexpr,
    RENORMALIZE: tl.constexpr,
    GROUPS: tl.constexpr,
    SIZE: tl.constexpr,
    TOP_K: tl.constexpr,
    T: tl.constexpr,
    K: tl.constexpr,
    E: tl.constexpr,
):
    token = tl.program_id(0).to(tl.int64) * T + tl.arange(0, T)[:, None]
    slot = tl.arange(0, K)[None, :]
    live = token < tokens
    out = live & (slot < TOP_K)

    v = tl.load(token_ids + token * id_stride, mask=live, other=-1)
    real = v >= 0
    if table is None:
        first = fmix32(v.to(tl.uint32) ^ fmix32(tl.cast(seed, tl.uint32))) % SIZE
        local = ((first.to(tl.int32) + slot * (SIZE // TOP_K)) % SIZE).to(tl.int64)
    else:
        real = real & (v < rows)
        at = table + v.to(tl.int64) * row_stride + slot.to(tl.int64) * column_stride
        local = tl.load(at, mask=real & out, other=-1).to(tl.int64)
    real = real & out & (local >= 0) & (local < SIZE)
    if domains is not None:
        d = tl.load(domains + token * domain_stride, mask=live, other=-1).to(tl.int64)
        real = real & (d >= 0) & (d < GROUPS)
        local += d * SIZE
    chosen = tl.where(real, local, -1).to(tl.int32)  # [T, K]

    p = real.to(tl.float32)
    if logits is not None:
        row = logits + token * token_stride
        top = 0.0
        total = 1.0
        if SCORING == "softmax":
            e = tl.arange(0, E)[None, :]
            there = live & (e < GROUPS * SIZE)
            x = nan_last(load(row, e, expert_stride, there))  # [T, E]
            top = tl.max(tl.where(there, x, float("-inf")), 1, keep_dims=True)
            total = sum_in_pairs(tl.where(there, mass(x, top), 0.0))
        x = nan_last(load(row, chosen, expert_stride, real))
        p = tl.where(real, score(x, top, total, SCORING), 0.0)
    if RENORMALIZE:
        p = p / (sum_in_pairs(p) + EPSILON)
    p *= tl.cast(factor, tl.float32)
    tl.store(weights + token * TOP_K + slot, p, mask=out)
    tl.store(experts + token * TOP_K + slot, chosen, mask=out)


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
    tokens = len(token_ids)
    weights = token_ids.new_empty((tokens, top_k), dtype=torch.float32)
    experts = torch.empty_like(weights, dtype=torch.int32)
    if not tokens:
        return weights, experts
    slots = triton.next_power_of_2(top_k)
    width = triton.next_power_of_2(num_experts)
    dense = logits is not None and scoring_func == "softmax"
    tile = max(1, TILE // (width if dense else slots))
    with torch.cuda.device_of(token_ids):
        route_by_table[(triton.cdiv(tokens, tile),)](
            token_ids,
            table,
            domains,
            logits,
            weights,
            experts,
            tokens,
            0 if table is None else len(table),
            token_ids.stride(0),
            0 if table is None else table.stride(0),
            table.stride(1) if table is not None and table.dim() == 2 else 0,
            0 if domains is None else domains.stride(0),
            *((0, 0) if logits is None else logits.stride()),
            routed_scaling_factor,
            seed,
            SCORING=scoring_func,
            RENORMALIZE=renormalize,
            GROUPS=num_expert_group,
            SIZE=num_experts // num_expert_group,
            TOP_K=top_k,
            T=tile,
            K=slots,
            E=width,
            num_warps=4,
            enable_fp_fusion=False,
        )
    return weights, experts
