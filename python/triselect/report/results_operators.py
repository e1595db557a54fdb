"""The cases of `bench_operators` as tables: a table per operator, a row per case."""

from collections.abc import Sequence
from typing import Any

from triselect.report.page import Table, micro, times
from triselect.report.speed import geometric_mean

OURS = "triselect"
PART = "of it: "  # before the name of what is a part of ours and not another way to do it


def tables(recorded: Sequence[dict[str, Any]]) -> list[Table]:
    """`recorded` is what the suite put down for each case, in its order."""
    found: dict[str, list[dict[str, Any]]] = {}
    for info in recorded:
        found.setdefault(info["op"], []).append(info)
    return [_table(operator, cases) for operator, cases in found.items()]


def _table(operator: str, cases: Sequence[dict[str, Any]]) -> Table:
    rivals = list(dict.fromkeys(name for case in cases for name in case["providers"]))
    rivals.remove(OURS)
    sizes = list(dict.fromkeys(size for case in cases for size in case["sizes"]))
    rows = []
    for case in sorted(cases, key=lambda case: (case["label"], case["dtype"], *_order(case))):
        ours = case["providers"][OURS]
        rows.append(
            (
                case["label"],
                *(f"{case['sizes'][size]:,}" if size in case["sizes"] else "" for size in sizes),
                case["dtype"],
                f"{micro(ours['p50'])} ({micro(ours['p20'])}–{micro(ours['p80'])})",
                case["backend"],
                *(_compared(case, rival) for rival in rivals),
            )
        )
    columns = ("case", *sizes, "dtype", "µs (p20–p80)", "backend", *rivals)
    return Table(columns, rows, f"{operator}. {_summary(cases, rivals)}")


def _compared(case: dict[str, Any], rival: str) -> str:
    ratio = _ratio(case, rival)
    if ratio is not None and rival.startswith(PART):
        return f"{100 * ratio:.{0 if ratio > 0.1 else 2}f} %"
    return times(ratio)


def _order(case: dict[str, Any]) -> tuple[int, ...]:
    return tuple(case["sizes"].values())


def _ratio(case: dict[str, Any], rival: str) -> float | None:
    providers = case["providers"]
    return providers[rival]["p50"] / providers[OURS]["p50"] if rival in providers else None


def _summary(cases: Sequence[dict[str, Any]], rivals: Sequence[str]) -> str:
    sentences = []
    for rival in rivals:
        if rival.startswith(PART):
            continue
        ratios = [ratio for case in cases if (ratio := _ratio(case, rival))]
        lost = sum(ratio < 1 for ratio in ratios)
        sentences.append(
            f"Against {rival}: {geometric_mean(ratios):.2f}× in geometric mean of {len(ratios)} "
            f"cases, {lost} of them lost."
        )
    return " ".join(sentences)
