"""How long a whole MoE layer takes behind its router, against what people would otherwise run."""

from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from itertools import cycle
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from triselect.moe import fused_moe
from triselect.ops import Routing, grouped_topk
from triselect.report.timing import Timing, interleaved

HIDDEN, INTERMEDIATE, EXPERTS, TOP_K = 1024, 512, 64, 8
TOKENS = (1, 4, 16, 64, 256)
INPUTS = 8  # taken in turn, so that weights do not come from a cache


@dataclass(frozen=True)
class LayerSpeed:
    """Timings of one number of tokens by provider, and the bytes of weights that they need."""

    tokens: int
    timings: dict[str, Timing]
    weight_bytes: float  # of bfloat16, a mean over the inputs

    def ratio(self, rival: str) -> float:
        """How many times as long `rival` takes; below 1 it wins."""
        return self.timings[rival].p50 / self.timings["triselect"].p50

    @property
    def rate(self) -> float:
        """GB/s of weights in bfloat16."""
        return self.weight_bytes / self.timings["triselect"].p50 / 1e3

    def as_dict(self) -> dict[str, Any]:
        timings = {name: timing._asdict() for name, timing in self.timings.items()}
        return asdict(self) | {"timings": timings}


def by_loop(hidden: Tensor, routing: Routing, gate_up: Tensor, down: Tensor) -> Tensor:
    """Expert after expert, as transformers writes its eager experts."""
    out = torch.zeros_like(hidden)
    for expert in routing.experts.unique().tolist():
        token, k = torch.where(routing.experts == expert)
        gate, up = F.linear(hidden[token], gate_up[expert]).chunk(2, -1)
        found = F.linear(F.silu(gate) * up, down[expert])
        out.index_add_(0, token, (found * routing.weights[token, k, None]).to(out.dtype))
    return out


def by_grouped_mm(hidden: Tensor, routing: Routing, gate_up: Tensor, down: Tensor) -> Tensor:
    """Copies sorted by expert, two grouped products, and back, as its fast ones."""
    tokens, k = routing.experts.shape
    flat = routing.experts.flatten()
    order = flat.argsort()
    ends = flat.bincount(minlength=len(gate_up)).cumsum(0, dtype=torch.int32)
    both = F.grouped_mm(hidden[order // k], gate_up.mT, offs=ends)
    gate, up = both.chunk(2, -1)
    found = F.grouped_mm(F.silu(gate) * up, down.mT, offs=ends)
    found = found * routing.weights.flatten()[order, None]
    back = torch.empty_like(order)
    back[order] = torch.arange(len(order), device=order.device)
    return found[back].view(tokens, k, -1).sum(1).to(hidden.dtype)


def measure(
    counts: Sequence[int] = TOKENS,
    *,
    sizes: tuple[int, int, int] = (HIDDEN, INTERMEDIATE, EXPERTS),
    seconds: float = 1.0,
    done: Callable[[], object] = lambda: None,
) -> list[LayerSpeed]:
    """One `LayerSpeed` per number of tokens: bfloat16, MoGE's routing of random logits."""
    width, inner, experts = sizes
    generator = torch.Generator().manual_seed(0)

    def numbers(*shape: int) -> Tensor:
        return torch.randn(shape, generator=generator)

    gate_up = (numbers(experts, 2 * inner, width) / width**0.5).bfloat16()
    down = (numbers(experts, width, inner) / inner**0.5).bfloat16()
    gate_up8, gate_up_scale = _quantised(gate_up)
    down8, down_scale = _quantised(down)
    found = []
    for count in counts:
        inputs = []
        for _ in range(INPUTS):
            routing = grouped_topk(
                numbers(count, experts), TOP_K, num_expert_group=TOP_K, balanced=True
            )
            inputs.append((numbers(count, width).bfloat16(), routing))
        read = sum(len(routing.experts.unique()) for _, routing in inputs) / INPUTS

        def ours(hidden: Tensor, routing: Routing) -> Tensor:
            return fused_moe(hidden, routing, gate_up, down)

        def ours8(hidden: Tensor, routing: Routing) -> Tensor:
            return fused_moe(
                hidden,
                routing,
                gate_up8,
                down8,
                gate_up_scale=gate_up_scale,
                down_scale=down_scale,
            )

        calls = {
            "triselect": ours,
            "int8": ours8,
            "grouped_mm": lambda h, r: by_grouped_mm(h, r, gate_up, down),
            "loop": lambda h, r: by_loop(h, r, gate_up, down),
        }
        expected = calls["loop"](*inputs[0]).float()
        for call in calls.values():
            off = (call(*inputs[0]).float() - expected).abs().max()
            if not off < 0.05 * expected.abs().max():
                raise RuntimeError(f"two ways to run the layer differ by {off}")
        turns = {name: _in_turn(call, inputs) for name, call in calls.items()}
        timings = interleaved(turns, seconds=seconds)
        found.append(LayerSpeed(count, timings, read * 3 * width * inner * 2))
        done()
    return found


def _in_turn(call: Callable[..., Tensor], inputs: Sequence[tuple]) -> Callable[[], Tensor]:
    each = cycle(inputs)
    return lambda: call(*next(each))


def _quantised(weight: Tensor) -> tuple[Tensor, Tensor]:
    """int8 with a scale for each output channel."""
    scale = weight.float().abs().amax(-1) / 127
    return (weight.float() / scale[..., None]).round().to(torch.int8), scale
