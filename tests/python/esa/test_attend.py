"""`attend` against its meaning, and what holds between one way of reading a text and another."""

import doctest
import importlib
import math

import numpy as np
import pytest
import torch
from torch.nn.functional import scaled_dot_product_attention

from triselect.esa import Cache, Config, Rotary, attend
from triselect.ops import backends

from .oracle import esa, rotate
from .texts import compressors, cut, read, text

hypothesis = pytest.importorskip("hypothesis")
from hypothesis import given  # noqa: E402
from hypothesis import strategies as st  # noqa: E402

CLEAR = 1e-3  # a selection by less than that may come out otherwise in float32


@pytest.mark.parametrize("module", ["attend", "cache", "rotary"])
def test_the_examples_run(module):
    results = doctest.testmod(importlib.import_module(f"triselect.esa.{module}"))
    assert results.attempted > 0
    assert results.failed == 0


@st.composite
def situations(draw):
    groups = draw(st.integers(1, 3))
    settings = {
        "initial": draw(st.integers(0, 5)),
        "local": draw(st.integers(0, 12)),
        "top_k": draw(st.integers(3, 12)),
        "proximity": draw(st.integers(0, 1)),
        "chunk": draw(st.integers(1, 9)),
        "positions": draw(st.sampled_from(["rerope", "original"])),
    }
    layout = (groups * draw(st.integers(1, 3)), groups, 2 * draw(st.integers(1, 8)))
    return draw(st.integers(1, 50)), layout, settings, draw(st.integers(0, 2**20))


@given(
    situations(),
    st.integers(1, 60),
    st.sampled_from(["exact", "compressed"]),
    st.sampled_from([None, 3]),
    st.booleans(),
    st.sampled_from([1.0, 1.5]),
)
def test_it_is_what_it_means(situation, part, scorer, page_size, rotated, scaling):
    tokens, layout, settings, seed = situation
    q, k, v = text(tokens, *layout, seed=seed)
    config = Config(scorer=scorer, dim=4, **settings)
    maps = compressors(q, k, dim=min(4, layout[1] * layout[2]), method="centered")
    if scorer == "exact":
        maps = None
    rotary = Rotary.of(layout[2], base=100.0) if rotated else None
    if rotary is not None:
        rotary = Rotary(rotary.inv_freq, scaling)
    parts = cut(tokens, part)
    chunks = [n for size in parts for n in cut(size, config.chunk)]
    wanted = esa(
        *(x[0].double().numpy() for x in (q, k, v)),
        *(config, chunks),
        None if rotary is None else rotary.inv_freq.double().numpy(),
        scaling if rotated else 1.0,
        None if maps is None else maps[0],
    )
    hypothesis.assume(wanted.margin > CLEAR)
    cache = Cache(config, compressors=maps, capacity=60, page_size=page_size)
    out = read(q, k, v, cache, parts, rotary=rotary)
    torch.testing.assert_close(out[0].double(), torch.tensor(wanted.out), atol=2e-5, rtol=1e-4)
    assert cache.lengths == [tokens]


@pytest.mark.parametrize("positions", ["original", "rerope"])
def test_a_budget_for_everything_is_plain_attention(positions):
    # With rerope, of what is local: there its distances are the true ones.
    q, k, v = text(70)
    config = Config(initial=2, local=64, top_k=64, chunk=16, positions=positions, scorer="exact")
    tokens = 70 if positions == "original" else 64
    rotary = Rotary.of(8)
    out = attend(*(x[:, :tokens] for x in (q, k, v)), Cache(config), 0, rotary=rotary)
    at = torch.arange(tokens)
    rotated = [rotary.rotate(x[:, :tokens], at).transpose(1, 2) for x in (q, k)]
    plain = scaled_dot_product_attention(
        *rotated, v[:, :tokens].transpose(1, 2), is_causal=True, enable_gqa=True
    )
    torch.testing.assert_close(out, plain.transpose(1, 2))


def test_chunks_of_any_size_agree_where_everything_is_read():
    q, k, v = text(50, batch=2)
    config = Config(initial=2, local=7, top_k=50, positions="original", scorer="exact")
    found = [
        read(q, k, v, Cache(config), cut(50, size), rotary=Rotary.of(8)) for size in (1, 3, 16, 50)
    ]
    for other in found[1:]:
        torch.testing.assert_close(other, found[0])


