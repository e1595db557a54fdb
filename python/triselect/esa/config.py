"""`Config`: what a model's attention reads under ESA."""

from collections.abc import Mapping
from dataclasses import dataclass, field, fields, replace
from typing import Any, Literal, get_args

import torch

from triselect.ops import operator
from triselect.ops.cache import EIGHT_BITS, FLOATS

Scorer = Literal["compressed", "exact"]
Positions = Literal["rerope", "original"]
OF_THE_MODEL = ("chunk", "positions", "layers")  # the same in all layers
LEAST = {"initial": 0, "local": 0, "top_k": 1, "proximity": 0, "chunk": 1, "dim": 1}


@dataclass(frozen=True, kw_only=True)
class Config:
    """Settings of ESA in a model (arXiv 2502.14477), by default the paper's where it states them.

    Each query attends to the `initial` tokens, to `top_k` selected ones, to the `local` tokens
    before its chunk, and causally to its chunk. With fewer tokens than that it attends to all.

    Parameters
    ----------
    initial, local, top_k : int
        Tokens.
    proximity : int
        A token counts as much as the best one so near to it (`select_tokens`).
    chunk : int
        Queries that select together, at most; longer inputs are read in chunks of so many.
    dim : int
        Numbers of a compressed key, at most: a compressor may have fewer. Of a larger one the
        first are taken, which are the best of so many.
    key_dtype : torch.dtype, optional
        Of compressed keys: int8 and float8_e4m3fn halve what selecting reads. By default that of
        the keys.
    scorer : "compressed" or "exact"
        By what tokens are scored: compressed queries and keys, or all heads of both as they are,
        which needs no compressors and reads many times as much.
    positions : "rerope" or "original"
        Where queries see tokens that are not local: all at distance `local`, so that no distance
        is larger than in a text of ``local + chunk`` tokens, or where they are.
    layers : mapping, optional
        Other settings for some layers: ``{0: {"top_k": 4096}, 1: {"scorer": "exact"}}``. All but
        `chunk` and `positions` can be given.

    Raises
    ------
    ValueError, TypeError
        A setting out of range, by name, or two that contradict each other.
    """

    initial: int = 128
    local: int = 4096
    top_k: int = 2048
    proximity: int = 1
    chunk: int = 512
    dim: int = 128
    key_dtype: torch.dtype | None = None
    scorer: Scorer = "compressed"
    positions: Positions = "rerope"
    layers: Mapping[int, Mapping[str, Any]] = field(default_factory=dict)

    def __post_init__(self) -> None:
        for name, least in LEAST.items():
            value = getattr(self, name)
            operator.must_be_int(name, value)
            if not least <= value <= operator.LARGEST_INT32:
                raise ValueError(f"{name} must be between {least} and 2**31 - 1, got {value}")
        for name, choices in (("scorer", get_args(Scorer)), ("positions", get_args(Positions))):
            if getattr(self, name) not in choices:
                raise ValueError(f"{name} must be one of {choices}, got {getattr(self, name)!r}")
        if self.key_dtype is not None and self.key_dtype not in FLOATS + EIGHT_BITS:
            raise ValueError(f"key_dtype must be a float or int8, got {self.key_dtype}")
        if self.key_dtype is not None and self.scorer == "exact":
            raise ValueError(
                'key_dtype is that of compressed keys, and scorer="exact" has none: '
                f"got {self.key_dtype}"
            )
        if 2 * self.proximity + 1 > self.top_k:
            raise ValueError(
                f"proximity {self.proximity} selects {2 * self.proximity + 1} tokens around one, "
                f"more than top_k, {self.top_k}"
            )
        allowed = {f.name for f in fields(self)}.difference(OF_THE_MODEL)
        for layer, settings in self.layers.items():
            if type(layer) is not int or layer < 0:
                raise ValueError(f"layers must map numbers of layers, 0 and up, got {layer!r}")
            if unknown := set(settings) - allowed:
                raise ValueError(
                    f"layers[{layer}] has {sorted(unknown)}; a layer can have {sorted(allowed)}"
                )
            self.of_layer(layer)

    def of_layer(self, layer: int) -> "Config":
        """The settings of one layer."""
        return replace(self, layers={}, **self.layers.get(layer, {}))

    @property
    def budget(self) -> int:
        """Tokens that are read at most, beside the chunk's own."""
        return self.initial + self.top_k + self.local
