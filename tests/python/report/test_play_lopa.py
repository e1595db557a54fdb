"""Puzzles replayed, what is said of made-up measurements, and the guided run over all of it."""

import io
import json
import re
from collections.abc import Iterable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch

pytest.importorskip("rich")
pytest.importorskip("typer")
pytest.importorskip("plotly")
pytest.importorskip("jinja2")
pytest.importorskip("safetensors")

from rich.console import Console
from typer.testing import CliRunner

from triselect import lopa
from triselect.models.masked_diffusion import MaskedDiffusion
from triselect.models.puzzles import EOS, KINDS, MASK, VOCABULARY, Kind, Puzzles, puzzles, solved
from triselect.report import lopa_figures, lopa_page, lopa_replay, lopa_tables, play_lopa
from triselect.report.commands import app
from triselect.report.estimate import Estimate
from triselect.report.lopa_fronts import TARGET, Point, chosen
from triselect.report.lopa_methods import D2F, EXTRA, METHODS, ONE, SCORES, THRESHOLD, methods
from triselect.report.lopa_replay import Fill, Replay
from triselect.report.lopa_tables import Findings

MEAN = SCORES[0]
TAU = 0.5


@pytest.fixture(scope="module")
def untrained() -> MaskedDiffusion:
    """Sure of some of its nonsense, so that rounds differ in what they fill."""
    torch.manual_seed(0)
    model = MaskedDiffusion(VOCABULARY, width=32, layers=1, heads=2, max_length=128, eos_token=EOS)
    model.head.weight.data.mul_(10)
    return model.eval().requires_grad_(False)


@pytest.fixture(scope="module")
def replays(untrained: MaskedDiffusion) -> dict[Kind, list[Replay]]:
    return {
        kind: [
            list(lopa_replay.solve(untrained, puzzles(3, 1, kind), name, method.config(kind, TAU)))[
                -1
            ]
            for name, method in (("LoPA", MEAN), ("threshold", THRESHOLD))
        ]
        for kind in KINDS
    }


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("method", [MEAN, D2F, THRESHOLD, EXTRA], ids=lambda m: m.name)
def test_replays_are_what_generate_did(untrained: MaskedDiffusion, kind: Kind, method: Any) -> None:
    given, config = puzzles(1, 1, kind), method.config(kind, TAU)
    generated = lopa.generate(untrained, given.prompts, config)
    *before, replay = lopa_replay.solve(untrained, given, method.title, config)

    upto = len(generated.tokens[0])
    fills = [replay.fills[at] for at in range(upto)]
    assert [fill.token for fill in fills] == generated.tokens[0].tolist()
    assert [fill.round for fill in fills] == generated.history.round[0, :upto].tolist()
    assert [fill.branch for fill in fills] == generated.history.branch[0, :upto].tolist()
    assert [replay.rounds] == generated.metrics.rounds
    assert [replay.tokens] == generated.metrics.tokens
    assert [sum(map(bool, replay.winners))] == generated.metrics.lookahead_wins
    assert len(replay.winners) == replay.rounds
    assert method.lookaheads == 0 or any(replay.winners)
    assert max(replay.winners) <= method.lookaheads

    # Each round adds to the last, and only the end is judged.
    assert [step.rounds for step in before] == list(range(replay.rounds))
    for step in before:
        assert step.right is None
        assert step.fills == {at: f for at, f in replay.fills.items() if f.round <= step.rounds}
    tokens = torch.full_like(given.answers, MASK)
    for at, fill in replay.fills.items():
        tokens[0, at] = fill.token
    assert replay.right == bool(solved(given, tokens))


@pytest.mark.parametrize("method", [MEAN, THRESHOLD], ids=lambda m: m.name)
def test_probabilities_are_those_that_tau_was_held_against(
    untrained: MaskedDiffusion, method: Any
) -> None:
    *_, replay = lopa_replay.solve(
        untrained, puzzles(1, 1, "latin"), "", method.config("latin", TAU)
    )
    for n in range(1, replay.rounds + 1):
        filled = [fill for fill in replay.fills.values() if fill.round == n]
        anchor = [fill for fill in filled if not fill.branch]
        assert len(anchor) == 1 or all(fill.prob > TAU for fill in anchor)
        assert all(0 < fill.prob <= TAU for fill in filled if fill.branch)
    probabilities = [fill.prob for fill in replay.fills.values()]
    assert min(probabilities) < TAU < max(probabilities)


