"""The Triton kernels: small cases in the interpreter, and what only a GPU shows.

On a GPU the tests of every backend run them too (test_equivalence, test_properties).
"""

from unittest import mock

import numpy as np
import pytest
import torch

from triselect.ops.token_scores import token_scores

from ..backends import INDEX_DTYPES, LAYOUTS, SAME_VALUES, Backend, assert_bits, every_dtype
from ..launches import launches
from .cases import KEY_DTYPES, case, integers, laid_out, paged, wild
from .compare import assert_exact, assert_scores

score = Backend(laid_out, "triton", "cpu")
on_device = Backend(laid_out, "triton", "cuda")
INF = float("inf")


@pytest.mark.interpret
@every_dtype
@pytest.mark.parametrize(
    "sizes",
    [
        {"chunk": 1, "tokens": 1, "dim": 1},
        {"chunk": 1, "tokens": 333, "dim": 130},
        {"chunk": 1, "tokens": 45, "heads": (6, 3), "dim": 24},
        {"chunk": 2, "tokens": 300, "dim": 40},
        {"chunk": 140, "tokens": 150, "dim": 16, "batch": 1},  # two tiles of queries
        {"chunk": 9, "tokens": 70, "heads": (6, 2), "dim": 20},
        {"chunk": 3, "tokens": 70, "dim": 257},
    ],
    ids=str,
)
def test_shapes(sizes, dtype):
    q, k, options = case(dtype=dtype, **sizes)
    in_float32 = dtype is torch.float32 or sizes["chunk"] == 1
    assert_scores(score(q, k), q, k, options, in_float32=in_float32)


@pytest.mark.interpret
@pytest.mark.parametrize("chunk", [1, 5])
@pytest.mark.parametrize("keys", KEY_DTYPES, ids=str)
@every_dtype
def test_keys_of_8_bits(keys, chunk, dtype):
    q, k, options = case(chunk=chunk, tokens=70, dim=20, keys=keys, dtype=dtype)
    assert_scores(score(q, k, **options), q, k, options)


@pytest.mark.interpret
@pytest.mark.parametrize("chunk", [1, 3])
@pytest.mark.parametrize("heads", [None, (4, 2)])
@pytest.mark.parametrize("layout", [*LAYOUTS, "heads first"])
def test_layouts(layout, heads, chunk):
    q, k, options = case(chunk=chunk, tokens=45, heads=heads, data=integers)
    got = score(q, k, layout=layout)
    if layout == "expanded":
        q, k = (x[:1].expand_as(x).contiguous() for x in (q, k))
    assert_exact(got, q, k, options)


@pytest.mark.interpret
@pytest.mark.parametrize("chunk", [1, 3])
@pytest.mark.parametrize("index", INDEX_DTYPES, ids=str)
@pytest.mark.parametrize("size", [1, 7, 16])
def test_ragged_blocks(size, index, chunk):
    for keys in (None, torch.int8):
        q, k, options = case(batch=3, chunk=chunk, tokens=50, keys=keys, data=integers)
        options |= {
            "start": torch.tensor([0, 3, 20], dtype=index),
            "end": torch.tensor([50, 41, 20], dtype=index),
            "num_queries": torch.tensor([chunk, 1, chunk], dtype=index),
        }
        assert_exact(score(q, k, **options), q, k, options)
        q, k, options = paged((q, k, options), size, np.random.default_rng(0), holes=0.2)
        table = options["block_table"].to(index)
        for layout in SAME_VALUES:
            got = score(q, k, **options | {"block_table": LAYOUTS[layout](table)})
            assert_exact(got, q, k, options)


