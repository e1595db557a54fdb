"""Ways of reading within a budget, what they attend to, and the guided run over them."""

import json
import re
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import pytest
import torch

pytest.importorskip("rich")
pytest.importorskip("typer")
pytest.importorskip("plotly")
pytest.importorskip("jinja2")
pytest.importorskip("safetensors")

from typer.testing import CliRunner

from triselect.esa import Config, Rotary
from triselect.models import RecallConfig, RecallModel, episodes, load_recall, router_logits
from triselect.models.recall_task import KINDS
from triselect.report import esa_bytes, esa_figures, esa_page, esa_questions, esa_tables, machine
from triselect.report.commands import app
from triselect.report.esa_methods import CONFIG, DIMS, FULL, Method, all_methods, exact
from triselect.report.esa_questions import Answered
from triselect.report.esa_reading import MeanQuery, Pages, Random, Reading, Selective, Window
from triselect.report.esa_tables import Findings
from triselect.report.estimate import Estimate

ROTARY = Rotary.of(8)


@pytest.fixture(autouse=True)
def no_gradient() -> Iterator[None]:
    with torch.inference_mode():
        yield


@pytest.fixture(scope="module")
def untrained() -> RecallModel:
    torch.manual_seed(0)
    config = RecallConfig(width=32, heads=4, kv_heads=2)
    return RecallModel(config).requires_grad_(False)


@pytest.fixture(scope="module")
def methods(untrained: RecallModel) -> list[Method]:
    return all_methods(esa_questions.calibrate(untrained, length=48))


@pytest.fixture(scope="module")
def found(untrained: RecallModel, methods: list[Method]) -> list[Answered]:
    return esa_questions.measure(untrained, methods, {192: 2, 512: 2})


def chunks(count: int, seed: int = 0) -> list[tuple[torch.Tensor, ...]]:
    draw = torch.Generator().manual_seed(seed)
    heads = (4, 2, 2)
    return [tuple(torch.randn(2, 32, h, 8, generator=draw) for h in heads) for _ in range(count)]


def test_every_way_gives_finite_numbers(found: list[Answered], methods: list[Method]) -> None:
    assert len(found) == len(methods) * len(KINDS) * 2
    for row in found:
        for estimate in (row.accuracy, row.recall, row.kept):
            assert 0 <= estimate.mean <= 1 + 1e-5
            assert 0 <= estimate.error < 1
        assert 0 < row.seconds < 1
        assert row.bytes > 0
        json.dumps(row.as_dict(), allow_nan=False)
        counts = {"value": 2 * 16, "values": 2 * 8 * 4, "count": 0}
        assert sum(depth.answers for depth in row.depths) == counts[row.kind]
        right = sum(depth.right for depth in row.depths)
        assert row.kind == "count" or right == pytest.approx(row.accuracy.mean * counts[row.kind])


def test_the_budget_is_equal(found: list[Answered]) -> None:
    for row in found:
        if row.method == FULL.name:
            assert row.attended == row.length
        elif row.method == "pages":  # the last page before the window is cut short
            assert CONFIG.budget - 16 < row.attended <= CONFIG.budget
        else:
            assert row.attended == CONFIG.budget, row.method


def test_what_is_attended_to_can_be_recalled(found: list[Answered]) -> None:
    for row in found:
        if row.method == FULL.name:
            assert row.recall == row.kept == Estimate(1.0, 0.0)
        else:
            assert row.kept.mean < 1
    recall = {(row.method, row.length): row.recall.mean for row in found if row.kind == "value"}
    # Needles are anywhere: a window of 164 tokens has its share of them, and so have random tokens.
    assert recall["window", 512] == pytest.approx(164 / 512, abs=0.15)
    assert recall["random", 512] == pytest.approx(164 / 512, abs=0.15)
    assert recall["window", 192] > recall["window", 512]


def test_needles_are_looked_for_by_the_chunk_that_asks(
    untrained: RecallModel, methods: list[Method]
) -> None:
    (window,) = esa_questions.measure(untrained, methods[1:2], {192: 16}, kinds=["values"])
    shares = []
    for seed in (0, 1):
        drawn = episodes(seed, 8, 192, "values")
        begin = 192 + (drawn.asked - 192) // 32 * 32  # of the chunk
        assert len(begin.unique()) == 2
        needles = drawn.needles[..., 0]
        shares.append(((needles < 4) | (needles >= begin - 160)).double().mean().item())
    assert window.recall.mean == pytest.approx(sum(shares) / 2)


def test_depths_are_parts_of_the_text(found: list[Answered]) -> None:
    (window,) = (r for r in found if (r.method, r.kind, r.length) == ("window", "value", 512))
    for depth in window.depths[6:]:
        assert depth.found == depth.answers > 0
    assert not any(depth.found for depth in window.depths[1:5])


