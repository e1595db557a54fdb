"""LoPA in a loop like SGLang's, over a runner that keeps what each row wrote into its cache."""

import doctest
from importlib import import_module
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from torch import Tensor

from tests.python.engines.cases import drawn, some_prompts, toy
from triselect.engines import SGLangLoPA
from triselect.lopa import Confidence, Config, Decoder, ToyDenoiser, generate
from triselect.models.masked_diffusion import MaskedDiffusion


class Batch(SimpleNamespace):
    """`input_ids (rows * block_size,)`, a block of each of `batch_size` rows."""


class Runner:
    """Reads one block of each row behind what is cached of that row, and writes its keys over
    those of the pass before.
    """

    def __init__(self, model: Any, prompts: Tensor, rows: int, block: int, blocks: int) -> None:
        prompts = prompts.repeat_interleave(rows, 0)
        self.model, self.block, self.passes = model, block, 0
        self.cache = model.new_cache(len(prompts), prompts.shape[1] + blocks * block)
        lengths = torch.full((len(prompts),), prompts.shape[1], dtype=torch.int32)
        model.prefill(prompts.int(), lengths, self.cache)
        self.start = lengths

    def forward(self, batch: Batch) -> Tensor:
        self.passes += 1
        tokens = batch.input_ids.view(-1, 1, self.block).int()
        level = torch.zeros(len(tokens), self.block, dtype=torch.int32)
        logits: Tensor = self.model(tokens, self.start, level, self.cache)
        return logits.flatten(0, 2)


def algorithm(block: int, mask: int, **options: Any) -> SGLangLoPA:
    return SGLangLoPA(SimpleNamespace(block_size=block, mask_id=mask, algorithm_config=options))


def fresh(algorithm: SGLangLoPA, rows: int) -> Batch:
    ids = torch.full((rows * algorithm.block_size,), algorithm.mask_id)
    return Batch(input_ids=ids, batch_size=rows)


def run_block(algorithm: SGLangLoPA, runner: Runner, batch: Batch) -> None:
    """All rows until the last of them is done."""
    for _ in range(algorithm.block_size + 1):
        if all(algorithm.step(batch, runner.forward(batch), [None] * batch.batch_size)):
            return
    raise AssertionError("a step filled nothing")


def run(algorithm: SGLangLoPA, runner: Runner, blocks: int, first: Tensor | None = None) -> Tensor:
    """``(rows, blocks * block)``, block after block; `first` is the first block's row."""
    found, rows = [], len(runner.start)
    for i in range(blocks):
        batch = fresh(algorithm, rows)
        if first is not None and not i:
            batch.input_ids.copy_(first.repeat(rows))
        run_block(algorithm, runner, batch)
        found.append(batch.input_ids.view(rows, -1))
        runner.start = runner.start + algorithm.block_size
    return torch.cat(found, 1)


def config(block: int, blocks: int, lookaheads: int, **options: Any) -> Config:
    """Of the decoder. It has one block more: at the end of its text a lookahead may fill the last
    position, which saves it a pass, and never does behind a block of SGLang's.
    """
    return Config(
        length=(blocks + 1) * block,
        block_length=block,
        num_lookaheads=lookaheads,
        open_blocks=1,
        add_threshold=1.0,
        activate_threshold=1.0,
        attention="block_causal",
        **options,
    )


@pytest.mark.parametrize("seed", range(40))
def test_tokens_and_passes_are_the_decoder_s(seed: int) -> None:
    block, lookaheads, options = drawn(seed)
    model, blocks, rows = toy(seed), 3, lookaheads + 1
    given = some_prompts(seed, 1 + seed % 3, 1 + seed % 7, model.mask_token + 1)
    runner = Runner(model, given, rows, block, blocks)
    lopa = algorithm(block, model.mask_token, num_lookaheads=lookaheads, **options)
    found = run(lopa, runner, blocks)
    expected = generate(model, given, config(block, blocks, lookaheads, **options))
    for b, tokens in enumerate(expected.tokens):
        for row in found[b * rows : (b + 1) * rows]:
            assert torch.equal(row, tokens[: blocks * block])
    if len(given) == 1:  # of several, SGLang's wait for the slowest in every block
        rounds = int(expected.history.round[0, : blocks * block].max())
        assert runner.passes == rounds + blocks


