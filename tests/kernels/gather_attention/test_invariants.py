"""What must hold between calls: of merging, of pages, of chunks, of rotation, of duplicates."""

import pytest
import torch

from triselect.ops import merge

from ..backends import LAYOUTS, assert_bits, every_dtype, every_index_dtype
from .cases import KINDS, Step, every_backend, every_kind, exactly_empty, random_step
from .compare import assert_attention

CLOSE = {"rtol": 1e-5, "atol": 2e-6}


def assert_close(got, expected):
    torch.testing.assert_close(got.out, expected.out, **CLOSE)
    torch.testing.assert_close(got.lse, expected.lse, **CLOSE)


@every_backend
@pytest.mark.parametrize("queries", [1, 5])
@pytest.mark.parametrize("seed", range(4))
def test_both_halves_merged_are_the_whole(backend, queries, seed):
    """Also where one of them is empty, or both are."""
    step = random_step(seed, batch=4, queries=queries, tokens=90)
    step.start[0], step.end[1] = 0, step.start[1]
    step.start[2] = step.end[2] = 0
    far, window, whole = (backend(kind, *step) for kind in ("far", "window", "selected"))
    assert exactly_empty(whole, 2)
    assert_close(whole, merge(*far, *window))


@every_backend
def test_attention_to_two_lists_merged(backend):
    step = random_step(tokens=80, selected=40, num_initial=0)
    tokens = torch.arange(40).expand(2, -1)
    parts = [backend("far", *step._replace(index=index)) for index in (tokens, tokens + 40)]
    whole = backend("far", *step._replace(index=torch.arange(80).expand(2, -1)))
    assert_close(merge(*parts[0], *parts[1]), whole)


@every_backend
@every_kind
def test_no_initial_tokens_but_the_same_ones_listed(backend, kind):
    step = random_step(tokens=50, num_initial=6, selected=3)
    index = torch.tensor([[8, 20, 31]]).expand(2, -1)
    listed = torch.cat((torch.arange(6).expand(2, -1), index), 1)
    both = step._replace(index=listed)  # initial and listed
    expected = backend(kind, *step._replace(index=index))
    assert_close(backend(kind, *both._replace(num_initial=0)), expected)
    assert_close(backend(kind, *both), expected)


@every_backend
@every_index_dtype
def test_a_token_listed_again_counts_once(backend, dtype):
    step = random_step(tokens=50, num_initial=2)
    once = torch.tensor([[3, 7, 30, -1, -1, -1, -1]], dtype=dtype).expand(2, -1)
    again = torch.tensor([[0, 3, 3, 3, 7, 30, 30]], dtype=dtype).expand(2, -1)
    expected = backend("far", *step._replace(index=once))
    assert_close(backend("far", *step._replace(index=again)), expected)


@every_backend
@every_kind
@pytest.mark.parametrize("size", [1, 3, 16])
def test_pages_are_where_the_table_says(backend, kind, size):
    """A paged cache and its tokens side by side; any order of the blocks."""
    step = random_step(size=size, queries=3, tokens=48)
    assert step.block_table is not None
    flat = [x[step.block_table].flatten(1, 2) for x in (step.k, step.v)]
    expected = backend(kind, *step._replace(k=flat[0], v=flat[1], block_table=None))
    assert_close(backend(kind, *step), expected)
    order = torch.randperm(len(step.k), generator=torch.Generator().manual_seed(0))
    moved = step._replace(
        k=step.k[order], v=step.v[order], block_table=order.argsort()[step.block_table]
    )
    assert_bits(backend(kind, *moved), backend(kind, *step))


