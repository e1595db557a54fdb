"""A bad argument is refused before any kernel runs: its name, what was expected, what came."""

import re
import sys

import pytest
import torch

from triselect.ops import operator
from triselect.ops.grouped_swiglu import grouped_swiglu

from .cases import case, downs, every_backend, ups

GIVEN = case(tokens=7, padding=2)  # 9 rows of 4 experts, 12 numbers to 10; 2 rows of no one
INT8, FLOAT8 = (case(tokens=7, padding=2, weights=name) for name in ("int8", "float8"))
ROWS, GATE_UP, DOWN, OFFSETS, SOURCE, *_ = GIVEN


def quantised(given, **changes):
    return {
        "gate_up": given.gate_up,
        "down": given.down,
        "gate_up_scale": given.gate_up_scale,
        "down_scale": given.down_scale,
    } | changes


BAD = {
    "rows-list": ({"rows": [[0.0]]}, TypeError, "rows must be a tensor, got list"),
    "rows-1d": ({"rows": ROWS[0]}, ValueError, "rows must be (rows, hidden), got shape (12,)"),
    "rows-float64": (
        {"rows": ROWS.double()},
        TypeError,
        "rows must be float32, float16 or bfloat16, got torch.float64",
    ),
    "rows-int": (
        {"rows": ROWS.int()},
        TypeError,
        "rows must be float32, float16 or bfloat16, got torch.int32",
    ),
    "rows-hidden": (
        {"rows": ROWS[:, 1:]},
        ValueError,
        "gate_up must be (experts, 2 * intermediate, 11), gate's rows and then up's, "
        "got shape (4, 20, 12)",
    ),
    "rows-no hidden": (
        {"rows": ROWS[:, :0], "gate_up": GATE_UP[..., :0]},
        ValueError,
        "gate_up must be (experts, 2 * intermediate, 0), gate's rows and then up's",
    ),
    "gate_up-list": ({"gate_up": [0.0]}, TypeError, "gate_up must be a tensor, got list"),
    "gate_up-2d": (
        {"gate_up": GATE_UP[0]},
        ValueError,
        "gate_up must be (experts, 2 * intermediate, hidden), got shape (20, 12)",
    ),
    "gate_up-odd": (
        {"gate_up": GATE_UP[:, 1:].contiguous()},
        ValueError,
        "got shape (4, 19, 12)",
    ),
    "gate_up-no experts": ({"gate_up": GATE_UP[:0]}, ValueError, "got shape (0, 20, 12)"),
    "gate_up-no channels": ({"gate_up": GATE_UP[:, :0]}, ValueError, "got shape (4, 0, 12)"),
    "gate_up-dtype": (
        {"gate_up": GATE_UP.half()},
        TypeError,
        "gate_up must be torch.float32 as rows, int8 or float8_e4m3fn, got torch.float16",
    ),
    "gate_up-float8 of another kind": (
        {"gate_up": GATE_UP.to(torch.float8_e5m2)},
        TypeError,
        "gate_up must be torch.float32 as rows, int8 or float8_e4m3fn, got torch.float8_e5m2",
    ),
    "gate_up-uint8": ({"gate_up": GATE_UP.to(torch.uint8)}, TypeError, "got torch.uint8"),
    "gate_up-strides": (
        {"gate_up": GATE_UP.mT.contiguous().mT},
        ValueError,
        "gate_up must be contiguous, got strides (240, 1, 20)",
    ),
    "gate_up-device": (
        {"gate_up": GATE_UP.to("meta")},
        ValueError,
        "gate_up must be on cpu as the others, got meta",
    ),
    "down-list": ({"down": [0.0]}, TypeError, "down must be a tensor, got list"),
    "down-transposed": (
        {"down": DOWN.mT.contiguous()},
        ValueError,
        "down must be (4, 12, 10) (as gate_up), got (4, 10, 12)",
    ),
    "down-experts": (
        {"down": DOWN[1:]},
        ValueError,
        "down must be (4, 12, 10) (as gate_up), got (3, 12, 10)",
    ),
    "down-strides": (
        {"down": DOWN.mT.contiguous().mT},
        ValueError,
        "down must be contiguous, got strides (120, 1, 12)",
    ),
    "down-a part": (
        {"down": torch.zeros(4, 24, 10)[:, :12]},
        ValueError,
        "down must be contiguous, got strides (240, 10, 1)",
    ),
    "down-dtype": (
        {"down": DOWN.bfloat16()},
        TypeError,
        "down must be torch.float32 as rows, int8 or float8_e4m3fn, got torch.bfloat16",
    ),
    "down in another format": (
        quantised(INT8, down=DOWN, down_scale=None),
        TypeError,
        "down must be torch.int8 as the others, got torch.float32",
    ),
    "down-device": ({"down": DOWN.to("meta")}, ValueError, "down must be on cpu as the others"),
    "offsets-list": ({"offsets": [0]}, TypeError, "offsets must be a tensor, got list"),
    "offsets-2d": ({"offsets": OFFSETS[None]}, ValueError, "offsets must be (experts + 1,)"),
    "offsets-one too few": (
        {"offsets": OFFSETS[1:]},
        ValueError,
        "offsets must be (5,) (one more than experts), got (4,)",
    ),
    "offsets-dtype": (
        {"offsets": OFFSETS.long()},
        TypeError,
        "offsets must be torch.int32, got torch.int64",
    ),
    "offsets-device": ({"offsets": OFFSETS.to("meta")}, ValueError, "offsets must be on cpu"),
    "source-list": ({"source": [0]}, TypeError, "source must be a tensor, got list"),
    "source-2d": (
        {"source": SOURCE[None]},
        ValueError,
        "source must be (rows,), got shape (1, 11)",
    ),
    "source-dtype": (
        {"source": SOURCE.long()},
        TypeError,
        "source must be torch.int32, got torch.int64",
    ),
    "source-device": ({"source": SOURCE.to("meta")}, ValueError, "source must be on cpu"),
    "scale of floats": (
        {"gate_up_scale": INT8.gate_up_scale},
        ValueError,
        "gate_up_scale goes with weights of 8 bits, these are torch.float32",
    ),
    "down_scale of floats": (
        {"down_scale": INT8.down_scale},
        ValueError,
        "down_scale goes with weights of 8 bits, these are torch.float32",
    ),
    "int8 without a scale": (
        quantised(INT8, gate_up_scale=None),
        ValueError,
        "gate_up_scale must be given for weights of torch.int8",
    ),
    "float8 without a scale": (
        quantised(FLOAT8, down_scale=None),
        ValueError,
        "down_scale must be given for weights of torch.float8_e4m3fn",
    ),
    "scale-list": (
        quantised(INT8, gate_up_scale=[1.0]),
        TypeError,
        "gate_up_scale must be a tensor, got list",
    ),
    "int8 with scales of blocks": (
        quantised(INT8, gate_up_scale=FLOAT8.gate_up_scale),
        ValueError,
        "gate_up_scale must be (4, 20) (one for each output channel), got (4, 1, 1)",
    ),
    "float8 with scales of channels": (
        quantised(FLOAT8, down_scale=INT8.down_scale),
        ValueError,
        "down_scale must be (4, 1, 1) (one for each block of 128 x 128), got (4, 12)",
    ),
    "float8 with scales of other blocks": (
        quantised(FLOAT8, gate_up_scale=torch.ones(4, 2, 1)),
        ValueError,
        "gate_up_scale must be (4, 1, 1) (one for each block of 128 x 128), got (4, 2, 1)",
    ),
    "scale-dtype": (
        quantised(INT8, down_scale=INT8.down_scale.half()),
        TypeError,
        "down_scale must be torch.float32, got torch.float16",
    ),
    "scale-strides": (
        quantised(INT8, down_scale=INT8.down_scale.T.contiguous().T),
        ValueError,
        "down_scale must be contiguous, got strides (1, 4)",
    ),
    "scale-device": (
        quantised(INT8, down_scale=INT8.down_scale.to("meta")),
        ValueError,
        "down_scale must be on cpu as the others, got meta",
    ),
    "backend": ({"backend": "cuda"}, ValueError, "backend must be one of"),
}