@pytest.mark.interpret
@pytest.mark.parametrize("chunk", [1, 3])
def test_whatever_is_out_of_range_does_not_exist(chunk):
    """On a device no one looks at the values; on the CPU the operator would refuse them."""
    from triselect.kernels.token_scores import triton

    q, k, _ = case(batch=7, chunk=chunk, tokens=40, data=integers)
    far = 2**40 + 5  # 5 in 32 bits
    got = triton.token_scores(
        q,
        k,
        None,
        torch.tensor([-far, 7, 30, far, 0, 0, 0]),
        torch.tensor([far, 99, 3, 40, 5 - far, 40, 40]),
        torch.tensor([far, chunk, chunk, chunk, chunk, 5 - far, -1]),
        None,
    )
    options = {
        "start": torch.tensor([0, 7, 0, 0, 0, 0, 0]),
        "end": torch.tensor([40, 40, 0, 0, 0, 40, 40]),
        "num_queries": torch.tensor([chunk, chunk, chunk, chunk, chunk, 0, 0]),
    }
    assert_exact(got, q, k, options)

    q, k, options = paged(case(chunk=chunk, data=integers), 8, np.random.default_rng(0))
    table = options["block_table"]
    outside = table.clone()
    outside[:, [1, 3]] = torch.tensor([[len(k), -2], [far, 5 - far]])
    table[:, [1, 3]] = -1
    got = triton.token_scores(q, k, None, None, options["end"], None, outside)
    assert_exact(got, q, k, options)
    empty = triton.token_scores(q, k[:0], None, None, None, None, table)
    assert torch.equal(empty, torch.full((2, 40), -INF))


@pytest.mark.interpret
@pytest.mark.parametrize("seed", range(4))
@pytest.mark.parametrize("chunk", [1, 2, 20])
def test_infinite_and_no_numbers(chunk, seed):
    q, k, options = case(seed, chunk=chunk, tokens=140, dim=12, data=wild)
    assert_exact(score(q, k), q, k, options)


@pytest.mark.interpret
def test_the_best_token_of_every_query_has_zero():
    q, k, _ = case(chunk=40, tokens=300, dim=24)
    scores = score(q, k)
    assert (scores <= 0).all()
    best = torch.einsum("bce,bme->bcm", q.double(), k.double()).argmax(2)
    assert (scores.gather(1, best) == 0).all()


@pytest.mark.interpret
def test_any_number_of_slices_has_the_same_maxima():
    from triselect.kernels.token_scores import triton

    q, k, _ = case(chunk=70, tokens=400)
    expected = score(q, k)
    for programs in (1, 4, 10**6):
        with mock.patch.object(triton, "PROGRAMS", programs):
            assert_bits(score(q, k), expected)


@pytest.mark.interpret
@pytest.mark.parametrize("chunk", [1, 2])
def test_offsets_beyond_32_bits(chunk):
    """Tokens 2**27 elements apart; NumPy's memory costs nothing until it is written."""
    q, k, options = case(batch=1, chunk=chunk, tokens=20, keys=torch.int8, data=integers)
    far = torch.from_numpy(np.empty(20 * 2**27, np.int8)).as_strided(k.shape, (0, 2**27, 1))
    far.copy_(k)
    assert_exact(score(q, far, **options), q, k, options)
    scale, table = options["k_scale"].T, torch.arange(20)[None]
    options = {"k_scale": scale, "block_table": table}
    assert_exact(score(q, far.transpose(0, 1), **options), q, k.transpose(0, 1), options)


@pytest.mark.interpret
@pytest.mark.parametrize("chunk", [1, 2])
def test_heads_beyond_32_bits(chunk):
    q, k, options = case(batch=1, chunk=chunk, tokens=9, heads=(20, 20), dim=4, data=integers)
    far = torch.from_numpy(np.empty(20 * 2**27, np.float32))
    far = far.as_strided(k.shape, (0, 4, 2**27, 1))
    far.copy_(k)
    assert_exact(score(q, far), q, k, options)


@pytest.mark.interpret
@pytest.mark.parametrize(("batch", "chunk", "tokens"), [(2, 3, 0), (0, 3, 5), (2, 0, 5)])
def test_nothing_to_score_launches_nothing(batch, chunk, tokens, monkeypatch):
    from triselect.kernels.token_scores import triton

    for kernel in ("score", "row_maxima", "compare"):
        monkeypatch.setattr(triton, kernel, None)
    q, k, _ = case(batch=batch, chunk=chunk, tokens=tokens)
    assert torch.equal(score(q, k), torch.full((batch, tokens), -INF))


