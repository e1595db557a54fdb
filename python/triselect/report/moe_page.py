"""The guided run's findings as tables and as a page."""

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

from triselect.report import budgets_page, figures, layer_page, loads, trained_page
from triselect.report.budgets import Budget
from triselect.report.capabilities import Backend, Choice
from triselect.report.equivalence import Verdict
from triselect.report.figures import ROUTINGS
from triselect.report.layer import LayerSpeed
from triselect.report.loads import Load
from triselect.report.page import Figure, Page, Section, Table, micro, times
from triselect.report.providers import LABELS, RIVALS, SHORT
from triselect.report.routers import DEEPSEEK_V3, LIMITED, PANGU, PLAIN
from triselect.report.speed import Speed, geometric_mean
from triselect.report.trained import Trained

NAMES = {
    PANGU.name: "Pangu Pro MoE",
    DEEPSEEK_V3.name: "DeepSeek-V3",
    LIMITED.name: "group-limited",
    PLAIN.name: "plain top-8",
}
COMPARED = 16  # tokens of the batch size that the summary quotes
LOGITS_OF = (
    "The logits are those of the model that was trained with balanced routing. So plain and "
    "group-limited routing are what-ifs: nothing taught this model's groups to be equally popular."
)


@dataclass
class Findings:
    """All that a guided run found."""

    machine: dict[str, Any]
    source: str
    backends: list[Backend] = field(default_factory=list)
    choices: list[Choice] = field(default_factory=list)
    verdicts: list[Verdict] = field(default_factory=list)
    not_judged: dict[str, str] = field(default_factory=dict)
    speeds: list[Speed] = field(default_factory=list)
    layers: list[LayerSpeed] = field(default_factory=list)
    loads: list[Load] = field(default_factory=list)
    trained: list[Trained] = field(default_factory=list)
    budgets: list[Budget] = field(default_factory=list)

    def as_dict(self) -> dict[str, Any]:
        return {
            "source": self.source,
            "backends": [backend._asdict() for backend in self.backends],
            "choices": [choice._asdict() for choice in self.choices],
            "verdicts": [verdict.as_dict() for verdict in self.verdicts],
            "not_judged": self.not_judged,
            "speeds": [speed.as_dict() for speed in self.speeds],
            "layers": [row.as_dict() for row in self.layers],
            "loads": [load.as_dict() for load in self.loads],
            "trained": [trained.as_dict() for trained in self.trained],
            "budgets": [budget.as_dict() for budget in self.budgets],
        }


def equivalence_table(found: Findings) -> Table:
    rows = []
    for single, half in zip(found.verdicts[::2], found.verdicts[1::2], strict=True):
        worst = max(single.worst_error, half.worst_error)
        mean = max(single.mean_error, half.mean_error)
        same = [
            f"!{v.identical:,} of {v.tokens:,}" if v.identical < v.tokens else f"all {v.tokens:,}"
            for v in (single, half)
        ]
        router = NAMES[single.router]
        rows.append((_backend(single), router, *same, f"{worst:.1e}", f"{mean:.1e}"))
    columns = ("backend", "router", "same, float32", "same, bfloat16", "worst", "mean")
    caption = (
        "Same: tokens with the same experts in the same order. Errors are those of the weights, "
        "relative to the float64 reference; half a unit in the last place of float32 is 6.0e-08."
    )
    return Table(columns, rows, caption)


def not_judged(found: Findings) -> list[str]:
    return [f"{name} did not run here: {why}." for name, why in found.not_judged.items()]


def _backend(verdict: Verdict) -> str:
    few = verdict.backend == "triton" and verdict.tokens < 100
    return "triton (interpreted)" if few else verdict.backend


def speed_table(found: Sequence[Speed]) -> Table:
    """Microseconds of triselect, and how many times as long the others take."""
    rivals = [name for name in RIVALS if any(name in row.timings for row in found)]
    rows = []
    for row in found:
        mine = row.timings["triselect"]
        spread = f"{micro(mine.p20)}–{micro(mine.p80)}"
        ratios = (times(row.ratio(name)) for name in rivals)
        rows.append((f"{row.tokens:,}", micro(mine.p50), spread, *ratios))
    caption = (
        "Medians of interleaved calls, float32, and how many times as long the others take: "
        "below 1× the other one is faster."
    )
    wide = sum(timing.wide for row in found for timing in row.timings.values())
    if wide:
        caption += f" Wide spreads (p80 over twice p20): {wide}; the machine was busy."
    columns = ("tokens", "triselect, µs", "p20–p80", *(SHORT[name] for name in rivals))
    return Table(columns, rows, caption)


def load_table(found: Sequence[Load]) -> Table:
    sizes = [f"B={row.tokens}" for row in found[0].imbalance]
    rows = []
    for load in found:
        scores = [f"{row.mean:.2f}" for row in load.imbalance]
        name = "random, plain" if load.routing == "simulated" else ROUTINGS[load.routing][0]
        rows.append((name, *scores, f"{load.straggler:.2f}×", f"{load.devices_per_token:.2f}"))
    return Table(
        ("routing", *sizes, "fullest", "devices"),
        rows,
        f"Mean imbalance score of batches of B tokens. Fullest: the fullest device in a batch of "
        f"{loads.SHOWN}, over the mean. Devices: how many a token is sent to. The last row is "
        "simulated: random numbers instead of logits.",
    )


