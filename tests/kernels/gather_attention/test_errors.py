"""A bad argument is refused before any kernel runs: its name, what was expected, what came."""

import re

import pytest
import torch

from triselect.ops import cache, gather_attention, operator, selected_attention, window_attention

from ..backends import assert_bits
from .cases import KINDS, OPERATORS, every_backend, random_step

STEP = random_step(batch=2, queries=2, groups=2, shared=2, dim=8, tokens=20, selected=3)
PAGED = random_step(batch=2, queries=2, groups=2, shared=2, dim=8, tokens=20, selected=3, size=5)

ANY = {
    "q-list": ({"q": [1]}, TypeError, "q must be a tensor, got list"),
    "q-3d": (
        {"q": STEP.q[0]},
        ValueError,
        "q must be (batch, queries, heads, dim), got shape (2, 4, 8)",
    ),
    "q-dtype": (
        {"q": STEP.q.double()},
        TypeError,
        "q must be float32, float16 or bfloat16, got torch.float64",
    ),
    "k-list": ({"k": None}, TypeError, "k must be a tensor, got NoneType"),
    "k-3d": (
        {"k": STEP.k[0]},
        ValueError,
        "k must be (batch, tokens, heads, dim), got shape (20, 2, 8)",
    ),
    "k-dtype": (
        {"k": STEP.k.half()},
        TypeError,
        "k must be torch.float32 as the others, got torch.float16",
    ),
    "v-dtype": (
        {"v": STEP.v.half()},
        TypeError,
        "v must be torch.float32 as the others, got torch.float16",
    ),
    "k-dim": (
        {"k": STEP.k[..., :7]},
        ValueError,
        "k must have q's 8 numbers per head, got (2, 20, 2, 7)",
    ),
    "v-dim": (
        {"v": STEP.v[..., :7]},
        ValueError,
        "v must have q's 8 numbers per head, got (2, 20, 2, 7)",
    ),
    "v-tokens": (
        {"v": STEP.v[:, :19]},
        ValueError,
        "v must be (2, 20, 2, 8) (as k), got (2, 19, 2, 8)",
    ),
    "heads": (
        {"k": STEP.k.repeat(1, 1, 2, 1)[:, :, :3], "v": STEP.v.repeat(1, 1, 2, 1)[:, :, :3]},
        ValueError,
        "k's 3 heads must divide q's, 4",
    ),
    "no heads": (
        {"k": STEP.k[:, :, :0], "v": STEP.v[:, :, :0]},
        ValueError,
        "k's 0 heads must divide q's, 4",
    ),
    "k-batch": (
        {"k": STEP.k[:1], "v": STEP.v[:1]},
        ValueError,
        "k must hold 2 sequences as the queries, got 1",
    ),
    "k-device": (
        {"k": STEP.k.to("meta")},
        ValueError,
        "k must be on cpu as the others, got meta",
    ),
    "table-1d": (
        {"block_table": torch.zeros(2, dtype=torch.int32)},
        ValueError,
        "block_table must be (batch, pages), got shape (2,)",
    ),
    "table-rows": (
        {"block_table": torch.zeros(3, 2, dtype=torch.int32)},
        ValueError,
        "block_table must have 2 rows as the queries, got 3",
    ),
    "table-float": (
        {"block_table": torch.zeros(2, 2)},
        TypeError,
        "block_table must be int32 or int64, got torch.float32",
    ),
    "table-values": (
        {"block_table": torch.tensor([[0, 2], [1, -1]])},
        ValueError,
        "block_table must be between -1 and 1 (-1 for a hole), got values from -1 to 2",
    ),
    "end-short": (
        {"end": torch.tensor([3])},
        ValueError,
        "end must have 2 entries, got 1",
    ),
    "end-float": (
        {"end": torch.ones(2)},
        TypeError,
        "end must be int32 or int64, got torch.float32",
    ),
    "end-values": (
        {"end": torch.tensor([3, 21])},
        ValueError,
        "end must be between 0 and 20 (the tokens of the cache), got values from 3 to 21",
    ),
    "end-negative": (
        {"end": torch.tensor([3, -1])},
        ValueError,
        "end must be between 0 and 20 (the tokens of the cache), got values from -1 to 3",
    ),
    "scale-str": ({"scale": "1"}, TypeError, "scale must be a"),
    "scale-bool": ({"scale": True}, TypeError, "scale must be a"),
    "scale-nan": ({"scale": torch.nan}, ValueError, "scale must be finite"),
    "scale-inf": ({"scale": torch.inf}, ValueError, "scale must be finite"),
    "backend": ({"backend": "cuda"}, ValueError, "backend must be one of"),
}
FAR = {
    "index-list": ({"index": [[1]]}, TypeError, "index must be a tensor, got list"),
    "index-1d": (
        {"index": STEP.index[0]},
        ValueError,
        "index must be (batch, selected), got shape (3,)",
    ),
    "index-float": (
        {"index": STEP.index.float()},
        TypeError,
        "index must be int32 or int64, got torch.float32",
    ),
    "index-rows": ({"index": STEP.index[:1]}, ValueError, "index must have 2 rows as q, got 1"),
    "index-large": (
        {"index": torch.tensor([[1, 20], [1, 2]])},
        ValueError,
        "index must be between -1 and 19 (-1 for padding), got values from 1 to 20",
    ),
    "index-low": (
        {"index": torch.tensor([[1, 2], [-2, 2]])},
        ValueError,
        "index must be between -1 and 19 (-1 for padding), got values from -2 to 2",
    ),
    "index-descends": (
        {"index": torch.tensor([[1, 2], [3, 2]])},
        ValueError,
        "index must ascend in every row, with padding behind the tokens",
    ),
    "index-padding": (
        {"index": torch.tensor([[1, 2], [-1, 2]])},
        ValueError,
        "index must ascend in every row, with padding behind the tokens",
    ),
    "initial-float": (
        {"num_initial": 1.0},
        TypeError,
        "num_initial must be an int, got float",
    ),
    "initial-large": (
        {"num_initial": 21},
        ValueError,
        "num_initial must be between 0 and the 20 tokens, got 21",
    ),
    "initial-negative": (
        {"num_initial": -1},
        ValueError,
        "num_initial must be between 0 and the 20 tokens, got -1",
    ),
}
WINDOW = {
    "start-after-end": (
        {"start": torch.tensor([3, 9]), "end": torch.tensor([5, 8])},
        ValueError,
        "start must not be after end, got 9 and 8 in sequence 1",
    ),
    "start-2d": (
        {"start": torch.zeros(2, 1, dtype=torch.int32)},
        ValueError,
        "start must be (batch,), got shape (2, 1)",
    ),
    "cos alone": ({"sin": None}, ValueError, "cos and sin must come together"),
    "sin alone": ({"cos": None}, ValueError, "cos and sin must come together"),
    "cos-half": (
        {"cos": STEP.cos.half()},
        TypeError,
        "cos must be torch.float32 as the others, got torch.float16",
    ),
    "cos-wide": (
        {"cos": torch.ones(20, 8), "sin": torch.ones(20, 8)},
        ValueError,
        "cos must be (places, dim / 2) for dim 8, got (20, 8)",
    ),
    "sin-places": (
        {"sin": STEP.sin[:19]},
        ValueError,
        "sin must be (20, 4) (as cos), got (19, 4)",
    ),
    "cos-short": (
        {"cos": torch.ones(6, 4), "sin": torch.ones(6, 4), "start": torch.tensor([0, 13])}
        | {"end": torch.tensor([6, 20])},
        ValueError,
        "cos must have a row for each of 7 places, got 6",
    ),
}
SELECTED = {
    "q_far-list": ({"q_far": [1]}, TypeError, "q_far must be a tensor, got list"),
    "q_far-shape": (
        {"q_far": STEP.q_far[:, :1]},
        ValueError,
        "q_far must be (2, 2, 4, 8) (as q), got (2, 1, 4, 8)",
    ),
    "q_far-dtype": (
        {"q_far": STEP.q_far.half()},
        TypeError,
        "q_far must be torch.float32 as the others, got torch.float16",
    ),
}
CASES = [
    pytest.param(operator, kind, *case, id=f"{kind}-{name}")
    for kind, operator, *groups in (
        ("far", gather_attention, ANY, FAR),
        ("window", window_attention, ANY, WINDOW),
        ("selected", selected_attention, ANY, FAR, WINDOW, SELECTED),
    )
    for group in groups
    for name, case in group.items()
]


