"""From prompts to texts: ends, streaming, resuming, how many lookaheads, and what is counted."""

import time
from dataclasses import replace
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from triselect import lopa
from triselect.lopa import Config, ToyDenoiser, generate, width
from triselect.lopa.metrics import History, measure

from .cases import prompts, settings, toy

CONFIG = Config(length=32, block_length=8, num_lookaheads=3, look_every=3)
PROMPT = torch.arange(4)[None]


class Tokenizer:
    """A token is a letter."""

    def decode(self, tokens: list[int]) -> str:
        return "".join(chr(97 + t) for t in tokens)


class Streamer:
    def __init__(self) -> None:
        self.got: list[Tensor] = []
        self.ended = False

    def put(self, tokens: Tensor) -> None:
        assert not self.ended
        self.got.append(tokens)

    def end(self) -> None:
        self.ended = True


class Shouting(ToyDenoiser):
    """Prefers the end of text more and more, the further a position is."""

    def __call__(self, tokens: Tensor, start: Tensor, level: Tensor, cache: Any) -> Tensor:
        logits = super().__call__(tokens, start, level, cache)
        place = start[:, None] + torch.arange(tokens.shape[2])
        logits[..., self.eos_token] += (place - 12.0)[:, None] / 2
        return logits


@pytest.mark.parametrize("seed", range(20))
def test_a_text_ends_at_its_first_end_of_text(seed):
    rng = np.random.default_rng(seed)
    model = toy(rng, eos_token=0, shift=False)
    model = Shouting(model.mask_token + 1, eos_token=0, seed=seed)
    config = settings(rng, length=40, block_length=8)
    result = generate(model, prompts(rng, model, 3), config)
    for b, tokens in enumerate(result.tokens):
        assert tokens.dtype == torch.int64
        assert model.mask_token not in tokens
        assert (tokens[:-1] != 0).all()
        if len(tokens) < 40:
            assert tokens[-1] == 0
        assert torch.equal(tokens.int(), result.state.tokens[b, : len(tokens)])
    assert min(map(len, result.tokens)) < 40  # the model does end texts


def test_what_is_behind_the_end_is_not_waited_for():
    model = Shouting(20, eos_token=0)
    result = generate(model, PROMPT, Config(length=64, block_length=8, num_lookaheads=2))
    assert (result.state.tokens == model.mask_token).any()
    assert max(result.metrics.rounds) < 40


def test_ending_twice_is_ending_once():
    model = Shouting(20, eos_token=0)
    done = generate(model, PROMPT, CONFIG)
    again = generate(model, PROMPT, CONFIG, state=done.state)
    assert torch.equal(again.tokens[0], done.tokens[0])
    assert again.metrics[:5] == done.metrics[:5]


def test_on_the_cpu_no_round_is_wasted():
    config = Config(length=32, block_length=8, num_lookaheads=3)
    result = generate(ToyDenoiser(30), PROMPT, config)
    assert len(result.state.widths) == max(result.metrics.rounds)
    seldom = generate(ToyDenoiser(30), PROMPT, replace(config, look_every=7))
    assert len(seldom.state.widths) % 7 == 0


@pytest.mark.parametrize("look_every", [1, 2, 5, 100])
def test_looking_more_often_changes_nothing(look_every):
    model = ToyDenoiser(20, eos_token=0)
    config = Config(length=32, block_length=8, num_lookaheads=3, look_every=look_every)
    result = generate(model, PROMPT, config)
    expected = generate(model, PROMPT, CONFIG)
    assert torch.equal(result.tokens[0], expected.tokens[0])
    assert result.metrics[:5] == expected.metrics[:5]


@pytest.mark.parametrize("side", ["left", "right"])
def test_padding(side):
    model = ToyDenoiser(20)
    given = [torch.arange(n) for n in (3, 7, 1)]
    ids, mask = torch.full((3, 7), 19), torch.zeros(3, 7)
    for row, real, prompt in zip(ids, mask, given, strict=True):
        at = slice(7 - len(prompt), 7) if side == "left" else slice(len(prompt))
        row[at], real[at] = prompt, 1
    padded = generate(model, ids, CONFIG, attention_mask=mask)
    for a, b in zip(padded.tokens, generate(model, given, CONFIG).tokens, strict=True):
        assert torch.equal(a, b)


