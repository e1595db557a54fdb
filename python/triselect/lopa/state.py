"""`State`: all that a run is, between two rounds."""

import json
from pathlib import Path
from typing import Any, NamedTuple

import torch
from torch import Tensor

from triselect.ops import Confidence
from triselect.optional import safetensors

FORMAT = "triselect.lopa.State 1"


class State(NamedTuple):
    """Of B sequences with G positions to fill each.

    prompt : ``(B, P)`` int32, `prompt_length` ``(B,)`` int32
    tokens : ``(B, G)`` int32, the mask token where nothing is filled yet
    predicted : Confidence of ``(B, G)``; token -1 where nothing was predicted
    filled_at, filled_by : ``(B, G)`` int32
        The round that filled a position, and 0 for the anchor or j for lookahead j's own token.
    added : ``(B,)`` int32, blocks in the pipeline
    start : ``(B,)`` int32, where the next window begins; all before it is in the cache
    step : ``(B,)`` int32, rounds so far
    seed : ``(B,)`` int64, of what is sampled
    cache : the model's, or None: all else is compact, and the cache follows from it
    widths : lookaheads of each round so far, as `generate` chose them
    """

    prompt: Tensor
    prompt_length: Tensor
    tokens: Tensor
    predicted: Confidence
    filled_at: Tensor
    filled_by: Tensor
    added: Tensor
    start: Tensor
    step: Tensor
    seed: Tensor
    cache: Any = None
    widths: tuple[int, ...] = ()

    def save(self, path: str | Path) -> None:
        """Write a safetensors file, without the cache."""
        fields = self._asdict() | self.predicted._asdict()
        tensors = {k: v.contiguous() for k, v in fields.items() if isinstance(v, Tensor)}
        metadata = {"format": FORMAT, "widths": json.dumps(self.widths)}
        safetensors().save_file(tensors, path, metadata)

    @classmethod
    def load(cls, path: str | Path, device: str | torch.device = "cpu") -> "State":
        """Read what `save` wrote; `Decoder.resume` then makes the cache again."""
        from safetensors import SafetensorError, safe_open

        try:
            with safe_open(path, "pt", str(device)) as file:
                metadata = file.metadata() or {}
                if metadata.get("format") != FORMAT:
                    raise ValueError(f"{path} is no state of a run of LoPA")
                tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
        except SafetensorError as error:
            raise ValueError(f"{path} is no safetensors file, or a part of one: {error}") from error
        predicted = Confidence(*(tensors.pop(name) for name in Confidence._fields))
        return cls(predicted=predicted, widths=tuple(json.loads(metadata["widths"])), **tensors)