try:
    from .strategies import Drawn, cases, exact_data
except pytest.skip.Exception:  # hypothesis is not installed
    pass
else:
    from hypothesis import given, settings

    @pytest.mark.interpret
    @given(drawn=cases(exact_data, max_tokens=40, max_chunk=4))
    @settings(max_examples=30)
    def test_random_cases(drawn: Drawn):
        q, k, options = drawn.case
        assert_exact(score(q, k, layout=drawn.layout, **options), q, k, options)


@pytest.mark.gpu
@every_dtype
@pytest.mark.parametrize(
    "sizes",
    [
        {"chunk": 1, "tokens": 131072, "dim": 128},
        {"chunk": 1, "tokens": 16384, "dim": 128, "batch": 16},
        {"chunk": 1, "tokens": 4096, "dim": 128, "heads": (32, 8)},
        {"chunk": 512, "tokens": 20000, "dim": 128, "batch": 1},
        {"chunk": 100, "tokens": 4096, "dim": 128, "heads": (32, 8), "batch": 1},
    ],
    ids=str,
)
def test_sizes_of_models(sizes, dtype):
    q, k, options = case(dtype=dtype, **sizes)
    in_float32 = dtype is torch.float32 or sizes["chunk"] == 1
    assert_scores(on_device(q, k), q, k, options, in_float32=in_float32)


@pytest.mark.gpu
@every_dtype
@pytest.mark.parametrize("keys", [None, torch.int8], ids=str)
def test_no_score_of_a_chunk_is_above_zero(keys, dtype):
    """Both passes make the same products, to the last bit: the best token has exactly 0."""
    q, k, options = case(batch=1, chunk=300, tokens=5000, dim=128, keys=keys, dtype=dtype)
    scores = on_device(q, k, **options)
    assert (scores <= 0).all()
    f = q[0].double() @ (k[0].double() * options.get("k_scale", torch.ones(1, 1))[0, :, None]).T
    two = f.topk(2, dim=1)
    clear = two.values[:, 0] - two.values[:, 1] > 1e-3 * f.abs().amax()
    assert clear.sum() > 100
    assert (scores[0, two.indices[clear, 0]] == 0).all()


@pytest.mark.gpu
def test_launches():
    one, chunk = case(chunk=1), case(chunk=5)
    assert launches(token_scores, one.q, one.k) == ["score"]
    names = launches(token_scores, chunk.q, chunk.k)
    assert len(names) == 3
    assert (names[0], names[2]) == ("row_maxima", "compare")


@pytest.mark.gpu
def test_nothing_of_the_size_of_queries_times_tokens():
    q, k, _ = case(batch=1, chunk=512, tokens=65536)
    q, k = q.cuda(), k.cuda()
    token_scores(q, k)
    torch.cuda.reset_peak_memory_stats()
    before = torch.cuda.memory_allocated()
    token_scores(q, k)
    assert torch.cuda.max_memory_allocated() - before < 512 * 65536 * 4 / 16


@pytest.mark.gpu
@pytest.mark.parametrize("chunk", [1, 40])
def test_a_captured_graph_scores_new_queries_and_ranges(chunk):
    q, k, options = case(chunk=chunk, tokens=500, keys=torch.int8, data=integers)
    static = [x.cuda() for x in (q, k, options["k_scale"], torch.tensor([500, 500]))]

    def call():
        return token_scores(static[0], static[1], k_scale=static[2], end=static[3])

    call()  # compiles
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        got = call()
    for seed in range(3):
        q, k, options = case(seed, chunk=chunk, tokens=500, keys=torch.int8, data=integers)
        options["end"] = torch.tensor([500 - 100 * seed, 7])
        for old, new in zip(static, (q, k, *options.values()), strict=True):
            old.copy_(new)
        graph.replay()
        assert_exact(got.cpu(), q, k, options)
