"""`Cache`: everything that a model attended to, and what selecting from it needs."""

from collections.abc import Sequence
from dataclasses import replace
from typing import NamedTuple

import torch
from torch import Tensor

from triselect.esa.compressor import Compressor
from triselect.esa.config import Config
from triselect.esa.hot import Hot
from triselect.esa.storage import Contiguous, Paged, Storage
from triselect.ops import Compressed, compress, operator
from triselect.ops.cache import EIGHT_BITS

FIRST_ARE_BEST = ("closed_form", "centered", "pca")  # compressors whose rows go by importance


class Chunk(NamedTuple):
    """Where a chunk of C tokens comes to stand, in all layers of the same settings.

    Index tensors have one entry for each sequence: its tokens to select from go from `first` to
    `start`, its window from `start` to `end`. `far` and `most` are the largest `start` and the
    largest number to select from. Positions are ``(1, C)`` or ``(B, C)``, counted from the first
    token of a sequence, and in the window from `start`; left padding stands at 0.
    """

    first: Tensor
    start: Tensor
    end: Tensor
    position: Tensor
    in_window: Tensor
    place: Tensor  # (B, C), where to store them
    real: Tensor | None  # (B, C), without padding None
    ends: list[int]
    covered: list[int]  # with padding, which is stored behind the end
    far: int
    most: int


