"""What was found about LoPA, as sentences and a page."""

import torch

from triselect.models.puzzles import Kind, text
from triselect.report import lopa_figures
from triselect.report.esa_tables import clearly, percent
from triselect.report.lopa_fronts import TARGET, WITHIN, Point, chosen, of_setting, target
from triselect.report.lopa_methods import EXTRA, ONE, SCORES, THRESHOLD
from triselect.report.lopa_tables import (
    KIND_NAMES,
    LOPA,
    TITLES,
    Findings,
    branches_table,
    chosen_table,
    decimals,
    points_table,
)
from triselect.report.page import Figure, Page, Section

PAPER = SCORES[0]  # the score that the paper has
SAME_TAU = (
    "Both decode at the same τ here. A lookahead's token is one that τ refused, so at equal τ LoPA "
    "trades accuracy for rounds: whether it gains anything is a question of fronts."
)

CONFIRMED = (
    "Confirmed, which is not in the paper: only a lookahead may win whose own token the anchor, "
    "read in the same forward, predicts too, with at least that probability."
)


def verdict(found: Findings, kind: Kind) -> str:
    """How many rounds LoPA saves at the accuracy of threshold decoding."""
    choosing, reporting = found.of(kind)
    base, best = target(reporting), chosen(choosing, reporting, LOPA)
    sentences = [
        f"{KIND_NAMES[kind].capitalize()}: threshold at τ = {TARGET:g} solves {_result(base)}."
    ]
    if best is None:
        mine = (point for point in choosing if point.method in LOPA)
        nearest = of_setting(max(mine, key=lambda point: point.accuracy.mean), reporting)
        sentences.append(
            "No setting of LoPA came within one point of it on the puzzles for choosing. The most "
            f"accurate there, {_setting(nearest)}, solves {_result(nearest)} here, "
            f"{_rounds(nearest, base)}."
        )
    else:
        sentences.append(
            "Of LoPA's settings that came within one point of it on other puzzles, "
            f"{_setting(best)} takes the fewest rounds: here it solves {_result(best)}, "
            f"{_rounds(best, base)}."
        )
        less = base.accuracy.mean - best.accuracy.mean
        if less > WITHIN + 1e-9:
            unclear = "" if clearly(base.accuracy, best.accuracy) else ", within twice the errors"
            sentences.append(
                f"That is {_points(less)} below threshold, not within one{unclear}: what was "
                "chosen there does not hold here."
            )
        sentences += [control(found, kind), _forwards(best, base)]
    (one,) = (point for point in reporting if point.method == ONE.name)
    sentences.append(f"One token a round solves {_result(one)}.")
    return " ".join(sentences)


def control(found: Findings, kind: Kind) -> str:
    """What the extra token without verification reaches in the rounds of the best LoPA."""
    choosing, reporting = found.of(kind)
    best = chosen(choosing, reporting, LOPA)
    assert best is not None
    rounds = of_setting(best, choosing).rounds.mean
    fast = [p for p in choosing if p.method == EXTRA.name and p.rounds.mean <= rounds]
    if not fast:
        return (
            "The control, an extra token that nothing verifies, took more rounds than that at "
            "every τ that was measured."
        )
    same = of_setting(max(fast, key=lambda point: point.accuracy.mean), reporting)
    less = best.accuracy.mean - same.accuracy.mean
    if clearly(best.accuracy, same.accuracy):
        end = f"{_points(less)} fewer. Choosing among branches helps"
    elif clearly(same.accuracy, best.accuracy):
        end = f"{_points(-less)} more. Choosing among branches does harm"
    else:
        end = "no clear difference. Nothing shows here that choosing among branches helps"
    return (
        f"The control, an extra token that nothing verifies, solves {_result(same)} at "
        f"τ = {same.tau:g}, its most accurate τ with no more rounds on those other puzzles: {end}."
    )


