"""The operators' public functions: validation, registration with PyTorch, choice of backend."""

from triselect.ops.backends import BackendUnavailable
from triselect.ops.grouped_topk import Routing, grouped_topk
from triselect.ops.limit_experts import LimitedRouting, limit_experts
from triselect.ops.permute import Permutation, permute
from triselect.ops.route_and_permute import RoutedPermutation, route_and_permute
from triselect.ops.table_route import table_route

__all__ = [
    "BackendUnavailable",
    "LimitedRouting",
    "Permutation",
    "RoutedPermutation",
    "Routing",
    "grouped_topk",
    "limit_experts",
    "permute",
    "route_and_permute",
    "table_route",
]
