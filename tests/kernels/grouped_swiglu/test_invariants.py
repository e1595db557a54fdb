"""What must hold of experts, with no reference in sight: whose rows, whose weights, whose bits.

A row's result depends on its own numbers and its expert's weights. How it is rounded may depend on
how many rows that expert has besides, and on nothing else.
"""

import pytest
import torch

from ..backends import Backend, assert_bits, every_dtype
from ..compress.cases import integers
from .cases import (
    FORMATS,
    Case,
    assert_no_one,
    case,
    dequantised,
    downs,
    every_backend,
    every_format,
    plain,
    ups,
)

FEW = {"counts": (3, 0, 5, 1, 2), "hidden": 136, "inner": 68}  # which kernels may do differently
MANY = {"counts": (40, 0, 19, 3, 90), "hidden": 136, "inner": 68}
every_amount = pytest.mark.parametrize("sizes", [FEW, MANY], ids=["few", "many"])


def reordered(given: Case, order: list[int]) -> tuple[Case, torch.Tensor]:
    """The same experts with the same rows in another order, and where each row was before."""
    parts = [torch.arange(len(given.x))[given.of_expert(e)] for e in order]
    before = torch.cat(parts)
    counts = torch.tensor([0, *map(len, parts)])
    return Case(
        given.rows[before],
        *(t[order] for t in (given.gate_up, given.down)),
        counts.cumsum(0).int(),
        None,
        *(None if t is None else t[order] for t in (given.gate_up_scale, given.down_scale)),
    ), before


def spoiled(t: torch.Tensor | None, e: int) -> torch.Tensor | None:
    """The weights or scales of an expert, of which each is something else."""
    if t is None:
        return None
    t = t.clone()
    t[e] = t[e].flip(0) if t.dtype is torch.int8 else torch.nan
    return t


@every_backend
@every_dtype
@every_format
@every_amount
@pytest.mark.parametrize("e", [1, 2])
def test_weights_of_others_have_no_influence(backend, dtype, weights, sizes, e):
    """Of an expert without rows on no one."""
    given = case(**sizes, dtype=dtype, weights=weights)
    other = given._replace(
        **{name: spoiled(t, e) for name, t in given._asdict().items() if name[0] in "gd"}
    )
    got, before = backend(*other), backend(*given)
    theirs = given.of_expert(e)
    assert_bits(got[: theirs.start], before[: theirs.start])
    assert_bits(got[theirs.stop :], before[theirs.stop :])
    if e == 2:
        assert not torch.equal(got[theirs], before[theirs])


@every_backend
@every_dtype
@every_format
@every_amount
def test_the_order_of_experts_does_not_matter(backend, dtype, weights, sizes):
    """As long as each keeps its rows: to the last bit."""
    given = case(**sizes, dtype=dtype, weights=weights)
    other, before = reordered(given, [4, 2, 0, 1, 3])
    assert_bits(backend(*other), backend(*given)[before])


@every_backend
@every_dtype
@every_format
def test_rows_one_by_one(backend, dtype, weights):
    """Sums that are exact do not depend on how many rows an expert has."""
    given = case(counts=(3, 0, 12, 1), dtype=dtype, weights=weights, data=integers)
    down, h = downs(backend), given.rows[:, :10]
    together = down(*given.project(h))
    for e in range(4):
        for i in range(*given.of_expert(e).indices(16)):
            offsets = torch.tensor([0] * (e + 1) + [1] * (4 - e), dtype=torch.int32)
            alone = down(h[i : i + 1], given.down, offsets, given.down_scale)
            assert_bits(alone, together[i : i + 1])


@every_backend
@every_dtype
@every_format
@every_amount
def test_source_copies_rows(backend, dtype, weights, sizes):
    """In any order, any of them often, and some never."""
    given = case(**sizes, tokens=7, padding=3, dtype=dtype, weights=weights)
    assert len(given.source) > 7
    written = given._replace(rows=given.x, source=None)
    assert_bits(backend(*given), backend(*written))
    unread = ~torch.isin(torch.arange(9), given.source)
    rows = torch.cat((given.rows, given.rows[:2]))
    rows[unread] = torch.nan
    assert_bits(backend(*given._replace(rows=rows)), backend(*given))