def lost(found: Findings, kind: Kind) -> str:
    """Where LoPA loses."""
    choosing, reporting = found.of(kind)
    base, best = target(reporting), chosen(choosing, reporting, LOPA)
    threshold = {point.tau: point for point in reporting if point.method == THRESHOLD.name}
    mine = [point for point in reporting if point.method in LOPA]
    sentences = []

    worse = [
        f"τ = {point.tau:g} ({percent(point.accuracy)} % against "
        f"{percent(threshold[point.tau].accuracy)} %)"
        for point in mine
        if (point.method, point.lookaheads) == (PAPER.name, PAPER.lookaheads)
        and clearly(threshold[point.tau].accuracy, point.accuracy)
    ]
    sentences.append(
        f"at the same τ {_by(PAPER.name)} solves "
        + (
            f"fewer than threshold at {_and(worse)}"
            if worse
            else "no fewer than threshold, within twice the errors"
        )
    )
    dear = [p for p in mine if p.tokens_per_forward < threshold[p.tau].tokens_per_forward]
    sentences.append(
        f"Counted by branches read, {len(dear)} of {len(mine)} settings of LoPA fill fewer tokens "
        "than threshold at the same τ"
    )
    never, no_gain = [], []
    for score in dict.fromkeys(point.method for point in mine):
        point = chosen(choosing, reporting, [score])
        if point is None:
            never.append(TITLES[score].removeprefix("LoPA, "))
        elif not clearly(base.rounds, point.rounds):
            no_gain.append(f"{_by(score)} ({decimals(point.rounds)} rounds)")
    if never:
        sentences.append(
            f"Within one point of threshold at τ = {TARGET:g} at no setting: {'; '.join(never)}"
        )
    if no_gain:
        sentences.append("No clear gain, each at its best setting: " + _and(no_gain))
    others = dict.fromkeys(p.method for p in reporting if p.method not in (*LOPA, ONE.name))
    fewer = []
    for name in others:
        point = chosen(choosing, reporting, [name])
        if point is None:
            continue
        is_fewer = (
            not clearly(point.rounds, best.rounds) if best else clearly(base.rounds, point.rounds)
        )
        if is_fewer:
            fewer.append(f"{TITLES[name]} at τ = {point.tau:g} ({_result(point)})")
    if fewer:
        sentences.append(
            (
                "In no more rounds than LoPA, within twice the errors: "
                if best
                else "Others, chosen in the same way, take clearly fewer rounds than threshold: "
            )
            + _and(fewer)
        )
    return f"{KIND_NAMES[kind].capitalize()}: {'. '.join(sentences)}."


