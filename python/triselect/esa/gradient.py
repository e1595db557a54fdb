"""ESA's own calibration: two linear layers trained on pairs of queries and keys."""

from typing import NamedTuple

import torch
from torch import Tensor, nn

LEARNING_RATE, BATCH, EPOCHS = 5e-4, 128, 10


class Layers(NamedTuple):
    """Weights ``(dim, width)`` and biases ``(dim,)``, float32."""

    query: Tensor
    key: Tensor
    query_bias: Tensor
    key_bias: Tensor


def train(queries: Tensor, keys: Tensor, dim: int, seed: int) -> Layers:
    """Minimise the squared error of equation 7 over all pairs of a batch of 128, for 10 epochs.

    Rows ``(T, width)`` and ``(T', width)`` float32. Not said in the paper and chosen here: Adam;
    PyTorch's initial weights; the mean over the pairs; queries and keys drawn independently, the
    fewer of them again in the same epoch. The paper's layer reads every query head where this one
    reads folded queries: as the target depends on those alone, the best layer does too.
    """
    generator = torch.Generator().manual_seed(seed)
    limit = queries.shape[1] ** -0.5
    parameters = [
        nn.Parameter((2 * torch.rand(shape, generator=generator) - 1) * limit)
        for shape in ((dim, queries.shape[1]), (dim, keys.shape[1]), (dim,), (dim,))
    ]
    a, b, a_bias, b_bias = parameters
    optimizer = torch.optim.Adam(parameters, lr=LEARNING_RATE, fused=True)
    batches = -(-max(len(queries), len(keys)) // BATCH)
    for _ in range(EPOCHS):
        for q, k in zip(
            *(_shuffled(rows, batches, generator) for rows in (queries, keys)), strict=True
        ):
            guess = (q @ a.T + a_bias) @ (k @ b.T + b_bias).T
            optimizer.zero_grad()
            (q @ k.T - guess).square().mean().backward()
            optimizer.step()
    return Layers(*(parameter.detach() for parameter in parameters))


def _shuffled(rows: Tensor, batches: int, generator: torch.Generator) -> list[Tensor]:
    """All rows in random order, as often as it takes to fill the batches."""
    wanted = max(len(rows), (batches - 1) * BATCH + 1)
    times = -(-wanted // len(rows))
    order = torch.cat([torch.randperm(len(rows), generator=generator) for _ in range(times)])
    return list(rows[order].split(BATCH)[:batches])
