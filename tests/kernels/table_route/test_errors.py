"""A bad argument is refused before any kernel runs: its name, what was expected, what came."""

import math
import re

import pytest
import torch
from triselect.kernels.table_route import eager

import triselect
from triselect.ops import operator

from ..backends import assert_bits
from .cases import Call, assert_same_routing, every_backend

IDS = torch.tensor([0, 4, -1, 2])
TABLE = torch.tensor([[0, 1], [2, 3], [4, 5], [5, 4], [3, 2]])
DOMAINS = torch.tensor([0, 1, 1, 0])
LOGITS = torch.zeros(4, 12)
META = torch.device("meta")

BAD = {
    "ids-list": ({"token_ids": [0]}, TypeError, "token_ids must be a tensor, got list"),
    "ids-2d": (
        {"token_ids": IDS[None]},
        ValueError,
        "token_ids must be (tokens,), got shape (1, 4)",
    ),
    "ids-0d": ({"token_ids": IDS[0]}, ValueError, "token_ids must be (tokens,), got shape ()"),
    "ids-float": (
        {"token_ids": IDS.float()},
        TypeError,
        "token_ids must be int32 or int64, got torch.float32",
    ),
    "table-list": ({"table": [0]}, TypeError, "table must be a tensor, got list"),
    "table-3d": (
        {"table": TABLE[None]},
        ValueError,
        "table must be (vocabulary,) or (vocabulary, top_k), got shape (1, 5, 2)",
    ),
    "table-int16": ({"table": TABLE.short()}, TypeError, "table must be int32 or int64, got"),
    "table-columns": ({"table": TABLE[:, :0]}, ValueError, "top_k must be between 1 and the 6"),
    "table-device": (
        {"table": TABLE.to(META)},
        ValueError,
        "table must be on cpu as token_ids, got meta",
    ),
    "experts-0": (
        {"num_experts": 0},
        ValueError,
        "num_experts must be between 1 and 2**31 - 1, got 0",
    ),
    "experts-large": (
        {"num_experts": 2**31},
        ValueError,
        "num_experts must be between 1 and 2**31 - 1, got 2147483648",
    ),
    "experts-float": ({"num_experts": 12.0}, TypeError, "num_experts must be an int, got float"),
    "groups-5": (
        {"num_expert_group": 5},
        ValueError,
        "num_expert_group must divide the number of experts, 12, got 5",
    ),
    "groups-0": ({"num_expert_group": 0}, ValueError, "num_expert_group must divide"),
    "groups-bool": ({"num_expert_group": True}, TypeError, "num_expert_group must be an int, got"),
    "no-domains": (
        {"domains": None},
        ValueError,
        "domains must say which of num_expert_group = 2 a token goes to",
    ),
    "domains-short": (
        {"domains": DOMAINS[:3]},
        ValueError,
        "domains must be (4,) as token_ids, got (3,)",
    ),
    "domains-2d": ({"domains": DOMAINS[None]}, ValueError, "domains must be (tokens,), got shape"),
    "domains-float": ({"domains": DOMAINS.float()}, TypeError, "domains must be int32 or int64"),
    "domains-list": ({"domains": [0] * 4}, TypeError, "domains must be a tensor, got list"),
    "domains-device": (
        {"domains": DOMAINS.to(META)},
        ValueError,
        "domains must be on cpu as token_ids, got meta",
    ),
    "logits-list": ({"logits": [0.0]}, TypeError, "logits must be a tensor, got list"),
    "logits-shape": (
        {"logits": LOGITS[:3]},
        ValueError,
        "logits must be (tokens, experts) = (4, 12), got (3, 12)",
    ),
    "logits-experts": ({"logits": LOGITS[:, :6]}, ValueError, "logits must be (tokens, experts)"),
    "logits-double": (
        {"logits": LOGITS.double()},
        TypeError,
        "logits must be float32, float16 or bfloat16, got torch.float64",
    ),
    "logits-device": (
        {"logits": LOGITS.to(META)},
        ValueError,
        "logits must be on cpu as token_ids, got meta",
    ),
    "scoring_func": (
        {"scoring_func": "relu"},
        ValueError,
        "one of ('softmax', 'sigmoid', 'sqrt_softplus', 'identity'), got 'relu'",
    ),
    "renormalize": ({"renormalize": 1}, TypeError, "renormalize must be a bool, got int"),
    "factor-nan": (
        {"routed_scaling_factor": math.nan},
        ValueError,
        "routed_scaling_factor must be finite in float32, got nan",
    ),
    "factor-str": ({"routed_scaling_factor": "1"}, TypeError, "routed_scaling_factor must be a"),
    "top_k-columns": (
        {"top_k": 3},
        ValueError,
        "top_k must be the columns of the table, 2, got 3",
    ),
    "top_k-vector": (
        {"table": TABLE[:, 0], "top_k": 2},
        ValueError,
        "top_k must be the columns of the table, 1, got 2",
    ),
    "top_k-0": (
        {"table": None, "top_k": 0},
        ValueError,
        "top_k must be between 1 and the 6 experts of a group, got 0",
    ),
    "top_k-7": (
        {"table": None, "top_k": 7},
        ValueError,
        "top_k must be between 1 and the 6 experts of a group, got 7",
    ),
    "top_k-float": ({"table": None, "top_k": 2.0}, TypeError, "top_k must be an int, got float"),
    "seed-negative": ({"seed": -1}, ValueError, "seed must be between 0 and 2**32 - 1, got -1"),
    "seed-large": (
        {"seed": 2**32},
        ValueError,
        "seed must be between 0 and 2**32 - 1, got 4294967296",
    ),
    "seed-float": ({"seed": 1.0}, TypeError, "seed must be an int, got float"),
    "backend": ({"backend": "cuda"}, ValueError, "backend must be one of"),
}


