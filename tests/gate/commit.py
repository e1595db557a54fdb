"""What `commit` launches: a program for each sequence, whatever branches are worth."""

import torch

from .lower import Case


def committed(batch: int, length: int, window: int, k: int, rule: str, *, given=False):
    from triselect.kernels.commit import triton

    numbers = torch.zeros(batch, length, dtype=torch.int32)
    floats = torch.zeros(batch, length)
    each = torch.zeros(batch, dtype=torch.int32)
    branch = torch.zeros(batch, k + 1, window, dtype=torch.int32)
    confidence = branch.float()
    return triton.commit(
        *(numbers, numbers, floats, floats, numbers, numbers, each, each),
        *(branch, branch.bool(), branch[..., 0], branch, confidence, confidence),
        *(branch[..., 0].float() if given else None, rule, 0.5, 0.9, True, False),
    )


# Windows begin anywhere.
CASES = [
    Case("mean", lambda: committed(1, 512, 128, 4, "mean"), wide_loads=False),
    Case("lowest", lambda: committed(16, 2048, 512, 16, "lowest"), wide_loads=False),
    Case("log_prob", lambda: committed(1, 512, 128, 4, "log_prob"), wide_loads=False),
    Case("common_mean", lambda: committed(1, 2048, 2048, 4, "common_mean"), wide_loads=False),
    Case("given", lambda: committed(1, 512, 128, 4, "mean", given=True), wide_loads=False),
]
