"""Reading a text chunk by chunk within a budget of tokens, by several rules of what to attend to.

All read alike: the initial tokens, `top_k` tokens of those between, the local ones and the chunk,
at the positions of ESA. What differs is which tokens are between: that is `between`. The rules of
others are simplified stand-ins for methods that do more (other bounds, other positions, eviction).
"""

from collections.abc import Sequence
from dataclasses import replace
from typing import NamedTuple

import torch
from torch import Tensor

from triselect import esa
from triselect.esa import Cache, Compressor, Config, Rotary
from triselect.esa.cache import Chunk

PAGE = 16

# Queries for far tokens, for the window, and cos and sin of the window's keys.
Rotated = tuple[Tensor, Tensor, tuple[Tensor | None, Tensor | None]]


class Look(NamedTuple):
    """What a chunk of queries from position `begin` on attended to, in the last layer.

    The first `initial` tokens, ``selected (B, K)``, and all from `start` on. ``kept (B, C, H)`` is
    the share that these have of attention to all tokens.
    """

    begin: int
    start: int
    initial: int
    selected: Tensor
    kept: Tensor

    def attended(self, tokens: Tensor) -> Tensor:
        """Which of ``tokens (B, n)`` are among them."""
        listed = (tokens[:, :, None] == self.selected[:, None]).any(2)
        return (tokens < self.initial) | (tokens >= self.start) | listed

    def budget(self) -> Tensor:
        """``(B,)``: how many tokens before the chunk are attended to."""
        listed = ((self.selected >= self.initial) & (self.selected < self.start)).sum(1)
        return listed + min(self.initial, self.start) + self.begin - self.start


