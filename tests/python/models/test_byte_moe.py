"""The byte-level MoE model, its shipped weights, and the shipped sample of its router logits."""

import subprocess
import sys
from dataclasses import replace
from math import log
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from triselect import grouped_topk
from triselect.models import ByteMoE, ByteMoEConfig, byte_moe, load_byte_moe, router_logits
from triselect.moe.balance import imbalance_score

TINY = ByteMoEConfig(
    width=32,
    layers=2,
    heads=4,
    kv_heads=2,
    experts=12,
    expert_groups=4,
    top_k=8,
    expert_width=3,
    context=24,
)


@pytest.fixture
def tiny() -> ByteMoE:
    torch.manual_seed(0)
    return ByteMoE(TINY).requires_grad_(False)


SHIPPED = {
    "moge": (byte_moe.WEIGHTS, byte_moe.ROUTER_LOGITS, 8),
    "top-k": (byte_moe.TOP_K_WEIGHTS, byte_moe.TOP_K_ROUTER_LOGITS, 1),
}


@pytest.fixture(scope="module", params=SHIPPED)
def routing(request: pytest.FixtureRequest) -> str:
    return request.param


@pytest.fixture(scope="module")
def shipped(routing: str) -> ByteMoE:
    pytest.importorskip("safetensors")
    return load_byte_moe(SHIPPED[routing][0])


@pytest.fixture(scope="module")
def sample(routing: str) -> byte_moe.RouterLogits:
    pytest.importorskip("safetensors")
    return router_logits(SHIPPED[routing][1])


def tokens(batch: int, length: int, seed: int = 0) -> Tensor:
    return torch.randint(256, (batch, length), generator=torch.Generator().manual_seed(seed))


def test_wide_swiglu_equals_a_loop_over_experts(tiny: ByteMoE) -> None:
    moe = tiny.layers[0].moe.double()
    moe.router_scale.uniform_(0.5, 2.0)
    x = torch.randn(17, TINY.width, dtype=torch.float64)
    out, logits, experts = moe(x)

    expected = torch.zeros_like(x)
    routing = grouped_topk(
        logits, 8, num_expert_group=4, balanced=True, expert_scale=moe.router_scale.float()
    )
    assert torch.equal(experts, routing.experts)
    for token in range(17):
        for weight, expert in zip(routing.weights[token], routing.experts[token], strict=True):
            gate, up = (moe.gate_up[expert] @ x[token]).chunk(2)
            expected[token] += weight.double() * (moe.down[expert] @ (F.silu(gate) * up))
    torch.testing.assert_close(out, expected, rtol=1e-12, atol=1e-12)


