"""What training with each routing gave, as a table and as a section of the page."""

from collections.abc import Sequence
from statistics import mean

from triselect.models import training
from triselect.report import figures, loads
from triselect.report.figures import ROUTINGS
from triselect.report.page import Figure, Section, Table
from triselect.report.trained import Trained

SIZES = (16, 256, 1024)  # tokens of the batches that the table tells of


def table(found: Sequence[Trained]) -> Table:
    """How well each model predicts, and the load of its devices when it reads held-out text."""
    rows = []
    for each in found:
        by_size = {row.tokens: row for row in each.load.imbalance}
        rows.append(
            (
                ROUTINGS[each.load.routing][0],
                ", ".join(f"{run.bits_per_byte:.3f}" for run in each.runs),
                f"{each.runs[0].records[-1].balance_loss:.2f}",
                *(f"{by_size[size].mean:.2f}" for size in SIZES),
                f"{by_size[loads.SHOWN].straggler:.2f}×",
                f"{each.load.devices_per_token:.1f}",
            )
        )
    sizes = (f"B={size}" for size in SIZES)
    return Table(
        ("trained", "bits/byte", "aux", *sizes, "fullest", "devices"),
        rows,
        "Bits/byte: loss on held-out text, by seed; all else is of the first. Aux: balance loss of "
        f"the last {training.EVERY} training batches, 1 is even. The rest is of held-out text, the "
        "logits of each model under its own routing. B: mean imbalance score of B tokens. "
        f"Fullest: the fullest device in batches of {loads.SHOWN}, over the mean. Devices: how "
        "many a token is sent to.",
    )


def verdict(found: Sequence[Trained]) -> str:
    """Whether the losses differ by more than the same training does from seed to seed."""
    losses = [[run.bits_per_byte for run in each.runs] for each in found]
    gap = abs(mean(losses[0]) - mean(losses[1]))
    text = f"The two routings end {gap:.3f} bits per byte apart on held-out text"
    if min(map(len, losses)) < 2:
        return f"{text}, with one seed each: no evidence that either learns better."
    spread = max(max(each) - min(each) for each in losses)
    text = f"{text} in the mean of {len(losses[0])} seeds; seeds of one routing, up to {spread:.3f}"
    if gap <= spread:
        return f"{text}: no evidence that either learns better."
    return f"{text}: more than seeds differ, but seeds are few."


def _seeds(found: Sequence[Trained]) -> str:
    return " Thin lines: other seeds." if any(len(each.runs) > 1 for each in found) else ""


def _busiest(trained: Trained) -> str:
    return f"{100 * max(trained.runs[0].records[-1].largest_share):.0f} %"


def section(found: Sequence[Trained]) -> Section:
    run = found[0].runs[0]
    tokens = run.steps * run.batch_bytes
    return Section(
        "Trained both ways",
        [
            "The byte-level model trained once with plain top-8 and once with balanced routing on "
            f"random passages of the {run.trained_on}, {tokens / 1e6:.1f} MB in all: "
            f"{run.steps:,} steps of {run.batch_bytes:,} bytes, from the same initial weights, the "
            f"same batches in the same order, {run.balance_weight} times the balance loss on top. "
            "Gradients pass through triselect.grouped_topk. Both trainings were recorded when the "
            "shipped models were made, not in this run; the loads in the table are counted in this "
            "run, on text that neither model has seen.",
            f"{verdict(found)} Even devices are not even experts: in the last "
            f"{training.EVERY} batches the busiest expert got {_busiest(found[0])} of the tokens "
            f"under plain routing and {_busiest(found[1])} under balanced (even: 12.5 %; the "
            "largest of all layers).",
        ],
        [
            Figure(
                figures.loss(found),
                f"Loss on the training batches, means over {training.EVERY} steps.{_seeds(found)}",
                "Loss over training",
            ),
            Figure(
                figures.training_imbalance(found),
                f"Imbalance of the {loads.DEVICES} devices when they route those batches of "
                f"{run.batch_bytes:,} tokens, mean of the layers and of {training.EVERY} steps. "
                f"Balanced routing has none at any step, from the first.",
                "Imbalance over training",
            ),
        ],
        [table(found)],
    )
