"""Which routers of transformers are `grouped_topk`, and with which options.

transformers has some thirty classes of routers, which change between versions. Instead of their
names, their behaviour is compared: a router with a weight ``(E, H)``, and perhaps a correction bias
``(E,)``, is given random weights and tokens, on the CPU and without its hooks, and is ours if
`grouped_topk` with some options that its attributes allow gives the same experts and weights.
"""

import inspect
from collections.abc import Callable, Iterator, Sequence
from itertools import product
from types import MethodType
from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from triselect.ops import grouped_topk
from triselect.ops.cache import FLOATS
from triselect.ops.grouped_topk import GROUP_SCORES

BIAS = "e_score_correction_bias"
SCALES = ("routed_scaling_factor", "router_scaling_factor")
TOKENS = 256  # of the comparison
AGREE = 0.99  # of them: the keys of the others are equal but for rounding


class Match(NamedTuple):
    """How to compute what a router returns: logits, weights and experts."""

    logits: Callable[[Tensor, Tensor], Tensor]
    options: dict[str, Any]
    rounds: bool  # weights come in the dtype of the hidden states, else in float32


def _in_float32(hidden: Tensor, weight: Tensor) -> Tensor:
    return F.linear(hidden.float(), weight.float())


def _to_float32(hidden: Tensor, weight: Tensor) -> Tensor:
    return F.linear(hidden, weight).float()


LOGITS = (F.linear, _to_float32, _in_float32)


class _Bare(nn.Module):
    """A router without its hooks."""

    def __init__(self, router: nn.Module) -> None:
        super().__init__()
        self.router = router

    def forward(self, hidden: Tensor) -> Any:
        return type(self.router).forward(self.router, hidden)


def find_routers(block: nn.Module, experts: int) -> Iterator[tuple[str, nn.Module]]:
    """Children of a block that may be routers over so many experts."""
    for name, child in block.named_children():
        shapes = {key: x.shape for key, x in child.state_dict().items()}
        weight = shapes.pop("weight", ())
        looks_right = (
            len(weight) == 2 and weight[0] == experts and shapes.pop(BIAS, (experts,)) == (experts,)
        )
        if looks_right and not shapes and isinstance(getattr(child, "top_k", None), int):
            yield name, child


def kind(router: Any) -> tuple:
    """The same for routers that compute the same function of weights and tokens."""
    plain = {k: v for k, v in vars(router).items() if isinstance(v, str | int | float | None)}
    replaced = "forward" in vars(router)
    return type(router), router.weight.shape, router.weight.dtype, replaced, *sorted(plain.items())


def match(router: Any) -> Match | None:
    """How to compute this router by `grouped_topk`, or None where that gives something else."""
    # Somebody has replaced the forward of this very module, or its block hands it more.
    called_with = list(inspect.signature(type(router).forward).parameters)[1:]
    if "forward" in vars(router) or len(called_with) != 1 or router.weight.dtype not in FLOATS:
        return None
    generator = torch.Generator().manual_seed(0)
    experts, size = router.weight.shape
    # Logits of a few units; all biased keys below zero, so that it shows where a router puts zeros.
    weight = torch.randn(experts, size, generator=generator, device="cpu") * size**-0.5
    hidden = torch.randn(TOKENS, size, generator=generator, device="cpu") * 2
    bias = torch.rand(experts, generator=generator, device="cpu") - 2
    low = hidden.bfloat16(), weight.bfloat16()
    try:
        logits, *found = _run(router, hidden, weight, bias)
        low_logits, low_weights, _ = _run(router, *low, bias)
        with torch.autocast("cpu", torch.bfloat16):
            cast_logits, *_ = _run(router, hidden, weight, bias)
            same_cast = [f for f in LOGITS if _equal(f(hidden, weight), cast_logits)]
    except Exception:  # whatever a class of another kind does with these tokens: it is not ours
        return None
    # Bit by bit: it shows in 16 bits where a product is rounded.
    same = [
        f for f in same_cast if _equal(f(*low), low_logits) and _equal(f(hidden, weight), logits)
    ]
    for options in _candidates(router) if same else ():
        ours = grouped_topk(
            logits, router.top_k, e_score_correction_bias=_bias(router, bias), **options
        )
        if _agree(ours, found):
            return Match(same[0], options, low_weights.dtype is not torch.float32)
    return None


def replace(router: nn.Module, match: Match, backend: str) -> None:
    """Let this router compute by `grouped_topk`. ``del router.forward`` undoes it."""

    def forward(self: Any, hidden_states: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        hidden = hidden_states.reshape(-1, hidden_states.shape[-1])
        logits = match.logits(hidden, self.weight)
        weights, experts = grouped_topk(
            logits,
            self.top_k,
            e_score_correction_bias=getattr(self, BIAS, None),
            backend=backend,
            **match.options,
        )
        # As the router's own: others may read them, by a hook for instance.
        return logits, weights.to(hidden.dtype) if match.rounds else weights, experts.long()

    router.forward = MethodType(forward, router)


def _run(router: Any, hidden: Tensor, weight: Tensor, bias: Tensor) -> tuple[Tensor, ...]:
    state = {"router.weight": weight}
    if getattr(router, BIAS, None) is not None:
        state[f"router.{BIAS}"] = bias
    with torch.no_grad():
        logits, weights, experts = torch.func.functional_call(_Bare(router), state, (hidden,))
    return logits, weights, experts


def _bias(router: Any, bias: Tensor) -> Tensor | None:
    return None if getattr(router, BIAS, None) is None else bias


def _candidates(router: Any) -> Iterator[dict[str, Any]]:
    """Options that this router may stand for."""
    groups: list[dict[str, Any]] = [{}]
    count, kept = getattr(router, "num_group", None), getattr(router, "topk_group", None)
    if isinstance(count, int) and isinstance(kept, int) and count > 1:
        groups += [
            {"num_expert_group": count, "topk_group": kept, "group_score": score}
            for score in GROUP_SCORES
        ]
    scales = sorted({1.0} | {float(getattr(router, name, None) or 1.0) for name in SCALES})
    for scoring, renormalize, scale, grouping in product(
        ("softmax", "sigmoid", "sqrt_softplus"), (True, False), scales, groups
    ):
        yield {
            "scoring_func": scoring,
            "renormalize": renormalize,
            "routed_scaling_factor": scale,
            **grouping,
        }


def _agree(ours: Sequence[Tensor], theirs: Sequence[Tensor]) -> bool:
    if ours[1].shape != theirs[1].shape or ours[0].shape != theirs[0].shape:
        return False
    (experts, weights), (their_experts, their_weights) = map(_sorted, (ours, theirs))
    same = (experts == their_experts).all(1)
    close = torch.allclose(weights[same], their_weights[same], rtol=1e-5, atol=1e-7)
    return close and same.float().mean().item() >= AGREE


def _sorted(routing: Sequence[Tensor]) -> tuple[Tensor, Tensor]:
    experts, at = routing[1].long().sort(1)
    return experts, routing[0].float().gather(1, at)


def _equal(a: Tensor, b: Any) -> bool:
    return isinstance(b, Tensor) and a.dtype == b.dtype and torch.equal(a, b)
