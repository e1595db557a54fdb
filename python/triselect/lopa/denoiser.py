"""`Denoiser`: what a masked diffusion language model must offer to be decoded."""

from typing import Any, Protocol, runtime_checkable

import torch
from torch import Tensor


@runtime_checkable
class Denoiser(Protocol):
    """A model that predicts tokens in place of mask tokens.

    Attributes
    ----------
    mask_token : int
    eos_token : int or None
        The token that ends a text, if there is one.
    shift : bool
        Whether logits at a position predict the next one (Dream), not the position itself (LLaDA).
    max_length : int
        Positions that it can tell apart: prompt and generation together.
    device : torch.device

    A position sees another one of its own row if that one's level is not above its own.
    """

    mask_token: int
    eos_token: int | None
    shift: bool
    max_length: int

    @property
    def device(self) -> torch.device: ...

    def new_cache(self, batch: int, length: int) -> Any:
        """Room for keys and values of `length` positions of `batch` sequences."""

    def prefill(self, tokens: Tensor, lengths: Tensor, cache: Any) -> Tensor:
        """Read the prompts ``(B, P)`` of `lengths` ``(B,)``, every one seeing all of its own, into
        the cache; logits ``(B, V)`` of the last position of each.
        """

    def __call__(self, tokens: Tensor, start: Tensor, level: Tensor, cache: Any | None) -> Tensor:
        """Logits ``(B, R, S, V)`` of positions ``start[b]`` to ``start[b] + S - 1`` of R variants
        of B sequences: tokens ``(B, R, S)`` int32, level ``(B, S)`` int32.

        With a cache they also see the positions before ``start[b]`` in it, and the keys and values
        of variant 0 are written to it from ``start[b]`` on; what lies behind the cache's length is
        dropped. Nothing may depend on R, and nothing may wait for the device.
        """
