"""Questions about long texts to the small model that remembers, by several ways of reading."""

from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from time import perf_counter
from typing import Any

import torch
from torch import Tensor

from triselect import esa
from triselect.esa import Compressor
from triselect.models.recall import RecallModel
from triselect.models.recall_task import KINDS, Episodes, Kind, episodes
from triselect.report.esa_methods import CONFIG, DIMS, FULL, Method
from triselect.report.esa_reading import Reading
from triselect.report.estimate import Estimate

DEPTHS = 8  # equal parts of a text
CALIBRATED_AT = 192  # tokens: within what the model was trained on
# Texts of each kind by length: longer ones take longer and are fewer.
TEXTS = {256: 32, 1024: 16, 4096: 6, 16384: 3}
QUICK = {256: 16, 1024: 8, 4096: 4}


@dataclass(frozen=True)
class Depth:
    """One part of the texts: the answers whose needle lies there, right ones, needles found."""

    answers: int
    right: int
    found: int


@dataclass(frozen=True)
class Answered:
    """What one way of reading made of `texts` texts of one kind and length.

    `accuracy`: of foretold tokens. `recall`: of the needles, those that the last layer attended to.
    `kept`: its attention to what it read, as a share of attention to all tokens. `attended`: tokens
    before the chunk that were attended to. `seconds` per token of the text, and `bytes` of its
    cache. `depths` only where an answer has one needle.
    """

    method: str
    kind: Kind
    length: int
    texts: int
    accuracy: Estimate
    recall: Estimate
    kept: Estimate
    attended: float
    seconds: float
    bytes: int
    depths: list[Depth]

    def as_dict(self) -> dict[str, Any]:
        return asdict(self)


def calibrate(model: RecallModel, length: int = CALIBRATED_AT) -> list[Compressor]:
    """A compressor for each layer, from its queries and keys at one short length only."""
    queries: dict[int, list[Tensor]] = {}
    keys: dict[int, list[Tensor]] = {}
    rotary = model.rotary

    def collect(layer: int, q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        far = rotary.rotate(q, torch.tensor([CONFIG.local]))
        queries.setdefault(layer, []).append(far.flatten(0, 1))
        keys.setdefault(layer, []).append(k.flatten(0, 1))
        return model.full_attention(layer, q, k, v)

    for kind in KINDS:
        # Other seeds than those of the questions.
        model(episodes(1000, 32, length, kind).tokens, collect)
    return [esa.calibrate(queries[i], keys[i], dim=max(DIMS)) for i in range(len(model.layers))]


def measure(
    model: RecallModel,
    methods: Sequence[Method],
    texts: dict[int, int],
    *,
    kinds: Sequence[Kind] = KINDS,
    done: Callable[[], None] = lambda: None,
) -> list[Answered]:
    """Every method on the same texts, as many of each length as `texts` says."""
    found = []
    for length, count in texts.items():
        for kind in kinds:
            # Half of them of either seed.
            parts = [episodes(seed, part, length, kind) for seed, part in _seeds(count)]
            drawn = Episodes(
                torch.cat([part.tokens for part in parts]),
                parts[0].asked,
                torch.cat([part.answers for part in parts]),
                torch.cat([part.needles for part in parts]),
            )
            for method in methods:
                found.append(_answer(model, method, drawn, kind, length))
                done()
    return found


def _seeds(count: int) -> list[tuple[int, int]]:
    return [(0, count - count // 2), *([(1, count // 2)] if count > 1 else [])]


def _answer(
    model: RecallModel, method: Method, drawn: Episodes, kind: Kind, length: int
) -> Answered:
    read = _all_at_once if method.make is None else _in_chunks
    seconds, right, kept, found, attended, size = read(model, method, drawn, length)
    there = drawn.needles >= 0
    recall = (found & there).sum((1, 2)) / there.sum((1, 2))
    depths = []
    if there.shape[2] == 1:
        part = (drawn.needles[..., 0] * DEPTHS // length).flatten()
        counts = [
            torch.bincount(part, weights, minlength=DEPTHS).int().tolist()
            for weights in (None, right.flatten().float(), found[..., 0].flatten().float())
        ]
        depths = [Depth(*row) for row in zip(*counts, strict=True)]
    return Answered(
        method.name,
        kind,
        length,
        len(right),
        Estimate.of(right.double().mean(1).tolist()),
        Estimate.of(recall.tolist()),
        Estimate.of(kept.tolist()),
        attended,
        seconds / (len(right) * length),
        size,
        depths,
    )


Read = tuple[float, Tensor, Tensor, Tensor, float, int]


def _in_chunks(model: RecallModel, method: Method, drawn: Episodes, length: int) -> Read:
    assert method.make is not None
    tokens, config = drawn.tokens, method.config
    chunk = config.chunk
    reading = method.make(config, model.rotary, len(model.layers), tokens.shape[1])
    start = perf_counter()
    for some in tokens[:, :length].split(chunk, 1):
        model(some, reading, logits_from=some.shape[1])
    seconds = perf_counter() - start
    size = reading.nbytes()
    reading.watching = True
    logits = torch.cat([model(some, reading) for some in tokens[:, length:].split(chunk, 1)], 1)
    right = logits[:, drawn.asked - length].argmax(-1) == drawn.answers
    kept = torch.cat([look.kept for look in reading.looks], 1)[:, drawn.asked - length]
    attended = torch.cat([look.budget() for look in reading.looks])
    return (
        seconds,
        right,
        kept.mean((1, 2)),
        _found(reading, drawn, length),
        attended.double().mean().item(),
        size,
    )


def _found(reading: Reading, drawn: Episodes, length: int) -> Tensor:
    """``(B, A, N)``: needles that were attended to where the answer was asked for."""
    places = drawn.needles.flatten(1)
    of_chunk = torch.stack([look.attended(places) for look in reading.looks])
    chunk = (drawn.asked - length) // reading.config.chunk
    of_chunk = of_chunk.view(-1, *drawn.needles.shape)
    return of_chunk[chunk, :, torch.arange(len(chunk))].transpose(0, 1)


def _all_at_once(model: RecallModel, method: Method, drawn: Episodes, length: int) -> Read:
    """Full attention, to all tokens by definition."""
    assert method is FULL
    first = int(drawn.asked[0])
    start = perf_counter()
    logits = model(drawn.tokens, logits_from=first)
    seconds = (perf_counter() - start) * length / drawn.tokens.shape[1]
    right = logits[:, drawn.asked - first].argmax(-1) == drawn.answers
    c = model.config
    size = 2 * c.layers * length * c.kv_heads * c.head_dim * logits.itemsize
    every = torch.ones_like(drawn.needles, dtype=torch.bool)
    return seconds, right, torch.ones(len(right)), every, float(length), size
