"""A bad argument is refused before any kernel runs: its name, what was expected, what came."""

import re

import pytest
import torch
from triselect.kernels.select_tokens import eager

from triselect.ops import operator, select_tokens

from ..backends import assert_bits
from .cases import every_backend

SCORES = torch.tensor([[0.0, 3.0, 1.0, 2.0], [5.0, 2.0, 1.0, 0.0]])
ZEROS = torch.tensor([0, 0])

BAD = {
    "list": ({"scores": [[0.0]]}, TypeError, "scores must be a tensor, got list"),
    "1d": ({"scores": SCORES[0]}, ValueError, "scores must be (batch, tokens), got shape (4,)"),
    "3d": (
        {"scores": SCORES[None]},
        ValueError,
        "scores must be (batch, tokens), got shape (1, 2, 4)",
    ),
    "double": (
        {"scores": SCORES.double()},
        TypeError,
        "scores must be float32, float16 or bfloat16, got torch.float64",
    ),
    "int": (
        {"scores": SCORES.int()},
        TypeError,
        "scores must be float32, float16 or bfloat16, got torch.int32",
    ),
    "too long": (
        {"scores": torch.empty(2, 2**31, device="meta")},
        ValueError,
        "scores must have at most 2**31 - 1 tokens, got 2147483648",
    ),
    "k-0": ({"k": 0}, ValueError, "k must be between 1 and 2**31 - 1, got 0"),
    "k-negative": ({"k": -2}, ValueError, "k must be between 1 and 2**31 - 1, got -2"),
    "k-large": ({"k": 2**31}, ValueError, "k must be between 1 and 2**31 - 1, got 2147483648"),
    "k-float": ({"k": 2.0}, TypeError, "k must be an int, got float"),
    "k-bool": ({"k": True}, TypeError, "k must be an int, got bool"),
    "proximity-negative": (
        {"proximity": -1},
        ValueError,
        "proximity must be between 0 and 2**31 - 1, got -1",
    ),
    "proximity-large": ({"proximity": 2**31}, ValueError, "proximity must be between 0 and 2**31"),
    "proximity-float": ({"proximity": 1.5}, TypeError, "proximity must be an int, got float"),
    "start-int": ({"start": 1}, TypeError, "start must be a tensor, got int"),
    "start-2d": ({"start": ZEROS[None]}, ValueError, "start must be (batch,), got shape (1, 2)"),
    "start-float": (
        {"start": ZEROS.float()},
        TypeError,
        "start must be int32 or int64, got torch.float32",
    ),
    "start-short": ({"start": ZEROS[:1]}, ValueError, "start must have 2 entries, got 1"),
    "start-device": (
        {"start": ZEROS.to("meta")},
        ValueError,
        "start must be on cpu as the others, got meta",
    ),
    "end-long": (
        {"end": torch.zeros(3, dtype=torch.int64)},
        ValueError,
        "end must have 2 entries, got 3",
    ),
    "end-bool": ({"end": ZEROS > 0}, TypeError, "end must be int32 or int64, got torch.bool"),
    "start-negative": (
        {"start": ZEROS - 1},
        ValueError,
        "start must be between 0 and 4 (the tokens of the cache), got values from -1 to -1",
    ),
    "start-behind": ({"start": ZEROS + 5}, ValueError, "start must be between 0 and 4"),
    "end-behind": (
        {"end": torch.tensor([4, 5])},
        ValueError,
        "end must be between 0 and 4 (the tokens of the cache), got values from 4 to 5",
    ),
    "end-negative": ({"end": ZEROS - 1}, ValueError, "end must be between 0 and 4"),
    "end-wraps": ({"end": ZEROS + 2**32}, ValueError, "end must be between 0 and 4"),
    "start-after-end": (
        {"start": torch.tensor([0, 3]), "end": torch.tensor([4, 2])},
        ValueError,
        "start must not be after end, got 3 and 2 in sequence 1",
    ),
    "backend": (
        {"backend": "cuda"},
        ValueError,
        "backend must be one of ('auto', 'reference', 'eager', 'triton', 'native'), got 'cuda'",
    ),
}
every_bad_argument = pytest.mark.parametrize(
    ("arguments", "error", "message"), BAD.values(), ids=BAD.keys()
)
BAD_VALUES = [
    name
    for name in BAD
    if name.startswith(("start-", "end-")) and "must be between" in BAD[name][2]
] + ["start-after-end"]


