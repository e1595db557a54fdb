"""The model that remembers: its task, reading in chunks, its training, the shipped weights."""

import json
import sys
from collections.abc import Callable
from math import sqrt
from pathlib import Path
from types import ModuleType

import pytest
import torch
from torch import Tensor

from triselect.models import RecallConfig, RecallModel, episodes, load_recall, recall
from triselect.models import recall_task as task
from triselect.models.byte_moe import rotate
from triselect.models.recall_task import KINDS, Kind

TINY = RecallConfig(width=32, heads=4, kv_heads=2, context=24)


@pytest.fixture
def tiny() -> RecallModel:
    torch.manual_seed(0)
    return RecallModel(TINY).requires_grad_(False)


@pytest.fixture(scope="module")
def example(load_example: Callable[[str], ModuleType]) -> ModuleType:
    return load_example("train_recall")


@pytest.fixture(scope="module")
def shipped() -> RecallModel:
    pytest.importorskip("safetensors")
    return load_recall()


class Remembering:
    """Full causal attention that knows the chunks before, written out."""

    def __init__(self, config: RecallConfig) -> None:
        self.config = config
        empty = torch.empty(0)
        self.kv: list[tuple[Tensor, Tensor]] = [(empty, empty)] * config.layers

    def __call__(self, layer: int, q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        past = self.kv[layer]
        k, v = (torch.cat([p, x], 1) if p.numel() else x for p, x in zip(past, (k, v), strict=True))
        self.kv[layer] = k, v
        before, group = k.shape[1] - q.shape[1], self.config.heads // self.config.kv_heads
        padded = torch.cat([q.new_zeros(q.shape[0], before, *q.shape[2:]), q], 1)
        q, k = (rotate(x.transpose(1, 2), self.config.rope_theta) for x in (padded, k))
        k, v = k.repeat_interleave(group, 1), v.transpose(1, 2).repeat_interleave(group, 1)
        scores = q @ k.transpose(2, 3) / sqrt(self.config.head_dim)
        unseen = torch.ones(scores.shape[2:], dtype=torch.bool).triu(1)
        out = scores.masked_fill(unseen, -torch.inf).softmax(-1) @ v
        return out[:, :, before:].transpose(1, 2)


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize(
    ("length", "needles", "questions"), [(24, None, None), (90, 3, 2), (256, None, 1)]
)
def test_answers_can_be_read_off_the_context(
    kind: Kind, length: int, needles: int | None, questions: int | None
) -> None:
    drawn = episodes(3, 5, length, kind, needles=needles, questions=questions)
    size = 1 if kind == "count" else task.VALUE_TOKENS[kind]
    asked = questions or task.most_needles(length, kind)
    assert drawn.tokens.shape == (5, length + asked * (1 + size))
    assert drawn.answers.shape == (5, asked * size)
    assert torch.equal(drawn.tokens[:, drawn.asked + 1], drawn.answers)
    names = drawn.tokens[:, length :: 1 + size]
    assert drawn.asked[::size].tolist() == list(range(length, drawn.tokens.shape[1], 1 + size))
    first_name, last_name = (
        (task.FIRST_MARK, task.FIRST_NUMBER) if kind == "count" else (1, task.FIRST_VALUE)
    )
    for row in range(5):
        context = drawn.tokens[row, :length].tolist()
        assert context[0] == 0
        assert len(set(names[row].tolist())) == asked, "each is asked once"
        written = {token for token in context if first_name <= token < last_name}
        assert len(written) == (needles or task.most_needles(length, kind))
        for i, name in enumerate(names[row].tolist()):
            answer = drawn.answers[row, size * i :][:size].tolist()
            at = [place for place, token in enumerate(context) if token == name]
            places = drawn.needles[row, size * i :][:size]
            if kind == "count":
                assert answer == [task.FIRST_NUMBER + len(at) - 1]
                assert sorted(place for place in places[0].tolist() if place >= 0) == at
            else:
                assert len(at) == 1
                assert answer == context[at[0] + 1 :][:size]
                assert places.flatten().tolist() == list(range(at[0] + 1, at[0] + 1 + size))


@pytest.mark.parametrize("kind", KINDS)
def test_needles_are_everywhere_and_asked_in_any_order(kind: Kind) -> None:
    length = 40
    drawn = episodes(0, 4000, length, kind, needles=2)
    first = 1 if kind == "count" else 2
    found = drawn.needles[drawn.needles >= 0].bincount(minlength=length)
    assert (found[:first] == 0).all()
    assert (found[first:] > 0).all()
    question = drawn.needles.unflatten(1, (2, -1)).amax((2, 3))
    assert (question[:, 0] < question[:, 1]).float().mean().item() == pytest.approx(0.5, abs=0.05)
    if kind == "count":
        assert (drawn.answers - task.FIRST_NUMBER).unique().tolist() == list(range(task.NUMBERS))


def test_episodes_are_the_same_for_the_same_seed() -> None:
    for kind in KINDS:
        one, same, other = (episodes(seed, 4, 64, kind) for seed in (1, 1, 2))
        for a, b in zip(one, same, strict=True):
            assert torch.equal(a, b)
        assert not torch.equal(one.tokens, other.tokens)


def test_errors_of_episodes() -> None:
    with pytest.raises(ValueError, match="kind must be one of value, values, count, got 'words'"):
        episodes(0, 1, 24, "words")  # type: ignore[arg-type]
    with pytest.raises(ValueError, match="needles must be between 1 and 4 in 24 tokens, got 5"):
        episodes(0, 1, 24, "values", needles=5)
    with pytest.raises(ValueError, match="needles must be between 1 and 64 in 400 tokens, got 0"):
        episodes(0, 1, 400, "value", needles=0)
    with pytest.raises(ValueError, match="questions must be between 1 and 3 needles, got 4"):
        episodes(0, 1, 24, "value", needles=3, questions=4)
    with pytest.raises(ValueError, match="needles must be between 1 and 0 in 1 tokens"):
        episodes(0, 1, 1, "value")


@pytest.mark.parametrize("chunk", [1, 3, 16, 40])
def test_reading_in_chunks_is_reading_at_once(tiny: RecallModel, chunk: int) -> None:
    tokens = episodes(0, 3, 24, "values").tokens
    attention = Remembering(TINY)
    parts = [tiny(part, attention) for part in tokens.split(chunk, 1)]
    torch.testing.assert_close(torch.cat(parts, 1), tiny(tokens))


def test_logits_of_the_last_positions_only(tiny: RecallModel) -> None:
    tokens = episodes(0, 3, 24, "count").tokens
    torch.testing.assert_close(tiny(tokens, logits_from=20), tiny(tokens)[:, 20:])


def test_errors_of_the_model(tiny: RecallModel) -> None:
    for tokens in (torch.zeros(3, dtype=torch.long), torch.zeros(2, 3)):
        with pytest.raises(ValueError, match="tokens must be integers"):
            tiny(tokens)
    with pytest.raises(ValueError, match="width must be a multiple of 8, got 12"):
        RecallConfig(width=12)
    with pytest.raises(ValueError, match="heads must be a multiple of 3, got 4"):
        RecallConfig(kv_heads=3)


def test_the_example_grows_contexts_and_writes_what_it_reached(
    example: ModuleType, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    config = RecallConfig(width=64, heads=4, kv_heads=2, context=30)
    monkeypatch.setattr(example.recall, "RecallModel", lambda given=config: RecallModel(given))
    monkeypatch.setattr(example, "LEARNED", -1.0)  # grows at every step
    monkeypatch.setattr(example, "BATCH", 8)
    out = tmp_path / "tiny.safetensors"
    monkeypatch.setattr(sys, "argv", f"x --seed 5 --settle 4 --steps 50 --out {out}".split())
    example.main()

    from safetensors import safe_open

    with safe_open(str(out), "pt") as file:
        about = file.metadata()
    assert about["seed"] == "5"
    assert int(about["steps"]) == 7, "three to grow, four to settle"
    model = load_recall(out)
    assert model.config == config
    stated = json.loads(about["accuracy"])
    assert stated == {kind: round(example.accuracy(model, kind), 4) for kind in KINDS}
    assert [path.name for path in tmp_path.iterdir()] == [out.name]


def test_the_shipped_model_is_small_and_as_right_as_it_says(shipped: RecallModel) -> None:
    from safetensors import safe_open

    assert recall.WEIGHTS.stat().st_size < 5e6
    with safe_open(str(recall.WEIGHTS), "pt") as file:
        stated = json.loads(file.metadata()["accuracy"])
    assert set(stated) == set(KINDS)
    for kind in KINDS:
        drawn = episodes(12345, 64, shipped.config.context, kind)
        found = shipped(drawn.tokens, logits_from=shipped.config.context).argmax(-1)
        right = (found[:, drawn.asked - shipped.config.context] == drawn.answers).float()
        error = right.mean(1).std().item() / sqrt(len(right))
        assert right.mean().item() >= stated[kind] - 3 * error - 0.005, kind
