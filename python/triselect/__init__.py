"""triselect: inference-acceleration kernels that select, for PyTorch.

>>> import torch, triselect
>>> routing = triselect.grouped_topk(torch.randn(4, 64), 8, num_expert_group=8, balanced=True)
>>> routing.experts.shape
torch.Size([4, 8])
"""

from triselect.ops import (
    BackendUnavailable,
    LimitedRouting,
    Permutation,
    RoutedPermutation,
    Routing,
    grouped_topk,
    limit_experts,
    permute,
    route_and_permute,
    table_route,
)

__version__ = "0.1.0"
__all__ = [
    "BackendUnavailable",
    "LimitedRouting",
    "Permutation",
    "RoutedPermutation",
    "Routing",
    "__version__",
    "grouped_topk",
    "limit_experts",
    "permute",
    "route_and_permute",
    "table_route",
]