def test_routing_takes_the_same_number_from_every_group(tiny: ByteMoE) -> None:
    trace = tiny.trace(tokens(2, 9))
    assert len(trace.router_logits) == len(trace.experts) == TINY.layers
    for logits, experts in zip(trace.router_logits, trace.experts, strict=True):
        assert logits.shape == (18, 12)
        assert logits.dtype == torch.float32
        assert (experts // 3).sort(-1).values.tolist() == [[0, 0, 1, 1, 2, 2, 3, 3]] * 18
        assert imbalance_score(experts, 12, 4).item() == 0


def test_one_group_is_plain_top_k() -> None:
    torch.manual_seed(0)
    trace = ByteMoE(replace(TINY, expert_groups=1)).trace(tokens(2, 9))
    for logits, experts in zip(trace.router_logits, trace.experts, strict=True):
        assert torch.equal(experts, grouped_topk(logits, 8).experts)
        balanced = grouped_topk(logits, 8, num_expert_group=4, balanced=True).experts
        assert not torch.equal(experts.sort().values, balanced.sort().values)


def test_the_future_does_not_change_the_past(tiny: ByteMoE) -> None:
    before = tokens(2, 16)
    after = before.clone()
    after[:, 10] = (after[:, 10] + 1) % 256
    old, new = tiny(before), tiny(after)
    torch.testing.assert_close(old[:, :10], new[:, :10], rtol=0, atol=1e-6)
    assert ((old - new)[:, 10:].abs().amax(-1) > 1e-3).all()


def test_sequences_of_a_batch_do_not_meet(tiny: ByteMoE) -> None:
    both = tokens(2, 16)
    alone = torch.cat([tiny(both[:1]), tiny(both[1:])])
    torch.testing.assert_close(tiny(both), alone, rtol=0, atol=1e-5)


def test_attention_compares_the_queries_and_keys_it_shows(tiny: ByteMoE) -> None:
    text = tokens(2, 11)
    layer = tiny.double().layers[1]
    x, _, _ = tiny.layers[0](tiny.embedding(text))
    normed = layer.attention_norm(x)
    q, k = tiny.queries_and_keys(text, 1)
    assert q.shape == (2, 4, 11, 8)
    assert k.shape == (2, 2, 11, 8)

    k = k.repeat_interleave(2, 1)
    v = layer.attention.v(normed).view(2, 11, 2, 8).transpose(1, 2).repeat_interleave(2, 1)
    scores = q @ k.transpose(-1, -2) / 8**0.5
    future = torch.ones(11, 11, dtype=torch.bool).triu(1)
    out = scores.masked_fill(future, -torch.inf).softmax(-1) @ v
    expected = layer.attention.out(out.transpose(1, 2).reshape(2, 11, 32))
    torch.testing.assert_close(layer.attention(normed), expected, rtol=1e-10, atol=1e-12)


def test_rotation_turns_scores_into_functions_of_distance(tiny: ByteMoE) -> None:
    text = torch.full((1, 12), 65)  # one byte only: before RoPE, layer 0 is the same everywhere
    plain_q, plain_k = tiny.queries_and_keys(text, 0, rotated=False)
    assert (plain_q - plain_q[:, :, :1]).abs().max() < 1e-5
    q, k = tiny.queries_and_keys(text, 0)
    torch.testing.assert_close(q.norm(dim=-1), plain_q.norm(dim=-1))
    torch.testing.assert_close(k[:, :, 0], plain_k[:, :, 0])
    scores = (q[:, ::2] @ k.transpose(-1, -2))[0]
    torch.testing.assert_close(scores[:, :-1, :-1], scores[:, 1:, 1:], rtol=1e-4, atol=1e-4)
    assert (scores[:, 5, 0] - scores[:, 5, 5]).abs().min() > 1e-3


@pytest.mark.parametrize("groups", [1, 4])
def test_gradients_reach_every_parameter(groups: int) -> None:
    torch.manual_seed(0)
    model = ByteMoE(replace(TINY, expert_groups=groups))
    text = tokens(4, 24)
    F.cross_entropy(model(text[:, :-1]).flatten(0, 1), text[:, 1:].flatten()).backward()
    for name, parameter in model.named_parameters():
        assert parameter.grad is not None, name
        assert parameter.grad.isfinite().all(), name
        assert parameter.grad.abs().max() > 0, name


def test_bad_input_is_named(tiny: ByteMoE) -> None:
    with pytest.raises(ValueError, match=r"tokens must be \(batch, length\)"):
        tiny(torch.zeros(3, dtype=torch.int64))
    with pytest.raises(ValueError, match="tokens must be integers"):
        tiny(torch.zeros(1, 3))
    with pytest.raises(ValueError, match="layer must be between 0 and 1"):
        tiny.queries_and_keys(tokens(1, 3), 2)
    with pytest.raises(ValueError, match="width must be a multiple of 8"):
        ByteMoEConfig(width=36)
    with pytest.raises(ValueError, match="heads must be a multiple of 3"):
        ByteMoEConfig(kv_heads=3)


def test_models_import_without_safetensors() -> None:
    code = (
        "import sys; sys.modules['safetensors'] = None\n"
        "from triselect.models import ByteMoE, load_byte_moe\n"
        "try: load_byte_moe()\n"
        "except ImportError as error: print(error)"
    )
    run = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert "pip install 'triselect[cli]'" in run.stdout


def test_saved_weights_come_back_as_stored(tiny: ByteMoE, tmp_path: Path) -> None:
    pytest.importorskip("safetensors")
    byte_moe.save_byte_moe(tiny, tmp_path / "tiny.safetensors", {"step": "0"})
    again = load_byte_moe(tmp_path / "tiny.safetensors")
    assert again.config == TINY
    for name, weight in tiny.state_dict().items():
        loaded = again.state_dict()[name]
        assert loaded.dtype == torch.float32
        assert torch.equal(loaded, weight.bfloat16().float()), name


def test_shipped_files_are_small(routing: str) -> None:
    weights, logits, _ = SHIPPED[routing]
    assert weights.stat().st_size < 5e6
    assert logits.stat().st_size < 2e6


def test_the_shipped_model_is_that_of_moge() -> None:
    pytest.importorskip("safetensors")
    assert load_byte_moe().config == ByteMoEConfig()


def test_shipped_weights(shipped: ByteMoE, routing: str) -> None:
    assert shipped.config == ByteMoEConfig(expert_groups=SHIPPED[routing][2])
    assert all(p.isfinite().all() and p.dtype == torch.float32 for p in shipped.parameters())
    assert not shipped.training


def test_shipped_router_logits(shipped: ByteMoE, sample: byte_moe.RouterLogits) -> None:
    assert sample.logits.dtype == torch.float16
    assert sample.text.dtype == torch.uint8
    assert sample.logits.shape == (shipped.config.layers, *sample.text.shape, 64)
    assert sample.text.shape[0] >= 16
    assert sample.logits.isfinite().all()
    assert {"text", "step", "bits_per_byte"} <= sample.metadata.keys()


def test_shipped_router_logits_are_the_shipped_model_on_the_shipped_text(
    shipped: ByteMoE, sample: byte_moe.RouterLogits
) -> None:
    """Wherever no choice of expert before is so close that another machine may choose otherwise."""
    trace = shipped.trace(sample.text)
    logits = torch.stack(trace.router_logits).view(sample.logits.shape)

    groups = shipped.config.expert_groups
    each = shipped.config.top_k // groups
    best = logits.unflatten(-1, (groups, -1)).topk(each + 1, -1).values
    gap = (best[..., -2] - best[..., -1]).amin(-1).cummin(-1).values  # here or to the left
    below = torch.cat([torch.full_like(gap[:1], torch.inf), gap.cummin(0).values[:-1]])
    clear = below > 2e-5  # float32 differs from float64 by up to 5e-6 here
    assert clear.double().mean() > 0.8
    torch.testing.assert_close(logits[clear], sample.logits[clear].float(), rtol=2**-10, atol=2e-5)


def test_shipped_router_logits_are_skewed_as_real_ones_are(sample: byte_moe.RouterLogits) -> None:
    for layer in sample.logits.flatten(1, 2):
        free = grouped_topk(layer, 8).experts
        balanced = grouped_topk(layer, 8, num_expert_group=8, balanced=True).experts
        # Uniform routing would score 0.05 on these 3584 tokens.
        assert imbalance_score(free, 64, 8).item() > 0.15
        assert imbalance_score(balanced, 64, 8).item() == 0
        used = balanced.long().flatten().bincount(minlength=64)
        assert (used > 0).sum() > 32, "experts have collapsed"


@pytest.fixture(scope="module")
def counting(example: ModuleType) -> float:
    """Bits per byte of the sample by order-2 counts over this machine's standard library, without
    the held-out files."""
    text = example.as_bytes(example.standard_library()[0])
    if len(text) < 5_000_000:
        pytest.skip("this Python's standard library comes without its source")
    # In one piece: 30 of the 3584 bytes are counted across a seam, worth far less than the margin.
    return example.ngram_bits_per_byte(text, router_logits().text.flatten().numpy(), 2)


def test_both_samples_are_of_the_same_text(sample: byte_moe.RouterLogits) -> None:
    assert torch.equal(sample.text, router_logits().text)


def test_shipped_model_beats_counting_bytes(
    shipped: ByteMoE, sample: byte_moe.RouterLogits, counting: float
) -> None:
    logits = shipped(sample.text)[:, :-1].flatten(0, 1)
    nats = F.cross_entropy(logits, sample.text[:, 1:].flatten().long()).item()
    assert nats / log(2) < counting - 0.5
    assert nats / log(2) == pytest.approx(float(sample.metadata["bits_per_byte"]), abs=1e-3)


def test_ngram_baseline_against_counting_by_hand(example: ModuleType) -> None:
    train, text = (np.frombuffer(s, np.uint8) for s in (b"abab", b"aba"))
    # Order 0: a and b twice in four, two kinds; order 1: after a always b, after b (once) an a.
    order0 = (2 + 2 / 256) / (4 + 2)
    order1 = [(2 + order0) / (2 + 1), (1 + order0) / (1 + 1)]
    assert example.ngram_bits_per_byte(train, text, 0) == pytest.approx(-np.log2(order0))
    assert example.ngram_bits_per_byte(train, text, 1) == pytest.approx(-np.log2(order1).mean())


def test_ngram_baseline_is_a_distribution(example: ModuleType) -> None:
    train = np.frombuffer(b"the quick brown fox jumps over the lazy dog" * 3, np.uint8)
    for context in (b"th", b"zz", b"ee"):
        texts = [np.frombuffer(context + bytes([last]), np.uint8) for last in range(256)]
        total = sum(2 ** -example.ngram_bits_per_byte(train, text, 2) for text in texts)
        assert total == pytest.approx(1)


def test_held_out_files_are_not_trained_on(example: ModuleType) -> None:
    training, held_out = example.standard_library()
    assert training.keys().isdisjoint(held_out)
    assert not any("site-packages" in name for name in (*training, *held_out))
    sizes = [sum(map(len, files.values())) for files in (training, held_out)]
    assert 0.01 < sizes[1] / sum(sizes) < 0.15


def test_twenty_steps_lower_the_loss(example: ModuleType) -> None:
    torch.manual_seed(0)
    model = ByteMoE(TINY)
    text = np.frombuffer(b"for i in range(10):\n    print(i)\n" * 50, np.uint8)
    losses: list[float] = []
    steps = example.train(
        model,
        text,
        steps=20,
        batch=4,
        warmup=2,
        report=lambda step: losses.append(step.bits_per_byte),
    )
    assert steps == len(losses) == 20
    assert np.mean(losses[-5:]) < losses[0] - 2
    assert not model.training


def test_interrupted_training_keeps_what_it_has(example: ModuleType) -> None:
    def interrupt(step: Any) -> None:
        if step.number == 3:
            raise KeyboardInterrupt

    text = np.frombuffer(b"spam and eggs " * 50, np.uint8)
    assert example.train(ByteMoE(TINY), text, steps=20, batch=2, report=interrupt) == 3