def test_a_puzzle_that_is_solved_is_said_to_be() -> None:
    given = puzzles(5, 1, "letters")

    class Knows(MaskedDiffusion):
        """The answer, of every third token hardly."""

        def forward(self, tokens: Any, start: Any, level: Any, cache: Any) -> Any:
            at = start[0] - given.prompts.shape[1] + torch.arange(tokens.shape[2])
            answers = given.answers[0, at.clamp_max(given.answers.shape[1] - 1)]
            sure = torch.where(at % 3 == 0, 4.0 + at / 100, 20.0)
            at_answers = answers.expand(tokens.shape)[..., None]
            logits = torch.zeros(*tokens.shape, VOCABULARY)
            return logits.scatter(3, at_answers, sure.expand(tokens.shape)[..., None])

    model = Knows(VOCABULARY, width=32, layers=1, heads=2, max_length=128, eos_token=EOS).eval()
    config = MEAN.config("letters", 0.9)
    *_, replay = lopa_replay.solve(model, given, "", config)
    generated = lopa.generate(model, given.prompts, config)
    assert replay.right is True
    assert replay.end == int((given.answers[0] == EOS).nonzero()[0]) < 23
    assert replay.tokens == replay.end + 1 == generated.metrics.tokens[0]
    assert replay.rounds == generated.metrics.rounds[0] > 1
    rounds = [replay.fills[at].round for at in range(replay.tokens)]
    assert rounds == generated.history.round[0, : replay.tokens].tolist()


SQUARE = (0, 2, *[6] * 35)  # a first token, one clue, blanks
LITTLE = Replay(
    "latin",
    "LoPA",
    SQUARE,
    {0: Fill(2, 1, 0, 0.99), 1: Fill(4, 1, 0, 0.97), 2: Fill(1, 2, 3, 0.4), 3: Fill(0, 2, 0, 0.9)},
    rounds=2,
)


def test_pictures_show_the_round_and_the_branch() -> None:
    console = Console(file=io.StringIO(), width=60, force_terminal=True, color_system="standard")
    console.print(lopa_replay.picture([LITTLE]))
    drawn = console.file.getvalue()  # type: ignore[attr-defined]
    assert "2 rounds, 4 tokens" in drawn
    assert "lookahead that won: ·3" in drawn
    codes = {"anchor": "36", "lookahead 3": "32", "given": "2"}
    assert re.search(rf"\x1b\[{codes['given']}m3₁", drawn)
    assert re.search(rf"\x1b\[{codes['anchor']}m5₁", drawn)
    # What is new stands out.
    assert re.search(rf"\x1b\[7;{codes['lookahead 3']}m2₂", drawn)
    assert re.search(rf"\x1b\[7;{codes['anchor']}m1₂", drawn)
    assert drawn.count("·") == 1 + 32


def test_nothing_is_shown_behind_the_end() -> None:
    fills = {0: Fill(8, 1, 0, 0.9), 1: Fill(EOS, 2, 0, 0.9), 4: Fill(9, 1, 0, 0.9)}
    replay = Replay("letters", "", (34, *[8] * 24), fills, rounds=2, right=True)
    assert replay.tokens == 2
    console = Console(file=io.StringIO(), width=60)
    console.print(lopa_replay.picture([replay]))
    drawn = console.file.getvalue()  # type: ignore[attr-defined]
    assert "2 tokens, solved" in drawn
    assert "b₁  ¶₂" in drawn
    assert "c₁" not in drawn
    assert "·" not in drawn