def test_streaming():
    model = Shouting(20, eos_token=0)
    streamer = Streamer()
    result = generate(model, PROMPT, CONFIG, streamer=streamer)
    assert streamer.ended
    assert torch.equal(streamer.got[0], PROMPT[0])
    assert len(streamer.got) > 2
    assert torch.equal(torch.cat(streamer.got[1:]), result.tokens[0])


def test_stop_strings():
    model = ToyDenoiser(20)
    text = Tokenizer().decode(generate(model, PROMPT, CONFIG).tokens[0].tolist())
    stop = text[9:11]
    end = text.index(stop) + 2
    for stops in (stop, ["never here", stop]):
        result = generate(model, PROMPT, CONFIG, stop_strings=stops, tokenizer=Tokenizer())
        assert Tokenizer().decode(result.tokens[0].tolist()) == text[:end]
        assert result.metrics.tokens == [end]
        assert result.metrics.rounds == [int(result.history.round[0, :end].max())]


def test_resumed():
    model = ToyDenoiser(20, shift=True)
    config = Config(length=32, block_length=8, num_lookaheads=2, temperature=1.0)
    whole = generate(model, PROMPT, config, seed=3)
    part = generate(model, PROMPT, config, seed=3, max_rounds=4)
    assert len(part.state.widths) == 4
    rest = generate(model, PROMPT, config, state=part.state._replace(cache=None))
    assert torch.equal(rest.tokens[0], whole.tokens[0])
    assert rest.metrics[:5] == whole.metrics[:5]


def test_widths_are_saved(tmp_path):
    pytest.importorskip("safetensors")
    part = generate(ToyDenoiser(20), PROMPT, CONFIG, max_rounds=4)
    part.state.save(tmp_path / "x")
    assert lopa.State.load(tmp_path / "x").widths == (3, 3, 3, 3)


def test_files_that_are_no_states(tmp_path):
    safetensors = pytest.importorskip("safetensors.torch")
    path = tmp_path / "x"
    path.write_bytes(b"no tensors")
    with pytest.raises(ValueError, match="is no safetensors file, or a part of one"):
        lopa.State.load(path)
    safetensors.save_file({"tokens": torch.zeros(1)}, path)
    with pytest.raises(ValueError, match="is no state of a run of LoPA"):
        lopa.State.load(path)


def test_seeds():
    model = ToyDenoiser(20, sharpness=0.1)
    config = Config(length=32, block_length=8, num_lookaheads=2, temperature=1.0)
    a, b = (
        generate(model, PROMPT.expand(3, -1), config, seed=torch.tensor([1, 2, 1])) for _ in "ab"
    )
    for x, y in zip(a.tokens, b.tokens, strict=True):
        assert torch.equal(x, y)
    assert torch.equal(a.tokens[0], a.tokens[2])
    assert not torch.equal(a.tokens[0], a.tokens[1])


@pytest.mark.parametrize("options", [{"top_k": 1}, {"top_p": 1e-9}])
def test_sampling_from_the_most_probable_token_is_greedy(options):
    model = ToyDenoiser(20)
    greedy = lopa.Decoder(model, CONFIG).begin([PROMPT[0]])
    config = replace(CONFIG, temperature=5.0, **options)
    sampled = lopa.Decoder(model, config).begin([PROMPT[0]], seed=9)
    assert torch.equal(sampled.predicted.token, greedy.predicted.token)
    assert (sampled.predicted.prob[0, :8] == 1).all()


def test_metrics():
    history = History(
        torch.tensor([[1, 1, 3, 2, 0, 0], [1, 2, 2, 4, 5, 5]]),
        torch.tensor([[0, 2, 0, 1, -1, -1], [0, 0, 0, 1, 0, 1]]),
    )
    m = measure(history, [4, 5], [2, 2, 2, 0, 0, 0], 4.0, 1.0)
    assert m.tokens == [4, 5]
    assert m.rounds == [3, 5]
    assert m.branch_forwards == [9, 11]
    assert m.lookahead_wins == [2, 2]
    assert m.accepted == [1, 5, 2]  # round 3 of the second one filled nothing
    assert m.tokens_per_round == 9 / 8
    assert m.tokens_per_branch_forward == 9 / 20
    assert m.lookahead_win_rate == 4 / 8
    assert m.tokens_per_second == 9 / 4
    assert m.tokens_per_second_after_first == 3


