"""Budgets of experts, as a table and as a section of the page."""

from collections.abc import Sequence

from triselect.report import budgets
from triselect.report.budgets import Budget
from triselect.report.page import Section, Table


def table(found: Sequence[Budget]) -> Table:
    """A row per budget, from all experts of a group down to one."""
    every = found[0].experts
    rows = [
        (
            str(row.kept),
            f"{row.experts:.1f}",
            f"{row.bytes_saved / 1024:.0f} kB",
            f"{1 - row.experts / every:.0%}",
            f"{row.changed:.0%}",
            f"{row.weight:.0%}",
        )
        for row in found
    ]
    return Table(
        ("of each group", "experts read", "bytes saved", "saved", "changed", "router weight"),
        rows,
        f"Means over decoding steps of {budgets.batch_size()} sequences. Experts read: distinct "
        "experts whose weights a step needs. Changed: assignments that went to another expert. "
        "Router weight: what the chosen experts weigh, against those chosen without a budget.",
    )


def section(found: Sequence[Budget]) -> Section:
    return Section(
        "A budget of experts",
        [
            "A decoding step is as fast as the weights it reads. triselect.limit_experts lets the "
            "tokens of a batch vote, keeps the most-voted experts of every group, and routes again "
            "among those, as vllm-ascend does for Pangu Pro MoE on small devices. These are the "
            "shipped router logits, one token of every sequence at a time. What the model loses "
            "by it was not measured: the last column only says how much of the router's weight "
            "is left.",
        ],
        tables=[table(found)],
    )
