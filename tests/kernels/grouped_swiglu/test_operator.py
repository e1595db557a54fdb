"""The operators among PyTorch's: opcheck, one compilation for any rows, meta, direct calls."""

import pytest
import torch

from triselect import grouped_swiglu

from ..backends import assert_bits, every_dtype, missing_native, opcheck
from ..compiling import assert_compiles_once
from .cases import FORMATS, case, every_backend, every_format

NAMES = ("grouped_swiglu_up", "grouped_swiglu_down")
missing = missing_native(NAMES)
needs_native = pytest.mark.skipif(missing is not None, reason=missing or "")


@every_backend
@every_format
def test_opcheck(backend, weights):
    given = case(tokens=4, padding=2, dtype=torch.bfloat16, weights=weights)
    calls = (given.up, given.project(given.x[:, :10].contiguous()))
    for name, args in zip(NAMES, calls, strict=True):
        if weights != "float8":
            opcheck(name, args, backend)
            continue
        overload = getattr(torch.ops.triselect, name).backend
        checks = ("test_autograd_registration", "test_faketensor", "test_aot_dispatch_dynamic")
        args = (*map(backend.put, args), backend.name)  # torch compares no float8: no test_schema
        torch.library.opcheck(overload, args, test_utils=checks)


@every_backend
@every_dtype
def test_opcheck_training(backend, dtype):
    given = case(padding=2, dtype=dtype)
    opcheck("grouped_swiglu_up", given.up, backend, leaves=(0, 1))
    opcheck("grouped_swiglu_down", given.project(given.x[:, :10].clone()), backend, leaves=(0, 1))


def test_both_overloads_agree():
    given = case(tokens=4, padding=2)
    h = given.x[:, :10]
    for name, args in zip(NAMES, (given.up, given.project(h)), strict=True):
        operator = getattr(torch.ops.triselect, name)
        assert_bits(operator.default(*args), operator.backend(*args, "auto"))


