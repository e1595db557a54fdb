"""How much is found on distributions of known structure, and on a model's own queries and keys."""

import pytest
import torch

from triselect.esa import assess, calibrate, synthetic

from .data import EVEN

SIZES = (8, 16, 32)


def recalls(calibration, fresh, method, chunk):
    """Of the 128 best tokens, by size."""
    found = [
        assess(calibrate(*calibration, dim=dim, method=method), *fresh, top_k=128, chunk=chunk)
        for dim in SIZES
    ]
    return [each.recall for each in found]


def drawn(name):
    """4096 tokens to calibrate on; 256 queries for 2048 keys that were not seen."""
    q, k = synthetic.DISTRIBUTIONS[name](6144, EVEN, 0)
    return (q[:4096], k[:4096]), (q[4096:4352], k[4096:])


@pytest.mark.parametrize("chunk", [1, 32])
@pytest.mark.parametrize("name", ["misaligned", "outlier_channels", "sinks"])
def test_where_keys_vary_as_queries_do_not_pca_finds_less(name, chunk):
    calibration, fresh = drawn(name)
    closed, pca = (recalls(calibration, fresh, m, chunk) for m in ("closed_form", "pca"))
    assert all(a > b + 0.05 for a, b in zip(closed, pca, strict=True)), (closed, pca)
    assert closed == sorted(closed)
    assert closed[-1] > (0.9 if chunk == 1 else 0.8)


@pytest.mark.parametrize("name", ["isotropic", "needles"])
def test_where_queries_are_as_keys_all_find_the_same(name):
    calibration, fresh = drawn(name)
    closed, pca = (recalls(calibration, fresh, m, 1) for m in ("closed_form", "pca"))
    assert all(abs(a - b) < 0.03 for a, b in zip(closed, pca, strict=True)), (closed, pca)


def test_noise_cannot_be_compressed():
    calibration, fresh = drawn("isotropic")
    assert recalls(calibration, fresh, "closed_form", 1)[-1] < 0.6


def test_sinks_are_found_and_hold_most_of_what_attention_pays():
    calibration, (q, k) = drawn("sinks")
    found = assess(calibrate(*calibration, dim=8), q, k, top_k=16)
    assert found.kept_mass > found.exact_kept_mass - 0.02
    only_sinks = torch.arange(0, 2048, 256)
    scores = torch.einsum("thd,nhd->htn", q, k.repeat_interleave(4, 1)) / EVEN.head_dim**0.5
    assert scores.softmax(-1)[:, :, only_sinks].sum(-1).mean() > 0.2


def test_distributions_are_what_they_say():
    for name, draw in synthetic.DISTRIBUTIONS.items():
        (q, k), again, other = draw(500, EVEN, 3), draw(500, EVEN, 3), draw(500, EVEN, 4)
        assert q.shape == (500, 8, 32), name
        assert k.shape == (500, 2, 32), name
        assert q.dtype == k.dtype == torch.float32
        assert torch.equal(q, again.queries), name
        assert torch.equal(k, again.keys), name
        assert not torch.equal(q, other.queries), name
        heads = q.unflatten(1, (2, 4))
        assert (heads[:, :, 0] - heads[:, :, 1]).abs().mean() > 0.1 * q.std(), name


@pytest.fixture(scope="module")
def real():
    """For every layer of the shipped model, before rotation: queries and keys of eight files to
    calibrate on, and of eight others."""
    pytest.importorskip("safetensors")
    from triselect.models import load_byte_moe, router_logits

    model, text = load_byte_moe(), router_logits().text
    layers = []
    for layer in range(model.config.layers):
        q, k = (
            x.transpose(1, 2) for x in model.queries_and_keys(text, layer, rotated=False)
        )  # (sequences, tokens, heads, dim)
        calibration = q[:8].flatten(0, 1), k[:8].flatten(0, 1)
        # All keys of the other files as one context, and the last queries of each.
        fresh = q[8:, -32:].flatten(0, 1), k[8:].flatten(0, 1)
        layers.append((calibration, fresh))
    return layers


@pytest.mark.parametrize("layer", range(4))
def test_real_text(real, layer):
    calibration, fresh = real[layer]
    closed, centered, pca = (
        recalls(calibration, fresh, method, 1) for method in ("closed_form", "centered", "pca")
    )
    assert all(a > b for a, b in zip(closed, pca, strict=True)), (closed, pca)
    assert closed[-1] > 0.95
    assert sum(closed) > sum(pca) + 0.05
    assert all(a > b - 0.01 for a, b in zip(centered, closed, strict=True)), (centered, closed)
    gradient = assess(calibrate(*calibration, dim=16, method="gradient"), *fresh, top_k=128).recall
    assert closed[1] > gradient, gradient


@pytest.mark.parametrize("layer", range(4))
def test_a_target_on_real_text(real, layer):
    """What is found on files that were not seen is about what was found on tokens held out."""
    calibration, fresh = real[layer]
    c = calibrate(*calibration, recall=0.9)
    assert 4 <= c.dim <= 32
    assert assess(c, *fresh, top_k=len(fresh[1]) // 16).recall > 0.8
