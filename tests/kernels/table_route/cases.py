"""What the tests of table_route feed it, and what they hold against the reference."""

from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor
from triselect.kernels.table_route import reference

import triselect

from ..backends import LAYOUTS, over_backends
from ..grouped_topk.compare import EPS, assert_weights


class Call(NamedTuple):
    """All arguments, in the order of the operator."""

    token_ids: Tensor
    table: Tensor | None
    num_experts: int
    domains: Tensor | None = None
    num_expert_group: int = 1
    logits: Tensor | None = None
    scoring_func: str = "sqrt_softplus"
    renormalize: bool = False
    routed_scaling_factor: float = 1.0
    top_k: int = 1
    seed: int = 0

    def stored(self, layout: str) -> "Call":
        """The same with all tensors laid out: by `expanded`, each has one row again and again."""
        return Call(*(LAYOUTS[layout](v) if isinstance(v, Tensor) else v for v in self))

    def arrays(self) -> list[Any]:
        return [
            (v.float() if v.is_floating_point() else v).numpy() if isinstance(v, Tensor) else v
            for v in self
        ]


def route(*args: Any, layout: str = "contiguous", backend: str, **options: Any):
    """The public function, of all arguments in the order of the operator."""
    named = Call(*args).stored(layout)._asdict() | options
    return triselect.table_route(**named, backend=backend)


every_backend = over_backends(route, "table_route")
every_trained_backend = over_backends(route, "table_route", "grouped_topk_backward")


def random_call(
    tokens: int = 60,
    vocabulary: int | None = 40,
    k: int = 3,
    groups: int = 1,
    size: int = 12,
    padding: float = 0.1,
    logits: torch.dtype | None = None,
    dtype: torch.dtype = torch.int64,
    seed: int = 0,
    **options: Any,
) -> Call:
    """Tokens over a table, or without a `vocabulary` over the hash; k = 0 is a table ``(V,)``."""
    rng = np.random.default_rng(seed)
    last = 2**31 - 1 if vocabulary is None else vocabulary
    ids = rng.integers(0, max(last, 1), tokens)
    ids[rng.random(tokens) < (padding if last else 1)] = -1
    table = None
    if vocabulary is not None:
        shape = (vocabulary, k) if k else (vocabulary,)
        table = torch.from_numpy(rng.integers(0, size, shape)).to(dtype)
    if groups > 1 or rng.random() < 0.3:
        options["domains"] = torch.from_numpy(rng.integers(0, groups, tokens)).to(dtype)
    if logits is not None:
        x = 2 * rng.standard_normal((tokens, groups * size), dtype=np.float32)
        options["logits"] = torch.from_numpy(x).to(logits)
    ids = torch.from_numpy(ids).to(dtype)
    return Call(ids, table, groups * size, num_expert_group=groups, top_k=max(k, 1), **options)


def assert_same_routing(got: triselect.Routing, call: Call) -> None:
    """Experts exactly; weights within the budget of grouped_topk's, exactly where they are 1."""
    weights, experts = got
    assert weights.shape == experts.shape == (len(call.token_ids), call.top_k)
    assert (weights.dtype, experts.dtype) == (torch.float32, torch.int32)
    exact, expected = reference.table_route(*call.arrays())
    np.testing.assert_array_equal(experts, expected)
    assert (weights[experts < 0] == 0).all()
    if call.logits is None:
        tolerance = 2 * EPS if call.renormalize else 0  # of a division and a product
        np.testing.assert_allclose(weights, exact.astype(np.float32), rtol=tolerance)
    elif weights.numel():
        options = call._asdict() | {"expert_scale": None}
        x = call.logits.double().numpy()
        assert_weights(weights.numpy(), x, expected, options)
