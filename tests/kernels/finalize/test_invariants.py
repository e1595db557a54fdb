"""What must hold with no reference in sight: order, rounding, what is not read, in place."""

import numpy as np
import pytest
import torch
from torch import Tensor

import triselect

from ..backends import assert_bits, every_dtype
from ..memory import growth
from .cases import Case, case, every_backend, integers, laid_out, permutation_of

MUCH = 2.0**24  # MUCH + 1 is MUCH in float32


def slots(*of_token: int) -> Tensor:
    return torch.tensor([of_token], dtype=torch.int32)


@every_backend
def test_k_by_k(backend):
    """Whatever the rows' order: MUCH + 1 - MUCH is 0, and MUCH - MUCH + 1 is 1."""
    rows = torch.tensor([[MUCH], [1.0], [-MUCH]]).expand(3, 40)
    for order, expected in (((0, 1, 2), 0), ((0, 2, 1), 1), ((1, 0, 2), 0), ((2, 0, 1), 1)):
        assert (backend(rows, torch.ones(1, 3), slots(*order)) == expected).all()


def assert_k_by_k(backend, top_k: int) -> None:
    """One row is MUCH, the last one -MUCH, all others 1, of which some are lost in it."""
    for first in range(top_k - 1):
        column = np.ones(top_k, np.float32)
        column[first], column[-1] = MUCH, -MUCH
        expected = np.float32(0)
        for x in column:
            expected += x
        rows = torch.from_numpy(column)[:, None].repeat(1, 20)
        got = backend(rows, torch.ones(1, top_k), slots(*range(top_k)))
        assert (got == float(expected)).all()


@every_backend
@pytest.mark.parametrize("top_k", [2, 9, 17])
def test_many_k_by_k(backend, top_k):
    assert_k_by_k(backend, top_k)


@every_backend
def test_residuals_come_last_in_their_order(backend):
    ones, much = torch.ones(1, 20), torch.full((1, 20), MUCH)
    rows, weights = torch.cat((much, ones)), torch.ones(1, 2)
    for residuals, expected in (((-much,), 0), ((-much, ones), 1), ((ones, -much), 0)):
        drawn = Case(rows, weights, slots(0, 1), None, None, *residuals)
        assert (backend(*drawn) == expected).all()


@every_backend
@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16], ids=str)
def test_rounded_once(backend, dtype):
    """From float32: what each step would lose adds up, and a tie goes to the even number."""
    digits = {torch.float16: 11, torch.bfloat16: 8}[dtype]
    rows = torch.ones(4, 40, dtype=dtype)
    rows[0] = 2.0**digits  # after which come even numbers
    residual = torch.ones(1, 40, dtype=dtype)
    weights = torch.ones(1, 4)
    got = backend(rows, weights, slots(0, 1, 2, 3), None, None, residual)
    assert (got == 2.0**digits + 4).all()
    got = backend(rows, weights, slots(0, 1, 2, 3))  # + 3, between 2 and 4
    assert (got == 2.0**digits + 4).all()
    assert (backend(rows, weights[:, :2], slots(0, 1)) == 2.0**digits).all()


@every_backend
@every_dtype
def test_a_bias_counts_like_a_part_of_the_row(backend, dtype):
    drawn = case(tokens=30, padding=0.0, bias=dtype, dtype=dtype, data=integers)
    bias = torch.zeros_like(drawn.rows)
    bias[drawn.slot_of.flatten().long()] = drawn.bias[drawn.experts.flatten().long()]
    expected = backend(drawn.rows + bias, drawn.weights, drawn.slot_of)
    assert_bits(backend(*drawn), expected)


@every_backend
def test_what_is_skipped_says_nothing(backend):
    """Neither a weight, nor a bias, nor a row that is NaN: some rows are of nobody."""
    drawn = case(tokens=30, padding=0.5, bias=torch.float32)
    skipped = drawn.slot_of < 0
    drawn.weights[skipped] = torch.nan
    got = backend(*drawn)
    assert got.isfinite().all()
    drawn.weights[skipped] = 0
    assert_bits(got, backend(*drawn))
    assert (got[skipped.all(1)] == 0).all()


@every_backend
def test_without_an_expert_there_is_no_bias_and_no_row(backend):
    drawn = case(padding=0.0, bias=torch.float32)
    drawn.experts[::2, 1] = -1
    got = backend(*drawn)
    drawn.slot_of[::2, 1] = -1
    assert_bits(got, backend(*drawn))


