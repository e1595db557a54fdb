"""The section on the model trained both ways."""

from dataclasses import replace
from statistics import mean

import pytest
import torch

pytest.importorskip("safetensors")
pytest.importorskip("plotly")

from triselect import grouped_topk, models
from triselect.models import byte_moe
from triselect.moe.balance import imbalance_score, straggler_factor
from triselect.report import figures, trained, trained_page
from triselect.report.trained import Trained


@pytest.fixture(scope="module")
def found() -> list[Trained]:
    return trained.measure()


def test_each_model_is_routed_as_it_was_trained_on_its_own_logits(found: list[Trained]) -> None:
    plain, balanced = found
    assert (plain.load.routing, balanced.load.routing) == ("plain", "balanced")
    assert {run.routing for run in plain.runs} == {"top-k"}
    assert {run.routing for run in balanced.runs} == {"moge"}
    assert all(each.runs[0].kept and not any(r.kept for r in each.runs[1:]) for each in found)
    assert {(row.mean, row.straggler) for row in balanced.load.imbalance} == {(0.0, 1.0)}

    (at_1024,) = (row for row in plain.load.imbalance if row.tokens == 1024)
    scores, factors = [], []
    for layer in models.router_logits(byte_moe.TOP_K_ROUTER_LOGITS).logits.float().flatten(1, 2):
        order = torch.randperm(len(layer), generator=torch.Generator().manual_seed(0))
        for batch in layer[order[: len(layer) // 1024 * 1024]].split(1024):
            experts = grouped_topk(batch, 8).experts
            scores.append(imbalance_score(experts, 64, 8).item())
            factors.append(straggler_factor(experts, 64, 8).item())
    assert at_1024.mean == pytest.approx(mean(scores))
    assert at_1024.straggler == pytest.approx(mean(factors))


def test_table_tells_of_both(found: list[Trained]) -> None:
    table = trained_page.table(found)
    rows = {row[0]: dict(zip(table.columns, row, strict=True)) for row in table.rows}
    assert rows.keys() == {"plain", "balanced"}
    assert rows["balanced"]["B=16"] == rows["balanced"]["B=1024"] == "0.00"
    assert float(rows["plain"]["B=1024"]) > 0.09  # that of luck alone
    assert rows["balanced"]["devices"] == "8.0"
    for each in found:
        for run in each.runs:
            assert f"{run.bits_per_byte:.3f}" in rows[each.load.routing]["bits/byte"]


def test_figures_draw_every_run_over_its_steps(found: list[Trained]) -> None:
    found = [
        replace(each, runs=[*each.runs, replace(each.runs[0], seed=9, kept=False)])
        for each in found
    ]
    for figure, value in (
        (figures.loss(found), lambda record: record.bits_per_byte),
        (figures.training_imbalance(found), lambda record: mean(record.imbalance)),
    ):
        runs = [run for each in found for run in each.runs]
        assert len(figure.data) == len(runs)
        for line, run in zip(figure.data, runs, strict=True):
            assert list(line.x) == [record.step for record in run.records]
            assert list(line.y) == [value(record) for record in run.records]
        # One entry for each routing, however many seeds.
        assert [line.name for line in figure.data if line.showlegend] == ["plain", "balanced"]


@pytest.mark.parametrize(
    ("plain", "balanced", "words"),
    [
        ([2.0], [1.5], "one seed each: no evidence"),
        ([2.0, 2.1], [2.05, 2.14], "0.045 bits per byte apart"),
        ([2.0, 2.1], [2.05, 2.14], "up to 0.100: no evidence"),
        ([2.0, 2.1], [1.8, 1.82], "more than seeds differ"),
    ],
)
def test_verdict_claims_no_more_than_seeds_allow(
    found: list[Trained], plain: list[float], balanced: list[float], words: str
) -> None:
    changed = [
        replace(each, runs=[replace(each.runs[0], bits_per_byte=loss) for loss in losses])
        for each, losses in zip(found, (plain, balanced), strict=True)
    ]
    assert words in trained_page.verdict(changed)