@every_backend
@every_kind
def test_tokens_of_a_hole_do_not_exist(backend, kind):
    """As if the list had left them out, or the window had ended before."""
    step = random_step(batch=1, size=8, tokens=64, num_initial=9, rotate=False)
    table = step.block_table.clone()
    table[0, 1] = table[0, 7] = -1
    step = step._replace(
        block_table=table,
        index=torch.tensor([[2, 9, 15, 17, 30]]),
        start=torch.tensor([32]),
        end=torch.tensor([64]),
    )
    flat = [x[step.block_table].flatten(1, 2) for x in (step.k, step.v)]
    there = step._replace(
        k=flat[0],
        v=flat[1],
        block_table=None,
        num_initial=8,
        index=torch.tensor([[2, 17, 30]]),
        end=torch.tensor([56]),
    )
    assert_close(backend(kind, *step), backend(kind, *there))
    nowhere = step._replace(block_table=torch.full_like(table, -1))
    assert exactly_empty(backend(kind, *nowhere))


@every_backend
@every_kind
@every_dtype
@pytest.mark.parametrize("layout", [*LAYOUTS, "heads first"])
def test_layouts(backend, kind, layout, dtype):
    step = random_step(batch=3, queries=2, dtype=dtype)
    got = backend(kind, *step, layout=layout)
    if layout == "expanded":
        step = Step(*(LAYOUTS[layout](x) if isinstance(x, torch.Tensor) else x for x in step))
    assert_attention(kind, got, step)


@every_backend
def test_a_chunk_is_its_queries_one_by_one(backend):
    """Where the window goes back to the same token."""
    step = random_step(queries=6, tokens=70)
    step = step._replace(start=torch.tensor([3, 20]), end=torch.tensor([70, 22]))
    whole = backend("selected", *step)
    for c in range(6):
        one = step._replace(
            q_far=step.q_far[:, c : c + 1],
            q=step.q[:, c : c + 1],
            end=(step.end - 5 + c).clamp_min(step.start),
        )
        got = backend("selected", *one)
        if c < 4:  # the second sequence's window has two tokens
            window = backend("far", *one).out[1]
            torch.testing.assert_close(got.out[1], window, **CLOSE)
        torch.testing.assert_close(got.out[:, 0], whole.out[:, c], **CLOSE)
        torch.testing.assert_close(got.lse[:, 0], whole.lse[:, c], **CLOSE)


@every_backend
@pytest.mark.parametrize("queries", [1, 4])
def test_keys_rotated_on_load_are_keys_rotated_before(backend, queries):
    step = random_step(queries=queries, tokens=60, dim=32)
    step = step._replace(start=torch.tensor([0, 17]), end=torch.tensor([60, 44]))
    k = step.k.clone()
    for b, first in enumerate(step.start.tolist()):
        x, y = k[b, first:].chunk(2, -1)
        cos, sin = (t[: 60 - first, None] for t in (step.cos, step.sin))
        k[b, first:] = torch.cat((x * cos - y * sin, y * cos + x * sin), -1)
    before = backend("window", *step._replace(k=k, cos=None, sin=None))
    assert_close(backend("window", *step), before)


@every_backend
def test_far_keys_are_not_rotated(backend):
    step = random_step(tokens=60)
    step = step._replace(start=torch.tensor([60, 60]), end=torch.tensor([60, 60]))
    assert_close(backend("selected", *step), backend("far", *step))
    assert_bits(backend("far", *step), backend("far", *step._replace(cos=None, sin=None)))


@every_backend
def test_turning_queries_and_keys_alike_changes_nothing(backend):
    """Only the distance counts: a window whose angles all begin later, and its queries with it."""
    step = random_step(queries=1, tokens=40, dim=16)
    frequency = 100.0 ** (-torch.arange(8) / 8)
    angles = torch.arange(60)[:, None] * frequency

    def turned(x, places):
        cos, sin = angles[places].cos()[:, None, None], angles[places].sin()[:, None, None]
        a, b = x.chunk(2, -1)
        return torch.cat((a * cos - b * sin, b * cos + a * sin), -1)

    start, end = torch.tensor([4, 9]), torch.tensor([30, 40])
    results = []
    for later in (0, 13):
        q = turned(step.q, end - 1 - start + later)
        cos, sin = angles[later:].cos(), angles[later:].sin()
        moved = step._replace(q=q, cos=cos, sin=sin, start=start, end=end)
        results.append(backend("window", *moved))
    torch.testing.assert_close(results[0].out, results[1].out, rtol=1e-4, atol=1e-5)


