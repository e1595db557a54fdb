"""`ToyDenoiser`: a random model, small enough to be right by looking at it."""

from typing import NamedTuple

import torch
from torch import Tensor

WIDTH = 8


class Cache(NamedTuple):
    """What the two layers read of a position: ``(B, length, WIDTH)`` each."""

    embedded: Tensor
    hidden: Tensor


class ToyDenoiser:
    """Two layers of attention whose weights depend on distance alone, with integers throughout.

    In float64 everything is exact, whatever the order of addition: results must agree to the bit,
    with a cache or without, branch by branch or all at once.

    >>> import torch
    >>> toy = ToyDenoiser(vocab_size=11)
    >>> nothing_before = torch.zeros(2, dtype=torch.int32)
    >>> toy(torch.zeros(2, 3, 5, dtype=torch.int32), nothing_before, torch.zeros(2, 5), None).shape
    torch.Size([2, 3, 5, 11])
    """

    def __init__(
        self,
        vocab_size: int,
        *,
        shift: bool = False,
        eos_token: int | None = None,
        seed: int = 0,
        sharpness: float = 1.0,
        max_length: int = 4096,
        dtype: torch.dtype = torch.float64,
        device: str | torch.device = "cpu",
    ) -> None:
        if vocab_size < 3:
            raise ValueError(f"vocab_size must be at least 3, got {vocab_size}")
        self.mask_token = vocab_size - 1
        self.eos_token = eos_token
        self.shift = shift
        self.max_length = max_length
        self.sharpness = sharpness / 8
        self.device = torch.device(device)
        generator = torch.Generator().manual_seed(seed)

        def integers(largest: int, *shape: int) -> Tensor:
            x = torch.randint(-largest, largest + 1, shape, generator=generator)
            return x.to(device, dtype)

        self.embedding = integers(3, vocab_size, WIDTH)
        self.near = integers(2, 2, 13)  # weight of a distance, in each layer
        self.mix = integers(2, WIDTH, WIDTH)
        self.head = integers(2, 2, WIDTH, vocab_size)

    def new_cache(self, batch: int, length: int) -> Cache:
        empty = self.embedding.new_full((batch, length, WIDTH), torch.nan)  # never to be read
        return Cache(empty, empty.clone())

    def prefill(self, tokens: Tensor, lengths: Tensor, cache: Cache | None) -> Tensor:
        place = torch.arange(tokens.shape[1], device=tokens.device)
        level = (place >= lengths[:, None]).int()
        logits = self(tokens[:, None], torch.zeros_like(lengths), level, cache)
        return logits[torch.arange(len(tokens)), 0, (lengths - 1).clamp_min(0).long()]

    def __call__(self, tokens: Tensor, start: Tensor, level: Tensor, cache: Cache | None) -> Tensor:
        size = tokens.shape[2]
        place = torch.arange(size, device=tokens.device)
        distance = (place[:, None] - place) % 13
        sees = level[:, None, :] <= level[:, :, None]  # (B, query, key)
        if cache is not None:
            past = torch.arange(cache.hidden.shape[1], device=tokens.device)
            far = (start[:, None, None] + place[:, None] - past) % 13
            before = (past < start[:, None])[..., None]

        def attend(layer: int, x: Tensor) -> Tensor:
            weight = self.near[layer][distance] * sees
            found = torch.einsum("bqk,brkd->brqd", weight, x)
            if cache is not None:
                kept = cache[layer]
                known = kept.where(before, 0.0)
                found = found + torch.einsum("bqk,bkd->bqd", self.near[layer][far], known)[:, None]
                write(kept, start, x[:, 0])
            return found

        first = attend(0, self.embedding[tokens.long()])
        hidden = (first @ self.mix) % 7 - 3
        second = attend(1, hidden)
        logits = first @ self.head[0] + second @ self.head[1]
        return ((logits % 97 - 48) * self.sharpness).float()


def write(kept: Tensor, start: Tensor, x: Tensor) -> None:
    """`x` ``(B, S, D)`` into `kept` ``(B, length, D)`` from `start` on, as far as it goes."""
    length = kept.shape[1]
    place = start[:, None] + torch.arange(x.shape[1], device=x.device)
    whole = torch.cat([kept, x.new_zeros(len(x), x.shape[1], x.shape[2])], 1)
    whole.scatter_(1, place[..., None].expand_as(x), x)
    kept.copy_(whole[:, :length])
