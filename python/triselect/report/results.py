"""What pytest-benchmark measured, as tables: ratios inside one run, losing cases shown."""

import json
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

from triselect.report import results_operators
from triselect.report.machine import header
from triselect.report.page import Page, Section, Table, micro, times
from triselect.report.providers import LABELS, RIVALS, SHORT
from triselect.report.speed import geometric_mean
from triselect.report.timing import Timing

OPENING, CLOSING = "<!-- results -->", "<!-- /results -->"


class BadResults(ValueError):
    """A file that `triselect bench` did not write; the message says what is wrong with it."""


class Key(NamedTuple):
    """What makes two rows comparable."""

    op: str
    router: str
    tokens: int
    dtype: str
    device: str


@dataclass(frozen=True)
class Case:
    """One shape: what was recorded for it, by provider."""

    key: Key
    providers: dict[str, dict[str, Any]]

    def ratio(self, rival: str, clock: str) -> float | None:
        mine, other = (self.providers.get(name, {}).get(clock) for name in ("triselect", rival))
        return other / mine if mine and other else None


@dataclass(frozen=True)
class Run:
    """One file: the machine, the cases of grouped_topk and their distances from the floor, and the
    cases of the other operators.
    """

    machine: dict[str, Any]
    cases: list[Case]
    floors: list[dict[str, Any]]
    operators: list[dict[str, Any]]

    def as_dict(self) -> dict[str, Any]:
        cases = [case.providers for case in self.cases]
        return {
            "machine": self.machine,
            "cases": cases,
            "floors": self.floors,
            "operators": self.operators,
        }


def load(path: Path) -> Run:
    """Read a file that `triselect bench` wrote.

    Raises
    ------
    BadResults
        It is none.
    """
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
        machine = content["machine_info"]["triselect"]
        recorded = [entry["extra_info"] for entry in content["benchmarks"]]
    except OSError as error:
        raise BadResults(f"{path}: {error.strerror}") from error
    except (ValueError, TypeError, KeyError) as error:
        raise BadResults(f"{path}: not a file that `triselect bench` wrote") from error
    cases: dict[Key, dict[str, dict[str, Any]]] = {}
    for info in recorded:
        if "provider" in info:
            key = Key(*(info[name] for name in Key._fields))
            cases.setdefault(key, {})[info["provider"]] = info
    floors = [info for info in recorded if "floor_us" in info]
    operators = [info for info in recorded if "providers" in info]
    return Run(machine, [Case(*item) for item in cases.items()], floors, operators)


def tables(run: Run) -> list[Table]:
    """Host time, device time where there was a device, and the distance from the floor; then the
    other operators.
    """
    found = []
    if run.cases:
        found.append(_times(run, "us_p50", "Host time: interleaved calls of the public function."))
    if any("device_us_p50" in info for case in run.cases for info in case.providers.values()):
        found.append(_times(run, "device_us_p50", "Device time, cold cache, inputs rotated."))
    if run.floors:
        found.append(_floors(run))
    return found + results_operators.tables(run.operators)


def _times(run: Run, clock: str, caption: str) -> Table:
    rivals = [name for name in RIVALS if any(case.ratio(name, clock) for case in run.cases)]
    rows = []
    for case in run.cases:
        mine = case.providers.get("triselect", {})
        if clock not in mine:
            continue
        timing = _timing(mine, clock)
        rows.append(
            (
                mine["label"],
                f"{case.key.tokens:,}",
                case.key.dtype,
                f"{micro(timing.p50)} ({micro(timing.p20)}–{micro(timing.p80)})",
                mine["backend"],
                *(times(case.ratio(name, clock)) for name in rivals),
                _share(mine, clock),
            )
        )
    columns = ["router", "tokens", "logits", "µs (p20–p80)", "backend"]
    columns += [SHORT[name] for name in rivals]
    return Table([*columns, "of a copy"], rows, f"{caption} {_summary(run, clock)}")


