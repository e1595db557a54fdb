"""triselect: inference-acceleration kernels that select, for PyTorch.

>>> import torch, triselect
>>> routing = triselect.grouped_topk(torch.randn(4, 64), 8, num_expert_group=8, balanced=True)
>>> routing.experts.shape
torch.Size([4, 8])
"""

from triselect.moe.fused import fused_moe
from triselect.ops import (
    BackendUnavailable,
    LimitedRouting,
    NormAddNorm,
    Permutation,
    RoutedPermutation,
    Routing,
    finalize,
    grouped_swiglu,
    grouped_topk,
    limit_experts,
    norm_add_norm,
    permute,
    route_and_permute,
    table_route,
)

__version__ = "0.1.0"
__all__ = [
    "BackendUnavailable",
    "LimitedRouting",
    "NormAddNorm",
    "Permutation",
    "RoutedPermutation",
    "Routing",
    "__version__",
    "finalize",
    "fused_moe",
    "grouped_swiglu",
    "grouped_topk",
    "limit_experts",
    "norm_add_norm",
    "permute",
    "route_and_permute",
    "table_route",
]