def test_lookaheads_save_passes() -> None:
    """And win, so that what is compared above is no plain threshold decoding."""
    passes = {}
    for lookaheads in (0, 3):
        passes[lookaheads] = 0
        for seed in range(10):
            model = ToyDenoiser(vocab_size=9, seed=seed)
            runner = Runner(model, some_prompts(seed, 1, 4, 9), lookaheads + 1, 8, 2)
            run(algorithm(8, model.mask_token, num_lookaheads=lookaheads), runner, 2)
            passes[lookaheads] += runner.passes
    assert passes[3] < 0.8 * passes[0]


class Double(MaskedDiffusion):
    """Rounds so little that a row is the same beside others as alone."""

    def logits(self, x: Tensor) -> Tensor:
        return super().logits(x).float()


@torch.inference_mode()
@pytest.mark.parametrize("lookaheads", [0, 2])
def test_a_transformer(lookaheads: int) -> None:
    torch.manual_seed(0)
    model = Double(vocab_size=12, width=16, layers=2, heads=2).double()
    for parameter in model.parameters():
        parameter.normal_()  # not as it is initialised, which says one thing everywhere
    given = some_prompts(0, 2, 5, 12)
    runner = Runner(model, given, lookaheads + 1, 6, 3)
    lopa = algorithm(6, model.mask_token, num_lookaheads=lookaheads, threshold=0.5)
    found = run(lopa, runner, 3)[:: lookaheads + 1]
    expected = generate(model, given, config(6, 3, lookaheads, threshold=0.5))
    assert torch.equal(found, torch.stack([tokens[:18] for tokens in expected.tokens]))
    assert len(found.unique()) > 3


@pytest.mark.parametrize("tail", [1, 3, 5])
def test_the_end_of_a_prompt_in_the_first_block(tail: int) -> None:
    model, given = ToyDenoiser(vocab_size=9, seed=tail), some_prompts(tail, 1, 6 + tail, 9)
    head, first = given[:, :6], torch.full((6,), model.mask_token)
    first[:tail] = given[0, 6:]
    lopa = algorithm(6, model.mask_token, num_lookaheads=2, threshold=0.7)
    found = run(lopa, Runner(model, head, 3, 6, 2), 2, first)

    decoder = Decoder(model, config(6, 2, 2, threshold=0.7))
    state = decoder.begin([head[0]])
    state.tokens[:, :6] = first
    nothing = (
        torch.full_like(x, fill) for x, fill in zip(state.predicted, (-1, 0, 0), strict=True)
    )
    state = state._replace(predicted=Confidence(*nothing))
    while not decoder.done(state).all():
        state = decoder.step(state)
    assert torch.equal(found, state.tokens[:, :12].long().expand(3, -1))
    assert torch.equal(found[0, :tail], given[0, 6:])


@pytest.mark.parametrize("lookaheads", [0, 2])
def test_one_step_at_a_time_for_whatever_blocks_there_are(lookaheads: int) -> None:
    """First done, first out: requests are at different blocks, and come and go."""
    model, rows, block, blocks = ToyDenoiser(vocab_size=9, seed=4), lookaheads + 1, 5, 3
    given = some_prompts(4, 3, 4, 9)
    lopa = algorithm(block, model.mask_token, num_lookaheads=lookaheads, threshold=0.6)
    runner = Runner(model, given, rows, block, blocks + 1)
    texts: list[list[Tensor]] = [[] for _ in given]
    batch, at = fresh(lopa, 3 * rows), set()
    while min(map(len, texts)) < blocks:
        done = lopa.step(batch, runner.forward(batch), [None] * batch.batch_size)
        at.add(tuple(map(len, texts)))
        for b, text in enumerate(texts):
            here = slice(b * rows, (b + 1) * rows)
            assert len(set(done[here])) == 1
            if done[b * rows] and len(text) < blocks:
                ids = batch.input_ids.view(-1, block)[here]
                text.append(ids[0].clone())
                ids.fill_(model.mask_token)
                runner.start[here] += block
    assert any(len(set(lengths)) > 1 for lengths in at)
    expected = generate(model, given, config(block, blocks, lookaheads, threshold=0.6))
    for text, tokens in zip(texts, expected.tokens, strict=True):
        assert torch.equal(torch.cat(text), tokens[: blocks * block])


