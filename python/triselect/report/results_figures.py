"""Benchmarks as sweeps over the number of tokens."""

from triselect.report import figures
from triselect.report.page import Figure
from triselect.report.results import Case, Key, Run, timings
from triselect.report.speed import Speed


def sweeps(run: Run) -> list[Figure]:
    """A figure for every router and precision with three sizes and more."""
    groups: dict[Key, list[Case]] = {}
    for case in run.cases:
        groups.setdefault(case.key._replace(tokens=0), []).append(case)
    found = []
    for key, cases in groups.items():
        if len(cases) < 3:
            continue
        cases = sorted(cases, key=lambda case: case.key.tokens)
        on_device = any("device_us_p50" in info for info in cases[0].providers.values())
        clock = "device_us_p50" if on_device else "us_p50"
        label = next(iter(cases[0].providers.values()))["label"]
        where = "Device time" if on_device else "Time"
        found.append(
            Figure(
                figures.speed([_speed(case, clock) for case in cases]),
                f"{where} of a call by number of tokens, {key.dtype} logits; lower is better.",
                f"{label}, {key.dtype}",
            )
        )
    return found


def _speed(case: Case, clock: str) -> Speed:
    return Speed(case.key.router, case.key.tokens, case.key.dtype, timings(case, clock), {})
