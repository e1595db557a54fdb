"""summary.md from results.jsonl, and the verdict: what the suite exits with.

``python -m bench.device.summary OUT`` exits with 0 where all that ran is right, 1 where something
is wrong, 3 where nothing is but a phase was cut.
"""

import sys
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

from bench.device import records
from bench.device.records import OURS

Row = dict[str, Any]


def verdict(rows: Sequence[Row]) -> int:
    if not rows or any(is_wrong(row) for row in rows):
        return 1
    return 3 if any(is_cut(row) for row in rows) else 0


def is_wrong(row: Row) -> bool:
    match row["kind"]:
        case "tests":
            if row["failed"] or row["error"]:
                return True
            if row["status"] == records.STOPPED:
                return False
            # KILLED is wrong: it did not even end when it was told to, as where a kernel hangs.
            return row["status"] != 0 or not row["skipped" if row.get("dry_run") else "passed"]
        case "sanitizer":
            return row["verdict"] in ("found", "failed")
        case "error":
            return not row["cut"]
    return False


def is_cut(row: Row) -> bool:
    return row.get("cut") or row.get("verdict") == "cut" or row.get("finished") is False


def number(value: float | None) -> str:
    """Three digits; blank where nothing was measured."""
    if value is None:
        return ""
    return f"{value:,.0f}" if value >= 100 else f"{value:.3g}"


def table(columns: Sequence[str], rows: Iterable[Sequence[object]]) -> str:
    lines = [columns, ["---"] * len(columns), *rows]
    return "\n".join(f"| {' | '.join(str(cell) for cell in line)} |" for line in lines)


def header(environment: Row) -> str:
    names = ("driver", "torch", "triton", "python", "triselect", "commit")
    parts = [environment.get("device", "the machine was not described")]
    parts += [f"{name} {environment[name]}" for name in names if environment.get(name)]
    return " · ".join([*parts, *filter(None, [environment.get("date")])])


def of_tests(rows: Sequence[Row]) -> str:
    counts = ("passed", "failed", "error", "skipped")
    body = [
        (row["name"], *(row[count] for count in counts), "" if row["finished"] else "cut")
        for row in rows
    ]
    wrong = [f"- wrong: `{test}`" for row in rows for test in row["wrong"]]
    return "\n".join([table(("tests", *counts, ""), body), "", *wrong]).strip()


def of_sanitizer(rows: Sequence[Row]) -> str:
    body = [
        (row["tool"], f"{row['verdict']} {row['detail']}".strip(), row["cases"]) for row in rows
    ]
    return table(("compute-sanitizer", "verdict", "small cases"), body)


def of_roof(rows: Sequence[Row]) -> str:
    columns = ("roof", "µs (p20–p80)", "GB/s", "TFLOP/s")
    body = [
        (row["name"], took(row, "device"), number(row["gb_per_s"]), number(row["tflop_per_s"]))
        for row in rows
    ]
    return table(columns, body)


def took(row: Row, clock: str) -> str:
    p20, p50, p80 = (row[f"{clock}_us_{p}"] for p in ("p20", "p50", "p80"))
    return f"{number(p50)} ({number(p20)}–{number(p80)})" if p50 else ""


def of_operator(rows: Sequence[Row]) -> str:
    """A line per case: ours, and how many times as long the others take."""
    cases: dict[tuple, dict[str, Row]] = {}
    for row in rows:
        key = (row["label"], *row["sizes"].items(), row["dtype"])
        cases.setdefault(key, {})[row["provider"]] = row
    rivals = list(dict.fromkeys(row["provider"] for row in rows if row["provider"] != OURS))
    sizes = list(dict.fromkeys(size for row in rows for size in row["sizes"]))
    body = []
    for found in cases.values():
        ours = found[OURS]
        share = ours["share_of_roof"]
        body.append(
            (
                ours["label"],
                *(f"{ours['sizes'].get(size, ''):,}" for size in sizes),
                ours["dtype"],
                took(ours, "device"),
                took(ours, "host"),
                ours["backend"] or "",
                number(ours["gb_per_s"]),
                f"{share:.1%}" if share else "",
                *(ratio(found.get(rival), ours) for rival in rivals),
            )
        )
    columns = ["case", *sizes, "dtype", "device, µs (p20–p80)", "host, µs (p20–p80)", "backend"]
    missing = {
        f"{provider}: {reason}" for row in rows for provider, reason in row["unavailable"].items()
    }
    notes = [f"- {note}" for note in sorted(missing)]
    return "\n".join([table([*columns, "GB/s", "of the roof", *rivals], body), "", *notes]).strip()


def ratio(rival: Row | None, ours: Row) -> str:
    """A cell: times as long on the device; bold where ours loses, starred without a graph."""
    if not rival or not rival["device_us_p50"]:
        return ""
    times = rival["device_us_p50"] / ours["device_us_p50"]
    star = "" if rival["captured"] else "\\*"
    return f"**{times:.2f}×**{star}" if times < 1 else f"{times:.2f}×{star}"


def render(rows: Sequence[Row], environment: Row) -> str:
    parts = ["# Device suite", f"*{header(environment)}*"]
    if environment.get("dry_run"):
        parts.append("Rehearsal on a CPU: every step was taken, and nothing was timed.")
    parts += [
        f"- {'cut' if row['cut'] else 'wrong'}: {row['phase']}: {row['message']}"
        for row in rows
        if row["kind"] == "error"
    ]
    for kind, part in {"tests": of_tests, "sanitizer": of_sanitizer, "roof": of_roof}.items():
        if found := [row for row in rows if row["kind"] == kind]:
            parts.append(part(found))
    timed = [row for row in rows if row["kind"] == "benchmark"]
    for operator in dict.fromkeys(row["op"] for row in timed):
        parts += [f"## {operator}", of_operator([row for row in timed if row["op"] == operator])]
    empty = [row["empty_us_p50"] for row in timed if row["empty_us_p50"]]
    if empty:
        parts.append(
            "Device time: replays of a CUDA graph after a flush of the cache, inputs rotated, all "
            f"providers in turn; an empty kernel takes {number(min(empty))} to "
            f"{number(max(empty))} µs by this clock. "
            "Host time: a call and the wait for it, caches warm. Behind it, how many times as long "
            "the others take on the device (below 1× they are faster); \\* made no graph, so its "
            "launches may be included. The roof is the copy's bytes per second."
        )
    return "\n\n".join(parts) + "\n"


def main(out: Path) -> int:
    rows = records.load(out)
    (out / "summary.md").write_text(render(rows, records.environment(out)), encoding="utf-8")
    return verdict(rows)


if __name__ == "__main__":
    sys.exit(main(Path(sys.argv[1])))