class Cache:
    """Keys, values and compressed keys of all tokens of a batch of texts, for `attend`.

    Nothing is ever evicted. Keys are those that attention reads: before their rotation, or rotated
    where the positions are the original ones.

    Parameters
    ----------
    config : Config
    compressors : sequence of Compressor, optional
        One for each layer; needed unless all layers score exactly.
    capacity : int, optional
        Tokens of each sequence to reserve memory for. Up to it nothing is ever copied; a text that
        grows beyond is moved to twice the room. By default the CPU reserves address space for
        2 ** 18 tokens, or 4 GiB, which costs nothing until it is written to.
    page_size : int, optional
        Keep tokens in pages of so many, which sequences can share: after `select`, copies of a
        sequence share the pages of what they have in common.
    offload : int, optional
        Keep keys and values in the memory of the host and on the device only as many tokens, those
        that were read last, in every layer. Compressed keys stay on the device.

    Raises
    ------
    ValueError, TypeError
        An argument that does not fit, by name, or compressors that are missing.

    Examples
    --------
    >>> cache = Cache(Config(local=4, top_k=4, initial=1, scorer="exact"))
    >>> q, k = torch.randn(1, 20, 4, 8), torch.randn(1, 20, 2, 8)
    >>> from triselect.esa import attend
    >>> attend(q, k, k, cache, 0).shape, cache.lengths
    (torch.Size([1, 20, 4, 8]), [20])
    >>> cache.truncate(12)  # the next text has the first 12 tokens in common
    """

    def __init__(
        self,
        config: Config,
        *,
        compressors: Sequence[Compressor] | None = None,
        capacity: int | None = None,
        page_size: int | None = None,
        offload: int | None = None,
    ) -> None:
        _validate(config, compressors, capacity, page_size, offload)
        self.config = config
        self.compressors = None if compressors is None else list(compressors)
        self.capacity, self.page_size, self.offload = capacity, page_size, offload
        self._lengths: dict[int, list[int]] = {}
        self._batch: int | None = None
        self._storage: Storage | None = None  # on the device
        self._host: Contiguous | None = None  # keys and values, where they are offloaded
        self._hot: dict[int, Hot] = {}
        self._configs: dict[int, Config] = {}
        self._maps: dict[int, Compressor] = {}
        self._chunk: tuple[object, Chunk] | None = None
        self._rows: tuple[Chunk, Tensor] | None = None

    @property
    def lengths(self) -> list[int]:
        """Tokens of each sequence; of the first layer, while the model is at work."""
        return list(self._lengths.get(min(self._lengths, default=0), []))

    @property
    def batch(self) -> int:
        return self._batch or 0

    @property
    def layers(self) -> list[int]:
        """The layers that have tokens."""
        return sorted(self._lengths)

    def of_layer(self, layer: int) -> Config:
        """The settings of a layer."""
        if layer not in self._configs:
            self._configs[layer] = self.config.of_layer(layer)
        return self._configs[layer]

    def truncate(self, lengths: int | Sequence[int]) -> None:
        """Forget what comes behind the first tokens, so many of each sequence."""
        keep = [lengths] * self.batch if isinstance(lengths, int) else list(lengths)
        if len(keep) != self.batch:
            raise ValueError(f"lengths must have {self.batch} entries, got {len(keep)}")
        if bad := [n for n in keep if n < 0]:
            raise ValueError(f"lengths must be at least 0, got {bad[0]}")
        for stored in self._lengths.values():
            stored[:] = map(min, stored, keep)
        self._rows = None  # pages may be others now
        for storage in (self._storage, self._host):
            if storage is not None:
                storage.truncate(self.lengths)
        for hot in self._hot.values():
            hot.forget(self.lengths)

    def select(self, rows: Sequence[int]) -> None:
        """Go on with sequences `rows` of the batch: some of them, in another order, or copies."""
        rows = [int(row) for row in rows]
        if bad := [row for row in rows if not 0 <= row < self.batch]:
            raise ValueError(f"rows must be between 0 and {self.batch - 1}, got {bad[0]}")
        before = self.lengths
        self._rows = None  # pages may be others now
        for storage in (self._storage, self._host):
            if storage is not None:
                storage.select(rows, before)
        for lengths in self._lengths.values():
            lengths[:] = [lengths[row] for row in rows]
        self._batch = len(rows)
        self._hot.clear()

    def clear(self) -> None:
        """Forget everything; the next text may have another batch size."""
        self._lengths, self._hot = {}, {}
        self._batch = self._storage = self._host = self._rows = None

    def nbytes(self) -> int:
        """Bytes of the stored tokens, on the device: without what is offloaded."""
        stored = self._storage.nbytes(self.lengths) if self._storage is not None else 0
        return stored + sum(hot.k.nbytes + hot.v.nbytes for hot in self._hot.values())

    def chunk(self, layer: int, like: Tensor, padding: Sequence[int] | None) -> Chunk:
        """Where the tokens of ``like (B, C, ...)`` belong; layers of the same settings share it."""
        config = self.of_layer(layer)
        batch, count = like.shape[:2]
        lengths = self._of(layer, batch, config)
        of = tuple(padding) if padding is not None and any(padding) else None
        key = (*lengths, count, of, config.initial, config.local, like.device)
        if self._chunk is None or self._chunk[0] != key:
            self._chunk = key, _place(lengths, count, of, config, like.device)
        return self._chunk[1]

    def compressor(self, layer: int, q: Tensor, k: Tensor) -> Compressor | None:
        """That of a layer with queries `q` and keys `k`, ``(B, C, heads, D)``, ready for use."""
        config = self.of_layer(layer)
        if config.scorer == "exact":
            return None
        if layer not in self._maps:
            assert self.compressors is not None
            if layer >= len(self.compressors):
                raise ValueError(
                    f"compressors must have one for layer {layer}, got {len(self.compressors)}"
                )
            self._maps[layer] = _fitted(self.compressors[layer], layer, config, q, k)
        return self._maps[layer]

    def store(
        self,
        layer: int,
        at: Chunk,
        k: Tensor,
        v: Tensor,
        unrotated: Tensor,
        of: Compressor | None,
        backend: str = "auto",
    ) -> None:
        """Store a chunk: keys and values as attention reads them, and keys to be compressed."""
        lengths = self._lengths[layer]
        if self._storage is None:
            self._storage = _storage(len(k), self.page_size, self.capacity)
            self._host = None if self.offload is None else Contiguous(len(k), self.capacity)
        whole: Storage = self._storage if self._host is None else self._host
        for storage in {id(s): s for s in (self._storage, whole)}.values():
            storage.cover(at.covered, lengths)
        if (layer, "k") not in whole.columns:
            home = k if self._host is None else k.cpu()
            for name in ("k", "v"):
                whole.add((layer, name), home, k.shape[2:], k.dtype)
            if of is not None:
                self._add_compressed(layer, k, of)
        if self._rows is None or self._rows[0] is not at:
            self._rows = at, self._storage.rows(at.place)
        rows = self._rows[1]
        into = rows if self._host is None else self._host.rows(at.place.cpu())
        for name, x in (("k", k), ("v", v)):
            column = whole.columns[layer, name].flatten(0, 1)
            column.index_copy_(0, into.flatten(), x.flatten(0, 1).to(column.device))
        if of is not None:
            out = Compressed(
                self._storage.columns[layer, "compressed"],
                self._storage.columns.get((layer, "scale")),
            )
            compress(unrotated, of.key, of.key_bias, out=out, slots=rows, backend=backend)
        lengths[:] = at.ends

    def keys_to_score(self, layer: int, far: int, exact: bool) -> tuple[Tensor, Tensor | None]:
        """Keys of the first `far` tokens, and what those of 8 bits are multiplied with."""
        assert self._storage is not None
        if exact:
            return self._storage.read((layer, "k"), far), None
        scale = (layer, "scale") in self._storage.columns
        return (
            self._storage.read((layer, "compressed"), far),
            self._storage.read((layer, "scale"), far) if scale else None,
        )

    def table(self, tokens: int) -> Tensor | None:
        """The pages of the first `tokens`, where there are pages."""
        assert self._storage is not None
        return self._storage.table(tokens)

    def keys_values(
        self, layer: int, at: Chunk, num_initial: int, index: Tensor
    ) -> tuple[Tensor, Tensor, Tensor | None]:
        """Keys, values and their block table for attention to initial tokens, a list, a window."""
        assert self._storage is not None
        tokens = max(at.ends, default=0)
        if self._host is None:
            k, v = (self._storage.read((layer, name), tokens) for name in ("k", "v"))
            return k, v, self._storage.table(tokens)
        k, v = (self._host.columns[layer, name] for name in ("k", "v"))
        if layer not in self._hot:
            assert self.offload is not None
            like = k.new_empty((0, 0, *k.shape[2:]), device=index.device)
            self._hot[layer] = Hot(self.offload, len(k), like)
        hot = self._hot[layer]
        return hot.k, hot.v, hot.fetch(_wanted(at, num_initial, index).cpu(), k, v)

    def _add_compressed(self, layer: int, k: Tensor, of: Compressor) -> None:
        assert self._storage is not None
        dtype = self.of_layer(layer).key_dtype or k.dtype
        self._storage.add((layer, "compressed"), k, (of.dim,), dtype)
        if dtype in EIGHT_BITS:
            self._storage.add((layer, "scale"), k, (), torch.float32)

    def _of(self, layer: int, batch: int, config: Config) -> list[int]:
        if self._batch not in (None, batch):
            raise ValueError(
                f"the cache has {self._batch} sequences, got a batch of {batch}: clear() it for "
                "other texts, or select() those that go on"
            )
        least = batch * (config.budget + config.chunk)
        if self.offload is not None and self.offload < least:
            raise ValueError(
                f"offload must leave {least} tokens on the device, those that a chunk of {batch} "
                f"sequences reads, got {self.offload}"
            )
        self._batch = batch
        return self._lengths.setdefault(layer, [0] * batch)


