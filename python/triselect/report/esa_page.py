"""What was found about ESA, as sentences and a page."""

from triselect.models.recall_task import KINDS
from triselect.report import esa_figures
from triselect.report.esa_bytes import Losses
from triselect.report.esa_figures import KIND_NAMES
from triselect.report.esa_methods import CONFIG, DIMS, FULL, PROXIMITIES
from triselect.report.esa_tables import (
    SHORT,
    SHOWN,
    STAND_INS,
    Findings,
    accuracy_table,
    clearly,
    cost_table,
    is_esa,
    losses_table,
    reading_table,
    seconds,
    share,
    signed,
)
from triselect.report.page import Figure, Page, Section


def verdict(found: Findings) -> str:
    """What the longest texts say."""
    longest = max(found.lengths)
    sentences = []
    for kind in KINDS:
        rows = [found.row(name, kind, longest) for name in found.labels]
        by_name = {row.method: row.accuracy for row in rows}
        other = max(
            (r for r in rows if not is_esa(r.method) and r.method != FULL.name),
            key=lambda row: row.accuracy.mean,
        )
        sentences.append(
            f"{KIND_NAMES[kind].capitalize()}: full attention {share(by_name[FULL.name])}, ESA "
            f"{share(by_name[SHOWN])} with exact scores and {share(by_name[SHORT])} with "
            f"d′ = {SHORT.removeprefix('dim-')}, the best other way within the budget "
            f"{share(other.accuracy)} ({found.labels[other.method]})."
        )
    return (
        f"Right answers at {longest:,} tokens, {longest / found.trained_at:g} times the length of "
        f"the training. {' '.join(sentences)}"
    )


def lost(found: Findings) -> list[str]:
    """Sentences about where ESA loses, and by which settings."""
    sentences = []
    for kind in KINDS:
        worse = []
        for length in found.lengths:
            mine = found.row(SHOWN, kind, length).accuracy
            for name in found.labels:
                row = found.row(name, kind, length)
                if not is_esa(name) and clearly(row.accuracy, mine):
                    worse.append(
                        f"{found.labels[name]} at {length:,} tokens "
                        f"({share(row.accuracy)} against {share(mine)})"
                    )
        if worse:
            sentences.append(f"{KIND_NAMES[kind].capitalize()}: ESA loses to {', '.join(worse)}.")
    if not sentences:
        sentences.append(
            "No other way answers more than ESA with exact scores, by more than twice the error."
        )
    longest = max(found.lengths)
    seen = [share(found.row(SHOWN, "count", n).recall) for n in (min(found.lengths), longest)]
    sentences.append(
        f"Counting needs every mark: ESA with exact scores attended to {seen[0]} of them at "
        f"{min(found.lengths):,} tokens and {seen[1]} at {longest:,}."
    )
    few, many = f"exact-{min(PROXIMITIES)}", f"exact-{max(PROXIMITIES)}"
    reach = []
    for kind in KINDS:
        near, far = (share(found.row(name, kind, longest).accuracy) for name in (few, many))
        reach.append(f"{near} and {far} for {KIND_NAMES[kind]}")
    sentences.append(
        f"A reach of ε = {min(PROXIMITIES)} and {max(PROXIMITIES)} gives {', '.join(reach)} at "
        f"{longest:,} tokens: neighbours of what is found take part of the budget."
    )
    smallest = f"dim-{min(DIMS)}"
    shares, most = (
        [share(found.row(name, kind, longest).accuracy) for kind in KINDS]
        for name in (smallest, f"dim-{max(DIMS)}")
    )
    sentences.append(
        f"Keys compressed to d′ = {min(DIMS)} numbers give {', '.join(shares)} for the same "
        f"kinds, d′ = {max(DIMS)} gives {', '.join(most)}."
    )
    faster = [n for n in found.lengths if seconds(found, FULL.name, n) < seconds(found, SHOWN, n)]
    if faster:
        sentences.append(
            f"Full attention reads faster at {', '.join(f'{n:,}' for n in faster)} tokens than ESA "
            "with exact scores: it reads all at once, and exact scores are products with every key."
        )
    return sentences