def test_memory_is_counted(found: list[Answered]) -> None:
    sizes = {row.method: row.bytes for row in found if (row.kind, row.length) == ("value", 512)}
    token = 2 * 2 * 2 * 8 * 4  # layers, keys and values, heads, numbers, bytes
    assert sizes[FULL.name] == sizes["exact-1"] == sizes["pages"] == 512 * token
    assert sizes["window"] == 164 * token
    for dim in DIMS:
        assert sizes[f"dim-{dim}"] == 512 * (token + 2 * dim * 4)


@pytest.mark.parametrize("positions", ["rerope", "original"])
def test_others_read_as_esa_does(positions: str) -> None:
    """They differ in what they select only: with the rule of ESA they are ESA."""
    config = replace(CONFIG, positions=positions)
    one = Reading(config, ROTARY, 1, 512)
    esa = Selective(config, ROTARY, 1, 512)
    one.watching = esa.watching = True
    for q, k, v in chunks(12):
        torch.testing.assert_close(one(0, q, k, v), esa(0, q, k, v), rtol=1e-5, atol=1e-5)
    for mine, theirs in zip(one.looks, esa.looks, strict=True):
        assert torch.equal(mine.budget(), theirs.budget())
        assert torch.equal(
            mine.attended(torch.arange(mine.begin).expand(2, -1)),
            theirs.attended(torch.arange(mine.begin).expand(2, -1)),
        )
        torch.testing.assert_close(mine.kept, theirs.kept, rtol=1e-4, atol=1e-5)
    assert one.nbytes() == esa.nbytes()


