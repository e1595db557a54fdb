"""LoPA in loops like those of diffusers' pipelines."""

import doctest
import inspect
from importlib import import_module
from typing import Any

import pytest
import torch
from torch import Tensor

from tests.python.engines.cases import drawn, some_prompts, toy
from triselect.engines import LoPAScheduler
from triselect.engines.lopa_round import next_round, settings
from triselect.lopa import Config, ToyDenoiser, generate
from triselect.models.masked_diffusion import MaskedDiffusion


def forward(model: Any, x: Tensor) -> Tensor:
    """Every position sees every other."""
    level = torch.zeros(x.shape, dtype=torch.int32)
    logits: Tensor = model(x[:, None].int(), level[:, 0], level, None)
    return logits[:, 0]


def pipeline(
    model: Any, scheduler: LoPAScheduler, prompts: Tensor, canvas: int, blocks: int = 1
) -> Tensor:
    """A canvas after the other: texts ``(B * (k + 1), prompt + blocks * canvas)``."""
    x = prompts.repeat_interleave(scheduler.config.num_lookaheads + 1, 0)
    for _ in range(blocks):
        x = torch.nn.functional.pad(x, (0, canvas), value=model.mask_token)
        scheduler.set_timesteps(canvas)
        for t in scheduler.timesteps:
            here = x[:, -canvas:]
            x[:, -canvas:] = scheduler.step(forward(model, x)[:, -canvas:], t, here).prev_sample
    return x


def texts(model: Any, prompts: Tensor, blocks: int, config: Config) -> Tensor:
    """Of the decoder, called for one block after the other."""
    for _ in range(blocks):
        prompts = torch.cat([prompts, torch.stack(generate(model, prompts, config).tokens)], 1)
    return prompts


def block_by_block(length: int, block: int, lookaheads: int, **options: Any) -> Config:
    return Config(
        length=length,
        block_length=block,
        num_lookaheads=lookaheads,
        add_threshold=1.0,
        activate_threshold=1.0,
        attention="bidirectional",
        cache=False,
        **options,
    )


@pytest.mark.parametrize("seed", range(30))
def test_block_after_block_is_the_decoder_s(seed: int) -> None:
    block, lookaheads, options = drawn(seed)
    model, rows = toy(seed), lookaheads + 1
    prompts = some_prompts(seed, 1 + seed % 3, seed % 7, model.mask_token + 1)
    scheduler = LoPAScheduler(
        block, num_lookaheads=lookaheads, mask_token_id=model.mask_token, **options
    )
    found = pipeline(model, scheduler, prompts, block, blocks=3)
    expected = texts(model, prompts, 3, block_by_block(block, block, lookaheads, **options))
    assert torch.equal(found, expected.repeat_interleave(rows, 0))


@pytest.mark.parametrize("seed", range(30))
def test_a_canvas_of_blocks_is_the_decoder_s(seed: int) -> None:
    """All blocks are read at once, filled one after the other."""
    block, lookaheads, options = drawn(seed)
    model, rows, canvas = toy(seed), lookaheads + 1, 3 * block
    prompts = some_prompts(seed, 1 + seed % 3, seed % 7, model.mask_token + 1)
    scheduler = LoPAScheduler(
        block, num_lookaheads=lookaheads, mask_token_id=model.mask_token, **options
    )
    found = pipeline(model, scheduler, prompts, canvas)
    expected = texts(model, prompts, 1, block_by_block(canvas, block, lookaheads, **options))
    assert torch.equal(found, expected.repeat_interleave(rows, 0))


class Double(MaskedDiffusion):
    """Rounds so little that a row is the same beside others as alone."""

    def logits(self, x: Tensor) -> Tensor:
        return super().logits(x).float()


@torch.inference_mode()
@pytest.mark.parametrize("lookaheads", [0, 3])
def test_a_transformer(lookaheads: int) -> None:
    torch.manual_seed(0)
    model = Double(vocab_size=12, width=16, layers=2, heads=2).double()
    for parameter in model.parameters():
        parameter.normal_()  # not as it is initialised, which says one thing everywhere
    prompts = some_prompts(0, 2, 5, 12)
    scheduler = LoPAScheduler(8, num_lookaheads=lookaheads, mask_token_id=11, threshold=0.5)
    found = pipeline(model, scheduler, prompts, 8, blocks=2)[:: lookaheads + 1]
    expected = texts(model, prompts, 2, block_by_block(8, 8, lookaheads, threshold=0.5))
    assert torch.equal(found, expected)
    assert len(found[:, 5:].unique()) > 3


