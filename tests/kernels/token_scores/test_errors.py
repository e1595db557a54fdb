"""A bad argument is refused before any kernel runs: its name, what was expected, what came."""

import re

import numpy as np
import pytest
import torch

from triselect.ops import operator
from triselect.ops.token_scores import token_scores

from ..backends import assert_bits
from .cases import case, every_backend, paged

Q, K, _ = case(batch=2, chunk=3, tokens=40, dim=16)
QH, KH, _ = case(batch=2, chunk=3, tokens=40, dim=16, heads=(6, 3))
Q8, K8, SCALED = case(batch=2, chunk=3, tokens=40, dim=16, keys=torch.int8)
SCALE = SCALED["k_scale"]
INDEX = torch.tensor([1, 2])

BAD = {
    "q-list": ({"q": [[[0.0]]]}, TypeError, "q must be a tensor, got list"),
    "q-2d": ({"q": Q[0]}, ValueError, "q must be (batch, queries, dim), got shape (3, 16)"),
    "q-5d": ({"q": QH[None]}, ValueError, "q must be (batch, queries, dim), got shape"),
    "q-float64": (
        {"q": Q.double()},
        TypeError,
        "q must be float32, float16 or bfloat16, got torch.float64",
    ),
    "q-int": ({"q": Q.int()}, TypeError, "q must be float32, float16 or bfloat16"),
    "k-list": ({"k": [0.0]}, TypeError, "k must be a tensor, got list"),
    "k-4d": ({"k": KH}, ValueError, "k must be (batch, tokens, dim), got shape (2, 40, 3, 16)"),
    "k-3d": (
        {"q": QH, "k": K},
        ValueError,
        "k must be (batch, tokens, heads, dim), got shape (2, 40, 16)",
    ),
    "k-dtype": (
        {"k": K.half()},
        TypeError,
        "k must be torch.float32 as the others, got torch.float16",
    ),
    "k-exact-int8": (
        {"q": QH, "k": KH.to(torch.int8)},
        TypeError,
        "k must be torch.float32 as the others, got torch.int8",
    ),
    "k-device": ({"k": K.to("meta")}, ValueError, "k must be on cpu as the others, got meta"),
    "another dim": (
        {"k": K[..., :8]},
        ValueError,
        "q and k must have vectors of one length, got (2, 3, 16) and (2, 40, 8)",
    ),
    "no dim": ({"q": Q[..., :0], "k": K[..., :0]}, ValueError, "q and k must have vectors of one"),
    "heads": (
        {"q": QH[:, :, :5], "k": KH},
        ValueError,
        "k's 3 heads must divide q's, 5",
    ),
    "no heads": ({"q": QH, "k": KH[:, :, :0]}, ValueError, "k's 0 heads must divide q's, 6"),
    "batch": (
        {"k": K[:1]},
        ValueError,
        "k must hold 2 sequences as the queries, got 1 (a paged cache needs its block_table)",
    ),
    "scale-missing": (
        {"k": K8},
        ValueError,
        "k_scale must say what keys of torch.int8 are multiplied with, got None",
    ),
    "scale-list": ({"k": K8, "k_scale": [1.0]}, TypeError, "k_scale must be a tensor, got list"),
    "scale-3d": (
        {"k": K8, "k_scale": SCALE[..., None]},
        ValueError,
        "k_scale must be (batch, tokens), got shape (2, 40, 1)",
    ),
    "scale-dtype": (
        {"k": K8, "k_scale": SCALE.half()},
        TypeError,
        "k_scale must be torch.float32 as the others, got torch.float16",
    ),
    "scale-shape": (
        {"k": K8, "k_scale": SCALE[:, 1:]},
        ValueError,
        "k_scale must be (2, 40) (as k), got (2, 39)",
    ),
    "scale-of-floats": (
        {"k_scale": SCALE},
        ValueError,
        "k_scale is for keys of 8 bits, k has torch.float32",
    ),
    "scale-device": (
        {"k": K8, "k_scale": SCALE.to("meta")},
        ValueError,
        "k_scale must be on cpu as the others, got meta",
    ),
    "table-list": ({"block_table": [[0]]}, TypeError, "block_table must be a tensor, got list"),
    "table-1d": (
        {"block_table": INDEX},
        ValueError,
        "block_table must be (batch, pages), got shape (2,)",
    ),
    "table-float": (
        {"block_table": torch.zeros(2, 1)},
        TypeError,
        "block_table must be int32 or int64, got torch.float32",
    ),
    "table-batch": (
        {"block_table": torch.zeros(3, 1, dtype=torch.int32)},
        ValueError,
        "block_table must have 2 rows as the queries, got 3",
    ),
    "backend": ({"backend": "cuda"}, ValueError, "backend must be one of"),
}
for name in ("start", "end", "num_queries"):
    BAD |= {
        f"{name}-int": ({name: 3}, TypeError, f"{name} must be a tensor, got int"),
        f"{name}-2d": ({name: INDEX[None]}, ValueError, f"{name} must be (batch,), got shape"),
        f"{name}-float": (
            {name: INDEX.float()},
            TypeError,
            f"{name} must be int32 or int64, got torch.float32",
        ),
        f"{name}-batch": (
            {name: INDEX[:1]},
            ValueError,
            f"{name} must have 2 entries, got 1",
        ),
        f"{name}-device": ({name: INDEX.to("meta")}, ValueError, f"{name} must be on cpu"),
    }

