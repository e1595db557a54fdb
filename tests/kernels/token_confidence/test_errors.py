"""A bad argument is refused before any kernel runs: its name, what was expected, what came."""

import re

import pytest
import torch

from triselect.ops import (
    Partial,
    merge_confidence,
    operator,
    partial_confidence,
    token_confidence,
)

LOGITS = torch.tensor([[0.0, 3.0, 1.0, 2.0], [5.0, 2.0, 1.0, 0.0]])
EACH = torch.tensor([0, 1])
DRAW = {"seed": EACH, "position": EACH, "step": EACH}
SCORES = "('max_prob', 'margin', 'neg_entropy')"

BAD = {
    "list": ({"logits": [[0.0]]}, TypeError, "logits must be a tensor, got list"),
    "1d": ({"logits": LOGITS[0]}, ValueError, "logits must be (rows, tokens), got shape (4,)"),
    "double": (
        {"logits": LOGITS.double()},
        TypeError,
        "logits must be float32, float16 or bfloat16, got torch.float64",
    ),
    "one token": (
        {"logits": LOGITS[:, :1]},
        ValueError,
        "logits must have at least 2 tokens, got 1",
    ),
    "too long": (
        {"logits": torch.empty(2, 2**31 + 1, device="meta")},
        ValueError,
        "tokens must be at most 2**31 - 1, got 2147483649 from 0 on",
    ),
    "score": ({"score": "entropy"}, ValueError, f"score must be one of {SCORES}, got 'entropy'"),
    "temperature-0": (
        {"temperature": 0.0},
        ValueError,
        "temperature must be between 1e-6 and 1e6, got 0.0",
    ),
    "temperature-negative": ({"temperature": -1}, ValueError, "temperature must be between"),
    "temperature-inf": (
        {"temperature": float("inf")},
        ValueError,
        "temperature must be between 1e-6 and 1e6, got inf",
    ),
    "temperature-nan": (
        {"temperature": float("nan")},
        ValueError,
        "temperature must be between 1e-6 and 1e6, got nan",
    ),
    "temperature-bool": (
        {"temperature": True},
        TypeError,
        "temperature must be a float, got bool",
    ),
    "temperature-tensor": (
        {"temperature": EACH},
        TypeError,
        "temperature must be torch.float32, got torch.int64",
    ),
    "temperature-number": (
        {"temperature": torch.tensor(0.7)},
        ValueError,
        "temperature must be (rows,), got shape ()",
    ),
    "temperature-list": (
        {"temperature": [1.0]},
        TypeError,
        "temperature must be a float, got list",
    ),
    "temperatures-0": (
        {"temperature": torch.tensor([1.0, 0.0])},
        ValueError,
        "temperature must be between 1e-6 and 1e6, got ",
    ),
    "temperatures-nan": (
        {"temperature": torch.tensor([1.0, float("nan")])},
        ValueError,
        "temperature must be between 1e-6 and 1e6, got ",
    ),
    "mask_token": (
        {"mask_token": -2},
        ValueError,
        "mask_token must be between -1 and 2**31 - 1, got -2",
    ),
    "mask_token-large": ({"mask_token": 2**31}, ValueError, "mask_token must be between -1 and"),
    "mask_token-float": ({"mask_token": 1.0}, TypeError, "mask_token must be an int, got float"),
    "mask_token-bool": ({"mask_token": True}, TypeError, "mask_token must be an int, got bool"),
    "rows-list": ({"rows": [True, True]}, TypeError, "rows must be a tensor, got list"),
    "rows-int": ({"rows": EACH}, TypeError, "rows must be torch.bool, got torch.int64"),
    "rows-short": ({"rows": EACH[:1] > 0}, ValueError, "rows must have 2 entries, got 1"),
    "rows-2d": ({"rows": LOGITS > 0}, ValueError, "rows must be (rows,), got shape (2, 4)"),
    "rows-device": (
        {"rows": (EACH > 0).to("meta")},
        ValueError,
        "rows must be on cpu as the others, got meta",
    ),
    "no step": (
        {"seed": EACH, "position": EACH},
        ValueError,
        "seed, position and step go together, got no step",
    ),
    "no seed": (
        {"step": EACH, "position": EACH},
        ValueError,
        "seed, position and step go together, got no seed",
    ),
    "seed-int": (DRAW | {"seed": 3}, TypeError, "seed must be a tensor, got int"),
    "step-int32": (
        DRAW | {"step": EACH.int()},
        TypeError,
        "step must be torch.int64, got torch.int32",
    ),
    "position-long": (
        DRAW | {"position": torch.arange(3)},
        ValueError,
        "position must have 2 entries, got 3",
    ),
    "backend": ({"backend": "cuda"}, ValueError, "backend must be one of"),
}
every_bad_argument = pytest.mark.parametrize(
    ("arguments", "error", "message"), BAD.values(), ids=BAD.keys()
)


