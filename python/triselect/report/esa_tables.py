"""What was found about ESA, as tables."""

from dataclasses import dataclass, field
from statistics import mean
from typing import Any

from triselect.models.recall_task import KINDS, Kind
from triselect.report.esa_bytes import Losses
from triselect.report.esa_figures import KIND_NAMES
from triselect.report.esa_methods import CONFIG, FULL, STAND_IN
from triselect.report.esa_questions import Answered
from triselect.report.estimate import Estimate
from triselect.report.page import Table, micro

SHOWN = "exact-1"  # the ESA that sentences are about
SHORT = "dim-8"
BUDGET = CONFIG.budget
NEEDLES: dict[Kind, str] = {
    "value": "needles, one token",
    "values": "needles, four tokens",
    "count": "needles, counting",
}
STAND_INS = (
    "They read chunk by chunk as ESA does, at its positions, with its budget of "
    f"{BUDGET} tokens beside the chunk ({CONFIG.initial} initial, {CONFIG.top_k} selected, "
    f"{CONFIG.local} local), and differ in what they select. Those called {STAND_IN} are not the "
    "published methods: pages of 16 take the best score of each page where Quest bounds it and "
    "InfLLM scores a few tokens of it; the mean query is how TokenSelect and InfLLM make one of "
    "many in prefill; sinks + window keeps the last tokens as StreamingLLM and LM-Infinite do."
)


@dataclass
class Findings:
    """All that a guided run found. `labels`: of the methods, by name."""

    machine: dict[str, Any]
    labels: dict[str, str]
    trained_at: int
    answered: list[Answered] = field(default_factory=list)
    losses: Losses | None = None

    @property
    def lengths(self) -> list[int]:
        return sorted({row.length for row in self.answered})

    def row(self, method: str, kind: Kind, length: int) -> Answered:
        return next(
            row
            for row in self.answered
            if (row.method, row.kind, row.length) == (method, kind, length)
        )

    def as_dict(self) -> dict[str, Any]:
        return {
            "trained_at": self.trained_at,
            "methods": self.labels,
            "answered": [row.as_dict() for row in self.answered],
            "losses": self.losses and self.losses.as_dict(),
        }


def accuracy_table(found: Findings, kind: Kind) -> Table:
    rows = []
    for name, label in found.labels.items():
        cells = []
        for length in found.lengths:
            row = found.row(name, kind, length)
            loses = is_esa(name) and any(
                clearly(other.accuracy, row.accuracy)
                for other in found.answered
                if (other.kind, other.length) == (kind, length) and not is_esa(other.method)
            )
            cells.append("!" * loses + percent(row.accuracy))
        rows.append((label, *cells))
    columns = [f"{n:,} ({n / found.trained_at:g}×)" for n in found.lengths]
    return Table(
        (KIND_NAMES[kind], *columns),
        rows,
        # Below the last of them.
        _accuracy_caption(found) if kind == KINDS[-1] else "",
    )


def _accuracy_caption(found: Findings) -> str:
    texts = ", ".join(str(found.row(FULL.name, KINDS[0], n).texts) for n in found.lengths)
    return (
        f"Right answers in per cent ± standard error over {texts} texts, drawn with two seeds, by "
        f"tokens of the text (and times the {found.trained_at} of the training). An error of 0 "
        "means that all texts had the same share. Red: something that is not ESA is better, by "
        "more than twice the error."
    )


def reading_table(found: Findings) -> Table:
    """At the longest texts: needles found, attention kept, memory."""
    longest = max(found.lengths)
    rows = []
    for name, label in found.labels.items():
        of_kinds = [found.row(name, kind, longest) for kind in KINDS]
        rows.append(
            (
                label,
                f"{mean(row.attended for row in of_kinds):,.0f}",
                *(percent(row.recall) for row in of_kinds),
                f"{100 * mean(row.kept.mean for row in of_kinds):.1f}",
                f"{of_kinds[0].bytes / 2**20:.2f}",
            )
        )
    return Table(
        (
            "way of reading",
            "attended",
            *NEEDLES.values(),
            "attention kept",
            "MiB",
        ),
        rows,
        f"Texts of {longest:,} tokens, at the chunks that ask, in the last layer; full attention "
        "attends to all by definition. Attended: tokens before the chunk that are attended to. "
        "Needles: in per cent, those attended to where they are needed, by kind. Attention kept: "
        "what these tokens have of the softmax over all, at the same positions, in per cent, mean "
        "of the kinds. MiB: the cache of one text, float32, as much as the way needs for what "
        "follows.",
    )


def cost_table(found: Findings) -> Table:
    rows = []
    for name, label in found.labels.items():
        of_lengths = [1e6 * seconds(found, name, length) for length in found.lengths]
        rows.append((label, *map(micro, of_lengths)))
    return Table(
        ("µs per token of the text", *(f"{length:,}" for length in found.lengths)),
        rows,
        "One reading of each batch of texts, layers and all, mean of the kinds of questions; one "
        "reading, so no error bars. Full attention reads whole texts at once, the others chunks "
        f"of {CONFIG.chunk}.",
    )


def losses_table(found: Losses) -> Table:
    by_budget: dict[int, list[str]] = {}
    for row in found.rows:
        cells = by_budget.setdefault(row.top_k, [])
        cells.append(f"{signed(row.over.mean)} ± {row.over.error:.3f}")
    return Table(
        ("selected", *dict.fromkeys(row.label for row in found.rows)),
        [(str(top_k), *cells) for top_k, cells in by_budget.items()],
        f"Bits per byte over full attention's {found.full.mean:.3f} ± {found.full.error:.3f}, ± "
        f"standard error over {found.passages} passages of {found.length} bytes, of the "
        "differences on the same passage.",
    )


def percent(estimate: Estimate) -> str:
    return f"{100 * estimate.mean:.1f} ± {100 * estimate.error:.1f}"


def share(estimate: Estimate) -> str:
    return f"{100 * estimate.mean:.0f}\u00a0%"


def signed(bits: float) -> str:
    """With a sign that is not that of rounding."""
    return f"{round(bits, 3) + 0.0:+.3f}"


def clearly(better: Estimate, worse: Estimate) -> bool:
    error = (better.error**2 + worse.error**2) ** 0.5
    return better.mean > worse.mean + 2 * error


def seconds(found: Findings, method: str, length: int) -> float:
    return mean(found.row(method, kind, length).seconds for kind in KINDS)


def is_esa(method: str) -> bool:
    return method.startswith(("exact", "dim"))
