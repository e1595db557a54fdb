"""The norm behind a sub-layer, the addition to the residual, and the norm before the next one."""
