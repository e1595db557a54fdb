"""How many lookaheads cost nothing: what `num_lookaheads="auto"` goes by."""

import time
from typing import Any
from weakref import WeakKeyDictionary

import torch

from triselect.lopa.decoder import Decoder
from triselect.lopa.state import State

FREE = 1.05  # a round with lookaheads may take so much of one without
REPEATS = 3
_measured: WeakKeyDictionary[Any, dict[tuple[int, ...], int]] = WeakKeyDictionary()


def free_lookaheads(decoder: Decoder, state: State) -> int:
    """The most lookaheads, up to `max_lookaheads`, with which a round costs the same as without:
    measured at the first call for a model, a number of sequences and a window.

    Rounds are timed with and without in turn, so that what else the machine does meets both, on a
    state that stays as it is. More lookaheads are tried for as long as they cost nothing.
    """
    config = decoder.config
    known = _measured.setdefault(decoder.model, {})
    key = (len(state.tokens), config.window, config.max_lookaheads)
    if key not in known:
        free = 0
        _seconds(decoder, state, 0)  # what the first call of a process pays for
        for count in range(1, config.max_lookaheads + 1):
            without = with_them = torch.inf
            for _ in range(REPEATS):
                without = min(without, _seconds(decoder, state, 0))
                with_them = min(with_them, _seconds(decoder, state, count))
            if with_them > FREE * without:
                break
            free = count
        known[key] = free  # only now: a measurement cut short is none
    return known[key]


def useful_lookaheads(decoder: Decoder, state: State, most: int) -> int:
    """`most`, or fewer where fewer positions are in doubt: each lookahead needs one of its own."""
    if not most:
        return 0
    doubtful = decoder.open(state) & (state.predicted.token >= 0)
    doubtful &= state.predicted.prob <= decoder.config.threshold
    return min(most, int(doubtful.sum(-1).max()))


def _seconds(decoder: Decoder, state: State, num_lookaheads: int) -> float:
    device = state.tokens.device
    if device.type == "cuda":
        torch.cuda.synchronize(device)
    begin = time.perf_counter()
    after = decoder.step(state, num_lookaheads)
    after.tokens.cpu()  # waits for the device
    return time.perf_counter() - begin
