"""What must hold of compression, with no reference in sight: in place, in 8 bits, for scores."""

import pytest
import torch

from triselect.ops.compress import Compressed
from triselect.ops.token_scores import token_scores

from ..backends import INDEX_DTYPES, assert_bits, every_dtype
from .cases import EIGHT_BITS, VALUES, case, every_backend, integers

every_value = pytest.mark.parametrize("values", VALUES, ids=str)
every_8_bits = pytest.mark.parametrize("values", EIGHT_BITS, ids=str)


def cache(shape: tuple[int, ...], dtype: torch.dtype, device: str = "cpu") -> Compressed:
    """Compressed keys with something in every row."""
    generator = torch.Generator().manual_seed(1)
    bits = torch.randint(1, 100, shape, generator=generator).to(torch.int8)
    values = bits.view(dtype) if dtype in EIGHT_BITS else bits.to(dtype)
    scale = torch.rand(shape[:-1], generator=generator) if dtype in EIGHT_BITS else None
    return Compressed(values.to(device), None if scale is None else scale.to(device))


def bits(out: Compressed, rows: torch.Tensor | slice = slice(None)) -> tuple[torch.Tensor, ...]:
    """Rows of the flattened output."""
    values, scale = out
    values = values.view(-1, values.shape[-1])
    values = values.view(torch.int8) if values.itemsize == 1 else values
    return (values[rows], *(() if scale is None else (scale.view(-1)[rows],)))


@every_backend
@every_value
@pytest.mark.parametrize("index", INDEX_DTYPES, ids=str)
@pytest.mark.parametrize("shape", [(50, 12), (5, 10, 12)], ids=str)
def test_rows_go_to_their_slots_and_no_other_changes(backend, values, index, shape):
    drawn = case(tokens=(7,))
    slots = torch.tensor([3, 49, -1, 0, 20, -1, 21], dtype=index)
    out = cache(shape, values, backend.device)
    before = cache(shape, values)
    got = backend(*drawn, out=out, slots=slots)
    assert [t.shape for t in got if t is not None] == [t.shape for t in out if t is not None]
    assert got.values.dtype is values
    written = slots[slots >= 0].long()
    new = backend(*drawn, dtype=values)
    assert_bits(bits(got, written), bits(new, slots >= 0))
    untouched = torch.ones(50, dtype=torch.bool).index_fill(0, written, False)
    assert_bits(bits(got, untouched), bits(before, untouched))


@every_backend
@every_value
def test_out_is_written_in_place(backend, values):
    drawn = case(tokens=(2, 3))
    args = tuple(map(backend.put, drawn))
    out = cache((2, 3, 12), values, backend.device)
    got = backend.function(*args, out=out, backend=backend.name)
    assert got.values is out.values
    assert got.scale is out.scale
    new = backend(*drawn, dtype=values)
    assert_bits(bits(Compressed(*(None if t is None else t.cpu() for t in out))), bits(new))
    out = cache((6, 12), values, backend.device)  # as many rows, in another shape
    assert_bits(bits(backend(*drawn, out=out)), bits(new))


@every_backend
@every_value
def test_no_slots_write_nothing(backend, values):
    drawn = case(tokens=(2, 3))
    for slots in (torch.full((2, 3), -1), torch.full((2, 3), -1, dtype=torch.int32)):
        got = backend(*drawn, out=cache((9, 12), values, backend.device), slots=slots)
        assert_bits(bits(got), bits(cache((9, 12), values)))
    empty = case(tokens=(0,))
    slots = torch.empty(0, dtype=torch.int64)
    got = backend(*empty, out=cache((9, 12), values, backend.device), slots=slots)
    assert_bits(bits(got), bits(cache((9, 12), values)))


@every_backend
def test_slots_of_any_strides(backend):
    drawn = case(tokens=(2, 3))
    slots = torch.tensor([[5, 1, -1], [0, 8, 2]])
    out = cache((9, 12), torch.int8, backend.device)
    expected = backend(*drawn, out=out, slots=slots)
    for stored in (slots.T.contiguous().T, slots.repeat(1, 2)[:, :3]):
        out = cache((9, 12), torch.int8, backend.device)
        assert_bits(bits(backend(*drawn, out=out, slots=stored)), bits(expected))


@every_backend
def test_tokens_one_by_one_fill_the_same_cache(backend):
    """As decoding does it; the numbers are exact, so they do not depend on who comes along."""
    drawn = case(tokens=(6,), data=integers)
    out = cache((6, 12), torch.int8, backend.device)
    for t in range(6):
        x = drawn.x[t : t + 1]
        backend(x, *drawn[1:], out=out, slots=torch.tensor([t]))
    at_once = backend(*drawn, dtype=torch.int8)
    assert_bits(bits(Compressed(*(t.cpu() for t in out))), bits(at_once))


@every_backend
def test_heads_of_a_group_are_added_up(backend):
    """Query head h belongs to key head h // (H / G)."""
    drawn = case(heads=6, groups=3, data=integers)
    x = drawn.x.view(6, 3, 2, 8).sum(2)
    expected = torch.nn.functional.linear(x.flatten(1), drawn.weight, drawn.bias)
    assert torch.equal(backend(*drawn).values, expected)
    assert torch.equal(backend(drawn.x[:, [1, 0, 2, 3, 5, 4]], *drawn[1:]).values, expected)
    assert not torch.equal(backend(drawn.x[:, [2, 1, 0, 3, 4, 5]], *drawn[1:]).values, expected)


