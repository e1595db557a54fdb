"""What must hold of any scores, with no reference in sight."""

import numpy as np
import pytest
import torch

from triselect.ops.compress import compress

from ..backends import assert_bits
from .cases import case, every_backend, integers, paged

every_chunk = pytest.mark.parametrize("chunk", [1, 2, 7])
INF = float("inf")


@every_backend
@pytest.mark.parametrize("seed", range(5))
def test_the_best_token_of_every_query_has_zero(backend, seed):
    q, k, _ = case(seed, chunk=9, tokens=700, dim=24)
    scores = backend(q, k)
    assert (scores <= 0).all()
    best = torch.einsum("bce,bme->bcm", q.double(), k.double()).argmax(2)
    assert (scores.gather(1, best) == 0).all()


@every_backend
def test_one_query_keeps_its_dot_products(backend):
    q, k, _ = case(chunk=1, data=integers)
    assert torch.equal(backend(q, k), torch.einsum("be,bme->bm", q[:, 0], k))


@every_backend
@pytest.mark.parametrize("keys", [None, torch.int8])
def test_one_real_query_of_a_chunk_is_one_query(backend, keys):
    q, k, options = case(batch=3, chunk=6, keys=keys, data=integers)
    q[:, 1:] = torch.nan
    number = torch.tensor([1, 1, 1])
    alone = backend(q[:, :1], k, **options)
    assert_bits(backend(q, k, num_queries=number, **options), alone)


@every_backend
def test_sequences_of_one_query_and_of_more(backend):
    q, k, _ = case(batch=3, chunk=6, data=integers)
    got = backend(q, k, num_queries=torch.tensor([6, 1, 0]))
    assert torch.equal(got[0], backend(q, k)[0])
    assert torch.equal(got[1], backend(q[:, :1], k)[1])
    assert (got[2] == -INF).all()


@every_backend
def test_two_equal_queries_rank_as_one_does(backend):
    """A chunk against a step of decoding: the difference is a constant."""
    q, k, _ = case(chunk=1, tokens=300, data=integers)
    one = backend(q, k)
    assert torch.equal(backend(q.expand(-1, 2, -1), k), one - one.amax(1, keepdim=True))


@every_backend
def test_a_constant_for_each_query_changes_nothing(backend):
    q, k, _ = case(chunk=4, data=integers)
    constants = torch.tensor([100.0, -3, 0, 17]).expand(2, 4)[..., None]
    k_and_1 = torch.cat((k, torch.ones_like(k[..., :1])), -1)
    assert torch.equal(backend(torch.cat((q, constants), -1), k_and_1), backend(q, k))


@every_backend
def test_heads_are_added_up_over_those_that_share_a_key(backend):
    """Query head h belongs to key head h // (H / G): the fold, and not another order of heads."""
    for chunk in (1, 5):
        q, k, _ = case(chunk=chunk, heads=(6, 3), data=integers)
        by_head = torch.einsum("bchd,bmhd->bcm", q, k.repeat_interleave(2, 2))
        expected = by_head[:, 0]
        if chunk > 1:
            expected = (by_head - by_head.amax(2, keepdim=True)).amax(1)
        assert torch.equal(backend(q, k), expected)
        folded = q.unflatten(2, (3, 2)).sum(3).flatten(2)
        assert torch.equal(backend(folded, k.flatten(2)), expected)


@every_backend
@every_chunk
def test_heads_of_a_group_may_change_places(backend, chunk):
    q, k, _ = case(chunk=chunk, heads=(6, 2), data=integers)
    assert torch.equal(backend(q[:, :, [2, 0, 1, 4, 5, 3]], k), backend(q, k))
    assert not torch.equal(backend(q[:, :, [3, 1, 2, 0, 4, 5]], k), backend(q, k))


@every_backend
def test_queries_may_change_places(backend):
    q, k, _ = case(chunk=7, data=integers)
    assert torch.equal(backend(q[:, [3, 1, 6, 0, 2, 5, 4]], k), backend(q, k))