@pytest.mark.parametrize("backend", ["auto", "eager", "reference"])
@every_bad_argument
def test_refused_by_name(arguments, error, message, backend):
    arguments = {"logits": LOGITS, "backend": backend} | arguments
    with pytest.raises(error, match=re.escape(message)):
        token_confidence(**arguments)


@pytest.mark.parametrize(
    ("first", "error", "message"),
    [
        (-1, ValueError, "first_token must be between 0 and 2**31 - 1, got -1"),
        (2**31 - 3, ValueError, "tokens must be at most 2**31 - 1, got 4 from 2147483645 on"),
        (1.0, TypeError, "first_token must be an int, got float"),
    ],
)
def test_where_a_part_begins(first, error, message):
    with pytest.raises(error, match=re.escape(message)):
        partial_confidence(LOGITS, first_token=first)
    assert partial_confidence(LOGITS, first_token=2**31 - 4).token.tolist() == [
        2**31 - 3,
        2**31 - 4,
    ]


PART = partial_confidence(LOGITS, first_token=0)


@pytest.mark.parametrize(
    ("partials", "error", "message"),
    [
        ([], ValueError, "partials must hold one part or more, got none"),
        ([(1, 2)], TypeError, "partials must be Partial, got tuple"),
        ([PART, Partial(PART.token[:1], PART.parts[:1])], ValueError, "must have the same rows"),
        ([Partial(PART.token, PART.parts[:, :5])], ValueError, "must have the same rows"),
        ([Partial(PART.token.long(), PART.parts)], TypeError, "token must be torch.int32"),
        ([Partial(PART.token, PART.parts.double())], TypeError, "parts must be torch.float32"),
        ([Partial(PART.token, None)], TypeError, "parts must be a tensor, got NoneType"),
        (
            [PART, Partial(*(x.to("meta") for x in PART))],
            ValueError,
            "token must be on cpu as the others, got meta",
        ),
    ],
)
def test_parts_that_do_not_fit(partials, error, message):
    with pytest.raises(error, match=message):
        merge_confidence(partials)


def test_the_score_of_merged_parts():
    with pytest.raises(ValueError, match="score must be one of"):
        merge_confidence([PART], score="mean")


NONE = (None, None, None, None, None)
DIRECT = {
    "1d": (LOGITS[0], *NONE, 1.0, "max_prob", -1, 0),
    "no tokens": (LOGITS[:, :0], *NONE, 1.0, "max_prob", -1, 0),
    "int": (LOGITS.int(), *NONE, 1.0, "max_prob", -1, 0),
    "score": (LOGITS, *NONE, 1.0, "most", -1, 0),
    "first": (LOGITS, *NONE, 1.0, "max_prob", -1, -1),
    "last": (LOGITS, *NONE, 1.0, "max_prob", -1, 2**31 - 2),
    "rows": (LOGITS, EACH[:1] > 0, None, None, None, None, 1.0, "max_prob", -1, 0),
    "rows-int": (LOGITS, EACH, None, None, None, None, 1.0, "max_prob", -1, 0),
    "seed alone": (LOGITS, None, EACH, None, None, None, 1.0, "max_prob", -1, 0),
    "short": (LOGITS, None, EACH, EACH, EACH[:1], None, 1.0, "max_prob", -1, 0),
    "temperatures": (LOGITS, *NONE[1:], torch.ones(1), 1.0, "max_prob", -1, 0),
    "int32": (LOGITS, None, EACH, EACH, EACH.int(), None, 1.0, "max_prob", -1, 0),
}


@pytest.mark.skipif(not operator.has_kernel("token_confidence", "CPU"), reason="not built")
@pytest.mark.parametrize("arguments", DIRECT.values(), ids=DIRECT.keys())
def test_a_direct_call_reads_nothing_that_is_not_there(arguments):
    """Called without the public function, which would have said so in words."""
    with pytest.raises((ValueError, TypeError, RuntimeError)):
        torch.ops.triselect.token_confidence.default(*arguments)
    odd = torch.ops.triselect.token_confidence.default(LOGITS, *NONE, 0.0, "margin", 2**62, 0)
    assert odd[0].shape == (2,)  # whatever they are