@pytest.mark.parametrize("page_size", [None, 4])
@pytest.mark.parametrize("scorer", ["exact", "compressed"])
@pytest.mark.parametrize("positions", ["original", "rerope"])
def test_a_batch_of_different_lengths_is_its_texts(positions, scorer, page_size):
    q, k, v = text(40, batch=3)
    maps = compressors(q, k, 8)
    config = Config(
        **{"initial": 2, "local": 5, "top_k": 6, "chunk": 8, "dim": 8},
        **{"positions": positions, "scorer": scorer},
    )
    padding, rotary = [0, 13, 31], Rotary.of(8)
    cache = Cache(config, compressors=maps, capacity=50, page_size=page_size)
    parts = [x.split([40 - 2, 1, 1], 1) for x in (q, k, v)]
    out = [attend(*(p[0] for p in parts), cache, 0, rotary=rotary, padding=padding)]
    out += [attend(*(p[i] for p in parts), cache, 0, rotary=rotary) for i in (1, 2)]
    out = torch.cat(out, 1)
    assert out.isfinite().all()
    assert cache.lengths == [40, 27, 9]
    for b, pad in enumerate(padding):
        alone = Cache(config, compressors=maps, capacity=50)
        # Where the chunks of 8 end in the batch, they end here.
        sizes = [min(8 * (i + 1), 38) - max(8 * i, pad) for i in range(5)]
        sizes = [size for size in sizes if size > 0] + [1, 1]
        texts = [x[b : b + 1, pad:] for x in (q, k, v)]
        torch.testing.assert_close(out[b : b + 1, pad:], read(*texts, alone, sizes, rotary=rotary))


def test_layers_have_their_own_settings():
    q, k, v = text(60)
    settings = {"initial": 2, "local": 4, "chunk": 8, "scorer": "exact"}
    config = Config(top_k=5, layers={1: {"top_k": 20, "proximity": 0, "local": 9}}, **settings)
    cache = Cache(config, capacity=60)
    for layer, changed in ((0, {"top_k": 5}), (1, {"top_k": 20, "proximity": 0, "local": 9})):
        alone = Cache(Config(**settings | changed), capacity=60)
        wanted = attend(q, k, v, alone, 0)
        assert torch.equal(attend(q, k, v, cache, layer), wanted)


@pytest.mark.parametrize("backend", ["reference", "eager", "native"])
def test_every_backend(backend):
    if backend == "native" and backends.missing_native():
        pytest.skip("there are no C++ kernels")
    q, k, v = text(40)
    config = Config(initial=2, local=4, top_k=6, chunk=8, dim=8)
    maps = compressors(q, k, 8)
    options = {"rotary": Rotary.of(8)}
    found = attend(q, k, v, Cache(config, compressors=maps), 0, backend=backend, **options)
    wanted = attend(q, k, v, Cache(config, compressors=maps), 0, **options)
    torch.testing.assert_close(found, wanted)


@pytest.mark.parametrize("dtype", [torch.int8, torch.float8_e4m3fn, torch.float32])
def test_keys_of_other_types_select_nearly_the_same(dtype):
    q, k, v = (x.bfloat16() for x in text(200, dim=16))
    settings = {"initial": 2, "local": 16, "top_k": 32, "chunk": 16, "dim": 32}
    maps = compressors(q.float(), k.float(), 32)
    outs = [
        attend(q, k, v, Cache(Config(key_dtype=of, **settings), compressors=maps), 0)
        for of in (None, dtype)
    ]
    error = (outs[0] - outs[1]).float().norm() / outs[0].float().norm()
    assert error < 0.25  # another token here and there
    assert (outs[0] == outs[1]).float().mean() > 0.2  # and many queries with the same tokens


def test_a_smaller_part_of_a_compressor():
    q, k, v = text(60)
    maps = compressors(q, k, 12)
    config = Config(initial=0, local=4, top_k=6, chunk=8, dim=5)
    few = attend(q, k, v, Cache(config, compressors=maps), 0)
    assert torch.equal(few, attend(q, k, v, Cache(config, compressors=compressors(q, k, 5)), 0))
    trained = compressors(q, k, 12, method="gradient")
    with pytest.raises(ValueError, match=r"compressors\[0\] has 12 numbers, of which the first 5"):
        attend(q, k, v, Cache(config, compressors=trained), 0)