@every_backend
@pytest.mark.parametrize("tokens", [None, 9])
def test_one_compilation_for_every_number_of_rows(backend, tokens, compiler):
    _, gate_up, down, *_ = (backend.put(t) for t in case(counts=(1, 1, 0)))

    def experts(rows, offsets, source):
        y = grouped_swiglu(
            rows * 2, gate_up, down, offsets + 0, source=source, backend=backend.name
        )
        return y + 1

    def inputs(rows):
        counts = (rows // 2, rows - rows // 2, 0)
        given = case(rows, counts=counts, padding=3, tokens=tokens)
        return tuple(map(backend.put, (given.rows, given.offsets, given.source)))

    assert_compiles_once(experts, inputs, compiler)


@every_backend
@every_dtype
def test_gradients_of_a_compiled_function(backend, dtype, compiler):
    _, gate_up, down, *_ = (backend.put(t) for t in case(counts=(1, 1, 0), dtype=dtype))

    def experts(rows, offsets, gate_up):
        return grouped_swiglu(rows * 2, gate_up, down, offsets, backend=backend.name)

    def inputs(rows):
        counts = (rows // 2, rows - rows // 2, 0)
        given = case(rows, counts=counts, padding=3, dtype=dtype)
        leaves = (backend.put(given.rows), backend.put(gate_up).clone())
        rows, gates = (t.requires_grad_() for t in leaves)
        return rows, backend.put(given.offsets), gates

    def trained(function):
        def run(rows, offsets, gates):
            y = function(rows, offsets, gates)
            upstream = torch.linspace(-1, 1, y.numel(), device=y.device).view_as(y).to(dtype)
            return torch.autograd.grad(y, (rows, gates), upstream)

        return run

    assert_compiles_once(experts, inputs, compiler, few=(), wrap=trained)


def test_meta_tensors_have_the_shapes_of_real_ones():
    for weights in FORMATS:
        for tokens in (None, 4):
            given = case(tokens=tokens, padding=2, dtype=torch.float16, weights=weights)
            meta = [None if t is None else t.to("meta") for t in given]
            of = [dict(zip(OPTIONS, args[4:], strict=True)) for args in (given, meta)]
            real, other = grouped_swiglu(*given[:4], **of[0]), grouped_swiglu(*meta[:4], **of[1])
            assert (other.shape, other.dtype, other.stride()) == (
                real.shape,
                real.dtype,
                real.stride(),
            )


OPTIONS = ("source", "gate_up_scale", "down_scale")


def test_a_graph_of_autograd_only_where_it_is_asked_for():
    given = case()
    leaf = given.rows.clone().requires_grad_()
    assert grouped_swiglu(leaf, *given[1:4]).requires_grad
    with torch.no_grad():
        assert not grouped_swiglu(leaf, *given[1:4]).requires_grad
    assert not grouped_swiglu(*given[:4]).requires_grad


GIVEN = case(tokens=4, padding=2)  # 9 rows of 4 experts, 12 numbers to 10
INT8, FLOAT8 = (case(tokens=4, padding=2, weights=name) for name in ("int8", "float8"))
OFFSETS = GIVEN.offsets
# What a direct call of the operator may not get past its memory with, by the place of an argument.
UP = [
    {0: GIVEN.rows[0]},
    {0: GIVEN.rows[None]},
    {0: GIVEN.rows[:, 1:]},
    {0: GIVEN.rows[:, :0]},
    {0: GIVEN.rows[:, :0], 1: GIVEN.gate_up[:, :, :0]},
    {0: GIVEN.rows.double()},
    {0: GIVEN.rows.half()},
    {0: GIVEN.rows.int()},
    {0: GIVEN.rows[:0]},
    {1: GIVEN.gate_up[0]},
    {1: GIVEN.gate_up[:, 1:].contiguous()},
    {1: GIVEN.gate_up[1:]},
    {1: GIVEN.gate_up[..., 1:]},
    {1: GIVEN.gate_up[..., 1:].contiguous()},
    {1: GIVEN.gate_up.double()},
    {1: GIVEN.gate_up.to(torch.int16)},
    {1: GIVEN.gate_up.mT.contiguous().mT},
    {1: INT8.gate_up},
    {1: FLOAT8.gate_up},
    {2: OFFSETS[1:]},
    {2: OFFSETS[None]},
    {2: OFFSETS.long()},
    {2: OFFSETS.float()},
    {2: OFFSETS + 1},
    {2: OFFSETS - 1},
    {2: OFFSETS * 100},
    {2: OFFSETS.flip(0)},
    {2: OFFSETS * torch.tensor([1, -1, 1, 1, 1], dtype=torch.int32)},
    {2: OFFSETS + torch.tensor([0, 0, 0, 2**31 - 20, 0], dtype=torch.int32)},
    {3: GIVEN.source[1:-3]},
    {3: GIVEN.source[None]},
    {3: GIVEN.source.long()},
    {3: GIVEN.source + 4},
    {3: GIVEN.source - 4},
    {3: GIVEN.source * 0 - 2**31},
    {3: GIVEN.source * 0 - 1},
    {4: INT8.gate_up_scale},
]
SCALES = {
    "int8": (
        INT8,
        [None, INT8.gate_up_scale[1:], INT8.gate_up_scale[:, 1:], INT8.gate_up_scale[0]],
    ),
    "float8": (FLOAT8, [None, FLOAT8.gate_up_scale[1:], INT8.gate_up_scale]),
}
H = GIVEN.x[:, :10].contiguous()
DOWN = [
    {0: H[0]},
    {0: H[:, 1:]},
    {0: H.double()},
    {0: H.half()},
    {0: H[:3]},
    {1: GIVEN.down[0]},
    {1: GIVEN.down[1:]},
    {1: GIVEN.down[..., 1:]},
    {1: GIVEN.down.mT},
    {1: GIVEN.down.half()},
    {1: GIVEN.down.to(torch.int16)},
    {1: INT8.down},
    {1: INT8.down, 3: INT8.gate_up_scale},
    {1: INT8.down, 3: INT8.down_scale.double()},
    {1: FLOAT8.down, 3: INT8.down_scale},
    {1: FLOAT8.down, 3: FLOAT8.down_scale.repeat(1, 2, 1)},
    {1: FLOAT8.down, 3: FLOAT8.down_scale.half()},
    {2: OFFSETS[1:]},
    {2: OFFSETS.long()},
    {2: OFFSETS + 1},
    {2: OFFSETS * 100},
    {2: OFFSETS.flip(0)},
    {3: INT8.down_scale},
]


def refuses(name, args):
    with pytest.raises((ValueError, TypeError, RuntimeError)):
        getattr(torch.ops.triselect, name).default(*args)


@needs_native
@pytest.mark.parametrize("changes", UP, ids=[f"{i}-{[*c]}" for i, c in enumerate(UP)])
def test_the_extension_reads_nothing_that_is_not_there(changes):
    """Called without the public function, which would have said so in words."""
    refuses(NAMES[0], [changes.get(place, value) for place, value in enumerate(GIVEN.up)])


@needs_native
@pytest.mark.parametrize("weights", SCALES)
def test_nor_scales(weights):
    given, scales = SCALES[weights]
    for scale in (*scales, given.gate_up_scale.double(), given.gate_up_scale.int()):
        refuses(NAMES[0], (*given.up[:-1], scale))


@needs_native
@pytest.mark.parametrize("changes", DOWN, ids=[f"{i}-{[*c]}" for i, c in enumerate(DOWN)])
def test_nor_in_the_second_product(changes):
    refuses(NAMES[1], [changes.get(place, value) for place, value in enumerate(GIVEN.project(H))])


@needs_native
@pytest.mark.parametrize("experts", [0, 1])
def test_the_extension_survives_what_is_empty(experts):
    """No experts, and no channels of them."""
    offsets = torch.zeros(experts + 1, dtype=torch.int32)
    rows = torch.ones(3, 12)
    h = torch.ops.triselect.grouped_swiglu_up(rows, torch.ones(experts, 0, 12), offsets, None, None)
    assert h.shape == (3, 0)
    refuses(NAMES[1], (h, torch.ones(experts, 5, 0), offsets, None))


def test_rows_have_no_gradient_through_source():
    """The public function indexes them before; a call of the operator itself is refused."""
    rows = torch.ones(3, 8, requires_grad=True)
    source = torch.arange(3, dtype=torch.int32)
    offsets = torch.tensor([0, 3], dtype=torch.int32)
    operator = torch.ops.triselect.grouped_swiglu_up.backend
    with pytest.raises(ValueError, match="source must be None where a gradient is needed"):
        operator(rows, torch.ones(1, 4, 8), offsets, source, None, "eager")
