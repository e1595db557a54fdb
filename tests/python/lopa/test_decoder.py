"""A round of LoPA over toy models, against the oracle and against itself told differently."""

from dataclasses import replace
from itertools import pairwise
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode

from triselect import lopa
from triselect.lopa import Config, Decoder, State, ToyDenoiser

from .cases import assert_same, prompts, rounds, settings, toy
from .oracle import assert_as_the_oracle

every_seed = pytest.mark.parametrize("seed", range(25))


@every_seed
def test_the_oracle(seed):
    rng = np.random.default_rng(seed)
    model = toy(rng)
    assert_as_the_oracle(Decoder(model, settings(rng)), prompts(rng, model))


@every_seed
def test_without_a_cache(seed):
    rng = np.random.default_rng(seed)
    model, given = toy(rng), None
    config = settings(rng, attention=str(rng.choice(["full", "block_causal"])))
    given = prompts(rng, model)
    cached, uncached = (Decoder(model, replace(config, cache=c)) for c in (True, False))
    for a, b in zip(
        rounds(cached, cached.begin(given)), rounds(uncached, uncached.begin(given)), strict=True
    ):
        assert_same(a, b)


@every_seed
def test_a_batch_is_its_sequences_one_by_one(seed):
    rng = np.random.default_rng(seed)
    model = toy(rng)
    decoder = Decoder(model, settings(rng, temperature=float(rng.choice([0, 1]))))
    given = prompts(rng, model, 4)
    seeds = torch.arange(4)
    together = rounds(decoder, decoder.begin(given, seed=seeds))[-1]
    for b, prompt in enumerate(given):
        alone = rounds(decoder, decoder.begin([prompt], seed=seeds[b : b + 1]))[-1]
        for name in ("tokens", "filled_at", "filled_by"):
            assert torch.equal(getattr(together, name)[b], getattr(alone, name)[0]), name


class OneByOne:
    """A model that reads branches one after another, the last one first."""

    def __init__(self, model: ToyDenoiser) -> None:
        self.model = model

    def __getattr__(self, name: str) -> Any:
        return getattr(self.model, name)

    def __call__(self, tokens: Tensor, start: Tensor, level: Tensor, cache: Any) -> Tensor:
        found = []
        for j in reversed(range(tokens.shape[1])):
            found.append(self.model(tokens[:, j : j + 1], start, level, cache))
        return torch.cat(found[::-1], 1)


@every_seed
def test_branches_one_after_another(seed):
    rng = np.random.default_rng(seed)
    model, config = toy(rng), settings(rng)
    given = prompts(rng, model)
    runs = [
        rounds(decoder, decoder.begin(given))
        for decoder in (Decoder(model, config), Decoder(OneByOne(model), config))
    ]
    for a, b in zip(*runs, strict=True):
        assert_same(a, b)


def anchor_first(branches: lopa.Branches, new: lopa.Confidence) -> Tensor:
    return -torch.arange(new.prob.shape[1], dtype=torch.float32).expand(new.prob.shape[:2])


@every_seed
def test_a_forced_anchor_is_d2f(seed):
    rng = np.random.default_rng(seed)
    model = toy(rng)
    config = settings(rng, num_lookaheads=3, branch_score=anchor_first)
    given = prompts(rng, model)
    forced, d2f = Decoder(model, config), Decoder(model, replace(config, num_lookaheads=0))
    for a, b in zip(
        rounds(forced, forced.begin(given)), rounds(d2f, d2f.begin(given)), strict=True
    ):
        assert_same(a, b)


@every_seed
def test_resumed_is_undisturbed(seed, tmp_path):
    pytest.importorskip("safetensors")
    rng = np.random.default_rng(seed)
    model = toy(rng)
    decoder = Decoder(model, settings(rng, temperature=float(rng.choice([0, 1]))))
    states = rounds(decoder, decoder.begin(prompts(rng, model), seed=5))
    at = int(rng.integers(len(states)))
    states[at].save(tmp_path / "state.safetensors")
    loaded = State.load(tmp_path / "state.safetensors")
    assert loaded.cache is None
    again = rounds(decoder, decoder.resume(loaded))
    for a, b in zip(states[at:], again, strict=True):
        assert_same(a, b)