@pytest.mark.parametrize("backend", ["auto", "eager", "reference"])
@pytest.mark.parametrize(("function", "kind", "arguments", "error", "message"), CASES)
def test_refused_by_name(function, kind, arguments, error, message, backend):
    """A table makes two blocks of 20 tokens of the cache."""
    with pytest.raises(error, match=re.escape(message)):
        function(**({"backend": backend} | STEP.of(kind) | arguments))


OUT_OF_RANGE = [
    ("far", {"index": torch.tensor([[3, 20], [-1, -1]])}, "index"),
    ("window", {"end": torch.tensor([20, 21])}, "end"),
    ("window", {"start": torch.tensor([9, 2]), "end": torch.tensor([5, 8])}, "start"),
    ("selected", {"block_table": torch.tensor([[0], [2]])}, "block_table"),
]


@every_backend
@pytest.mark.parametrize(("kind", "arguments", "name"), OUT_OF_RANGE)
def test_values_out_of_range(backend, kind, arguments, name):
    """Refused on the CPU, passed over on a device; there `validate` asks for a refusal."""
    step = STEP._replace(start=torch.tensor([4, 4]), end=torch.tensor([9, 20]))
    step = step._replace(index=torch.tensor([[3], [5]]), num_initial=0)
    if kind == "far" and "end" in arguments:
        arguments = {"start": arguments["end"]}
    step = step._replace(**arguments)
    with pytest.raises(ValueError, match=name):
        backend(kind, *step, validate=True)
    if backend.device == "cpu":
        with pytest.raises(ValueError, match=name):
            backend(kind, *step)
        operation = getattr(torch.ops.triselect, OPERATORS[kind].__name__)
        with pytest.raises(ValueError, match=name):
            operation.backend(*step.of(kind).values(), backend.name)
    else:
        got = backend(kind, *step)
        assert not got.lse.isnan().any()


def test_validate_looks_at_the_values_of_a_device(monkeypatch):
    looked_at = []
    monkeypatch.setattr(operator, "must_be_in_range", lambda *args: looked_at.append(args[0]))
    monkeypatch.setattr(cache, "check_range", lambda *args: looked_at.append("range"))
    step = PAGED._replace(cos=None, sin=None)
    meta = type(step)(*(x.to("meta") if isinstance(x, torch.Tensor) else x for x in step))
    window_attention(**meta.of("window"))
    assert looked_at == []
    window_attention(**meta.of("window"), validate=True)
    assert looked_at == ["range", "block_table"]


@every_backend
@pytest.mark.parametrize("kind", KINDS)
def test_validate_does_not_change_what_is_returned(backend, kind):
    assert_bits(backend(kind, *STEP), backend(kind, *STEP, validate=True))


@every_backend
@pytest.mark.parametrize("kind", KINDS)
def test_the_largest_and_the_smallest_allowed(backend, kind):
    whole = torch.tensor([20, 20])
    step = STEP._replace(start=whole * 0, end=whole, num_initial=20)
    step = step._replace(index=torch.tensor([[0, 19, -1]] * 2))
    backend(kind, *step)
    backend(kind, *step._replace(start=whole))