@pytest.mark.parametrize("backend", ["auto", "eager", "reference"])
@every_bad_argument
def test_refused_by_name(arguments, error, message, backend):
    arguments = {"scores": SCORES, "k": 2, "backend": backend} | arguments
    with pytest.raises(error, match=re.escape(message)):
        select_tokens(**arguments)


@every_backend
@pytest.mark.parametrize("name", BAD_VALUES)
def test_values_out_of_range(backend, name):
    """Refused on the CPU; there are no such tokens on a device, unless `validate` asks to look."""
    bounds, error, message = BAD[name]
    for dtype in (torch.int32, torch.int64):
        if name == "end-wraps" and dtype == torch.int32:
            continue
        options = {which: bound.to(dtype) for which, bound in bounds.items()}
        if backend.device == "cpu":
            with pytest.raises(error, match=re.escape(message)):
                backend(SCORES, 2, **options)
        else:
            start, end = (
                options.get(which, torch.tensor(d)) for which, d in (("start", 0), ("end", 4))
            )
            end = end.clamp(0, 4).expand(2)
            start = torch.minimum(start.clamp(0, 4), end)
            assert_bits(backend(SCORES, 2, **options), backend(SCORES, 2, start=start, end=end))
        with pytest.raises(error, match=re.escape(message)):
            backend(SCORES, 2, validate=True, **options)


@pytest.mark.parametrize("name", BAD_VALUES)
def test_the_operator_itself_refuses_them_too(name):
    """Called without the public function, as torch.compile does: it raises, and nothing breaks."""
    bounds, error, message = BAD[name]
    arguments = (SCORES, 2, 0, bounds.get("start"), bounds.get("end"))
    with pytest.raises(error, match=re.escape(message)):
        torch.ops.triselect.select_tokens.default(*arguments)
    with pytest.raises(error, match=re.escape(message)):
        torch.ops.triselect.select_tokens.backend(*arguments, "auto")


@pytest.mark.parametrize(
    ("start", "end", "expected"),
    [
        (-3, 9, [1, 3]),  # all four
        (2, 9, [2, 3]),
        (-3, 1, [0, -1]),
        (3, 1, [-1, -1]),
        (9, 12, [-1, -1]),
        (-9, -3, [-1, -1]),
        (2**40, 2**41, [-1, -1]),
    ],
)
def test_eager_selects_no_tokens_that_do_not_exist(start, end, expected):
    """As on a device, where nobody looks at the values first."""
    bounds = (torch.tensor([start]), torch.tensor([end]))
    for proximity in (0, 1):
        got = eager.select_tokens(SCORES[:1], 2, proximity, *bounds)
        if proximity == 0:
            assert got.tolist() == [expected]
        else:
            assert (got >= 0).sum() == sum(token >= 0 for token in expected)


def test_validate_looks_at_the_values_of_a_device(monkeypatch):
    looked_at = []
    monkeypatch.setattr(operator, "must_be_in_range", lambda *args: looked_at.append(args[0]))
    scores, bound = SCORES.to("meta"), ZEROS.to("meta")
    select_tokens(scores, 2, start=bound)
    assert looked_at == []
    select_tokens(scores, 2, start=bound, validate=True)
    assert looked_at == ["start"]


@every_backend
def test_the_largest_ranges_allowed(backend):
    four = torch.tensor([4, 4])
    assert backend(SCORES, 2, start=ZEROS, end=four, validate=True).tolist() == [[1, 3], [0, 1]]
    assert backend(SCORES, 2, start=four, end=four, validate=True).tolist() == [[-1, -1]] * 2


def test_a_bad_value_is_named_by_a_compiled_function_too():
    compiled = torch.compile(
        lambda scores, end: select_tokens(scores, 2, end=end), backend="eager", fullgraph=True
    )
    with pytest.raises(ValueError, match="end must be between 0 and 4"):
        compiled(SCORES, ZEROS + 5)
