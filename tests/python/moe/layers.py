"""What the tests of whole layers feed them: experts, routings with padding, and the formula."""

from typing import Any, NamedTuple

import torch
from torch import Tensor
from torch.nn.functional import linear, silu

from triselect import Routing
from triselect.moe.fused import Shared, fused_moe

from ...kernels.backends import over_backends


class Layer(NamedTuple):
    hidden: Tensor
    weights: Tensor
    experts: Tensor
    gate_up: Tensor
    down: Tensor
    shared_gate_up: Tensor | None = None
    shared_down: Tensor | None = None


def moe(
    hidden: Tensor,
    weights: Tensor,
    experts: Tensor,
    gate_up: Tensor,
    down: Tensor,
    shared_gate_up: Tensor | None = None,
    shared_down: Tensor | None = None,
    **options: Any,
) -> Tensor:
    """`fused_moe` of the fields of a layer."""
    shared = None
    if shared_gate_up is not None and shared_down is not None:
        shared = Shared(shared_gate_up, shared_down)
    return fused_moe(hidden, Routing(weights, experts), gate_up, down, shared=shared, **options)


every_backend = over_backends(
    moe, "permute", "grouped_swiglu_up", "grouped_swiglu_down", "finalize"
)


def layer(
    tokens: int = 7,
    *,
    hidden: int = 24,
    inner: int = 10,
    num_experts: int = 8,
    top_k: int = 3,
    shared: int = 0,
    padding: float = 0.0,
    dtype: torch.dtype = torch.float32,
    seed: int = 0,
) -> Layer:
    """Random numbers. `shared` is the size of what every token goes through."""
    generator = torch.Generator().manual_seed(seed)

    def random(*shape: int) -> Tensor:
        return torch.randn(shape, generator=generator)

    def weight(*shape: int) -> Tensor:
        return (random(*shape) * shape[-1] ** -0.5).to(dtype)

    experts = random(tokens, num_experts).topk(top_k).indices.int()
    experts[torch.rand(experts.shape, generator=generator) < padding] = -1
    return Layer(
        random(tokens, hidden).to(dtype),
        random(tokens, top_k).softmax(-1),
        experts,
        weight(num_experts, 2 * inner, hidden),
        weight(num_experts, hidden, inner),
        weight(2 * shared, hidden) if shared else None,
        weight(hidden, shared) if shared else None,
    )


def swiglu(x: Tensor, gate_up: Tensor, down: Tensor) -> Tensor:
    gate, up = linear(x, gate_up).chunk(2, -1)
    return linear(silu(gate) * up, down)


def formula(of: Layer) -> Tensor:
    """Token by token, expert by expert, in the dtype that everything has."""
    rows = []
    for token, x in enumerate(of.hidden):
        y = torch.zeros_like(x)
        for k, e in enumerate(of.experts[token].tolist()):
            if e >= 0:
                y = y + of.weights[token, k] * swiglu(x, of.gate_up[e], of.down[e])
        if of.shared_gate_up is not None:
            y = y + swiglu(x, of.shared_gate_up, of.shared_down)
        rows.append(y)
    return torch.stack(rows) if rows else torch.zeros_like(of.hidden)


def eager_loop(of: Layer) -> Tensor:
    """As transformers writes it: an expert after the other, added up in the dtype of the layer."""
    out = torch.zeros_like(of.hidden)
    for e in range(len(of.gate_up)):
        token, k = torch.where(of.experts == e)
        y = swiglu(of.hidden[token], of.gate_up[e], of.down[e]) * of.weights[token, k, None]
        out.index_add_(0, token, y.to(out.dtype))
    if of.shared_gate_up is not None:
        out = out + swiglu(of.hidden, of.shared_gate_up, of.shared_down)
    return out


def double(of: Layer) -> Layer:
    return Layer(*(t.double() if t is not None and t.is_floating_point() else t for t in of))


def assert_no_worse(
    got: Tensor, theirs: Tensor, exact: Tensor, dtype: torch.dtype | None = None
) -> None:
    """The largest and the mean error are at most those of plain PyTorch, plus rounding.

    That is one more in the layer's `dtype`, at most eps / 2 of a number and eps / 4 in the mean, on
    either side; and what sums in float32 differ by whose order is another.
    """
    assert (got.shape, got.dtype) == (exact.shape, theirs.dtype)
    if not got.numel():
        return
    mine, others, size = (t.abs() for t in (got.double() - exact, theirs.double() - exact, exact))
    rounding, order = torch.finfo(dtype or got.dtype).eps, torch.finfo(torch.float32).eps
    assert mine.max() <= others.max() + (rounding + 2 * order) * size.max()
    assert mine.mean() <= others.mean() + (rounding / 4 + order) * size.mean()