def _share(info: dict[str, Any], clock: str) -> str:
    copy = info.get(clock.replace("us_p50", "copy_us_p50"))
    return f"{100 * copy / info[clock]:.0f} %" if copy else ""


def _summary(run: Run, clock: str) -> str:
    sentences = [
        "Behind it, how many times as long the others take (below 1× they are faster), and the "
        "share of the speed at which as many bytes are copied."
    ]
    for name in RIVALS:
        ratios = [ratio for case in run.cases if (ratio := case.ratio(name, clock))]
        if ratios:
            lost = sum(ratio < 1 for ratio in ratios)
            sentences.append(
                f"Against {LABELS[name]}: {geometric_mean(ratios):.2f}× in geometric mean of "
                f"{len(ratios)} cases, {lost} of them lost."
            )
    wide = sum(timing.wide for case in run.cases for timing in timings(case, clock).values())
    if wide:
        sentences.append(f"Wide spreads (p80 over twice p20): {wide}; the machine was busy.")
    return " ".join(sentences)


def _timing(info: dict[str, Any], clock: str) -> Timing:
    p20, p50, p80 = (info[clock.replace("p50", p)] for p in ("p20", "p50", "p80"))
    return Timing(p20, p50, p80, info[clock.replace("us_p50", "samples")])


def timings(case: Case, clock: str) -> dict[str, Timing]:
    """By provider, those that have any on this clock: ``us_p50`` or ``device_us_p50``."""
    found = case.providers.items()
    return {name: _timing(info, clock) for name, info in found if clock in info}


def _floors(run: Run) -> Table:
    rows = [
        (
            info["label"],
            f"{info['tokens']:,}",
            info["dtype"],
            micro(info["native_us_p50"]),
            micro(info["bytes_us_p50"]),
            micro(info["keys_us_p50"]),
            f"{info['native_us_p50'] / info['floor_us']:.2f}×",
        )
        for info in run.floors
    ]
    return Table(
        ("router", "tokens", "logits", "native, µs", "bytes, µs", "keys, µs", "native / floor"),
        rows,
        "Floor: two measured loops, one that reads the logits and writes the outputs, one that "
        "computes the keys.",
    )


def markdown(runs: Sequence[Run]) -> str:
    """Tables in Markdown, under a line that names the machine; losing cells in bold."""
    blocks = []
    for run in runs:
        blocks.append(f"*{header(run.machine)}*")
        for table in tables(run):
            blocks += [as_markdown(table), table.caption]
    return "\n\n".join(blocks)


def as_markdown(table: Table) -> str:
    rule = ["--:" if table.numeric(i) else "---" for i in range(len(table.columns))]
    rows = [[f"**{c[1:]}**" if c.startswith("!") else c for c in row] for row in table.rows]
    return "\n".join("| " + " | ".join(row) + " |" for row in [table.columns, rule, *rows])


def merge(text: str, results: str) -> str:
    """`text` with what stands between the markers replaced.

    Raises
    ------
    BadResults
        The markers are not there, once each and in order.
    """
    before, opening, rest = text.partition(OPENING)
    _, closing, after = rest.partition(CLOSING)
    if not opening or not closing:
        raise BadResults(f"the file needs a line {OPENING} and, below it, a line {CLOSING}")
    return f"{before}{OPENING}\n{results}\n{CLOSING}{after}"


def page(runs: Sequence[Run]) -> Page:
    """All runs as one page, with a figure for every router that was measured at many sizes."""
    from triselect.report.results_figures import sweeps

    sections: Iterable[Section] = (
        Section(
            run.machine["device"],
            [header(run.machine)] if len(runs) > 1 else [],
            sweeps(run),
            tables(run),
        )
        for run in runs
    )
    return Page(
        title="triselect · benchmarks",
        lead=(
            "Every operator against what you would otherwise run, measured in one run per machine. "
            "Ratios say how many times as long the other takes; below 1× it wins, in red."
        ),
        machine=runs[0].machine,
        sections=list(sections),
        data={"runs": [run.as_dict() for run in runs]},
    )