def of_branches(found: Findings, kind: Kind) -> str:
    """Figure 4 of the paper, told."""
    points = found.figure4(kind)
    none, some, most = points[0], points[(len(points) - 1) // 2], points[-1]
    steps = "; ".join(f"{_lookaheads(p)}: {_result(p)}" for p in (some, most))
    falls = clearly(none.accuracy, most.accuracy)
    return (
        f"{KIND_NAMES[kind].capitalize()}, {_by(none.method)} at τ = {none.tau:g}: without "
        f"lookaheads {_result(none)}; with {steps}. From {none.lookaheads} to {most.lookaheads} "
        f"accuracy {'falls' if falls else 'does not fall'} by more than twice the error."
    )


def page(found: Findings) -> Page:
    """The report of a guided run."""
    return Page(
        title="triselect · lookahead parallel decoding",
        lead=(
            "A small diffusion language model fills in puzzles, several tokens a round. LoPA "
            "tries one more token in each of several branches, and keeps the branch that the model "
            "is surest of. Does it need fewer rounds, and is it still right?"
        ),
        machine=found.machine,
        tiles=[tile for kind in found.kinds for tile in _tiles(found, kind)],
        sections=[_live(found), _fronts(found), _branches(found), _lost(found)],
        data=found.as_dict(),
    )


def _tiles(found: Findings, kind: Kind) -> list[tuple[str, str]]:
    choosing, reporting = found.of(kind)
    base, best = target(reporting), chosen(choosing, reporting, LOPA)
    name = KIND_NAMES[kind]
    if best is None:
        return [("–", f"{name}: no setting of LoPA came within one point of threshold")]
    return [
        (
            f"{base.rounds.mean / best.rounds.mean:.2f}×",
            f"{name}: rounds of threshold at τ = {TARGET:g} over those of LoPA",
        ),
        (
            f"{100 * best.accuracy.mean:.0f}\u00a0%",
            f"{name}: solved by LoPA there; by threshold {100 * base.accuracy.mean:.0f}\u00a0%",
        ),
    ]


def _live(found: Findings) -> Section:
    prose = [
        "Each cell is in the colour of who filled it: grey was given, green is the anchor, which "
        "takes all tokens above τ, orange, violet and blue are lookaheads 1 to 3, each a token "
        "more. The small number is the round. " + SAME_TAU
    ]
    return Section(
        "A puzzle, round by round",
        prose,
        [
            Figure(
                lopa_figures.replay(replays),
                _asked(kind, replays[0].prompt) + "Move the slider, or play the rounds.",
                KIND_NAMES[kind].capitalize(),
            )
            for kind, replays in found.replays.items()
        ],
    )


def _asked(kind: Kind, prompt: tuple[int, ...]) -> str:
    if kind == "latin":
        return "Each number once in every row and column. "
    return f"Which letters occur in {text(torch.tensor(prompt[1:]))}, and then the end, ¶? "


def _fronts(found: Findings) -> Section:
    choosing, reporting = (points[0].puzzles for points in (found.choosing, found.reporting))
    return Section(
        "Fewer rounds at the same accuracy?",
        [
            f"Every method at every τ. Settings are chosen on {choosing} puzzles and reported on "
            f"{reporting} others; the model was trained on neither. {CONFIRMED}",
            *(verdict(found, kind) for kind in found.kinds),
        ],
        [
            Figure(
                lopa_figures.fronts(found.of(kind)[1]),
                "Puzzles solved against tokens per round, by τ; bars are standard errors over the "
                "puzzles. Up and to the right is better.",
                f"{KIND_NAMES[kind].capitalize()}, by round",
            )
            for kind in found.kinds
        ],
        [
            *(chosen_table(found, kind) for kind in found.kinds),
            *(points_table(found, kind) for kind in found.kinds),
        ],
    )


def _branches(found: Findings) -> Section:
    return Section(
        "More branches",
        [
            "Figure 4 of the paper, for this model: the same τ, more and more lookaheads.",
            *(of_branches(found, kind) for kind in found.kinds),
        ],
        [
            Figure(
                lopa_figures.by_branches(found.figure4(kind)),
                "Rounds and puzzles solved by the number of lookaheads; bars are standard errors.",
                KIND_NAMES[kind].capitalize(),
            )
            for kind in found.kinds
        ],
        [branches_table(found, kind) for kind in found.kinds],
    )


def _lost(found: Findings) -> Section:
    return Section(
        "Where LoPA loses",
        [
            "A round reads all branches. Where that costs as much as reading them one by one, not "
            "tokens per round count but tokens per branch.",
            *(lost(found, kind) for kind in found.kinds),
        ],
        [
            Figure(
                lopa_figures.fronts_by_forward(found.of(kind)[1]),
                "Puzzles solved against tokens per branch that the model read, by τ.",
                f"{KIND_NAMES[kind].capitalize()}, by branch",
            )
            for kind in found.kinds
        ],
    )


def _result(point: Point) -> str:
    return f"{percent(point.accuracy)}\u00a0% in {decimals(point.rounds)} rounds"


def _by(score: str) -> str:
    return TITLES[score].replace("LoPA, ", "LoPA by ")


def _setting(point: Point) -> str:
    return f"{_by(point.method)} with {_lookaheads(point)} at τ = {point.tau:g}"


def _lookaheads(point: Point) -> str:
    return f"{point.lookaheads} lookahead" + "s" * (point.lookaheads != 1)


def _rounds(point: Point, base: Point) -> str:
    """Against another, as a clause."""
    ratio = base.rounds.mean / point.rounds.mean
    if clearly(base.rounds, point.rounds):
        return f"{ratio:.2f} times fewer"
    if clearly(point.rounds, base.rounds):
        return f"{1 / ratio:.2f} times as many"
    return "no clear difference"


def _forwards(point: Point, base: Point) -> str:
    mine, others = point.tokens_per_forward, base.tokens_per_forward
    return (
        f"For each branch that it reads LoPA fills {mine:.2f} tokens, threshold {others:.2f}: "
        + (f"{others / mine:.2f} times fewer." if mine < others else "no fewer.")
    )


def _points(share: float) -> str:
    return f"{100 * share:.1f} points"


def _and(parts: list[str]) -> str:
    return parts[0] if len(parts) == 1 else f"{', '.join(parts[:-1])} and {parts[-1]}"