def test_rotation():
    x = torch.randn(2, 5, 3, 8, generator=torch.Generator().manual_seed(0))
    rotary = Rotary.of(8, base=50.0)
    places = torch.tensor([[3, 4, 5, 6, 7], [0, 1, 2, 3, 4]])
    for b in range(2):
        wanted = rotate(x[b].double().numpy(), places[b].numpy(), rotary.inv_freq.double().numpy())
        torch.testing.assert_close(rotary.rotate(x, places)[b], torch.tensor(wanted).float())
    assert [len(part) for part in rotary.table(3)] == [3, 3]
    cos, sin = rotary.table(7)
    assert [len(part) for part in (cos, sin, *rotary.table(2))] == [7, 7, 2, 2]
    torch.testing.assert_close(cos[6], (6 * rotary.inv_freq).cos())
    torch.testing.assert_close(sin[6], (6 * rotary.inv_freq).sin())
    assert math.isclose(Rotary(rotary.inv_freq, 2.0).table(1)[0][0, 0], 2.0)


BAD = {
    "q": ({"q": torch.randn(1, 3, 8)}, r"q must be \(batch, queries, heads, dim\)"),
    "k": ({"k": torch.randn(1, 4, 2, 8)}, r"k must be \(1, 3, 2, 8\)"),
    "v": ({"v": torch.randn(1, 3, 2, 6)}, r"v must be \(1, 3, 2, 8\)"),
    "heads": (
        {"k": torch.randn(1, 3, 3, 8), "v": torch.randn(1, 3, 3, 8)},
        "k's 3 heads must divide q's, 4",
    ),
    "layer": ({"layer": -1}, "layer must be at least 0, got -1"),
    "rotary": ({"rotary": Rotary.of(6)}, "rotary must be for heads of 8, got 6"),
    "padding": ({"padding": [4]}, "padding must be between 0 and 3, got 4"),
    "paddings": ({"padding": [0, 0]}, "padding must have 1 entries, got 2"),
    "no compressor": ({"layer": 1}, "compressors must have one for layer 1, got 1"),
}


@pytest.mark.parametrize("case", BAD)
def test_bad_input_is_refused_and_nothing_stored(case):
    changed, message = BAD[case]
    q, k, v = text(3)
    cache = Cache(Config(dim=4), compressors=compressors(*text(20)[:2], 4))
    arguments = {"q": q, "k": k, "v": v, "cache": cache, "layer": 0} | changed
    with pytest.raises(ValueError, match=message):
        attend(**arguments)
    assert cache.lengths in ([], [0])


def test_other_types_are_refused():
    q, k, v = text(3)
    cache = Cache(Config(scorer="exact"))
    with pytest.raises(TypeError, match=r"cache must be an esa.Cache, got dict"):
        attend(q, k, v, {}, 0)
    with pytest.raises(TypeError, match="q must be float32"):
        attend(q.double(), k, v, cache, 0)
    with pytest.raises(TypeError, match=r"v must be torch.float32"):
        attend(q, k, v.half(), cache, 0)
    with pytest.raises(TypeError, match="layer must be an int"):
        attend(q, k, v, cache, 0.5)


def test_a_compressor_of_another_model():
    q, k, v = text(3)
    other = compressors(*text(20, heads=6)[:2], 4)
    with pytest.raises(
        ValueError, match=r"compressors\[0\] is for another model.*\(6, 2, 8\).*\(4, 2, 8\)"
    ):
        attend(q, k, v, Cache(Config(dim=4), compressors=other), 0)


def test_the_oracle_is_plain_softmax_where_all_is_local():
    q, k, v = (x[0].double().numpy() for x in text(9))
    out = esa(q, k, v, Config(scorer="exact"), [4, 5]).out
    head, t = 3, 6
    logits = k[: t + 1, head // 2] @ q[t, head] / 8**0.5
    p = np.exp(logits - logits.max())
    np.testing.assert_allclose(out[t, head], p / p.sum() @ v[: t + 1, head // 2])