@every_seed
def test_every_round_fills_and_nothing_is_taken_back(seed):
    rng = np.random.default_rng(seed)
    model = toy(rng)
    decoder = Decoder(model, settings(rng))
    states = rounds(decoder, decoder.begin(prompts(rng, model)))
    for before, after in pairwise(states):
        masked = before.tokens == model.mask_token
        unfinished = ~decoder.done(before)
        left = (after.tokens == model.mask_token).sum(1)
        assert (left < masked.sum(1))[unfinished].all()
        assert torch.equal(after.tokens[~masked], before.tokens[~masked])
        assert torch.equal(after.tokens[~unfinished], before.tokens[~unfinished])
        assert ((after.added - before.added) <= 1).all()


@every_seed
def test_the_winner_is_worth_the_anchor_or_more(seed, monkeypatch):
    rng = np.random.default_rng(seed)
    model = toy(rng)
    seen = []
    commit = lopa.commit

    def spy(*args: Any, **options: Any) -> lopa.Committed:
        seen.append(commit(*args, **options))
        return seen[-1]

    monkeypatch.setattr("triselect.lopa.decoder.commit", spy)
    decoder = Decoder(model, settings(rng, num_lookaheads=4))
    rounds(decoder, decoder.begin(prompts(rng, model)))
    for committed in seen:
        won = committed.worth.gather(1, committed.winner[:, None].long())[:, 0]
        assert (won >= committed.worth[:, 0]).all()


class Waits(TorchDispatchMode):
    """Counts what makes the host wait for a device."""

    NAMES = ("_local_scalar_dense", "nonzero", "masked_select", "is_nonzero", "equal", "_to_copy")

    def __init__(self) -> None:
        super().__init__()
        self.found: list[str] = []

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        name = func.overloadpacket.__name__
        if name in self.NAMES and not (name == "_to_copy" and "device" not in (kwargs or {})):
            self.found.append(str(func))
        return func(*args, **(kwargs or {}))


@pytest.mark.parametrize("temperature", [0.0, 1.0])
@pytest.mark.parametrize("cache", [True, False])
def test_a_round_never_waits_for_the_device(cache, temperature):
    model = ToyDenoiser(13, shift=True, eos_token=0)
    config = Config(
        length=16,
        block_length=4,
        num_lookaheads=3,
        cache=cache,
        temperature=temperature,
        top_k=5 if temperature else None,
    )
    decoder = Decoder(model, config)
    state = decoder.begin([torch.arange(5), torch.arange(3)])
    with Waits() as waits:
        for _ in range(5):
            state = decoder.step(state)
        assert not waits.found
        assert state.tokens[0, 0].item() >= 0
    assert waits.found == ["aten._local_scalar_dense.default"]  # it does count


def test_one_token_a_round():
    config = Config(length=24, block_length=8, num_lookaheads=0, threshold=1.0, add_threshold=1.0)
    decoder = Decoder(ToyDenoiser(50), config)
    states = rounds(decoder, decoder.begin([torch.arange(4)]))
    assert len(states) == 25
    assert sorted(states[-1].filled_at[0].tolist()) == list(range(1, 25))


def test_lookaheads_need_fewer_rounds():
    """Each round fills what the anchor does, and one more if a lookahead is better."""
    model = ToyDenoiser(30, sharpness=0.5)
    taken = []
    for k in (0, 4):
        config = Config(length=64, block_length=16, num_lookaheads=k, threshold=0.9)
        decoder = Decoder(model, config)
        taken.append(len(rounds(decoder, decoder.begin([torch.arange(4)]))))
    assert taken[1] < 0.8 * taken[0]


@pytest.mark.parametrize("rule", lopa.config.RULES)
def test_every_branch_score(rule):
    model = ToyDenoiser(30, eos_token=1)
    config = Config(
        length=32, block_length=8, num_lookaheads=3, branch_score=rule, score="neg_entropy"
    )
    decoder = Decoder(model, config)
    states = rounds(decoder, decoder.begin([torch.arange(4), torch.arange(7)]))
    assert (states[-1].filled_by > 0).any()  # some lookahead has won


