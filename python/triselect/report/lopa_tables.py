"""What was found about LoPA, as tables."""

from dataclasses import asdict, dataclass, field
from typing import Any

from triselect.models.puzzles import Kind
from triselect.report.esa_tables import clearly, percent
from triselect.report.estimate import Estimate
from triselect.report.lopa_fronts import TARGET, Point, chosen, target
from triselect.report.lopa_methods import EXTRA, METHODS, ONE, SCORES
from triselect.report.lopa_replay import Replay
from triselect.report.page import Table, times

KIND_NAMES: dict[Kind, str] = {"latin": "Latin squares", "letters": "letters"}
TITLES = {method.name: method.title for method in METHODS}
LOPA = tuple(method.name for method in SCORES)


@dataclass
class Findings:
    """All that a guided run found. Settings are chosen on other puzzles than are reported."""

    machine: dict[str, Any]
    replays: dict[Kind, list[Replay]] = field(default_factory=dict)
    choosing: list[Point] = field(default_factory=list)
    reporting: list[Point] = field(default_factory=list)
    branches: list[Point] = field(default_factory=list)

    @property
    def kinds(self) -> list[Kind]:
        return list(dict.fromkeys(point.kind for point in self.reporting))

    def of(self, kind: Kind) -> tuple[list[Point], list[Point]]:
        """For choosing, for reporting."""
        choosing, reporting = (
            [point for point in points if point.kind == kind]
            for points in (self.choosing, self.reporting)
        )
        return choosing, reporting

    def figure4(self, kind: Kind) -> list[Point]:
        return [point for point in self.branches if point.kind == kind]

    def as_dict(self) -> dict[str, Any]:
        replays = [
            {**asdict(replay), "winners": replay.winners, "fills": _fills(replay)}
            for of_kind in self.replays.values()
            for replay in of_kind
        ]
        points = {
            name: [asdict(point) for point in getattr(self, name)]
            for name in ("choosing", "reporting", "branches")
        }
        return {"titles": TITLES, "replays": replays, **points}


def chosen_table(found: Findings, kind: Kind) -> Table:
    """Of each method the setting that was best on other puzzles."""
    choosing, reporting = found.of(kind)
    base = target(reporting)
    rows = []
    for name in dict.fromkeys(point.method for point in reporting):
        point = chosen(choosing, reporting, [name])
        if point is None:
            rows.append((TITLES[name], *[""] * 5))
            continue
        wrong = "!" * clearly(base.accuracy, point.accuracy)
        rows.append(
            (
                TITLES[name],
                "" if name == ONE.name else f"{point.tau:g}",
                wrong + percent(point.accuracy),
                decimals(point.rounds),
                times(base.rounds.mean / point.rounds.mean),
                "!" * (point.tokens_per_forward < base.tokens_per_forward)
                + f"{point.tokens_per_forward:.2f}",
            )
        )
    return Table(
        (
            KIND_NAMES[kind],
            "τ",
            "solved, %",
            "rounds",
            "fewer rounds",
            "per forward",
        ),
        rows,
        _chosen_caption(choosing[0].puzzles, base.puzzles) if kind == found.kinds[-1] else "",
    )


def _chosen_caption(choosing: int, reporting: int) -> str:
    """Below the last of them."""
    return (
        f"Of each the setting with the fewest rounds of those that, on {choosing} other puzzles, "
        f"came within one point of threshold at τ = {TARGET:g}; blank where none did. Measured on "
        f"{reporting} puzzles, ± standard error; an error of 0 means that all were alike. Fewer "
        f"rounds: than threshold at τ = {TARGET:g}. Per forward: tokens per branch that was read; "
        f"“{TITLES[EXTRA.name]}” needs one, though it is run with two. Red: less than threshold, "
        "accuracy by more than twice the error."
    )


def branches_table(found: Findings, kind: Kind) -> Table:
    """Figure 4 of the paper."""
    points = found.figure4(kind)
    base = points[0]
    rows = [
        (
            str(point.lookaheads),
            "!" * clearly(base.accuracy, point.accuracy) + percent(point.accuracy),
            decimals(point.rounds),
            f"{point.tokens_per_round.mean:.2f}",
            "!" * (point.tokens_per_forward < base.tokens_per_forward)
            + f"{point.tokens_per_forward:.2f}",
            f"{100 * point.win_rate:.0f}",
        )
        for point in points
    ]
    return Table(
        (
            f"{KIND_NAMES[kind]}: lookaheads",
            "solved, %",
            "rounds",
            "tokens per round",
            "per forward",
            "won by one, %",
        ),
        rows,
        f"{TITLES[base.method]}, τ = {base.tau:g}, {base.puzzles} puzzles, ± standard error. Red: "
        "less than without lookaheads, accuracy by more than twice the error."
        if kind == found.kinds[-1]
        else "",
    )


def points_table(found: Findings, kind: Kind) -> Table:
    """Everything that was measured, folded away."""
    rows = [
        (
            TITLES[point.method],
            which,
            "" if point.method == ONE.name else f"{point.tau:g}",
            str(point.lookaheads),
            percent(point.accuracy),
            decimals(point.rounds),
            decimals(point.tokens_per_round),
            f"{point.tokens_per_forward:.2f}",
            f"{100 * point.win_rate:.0f}",
        )
        for which, points in zip(("choosing", "reporting"), found.of(kind), strict=True)
        for point in points
    ]
    return Table(
        (
            KIND_NAMES[kind],
            "puzzles for",
            "τ",
            "lookaheads",
            "solved, %",
            "rounds",
            "tokens per round",
            "per forward",
            "won by one, %",
        ),
        rows,
        open=False,
    )


def decimals(estimate: Estimate) -> str:
    return f"{estimate.mean:.2f} ± {estimate.error:.2f}"


def _fills(replay: Replay) -> list[dict[str, Any]]:
    return [{"position": at, **fill._asdict()} for at, fill in sorted(replay.fills.items())]