class Reading:
    """An `attention` of a model that is fed chunk by chunk. As it stands, the rule of exact ESA.

    Parameters
    ----------
    config : Config
        The budget: initial, local, top_k, proximity, chunk.
    rotary : Rotary
    layers : int
        Of the model.
    capacity : int
        Tokens that it will be fed at most.
    """

    def __init__(self, config: Config, rotary: Rotary, layers: int, capacity: int) -> None:
        self.config, self.rotary = config, rotary
        self.last, self.capacity = layers - 1, capacity
        self.watching = False
        self.looks: list[Look] = []
        self.read = [0] * layers
        self.columns: dict[int, tuple[Tensor, Tensor]] = {}  # keys and values (B, capacity, G, D)

    def __call__(self, layer: int, q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        begin = self.read[layer]
        self.read[layer] = end = begin + q.shape[1]
        start = max(0, begin - self.config.local)
        if self.config.positions == "original":
            k = self.rotary.rotate(k, torch.arange(begin, end))
        if layer not in self.columns:
            room = [x.new_empty((len(x), self.capacity, *x.shape[2:])) for x in (k, v)]
            self.columns[layer] = room[0], room[1]
        for column, new in zip(self.columns[layer], (k, v), strict=True):
            column[:, begin:end] = new
        keys, values = (column[:, :end] for column in self.columns[layer])

        far, near, angles = self._rotated(q, begin, start)
        first = min(self.config.initial, start)
        index = self.between(far, keys[:, first:start])
        index = index.where(index < 0, index + first)
        queries = (far, near, angles)
        found = _attend(queries, keys, values, index, self.config.initial, start)
        if self.watching and layer == self.last:
            self._look(queries, keys, values, index, self.config.initial, start, found.lse)
        return found.out

    def between(self, q: Tensor, keys: Tensor) -> Tensor:
        """Which of ``keys (B, M, G, D)`` the queries ``(B, C, H, D)`` attend to: ``(B, K)``, at
        most `top_k` of each row, ascending, -1 behind them."""
        if keys.shape[1] <= self.config.top_k:
            return torch.arange(keys.shape[1]).expand(len(q), -1)
        return self.select(self.score(q, keys))

    def score(self, q: Tensor, keys: Tensor) -> Tensor:
        """``(B, M)``: how much the queries want each token."""
        return esa.token_scores(q, keys)

    def select(self, scores: Tensor) -> Tensor:
        return esa.select_tokens(scores, self.config.top_k, proximity=self.config.proximity)

    def nbytes(self) -> int:
        """Bytes of one text that the reading of what comes next may need."""
        return sum(x[0, : self.read[0]].nbytes for pair in self.columns.values() for x in pair)

    def _rotated(self, q: Tensor, begin: int, start: int) -> Rotated:
        positions = torch.arange(begin, begin + q.shape[1])
        if self.config.positions == "original":
            turned = self.rotary.rotate(q, positions)
            return turned, turned, (None, None)
        far = self.rotary.rotate(q, torch.tensor([self.config.local]))
        places = self.config.local + self.config.chunk
        return far, self.rotary.rotate(q, positions - start), self.rotary.table(places)

    def _look(
        self,
        queries: Rotated,
        keys: Tensor,
        values: Tensor,
        index: Tensor,
        initial: int,
        start: int,
        lse: Tensor | None = None,
    ) -> None:
        """Note what was attended to, and how much of all attention that has."""
        if lse is None:
            lse = _attend(queries, keys, values, index, initial, start).lse
        # The first `start` tokens, as if all were initial.
        everything = _attend(queries, keys, values, index[:, :0], start, start).lse
        begin = keys.shape[1] - queries[0].shape[1]
        self.looks.append(Look(begin, start, initial, index, (lse - everything).exp()))


def _attend(
    queries: Rotated, keys: Tensor, values: Tensor, index: Tensor, initial: int, start: int
) -> esa.Attention:
    far, near, (cos, sin) = queries
    return esa.selected_attention(
        *(far, near, keys, values, index),
        num_initial=min(initial, keys.shape[1]),
        start=torch.full((len(far),), start),
        cos=cos,
        sin=sin,
    )


class Selective(Reading):
    """ESA itself: `triselect.esa.attend` with its cache, watched."""

    def __init__(
        self,
        config: Config,
        rotary: Rotary,
        layers: int,
        capacity: int,
        compressors: Sequence[Compressor] | None = None,
    ) -> None:
        super().__init__(config, rotary, layers, capacity)
        self.cache = Watched(config, compressors=compressors, capacity=capacity)

    def __call__(self, layer: int, q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        out = esa.attend(q, k, v, self.cache, layer, rotary=self.rotary)
        if self.watching and layer == self.last:
            at, initial, index = self.cache.seen
            keys, values, _ = self.cache.keys_values(layer, at, initial, index)
            queries = self._rotated(q, keys.shape[1] - q.shape[1], at.far)
            self._look(queries, keys, values, index, initial, at.far)
        return out

    def nbytes(self) -> int:
        return self.cache.nbytes() // self.cache.batch


class Watched(Cache):
    """A cache that notes what was attended to last; all its texts have one length."""

    seen: tuple[Chunk, int, Tensor]

    def keys_values(
        self, layer: int, at: Chunk, num_initial: int, index: Tensor
    ) -> tuple[Tensor, Tensor, Tensor | None]:
        self.seen = at, num_initial, index
        return super().keys_values(layer, at, num_initial, index)


class MeanQuery(Reading):
    """The mean of the chunk's queries selects, as in the prefill of TokenSelect and InfLLM."""

    def score(self, q: Tensor, keys: Tensor) -> Tensor:
        return super().score(q.mean(1, keepdim=True), keys)


class Pages(Reading):
    """Whole pages of 16 tokens, by the best score in each: the grain of Quest and InfLLM."""

    def select(self, scores: Tensor) -> Tensor:
        tokens = scores.shape[1]
        padded = torch.nn.functional.pad(scores, (0, -tokens % PAGE), value=-torch.inf)
        of_page = padded.unflatten(1, (-1, PAGE)).amax(2)
        pages = esa.select_tokens(of_page, self.config.top_k // PAGE)
        index = (pages[:, :, None] * PAGE + torch.arange(PAGE)).flatten(1)
        return index.masked_fill(index >= tokens, -1)  # the last page may be cut short


class Random(Reading):
    """Any tokens, the same for all queries of a chunk."""

    def __init__(self, config: Config, rotary: Rotary, layers: int, capacity: int) -> None:
        super().__init__(config, rotary, layers, capacity)
        self.draw = torch.Generator().manual_seed(0)

    def between(self, q: Tensor, keys: Tensor) -> Tensor:
        scores = torch.rand(keys.shape[:2], generator=self.draw)
        return esa.select_tokens(scores, self.config.top_k)


class Window(Reading):
    """The initial tokens and the last ones, nothing between: as StreamingLLM and LM-Infinite.

    The budget of the selected tokens goes to the window.
    """

    def __init__(self, config: Config, rotary: Rotary, layers: int, capacity: int) -> None:
        wider = replace(config, local=config.local + config.top_k)
        super().__init__(wider, rotary, layers, capacity)

    def between(self, q: Tensor, keys: Tensor) -> Tensor:
        return torch.empty((len(q), 0), dtype=torch.int32)

    def nbytes(self) -> int:
        """Of what it has yet to attend to."""
        read = self.read[0]
        return super().nbytes() * min(read, self.config.initial + self.config.local) // read
