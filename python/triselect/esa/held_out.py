"""A bounded random sample of a stream, in blocks of consecutive rows, kept away from the rest."""

import heapq
from operator import itemgetter

import numpy as np
import torch
from torch import Tensor

ONE_IN = 4  # blocks


class HeldOut:
    """Of every four blocks in a row one is drawn; of those drawn, `most` at random are held out.

    Blocks, since chunks of queries are of consecutive tokens. What is held out depends on the seed
    and on the order of the rows, not on the chunks in which they come.
    """

    def __init__(self, block: int, most: int, seed: int) -> None:
        self.block, self._most = block, most
        self._random = np.random.default_rng(seed)
        self._ended = 0  # blocks
        self._rows = 0  # of the block that has begun
        self._drawn = int(self._random.integers(ONE_IN))  # the next one
        self._begun: list[Tensor] = []  # pieces of the block that has begun, if it is drawn
        # Priority, number and pieces of every block held out, the first to give way in front.
        self._kept: list[tuple[float, int, list[Tensor]]] = []

    def add(self, rows: Tensor) -> Tensor:
        """Returns the rows that are not held out, and those that have given way to others."""
        rest = [rows[:0]]
        while len(rows):
            missing = self.block - self._rows
            piece, rows = rows[:missing], rows[missing:]
            if self._ended == self._drawn:
                self._begun.append(piece.cpu().clone())  # no view: lets go of the chunk
            else:
                rest.append(piece)
            self._rows += len(piece)
            if self._rows == self.block:
                rest += self._end_block()
        return torch.cat([piece.to(rows.device) for piece in rest])

    def held_out(self) -> list[Tensor]:
        """Pieces of whole blocks, in order."""
        return [piece for *_, pieces in sorted(self._kept, key=itemgetter(1)) for piece in pieces]

    def unfinished(self) -> list[Tensor]:
        """Pieces of the block that the end of the stream cut short: not held out after all."""
        return self._begun

    def _end_block(self) -> list[Tensor]:
        """Returns the pieces of a block that gives way."""
        rest: list[Tensor] = []
        if self._begun:
            heapq.heappush(self._kept, (self._random.random(), self._ended, self._begun))
            if len(self._kept) > self._most:
                *_, rest = heapq.heappop(self._kept)
        self._begun, self._rows = [], 0
        self._ended += 1
        if self._ended % ONE_IN == 0:
            self._drawn = self._ended + int(self._random.integers(ONE_IN))
        return rest