@every_backend
@every_dtype
def test_scores_of_compressed_vectors(backend, dtype):
    """With all G * D numbers and no map, scores are those of all heads."""
    queries = case(0, tokens=(2, 3), heads=4, dtype=dtype, data=integers)
    keys = case(1, tokens=(2, 30), heads=2, dtype=dtype, data=integers)
    same = torch.eye(16, dtype=dtype)
    q, k = (backend(x, same).values for x in (queries.x, keys.x))
    assert torch.equal(token_scores(q, k), token_scores(queries.x, keys.x))


@every_backend
@every_8_bits
def test_a_token_that_is_not_finite_has_no_scale(backend, values):
    x, some, _ = case(bias=False, data=integers)
    x[1, 0, 0], x[3, 1, 2], x[4, 2, 3] = torch.nan, torch.inf, -torch.inf
    bad = torch.tensor([False, True, False, True, True, False])
    for weight in (some, some.abs() + 1):  # without a zero, infinity stays what it is
        got = backend(x, weight, dtype=values)
        assert torch.equal(got.scale.isnan(), bad)
        assert (got.values.float()[bad] == 0).all()
        alone = backend(x[~bad], weight, dtype=values)
        assert_bits(bits(got, ~bad), bits(alone))


@every_backend
def test_floats_stay_what_they_are(backend):
    """Without a scale, NaN and infinity are numbers like others."""
    x, weight, _ = case(bias=False, heads=2, dim=1, numbers=2)
    weight = torch.eye(2)
    x[1, 0, 0], x[3, 1, 0] = torch.nan, torch.inf
    got = backend(x, weight[:1]).values[:, 0]
    assert got.isnan().tolist() == [False, True, False, True, False, False]
    assert torch.equal(got[~got.isnan()], x[~got.isnan(), 0, 0])


@every_backend
@every_8_bits
def test_zeros(backend, values):
    x, weight, _ = case(bias=False)
    x[2] = 0
    got = backend(x, weight, dtype=values)
    assert got.scale[2] == 0
    assert (got.values[2].float() == 0).all()
    assert (got.scale[[0, 1, 3, 4, 5]] > 0).all()


@every_backend
@every_8_bits
def test_the_largest_number_has_the_largest_value(backend, values):
    got = backend(*case(tokens=(100,)), dtype=values)
    limit = 127 if values is torch.int8 else 448
    assert (got.values.float().abs().amax(1) == limit).all()


@every_backend
def test_ties_go_to_the_even_integer(backend):
    numbers = torch.tensor([127, 0.5, 1.5, 2.5, -0.5, -1.5, -2.5, 126.5, 0.49999997])
    got = backend(numbers.view(1, 1, 9), torch.eye(9), dtype=torch.int8)
    assert got.scale.tolist() == [1]
    assert got.values.tolist() == [[127, 0, 2, 2, 0, -2, -2, 126, 0]]


@every_backend
def test_every_float8_is_itself_and_what_is_between_goes_to_the_nearest(backend):
    every = torch.arange(127).to(torch.uint8).view(torch.float8_e4m3fn).float()  # 0 to 448
    between = (every[:-1] + every[1:]) / 2
    even = torch.where(torch.arange(126) % 2 == 0, every[:-1], every[1:])
    for numbers, expected in ((every, every), (between, even), (between * (1 - 1e-6), every[:-1])):
        numbers = torch.cat((numbers, torch.tensor([448.0])))
        got = backend(numbers.view(1, 1, -1), torch.eye(len(numbers)), dtype=torch.float8_e4m3fn)
        assert got.scale.tolist() == [1]
        assert torch.equal(got.values[0, :-1].float(), expected)


@every_backend
@every_8_bits
def test_numbers_so_small_that_the_scale_has_no_digits(backend, values):
    """max |y| / limit in subnormal float32: values stay within the limit, and finite."""
    for size in (3e-45, 2e-43, 6.9e-43, 3e-41, 1e-38):
        x = torch.tensor([1.0, -1, 0.5, 0.99]).view(1, 1, 4) * size
        got = backend(x, torch.eye(4), dtype=values)
        assert got.values.float().abs().max() <= (127 if values is torch.int8 else 448)
        error = got.values.double() * got.scale.double()[:, None] - x[0].double()
        assert error.abs().max() <= 448 * 1.5e-45 / 2 + size / 16


@every_backend
@every_value
def test_every_run_has_the_same_bits(backend, values):
    drawn = case(tokens=(300,), heads=8, dim=64, numbers=64, dtype=torch.bfloat16)
    first = backend(*drawn, dtype=values)
    for _ in range(3):
        assert_bits(bits(backend(*drawn, dtype=values)), bits(first))


@every_backend
def test_inputs_are_left_alone(backend):
    drawn = case()
    slots = torch.arange(6)
    before = [t.clone() for t in (*drawn, slots)]
    backend(*drawn, out=cache((6, 12), torch.int8, backend.device), slots=slots)
    assert all(map(torch.equal, (*drawn, slots), before))