def test_a_branch_score_of_ones_own():
    """The mean, written in PyTorch, is the mean."""

    def mean(branches: lopa.Branches, new: lopa.Confidence) -> Tensor:
        some = branches.open
        total = new.score.where(some, 0.0).double().sum(-1)
        worth = (total / some.sum(-1)).float()
        return worth.masked_fill(~some.any(-1), torch.inf)

    model = ToyDenoiser(30)
    given = [torch.arange(4)]
    final = []
    for rule in ("mean", mean):
        config = Config(length=32, block_length=8, num_lookaheads=3, branch_score=rule)
        decoder = Decoder(model, config)
        final.append(rounds(decoder, decoder.begin(given))[-1])
    assert_same(*final)


def test_compiled():
    model = ToyDenoiser(13, shift=True, eos_token=0)
    config = Config(length=16, block_length=4, num_lookaheads=3)
    decoder = Decoder(model, config)
    state = decoder.begin([torch.arange(5), torch.arange(3)])
    step = torch.compile(decoder.step, fullgraph=True)
    plain = compiled = state
    for _ in range(4):
        plain, compiled = decoder.step(plain), step(compiled)
        assert_same(plain, compiled)


def test_released_rounds_to_16_bits():
    model = ToyDenoiser(30)
    config = Config(length=16, block_length=16, num_lookaheads=3, compatibility="released")
    decoder = Decoder(model, config)
    state = decoder.step(decoder.begin([torch.arange(4)]))
    assert torch.equal(state.predicted.prob, state.predicted.prob.bfloat16().float())


def test_no_length():
    decoder = Decoder(ToyDenoiser(9), Config(length=0, num_lookaheads=0))
    state = decoder.begin([torch.arange(4)])
    assert decoder.done(state).all()
    assert state.tokens.shape == (1, 0)


def test_a_prompt_may_be_empty_where_nothing_is_shifted():
    config = Config(length=8, block_length=4, num_lookaheads=2)
    assert_as_the_oracle(Decoder(ToyDenoiser(9), config), [torch.arange(0), torch.arange(3)])


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"mask_token": None}, "model must have a mask token, got mask_token = None"),
        ({"mask_token": -1}, "model must have a mask token, got mask_token = -1"),
        ({"eos_token": 8}, "mask_token and eos_token must differ, both are 8"),
    ],
)
def test_bad_models(change, message):
    model = ToyDenoiser(9)
    vars(model).update(change)
    with pytest.raises(ValueError, match=message):
        Decoder(model, Config())


def test_no_model():
    with pytest.raises(TypeError, match=r"model must have mask_token, see triselect.lopa.Denoiser"):
        Decoder(object(), Config())


def test_bad_prompts():
    config = Config(length=16, block_length=4, num_lookaheads=0)
    decoder = Decoder(ToyDenoiser(9, shift=True, max_length=20), config)
    for given, message in (
        ([], "at least one prompt"),
        ([torch.zeros(3)], r"must be \(tokens,\) integers, got \(3,\) torch.float32"),
        ([torch.zeros(1, 3, dtype=torch.int64)], r"must be \(tokens,\) integers, got \(1, 3\)"),
        ([torch.arange(0)], "a prompt must have a token"),
        ([torch.arange(5)], "a prompt of 5 tokens and 16 to generate are more than the 20"),
    ):
        with pytest.raises(ValueError, match=message):
            decoder.begin(given)


class OnePositionShort(OneByOne):
    def __call__(self, *args: Any) -> Tensor:
        return super().__call__(*args)[:, :, 1:]


def test_logits_of_another_shape():
    config = Config(length=8, block_length=4, num_lookaheads=0)
    decoder = Decoder(OnePositionShort(ToyDenoiser(9)), config)
    with pytest.raises(ValueError, match=r"logits \(1, 1, 8, 'vocabulary'\), got \(1, 1, 7, 9\)"):
        decoder.begin([torch.arange(3)])


def test_auto_is_for_generate():
    decoder = Decoder(ToyDenoiser(9), Config(length=4, block_length=4))
    with pytest.raises(ValueError, match='num_lookaheads is "auto"'):
        decoder.step(decoder.begin([torch.arange(3)]))