def test_without_lookaheads_it_is_threshold_decoding() -> None:
    """Written out: what is above the threshold, or the best."""
    counts = set()
    for seed in range(6):
        model, prompts = ToyDenoiser(vocab_size=9, seed=seed), some_prompts(seed, 1, 4, 9)
        scheduler = LoPAScheduler(6, num_lookaheads=0, mask_token_id=8, threshold=0.8)
        x = torch.nn.functional.pad(prompts, (0, 6), value=8)
        while (x == 8).any():
            logits = forward(model, x)[:, -6:]
            p, token = logits[0, :, :8].softmax(-1).max(-1)
            p = p.masked_fill(x[0, -6:] != 8, 0)
            sure = p > 0.8
            sure[p.argmax()] = True
            expected = token.where(sure, x[0, -6:])
            x[:, -6:] = scheduler.step(logits, 0, x[:, -6:]).prev_sample
            assert torch.equal(x[0, -6:], expected)
            counts.add(int(sure.sum()))
    assert len(counts) > 2


def test_lookaheads_save_steps() -> None:
    steps = {}
    for lookaheads in (0, 3):
        steps[lookaheads] = 0
        for seed in range(10):
            model = ToyDenoiser(vocab_size=9, seed=seed)
            scheduler = LoPAScheduler(12, num_lookaheads=lookaheads, mask_token_id=8)
            x = torch.full((lookaheads + 1, 12), 8)
            while (x[0] == 8).any():
                x = scheduler.step(forward(model, x), 0, x).prev_sample
                steps[lookaheads] += 1
    assert steps[3] < 0.8 * steps[0]


@pytest.mark.parametrize("lookaheads", [0, 2])
@pytest.mark.parametrize("end", [None, 3])
def test_in_a_loop_like_that_of_llada2(lookaheads: int, end: int | None) -> None:
    """It takes over where an index says, asks the scheduler when to stop, and freezes rows that
    have ended; of a row's text what comes before the end counts.
    """
    block, blocks, rows, lengths = 6, 3, lookaheads + 1, set()
    for seed in range(6):
        model, prompts = ToyDenoiser(vocab_size=9, seed=seed), some_prompts(seed, 3, 4, 9)
        scheduler = LoPAScheduler(32, num_lookaheads=lookaheads)
        scheduler.set_timesteps(block, device=torch.device("cpu"), block_length=block)
        x = prompts.repeat_interleave(rows, 0)
        finished, steps = torch.zeros(len(x), dtype=torch.bool), 0
        for _ in range(blocks):
            x = torch.nn.functional.pad(x, (0, block), value=8)
            index, go_on = 0, True
            while go_on:
                here = x[:, -block:]
                masks_remaining = (here == 8).any()
                after = scheduler.step(
                    model_output=forward(model, x)[:, -block:],
                    timestep=index,
                    sample=here,
                    mask_token_id=8,
                    temperature=0.0,
                    top_p=None,
                    top_k=None,
                    sampling_method="multinomial",
                    threshold=0.6,
                    editing_threshold=None,
                    minimal_topk=1,
                    prompt_mask=torch.zeros(block, dtype=torch.bool),
                    generator=None,
                    return_dict=True,
                )
                steps += 1
                assert steps <= blocks * (block + 1)
                index += int(masks_remaining)
                take = after.transfer_index | after.editing_transfer_index
                take = take & ~finished[:, None]
                x[:, -block:] = after.prev_sample.where(take, here)
                if end is not None:
                    finished = scheduler.check_eos_finished(
                        cur_x=x,
                        sampled_tokens=after.sampled_tokens,
                        final_transfer=take,
                        finished=finished,
                        eos_token_id=end,
                        mask_token_id=8,
                        prompt_length=4,
                    )
                go_on = scheduler.check_block_should_continue(
                    step_idx=index,
                    masks_remaining=masks_remaining,
                    editing_enabled=False,
                    editing_transfer_index=after.editing_transfer_index,
                    post_steps=0,
                    max_post_steps=16,
                    finished=finished,
                )
        config = block_by_block(block, block, lookaheads, threshold=0.6)
        for found, full in zip(x[::rows, 4:], texts(model, prompts, blocks, config), strict=True):
            expected = full[4:].tolist()
            if end in expected:
                expected = expected[: expected.index(end) + 1]
            assert found.tolist()[: len(expected)] == expected
            lengths.add(len(expected))
    assert (len(lengths) > 1) is (end is not None)


