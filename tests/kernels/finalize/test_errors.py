"""A bad argument is refused before any kernel runs: its name, what was expected, what came."""

import re

import pytest
import torch

import triselect
from triselect.ops import operator

from ..backends import assert_bits
from .cases import case, laid_out, permutation_of

ROWS, WEIGHTS, SLOT_OF, EXPERTS, BIAS, RESIDUAL, _ = case(
    padding=0.0, bias=torch.float32, residuals=1
)  # 7 tokens, 4 of 6 experts for each, 24 numbers
GOOD = {
    "rows": ROWS,
    "weights": WEIGHTS,
    "permutation": permutation_of(SLOT_OF),
    "experts": EXPERTS,
    "bias": BIAS,
    "residuals": (RESIDUAL,),
}


def slots(x):
    return {"permutation": permutation_of(x)}


BAD = {
    "rows-list": ({"rows": [[0.0]]}, TypeError, "rows must be a tensor, got list"),
    "rows-1d": ({"rows": ROWS[0]}, ValueError, "rows must be (rows, hidden), got shape (24,)"),
    "rows-dtype": (
        {"rows": ROWS.double()},
        TypeError,
        "rows must be float32, float16 or bfloat16, got torch.float64",
    ),
    "permutation": (
        {"permutation": SLOT_OF},
        TypeError,
        "permutation must be what triselect.permute returns, got Tensor",
    ),
    "slots-list": (slots([0]), TypeError, "permutation.slot_of must be a tensor, got list"),
    "slots-1d": (
        slots(SLOT_OF[0]),
        ValueError,
        "permutation.slot_of must be (tokens, top_k), got shape (4,)",
    ),
    "slots-dtype": (
        slots(SLOT_OF.long()),
        TypeError,
        "permutation.slot_of must be int32, got torch.int64",
    ),
    "slots-device": (
        slots(SLOT_OF.to("meta")),
        ValueError,
        "permutation.slot_of must be on cpu as the others, got meta",
    ),
    "weights-list": ({"weights": [[0.0]]}, TypeError, "weights must be a tensor, got list"),
    "weights-1d": (
        {"weights": WEIGHTS[0]},
        ValueError,
        "weights must be (tokens, top_k), got shape (4,)",
    ),
    "weights-dtype": (
        {"weights": WEIGHTS.half()},
        TypeError,
        "weights must be float32, got torch.float16",
    ),
    "weights-shape": (
        {"weights": WEIGHTS[:, 1:]},
        ValueError,
        "weights must be (7, 4) (as permutation.slot_of), got (7, 3)",
    ),
    "weights-device": ({"weights": WEIGHTS.to("meta")}, ValueError, "weights must be on cpu"),
    "experts alone": (
        {"bias": None},
        ValueError,
        "experts must come with bias, got None for that",
    ),
    "bias alone": (
        {"experts": None},
        ValueError,
        "bias must come with experts, got None for that",
    ),
    "experts-list": ({"experts": [[0]]}, TypeError, "experts must be a tensor, got list"),
    "experts-dtype": (
        {"experts": EXPERTS.float()},
        TypeError,
        "experts must be int32 or int64, got torch.float32",
    ),
    "experts-shape": (
        {"experts": EXPERTS[1:]},
        ValueError,
        "experts must be (7, 4) (as permutation.slot_of), got (6, 4)",
    ),
    "bias-list": ({"bias": [[0.0]]}, TypeError, "bias must be a tensor, got list"),
    "bias-1d": ({"bias": BIAS[0]}, ValueError, "bias must be (experts, hidden), got shape (24,)"),
    "bias-dtype": (
        {"bias": BIAS.half()},
        TypeError,
        "bias must be float32 or torch.float32 as rows, got torch.float16",
    ),
    "bias-shape": (
        {"bias": BIAS[:, 1:]},
        ValueError,
        "bias must be (6, 24) (hidden as rows), got (6, 23)",
    ),
    "residuals-tensor": (
        {"residuals": RESIDUAL},
        TypeError,
        "residuals must be a tuple of tensors, got Tensor",
    ),
    "residuals-three": (
        {"residuals": (RESIDUAL,) * 3},
        ValueError,
        "residuals must be two at most, got 3",
    ),
    "residuals-list": ({"residuals": ([0.0],)}, TypeError, "residuals must be a tensor, got list"),
    "residuals-shape": (
        {"residuals": (RESIDUAL, ROWS)},
        ValueError,
        "residuals must be (7, 24) (as permutation and rows), got (28, 24)",
    ),
    "residuals-dtype": (
        {"residuals": (RESIDUAL.half(),)},
        TypeError,
        "residuals must be torch.float32 as the others, got torch.float16",
    ),
    "out-list": ({"out": [[0.0]]}, TypeError, "out must be a tensor, got list"),
    "out-shape": (
        {"out": RESIDUAL[1:].clone()},
        ValueError,
        "out must be (7, 24) (as permutation and rows), got (6, 24)",
    ),
    "out-dtype": (
        {"out": RESIDUAL.bfloat16()},
        TypeError,
        "out must be torch.float32 as the others, got torch.bfloat16",
    ),
    "out-strides": (
        {"out": RESIDUAL.T.contiguous().T},
        ValueError,
        "out's columns must lie side by side, got strides (1, 7)",
    ),
    "out-grad": (
        {"out": RESIDUAL.clone(), "weights": WEIGHTS.clone().requires_grad_()},
        ValueError,
        "out must be None where a gradient is needed, got a tensor",
    ),
    "backend": ({"backend": "cuda"}, ValueError, "backend must be one of"),
}