@pytest.mark.parametrize("backend", ["auto", "eager", "reference"])
@pytest.mark.parametrize(("arguments", "error", "message"), BAD.values(), ids=BAD.keys())
def test_refused_by_name(arguments, error, message, backend):
    arguments = {
        "token_ids": IDS,
        "table": TABLE,
        "num_experts": 12,
        "domains": DOMAINS,
        "num_expert_group": 2,
        "backend": backend,
    } | arguments
    with pytest.raises(error, match=re.escape(message)):
        triselect.table_route(**arguments)


def test_options_are_keywords():
    with pytest.raises(TypeError, match="positional"):
        triselect.table_route(IDS, TABLE, 12, DOMAINS)


def test_an_unknown_backend_is_refused_with_a_gradient_too():
    with pytest.raises(ValueError, match="backend must be one of"):
        triselect.table_route(IDS, TABLE, 12, logits=LOGITS.clone().requires_grad_(), backend="x")


GOOD = Call(IDS, TABLE, 12, DOMAINS, 2, top_k=2)
# 32 bits of these are good ids, domains or entries; 2**32 - 1 would be padding.
WRAPPING = (2**32, 2**32 + 1, 2**32 - 1, -(2**32), 2**63 - 1, -(2**63))
OUTSIDE = {
    "token_ids": ((5, 100, -2, 2**31 - 1, -(2**31)), "between -1 and 4 (the table's rows, -1 for"),
    "domains": ((2, 100, -1, 2**31 - 1, -(2**31)), "between 0 and 1 (the groups)"),
    "table": ((6, 100, -1, 2**31 - 1, -(2**31)), "between 0 and 5 (the experts of a group)"),
}
every_bad_value = pytest.mark.parametrize(
    ("name", "value", "message"),
    [
        (name, value, f"{name} must be {message}")
        for name, (values, message) in OUTSIDE.items()
        for value in values + WRAPPING
    ],
)


def spoiled(name, value):
    """The call with one value spoiled, of a token that is no padding; in 64 and 32 bits."""
    for dtype in (torch.int64, torch.int32):
        if dtype == torch.int32 and not -(2**31) <= value < 2**31:
            continue
        for position in (0, 1, 3):
            tensor = getattr(GOOD, name).to(dtype).clone()
            if name == "table":
                tensor[IDS[position], 1] = value
            else:
                tensor[position] = value
            yield GOOD._replace(**{name: tensor})