def _validate(
    config: Config,
    compressors: Sequence[Compressor] | None,
    capacity: int | None,
    page_size: int | None,
    offload: int | None,
) -> None:
    if not isinstance(config, Config):
        raise TypeError(f"config must be an esa.Config, got {type(config).__name__}")
    for name, value in (("capacity", capacity), ("page_size", page_size), ("offload", offload)):
        if value is not None:
            operator.must_be_int(name, value)
            if value < 1:
                raise ValueError(f"{name} must be at least 1, got {value}")
    scorers = {config.scorer, *(config.of_layer(i).scorer for i in config.layers)}
    if "compressed" in scorers and compressors is None:
        raise ValueError(
            'compressors must be given for scorer="compressed" (esa.calibrate, '
            'esa.calibrate_model), or the config say scorer="exact"'
        )
    for compressor in compressors or ():
        if not isinstance(compressor, Compressor):
            raise TypeError(f"compressors must be esa.Compressor, got {type(compressor).__name__}")
    if offload is not None and "exact" in scorers:
        raise ValueError('offload keeps keys on the host, where scorer="exact" cannot read them')
    if offload is not None and page_size is not None:
        raise ValueError("offload and page_size must not be given together")


def _storage(batch: int, page_size: int | None, capacity: int | None) -> Storage:
    return Contiguous(batch, capacity) if page_size is None else Paged(batch, page_size, capacity)