OUT_OF_RANGE = {
    "start": ([0, -1], "start must be between 0 and 40 (the tokens of the cache)"),
    "start-large": ([41, 0], "start must be between 0 and 40 (the tokens of the cache)"),
    "end": ([40, 41], "end must be between 0 and 40 (the tokens of the cache)"),
    "end-wrapping": ([40, 2**32 + 1], "end must be between 0 and 40"),
    "num_queries": ([3, 4], "num_queries must be between 0 and 3 (the queries of q)"),
    "num_queries-negative": ([-1, 0], "num_queries must be between 0 and 3"),
    "block_table": ([[0, 1], [2, 5]], "block_table must be between -1 and 4 (-1 for a hole)"),
    "block_table-low": ([[0, -2], [2, 1]], "block_table must be between -1 and 4"),
}


@pytest.mark.parametrize("backend", ["auto", "eager", "reference"])
@pytest.mark.parametrize(("arguments", "error", "message"), BAD.values(), ids=BAD.keys())
def test_refused_by_name(arguments, error, message, backend):
    arguments = {"q": Q, "k": K, "backend": backend} | arguments
    with pytest.raises(error, match=re.escape(message)):
        token_scores(**arguments)


@every_backend
@pytest.mark.parametrize(("values", "message"), OUT_OF_RANGE.values(), ids=OUT_OF_RANGE.keys())
def test_values_out_of_range(backend, values, message):
    """Refused on the CPU; on a device where `validate` asks for it."""
    name = message.split()[0]
    k = K.view(5, 16, 16) if name == "block_table" else K
    options = {name: torch.tensor(values)}
    with pytest.raises(ValueError, match=re.escape(message)):
        backend(Q, k, validate=True, **options)
    if backend.device == "cpu":
        with pytest.raises(ValueError, match=re.escape(message)):
            backend(Q, k, **options)


@every_backend
def test_a_range_that_ends_before_it_starts(backend):
    options = {"start": torch.tensor([3, 7]), "end": torch.tensor([3, 6])}
    message = "start must not be after end, got 7 and 6 in sequence 1"
    with pytest.raises(ValueError, match=message):
        backend(Q, K, validate=True, **options)


def test_the_operator_itself_refuses_them_too():
    """Called without the public function, as torch.compile does."""
    bad = torch.tensor([0, 41])
    args = (Q, K, None, None, bad, None, None)
    operator = torch.ops.triselect.token_scores
    with pytest.raises(ValueError, match="end must be between 0 and 40"):
        operator.default(*args)
    with pytest.raises(ValueError, match="end must be between 0 and 40"):
        operator.backend(*args, "auto")


def test_validate_looks_at_the_values_of_a_device(monkeypatch):
    looked_at = []
    monkeypatch.setattr(operator, "must_be_in_range", lambda *args: looked_at.append(args[0]))
    monkeypatch.setattr("triselect.ops.cache.check_range", lambda *args: looked_at.append("range"))
    q, k, options = paged(case(), 8, np.random.default_rng(0))
    options |= {"num_queries": INDEX}
    meta = {name: x.to("meta") for name, x in options.items()}
    token_scores(q.to("meta"), k.to("meta"), **meta)
    assert looked_at == []
    token_scores(q.to("meta"), k.to("meta"), **meta, validate=True)
    assert sorted(looked_at) == ["block_table", "num_queries", "range"]


@every_backend
def test_the_largest_and_the_smallest_allowed(backend):
    q, k, options = paged(case(batch=2, chunk=3, tokens=40), 8, np.random.default_rng(0))
    options |= {"start": torch.tensor([0, 40]), "end": torch.tensor([40, 40])}
    options |= {"num_queries": torch.tensor([0, 3])}
    options["block_table"][0, :2] = torch.tensor([-1, len(k) - 1])
    assert_bits(backend(q, k, **options), backend(q, k, **options, validate=True))
