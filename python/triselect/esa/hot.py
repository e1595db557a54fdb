"""`Hot`: tokens of a cache on the host that are on the device too: those that were read last."""

from collections.abc import Sequence

import torch
from torch import Tensor


class Hot:
    """`slots` tokens of one layer on the device; the least recently read makes place for the next.

    ``table (B, N) int32`` is the slot of each token, -1 where it has none: for the operators a
    block table of blocks of one token. What to fetch is decided on the host, which waits for the
    device once for every call.
    """

    @torch.inference_mode(False)  # so that it can be written to in any mode
    def __init__(self, slots: int, batch: int, k: Tensor) -> None:
        self.k, self.v = (k.new_empty(slots, 1, *k.shape[2:]) for _ in range(2))
        self.owner = torch.full((slots,), -1)  # batch * N + token, by slot
        self.read = torch.full((slots,), -1)  # when, by slot
        self.table = torch.full((batch, 0), -1, dtype=torch.int32)
        self.now = 0
        self.fetched = 0  # tokens, in all

    def fetch(self, wanted: Tensor, k: Tensor, v: Tensor) -> Tensor:
        """Put tokens ``wanted (B, M)``, -1 for none, of ``k, v (B, N, G, D)`` on the device.

        Returns the table, on the device.
        """
        self._widen(k.shape[1])
        self.now += 1
        width = self.table.shape[1]
        b, m = (wanted >= 0).nonzero(as_tuple=True)
        ids = b * width + wanted[b, m]
        table = self.table.view(-1)
        slot = table[ids].long()
        self.read[slot[slot >= 0]] = self.now
        missing = ids[slot < 0]
        if len(missing):
            victims = self.read.topk(len(missing), largest=False).indices
            before = self.owner[victims]
            table[before[before >= 0]] = -1
            table[missing] = victims.int()
            self.owner[victims], self.read[victims] = missing, self.now
            rows = missing // width, missing % width
            where = victims.to(self.k.device)
            for hot, host in ((self.k, k), (self.v, v)):
                hot[where, 0] = host[rows].to(hot.device)
            self.fetched += len(missing)
        return self.table.to(self.k.device)

    def forget(self, lengths: Sequence[int]) -> None:
        """Of each sequence, all but so many first tokens."""
        width = max(1, self.table.shape[1])
        keep = torch.tensor(lengths)[self.owner // width]  # of free slots anything
        gone = (self.owner >= 0) & (self.owner % width >= keep)
        self.table.view(-1)[self.owner[gone]] = -1
        self.owner[gone] = self.read[gone] = -1

    @torch.inference_mode(False)
    def _widen(self, width: int) -> None:
        if width > self.table.shape[1]:
            old = self.table.shape[1]
            held = self.owner >= 0
            self.owner[held] = self.owner[held] // max(1, old) * width + self.owner[held] % max(
                1, old
            )
            new = self.table.new_full((len(self.table), width), -1)
            new[:, :old] = self.table
            self.table = new
