"""A puzzle while it is solved: which round filled what, from which branch, and a picture of it."""

import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import NamedTuple

import torch
from rich.console import Console, Group
from rich.live import Live
from rich.padding import Padding
from rich.table import Table
from rich.text import Text

from triselect import lopa
from triselect.models.masked_diffusion import MaskedDiffusion
from triselect.models.puzzles import BLANK, BLOCK, EOS, SIDE, SYMBOLS, Kind, Puzzles, solved

ACROSS: dict[Kind, int] = {"latin": SIDE, "letters": BLOCK["letters"]}
PAUSE = 0.25  # seconds between rounds, where someone looks
GIVEN, ANCHOR, LOOKAHEADS = "dim", "cyan", ("yellow", "magenta", "green")
_SMALL = str.maketrans("0123456789", "₀₁₂₃₄₅₆₇₈₉")


class Fill(NamedTuple):
    """Of one position: `branch` is 0 for the anchor, j for lookahead j; `prob` what the model gave
    the token before the round that filled it.
    """

    token: int
    round: int
    branch: int
    prob: float


@dataclass(frozen=True)
class Replay:
    """One puzzle after so many rounds; `fills` by position, `right` once it is done."""

    kind: Kind
    title: str
    prompt: tuple[int, ...]
    fills: dict[int, Fill]
    rounds: int = 0
    right: bool | None = None

    @property
    def winners(self) -> list[int]:
        """The branch that won each round. A lookahead that wins fills a token of its own."""
        won = [0] * self.rounds
        for fill in self.fills.values():
            won[fill.round - 1] = max(won[fill.round - 1], fill.branch)
        return won

    @property
    def end(self) -> int | None:
        """Where the text ends, if an end was filled: what is behind it counts nowhere."""
        return min((at for at, fill in self.fills.items() if fill.token == EOS), default=None)

    @property
    def tokens(self) -> int:
        """Filled so far, up to the end of text."""
        return sum(self.end is None or at <= self.end for at in self.fills)

    def given(self, at: int) -> int | None:
        """The token that the puzzle itself has at a position."""
        if self.kind != "latin" or self.prompt[1 + at] == BLANK:
            return None
        return self.prompt[1 + at]


@torch.inference_mode()
def solve(
    model: MaskedDiffusion, given: Puzzles, title: str, config: lopa.Config
) -> Iterator[Replay]:
    """Decode the one puzzle that is given: it before the first round, and after each."""
    (prompt,) = given.prompts
    decoder = lopa.Decoder(model, config)
    state = decoder.begin([prompt])
    now = Replay(given.kind, title, tuple(prompt.tolist()), {})
    yield now
    while now.right is None:
        prob = state.predicted.prob[0]
        state = decoder.step(state)
        fills = dict(now.fills)
        for at in (state.filled_at[0] == now.rounds + 1).nonzero().flatten().tolist():
            token, branch = int(state.tokens[0, at]), int(state.filled_by[0, at])
            fills[at] = Fill(token, now.rounds + 1, branch, float(prob[at]))
        right = None
        if decoder.done(state):
            right = bool(solved(given, state.tokens))
        now = Replay(now.kind, title, now.prompt, fills, now.rounds + 1, right)
        yield now


def watch(console: Console, *runs: Iterator[Replay]) -> list[Replay]:
    """Show runs side by side, round by round, and return how they ended.

    Where no one looks (a pipe, a file) only the end is printed.
    """
    now = [next(run) for run in runs]
    with Live(picture(now), console=console, auto_refresh=False) as live:
        while any(replay.right is None for replay in now):
            now = [next(run, replay) for run, replay in zip(runs, now, strict=True)]
            live.update(picture(now), refresh=True)
            if console.is_terminal:
                time.sleep(PAUSE)
    return now


def picture(replays: Sequence[Replay]) -> Padding:
    """Runs side by side: each cell in the colour of who filled it, with the round beside it."""
    beside = Table.grid(padding=(0, 4))
    beside.add_row(*(Group(_caption(replay), "", _cells(replay)) for replay in replays))
    return Padding(beside, (0, 0, 1, 4))


def legend(lookaheads: int) -> Text:
    parts = [("given", GIVEN), ("anchor", ANCHOR)]
    parts += [(f"lookahead {j}", _colour(j)) for j in range(1, lookaheads + 1)]
    return Text("  ").join(Text(name, style) for name, style in parts)


def _caption(replay: Replay) -> Text:
    right = {None: "", True: ", solved", False: ", not solved"}[replay.right]
    won = "".join(str(branch) if branch else "·" for branch in replay.winners)
    return Text.assemble(
        (replay.title, "bold"),
        f"\n{replay.rounds} rounds, {replay.tokens} tokens{right}",
        (f"\nlookahead that won: {won}" if any(replay.winners) else "\n", "dim"),
    )


def _cells(replay: Replay) -> Text:
    drawn = Text()
    across = ACROSS[replay.kind]
    positions = len(replay.prompt) - 1  # as many answers as there are letters or cells
    for at in range(positions):
        drawn.append_text(_cell(replay, at))
        drawn.append("\n" if (at + 1) % across == 0 else " ")
    drawn.rstrip()
    return drawn


def _cell(replay: Replay, at: int) -> Text:
    fill, given = replay.fills.get(at), replay.given(at)
    behind = replay.end is not None and at > replay.end
    if behind or fill is None:
        symbol = "·" if given is None else SYMBOLS[given]
        return Text(f"{' ' if behind else symbol}  ", GIVEN)
    style = _colour(fill.branch) if given is None else GIVEN
    if fill.round == replay.rounds and replay.right is None:
        style += " reverse"
    number = str(fill.round).translate(_SMALL)
    return Text.assemble((SYMBOLS[fill.token] + number, style), " " * (2 - len(number)))


def _colour(branch: int) -> str:
    return LOOKAHEADS[(branch - 1) % len(LOOKAHEADS)] if branch else ANCHOR
