"""A bad argument is refused before any kernel runs: its name, what was expected, what came."""

import re

import pytest
import torch

from triselect.ops import operator
from triselect.ops.compress import Compressed, compress

from ..backends import assert_bits
from .cases import case, every_backend
from .test_invariants import bits, cache

X, WEIGHT, BIAS = case()  # 6 tokens, 4 heads of 8 numbers in 2 groups, to 12 numbers
OUT = cache((9, 12), torch.int8)
SLOTS = torch.arange(6)
FLOATS = torch.zeros(6, 12)

BAD = {
    "x-list": ({"x": [[0.0]]}, TypeError, "x must be a tensor, got list"),
    "x-1d": ({"x": X[0, 0]}, ValueError, "x must be (..., heads, dim), got shape (8,)"),
    "x-no dim": ({"x": X[..., :0]}, ValueError, "x must be (..., heads, dim), got shape (6, 4, 0)"),
    "x-float64": (
        {"x": X.double()},
        TypeError,
        "x must be float32, float16 or bfloat16, got torch.float64",
    ),
    "x-int": ({"x": X.int()}, TypeError, "x must be float32, float16 or bfloat16, got torch.int32"),
    "weight-list": ({"weight": [[0.0]]}, TypeError, "weight must be a tensor, got list"),
    "weight-1d": (
        {"weight": WEIGHT[0]},
        ValueError,
        "weight must be (compressed, groups * dim), got shape (16,)",
    ),
    "weight-dtype": (
        {"weight": WEIGHT.double(), "bias": None},
        TypeError,
        "weight must be float32, float16 or bfloat16, got torch.float64",
    ),
    "weight-device": ({"weight": WEIGHT.to("meta")}, ValueError, "weight must be on cpu"),
    "weight of another dim": (
        {"weight": torch.zeros(12, 18)},
        ValueError,
        "weight must be (compressed, groups * 8) with groups that divide the 4 heads of x, "
        "got weight (12, 18) for x (6, 4, 8)",
    ),
    "weight of 3 groups": (
        {"weight": torch.zeros(12, 24)},
        ValueError,
        "got weight (12, 24) for x (6, 4, 8)",
    ),
    "weight of no groups": (
        {"weight": torch.zeros(12, 0)},
        ValueError,
        "got weight (12, 0) for x (6, 4, 8)",
    ),
    "weight to nothing": (
        {"weight": torch.zeros(0, 16), "bias": None},
        ValueError,
        "got weight (0, 16) for x (6, 4, 8)",
    ),
    "weight for more heads": (
        {"weight": torch.zeros(12, 64)},
        ValueError,
        "got weight (12, 64) for x (6, 4, 8)",
    ),
    "bias-list": ({"bias": [0.0]}, TypeError, "bias must be a tensor, got list"),
    "bias-2d": ({"bias": BIAS[None]}, ValueError, "bias must be (compressed,), got shape (1, 12)"),
    "bias-dtype": (
        {"bias": BIAS.half()},
        TypeError,
        "bias must be torch.float32 as the others, got torch.float16",
    ),
    "bias-shape": ({"bias": BIAS[1:]}, ValueError, "bias must be (12,) (as weight), got (11,)"),
    "dtype": ({"dtype": torch.int16}, TypeError, "dtype must be a float of up to 32 bits, or int8"),
    "slots without out": ({"slots": SLOTS}, ValueError, "slots must come with out"),
    "out-values-list": (
        {"out": Compressed([0.0], None)},
        TypeError,
        "out.values must be a tensor, got list",
    ),
    "out-numbers": (
        {"out": Compressed(FLOATS[:, 1:], None)},
        ValueError,
        "out.values must be (..., 12) for weight (12, 16), got (6, 11)",
    ),
    "out-0d": (
        {"out": Compressed(torch.tensor(0.0), None)},
        ValueError,
        "out.values must be (..., 12) for weight (12, 16), got ()",
    ),
    "out-dtype": (
        {"out": Compressed(FLOATS.double(), None)},
        TypeError,
        "out.values has dtype torch.float64, wanted is a float",
    ),
    "out of another dtype": (
        {"out": Compressed(FLOATS, None), "dtype": torch.float16},
        TypeError,
        "out.values has dtype torch.float32, wanted is torch.float16",
    ),
    "out-no scale": (
        {"out": Compressed(OUT.values, None), "slots": SLOTS},
        ValueError,
        "out.scale must be a tensor for torch.int8",
    ),
    "out-a scale of floats": (
        {"out": Compressed(FLOATS, OUT.scale[:6])},
        ValueError,
        "out.scale must be None for torch.float32",
    ),
    "out-scale-dtype": (
        {"out": Compressed(OUT.values, OUT.scale.half()), "slots": SLOTS},
        TypeError,
        "out.scale must be torch.float32 as the others, got torch.float16",
    ),
    "out-scale-shape": (
        {"out": Compressed(OUT.values, OUT.scale[1:]), "slots": SLOTS},
        ValueError,
        "out.scale must be (9,) (a scale per row), got (8,)",
    ),
    "out-device": (
        {"out": Compressed(FLOATS.to("meta"), None)},
        ValueError,
        "out.values must be on cpu as x, got meta",
    ),
    "out-strides": (
        {"out": Compressed(torch.zeros(12, 6).T, None)},
        ValueError,
        "out.values must be contiguous, got strides (1, 6)",
    ),
    "out-scale-strides": (
        {"out": Compressed(OUT.values, torch.zeros(9, 2)[:, 0]), "slots": SLOTS},
        ValueError,
        "out.scale must be contiguous, got strides (2,)",
    ),
    "out-rows": (
        {"out": OUT},
        ValueError,
        "slots must say which of 9 rows the 6 tokens go to",
    ),
    "slots-list": ({"out": OUT, "slots": [0]}, TypeError, "slots must be a tensor, got list"),
    "slots-float": (
        {"out": OUT, "slots": SLOTS.float()},
        TypeError,
        "slots must be int32 or int64, got torch.float32",
    ),
    "slots-shape": (
        {"out": OUT, "slots": SLOTS[1:]},
        ValueError,
        "slots must be (6,) (one per token of x), got (5,)",
    ),
    "slots-device": (
        {"out": OUT, "slots": SLOTS.to("meta")},
        ValueError,
        "slots must be on cpu as x, got meta",
    ),
    "backend": ({"backend": "cuda"}, ValueError, "backend must be one of"),
}


