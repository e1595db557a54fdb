"""What the tests of route_and_permute compare: the operator, and the two that it is."""

from typing import Any

from torch import Tensor

import triselect

from ..backends import LAYOUTS, over_backends, stored

fused = stored(triselect.route_and_permute)


def apart(
    logits: Tensor, *, layout: str = "contiguous", backend: str, **options: Any
) -> triselect.ops.RoutedPermutation:
    """`grouped_topk`, then `permute`, on the same backend."""
    logits = LAYOUTS[layout](logits)
    routing = triselect.grouped_topk(logits, backend=backend, **options)
    permutation = triselect.permute(routing.experts, logits.shape[1], backend=backend)
    return triselect.ops.RoutedPermutation(*routing, *permutation)


OPERATORS = ("route_and_permute", "grouped_topk", "permute")
every_backend = over_backends(fused, *OPERATORS)
every_trained_backend = over_backends(fused, *OPERATORS, "grouped_topk_backward")
