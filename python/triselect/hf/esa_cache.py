"""`EsaCache`: an `esa.Cache` as `generate` of transformers handles caches."""

import copy
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor
from transformers import Cache

from triselect import esa

if TYPE_CHECKING:
    from triselect.hf.esa_enabled import EsaEnabled


class EsaCache(Cache):
    """The `past_key_values` of a model with ESA enabled; made by `EsaEnabled.new_cache`.

    transformers counts columns, left padding included, which `esa` does not store. Between a
    model's calls row b holds ``columns - padding[b]`` tokens in every layer.

    Attributes
    ----------
    esa : triselect.esa.Cache
        What is stored.
    owner : EsaEnabled
        The only one whose model may use it.
    columns : int
        Read so far.
    padding : list of int
        How many of them were left padding, of each row.
    """

    def __init__(self, stored: esa.Cache, owner: "EsaEnabled") -> None:
        super().__init__(layers=[])  # its own kind of layers; all that would use them is below
        self.esa, self.owner = stored, owner
        self.columns = 0
        self.padding: list[int] = []

    @property
    def lengths(self) -> list[int]:
        """Tokens of each row, without padding, when the model has read `columns`."""
        return [self.columns - padding for padding in self.padding]

    def advance(self, count: int, padding: Sequence[int]) -> None:
        """All layers have stored `count` columns more, `padding` of them left padding."""
        before = self.padding or [0] * len(padding)
        self.padding = [b + p for b, p in zip(before, padding, strict=True)]
        self.columns += count

    def roll_back(self) -> None:
        """Drop what some layers stored in a call that did not end."""
        if self.columns:
            self.esa.truncate(self.lengths)
        else:
            self.esa.clear()

    def update(
        self, key_states: Tensor, value_states: Tensor, layer_idx: int, *args: Any, **kwargs: Any
    ) -> tuple[Tensor, Tensor]:
        """Nothing yet: attention itself stores them, with what it needs to select."""
        if self.owner.reading is not self:
            raise ValueError("past_key_values belongs to a model in which ESA is not enabled now")
        return key_states, value_states

    def get_seq_length(self, layer_idx: int = 0) -> int:
        return self.columns

    def get_mask_sizes(self, query_length: int, layer_idx: int = 0) -> tuple[int, int]:
        return self.columns + query_length, 0

    def get_max_length(self, layer_idx: int | None = None) -> int:
        return -1

    def __len__(self) -> int:
        return len(self.esa.layers)

    @property
    def batch_size(self) -> int:
        return len(self.padding) or -1

    @property
    def is_initialized(self) -> bool:
        return self.columns > 0

    def crop(self, tokens_to_remove: int) -> None:
        """Forget the last ``-tokens_to_remove`` columns.

        A positive number is how many to keep, as older versions of transformers mean it.
        """
        keep = tokens_to_remove if tokens_to_remove > 0 else self.columns + tokens_to_remove
        keep = min(max(keep, 0), self.columns)
        if keep == self.columns:
            return
        self.columns, self.padding = keep, [min(p, keep) for p in self.padding]
        self.esa.truncate(self.lengths)

    def reset(self) -> None:
        self.esa.clear()
        self.columns, self.padding = 0, []

    def reorder_cache(self, beam_idx: Tensor) -> None:
        self._select(beam_idx.tolist())

    def batch_repeat_interleave(self, repeats: int) -> None:
        self._select([row for row in range(len(self.padding)) for _ in range(repeats)])

    def batch_select_indices(self, indices: Tensor) -> None:
        self._select(torch.arange(len(self.padding))[indices.cpu()].tolist())

    def _select(self, rows: list[int]) -> None:
        if self.columns:
            self.esa.select(rows)
            self.padding = [self.padding[row] for row in rows]

    def __deepcopy__(self, memo: dict[int, Any]) -> "EsaCache":
        """A copy for the same model, not for a copy of the model."""
        new = EsaCache(copy.deepcopy(self.esa, memo), memo.get(id(self.owner), self.owner))
        new.columns, new.padding = self.columns, list(self.padding)
        return new