@pytest.mark.parametrize("backend", ["auto", "eager", "reference"])
@pytest.mark.parametrize(("arguments", "error", "message"), BAD.values(), ids=BAD.keys())
def test_refused_by_name(arguments, error, message, backend):
    given = {
        "rows": ROWS,
        "gate_up": GATE_UP,
        "down": DOWN,
        "offsets": OFFSETS,
        "source": SOURCE,
        "backend": backend,
    }
    with pytest.raises(error, match=re.escape(message)):
        grouped_swiglu(**given | arguments)


def test_a_block_more_than_there_are():
    """129 numbers are two blocks, 128 are one."""
    for size, blocks in ((128, 1), (129, 2), (256, 2), (257, 3)):
        given = case(hidden=size, inner=size, weights="float8")
        assert given.gate_up_scale.shape == (4, -(-2 * size // 128), blocks)
        assert given.down_scale.shape == (4, blocks, blocks)
        options = {"gate_up_scale": given.gate_up_scale, "down_scale": given.down_scale}
        grouped_swiglu(*given[:4], **options)
        for name in options:
            wrong = options | {name: torch.cat((options[name], options[name][..., :1]), -1)}
            with pytest.raises(ValueError, match=f"{name} must be"):
                grouped_swiglu(*given[:4], **wrong)


def refused(backend, given, message):
    """On the CPU always; on a device where `validate` asks."""
    message = re.escape(message)
    with pytest.raises(ValueError, match=message):
        backend(*given, validate=True)
    if backend.device == "cpu":
        with pytest.raises(ValueError, match=message):
            backend(*given)
        with pytest.raises(ValueError, match=message):
            ups(backend)(*given.up)


WRONG = {
    "begins at one": (0, 1),
    "begins below zero": (0, -1),
    "falls": (2, 9),
    "falls below zero": (2, -(2**31)),
    "more than the rows": (4, 12),
    "far more": (4, 2**31 - 1),
}


@every_backend
@pytest.mark.parametrize("wrong", WRONG)
@pytest.mark.parametrize("tokens", [None, 20])
def test_offsets_that_do_not_rise_from_0_to_the_rows(backend, wrong, tokens):
    given = case(padding=2, tokens=tokens)
    place, value = WRONG[wrong]
    given.offsets[place] = value
    message = "offsets must rise from 0 to at most the 11 rows, got "
    refused(backend, given, message)
    if backend.device == "cpu":
        with pytest.raises(ValueError, match=message):
            downs(backend)(*given.project(torch.zeros(11, 10)))


@every_backend
@pytest.mark.parametrize("value", [7, -1, 2**31 - 1, -(2**31)])
@pytest.mark.parametrize("place", [0, 5, 8])
def test_sources_out_of_range(backend, place, value):
    given = GIVEN._replace(source=SOURCE.clone())
    given.source[place] = value
    refused(backend, given, "source must be between 0 and 6 (a row), got ")


@every_backend
def test_no_rows_for_a_source(backend):
    given = GIVEN._replace(rows=ROWS[:0])
    with pytest.raises(ValueError, match="source must be between 0 and -1"):
        backend(*given, validate=True)


def test_the_operators_themselves_refuse_them_too():
    """Called without the public function, as torch.compile does."""
    h = torch.zeros(11, 10)
    bad = OFFSETS.flip(0)
    ops = torch.ops.triselect
    for up in (
        ops.grouped_swiglu_up.default,
        lambda *args: ops.grouped_swiglu_up.backend(*args, "auto"),
    ):
        with pytest.raises(ValueError, match="offsets must rise"):
            up(ROWS, GATE_UP, bad, SOURCE, None)
        with pytest.raises(ValueError, match="source must be between 0 and 6"):
            up(ROWS, GATE_UP, OFFSETS, SOURCE + 7, None)
    with pytest.raises(ValueError, match="offsets must rise"):
        ops.grouped_swiglu_down.default(h, DOWN, bad, None)
    with pytest.raises(ValueError, match="offsets must rise"):
        ops.grouped_swiglu_down.backend(h, DOWN, bad, None, "auto")


def test_validate_looks_at_the_values_of_a_device(monkeypatch):
    """Without it, nothing there is waited for."""
    looked_at = []
    module = sys.modules[grouped_swiglu.__module__]
    monkeypatch.setattr(module, "_check_values", lambda *args: looked_at.append(args[0].device))
    monkeypatch.setattr(operator, "_device", lambda args: torch.device("meta"))
    rows, gate_up, down, offsets = (t.to("meta") for t in GIVEN[:4])
    grouped_swiglu(rows, gate_up, down, offsets, source=SOURCE.to("meta"))
    assert looked_at == []
    grouped_swiglu(rows, gate_up, down, offsets, source=SOURCE.to("meta"), validate=True)
    assert looked_at == [torch.device("meta")]