@every_backend
@every_dtype
@every_amount
@pytest.mark.parametrize("tokens", [None, 4])
def test_rows_of_no_expert_are_zero(backend, dtype, sizes, tokens):
    """Whatever they are."""
    given = case(**sizes, padding=5, tokens=tokens, dtype=dtype)
    if tokens is None:
        given.rows[given.used :] = torch.nan
    h = ups(backend)(*given.up)
    assert_no_one(h, given.used)
    h[given.used :] = -torch.inf
    for got in (downs(backend)(*given.project(h)), backend(*given)):
        assert got.isfinite().all()
        assert_no_one(got, given.used)
        assert got[: given.used].any(1).all()


@every_backend
@every_dtype
@every_format
@every_amount
def test_nan_stays_in_its_row(backend, dtype, weights, sizes):
    given = case(**sizes, dtype=dtype, weights=weights)
    before = backend(*given)
    bad = torch.zeros(len(given.rows), dtype=torch.bool)
    for i in (1, given.of_expert(2).start, given.used - 1):
        given.rows[i, 7], bad[i] = torch.nan, True
    got = backend(*given)
    assert got[bad].isnan().all()
    assert_bits(got[~bad], before[~bad])


@every_backend
@every_dtype
@every_format
@every_amount
def test_a_part_of_the_output_channels(backend, dtype, weights, sizes):
    """A slice of `down` in place is the same slice of the result, for sums that are exact."""
    given = case(**sizes | {"hidden": 300}, dtype=dtype, weights=weights, data=integers)
    h = given.rows[:, :68]
    down = downs(backend)
    whole = down(*given.project(h))
    for first, last in ((0, 128), (128, 256), (256, 300), (128, 129), (0, 300)):
        here, scale = slice(first, last), given.down_scale
        if scale is not None:
            blocks = slice(first // 128, -(-last // 128))
            scale = scale[:, here if scale.dim() == 2 else blocks]
        assert_bits(down(h, given.down[:, here], given.offsets, scale), whole[:, here])


@every_backend
def test_gates_first_then_ups(backend):
    """transformers' layout, worked by hand."""
    gate_up = torch.tensor([[[3.0], [1000.0], [2.0], [0.5]]])  # gates, then ups
    down = torch.tensor([[[1.0, -1.0]]])
    offsets = torch.tensor([0, 1], dtype=torch.int32)
    h = 3 / (1 + torch.tensor(-3.0).exp()) * 2, 1000 * 0.5
    got = ups(backend)(torch.ones(1, 1), gate_up, offsets, None, None)
    torch.testing.assert_close(got, torch.tensor([h]))
    got = backend(torch.ones(1, 1), gate_up, down, offsets)
    torch.testing.assert_close(got, torch.tensor([[h[0] - h[1]]]))


@every_backend
@every_dtype
@every_amount
def test_gates_far_from_zero(backend, dtype, sizes):
    """silu is 0 on the one side and its argument on the other, where exp is infinite."""
    given = case(**sizes, dtype=dtype)
    given.rows.fill_(1)
    given.gate_up.zero_()
    inner = sizes["inner"]
    given.gate_up[:, :inner, 0] = torch.tensor(
        [-60000.0, 60000, -1000, 100, -100, 88.5, -88.5, 0]
    ).repeat(9)[:inner]
    given.gate_up[:, inner:, 1] = 0.5
    h = ups(backend)(*given.up)
    expected = given.gate_up[0, :inner, 0].clamp(min=0) / 2
    torch.testing.assert_close(h, expected.expand_as(h), rtol=0, atol=1e-35)


@every_backend
@every_dtype
@pytest.mark.parametrize("weights", ["int8", "float8"])
@every_amount
def test_a_scale_is_of_its_weights_alone(backend, dtype, weights, sizes):
    """Twice one scale of `down` is twice the channels it is of, or their part in the block."""
    given = case(
        **sizes | {"hidden": 300, "inner": 200}, dtype=dtype, weights=weights, data=integers
    )
    h = torch.zeros(len(given.rows), 200, dtype=dtype)
    h[:, 128:] = given.rows[:, :72]
    down = downs(backend)
    before = down(*given.project(h))
    of = (2, 130) if weights == "int8" else (2, 1, 1)
    scale = given.down_scale.clone()
    scale[of] *= 2
    expected = before.clone()
    expected[given.of_expert(2), 130 if weights == "int8" else slice(128, 256)] *= 2
    assert_bits(down(h, given.down, given.offsets, scale), expected)


@every_backend
@every_dtype
@every_format
def test_every_run_has_the_same_bits(backend, dtype, weights):
    given = case(counts=(70, 3, 0, 12, 33), hidden=264, inner=136, dtype=dtype, weights=weights)
    first = backend(*given)
    for _ in range(3):
        assert_bits(backend(*given), first)


@every_backend
def test_inputs_are_left_alone(backend):
    for weights in FORMATS:
        given = case(tokens=5, padding=2, weights=weights)
        before = [None if t is None else t.clone() for t in given]
        backend(*given)
        for mine, theirs in zip(given, before, strict=True):
            if mine is not None:
                assert_bits(mine, theirs)


def gradients(backend: Backend, given: Case, upstream: torch.Tensor) -> list[torch.Tensor]:
    """Of rows and weights."""
    leaves = [backend.put(t).clone().requires_grad_() for t in given[:3]]
    others = [backend.put(t) for t in given[3:]]
    y = backend.function(*leaves, *others, backend=backend.name)
    return [t.cpu() for t in torch.autograd.grad(y, leaves, backend.put(upstream))]


def plain_gradients(given: Case, upstream: torch.Tensor, dtype: torch.dtype) -> list[torch.Tensor]:
    """The same by torch, through an expert after the other."""
    leaves = [t.detach().to(dtype).requires_grad_() for t in given[:3]]
    x = leaves[0] if given.source is None else leaves[0][given.source.clamp(min=0).long()]
    y = plain(x, *leaves[1:], given.offsets)
    return [*torch.autograd.grad(y, leaves, upstream.to(dtype))]


@every_backend
@every_dtype
@every_amount
@pytest.mark.parametrize("tokens", [None, 9], ids=["rows", "source"])
def test_gradients(backend, dtype, sizes, tokens):
    """No further from those of float64 than those of plain PyTorch, largest and mean apart.

    But for one rounding: sums in another order.
    """
    given = case(**sizes, tokens=tokens, padding=2, dtype=dtype)
    generator = torch.Generator().manual_seed(0)
    upstream = torch.randn(len(given.x), sizes["hidden"], generator=generator).to(dtype)
    exact = plain_gradients(given, upstream, torch.float64)
    theirs = plain_gradients(given, upstream, dtype)
    rounding = torch.finfo(dtype).eps
    for mine, other, right in zip(gradients(backend, given, upstream), theirs, exact, strict=True):
        assert mine.dtype is dtype
        error, allowed = (mine.double() - right).abs(), (other.double() - right).abs()
        assert error.max() <= allowed.max() + rounding * right.abs().max()
        assert error.mean() <= allowed.mean() + rounding * right.abs().mean() / 10
    unused = given.of_expert(1)
    assert unused.start == unused.stop
    assert not any(g[1].any() for g in gradients(backend, given, upstream)[1:])


@every_backend
@pytest.mark.parametrize("weights", ["int8", "float8"])
def test_the_gradient_of_rows_behind_8_bits(backend, weights):
    given = case(**MANY, weights=weights)
    upstream = torch.ones(len(given.rows), 136)
    leaf = backend.put(given.rows).clone().requires_grad_()
    y = backend.function(leaf, *map(backend.put, given[1:]), backend=backend.name)
    y.backward(backend.put(upstream))
    written = given._replace(
        gate_up=dequantised(given.gate_up, given.gate_up_scale, torch.float64),
        down=dequantised(given.down, given.down_scale, torch.float64),
    )
    expected = plain_gradients(written, upstream, torch.float64)[0]
    torch.testing.assert_close(leaf.grad.cpu().double(), expected, rtol=1e-4, atol=1e-5)


@every_backend
def test_gradients_of_what_asks_for_them(backend):
    """Of one leaf alone they are the same as of all."""
    given = case(tokens=5, padding=1)
    upstream = torch.ones(10, 12)
    every = gradients(backend, given, upstream)
    for i in range(3):
        args = [backend.put(t) for t in given]
        args[i] = args[i].clone().requires_grad_()
        y = backend.function(*args, backend=backend.name)
        assert_bits(torch.autograd.grad(y, args[i], backend.put(upstream))[0].cpu(), every[i])


@every_backend
def test_gradients_of_no_rows(backend):
    given = case(counts=(0, 0), padding=3)
    for found, leaf in zip(gradients(backend, given, torch.ones(3, 12)), given[:3], strict=True):
        assert_bits(found, torch.zeros_like(leaf))