def test_metrics_of_a_run():
    result = generate(ToyDenoiser(20), PROMPT, CONFIG)
    m = result.metrics
    assert m.tokens == [32]
    assert m.rounds == [int(result.history.round.max())]
    assert m.branch_forwards == [4 * m.rounds[0]]
    assert sum(n * count for n, count in enumerate(m.accepted)) == 32
    assert sum(m.accepted) == m.rounds[0]
    assert 0 < m.first_seconds < m.seconds


@pytest.fixture
def clock(monkeypatch):
    """Rounds that take as long with up to `free` branches, and longer with more."""
    clock = SimpleNamespace(free=100, asked=0)

    def seconds(decoder: Any, state: Any, num_lookaheads: int) -> float:
        clock.asked += 1
        return max(1.0, (num_lookaheads + 1) / clock.free)

    monkeypatch.setattr("triselect.lopa.width._seconds", seconds)
    return clock


@pytest.mark.parametrize("free", [1, 3, 100])
def test_as_many_lookaheads_as_cost_nothing(free, clock):
    model = ToyDenoiser(30, sharpness=0.25)
    clock.free = free
    config = Config(length=32, block_length=16, look_every=4, max_lookaheads=5)
    assert generate(model, PROMPT, config).state.widths[0] == min(free - 1, 5)
    asked = clock.asked
    assert generate(model, PROMPT, config).state.widths[0] == min(free - 1, 5)
    assert clock.asked == asked  # measured once


def test_no_lookaheads_without_doubt(clock):
    """What is sure is accepted at once: there is nothing to look ahead to."""
    config = Config(length=32, block_length=16, look_every=1, max_lookaheads=5)
    result = generate(ToyDenoiser(30, sharpness=50.0), PROMPT, config)
    assert max(result.state.widths) < 5


def test_time_is_taken_of_whole_rounds():
    decoder = lopa.Decoder(ToyDenoiser(30), CONFIG)
    state = decoder.begin([PROMPT[0]])
    before = state.tokens.clone()
    begin = time.perf_counter()
    taken = width._seconds(decoder, state, 3)
    assert 0 < taken < time.perf_counter() - begin
    assert torch.equal(state.tokens, before)


def test_bad_input():
    model = ToyDenoiser(20)
    for options, message in (
        ({"input_ids": PROMPT[0]}, r"input_ids must be \(B, P\), got \(4,\)"),
        ({"attention_mask": torch.ones(1, 3)}, r"must be \(1, 4\) as input_ids, got \(1, 3\)"),
        ({"input_ids": [PROMPT[0]], "attention_mask": torch.ones(1, 4)}, "not to a list"),
        ({"stop_strings": "x"}, "stop_strings need a tokenizer"),
        ({"input_ids": PROMPT.expand(2, -1), "streamer": Streamer()}, "one sequence, got 2"),
    ):
        with pytest.raises(ValueError, match=message):
            generate(model, **({"input_ids": PROMPT, "config": CONFIG} | options))


class Broken(ToyDenoiser):
    def __call__(self, tokens: Tensor, *rest: Any) -> Tensor:
        logits = super().__call__(tokens, *rest)
        logits[..., 3 if self.somewhere else 0 :, :] = torch.nan
        return logits

    somewhere = False


def test_logits_that_are_not_finite():
    model = Broken(20)
    with pytest.raises(ValueError, match="logits are NaN or infinite at every position"):
        generate(model, PROMPT, CONFIG)


def test_a_row_that_is_not_finite_comes_last():
    model = Broken(20)
    model.somewhere = True
    config = Config(length=8, block_length=8, num_lookaheads=2, threshold=0.0, cache=False)
    state = lopa.Decoder(model, config).begin([torch.arange(0)])
    assert (state.predicted.prob[0, 3:] == 0).all()
    assert (state.predicted.prob[0, :3] > 0).all()
    state = lopa.Decoder(model, config).step(state)
    assert (state.tokens[0, 3:] == model.mask_token).all()