@pytest.mark.parametrize("backend", ["auto", "eager", "reference"])
@pytest.mark.parametrize(("arguments", "error", "message"), BAD.values(), ids=BAD.keys())
def test_refused_by_name(arguments, error, message, backend):
    arguments = {"x": X, "weight": WEIGHT, "bias": BIAS, "backend": backend} | arguments
    with pytest.raises(error, match=re.escape(message)):
        compress(**arguments)


@every_backend
@pytest.mark.parametrize("value", [9, -2, 2**31, 2**32, -(2**32) - 1, -(2**63)])
def test_slots_out_of_range(backend, value):
    """Refused on the CPU, where nothing is written then; on a device where `validate` asks."""
    message = re.escape("slots must be between -1 and 8 (-1 writes nothing)")
    for position in (0, 3, 5):
        slots = SLOTS.clone()
        slots[position] = value
        out = cache((9, 12), torch.int8, backend.device)
        with pytest.raises(ValueError, match=message):
            backend(X, WEIGHT, BIAS, out=out, slots=slots, validate=True)
        if backend.device == "cpu":
            with pytest.raises(ValueError, match=message):
                backend(X, WEIGHT, BIAS, out=out, slots=slots)
        assert_bits(bits(Compressed(*(t.cpu() for t in out))), bits(cache((9, 12), torch.int8)))


def test_the_operator_itself_refuses_them_too():
    """Called without the public function, as torch.compile does."""
    args = (X, WEIGHT, BIAS, SLOTS + 4, *cache((9, 12), torch.int8))
    operator = torch.ops.triselect.compress
    with pytest.raises(ValueError, match="slots must be between -1 and 8"):
        operator.default(*args)
    with pytest.raises(ValueError, match="slots must be between -1 and 8"):
        operator.backend(*args, "auto")


def test_eager_writes_nothing_there():
    """As on a device, where nobody looks at them first."""
    from triselect.kernels.compress import eager

    out, expected = cache((9, 12), torch.int8), cache((9, 12), torch.int8)
    bad = torch.tensor([0, 9, 3, -7, 2**40, 5])
    eager.compress(X, WEIGHT, BIAS, bad, *out)
    eager.compress(X, WEIGHT, BIAS, torch.tensor([0, -1, 3, -1, -1, 5]), *expected)
    assert_bits(bits(out), bits(expected))
    assert not torch.equal(out.values[0], cache((9, 12), torch.int8).values[0])


def test_validate_looks_at_the_values_of_a_device(monkeypatch):
    looked_at = []
    monkeypatch.setattr(operator, "must_be_in_range", lambda *args: looked_at.append(args[0]))
    out, args = cache((9, 12), torch.int8, "meta"), (t.to("meta") for t in (X, WEIGHT, BIAS))
    args = tuple(args)
    compress(*args, out=out, slots=SLOTS.to("meta"))
    assert looked_at == []
    compress(*args, out=out, slots=SLOTS.to("meta"), validate=True)
    assert looked_at == ["slots"]
