"""`TransformersDenoiser`: a decoder of transformers, called as LoPA needs it.

R variants of S tokens of a sequence are read as R * S queries of one: each has the position of its
token, and sees what the sequence has kept and its own variant. So what is kept is stored and read
once, however many variants there are.
"""

from typing import Any, NamedTuple

import torch
from torch import Tensor

from triselect.hf.esa_models import layout

ATTENTIONS = ("sdpa", "eager")  # those that add a mask (batch, heads, query, key) to their scores
MULTIPLE = 16  # kernels copy a mask whose rows are not aligned


class DenoiserCache(NamedTuple):
    """Keys and values ``(layers, B, heads, length + 1 or some more, D)``, zero where nothing was
    written; what is behind the length is never read.
    """

    keys: Tensor
    values: Tensor


class TransformersDenoiser:
    """A `triselect.lopa.Denoiser`, made by `as_denoiser`."""

    def __init__(
        self,
        decoder: Any,
        head: Any,
        attentions: list[Any],
        mask_token: int,
        eos_token: int | None,
        shift: bool,
        max_length: int,
    ) -> None:
        self.decoder, self.head = decoder, head
        self.attentions = attentions
        self.mask_token, self.eos_token = mask_token, eos_token
        self.shift, self.max_length = shift, max_length
        self.must_be_usable()

    @property
    def device(self) -> torch.device:
        found: torch.device = self.decoder.device
        return found

    def must_be_usable(self) -> None:
        """Of what may have been changed in the model since the last call."""
        implementation = self.decoder.config._attn_implementation
        if implementation not in ATTENTIONS:
            raise ValueError(
                f"model must attend as a mask says, by one of {', '.join(ATTENTIONS)}, got "
                f'{implementation!r}: model.set_attn_implementation("sdpa")'
            )
        if self.decoder.training:
            raise ValueError("model must be in evaluation mode: model.eval()")

    def new_cache(self, batch: int, length: int) -> DenoiserCache:
        of = layout(self.attentions[0])
        room = -(-(length + 1) // MULTIPLE) * MULTIPLE
        shape = (len(self.attentions), batch, of.groups, room, of.head_dim)
        empty = torch.zeros(shape, dtype=self.decoder.dtype, device=self.device)
        return DenoiserCache(empty, empty.clone())

    @torch.no_grad()
    def prefill(self, tokens: Tensor, lengths: Tensor, cache: DenoiserCache | None) -> Tensor:
        place = torch.arange(tokens.shape[1], device=tokens.device)
        # The same for all queries, and never nothing: that would be no number.
        sees = (place < lengths.clamp_min(1)[:, None])[:, None]
        place = place.expand_as(tokens)
        keep = None if cache is None else Keep(cache, place, reads=False)
        hidden = self.hidden(tokens, place, sees, keep)
        last = (lengths - 1).clamp_min(0).long()[:, None, None]
        return self.logits(hidden.take_along_dim(last, 1)[:, 0])

    @torch.no_grad()
    def __call__(
        self, tokens: Tensor, start: Tensor, level: Tensor, cache: DenoiserCache | None
    ) -> Tensor:
        batch, rows, size = tokens.shape
        place = start[:, None] + torch.arange(size, device=tokens.device)
        sees = level[:, None, :] <= level[:, :, None]  # (B, query, key)
        if cache is None:  # nothing to share: variants are sequences of their own
            place, sees = (x.repeat_interleave(rows, 0) for x in (place, sees))
            hidden = self.hidden(tokens.flatten(0, 1), place, sees, None)
        else:
            same = torch.eye(rows, dtype=torch.bool, device=tokens.device)
            sees = sees[:, None, :, None] & same[:, None, :, None]  # (B, R, query, R, key)
            sees = sees.flatten(1, 2).flatten(2)
            past = torch.arange(cache.keys.shape[3], device=tokens.device) < start[:, None]
            sees = torch.cat([past[:, None].expand(-1, rows * size, -1), sees], 2)
            keep = Keep(cache, place, reads=True)
            hidden = self.hidden(tokens.flatten(1), place.repeat(1, rows), sees, keep)
        return self.logits(hidden).view(batch, rows, size, -1)

    def logits(self, hidden: Tensor) -> Tensor:
        found: Tensor = self.head(hidden)
        # LoPA's operators take no float64.
        return found.float() if found.dtype == torch.float64 else found

    def hidden(self, tokens: Tensor, place: Tensor, sees: Tensor, keep: "Keep | None") -> Tensor:
        """``(N, T, hidden size)`` of ``tokens (N, T)`` at the positions ``place (N, T)``; query i
        sees key j where ``sees (N, T or 1, keys)`` is true.
        """
        self.must_be_usable()
        dtype = self.decoder.dtype
        mask = torch.zeros(sees.shape, dtype=dtype, device=sees.device)
        mask = mask.masked_fill_(~sees, torch.finfo(dtype).min)[:, None]  # of all heads
        found: Tensor = self.decoder(
            input_ids=tokens.long(),
            attention_mask=mask,
            position_ids=place.long(),
            past_key_values=keep,
            use_cache=keep is not None,
        ).last_hidden_state
        return found


class Keep:
    """`past_key_values` of one call: attention sees what is kept and then what is new, or only what
    is new; of that the first variant is kept.
    """

    def __init__(self, cache: DenoiserCache, place: Tensor, *, reads: bool) -> None:
        self.cache, self.reads = cache, reads
        self.place = place.clamp_max(cache.keys.shape[3] - 1).long()[:, None, :, None]

    def update(
        self, keys: Tensor, values: Tensor, layer: int, *args: Any, **kwargs: Any
    ) -> tuple[Tensor, Tensor]:
        kept_keys, kept_values = self.cache.keys[layer], self.cache.values[layer]
        at = self.place.expand(-1, keys.shape[1], -1, keys.shape[3])
        size = at.shape[2]
        kept_keys.scatter_(2, at, keys[:, :, :size])
        kept_values.scatter_(2, at, values[:, :, :size])
        if not self.reads:
            return keys, values
        return torch.cat([kept_keys, keys], 2), torch.cat([kept_values, values], 2)
