"""Where a cache keeps what it knows of each token: a column for each layer and kind.

A token has a place in its sequence. `rows` says in which row of a column a place lies, all rows
counted through; `read` and `table` give a column as the operators take it. Both layouts reserve
room with the first token: for `capacity` tokens of each sequence, and without one, on the CPU,
address space, which takes memory only as it is written to. Where that is full, or on a device
without a capacity, twice as much is reserved, and what is there is copied.
"""

from collections.abc import Hashable, Iterable, Sequence

import torch
from torch import Tensor

RESERVED, RESERVED_BYTES = 2**18, 2**32  # tokens of a sequence and bytes of a column, on the CPU
FIRST = 4096  # tokens of a sequence, on a device

Columns = dict[Hashable, Tensor]


class Contiguous:
    """Columns ``(B, N, ...)``."""

    def __init__(self, batch: int, capacity: int | None) -> None:
        self.batch, self.capacity, self.room = batch, capacity, 0
        self.columns: Columns = {}

    def add(self, key: Hashable, like: Tensor, tail: tuple[int, ...], dtype: torch.dtype) -> None:
        if not self.columns:
            self.room = max(self.room, _tokens(self.capacity, self.batch, like, tail, dtype))
        self.columns[key] = _empty(like, (self.batch, self.room, *tail), dtype)

    def cover(self, ends: Sequence[int], used: Sequence[int]) -> None:
        """Make room up to these places; up to `used` there are tokens."""
        end = max(ends, default=0)
        if end <= self.room:
            return
        self.room = max(end, 2 * self.room if self.columns else 0)
        for key, old in self.columns.items():
            new = _empty(old, (self.batch, self.room, *old.shape[2:]))
            new[:, : max(used)] = old[:, : max(used)]
            self.columns[key] = new

    def rows(self, places: Tensor) -> Tensor:
        return places + torch.arange(self.batch, device=places.device)[:, None] * self.room

    def read(self, key: Hashable, tokens: int) -> Tensor:
        return self.columns[key][:, :tokens]

    def table(self, tokens: int) -> Tensor | None:
        return None

    def truncate(self, lengths: Sequence[int]) -> None:
        """Nothing to do: what lies behind is written over."""

    def select(self, rows: Sequence[int], lengths: Sequence[int]) -> None:
        """Sequences `rows`, of which there are tokens up to `lengths`."""
        used = max(lengths, default=0)
        for key, old in self.columns.items():
            new = _empty(old, (len(rows), *old.shape[1:]))
            new[:, :used] = old[list(rows), :used]
            self.columns[key] = new
        self.batch = len(rows)

    def nbytes(self, lengths: Sequence[int]) -> int:
        return sum(lengths) * sum(_row_bytes(c.shape[2:], c.dtype) for c in self.columns.values())


class Paged:
    """Columns ``(pages, size, ...)``; each sequence has a list of pages, which others may share."""

    def __init__(self, batch: int, size: int, capacity: int | None) -> None:
        self.size, self.capacity, self.room = size, capacity, 0
        self.pages: list[list[int]] = [[] for _ in range(batch)]
        self.users: list[int] = []  # of each page: how many sequences have it
        self.free: list[int] = []  # pages that none has
        self.columns: Columns = {}
        self._table: Tensor | None = None

    @property
    def batch(self) -> int:
        return len(self.pages)

    def add(self, key: Hashable, like: Tensor, tail: tuple[int, ...], dtype: torch.dtype) -> None:
        if not self.columns:
            tokens = _tokens(self.capacity, self.batch, like, tail, dtype)
            self.room = max(self.room, self.batch * -(-tokens // self.size))
        self.columns[key] = _empty(like, (self.room, self.size, *tail), dtype)

    def cover(self, ends: Sequence[int], used: Sequence[int]) -> None:
        for pages, end in zip(self.pages, ends, strict=True):
            pages += (self._new() for _ in range(-(-end // self.size) - len(pages)))
        if len(self.users) > self.room:
            self.room = max(len(self.users), 2 * self.room if self.columns else 0)
            for key, old in self.columns.items():
                self.columns[key] = _empty(old, (self.room, *old.shape[1:]))
                self.columns[key][: len(old)] = old

    def rows(self, places: Tensor) -> Tensor:
        table = self._whole_table(places.device).long()
        return table.gather(1, places // self.size) * self.size + places % self.size

    def read(self, key: Hashable, tokens: int) -> Tensor:
        return self.columns[key]

    def table(self, tokens: int) -> Tensor | None:
        device = next(iter(self.columns.values())).device
        return self._whole_table(device)[:, : -(-tokens // self.size)]

    def truncate(self, lengths: Sequence[int]) -> None:
        """Give back the pages behind these places."""
        for pages, length in zip(self.pages, lengths, strict=True):
            keep = -(-length // self.size)
            self._leave(pages[keep:])
            del pages[keep:]
        self._table = None
        self._own_last(lengths)

    def select(self, rows: Sequence[int], lengths: Sequence[int]) -> None:
        before = self.pages
        self.pages = [before[row].copy() for row in rows]
        for pages in self.pages:
            for page in pages:
                self.users[page] += 1
        for pages in before:
            self._leave(pages)
        self._table = None
        self._own_last([lengths[row] for row in rows])

    def nbytes(self, lengths: Sequence[int]) -> int:
        of_page = sum(_row_bytes(c.shape[1:], c.dtype) for c in self.columns.values())
        return (len(self.users) - len(self.free)) * of_page

    def _new(self) -> int:
        self._table = None
        if self.free:
            page = self.free.pop()
            self.users[page] = 1
            return page
        self.users.append(1)
        return len(self.users) - 1

    def _leave(self, pages: Iterable[int]) -> None:
        for page in pages:
            self.users[page] -= 1
            if not self.users[page]:
                self.free.append(page)

    def _own_last(self, lengths: Sequence[int]) -> None:
        """Copy last pages that others have too and that are not full: they will be written to."""
        for b, length in enumerate(lengths):
            i = length // self.size
            if length % self.size and self.users[self.pages[b][i]] > 1:
                shared, own = self.pages[b][i], self._new()
                self.pages[b][i] = own
                self._leave([shared])
                self.cover([0] * self.batch, lengths)  # the column may have no room for it yet
                for column in self.columns.values():
                    column[own] = column[shared]

    def _whole_table(self, device: torch.device) -> Tensor:
        if self._table is None:
            longest = max(map(len, self.pages), default=0)
            rows = [pages + [-1] * (longest - len(pages)) for pages in self.pages]
            self._table = torch.tensor(rows, dtype=torch.int32, device=device)
        return self._table


Storage = Contiguous | Paged


def _empty(like: Tensor, shape: tuple[int, ...], dtype: torch.dtype | None = None) -> Tensor:
    """Also where it is called in inference mode, a tensor that can be written to outside."""
    with torch.inference_mode(False):
        return like.new_empty(shape, dtype=dtype)


def _row_bytes(tail: tuple[int, ...], dtype: torch.dtype) -> int:
    return torch.Size(tail).numel() * dtype.itemsize


def _tokens(
    capacity: int | None, batch: int, like: Tensor, tail: tuple[int, ...], dtype: torch.dtype
) -> int:
    """How many of each sequence to reserve room for."""
    if capacity is not None:
        return capacity
    if not like.is_cpu:
        return FIRST
    return max(FIRST, min(RESERVED, RESERVED_BYTES // max(1, batch * _row_bytes(tail, dtype))))