def _fitted(of: Compressor, layer: int, config: Config, q: Tensor, k: Tensor) -> Compressor:
    wanted = (q.shape[2], k.shape[2], q.shape[3])
    if of.layout != wanted:
        raise ValueError(
            f"compressors[{layer}] is for another model: heads, groups and head_dim are "
            f"{tuple(of.layout)}, those of the layer {wanted}"
        )
    if of.dim > config.dim:
        if of.method not in FIRST_ARE_BEST:
            raise ValueError(
                f"compressors[{layer}] has {of.dim} numbers, of which the first {config.dim} "
                f"(dim) are not the best: its method is {of.method!r}"
            )
        bias = {name: getattr(of, name) for name in ("query_bias", "key_bias")}
        cut = {name: x[: config.dim] for name, x in bias.items() if x is not None}
        of = replace(of, query=of.query[: config.dim], key=of.key[: config.dim], **cut)
    return of.to(k.device, k.dtype)


def _place(
    lengths: Sequence[int],
    count: int,
    padding: tuple[int, ...] | None,
    config: Config,
    device: torch.device,
) -> Chunk:
    pads = padding or (0,) * len(lengths)
    ends = [n + count - pad for n, pad in zip(lengths, pads, strict=True)]
    starts = [max(0, n - config.local) for n in lengths]
    firsts = [min(config.initial, start) for start in starts]
    bounds = torch.tensor([firsts, starts, ends, pads], dtype=torch.int64)
    if device.type == "cuda":  # else the copy waits for the device
        bounds = bounds.pin_memory()
    first, start, end, pad = bounds.to(device, non_blocking=True)
    steps = torch.arange(count, device=device)
    same = slice(0, 1 if len(set(ends)) == 1 and padding is None else None)
    position = (end[same, None] - count + steps).clamp(min=0)
    before = end - count + pad
    return Chunk(
        first,
        start,
        end,
        position,
        (position - start[same, None]).clamp(min=0),
        before[:, None] + (steps - pad[:, None]) % max(1, count),
        None if padding is None else steps >= pad[:, None],
        ends,
        [n + count for n in lengths],
        max(starts, default=0),
        max((s - f for s, f in zip(starts, firsts, strict=True)), default=0),
    )


def _wanted(at: Chunk, num_initial: int, index: Tensor) -> Tensor:
    """Tokens that attention reads, ``(B, M)``, -1 for none."""
    longest = max(at.ends, default=0)
    far = torch.arange(num_initial, device=index.device)
    window = at.start[:, None] + torch.arange(longest, device=index.device)
    return torch.cat(
        (
            far.where(far < at.start[:, None], -1),
            index.where(index >= num_initial, -1).long(),
            window.where(window < at.end[:, None], -1)[:, : int((at.end - at.start).max())],
        ),
        1,
    )