@pytest.mark.parametrize("looks", [True, False])
def test_rounds_are_shown_one_by_one_where_someone_looks(
    untrained: MaskedDiffusion, looks: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    paused: list[float] = []
    monkeypatch.setattr(lopa_replay.time, "sleep", paused.append)
    console = Console(file=io.StringIO(), width=90, force_terminal=looks)
    given = puzzles(3, 1, "latin")
    first, second = lopa_replay.watch(
        console,
        lopa_replay.solve(untrained, given, "LoPA", MEAN.config("latin", TAU)),
        lopa_replay.solve(untrained, given, "threshold", THRESHOLD.config("latin", TAU)),
    )
    assert first.rounds < second.rounds
    assert None not in (first.right, second.right)
    drawn = console.file.getvalue()  # type: ignore[attr-defined]
    for n in range(1, second.rounds + 1):
        assert (f" {n} rounds, " in drawn) == (looks or n in (first.rounds, second.rounds))
    assert len(paused) == (second.rounds if looks else 0)


@pytest.mark.parametrize("kind", KINDS)
def test_the_slider_has_a_step_for_each_round(
    replays: dict[Kind, list[Replay]], kind: Kind
) -> None:
    figure = lopa_figures.replay(replays[kind])
    last = max(replay.rounds for replay in replays[kind])
    names = [str(n) for n in range(last + 1)]
    (slider,), (button,) = figure.layout.sliders, figure.layout.updatemenus[0].buttons
    assert [step.label for step in slider.steps] == names
    assert [list(step.args[0]) for step in slider.steps] == [[name] for name in names]
    assert [frame.name for frame in figure.frames] == names
    assert slider.active == last
    assert button.method == "animate"
    for i, replay in enumerate(replays[kind]):
        assert json.dumps(figure.data[i].z) == json.dumps(figure.frames[-1].data[i].z)
        for n, frame in enumerate(figure.frames):
            assert list(frame.traces) == [0, 1]
            text = [cell for row in frame.data[i].text for cell in row]
            shown = {at: f for at, f in replay.fills.items() if at <= (replay.end or 99)}
            shown = {at: fill for at, fill in shown.items() if fill.round <= n}
            assert {at for at, cell in enumerate(text) if "<sub>" in cell} == set(shown)
            assert all(text[at].endswith(f"<sub>{f.round}</sub>") for at, f in shown.items())
    assert f"<b>LoPA</b><br>{replays[kind][0].rounds} rounds" in figure.layout.annotations[0].text


def test_cells_have_the_colour_of_who_filled_them() -> None:
    (panel,) = lopa_figures.replay([LITTLE]).data
    open_, given, anchor, third = 0, 1, 2, 5
    assert list(panel.z[0]) == [given, anchor, third, anchor, open_, open_]
    assert len(lopa_figures.COLOURS) == third + 1
    scale = [colour for share, colour in panel.colorscale]
    assert scale[::2] == scale[1::2] == list(lopa_figures.COLOURS)
    assert (panel.zmin, panel.zmax) == (-0.5, third + 0.5)
    assert panel.customdata[0][2] == "2: round 2, lookahead 3, probability 0.400"
    assert panel.customdata[0][0] == "3: round 1, anchor, probability 0.990, given"
    first = lopa_figures.replay([LITTLE]).frames[1].data[0]
    assert list(first.z[0]) == [given, anchor, open_, open_, open_, open_]


def point(method: str, tau: float, accuracy: float, rounds: float, **others: Any) -> Point:
    known = next(m for m in METHODS if m.name == method)
    lookaheads = others.pop("lookaheads", known.lookaheads)
    error = others.pop("error", 0.01)
    branches = lookaheads + 1 if known.verified else 1
    made = Point(
        kind="latin",
        method=method,
        tau=tau,
        lookaheads=lookaheads,
        puzzles=100,
        accuracy=Estimate(accuracy, error),
        rounds=Estimate(rounds, 0.1),
        tokens_per_round=Estimate(36 / rounds, 0.05),
        tokens_per_forward=36 / rounds / branches,
        win_rate=0.5,
    )
    return replace(made, **others)


def made_up(
    choosing: Iterable[Point] = (), reporting: Iterable[Point] = (), kind: Kind = "latin"
) -> Findings:
    """LoPA wins with few points; those that are given replace them."""

    def with_others(points: Iterable[Point]) -> list[Point]:
        usual = [
            point("one", 1.0, 0.97, 36),
            point("threshold", TARGET, 0.95, 12),
            point("threshold", 0.999, 0.96, 16),
            point("extra", TARGET, 0.70, 7),
            point("extra", 0.999, 0.75, 8),
            point("mean", TARGET, 0.80, 6),
            point("mean", 0.999, 0.95, 8),
        ]
        by_setting = {(p.method, p.tau): p for p in (*usual, *points)}
        return [replace(p, kind=kind) for p in by_setting.values()]

    reported = with_others(reporting)
    figure4 = [
        point("mean", TARGET, 0.95 - k / 50, 12 - k, lookaheads=k, kind=kind) for k in range(8)
    ]
    return Findings({}, {}, with_others(choosing), reported, figure4)


def test_settings_are_chosen_on_other_puzzles() -> None:
    # The faster one is good enough where it is reported, but not where it is chosen.
    found = made_up(reporting=[point("mean", TARGET, 0.99, 6)])
    choosing, reporting = found.of("latin")
    best = chosen(choosing, reporting, ["mean", "extra"])
    assert best is not None
    assert (best.method, best.tau, best.accuracy.mean) == ("mean", 0.999, 0.95)
    assert any(best is other for other in reporting)
    assert chosen(choosing, reporting, ["extra"]) is None
    assert chosen(reporting, reporting, ["mean"]).tau == TARGET  # type: ignore[union-attr]
    assert chosen([*choosing, point("mean", 0.99, 0.94, 5)], [point("mean", 0.99, 0.2, 9)], "mean")


def test_exactly_a_point_less_is_within_a_point() -> None:
    for base, less in ((n / 500, (n - 5) / 500) for n in range(5, 501)):
        points = [point("threshold", TARGET, base, 12), point("mean", 0.9, less, 5)]
        assert chosen(points, points, ["mean"]) is points[1]


def test_a_win_is_told_with_its_numbers() -> None:
    text = lopa_page.verdict(made_up(), "latin")
    assert "Latin squares: threshold at τ = 0.98 solves 95.0 ± 1.0\u00a0% in 12.00 ± 0.10" in text
    assert "LoPA by mean probability with 3 lookaheads at τ = 0.999 takes the fewest" in text
    assert "95.0 ± 1.0\u00a0% in 8.00 ± 0.10 rounds, 1.50 times fewer" in text
    assert "does not hold" not in text
    assert "solves 75.0 ± 1.0\u00a0% in 8.00 ± 0.10 rounds at τ = 0.999" in text
    assert "20.0 points fewer. Choosing among branches helps" in text
    assert "fills 1.12 tokens, threshold 3.00: 2.67 times fewer" in text
    assert "One token a round solves 97.0 ± 1.0\u00a0% in 36.00" in text
    assert [number for number, _ in lopa_page._tiles(made_up(), "latin")] == ["1.50×", "95\u00a0%"]


@pytest.mark.parametrize(
    ("reporting", "choosing", "says", "never"),
    [
        pytest.param(
            [point("mean", 0.999, 0.95, 15)],
            [],
            ["1.25 times as many"],
            ["times fewer. The", "no clear difference."],
            id="more rounds",
        ),
        pytest.param(
            [point("mean", 0.999, 0.95, 11.9)], [], ["rounds, no clear difference"], [], id="tie"
        ),
        pytest.param(
            [],
            [point("mean", 0.999, 0.9, 8)],
            [
                "No setting of LoPA came within one point",
                "LoPA by mean probability with 3 lookaheads at τ = 0.999, solves 95.0",
                "% in 8.00 ± 0.10 rounds here, 1.50 times fewer",
            ],
            ["takes the fewest", "control"],
            id="missed",
        ),
        pytest.param(
            [point("mean", 0.999, 0.90, 8)],
            [],
            ["5.0 points below threshold, not within one: what"],
            ["twice"],
            id="does not hold",
        ),
        pytest.param(
            [point("mean", 0.999, 0.93, 8)],
            [],
            ["2.0 points below threshold, not within one, within twice the errors"],
            [],
            id="perhaps it does not hold",
        ),
        pytest.param([point("mean", 0.999, 0.94, 8)], [], [], ["below threshold"], id="one point"),
        pytest.param(
            [point("extra", 0.999, 0.94, 8)],
            [],
            ["no clear difference. Nothing shows"],
            ["Choosing among branches helps", "harm"],
            id="the control is as good",
        ),
        pytest.param(
            [point("extra", 0.999, 0.99, 8)],
            [],
            ["4.0 points more. Choosing among branches does harm"],
            ["helps"],
            id="the control is better",
        ),
        pytest.param(
            [],
            [point("extra", 0.999, 0.75, 8.1)],
            ["solves 70.0 ± 1.0\u00a0% in 7.00 ± 0.10 rounds at τ = 0.98"],
            ["75.0"],
            id="the control in as few rounds",
        ),
        pytest.param(
            [],
            [point("extra", 0.999, 0.75, 9), point("extra", TARGET, 0.7, 9)],
            ["took more rounds than that at every τ that was measured"],
            ["Choosing among"],
            id="the control is slower",
        ),
        pytest.param(
            [point("mean", 0.999, 0.95, 8, tokens_per_forward=4.0)],
            [],
            ["threshold 3.00: no fewer."],
            [],
            id="cheap branches",
        ),
    ],
)
def test_the_verdict_turns_with_the_numbers(
    reporting: list[Point], choosing: list[Point], says: list[str], never: list[str]
) -> None:
    text = lopa_page.verdict(made_up(choosing, reporting), "latin")
    for part in says:
        assert part in text
    for part in never:
        assert part not in text


def test_losses_turn_with_the_numbers() -> None:
    text = lopa_page.lost(made_up(), "latin")
    assert "LoPA by mean probability solves fewer than threshold at τ = 0.98 (80.0 ± 1.0" in text
    assert "0.999 (" not in text
    assert "2 of 2 settings of LoPA fill fewer" in text
    assert "No clear gain" not in text
    assert "In no more rounds" not in text

    better = [
        point("mean", TARGET, 0.94, 11.9),
        point("mean", 0.999, 0.95, 12.1, tokens_per_forward=3.0),
        point("count", TARGET, 0.5, 4),
        point("factor", 0.999, 0.96, 12),
    ]
    text = lopa_page.lost(made_up(better, better), "latin")
    assert "solves no fewer than threshold, within twice the errors" in text
    assert "2 of 3 settings of LoPA fill fewer" in text
    assert "No clear gain, each at its best setting: LoPA by mean probability (11.90 ± 0" in text
    assert "threshold at τ = 0.98 at no setting: number above τ. " in text
    assert "In no more rounds than LoPA, within twice the errors: threshold at τ = 0.98" in text
    assert "Fast-dLLM's factor at τ = 0.999 (96.0 ± 1.0\u00a0% in 12.00" in text


def test_what_others_reach_is_told_where_lopa_does_not() -> None:
    missed = [point("mean", 0.999, 0.9, 8), point("extra", 0.999, 0.95, 8)]
    text = lopa_page.lost(made_up(missed, missed), "latin")
    others = text.split("Others, chosen in the same way, take clearly fewer rounds than ")[1]
    told = "95.0 ± 1.0\u00a0% in 8.00 ± 0.10 rounds"
    assert others == f"threshold: one more, not verified at τ = 0.999 ({told})."
    missed = [point("mean", 0.999, 0.9, 8), point("extra", 0.999, 0.95, 11.9)]
    assert "Others" not in lopa_page.lost(made_up(missed, missed), "latin")


def test_more_branches_are_told_from_the_points() -> None:
    text = lopa_page.of_branches(made_up(), "latin")
    assert "without lookaheads 95.0 ± 1.0\u00a0% in 12.00" in text
    assert "with 3 lookaheads: 89.0 ± 1.0\u00a0% in 9.00" in text
    assert "7 lookaheads: 81.0 ± 1.0\u00a0% in 5.00" in text
    assert "From 0 to 7 accuracy falls by more than twice the error" in text
    found = made_up()
    found.branches = [replace(p, accuracy=Estimate(0.9, 0.01)) for p in found.branches[:3]]
    text = lopa_page.of_branches(found, "latin")
    assert "with 1 lookahead: 90.0" in text
    assert "From 0 to 2 accuracy does not fall by more" in text


def test_tables_mark_what_loses() -> None:
    found = made_up()
    rows = {row[0]: row[1:] for row in lopa_tables.chosen_table(found, "latin").rows}
    assert rows["threshold"] == (
        "0.98",
        "95.0 ± 1.0",
        "12.00 ± 0.10",
        "1.00×",
        "3.00",
    )
    assert rows["LoPA, mean probability"] == (
        *("0.999", "95.0 ± 1.0", "8.00 ± 0.10", "1.50×", "!1.12"),
    )
    assert rows["one by one"][0] == ""
    assert rows["one by one"][3] == "!0.33×"
    assert set(rows["one more, not verified"]) == {""}
    bad = made_up(reporting=[point("mean", 0.999, 0.5, 8)])
    rows = {row[0]: row[1:] for row in lopa_tables.chosen_table(bad, "latin").rows}
    assert rows["LoPA, mean probability"][1] == "!50.0 ± 1.0"

    cells = [row[1] for row in lopa_tables.branches_table(found, "latin").rows]
    assert [cell.startswith("!") for cell in cells] == [False] * 2 + [True] * 6
    every = lopa_tables.points_table(found, "latin")
    assert not every.open
    assert [row[1] for row in every.rows] == ["choosing"] * 7 + ["reporting"] * 7


@pytest.mark.parametrize("kind", KINDS)
def test_fronts_hold_every_method_with_its_errors(kind: Kind) -> None:
    points = [
        point(method.name, tau, 0.9 + tau / 100, 9 + i + tau, error=0.001 * (i + 1), kind=kind)
        for i, method in enumerate(methods(kind))
        for tau in ((0.9, 0.5) if method.swept else (1.0,))
    ]
    assert set(lopa_figures.STYLES) == {method.name for method in METHODS}
    assert len(set(lopa_figures.STYLES.values())) == len(METHODS)
    by_round, by_forward = lopa_figures.fronts(points), lopa_figures.fronts_by_forward(points)
    assert [line.name for line in by_round.data] == [m.title for m in methods(kind)]
    for i, (method, line, other) in enumerate(
        zip(methods(kind), by_round.data, by_forward.data, strict=True)
    ):
        taus = (0.5, 0.9) if method.swept else (1.0,)
        assert list(line.x) == pytest.approx([36 / (9 + i + tau) for tau in taus])
        assert list(line.y) == list(other.y) == pytest.approx([0.9 + tau / 100 for tau in taus])
        assert list(line.error_y.array) == pytest.approx([0.001 * (i + 1)] * len(taus))
        assert list(line.error_x.array) == [0.05] * len(taus)
        branches = method.lookaheads + 1 if method.verified else 1
        assert list(other.x) == pytest.approx([x / branches for x in line.x])
        assert list(other.error_x.array) == pytest.approx([0.05 / branches] * len(taus))
        assert ("τ = 0.5" in line.customdata[0]) == (method is not ONE)


def test_figure_4_shows_rounds_and_accuracy_with_their_errors() -> None:
    rounds, accuracy = lopa_figures.by_branches(made_up().branches).data
    assert list(rounds.x) == list(accuracy.x) == list(range(8))
    assert list(rounds.y) == [12 - k for k in range(8)]
    assert list(accuracy.y) == pytest.approx([0.95 - k / 50 for k in range(8)])
    assert list(rounds.error_y.array) == [0.1] * 8
    assert list(accuracy.error_y.array) == [0.01] * 8
    assert rounds.yaxis != accuracy.yaxis


def test_guided_run_writes_one_page(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    drawn: list[tuple[int, str]] = []

    def draw(seed: int, count: int, kind: Kind) -> Puzzles:
        drawn.append((seed, kind))
        return puzzles(seed, count, kind)  # none that was trained on

    monkeypatch.setattr(play_lopa, "puzzles", draw)
    out = tmp_path / "page.html"
    result = CliRunner().invoke(app, ["play", "lopa", "--quick", "--out", str(out)])
    assert result.exit_code == 0, result.output
    output = re.sub(r"\s+", " ", result.output)
    html = out.read_text(encoding="utf-8")
    data = json.loads(re.search(r'id="data">(.*?)</script>', html, re.DOTALL)[1])  # type: ignore[index]

    size = play_lopa.QUICK
    assert TARGET in size.taus
    assert TARGET in play_lopa.FULL.taus
    for name in ("choosing", "reporting"):
        for kind in KINDS:
            measured = {(p["method"], p["tau"]) for p in data[name] if p["kind"] == kind}
            shown = [m for m in methods(kind) if m not in SCORES or m in size.scores]
            taus = {m.name: size.taus if m.swept else [1.0] for m in shown}
            assert measured == {(m, tau) for m in taus for tau in taus[m]}
            assert {"one", "threshold", "factor", "extra", "mean"} <= set(taus)
    assert len(drawn) == len(set(drawn)) == 3 * len(KINDS)  # to watch, to choose, to report
    assert [p["lookaheads"] for p in data["branches"]] == [*size.lookaheads] * 2
    assert {p["puzzles"] for p in data["reporting"]} == {size.puzzles}
    assert len(data["replays"]) == 4
    for replay in data["replays"]:
        assert len(replay["winners"]) == replay["rounds"]
        assert f"{replay['rounds']} rounds, " in output

    assert html.count('class="plot"') == 8
    for section in (
        "A puzzle, round by round",
        "Fewer rounds at the same accuracy?",
        "More branches",
        "Where LoPA loses",
    ):
        assert section in output
        assert section in html
    # The slider moves between frames: they must be in the page, and its script must hand them on.
    assert html.count('"frames": [{') == len(KINDS)
    assert "Plotly.react(element, {...JSON.parse(text)" in html
    prose = re.sub(r"<script.*?</script>", "", html, flags=re.DOTALL)
    assert not re.search(r"https?:|//|@import|url\(", prose)
    for kind in ("Latin squares", "Letters"):
        assert f"{kind}: threshold at τ = 0.98 solves" in output
        assert f"{kind}: threshold at τ = 0.98 solves" in prose