@every_backend
@every_bad_value
def test_values_out_of_range(backend, name, value, message):
    """Refused on the CPU, padding on a device; there `validate` asks for a refusal."""
    expected = re.escape(message) + f".*{value}\\b"
    for call in spoiled(name, value):
        if backend.device == "cpu":
            with pytest.raises(ValueError, match=expected):
                backend(*call)
        else:
            ids = call.token_ids
            if name != "table":
                low, high = (0, 4) if name == "token_ids" else (0, 1)
                bad = getattr(call, name)
                ids = ids.where((bad >= low) & (bad <= high), -1)
                assert_bits(backend(*call), backend(*GOOD._replace(token_ids=ids)))
            else:
                experts = backend(*call).experts
                assert experts.min() >= -1
                assert experts.max() < 12
        with pytest.raises(ValueError, match=expected):
            backend(*call, validate=True)


@every_bad_value
def test_eager_takes_them_as_padding(name, value, message):
    """As it must on a device, where nobody looks at them first."""
    for call in spoiled(name, value):
        got = triselect.Routing(*eager.table_route(*call))
        assert_same_routing(got, call)
        assert (got.experts < 0).any()


def test_validate_looks_at_the_values_of_a_device(monkeypatch):
    looked_at = []
    monkeypatch.setattr(operator, "must_be_in_range", lambda *args: looked_at.append(args[0]))
    meta = Call(*(v.to(META) if isinstance(v, torch.Tensor) else v for v in GOOD))._asdict()
    meta |= {"table": None, "top_k": 2}  # whose rows meta tensors cannot choose
    triselect.table_route(**meta)
    assert looked_at == []
    triselect.table_route(**meta, validate=True)
    assert looked_at == ["domains", "token_ids"]


@every_bad_value
def test_the_operator_itself_refuses_them_too(name, value, message):
    """Called without the public function, as torch.compile does: it raises, and nothing breaks."""
    for call in spoiled(name, value):
        with pytest.raises(ValueError, match=re.escape(message)):
            torch.ops.triselect.table_route.default(*call)
        with pytest.raises(ValueError, match=re.escape(message)):
            torch.ops.triselect.table_route.backend(*call, "auto")


@every_backend
@pytest.mark.parametrize("value", [-2, -(2**31), 2**31, *WRAPPING])
def test_ids_that_no_hash_takes(backend, value):
    call = Call(torch.tensor([3, value]), None, 12)
    message = re.escape("token_ids must be between -1 and 2147483647 (-1 for padding)")
    if backend.device == "cpu":
        with pytest.raises(ValueError, match=message):
            backend(*call)
    with pytest.raises(ValueError, match=message):
        backend(*call, validate=True)


@every_backend
def test_rows_of_the_table_that_no_token_reads_are_not_looked_at(backend):
    """A whole table is a hundred times a batch."""
    table = TABLE.clone()
    table[1] = 2**40
    for validate in (False, True):
        assert_bits(backend(*GOOD._replace(table=table), validate=validate), backend(*GOOD))


@every_backend
def test_the_smallest_and_largest_allowed(backend):
    for name, values in {"token_ids": (-1, 0, 4), "domains": (0, 1), "table": (0, 5)}.items():
        for value in values:
            for call in spoiled(name, value):
                backend(*call, validate=True)


@every_backend
def test_an_empty_table_has_padding_alone(backend):
    for empty in (TABLE[:0], TABLE[:0, 0]):
        call = Call(torch.full((3,), -1), empty, 12, top_k=2 if empty.dim() == 2 else 1)
        assert (backend(*call).experts == -1).all()
        with pytest.raises(ValueError, match="token_ids must be between -1 and -1"):
            backend(*call._replace(token_ids=torch.tensor([0])), validate=True)


def test_another_vocabulary_is_named_by_a_compiled_function_too():
    compiled = torch.compile(
        lambda ids: triselect.table_route(ids, TABLE, 6), backend="eager", fullgraph=True
    )
    with pytest.raises(ValueError, match="token_ids must be between -1 and 4"):
        compiled(torch.tensor([5, 0]))
