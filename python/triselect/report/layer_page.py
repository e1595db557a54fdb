"""The speed of a whole MoE layer, as a table and as a section of the page."""

from collections.abc import Sequence

from triselect.report import layer
from triselect.report.layer import LayerSpeed
from triselect.report.page import Section, Table, micro, times

RIVALS = {"grouped_mm": "grouped_mm", "loop": "expert by expert"}


def table(found: Sequence[LayerSpeed]) -> Table:
    """Microseconds of triselect, and how many times as long the others take."""
    rows = []
    for row in found:
        mine = row.timings["triselect"]
        rows.append(
            (
                f"{row.tokens:,}",
                micro(mine.p50),
                f"{micro(mine.p20)}–{micro(mine.p80)}",
                f"{row.rate:.1f}",
                f"{1 / row.ratio('int8'):.2f}×",
                *(times(row.ratio(name)) for name in RIVALS),
            )
        )
    return Table(
        ("tokens", "triselect, µs", "p20–p80", "GB/s", "int8 faster by", *RIVALS.values()),
        rows,
        f"Medians of interleaved calls, bfloat16, {layer.EXPERTS} experts of {layer.HIDDEN} × "
        f"{layer.INTERMEDIATE}, {layer.TOP_K} of them for each token, and how many times as long "
        "the others take: below 1× the other one is faster. GB/s: of expert weights, which is what "
        "a few tokens cost.",
    )


def verdict(found: Sequence[LayerSpeed]) -> str:
    """One sentence: how often triselect is the fastest, in bfloat16."""
    lost = [f"{row.tokens:,}" for row in found if min(map(row.ratio, RIVALS)) < 1]
    text = f"triselect is the fastest at {len(found) - len(lost)} of {len(found)} sizes"
    return f"{text}; it loses at {', '.join(lost)} tokens." if lost else f"{text}."


def section(found: Sequence[LayerSpeed]) -> Section:
    return Section(
        "The whole layer",
        [
            "triselect.fused_moe, behind the router: copies of the tokens in the order of their "
            "experts, gate and up projections with SwiGLU, down projection, and the weighted sum. "
            "Against the two ways in which models are run: expert by expert, and with PyTorch's "
            "grouped products. Each was checked to give the same result first.",
            verdict(found),
        ],
        tables=[table(found)],
    )
