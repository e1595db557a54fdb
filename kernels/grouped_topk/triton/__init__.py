"""Grouped top-k routing on GPUs: `route.py` forwards, `backward.py` back."""

from triselect.kernels.grouped_topk.triton.backward import grouped_topk_backward
from triselect.kernels.grouped_topk.triton.route import grouped_topk

__all__ = ["grouped_topk", "grouped_topk_backward"]
