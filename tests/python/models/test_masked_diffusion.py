"""The small diffusion model: its file, its training, whether what is shipped solves puzzles."""

import json
import re
import sys
from collections.abc import Callable
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
import torch
from torch import Tensor

from triselect.models import MaskedDiffusion, load_masked_diffusion, masked_diffusion
from triselect.models.puzzles import (
    BLOCK,
    EOS,
    KINDS,
    LENGTH,
    MASK,
    VOCABULARY,
    Kind,
    puzzles,
    solved,
)
from triselect.report.lopa_fronts import TARGET, measure
from triselect.report.lopa_methods import THRESHOLD


@pytest.fixture(scope="module")
def example(load_example: Callable[[str], ModuleType]) -> ModuleType:
    return load_example("train_masked_diffusion")


@pytest.fixture(scope="module")
def shipped() -> MaskedDiffusion:
    pytest.importorskip("safetensors")
    return load_masked_diffusion()


def drawn_and_masked(example: ModuleType, kind: Kind) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    drawn = puzzles(0, 1500, kind, held_out=False)
    return (drawn.answers, *example.mask_some(drawn, torch.Generator().manual_seed(0)))


@pytest.mark.parametrize("kind", KINDS)
def test_what_is_masked_is_learnt_and_nothing_else(example: ModuleType, kind: Kind) -> None:
    answers, masked, _, weight = drawn_and_masked(example, kind)
    assert torch.equal(masked == MASK, weight > 0)
    assert torch.equal(masked[weight == 0], answers[weight == 0])
    behind = (answers == EOS).cumsum(1) > 1
    assert ((weight == 0) | (weight >= 1) | behind).all()
    assert (weight[behind] < weight.max() / 5).all(), "little of what is all alike"


def test_squares_lose_any_share_of_their_cells(example: ModuleType) -> None:
    _, masked, level, _ = drawn_and_masked(example, "latin")
    assert (level == 1).all(), "one window"
    lost = (masked == MASK).float().mean(1)
    assert lost.mean().item() == pytest.approx(0.5, abs=0.03)
    assert lost.std().item() == pytest.approx(12**-0.5, abs=0.03)  # evenly from 0 to 1


def test_letters_are_whole_then_lose_more_and_some_blocks_see_each_other(
    example: ModuleType,
) -> None:
    _, masked, level, _ = drawn_and_masked(example, "letters")
    size, blocks = BLOCK["letters"], LENGTH["letters"] // BLOCK["letters"]
    by_block = (masked == MASK).view(-1, blocks, size)
    lost = by_block.float().mean((0, 2))
    assert (lost.diff() > 0).all(), "more of each block than of the one before"
    whole = (~by_block.any(2)).int().cumprod(1).sum(1)
    assert set(whole.unique().tolist()) >= set(range(blocks))
    levels = level.view(-1, blocks, size)
    assert (levels == levels[:, :, :1]).all(), "a block is at one level"
    steps = levels[:, :, 0]
    in_turn = (steps == torch.arange(1, blocks + 1)).all(1)
    assert 0.5 < in_turn.float().mean().item() < 0.8, "half, and windows of one block"
    together = (steps[:, :, None] == steps[:, None]).sum(2).amax(1)
    assert set(together.tolist()) == {1, 2, 3}
    assert (steps.diff(dim=1) >= 0).all()
    # A window begins where nothing before it is missing.
    first = (steps == steps.mode(1, keepdim=True).values).int().argmax(1)
    for row in (~in_turn).nonzero()[:50, 0].tolist():
        assert not by_block[row, : first[row]].any()


def test_the_example_trains_and_writes_what_it_reached(
    example: ModuleType, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(example, "BATCH", 4)
    monkeypatch.setattr(example, "TESTED", 3)
    out = tmp_path / "tiny.safetensors"
    monkeypatch.setattr(sys, "argv", f"x --seed 5 --steps 4 --out {out}".split())
    example.main()

    from safetensors import safe_open

    with safe_open(str(out), "pt") as file:
        about = file.metadata()
    assert (about["seed"], about["steps"]) == ("5", "4")
    reached = json.loads(about["solved"])
    assert set(reached) == set(KINDS)
    assert all(set(shares) == {"one by one", "threshold 0.98"} for shares in reached.values())
    model = load_masked_diffusion(out)
    assert (model.mask_token, model.eos_token) == (MASK, EOS)
    assert [path.name for path in tmp_path.iterdir()] == [out.name]
    torch.manual_seed(5)
    fresh = MaskedDiffusion(VOCABULARY, max_length=example.MAX_LENGTH, eos_token=EOS)
    assert example.train(fresh, seed=5, steps=4) == 4
    for mine, written in zip(fresh.parameters(), model.parameters(), strict=True):
        assert torch.equal(mine.bfloat16().float(), written)


def test_a_model_is_the_same_from_its_file(tmp_path: Path) -> None:
    pytest.importorskip("safetensors")
    torch.manual_seed(0)
    model = MaskedDiffusion(9, width=16, layers=1, heads=2, max_length=20, shift=True, eos_token=3)
    for parameter in model.parameters():
        parameter.data = parameter.data.bfloat16().float()
    path = tmp_path / "model.safetensors"
    masked_diffusion.save_masked_diffusion(model, path, {"seed": "0"})
    again = load_masked_diffusion(path)
    assert not again.training
    assert (again.shift, again.eos_token, again.max_length) == (True, 3, 20)
    tokens, nothing = torch.randint(0, 9, (2, 3, 5)), torch.zeros(2, dtype=torch.int32)
    level = torch.zeros(2, 5, dtype=torch.int32)
    assert torch.equal(model(tokens, nothing, level, None), again(tokens, nothing, level, None))


@pytest.mark.parametrize("kind", KINDS)
def test_the_shipped_model_solves_as_many_as_it_says(shipped: MaskedDiffusion, kind: Kind) -> None:
    from safetensors import safe_open

    assert masked_diffusion.WEIGHTS.stat().st_size < 10e6
    with safe_open(str(masked_diffusion.WEIGHTS), "pt") as file:
        stated = json.loads(file.metadata()["solved"])[kind]
    assert stated["one by one"] >= 0.9
    count = 60
    share = measure(shipped, puzzles(0, count, kind), THRESHOLD, TARGET).accuracy.mean
    said = stated[f"threshold {TARGET}"]
    assert share >= said - 3 * (max(said * (1 - said), 0.01) / count) ** 0.5


def test_the_readme_solves_puzzles(capsys: pytest.CaptureFixture[str]) -> None:
    pytest.importorskip("safetensors")
    readme = (Path(__file__).parents[3] / "README.md").read_text(encoding="utf-8")
    blocks = re.findall(r"```py\n(.*?)```", readme, re.DOTALL)
    names: dict[str, Any] = {}
    exec(next(block for block in blocks if "load_masked_diffusion" in block), names)
    tokens = torch.stack(names["done"].tokens)
    assert names["text"](tokens[0]) in capsys.readouterr().out
    assert solved(names["squares"], tokens).sum() >= 3
    assert max(names["done"].metrics.rounds) < 18