@every_backend
def test_the_best_of_two_halves_of_a_chunk(backend):
    q, k, _ = case(chunk=9, data=integers)
    halves = torch.maximum(backend(q[:, :4], k), backend(q[:, 4:], k))
    assert torch.equal(backend(q, k), halves)


@every_backend
@every_chunk
def test_tokens_may_change_places(backend, chunk):
    q, k, _ = case(chunk=chunk, data=integers)
    order = torch.randperm(k.shape[1], generator=torch.Generator().manual_seed(0))
    assert torch.equal(backend(q, k[:, order]), backend(q, k)[:, order])


@every_backend
@every_chunk
@pytest.mark.parametrize("keys", [None, torch.int8])
def test_a_sequence_does_not_depend_on_the_others(backend, chunk, keys):
    q, k, options = case(batch=4, chunk=chunk, tokens=60, keys=keys, data=integers)
    ragged = {
        "start": torch.tensor([0, 3, 20, 60]),
        "end": torch.tensor([60, 50, 21, 60]),
        "num_queries": torch.tensor([chunk, 1, chunk, 0]),
    }
    together = backend(q, k, **options, **ragged)
    for b in range(4):
        mine = {name: x[b : b + 1] for name, x in (options | ragged).items()}
        assert_bits(together[b : b + 1], backend(q[b : b + 1], k[b : b + 1], **mine))


@every_backend
@every_chunk
@pytest.mark.parametrize("heads", [None, (4, 2)])
@pytest.mark.parametrize("size", [1, 7, 16, 64])
def test_blocks_are_the_same_tokens(backend, chunk, heads, size):
    plain = case(chunk=chunk, tokens=112, heads=heads)
    for junk in (False, True):
        q, k, options = paged(plain, size, np.random.default_rng(1), junk=junk)
        got = backend(q, k, **options)
        assert_bits(got[:, :112], backend(plain.q, plain.k))
        assert (got[:, 112:] == -INF).all()


@every_backend
@every_chunk
def test_tokens_in_holes_do_not_exist(backend, chunk):
    q, k, options = case(batch=1, chunk=chunk, tokens=48, keys=torch.int8, data=integers)
    _, blocks, of_blocks = paged((q, k, options), 8, np.random.default_rng(0))
    of_blocks["block_table"][0, [1, 4]] = -1
    got = backend(q, blocks, **of_blocks)
    there = torch.ones(48, dtype=torch.bool)
    there[8:16] = there[32:40] = False
    assert (got[0, ~there] == -INF).all()
    rest = backend(q, k[:, there], k_scale=options["k_scale"][:, there])
    assert torch.equal(got[:, there], rest)


@every_backend
@every_chunk
def test_nothing_but_holes(backend, chunk):
    q, k, _ = case(chunk=chunk, tokens=8)
    table = torch.full((2, 3), -1)
    for blocks in (k, k[:0]):
        got = backend(q, blocks, block_table=table)
        assert torch.equal(got, torch.full((2, 24), -INF))


@every_backend
@every_chunk
@pytest.mark.parametrize("junk", [torch.nan, torch.inf, 1e30])
def test_what_is_outside_the_range_has_no_influence(backend, chunk, junk):
    q, k, _ = case(batch=3, chunk=chunk, tokens=90)
    inside = {"start": torch.tensor([5, 0, 33]), "end": torch.tensor([90, 80, 34])}
    expected = backend(q, k, **inside)
    m = torch.arange(90)
    outside = (m < inside["start"][:, None]) | (m >= inside["end"][:, None])
    k[outside] = junk
    assert_bits(backend(q, k, **inside), expected)
    assert (expected[outside] == -INF).all()
    assert expected[~outside].isfinite().all()


@every_backend
@every_chunk
def test_a_range_is_a_cache_of_its_own(backend, chunk):
    q, k, _ = case(chunk=chunk, tokens=90, data=integers)
    start, end = torch.tensor([17, 17]), torch.tensor([66, 66])
    assert torch.equal(backend(q, k, start=start, end=end)[:, 17:66], backend(q, k[:, 17:66]))


@every_backend
@every_chunk
def test_empty_ranges(backend, chunk):
    q, k, _ = case(batch=3, chunk=chunk)
    at = torch.tensor([0, 11, 40])
    assert torch.equal(backend(q, k, start=at, end=at), torch.full((3, 40), -INF))


