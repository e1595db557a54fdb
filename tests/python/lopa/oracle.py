"""LoPA for one sequence, as the paper and D2F tell it: a branch at a time, no cache, Python lists.

Written apart from the operators, of which it uses only the confidence of a row of logits.
"""

from collections.abc import Callable

import numpy as np
import torch
from torch import Tensor
from triselect.kernels.token_confidence import reference

from triselect.lopa import Config, Decoder, Denoiser

Prediction = tuple[int, np.float32, np.float32]  # token, probability, score


class Sequence:
    def __init__(self, model: Denoiser, config: Config, prompt: list[int]) -> None:
        self.model, self.config, self.prompt = model, config, prompt
        self.size = config.block_length
        self.x: list[int | None] = [None] * config.length
        self.added = 1
        self.cached = 0  # blocks
        self.predicted: dict[int, Prediction] = {}
        self.rounds: list[list[int]] = []  # what each has filled
        self.won: list[int] = []
        self.worth: list[list[float]] = []
        if config.length:
            self.extend(self.x)
            self.predicted = self.predict(self.x, 0)

    def ends(self, x: list[int | None]) -> int:
        """How many positions come before the end of text."""
        eos = self.model.eos_token
        return x.index(eos) if eos is not None and eos in x else len(x)

    def open(self, x: list[int | None]) -> list[int]:
        last = min(self.ends(x), self.added * self.size)
        return [i for i in range(last) if x[i] is None]

    def done(self) -> bool:
        return None not in self.x[: self.ends(self.x)]

    def open_in(self, x: list[int | None], block: int) -> list[int]:
        return [i for i in self.open(x) if i // self.size == block]

    def filled(self, x: list[int | None], block: int) -> int:
        return self.size - len(self.open_in(x, block))

    def frozen(self, x: list[int | None]) -> int:
        """Blocks from the first on that need no more."""
        if self.config.attention == "bidirectional":
            return 0
        n = self.cached
        while n < self.added and not self.open_in(x, n):
            n += 1
        return n

    def extend(self, x: list[int | None]) -> None:
        """One more block, if the last one is far enough."""
        config = self.config
        in_window = config.window // self.size
        room = self.cached + in_window
        if room < config.length // self.size and self.open(x):
            room -= 1
        if (
            self.added < min(room, config.length // self.size)
            and self.ends(x) == len(x)
            and self.filled(x, self.added - 1) / self.size >= config.add_threshold
        ):
            self.added += 1

    def anchor(self) -> list[int | None]:
        config, x = self.config, list(self.x)
        for block in range(self.added):
            here = [i for i in self.open_in(self.x, block) if i in self.predicted]
            if not here:
                continue
            if config.factor:
                by_p = sorted(here, key=lambda i: (-self.predicted[i][1], i))
                n = sum(
                    np.float32(r + 2) * (np.float32(1) - self.predicted[i][1])
                    < np.float32(config.factor)
                    for r, i in enumerate(by_p)
                )
                taken = by_p[:n]
            else:
                taken = [i for i in here if self.predicted[i][1] > np.float32(config.threshold)]
            before = block == 0 or (
                self.filled(self.x, block - 1) / self.size >= config.activate_threshold
            )
            if not taken and before:
                taken = [min(here, key=lambda i: (-self.predicted[i][2], i))]
            for i in taken:
                x[i] = self.predicted[i][0]
        return x

    def levels(self, frozen: int) -> list[int]:
        found = []
        for i in range(len(self.x)):
            block = i // self.size
            if self.config.attention == "bidirectional":
                found.append(0)
            elif block >= self.added:
                found.append(10**6)
            elif self.config.attention == "full" and block > frozen:
                found.append(frozen + 1)
            else:
                found.append(block + 1)
        return found

    def predict(self, x: list[int | None], frozen: int) -> dict[int, Prediction]:
        """Of every open position, from all positions read anew."""
        model, first = self.model, len(self.prompt)
        mask = model.mask_token
        tokens = self.prompt + [mask if t is None else t for t in x]
        level = [0] * first + self.levels(frozen)
        logits = model(
            torch.tensor([[tokens]], dtype=torch.int32),
            torch.zeros(1, dtype=torch.int32),
            torch.tensor([level], dtype=torch.int32),
            None,
        )[0, 0]
        row = {i: first + i - model.shift for i in self.open(x)}
        found = {}
        for i, r in row.items():
            token, prob, score, _ = reference.token_confidence(
                logits[r : r + 1].numpy(),
                *(None,) * 5,
                1.0,
                self.config.score,
                mask,
                0,
            )
            found[i] = int(token[0]), np.float32(prob[0]), np.float32(score[0])
        return found

    def round(
        self, num_lookaheads: int, worth: Callable[[list[Prediction]], float] | None = None
    ) -> None:
        x = self.anchor()
        left = [i for i in self.open(x) if i in self.predicted]
        left = [i for i in left if self.predicted[i][2] > -np.inf]
        extras = sorted(left, key=lambda i: (-self.predicted[i][2], i))[:num_lookaheads]
        self.extend(x)
        more_to_come = self.added * self.size < len(x) and self.ends(x) == len(x)
        if len(self.open(x)) == 1 and more_to_come:
            extras = []  # the branch would have nothing left to be judged by
        frozen = self.frozen(x)
        branches = [x]
        for i in extras:
            branches.append([self.predicted[i][0] if j == i else t for j, t in enumerate(x)])
        predictions = [self.predict(branch, frozen) for branch in branches]
        values = [np.float32((worth or mean)(list(p.values()))) for p in predictions]
        if self.config.confirm is not None:
            least = np.float32(self.config.confirm)
            for j, i in enumerate(extras, 1):
                token, prob, _ = predictions[0].get(i, (None, 0, 0))
                if token != branches[j][i] or prob < least:
                    values[j] = np.float32(-np.inf)
        best = max(range(len(branches)), key=lambda j: (values[j], -j))
        self.rounds.append(
            [i for i in range(len(x)) if self.x[i] is None and branches[best][i] is not None]
        )
        self.won.append(best)
        self.worth.append(values)
        self.x, self.predicted, self.cached = branches[best], predictions[best], frozen


def mean(predictions: list[Prediction]) -> float:
    if not predictions:
        return np.inf
    return float(np.mean([np.float64(score) for _, _, score in predictions]))


def as_list(tokens: Tensor, mask: int) -> list[int | None]:
    return [None if t == mask else t for t in tokens.tolist()]


def assert_as_the_oracle(decoder: Decoder, given: list[Tensor]) -> None:
    model, config = decoder.model, decoder.config
    state = decoder.begin(given)
    oracles = [Sequence(model, config, prompt.tolist()) for prompt in given]
    while True:
        for b, oracle in enumerate(oracles):
            assert as_list(state.tokens[b], model.mask_token) == oracle.x
            predicted = {
                i: int(state.predicted.token[b, i])
                for i in oracle.open(oracle.x)
                if state.predicted.token[b, i] >= 0
            }
            assert predicted == {i: p[0] for i, p in oracle.predicted.items()}
        assert decoder.done(state).tolist() == [oracle.done() for oracle in oracles]
        if all(oracle.done() for oracle in oracles):
            break
        state = decoder.step(state)
        for oracle in oracles:
            if not oracle.done():
                oracle.round(config.num_lookaheads)
    for b, oracle in enumerate(oracles):
        for number, (filled, won) in enumerate(zip(oracle.rounds, oracle.won, strict=True), 1):
            at = (state.filled_at[b] == number).nonzero().flatten().tolist()
            assert at == filled
            assert max(state.filled_by[b, filled].tolist()) == won