def of_bytes(found: Losses) -> str:
    """What the losses on real text say."""
    rows = {(row.method, row.top_k): row.over for row in found.rows}
    most, least = max(row.top_k for row in found.rows), min(row.top_k for row in found.rows)
    exact, window = rows["exact", least], rows["window", least]
    short = rows["compressed", least]
    at_once, apart = (rows[name, most] for name in ("rerope", "exact"))
    sentences = [
        f"With {least} selected tokens ESA costs {signed(exact.mean)} bits per byte with exact "
        f"scores and {signed(short.mean)} with compressed ones, a window of the same budget "
        f"{signed(window.mean)}.",
        f"With {most}, which covers everything, it costs {signed(apart.mean)} at the positions of "
        f"the training, and {signed(at_once.mean)} with all that is not local at one distance.",
    ]
    for name, ours in (("exact", exact), ("compressed", short)):
        if not clearly(window, ours):
            better = "worse" if clearly(ours, window) else "no better, within twice the errors,"
            sentences.append(f"Selecting by {name} scores is {better} than the window there.")
    if clearly(at_once, apart):
        sentences.append("At lengths that a model was trained for, its own positions are better.")
    return " ".join(sentences)


def page(found: Findings) -> Page:
    """The report of a guided run."""
    assert found.losses is not None
    longest = max(found.lengths)
    tiles = [
        (
            f"{share(found.row(name, 'value', longest).accuracy)}",
            f"right answers at {longest / found.trained_at:g}× the training length: "
            f"{found.labels[name]}",
        )
        for name in (FULL.name, SHOWN, SHORT)
    ]
    mine, all_bytes = (found.row(n, "value", longest) for n in (SHOWN, FULL.name))
    tiles.append(
        (
            f"{all_bytes.attended / mine.attended:.0f}×",
            f"fewer tokens attended to than full attention at {longest:,}",
        )
    )
    return Page(
        title="triselect · efficient selective attention",
        lead=(
            "A small model that was trained on short texts is asked about long ones. Within a "
            "fixed budget of tokens, what it attends to decides whether it remembers."
        ),
        machine=found.machine,
        tiles=tiles,
        sections=[
            _questions(found),
            _where(found),
            _settings(found),
            _cost(found),
            _text(found.losses),
        ],
        data=found.as_dict(),
    )


def _questions(found: Findings) -> Section:
    return Section(
        "Questions about long texts",
        [
            "A key with a value of one or of four tokens, or a mark that occurs up to eight times, "
            "somewhere in noise; then the questions: which value, how often? Several needles are "
            "asked for together, so one selection must hold them all.",
            STAND_INS,
            verdict(found),
        ],
        [
            Figure(
                esa_figures.accuracy(found.answered, kind),
                "Right answers by length of the text; bars are standard errors over the texts.",
                KIND_NAMES[kind].capitalize(),
            )
            for kind in KINDS
        ],
        [accuracy_table(found, kind) for kind in KINDS],
    )


def _where(found: Findings) -> Section:
    return Section(
        "Where the needle lies",
        [
            "Values of one token, by the length of the text (across) and the place of the needle "
            "in it (down); the darker, the more. A needle that no one attends to in the last layer "
            "cannot be answered for, but by luck; one that is attended to may still be missed: "
            "full attention attends to all.",
        ],
        [
            Figure(
                esa_figures.by_depth(found.answered, "found"),
                "Needles attended to where they are asked for.",
                "Needle recall",
            ),
            Figure(
                esa_figures.by_depth(found.answered, "right"), "Right answers.", "Right answers"
            ),
        ],
        [reading_table(found)],
    )


def _settings(found: Findings) -> Section:
    return Section(
        "Settings, and where ESA loses",
        lost(found),
        [
            Figure(
                esa_figures.settings(found.answered),
                f"ESA at {max(found.lengths):,} tokens: exact scores with a reach of ε, and scores "
                f"of keys compressed to d′ of 64 numbers (with ε = {CONFIG.proximity}).",
                "Reach and size",
            )
        ],
    )


def _cost(found: Findings) -> Section:
    return Section(
        "What reading costs",
        [
            "Time per token of a text, with the whole model around it; each reading was timed "
            "once. Scores are products with every key before the chunk, of all numbers (exact) or "
            "of a few (d′). Nothing but the window forgets, so the others' memory grows with the "
            "text.",
        ],
        [
            Figure(
                esa_figures.cost(found.answered),
                "Time per token by the length of the text.",
                "Time per token",
            )
        ],
        [cost_table(found)],
    )


def _text(found: Losses) -> Section:
    return Section(
        "Real text, at lengths of the training",
        [
            "The shipped byte-level model reads held-out source text in chunks of 16 bytes, with 4 "
            "initial and 16 local ones and a number of selected ones. Its compressors were "
            "calibrated on other passages.",
            of_bytes(found),
        ],
        [
            Figure(
                esa_figures.losses(found),
                "Bits per byte over full attention; bars are standard errors of the differences "
                "on the same passages.",
                "Loss against budget",
            )
        ],
        [losses_table(found)],
    )
