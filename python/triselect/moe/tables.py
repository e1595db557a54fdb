"""Tables that route tokens by their ids."""

import torch
from torch import Generator, Tensor

from triselect.ops import operator

CHUNK = 2**20  # random numbers at a time: 8 MB


def random_table(
    vocab_size: int, num_experts: int, top_k: int = 1, *, generator: Generator | None = None
) -> Tensor:
    """Draw the experts of every token id: all sets of distinct experts are equally likely.

    Parameters
    ----------
    vocab_size, num_experts, top_k : int
        V, the experts E of a group (of all where there are no domains), and K.
    generator : torch.Generator, optional
        Where the random numbers come from; the table is on its device. Draw again from the same
        one for the next layer's table.

    Returns
    -------
    Tensor
        ``(V, K)`` int32, for `triselect.table_route`.

    Raises
    ------
    ValueError, TypeError
        An argument that does not fit, by name.

    Notes
    -----
    PanGu-Sigma's random routed experts have a table of their own in every layer
    (arXiv 2303.10845), where K = 1.

    Examples
    --------
    >>> generator = torch.Generator().manual_seed(0)
    >>> layers = [random_table(1000, 64, 2, generator=generator) for _ in range(3)]
    >>> layers[0].shape, layers[0].dtype
    (torch.Size([1000, 2]), torch.int32)
    """
    for name, value in (("vocab_size", vocab_size), ("num_experts", num_experts), ("top_k", top_k)):
        operator.must_be_int(name, value)
    if vocab_size < 0:
        raise ValueError(f"vocab_size must be at least 0, got {vocab_size}")
    if not 1 <= num_experts <= operator.LARGEST_INT32:
        raise ValueError(f"num_experts must be between 1 and 2**31 - 1, got {num_experts}")
    if not 1 <= top_k <= num_experts:
        raise ValueError(f"top_k must be between 1 and num_experts = {num_experts}, got {top_k}")
    device = None if generator is None else generator.device
    table = torch.empty(vocab_size, top_k, dtype=torch.int32, device=device)
    for rows in table.split(max(1, CHUNK // num_experts)):
        # The places of the largest of equally distributed numbers; in float64 hardly two are equal.
        drawn = torch.rand(
            len(rows), num_experts, dtype=torch.float64, device=device, generator=generator
        )
        rows.copy_(drawn.topk(top_k, dim=-1).indices)
    return table
