"""The operators' public functions: validation, registration with PyTorch, choice of backend."""

from triselect.ops.backends import BackendUnavailable
from triselect.ops.commit import Committed, commit
from triselect.ops.compress import Compressed, compress
from triselect.ops.finalize import finalize
from triselect.ops.gather_attention import (
    Attention,
    gather_attention,
    selected_attention,
    window_attention,
)
from triselect.ops.grouped_swiglu import grouped_swiglu
from triselect.ops.grouped_topk import Routing, grouped_topk
from triselect.ops.limit_experts import LimitedRouting, limit_experts
from triselect.ops.merge import merge
from triselect.ops.norm_add_norm import NormAddNorm, norm_add_norm
from triselect.ops.permute import Permutation, permute
from triselect.ops.route_and_permute import RoutedPermutation, route_and_permute
from triselect.ops.select_tokens import select_tokens
from triselect.ops.spawn import Branches, spawn
from triselect.ops.table_route import table_route
from triselect.ops.token_confidence import (
    Confidence,
    Partial,
    merge_confidence,
    partial_confidence,
    token_confidence,
)
from triselect.ops.token_scores import token_scores

__all__ = [
    "Attention",
    "BackendUnavailable",
    "Branches",
    "Committed",
    "Compressed",
    "Confidence",
    "LimitedRouting",
    "NormAddNorm",
    "Partial",
    "Permutation",
    "RoutedPermutation",
    "Routing",
    "commit",
    "compress",
    "finalize",
    "gather_attention",
    "grouped_swiglu",
    "grouped_topk",
    "limit_experts",
    "merge",
    "merge_confidence",
    "norm_add_norm",
    "partial_confidence",
    "permute",
    "route_and_permute",
    "select_tokens",
    "selected_attention",
    "spawn",
    "table_route",
    "token_confidence",
    "token_scores",
    "window_attention",
]