def test_rows_end_together_and_stay_so() -> None:
    scheduler = LoPAScheduler(2, num_lookaheads=1)
    x = torch.tensor([[3, 1, 3], [3, 1, 3], [3, 4, 3], [3, 0, 3], [3, 0, 0], [3, 0, 3], [3, 4, 4]])
    found = scheduler.check_eos_finished(
        cur_x=torch.cat([x, x[-1:]]),
        finished=torch.tensor([False] * 6 + [True] * 2),
        eos_token_id=3,
        mask_token_id=4,
        prompt_length=1,
    )
    assert found.tolist() == [True, True] + [False] * 4 + [True, True]
    for finished in (found, found | True):
        given: dict[str, Any] = {"step_idx": 0, "masks_remaining": True, "finished": finished}
        assert scheduler.check_block_should_continue(**given) is not bool(finished.all())


def test_what_a_step_returns() -> None:
    scheduler = LoPAScheduler(3, num_lookaheads=1, mask_token_id=4, threshold=0.9)
    sample = torch.tensor([[1, 4, 4], [1, 4, 2]], dtype=torch.int32)
    logits = torch.zeros(2, 3, 5)
    logits[0, 1:, 3] = 1.0
    logits[1, 1, 0] = 1.5
    after = scheduler.step(logits, 0, sample, generator=torch.Generator())
    assert after.prev_sample.tolist() == [[1, 0, 2], [1, 0, 2]]  # the lookahead's, filled up
    assert after.prev_sample.dtype is torch.int32
    assert after.transfer_index.tolist() == [[False, True, True], [False, True, False]]
    assert not after.editing_transfer_index.any()
    assert after.sampled_tokens.tolist() == [[-1, 3, 3], [-1, 0, -1]]
    p = [torch.tensor([x, 0.0, 0, 0]).softmax(0)[0].item() for x in (1.0, 1.5)]
    expected = torch.tensor([[0, p[0], p[0]], [0, p[1], 0]])
    torch.testing.assert_close(after.sampled_probs, expected)
    plain = scheduler.step(logits, 0, sample, return_dict=False)
    assert type(plain) is tuple
    assert all(map(torch.equal, plain, after))
    assert sample.tolist() == [[1, 4, 4], [1, 4, 2]]


def test_rows_without_a_branch_are_not_predicted() -> None:
    """As at first, when all are alike."""
    scheduler = LoPAScheduler(2, num_lookaheads=2, mask_token_id=4)
    after = scheduler.step(torch.eye(5)[:2].expand(3, 2, 5), 0, torch.full((3, 2), 4))
    assert after.sampled_tokens.tolist() == [[0, 1], [-1, -1], [-1, -1]]


def test_a_block_waits_for_the_one_before_whatever_is_behind() -> None:
    scheduler = LoPAScheduler(2, num_lookaheads=0, mask_token_id=4, threshold=0.1)
    sample, logits = torch.tensor([[4, 4, 4, 4, 3, 3]]), torch.eye(5)[[0, 1, 2, 0, 1, 2]][None]
    after = scheduler.step(logits, 0, sample)
    assert after.prev_sample.tolist() == [[0, 1, 4, 4, 3, 3]]
    after = scheduler.step(logits, 0, after.prev_sample)
    assert after.prev_sample.tolist() == [[0, 1, 2, 0, 3, 3]]


def test_branches_may_be_counted_by_the_threshold() -> None:
    """The anchor has two tokens above 0.5, none above 0.9; the lookahead has but its own."""
    logits = torch.zeros(2, 3, 5)
    logits[0, :2, 1] = 2.0
    sample = torch.tensor([[4, 4, 4], [4, 4, 0]])
    for threshold, expected in ((0.5, [1, 1, 4]), (0.9, [0, 4, 0])):
        scheduler = LoPAScheduler(
            3, num_lookaheads=1, mask_token_id=4, threshold=threshold, branch_score="count"
        )
        assert scheduler.step(logits, 0, sample).prev_sample[0].tolist() == expected


def test_a_step_s_own_threshold_and_mask() -> None:
    scheduler = LoPAScheduler(2, num_lookaheads=0, mask_token_id=4)
    logits, sample = torch.eye(5)[None, :2], torch.full((1, 2), 3)
    assert scheduler.step(logits, 0, sample).prev_sample.tolist() == [[3, 3]]  # nothing to fill
    after = scheduler.step(logits, 0, sample, mask_token_id=3, threshold=0.1)
    assert after.prev_sample.tolist() == [[0, 1]]
    assert scheduler.lopa.threshold == 0.95