@every_backend
def test_nan_stays_in_its_token_and_column(backend):
    drawn = case(tokens=30, padding=0.0)
    before = backend(*drawn)
    drawn.rows[drawn.slot_of[7, 2], 5] = torch.nan
    drawn.rows[drawn.slot_of[8, 0], 6] = torch.inf
    got = backend(*drawn)
    changed = torch.zeros_like(got, dtype=torch.bool)
    changed[7, 5] = changed[8, 6] = True
    assert torch.equal(got.isfinite(), ~changed)
    assert_bits(got.masked_fill(changed, 0), before.masked_fill(changed, 0))


@every_backend
def test_there_and_back(backend):
    """Copies of tokens in the order of experts, brought back with weights whose sum is one."""
    hidden = torch.randn(50, 33, generator=torch.Generator().manual_seed(0)).bfloat16()
    routing = triselect.grouped_topk(torch.randn(50, 16), 4)
    source, slot_of, _ = triselect.permute(routing.experts, 16)
    got = backend(hidden[source], torch.full((50, 4), 0.25), slot_of)
    assert_bits(got, hidden)


@every_backend
def test_any_numbering_of_the_rows(backend):
    drawn = case(tokens=20, padding=0.0, bias=torch.float32, residuals=1)
    order = torch.randperm(80)
    moved = torch.empty_like(drawn.rows)
    moved[order] = drawn.rows
    other = drawn._replace(rows=moved, slot_of=order[drawn.slot_of].int())
    assert_bits(backend(*other), backend(*drawn))


@every_backend
@every_dtype
def test_a_token_alone_has_the_same_bits(backend, dtype):
    """And on every run."""
    drawn = case(tokens=300, hidden=100, bias=dtype, residuals=2, dtype=dtype)
    together = backend(*drawn)
    assert_bits(backend(*drawn), together)
    for t in (0, 17, 299):
        here = slice(t, t + 1)
        alone = Case(
            drawn.rows,
            drawn.weights[here],
            drawn.slot_of[here],
            drawn.experts[here],
            drawn.bias,
            drawn.residual[here],
            drawn.residual2[here],
        )
        assert_bits(backend(*alone), together[here])


@every_backend
@every_dtype
@pytest.mark.parametrize("wide", [False, True], ids=["contiguous", "columns of more"])
def test_out_is_written_in_place(backend, dtype, wide):
    drawn = case(tokens=9, bias=dtype, residuals=1, dtype=dtype)
    args = tuple(map(backend.put, drawn))
    around = backend.put(torch.full((9, 40), 7.0, dtype=dtype))
    out = around[:, 3:27] if wide else around[:, :24].clone()
    got = backend.function(*args, out=out, backend=backend.name)
    assert got is out
    assert_bits(out.cpu(), backend(*drawn))
    if wide:
        assert (around[:, :3] == 7).all()
        assert (around[:, 27:] == 7).all()


@every_backend
def test_into_a_residual(backend):
    """As a layer adds to its stream."""
    for residuals, which in ((1, -2), (2, -2), (2, -1)):
        drawn = case(tokens=9, hidden=70, residuals=residuals)
        expected = backend(*drawn)
        args = tuple(map(backend.put, (x if x is None else x.clone() for x in drawn)))
        got = backend.function(*args, out=args[which], backend=backend.name)
        assert got is args[which]
        assert_bits(got.cpu(), expected)


@every_backend
def test_inputs_are_left_alone(backend):
    drawn = case(bias=torch.float32, residuals=2, data=integers)
    args = tuple(map(backend.put, drawn))
    before = [x.clone() for x in args]
    backend.function(*args, backend=backend.name)
    assert_bits(list(args), before)


@pytest.mark.parametrize("name", ["auto", "native"])
def test_nothing_is_copied_on_the_way_to_out(name):
    if not triselect.ops.operator.has_kernel("finalize_out", "CPU"):
        pytest.skip("the C++ extension was not built")
    drawn = case(tokens=2000, top_k=4, hidden=1024, residuals=1)
    out = torch.empty(2000, 1024)
    assert growth(lambda: laid_out(*drawn, out=out, backend=name)) < out.nbytes / 4


def test_a_routed_permutation_will_do():
    logits, hidden = torch.randn(20, 8), torch.randn(20, 16)
    routed = triselect.route_and_permute(logits, 2)
    rows = hidden[routed.source]
    got = triselect.finalize(rows, routed.weights, routed)
    assert_bits(got, triselect.finalize(rows, routed.weights, permutation_of(routed.slot_of)))
