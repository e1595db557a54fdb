"""Efficient Selective Attention (arXiv 2502.14477), built from `triselect.ops`."""