def test_the_shape_is_diffusers() -> None:
    scheduler = LoPAScheduler()
    assert (scheduler.order, scheduler.config.block_length) == (1, 32)
    assert scheduler.timesteps.tolist() == list(range(31, -1, -1))
    scheduler.set_timesteps(4, device="cpu")
    assert (scheduler.timesteps.tolist(), scheduler.num_inference_steps) == ([3, 2, 1, 0], 4)
    assert (scheduler.config.num_lookaheads, scheduler.config.threshold) == (3, 0.95)
    config = LoPAScheduler(8, 8, mask_token_id=5, threshold=0.7, score="margin").config
    assert (config.mask_token_id, config.threshold, config.score) == (5, 0.7, "margin")
    step = inspect.signature(LoPAScheduler.step).parameters
    assert list(step)[:4] == ["self", "model_output", "timestep", "sample"]


def test_nothing_waits_for_the_device() -> None:
    """What would wait breaks the graph."""
    config = settings(4, num_lookaheads=2)

    def step(tokens: Tensor, logits: Tensor) -> Tensor:
        return next_round(tokens, logits, config, 8, blocks_to_come=False).tokens

    tokens, logits = torch.full((6, 8), 8), torch.randn(6, 8, 9)
    compiled = torch.compile(step, fullgraph=True, backend="eager")
    assert torch.equal(compiled(tokens, logits), step(tokens, logits))


@pytest.mark.parametrize(
    ("options", "error", "message"),
    [
        ({"thresold": 0.5}, TypeError, "options must be among .*got 'thresold'"),
        ({"block_length": 0}, ValueError, "block_length must be at least 1"),
        ({"num_inference_steps": 0}, ValueError, "num_inference_steps must be at least 1, got 0"),
        ({"num_lookaheads": 1.5}, TypeError, "num_lookaheads must be an int"),
        ({"num_lookaheads": "auto"}, ValueError, 'a row for each, got "auto"'),
        ({"branch_score": "information_gain"}, ValueError, "branch_score must be one of"),
        ({"temperature": 0.5}, TypeError, "got 'temperature'"),
    ],
)
def test_refuses_settings(options: dict[str, Any], error: type[Exception], message: str) -> None:
    with pytest.raises(error, match=message):
        LoPAScheduler(**options)


def test_refuses_calls() -> None:
    scheduler = LoPAScheduler(3, num_lookaheads=1, mask_token_id=4)
    logits, sample = torch.zeros(4, 3, 5), torch.full((4, 3), 4)
    for error, message, changed in (
        (TypeError, "unexpected argument 'treshold'", {"treshold": 0.5}),
        (ValueError, "temperature must be 0, .* got 0.7", {"temperature": 0.7}),
        (ValueError, "editing_threshold must be None, .* got 0.5", {"editing_threshold": 0.5}),
        (ValueError, "threshold must be between 0 and 1, got 2", {"threshold": 2}),
        (ValueError, "mask_token must be between", {"mask_token_id": -1}),
        (ValueError, r"integers, got \(4, 3\) torch.float32", {"sample": sample.float()}),
        (ValueError, "2 rows per sequence, .* got 3 rows", {"sample": sample[:3]}),
        (ValueError, "blocks of 3 positions, got 2", {"sample": sample[:, :2]}),
        (ValueError, "blocks of 3 positions, got 0", {"sample": sample[:, :0]}),
        (ValueError, r"logits must be \(4, 3, 'vocabulary'\)", {"model_output": logits[:2]}),
        (ValueError, r"got \(12, 5\)", {"model_output": logits.flatten(0, 1)}),
        (ValueError, r"logits must be \(4, 3, 'vocabulary'\)", {"model_output": logits[..., 0]}),
    ):
        given = {"model_output": logits, "timestep": 0, "sample": sample} | changed
        with pytest.raises(error, match=message):
            scheduler.step(**given)
    strangers = torch.tensor([[4, 4, 4], [4, 4, 4], [1, 4, 4], [2, 4, 4]])
    with pytest.raises(ValueError, match="2 rows side by side, equal but for one token"):
        scheduler.step(logits, 0, strangers)
    with pytest.raises(ValueError, match="mask_token_id must be given"):
        LoPAScheduler(3).step(logits, 0, sample)


def test_the_example_runs() -> None:
    results = doctest.testmod(import_module("triselect.engines.diffusers_lopa"))
    assert results.attempted == 4
    assert results.failed == 0
