"""Experts of a mixture: SwiGLU networks over rows in the order of their experts."""
