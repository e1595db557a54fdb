"""What the report says of budgets of experts."""

from itertools import pairwise

import pytest

pytest.importorskip("jinja2")
pytest.importorskip("safetensors")

import triselect
from triselect.report import budgets, budgets_page


@pytest.fixture(scope="module")
def found():
    return budgets.measure()


def test_a_whole_group_is_no_budget(found):
    assert found[0].kept == 8
    assert (found[0].bytes_saved, found[0].changed, found[0].weight) == (0, 0, 1)


def test_the_smaller_the_budget_the_more_it_saves_and_changes(found):
    assert [row.kept for row in found] == list(range(8, 0, -1))
    for larger, smaller in pairwise(found):
        assert smaller.experts < larger.experts
        assert smaller.bytes_saved > larger.bytes_saved
        assert smaller.changed > larger.changed
        assert smaller.weight < larger.weight


def test_one_of_each_group_by_hand(found):
    """Everyone goes to the eight winners, whose 3 matrices of 128 x 8 in bfloat16 are read."""
    last = found[-1]
    assert last.experts == 8
    assert last.bytes_saved == pytest.approx((found[0].experts - 8) * 3 * 128 * 8 * 2)


def test_the_budget_reaches_the_router(found, monkeypatch):
    def unlimited(logits, budget, **options):
        return triselect.grouped_topk(logits, **options)

    monkeypatch.setattr(triselect, "limit_experts", unlimited)
    assert {row.changed for row in budgets.measure()} == {0}


def test_the_table_says_what_was_measured(found):
    table = budgets_page.table(found)
    assert [row[0] for row in table.rows] == list("87654321")
    assert table.rows[0][2:] == ("0 kB", "0%", "0%", "100%")
    assert "16 sequences" in table.caption