def test_a_finished_block_stays_and_the_tensor_is_kept() -> None:
    lopa = algorithm(3, 4, num_lookaheads=1)
    ids = torch.tensor([0, 1, 2, 0, 1, 2, 4, 4, 4, 4, 4, 4])
    batch = Batch(input_ids=ids, batch_size=4)
    logits = torch.randn(12, 5, generator=torch.Generator().manual_seed(0))
    states = [None, "a", None, "b"]
    assert lopa.step(batch, logits, states) == [True, True, False, False]
    assert batch.input_ids is ids
    assert ids[:6].tolist() == [0, 1, 2, 0, 1, 2]
    assert (ids[6:].view(2, 3) != 4).sum(-1).tolist() == [1, 2]
    assert states == [None, "a", None, "b"]


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_logits_of_low_precision(dtype: torch.dtype) -> None:
    found = []
    logits = torch.randn(8, 33, generator=torch.Generator().manual_seed(0)).to(dtype)
    for x in (logits, logits.float()):
        lopa = algorithm(4, 32, num_lookaheads=1, threshold=0.05)
        batch = fresh(lopa, 2)
        lopa.step(batch, x, [None] * 2)
        found.append(batch.input_ids)
    assert torch.equal(*found)


def test_logits_that_are_not_numbers_still_come_to_an_end() -> None:
    lopa = algorithm(4, 32, num_lookaheads=2)
    batch, steps = fresh(lopa, 3), 0
    while not all(lopa.step(batch, torch.full((12, 33), torch.nan), [None] * 3)):
        steps += 1
    assert steps == 4
    assert (batch.input_ids != 32).all()


def test_it_needs_only_what_a_base_class_keeps() -> None:
    class Base:
        def __init__(self, config: Any) -> None:
            self.block_size, self.mask_id, self.fdfo = config.block_size, config.mask_id, True

        def step(self, *args: Any) -> list[bool]:
            raise NotImplementedError

    class LoPA(SGLangLoPA, Base):
        def __init__(self, config: Any) -> None:
            Base.__init__(self, config)
            SGLangLoPA.__init__(self, config)

    given = {"block_size": 2, "threshold": 0.5}  # as a file of options holds them
    lopa = LoPA(SimpleNamespace(block_size=2, mask_id=3, algorithm_config=given))
    batch = fresh(lopa, 1)
    assert lopa.step(batch, torch.zeros(2, 4), [None]) == [False]
    assert batch.input_ids.tolist() == [0, 3]
    assert given == {"block_size": 2, "threshold": 0.5}
    assert lopa.fdfo


def test_the_defaults_are_the_engine_s() -> None:
    lopa = algorithm(4, 9).lopa
    assert (lopa.num_lookaheads, lopa.threshold) == (0, 0.95)


@pytest.mark.parametrize(
    ("options", "error", "message"),
    [
        ({"thresold": 0.5}, TypeError, "options must be among .*got 'thresold'"),
        ({"length": 64}, TypeError, "got 'length'"),
        ({"threshold": 1.5}, ValueError, "threshold must be between 0 and 1, got 1.5"),
        ({"num_lookaheads": -1}, ValueError, "num_lookaheads must be at least 0"),
        ({"num_lookaheads": "auto"}, ValueError, 'a row for each, got "auto"'),
        ({"branch_score": "log_prob"}, ValueError, "branch_score must be one of .*got 'log_prob'"),
        ({"score": "entropy"}, ValueError, "score must be one of"),
    ],
)
def test_refuses_options(options: dict[str, Any], error: type[Exception], message: str) -> None:
    with pytest.raises(error, match=message):
        algorithm(4, 9, **options)


def test_refuses_a_model_without_a_mask_token() -> None:
    with pytest.raises(ValueError, match=r"mask_id must be .* got -1"):
        algorithm(4, -1)


def test_refuses_rows_that_are_not_one_request_s() -> None:
    lopa = algorithm(3, 4, num_lookaheads=1)
    logits = torch.zeros(12, 5)
    good = [4, 4, 0, 4, 1, 0]
    for bad in (
        [4, 4, 0, 4, 4, 1],  # a token of the anchor's is another one
        [4, 4, 4, 0, 1, 4],  # two more than the anchor
        [4, 0, 4, 4, 4, 4],  # one less
    ):
        batch = Batch(input_ids=torch.tensor(good + bad), batch_size=4)
        with pytest.raises(ValueError, match=r"2 rows side by side.*rows \[2, 3\] are not"):
            lopa.step(batch, logits, [None] * 4)
        assert batch.input_ids.tolist() == good + bad
    with pytest.raises(ValueError, match=r"2 rows per sequence, .* got 3 rows"):
        lopa.step(fresh(lopa, 3), logits[:9], [None] * 3)


def test_the_example_runs() -> None:
    results = doctest.testmod(import_module("triselect.engines.sglang_lopa"))
    assert results.attempted == 7
    assert results.failed == 0