def test_attention_kept_is_a_share_of_the_softmax() -> None:
    config = Config(
        initial=1, local=8, top_k=4, proximity=0, chunk=32, scorer="exact", positions="original"
    )
    reading = Reading(config, ROTARY, 1, 96)
    parts = chunks(3)
    reading.watching = True
    for part in parts:
        reading(0, *part)
    look = reading.looks[-1]
    q, k = (torch.cat([part[i] for part in parts], 1) for i in (0, 1))
    q, k = (ROTARY.rotate(x, torch.arange(96)) for x in (q, k))
    b, query, head = 1, 80, 3
    softmax = (k[b, : query + 1, head // 2] @ q[b, query, head] / 8**0.5).softmax(0)
    attended = look.attended(torch.arange(query + 1).expand(2, -1))[b]
    assert attended.sum() == 1 + 4 + 8 + (query + 1 - 64)
    kept = look.kept[b, query - 64, head]
    torch.testing.assert_close(kept, softmax[attended].sum(), rtol=1e-4, atol=1e-5)


def test_pages_are_taken_whole() -> None:
    reading = Pages(replace(CONFIG, top_k=32), ROTARY, 1, 64)
    scores = torch.zeros(2, 72)
    scores[0, 40] = scores[0, 5] = 1.0
    scores[1, 70] = scores[1, 20] = 1.0
    index = reading.select(scores)
    assert index[0].tolist() == [*range(16), *range(32, 48)]
    assert index[1].tolist() == [*range(16, 32), *range(64, 72), *[-1] * 8]


def test_the_mean_query_forgets_what_one_query_wants() -> None:
    config = replace(CONFIG, top_k=1, proximity=0)
    keys = torch.tensor([[9.0, 0], [0, 0], [1, 1]]).view(1, 3, 1, 2)
    queries = torch.tensor([[1.0, 0.0], [-1.0, 0.2]]).view(1, 2, 1, 2)
    assert Reading(config, ROTARY, 1, 3).between(queries, keys).tolist() == [[0]]
    assert MeanQuery(config, ROTARY, 1, 3).between(queries, keys).tolist() == [[2]]


def test_random_tokens_and_the_window_look_at_nothing() -> None:
    q, k, _ = chunks(1)[0]
    k = k.repeat(1, 8, 1, 1)
    drawn = Random(CONFIG, ROTARY, 1, 256).between(q, k)
    assert (drawn.diff(dim=1) > 0).all()
    assert not torch.equal(drawn[0], drawn[1])
    assert torch.equal(Random(CONFIG, ROTARY, 1, 256).between(0 * q, 0 * k), drawn)
    window = Window(CONFIG, ROTARY, 1, 256)
    assert window.between(q, k).shape == (2, 0)
    assert window.config.local == CONFIG.local + CONFIG.top_k


def test_the_shipped_model_remembers_with_esa_what_full_attention_does() -> None:
    model = load_recall()
    ways = [FULL, exact(1)]
    rows = esa_questions.measure(model, ways, {model.config.context: 4, 1024: 4}, kinds=["value"])
    (full, esa), (full_long, esa_long) = rows[:2], rows[2:]
    assert full.accuracy.mean > 0.95
    assert esa.accuracy.mean > 0.95
    assert esa_long.accuracy.mean > full_long.accuracy.mean + 0.1
    assert esa_long.recall.mean > 0.95


def test_calibration_sees_short_texts_only(untrained: RecallModel) -> None:
    seen = []
    forward = untrained.forward
    untrained.forward = lambda tokens, *rest: seen.append(tokens) or forward(tokens, *rest)  # type: ignore[method-assign]
    try:
        compressors = esa_questions.calibrate(untrained, length=48)
    finally:
        del untrained.forward  # type: ignore[method-assign]
    assert len(compressors) == 2
    assert all(c.dim == max(DIMS) for c in compressors)
    assert all(tokens.shape[1] <= 48 + 40 for tokens in seen)
    asked = torch.cat([episodes(seed, 4, 48, "value").tokens for seed in (0, 1)])
    assert not (seen[0][:, None] == asked).all(2).any()  # by other seeds than the questions


def test_budgets_that_cover_everything_lose_nothing_on_real_text(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    seen = []
    calibrate = esa_bytes.calibrate
    monkeypatch.setattr(
        esa_bytes, "calibrate", lambda model, text: seen.append(text) or calibrate(model, text)
    )
    found = esa_bytes.measure((8, 192))
    text = router_logits().text
    assert torch.equal(seen[0], text[: len(text) - found.passages])  # none that is measured on
    assert 2 * found.passages == len(text)
    rows = {(row.method, row.top_k): row for row in found.rows}
    for name in ("window", "random", "exact", "compressed"):
        assert rows[name, 192].over.mean == pytest.approx(0, abs=1e-4), name
    assert 0 < rows["exact", 8].over.mean < rows["random", 8].over.mean
    assert rows["rerope", 192].over.mean > 0.01
    for row in found.rows:
        assert row.bits.mean == pytest.approx(found.full.mean + row.over.mean)


def answered(method: str, kind: str, length: int, accuracy: float, error: float = 0.01) -> Answered:
    half, one = Estimate(0.5, 0.0), Estimate(accuracy, error)
    depths = [esa_questions.Depth(4, 2, 3)] * esa_questions.DEPTHS
    return Answered(method, kind, length, 2, one, half, half, 164.0, 1e-5, 1000, depths)  # type: ignore[arg-type]


@pytest.fixture
def told(methods: list[Method]) -> Findings:
    """Full attention is the best at 256 tokens, pages at counting in 1024, ESA everywhere else."""
    best = {(FULL.name, 256): 0.99, ("exact-1", 1024): 0.9}
    rows = [
        answered(method.name, kind, length, best.get((method.name, length), 0.4))
        for method in methods
        for kind in KINDS
        for length in (256, 1024)
    ]
    rows = [
        replace(row, accuracy=Estimate(0.95, 0.01))
        if (row.method, row.kind, row.length) == ("pages", "count", 1024)
        else row
        for row in rows
    ]
    labels = {method.name: method.title for method in methods}
    return Findings(machine.describe(), labels, 256, rows)


def test_losses_are_told_and_marked(told: Findings) -> None:
    text = " ".join(esa_page.lost(told))
    assert "full attention, no budget at 256 tokens (99\u00a0% against 40\u00a0%)" in text
    assert "pages of 16 (simplified stand-in) at 1,024 tokens (95\u00a0% against 90\u00a0%)" in text
    assert "pages" not in text.split("Counting")[0]
    rows = {row[0]: row for row in esa_tables.accuracy_table(told, "count").rows}
    assert rows["ESA, ε = 1"][1:] == ("!40.0 ± 1.0", "!90.0 ± 1.0")
    assert rows["pages of 16 (simplified stand-in)"][1:] == ("40.0 ± 1.0", "95.0 ± 1.0")

    within = [replace(row, accuracy=replace(row.accuracy, error=0.5)) for row in told.answered]
    text = " ".join(esa_page.lost(replace(told, answered=within)))
    assert "No other way answers more" in text


def test_heat_maps_have_a_cell_for_each_depth_and_length(told: Findings) -> None:
    figure = esa_figures.by_depth(told.answered, "found")
    assert {panel.name for panel in figure.data} >= {"full attention", "ESA, exact", "pages of 16"}
    for panel in figure.data:
        assert list(panel.x) == ["256", "1k"]
        assert [list(row) for row in panel.z] == [[0.75, 0.75]] * esa_questions.DEPTHS


def test_guided_run_writes_one_page(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(esa_questions, "QUICK", {256: 2, 320: 2})
    monkeypatch.setattr(esa_bytes, "BUDGETS", (8, 192))
    out = tmp_path / "page.html"
    result = CliRunner().invoke(app, ["play", "esa", "--quick", "--out", str(out)])
    assert result.exit_code == 0, result.output
    output = re.sub(r"\s+", " ", result.output)
    html = out.read_text(encoding="utf-8")
    data = json.loads(re.search(r'id="data">(.*?)</script>', html, re.DOTALL)[1])  # type: ignore[index]
    assert {row["length"] for row in data["answered"]} == {256, 320}
    assert html.count('class="plot"') == 8
    for page in (output, html):
        assert "simplified stand-in" in page
        assert "here ESA loses" in page
    first = data["answered"][0]["accuracy"]
    assert f"{100 * first['mean']:.1f} ± {100 * first['error']:.1f}" in output
    page = re.sub(r"<script.*?</script>", "", html, flags=re.DOTALL)
    assert not re.search(r"https?:|//|@import|url\(", page)
