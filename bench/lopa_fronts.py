"""Accuracy against rounds, at length: `python -m bench.lopa_fronts OUT.json [PUZZLES [CHOOSING]]`.

What `triselect play lopa` measures in minutes, on 512 puzzles of each kind unless told otherwise,
and 192 others for choosing settings; at every τ, and with 7 lookaheads for the two scores that were
best with 3. As many processes as there are cores, each with one thread: on two cores most of an
hour. Prints tables in Markdown; writes every point.
"""

import json
import os
import sys
from concurrent.futures import ProcessPoolExecutor
from dataclasses import asdict
from itertools import chain
from multiprocessing import get_context
from pathlib import Path
from typing import NamedTuple

import torch
from rich.progress import track

from triselect.models import load_masked_diffusion
from triselect.models.puzzles import KINDS, Kind, puzzles
from triselect.report import lopa_page, lopa_tables, machine
from triselect.report.lopa_fronts import TARGET, Point, chosen, front
from triselect.report.lopa_methods import METHODS, SCORES, TAUS, methods
from triselect.report.lopa_page import PAPER
from triselect.report.lopa_tables import Findings
from triselect.report.play_lopa import CHOOSING, REPORTING
from triselect.report.results import as_markdown

WIDER, TAUS_WIDER = 7, (0.98, 0.99, 0.999)
BRANCHES = range(8)


class Part(NamedTuple):
    """What a process does at once: a front on one set of puzzles."""

    kind: Kind
    seed: int
    puzzles: int
    method: str
    taus: tuple[float, ...] = TAUS
    lookaheads: int | None = None


def measure(part: Part) -> list[Point]:
    torch.set_num_threads(1)
    given = puzzles(part.seed, part.puzzles, part.kind)
    (method,) = (method for method in METHODS if method.name == part.method)
    model = load_masked_diffusion()
    return front(model, given, [method], part.taus, lookaheads=part.lookaheads)


def two_best(points: list[Point], kind: Kind) -> list[str]:
    def rounds(name: str) -> float:
        best = chosen(points, points, [name])
        return best.rounds.mean if best else torch.inf

    points = [point for point in points if point.kind == kind]
    return sorted((score.name for score in SCORES), key=rounds)[:2]


def main() -> None:
    out = Path(sys.argv[1])
    given = [int(x) for x in sys.argv[2:]]
    reported, choosing = given + [512, 192][len(given) :]
    sets = ((CHOOSING, choosing), (REPORTING, reported))
    found = Findings(machine.describe())
    cores = len(os.sched_getaffinity(0))
    with ProcessPoolExecutor(cores, get_context("spawn")) as pool:

        def run(what: str, parts: list[Part]) -> list[Point]:
            found = track(pool.map(measure, parts), what, total=len(parts))
            return list(chain.from_iterable(found))

        for seed, count in sets:
            parts = [Part(kind, seed, count, m.name) for kind in KINDS for m in methods(kind)]
            into = found.choosing if seed == CHOOSING else found.reporting
            into += run(f"{count} puzzles of each kind", parts)
        best = {kind: two_best(found.choosing, kind) for kind in KINDS}
        for seed, count in sets:
            parts = [
                Part(kind, seed, count, name, TAUS_WIDER, WIDER)
                for kind in KINDS
                for name in best[kind]
            ]
            into = found.choosing if seed == CHOOSING else found.reporting
            into += run(f"{WIDER} lookaheads", parts)
        parts = [
            Part(kind, REPORTING, reported, PAPER.name, (TARGET,), lookaheads)
            for kind in KINDS
            for lookaheads in BRANCHES
        ]
        found.branches += run("by number of branches", parts)
    points = {
        name: [asdict(point) for point in getattr(found, name)]
        for name in ("choosing", "reporting", "branches")
    }
    content = {"machine": found.machine, **points}
    out.write_text(json.dumps(content, indent=1) + "\n", encoding="utf-8")
    for kind in KINDS:
        print(lopa_page.verdict(found, kind), end="\n\n")
        print(lopa_page.lost(found, kind), end="\n\n")
        for make in (lopa_tables.chosen_table, lopa_tables.branches_table):
            table = make(found, kind)
            print(as_markdown(table), table.caption, sep="\n\n", end="\n\n")


if __name__ == "__main__":
    main()