def page(found: Findings) -> Page:
    """The report of a guided run."""
    ratios = {
        name: [r for row in found.speeds if (r := row.ratio(name)) is not None] for name in RIVALS
    }
    same = sum(v.identical for v in found.verdicts)
    judged = sum(v.tokens for v in found.verdicts)
    score, even = (
        next(row.mean for row in each.load.imbalance if row.tokens == COMPARED)
        for each in found.trained
    )
    tiles = [(f"{judged:,}", "routings by all backends, each equal to the float64 reference")]
    if same < judged:
        tiles = [(f"{judged - same:,}", f"of {judged:,} routings differ from the reference")]
    for name in ("composition", "compiled"):
        if ratios[name]:
            what = f"the speed of {_named(name)}: geometric mean of {len(ratios[name])} shapes"
            tiles.append((f"{geometric_mean(ratios[name]):.1f}×", what))
    what = f"imbalance of {COMPARED} tokens: trained with balanced routing, with plain top-8"
    tiles.append((f"{even:.2g} vs {score:.2f}", what))
    return Page(
        title="triselect · grouped top-k routing",
        lead=(
            "A mixture-of-experts layer sends every token to a few experts. Balanced routing "
            "(MoGE, Pangu Pro MoE) takes the same number from every group of experts, so that "
            "every device gets the same work."
        ),
        machine=found.machine,
        tiles=tiles,
        sections=[
            _here(found),
            _equal(found),
            _speed(found),
            layer_page.section(found.layers),
            _balance(found),
            trained_page.section(found.trained),
            budgets_page.section(found.budgets),
        ],
        data=found.as_dict(),
    )


def _named(provider: str) -> str:
    return "the eager composition" if provider == "composition" else LABELS[provider]


def _here(found: Findings) -> Section:
    able = [
        (b.name, b.meaning, "yes" if b.missing is None else f"no: {b.missing}")
        for b in found.backends
    ]
    return Section(
        "What can run here",
        ["One operator, several backends. A backend that you name runs or says why it cannot."],
        tables=[
            Table(("backend", "what it is", "runs here"), able),
            Table(("operator", "device", "auto takes", "because"), found.choices),
        ],
    )


def _equal(found: Findings) -> Section:
    return Section(
        "Equal on every backend",
        [
            f"The input: {found.source}. The reference is NumPy in float64, written like the "
            "paper's formula. Equal means the same experts in the same order. For "
            f"{DEEPSEEK_V3.label} the logits of 4 layers stand side by side. Triton's "
            "interpreter is slow, so it sees a few tokens, and it is never timed.",
            *not_judged(found),
        ],
        tables=[equivalence_table(found)],
    )


def _speed(found: Findings) -> Section:
    plots, tables = [], []
    for router in (PANGU, DEEPSEEK_V3):
        rows = [row for row in found.speeds if row.router == router.name]
        plots.append(Figure(figures.speed(rows), _verdict(rows), router.label))
        table = speed_table(rows)
        tables.append(Table(table.columns, table.rows, f"{router.label}. {table.caption}"))
    reasons = {row.unavailable["compiled"] for row in found.speeds if "compiled" in row.unavailable}
    return Section(
        "Speed against what you would otherwise run",
        [
            "A call of the public function, as a model makes it, against the composition of "
            "PyTorch operators that serving engines use, and against torch.compile of that "
            "composition (compiled once, for any number of tokens). All take turns in one run, and "
            "each was checked to select the same experts first. The dotted line does less: it "
            "selects, and computes neither scores nor weights.",
            *(f"No figures of torch.compile: {reason}." for reason in sorted(reasons)),
        ],
        plots,
        tables,
    )


def _verdict(rows: Sequence[Speed]) -> str:
    """One sentence: how often triselect is the fastest of those that do the same work."""
    lost = [f"{row.tokens:,}" for row in rows if not _wins(row)]
    wins = len(rows) - len(lost)
    text = f"Of those that do all of it, triselect is the fastest at {wins} of {len(rows)} sizes"
    return f"{text}; it loses at {', '.join(lost)} tokens." if lost else f"{text}."


def _wins(row: Speed) -> bool:
    return all((row.ratio(name) or 1) >= 1 for name in ("composition", "compiled"))


def _balance(found: Findings) -> Section:
    plain, limited, balanced, _ = found.loads
    return Section(
        "Load of the devices",
        [
            f"The same logits, 8 of 64 experts per token, routed in three ways; 8 experts live on "
            f"each of {loads.DEVICES} devices. The imbalance score of a batch is the work of the "
            "fullest device less that of the emptiest, per token: all wait for the fullest.",
            f"Devices are counted here, not run. {LOGITS_OF} The next section compares models "
            "that were trained with the routing they use. Batches are tokens of one layer, "
            "shuffled.",
        ],
        [
            Figure(
                figures.imbalance(found.loads),
                "Imbalance shrinks with the batch as luck evens out, and what stays is skew; "
                "balanced routing has none at any size. Bands hold four fifths of the batches.",
                "Imbalance by batch size",
            ),
            Figure(
                figures.trade(found.loads, COMPARED),
                f"The price of balance: a token's data goes to {balanced.devices_per_token:.0f} "
                f"devices instead of {plain.devices_per_token:.1f} (plain) or "
                f"{limited.devices_per_token:.1f} (group-limited). Imbalance at {COMPARED} tokens.",
                "What balance costs",
            ),
            Figure(
                figures.device_load(found.loads),
                f"Experts evaluated by each device for one batch of {loads.SHOWN} tokens in the "
                "first layer, as multiples of the mean.",
                "One batch, device by device",
            ),
        ],
        [load_table(found.loads)],
    )