@every_backend
@pytest.mark.parametrize(
    ("batch", "chunk", "tokens"), [(2, 3, 0), (2, 1, 0), (0, 3, 5), (2, 0, 5), (0, 0, 0)]
)
def test_nothing_to_score(backend, batch, chunk, tokens):
    for heads in (None, (4, 2)):
        q, k, _ = case(batch=batch, chunk=chunk, tokens=tokens, heads=heads)
        assert torch.equal(backend(q, k), torch.full((batch, tokens), -INF))


@every_backend
def test_infinite_scores(backend):
    """The best token has 0 even where it is infinite, what is -inf stays so, NaN counts as it."""
    k = torch.tensor([[[1.0], [2.0], [3.0]]])
    cases = {
        (INF, INF): [0, 0, 0],
        (-INF, -INF): [-INF, -INF, -INF],
        (torch.nan, torch.nan): [-INF, -INF, -INF],
        (INF, 1.0): [0, 0, 0],
        (-INF, 1.0): [-2, -1, 0],
        (torch.nan, 1.0): [-2, -1, 0],
    }
    for queries, expected in cases.items():
        q = torch.tensor(queries)[None, :, None]
        assert backend(q, k).tolist() == [expected]
    k = torch.tensor([[[INF], [1.0], [-INF], [torch.nan]]])
    assert backend(torch.ones(1, 1, 1), k).tolist() == [[INF, 1, -INF, -INF]]
    assert backend(torch.ones(1, 2, 1), k).tolist() == [[0, -INF, -INF, -INF]]
    assert backend(torch.tensor([[[1.0], [-1.0]]]), k).tolist() == [[0, -INF, 0, -INF]]


@every_backend
@every_chunk
def test_keys_that_are_not_finite_have_a_scale_of_nan(backend, chunk):
    x = torch.randn(1, 30, 1, 8, generator=torch.Generator().manual_seed(0))
    x[0, 7] = torch.inf
    keys = compress(x, torch.eye(8), dtype=torch.int8)
    scores = backend(case(batch=1, chunk=chunk, dim=8).q, keys.values, k_scale=keys.scale)
    assert scores[0, 7] == -INF
    assert (scores != -INF).sum() == 29


@every_backend
@every_chunk
@pytest.mark.parametrize("dtype", [torch.int8, torch.float8_e4m3fn], ids=str)
def test_8_bits_lose_what_their_rounding_loses(backend, chunk, dtype):
    """|error of f| <= sum of |q| times half a step of k: once for a query, twice for a chunk."""
    q, k, _ = case(chunk=chunk, tokens=200, dim=32)
    keys = compress(k.unsqueeze(2), torch.eye(32), dtype=dtype)
    step = keys.scale[..., None]
    if dtype is not torch.int8:  # three bits behind the first, or multiples of 2**-9
        step = torch.maximum(k.abs() * 2.0**-3, step * 2.0**-9)
    bound = torch.einsum("bce,bme->bcm", q.abs(), step.expand_as(k) / 2)
    bound = bound[:, 0] if chunk == 1 else 2 * bound.amax((1, 2))[:, None]
    error = (backend(q, keys.values, k_scale=keys.scale) - backend(q, k)).abs()
    assert (error <= bound * 1.001).all()
    assert error.max() > 0


@every_backend
@every_chunk
def test_every_run_has_the_same_bits(backend, chunk):
    q, k, options = case(chunk=chunk, tokens=3000, dim=64, dtype=torch.bfloat16)
    first = backend(q, k, **options)
    for _ in range(3):
        assert_bits(backend(q, k, **options), first)


@every_backend
def test_inputs_are_left_alone(backend):
    q, k, options = paged(case(keys=torch.int8), 8, np.random.default_rng(0), junk=False)
    options |= {"start": torch.tensor([1, 2]), "num_queries": torch.tensor([3, 1])}
    before = [x.clone() for x in (q, *options.values())]
    backend(q, k, **options)
    assert all(map(torch.equal, (q, *options.values()), before))
