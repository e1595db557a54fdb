"""The operators' public functions: validation, registration with PyTorch, choice of backend."""

from triselect.ops.backends import BackendUnavailable
from triselect.ops.grouped_topk import Routing, grouped_topk

__all__ = ["BackendUnavailable", "Routing", "grouped_topk"]