@every_backend
@every_kind
def test_ragged_sequences_are_each_their_own(backend, kind):
    step = random_step(batch=3, queries=2, tokens=80)
    whole = backend(kind, *step)
    for b in range(3):
        shared = ("cos", "sin", "num_initial", "scale")
        fields = step._asdict().items()
        one = Step(*(x if n in shared or x is None else x[b : b + 1] for n, x in fields))
        got = backend(kind, *one)
        torch.testing.assert_close(got.out[0], whole.out[b], **CLOSE)
        torch.testing.assert_close(got.lse[0], whole.lse[b], **CLOSE)


@every_backend
@every_kind
def test_nothing_to_attend_to(backend, kind):
    step = random_step(queries=2, selected=3)
    nothing = torch.zeros(2, dtype=torch.long)
    step = step._replace(index=torch.full((2, 3), -1), start=nothing, end=nothing)
    assert exactly_empty(backend(kind, *step))
    bare = step._replace(index=torch.empty(2, 0, dtype=torch.int32), num_initial=0)
    assert exactly_empty(backend(kind, *bare))


@every_backend
def test_queries_before_the_window_attend_to_nothing(backend):
    step = random_step(batch=1, queries=5, tokens=30)
    step = step._replace(start=torch.tensor([20]), end=torch.tensor([22]))
    got = backend("window", *step)
    assert exactly_empty(got, (0, slice(0, 3)))
    assert got.lse[0, 3:].isfinite().all()


@every_backend
@every_kind
def test_an_empty_cache(backend, kind):
    step = random_step(tokens=0)
    assert exactly_empty(backend(kind, *step))
    pages = step._replace(
        k=torch.empty(0, 8, 2, 16), v=torch.empty(0, 8, 2, 16), block_table=torch.full((2, 3), -1)
    )
    assert exactly_empty(backend(kind, *pages))


@every_backend
@every_kind
def test_no_queries_and_no_sequences(backend, kind):
    out, lse = backend(kind, *random_step(queries=0))
    assert (out.shape, lse.shape) == ((2, 0, 6, 16), (2, 0, 6))
    step = random_step()
    none = Step(*(x[:0] if isinstance(x, torch.Tensor) else x for x in step))
    none = none._replace(cos=step.cos, sin=step.sin)
    out, lse = backend(kind, *none)
    assert (out.shape, lse.shape) == ((0, 1, 6, 16), (0, 1, 6))


@every_backend
@every_kind
def test_large_logits(backend, kind):
    """exp would overflow; the softmax picks the largest, and lse is it."""
    step = random_step(tokens=40, spread=30.0)
    got = backend(kind, *step)
    assert got.lse.max() > 100
    assert_attention(kind, got, step)


@every_backend
@pytest.mark.parametrize("scale", [0.0, -1.0, 3.0])
def test_any_scale(backend, scale):
    step = random_step(queries=2)._replace(scale=scale)
    for kind in KINDS:
        assert_attention(kind, backend(kind, *step), step)


@every_backend
@every_kind
def test_the_same_bits_every_time(backend, kind):
    step = random_step(batch=3, queries=7, tokens=300, selected=100, dtype=torch.bfloat16)
    first = backend(kind, *step)
    for _ in range(3):
        assert_bits(backend(kind, *step), first)


@every_backend
def test_a_window_from_the_first_token_leaves_nothing_far(backend):
    """No start is a start of 0, where all tokens are the window's."""
    step = random_step(tokens=40, num_initial=5)._replace(start=None)
    assert_close(backend("selected", *step), backend("window", *step))
    zeros = step._replace(start=torch.zeros(2, dtype=torch.long))
    assert_bits(backend("selected", *step), backend("selected", *zeros))
