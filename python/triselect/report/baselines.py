"""What people would otherwise run: routing as engines compose it from PyTorch operators.

Written as vLLM, vllm-ascend and the models' own code write it, with scores in float32. Each is held
against triselect before it is timed.
"""

from collections.abc import Callable

import torch
from torch import Tensor

import triselect
from triselect.report.routers import Router

Composition = Callable[[Tensor], tuple[Tensor, Tensor]]


def balanced(router: Router, scale: Tensor | None) -> Composition:
    """MoGE as vllm-ascend writes it for Pangu Pro MoE (``pangu_group8_topk``)."""
    groups, size = router.groups, router.experts // router.groups
    per_group = router.top_k // groups

    def compose(logits: Tensor) -> tuple[Tensor, Tensor]:
        tokens = logits.shape[0]
        scores = logits.softmax(-1, dtype=torch.float32).view(tokens, groups, size)
        if per_group == 1:
            weights, local = scores.max(-1, keepdim=True)
        else:
            weights, local = scores.topk(per_group, dim=-1)
        offsets = torch.arange(0, router.experts, size, device=logits.device)
        experts = (local + offsets[:, None]).view(tokens, -1)
        weights = weights.view(tokens, -1)
        if scale is not None:
            weights = weights * scale[experts]
        return weights, experts.to(torch.int32)

    return compose


def group_limited(router: Router, bias: Tensor | None) -> Composition:
    """DeepSeek-V2 and V3 as vLLM writes them (``grouped_topk``), plain top-k included."""
    groups, size = router.groups, router.experts // router.groups

    def compose(logits: Tensor) -> tuple[Tensor, Tensor]:
        tokens = logits.shape[0]
        if router.scoring_func == "softmax":
            scores = logits.softmax(-1, dtype=torch.float32)
        else:
            scores = logits.float().sigmoid()
        keys = scores if bias is None else scores + bias
        if router.kept < groups:
            by_group = keys.view(tokens, groups, size)
            if router.group_score == "max":
                rank = by_group.amax(-1)
            else:
                rank = by_group.topk(2, dim=-1).values.sum(-1)
            kept = rank.topk(router.kept, dim=-1, sorted=False).indices
            mask = torch.zeros_like(rank).scatter(1, kept, 1).bool()
            mask = mask[:, :, None].expand(tokens, groups, size).reshape(tokens, -1)
            keys = keys.masked_fill(~mask, float("-inf"))
        if router.balanced:
            # No engine has this; it is how one would write it with the pieces above.
            kept = kept.sort(-1).values[:, :, None]
            of_kept = keys.view(tokens, groups, size).gather(1, kept.expand(-1, -1, size))
            local = of_kept.topk(router.top_k // router.kept, dim=-1).indices
            experts = (local + size * kept).view(tokens, -1)
        else:
            experts = keys.topk(router.top_k, dim=-1).indices
        weights = scores.gather(1, experts)
        if router.renormalize:
            weights = weights / weights.sum(-1, keepdim=True)
        return weights * router.factor, experts.to(torch.int32)

    return compose


def composition(router: Router, device: torch.device | str = "cpu") -> Composition:
    """The composition of PyTorch operators that stands for `router`."""
    options = router.options(device)
    if router.balanced and router.kept == router.groups:
        return balanced(router, options.get("expert_scale"))
    return group_limited(router, options.get("e_score_correction_bias"))


def selection_alone(router: Router) -> Callable[[Tensor], Tensor] | None:
    """The honest rival for selecting: reshape to ``(T·G, E/G)`` and a plain top-k.

    It gives positions within groups and does nothing else: no scores, no weights, no numbers of
    experts. None where a plain top-k cannot select what the router does.
    """
    if router.bias or (router.kept < router.groups) or not (router.balanced or router.groups == 1):
        return None
    size, take = router.experts // router.groups, router.top_k // router.groups

    def select(logits: Tensor) -> Tensor:
        return logits.view(-1, size).topk(take, dim=-1).indices

    return select


class Disagreement(AssertionError):
    """A baseline that computes something else must not be timed against."""


def verify(router: Router, logits: Tensor, got: tuple[Tensor, Tensor]) -> None:
    """Raises `Disagreement` unless `got` is triselect's routing, as a set of experts with weights.

    torch.topk leaves open which of equal keys comes first, so experts are compared by the keys they
    were chosen for, and weights before an expert's own scale. Tokens whose last kept group ties
    with the next are left out. Biased scores are rounded in different orders: where there is a
    bias, one token in a thousand may hang on it.
    """
    options = router.options(logits.device)
    weights, experts = triselect.grouped_topk(logits, backend="eager", **options)
    bias = options.get("e_score_correction_bias")
    keys = logits.float() if bias is None else logits.float().sigmoid() + bias

    scale = options.get("expert_scale", keys.new_ones(router.experts))

    def ordered(w: Tensor, e: Tensor) -> tuple[Tensor, Tensor]:
        w = w / scale[e.long()]
        return keys.gather(1, e.long()).sort(-1).values, w.sort(-1).values

    (key, weight), (other_key, other_weight) = ordered(weights, experts), ordered(*got)
    same = torch.isclose(key, other_key, rtol=1e-6, atol=1e-6).all(-1)
    same &= torch.isclose(weight, other_weight, rtol=1e-5, atol=1e-7).all(-1)
    same |= _groups_tie(router, keys)
    allowed = 0 if bias is None else len(same) // 1000
    wrong = int((~same).sum())
    if wrong > allowed:
        raise Disagreement(f"{router.name}: {wrong} of {len(same)} tokens are routed differently")
    if not bool(got[1].sort(-1).values.diff(dim=-1).ne(0).all()):
        raise Disagreement(f"{router.name}: an expert was chosen twice for one token")


def _groups_tie(router: Router, keys: Tensor) -> Tensor:
    if router.kept == router.groups:
        return torch.zeros(len(keys), dtype=torch.bool, device=keys.device)
    best = keys.view(len(keys), router.groups, -1).topk(2, dim=-1).values
    rank = best[..., 0] if router.group_score == "max" else best.sum(-1)
    rank = rank.sort(-1, descending=True).values
    last, following = rank[:, router.kept - 1], rank[:, router.kept]
    return torch.isclose(last, following, rtol=1e-6, atol=1e-6)


def verify_selection(router: Router, logits: Tensor, local: Tensor) -> None:
    """The same for `selection_alone`: equal keys, group by group."""
    experts = router(logits, backend="eager").experts
    groups = logits.view(-1, router.experts // router.groups)
    chosen = logits.gather(1, experts.long()).view(len(groups), -1).sort(-1).values
    if not torch.equal(chosen, groups.gather(1, local).sort(-1).values):
        raise Disagreement(f"{router.name}: the plain top-k selects other experts")
