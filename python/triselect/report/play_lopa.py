"""The guided run of LoPA: does a small diffusion model need fewer rounds, and is it still right?"""

from collections.abc import Sequence
from functools import partial
from pathlib import Path
from typing import NamedTuple

from rich.console import Console
from rich.markup import escape
from rich.padding import Padding
from rich.progress import Progress

from triselect.models.masked_diffusion import MaskedDiffusion, load_masked_diffusion
from triselect.models.puzzles import KINDS, puzzles, text
from triselect.report import lopa_fronts, lopa_page, lopa_replay, lopa_tables, machine, terminal
from triselect.report.lopa_fronts import TARGET
from triselect.report.lopa_methods import SCORES, THRESHOLD, Method, methods
from triselect.report.lopa_page import PAPER
from triselect.report.lopa_tables import KIND_NAMES, Findings
from triselect.report.page import render

CHOOSING, REPORTING = 1, 2  # seeds
LIVE = 19  # few clues and many letters, so that there is something to see
CONFIRMED = next(score for score in SCORES if score.name == "confirmed_7")


class Size(NamedTuple):
    """What a run measures: so many puzzles of each kind and set, these τ, numbers of lookaheads and
    scores of branches. All other ways of decoding are always there, the control among them.
    """

    puzzles: int
    taus: Sequence[float]
    lookaheads: Sequence[int]
    scores: Sequence[Method]


FULL = Size(64, (0.7, 0.9, TARGET, 0.99, 0.999), range(8), SCORES)
QUICK = Size(6, (TARGET, 0.999), (0, 1, 3), (PAPER, CONFIRMED))


def play(console: Console, out: Path, *, quick: bool = False) -> Path:
    """Run, tell, and write the page `out`. Quick leaves out most puzzles, τ and scores."""
    model = load_masked_diffusion()
    size = QUICK if quick else FULL
    console.print()
    terminal.tell(
        console,
        "[bold]Lookahead parallel decoding[/]",
        "A diffusion language model fills in masked tokens in any order, and each round takes all "
        "that it is sure of. LoPA also tries, in a few branches that are read together, one token "
        "more each, and goes on from the branch in which the model is surest of what is left.",
    )
    found = Findings(machine.describe())
    console.print(Padding(f"[dim]{escape(machine.header(found.machine))}[/]", (0, 2, 0, 2)))
    _live(console, model, found)
    with terminal.progress(console) as progress:
        terminal.tell(
            console,
            "[bold]2 · Fewer rounds at the same accuracy?[/]",
            f"Every method at τ of {', '.join(f'{tau:g}' for tau in size.taus)}. Settings are "
            f"chosen on {size.puzzles} puzzles of each kind and reported on {size.puzzles} others; "
            f"the model was trained on neither. {lopa_page.CONFIRMED}"
            + (" --quick leaves out most puzzles, τ and scores." if quick else ""),
        )
        _measure(progress, model, found, size)
    for kind in KINDS:
        terminal.show(console, lopa_tables.chosen_table(found, kind))
        terminal.tell(console, "", lopa_page.verdict(found, kind))
    terminal.tell(
        console,
        "[bold]3 · More branches[/]",
        "Figure 4 of the paper, for this model: the same τ, more and more lookaheads.",
    )
    for kind in KINDS:
        terminal.show(console, lopa_tables.branches_table(found, kind))
    terminal.tell(
        console,
        "[bold]4 · Where LoPA loses[/]",
        "\n\n".join(lopa_page.lost(found, kind) for kind in KINDS),
    )
    out.write_text(render(lopa_page.page(found)), encoding="utf-8")
    console.print(f"\n  The whole story with figures: [bold]{escape(str(out.resolve()))}[/]\n")
    return out


def _live(console: Console, model: MaskedDiffusion, found: Findings) -> None:
    terminal.tell(
        console,
        "[bold]1 · A puzzle, round by round[/]",
        f"The small number is the round that filled a cell. {lopa_page.SAME_TAU}",
    )
    for kind in KINDS:
        given = puzzles(LIVE, 1, kind)
        asked = "" if kind == "latin" else f": which occur in {text(given.prompts[0, 1:])}?"
        console.print(f"  [bold]{KIND_NAMES[kind].capitalize()}[/]{asked}")
        console.print(Padding(lopa_replay.legend(PAPER.lookaheads), (0, 0, 1, 2)))
        runs = (
            lopa_replay.solve(model, given, name, method.config(kind, TARGET))
            for name, method in (("LoPA", PAPER), ("threshold", THRESHOLD))
        )
        found.replays[kind] = lopa_replay.watch(console, *runs)
        console.print()


def _measure(progress: Progress, model: MaskedDiffusion, found: Findings, size: Size) -> None:
    for kind in KINDS:
        ways = [m for m in methods(kind) if m not in SCORES or m in size.scores]
        points = sum(len(size.taus) if method.swept else 1 for method in ways)
        total = 2 * points + len(size.lookaheads)
        task = progress.add_task(f"solving {KIND_NAMES[kind]}", total=total)
        done = partial(progress.advance, task)
        for seed, into in ((CHOOSING, found.choosing), (REPORTING, found.reporting)):
            given = puzzles(seed, size.puzzles, kind)
            into += lopa_fronts.front(model, given, ways, size.taus, done)
        found.branches += lopa_fronts.by_branches(
            model, given, PAPER, TARGET, size.lookaheads, done
        )
        progress.remove_task(task)