@pytest.mark.parametrize("backend", ["auto", "eager", "reference"])
@pytest.mark.parametrize(("arguments", "error", "message"), BAD.values(), ids=BAD.keys())
def test_refused_by_name(arguments, error, message, backend):
    with pytest.raises(error, match=re.escape(message)):
        triselect.finalize(**({"backend": backend} | GOOD | arguments))


def changed(x, value):
    x = x.clone()
    x[3, 2] = value
    return x


VALUES = {
    "slot too large": (
        slots(changed(SLOT_OF, 28)),
        "slot_of must be between -1 and 27 (-1 for none), got values from 0 to 28",
    ),
    "slot below -1": (
        slots(changed(SLOT_OF, -2)),
        "slot_of must be between -1 and 27 (-1 for none), got values from -2 to 27",
    ),
    "a row twice": (
        slots(changed(SLOT_OF, SLOT_OF[0, 0])),
        f"slot_of must name a row once at most, got {SLOT_OF[0, 0]} twice",
    ),
    "expert too large": (
        {"experts": changed(EXPERTS, 6)},
        "experts must be between -1 and 5 (-1 for padding), got values from 0 to 6",
    ),
    "expert below -1": (
        {"experts": changed(EXPERTS.long(), -(2**40))},
        f"experts must be between -1 and 5 (-1 for padding), got values from {-(2**40)} to 5",
    ),
}


@pytest.mark.parametrize("name", ["auto", "native", "eager", "reference"])
@pytest.mark.parametrize("into", [False, True], ids=["new", "out"])
@pytest.mark.parametrize(("arguments", "message"), VALUES.values(), ids=VALUES.keys())
def test_values_are_looked_at_on_the_cpu(name, arguments, message, into):
    if name == "native" and not operator.has_kernel("finalize", "CPU"):
        pytest.skip("the C++ extension was not built")
    out = torch.full_like(RESIDUAL, 7.0) if into else None
    with pytest.raises(ValueError, match=re.escape(message)):
        triselect.finalize(**(GOOD | arguments), out=out, backend=name)
    assert out is None or (out == 7).all()


def test_eager_skips_them():
    """As on a device, where nobody looks at them first."""
    from triselect.kernels.finalize import eager

    for bad in (-7, 28, 2**31 - 1):
        args = ROWS, WEIGHTS, changed(SLOT_OF, bad), EXPERTS, BIAS, None, None
        expected = laid_out(ROWS, WEIGHTS, changed(SLOT_OF, -1), EXPERTS, BIAS, backend="eager")
        assert_bits(eager.finalize(*args), expected)
    for bad in (-7, 6, 2**31 - 1):
        args = ROWS, WEIGHTS, SLOT_OF, changed(EXPERTS, bad), BIAS, None, None
        assert_bits(eager.finalize(*args), expected)


def test_values_of_a_device_are_not_looked_at(monkeypatch):
    looked_at = []
    monkeypatch.setattr(operator, "must_be_in_range", lambda *args: looked_at.append(args[0]))
    laid_out(*(x.to("meta") for x in (ROWS, WEIGHTS, SLOT_OF, EXPERTS, BIAS)))
    assert looked_at == []
