"""What `operator.define` promises of every operator, shown on one that exists for this alone."""

import sys
from types import ModuleType

import numpy as np
import pytest
import torch

from triselect.ops import backends, operator

needs_native = pytest.mark.skipif(backends.missing_native() is not None, reason="not built")


def check(x, bound):
    operator.must_be_in_range("x", x, -bound, bound, "the bound")


probe = operator.define(
    "probe_of_the_tests",
    "Tensor x, int bound",
    "Tensor",
    lambda x, bound: x.new_empty(3),
    check=check,
)
X = torch.tensor([1.0, 2.0, 3.0], dtype=torch.bfloat16)


@pytest.fixture
def calls(monkeypatch):
    """Backends of the probe, each of which notes its name and what it was given."""
    seen = []

    def backend(name, result):
        module = ModuleType(name)

        def run(x, bound):
            seen.append((name, x))
            return result(x)

        module.probe_of_the_tests = run
        monkeypatch.setitem(sys.modules, f"triselect.kernels.probe_of_the_tests.{name}", module)

    backend("eager", lambda x: x + 1)
    backend("reference", lambda x: x.astype(np.float64) + 2)
    backend("triton", lambda x: x + 3)
    for path in ("triselect.kernels.probe_of_the_tests",):
        monkeypatch.setitem(sys.modules, path, ModuleType(path))
    operator._function.cache_clear()
    yield seen
    operator._function.cache_clear()


def names(calls):
    return [name for name, _ in calls]


def test_a_named_backend_runs_and_no_other(calls, monkeypatch):
    monkeypatch.setattr(backends, "require", lambda backend, device: None)
    for name, added in {"eager": 1, "reference": 2, "triton": 3}.items():
        calls.clear()
        assert torch.equal(probe.named(X, 9, name), X + added)
        assert names(calls) == [name]


def test_auto_takes_eager_where_the_cpu_has_no_kernel(calls):
    assert not operator.has_kernel("probe_of_the_tests", "CPU")
    for got in (probe.named(X, 9, "auto"), probe.auto(X, 9)):
        assert torch.equal(got, X + 1)
    assert names(calls) == ["eager", "eager"]


@needs_native
def test_native_without_a_kernel_raises_and_runs_nothing(calls):
    message = "backend 'native' has no kernel for probe_of_the_tests"
    with pytest.raises(backends.BackendUnavailable, match=message):
        probe.named(X, 9, "native")
    assert calls == []


def test_a_backend_that_cannot_run_here_runs_nothing(calls, monkeypatch):
    monkeypatch.setattr(backends, "missing_native", lambda: "it was not built")
    monkeypatch.setattr(backends, "missing_triton", lambda: "there is no GPU")
    for name in ("native", "triton"):
        with pytest.raises(backends.BackendUnavailable, match=f"backend '{name}' cannot run here"):
            probe.named(X, 9, name)
    assert calls == []


@needs_native
def test_native_is_the_kernel_of_the_cpu_and_so_is_auto(calls):
    library = torch.library.Library("triselect", "IMPL")
    try:
        library.impl("probe_of_the_tests", lambda x, bound: x + 4, "CPU")
        assert operator.has_kernel("probe_of_the_tests", "CPU")
        for got in (probe.named(X, 9, "native"), probe.named(X, 9, "auto"), probe.auto(X, 9)):
            assert torch.equal(got, X + 4)
        assert calls == []
        assert torch.equal(probe.named(X, 9, "eager"), X + 1)
    finally:
        library._destroy()


def test_the_reference_gets_arrays_and_gives_what_the_fake_says(calls):
    """bfloat16 goes in as float32, which holds it; float64 comes out as the tensor's dtype."""
    got = probe.named(X, 9, "reference")
    ((_, array),) = calls
    assert isinstance(array, np.ndarray)
    assert array.dtype == np.float32
    assert array.tolist() == X.tolist()
    assert got.dtype == torch.bfloat16


@pytest.mark.parametrize("name", ["auto", "eager", "reference"])
def test_values_are_checked_on_the_cpu_before_a_kernel_sees_them(calls, name):
    message = r"x must be between -2 and 2 \(the bound\), got values from 1 to 3"
    with pytest.raises(ValueError, match=message):
        probe.named(X, 2, name)
    with pytest.raises(ValueError, match=message):
        probe.auto(X, 2)
    assert calls == []


def test_values_of_a_device_are_not_looked_at(calls, monkeypatch):
    monkeypatch.setattr(operator, "_device", lambda args: torch.device("cuda"))
    assert torch.equal(probe.named(X, 2, "eager"), X + 1)
    assert torch.equal(probe.auto(X, 2), X + 1)


def test_a_backend_is_imported_when_it_is_first_used(calls):
    """Once: what replaces the module later is not seen."""
    probe.named(X, 9, "eager")
    sys.modules["triselect.kernels.probe_of_the_tests.eager"] = None
    probe.named(X, 9, "eager")
    operator._function.cache_clear()
    with pytest.raises(ImportError):
        probe.named(X, 9, "eager")


def test_ranges_include_their_ends_and_nothing_else():
    operator.must_be_in_range("x", torch.tensor([-3, 4]), -3, 4, "any")
    operator.must_be_in_range("x", torch.empty(0, dtype=torch.int64), 0, 0, "any")
    for values in ([-4, 0], [0, 5], [2**63 - 1], [-(2**63)]):
        with pytest.raises(ValueError, match=f"got values from {values[0]} to {values[-1]}"):
            operator.must_be_in_range("x", torch.tensor(values), -3, 4, "any")


@pytest.mark.parametrize("value", [True, 1.0, None, "1", torch.tensor(1)])
def test_an_int_is_an_int(value):
    operator.must_be_int("n", 1)
    with pytest.raises(TypeError, match=f"n must be an int, got {type(value).__name__}"):
        operator.must_be_int("n", value)


EXPERTS = torch.tensor([[0, 1]], dtype=torch.int32)
CACHE = torch.zeros(1, 4, 2, 8)
FAR = (CACHE, CACHE, torch.tensor([[1, 2]]), 1)
ROUTER = (torch.zeros(3, 8), 2, 1, 1, False, "softmax", "max", None, False, 1.0, None)
INTS, SOME = torch.zeros(1, 4, dtype=torch.int32), torch.zeros(1, 4)
EACH = INTS[:, 0]
SETTINGS = (2, 4, 1, 9, -1, 0.9, 0.0, 1, 2, "full", False)
SPAWNED = (INTS, INTS, SOME, SOME, EACH + 1, EACH, None, *SETTINGS)
COMMITTED = (INTS, INTS, SOME, SOME, INTS, INTS, EACH, EACH, INTS[None], INTS[None].bool())
NEW = (INTS[None], SOME[None], SOME[None])
ROWS = torch.zeros(2, 8)
FINALIZED = (ROWS, SOME[:, :2], EXPERTS, EXPERTS, ROWS, ROWS[:1], None)
OFFSETS = torch.tensor([0, 2, 3], dtype=torch.int32)  # of 2 experts, 8 numbers to 4
OPERATORS = {
    "grouped_topk": ROUTER,
    "grouped_topk_backward": (
        torch.ones(1, 2),
        torch.zeros(1, 8),
        EXPERTS,
        "softmax",
        False,
        1.0,
        None,
    ),
    "permute": (EXPERTS, 8),
    "route_and_permute": ROUTER,
    "table_route": (EXPERTS[0], None, 8, None, 1, None, "softmax", False, 1.0, 2, 0),
    "limit_experts": (*ROUTER, 4, True),
    "finalize": FINALIZED,
    "finalize_out": (*FINALIZED, torch.zeros(1, 8)),
    "compress": (CACHE, torch.zeros(3, 16), None, None, torch.zeros(1, 4, 3), None),
    "token_confidence": (ROUTER[0], *(None,) * 5, 1.0, "max_prob", -1, 0),
    "token_scores": (CACHE, CACHE, None, None, None, None, None),
    "select_tokens": (torch.zeros(2, 5), 3, 0, None, None),
    "gather_attention": (CACHE, *FAR, None, None, 1.0),
    "window_attention": (CACHE, CACHE, CACHE, None, None, None, None, None, 1.0),
    "selected_attention": (CACHE, CACHE, *FAR, None, None, None, None, None, 1.0),
    "merge": (CACHE, CACHE[..., 0], CACHE, CACHE[..., 0]),
    "norm_add_norm": (SOME, SOME, SOME[0], SOME[0], 1e-5, "branch"),
    "grouped_swiglu_up": (ROUTER[0], torch.zeros(2, 8, 8), OFFSETS, None, None),
    "grouped_swiglu_down": (torch.zeros(3, 4), torch.zeros(2, 8, 4), OFFSETS, None),
    "spawn": SPAWNED,
    "commit": (*COMMITTED, INTS[:, :1], *NEW, None, "mean", 1.0, 0.9, False, False),
}


def test_these_are_all_operators():
    defined = {
        name.removeprefix("triselect::").partition(".")[0]
        for name in torch._C._dispatch_get_all_op_names()
        if name.startswith("triselect::")
    }
    assert defined - {"cpu_capability", "probe_of_the_tests"} == set(OPERATORS)


@needs_native
@pytest.mark.parametrize("name", OPERATORS)
def test_native_is_never_eager(monkeypatch, name):
    """It has a kernel of its own, or raises: nothing is looked up for it in Python."""

    def looked_up(*where):
        raise AssertionError(f"asked Python for {where}")

    monkeypatch.setattr(operator, "_function", looked_up)
    overload = getattr(torch.ops.triselect, name).backend
    if operator.has_kernel(name, "CPU"):
        overload(*OPERATORS[name], "native")
    else:
        with pytest.raises(backends.BackendUnavailable, match=f"has no kernel for {name}$"):
            overload(*OPERATORS[name], "native")
    with pytest.raises(AssertionError, match="asked Python for"):
        overload(*OPERATORS[name], "eager")


@needs_native
@pytest.mark.parametrize("name", OPERATORS)
def test_the_extension_has_a_kernel_for_every_operator(name):
    assert operator.has_kernel(name, "CPU")


IDS = torch.tensor([0, 1, 2])
TABLE = ("table_route", IDS, torch.zeros(3, 2, dtype=torch.int64), 8, None, 1, torch.zeros(3, 8))
BACKWARD = ("grouped_topk_backward", torch.ones(1, 2), torch.zeros(1, 8), EXPERTS, "softmax")
# An operator, its arguments, and those that do not fit the others by their places.
MISFITS = [
    (("grouped_topk", *ROUTER), {1: ROUTER[0][0]}),
    (("grouped_topk", *ROUTER), {2: 9}),
    (("grouped_topk", *ROUTER), {3: 3}),
    (("grouped_topk", *ROUTER), {4: 0}),
    (("grouped_topk", *ROUTER), {8: torch.zeros(7)}),
    (("grouped_topk", *ROUTER), {11: torch.zeros(9)}),
    (("route_and_permute", *ROUTER), {2: 9}),
    (("route_and_permute", *ROUTER), {8: torch.zeros(7)}),
    (("limit_experts", *ROUTER, 4, True), {12: 1}),
    (("limit_experts", *ROUTER, 4, True), {12: 9}),
    (("limit_experts", *ROUTER, 4, False), {12: 9}),
    (("permute", EXPERTS, 8), {1: EXPERTS[0]}),
    (("permute", EXPERTS, 8), {1: EXPERTS.float()}),
    (("permute", EXPERTS, 8), {2: 0}),
    ((*TABLE, "softmax", False, 1.0, 2, 0), {2: TABLE[2][:, :1]}),
    ((*TABLE, "softmax", False, 1.0, 2, 0), {3: 0}),
    ((*TABLE, "softmax", False, 1.0, 2, 0), {4: IDS[:2]}),
    ((*TABLE, "softmax", False, 1.0, 2, 0), {5: 3}),
    ((*TABLE, "softmax", False, 1.0, 2, 0), {6: TABLE[6][:2]}),
    ((*TABLE, "softmax", False, 1.0, 2, 0), {6: TABLE[6][:, :4]}),
    ((*TABLE, "softmax", False, 1.0, 2, 0), {10: 0}),
    ((*TABLE, "softmax", False, 1.0, 2, 0), {2: None, 10: 9}),
    ((*BACKWARD, False, 1.0, None), {1: torch.ones(2, 2)}),
    ((*BACKWARD, False, 1.0, None), {2: torch.zeros(8)}),
    ((*BACKWARD, False, 1.0, None), {3: EXPERTS.long()}),
    ((*BACKWARD, False, 1.0, None), {7: torch.ones(7)}),
    (("finalize", *FINALIZED), {1: ROWS[0]}),
    (("finalize", *FINALIZED), {1: ROWS.double()}),
    (("finalize", *FINALIZED), {2: SOME}),
    (("finalize", *FINALIZED), {2: SOME[:, :2].double()}),
    (("finalize", *FINALIZED), {3: EXPERTS.long()}),
    (("finalize", *FINALIZED), {3: EXPERTS[0], 2: SOME[0, :2], 4: EXPERTS[0]}),
    (("finalize", *FINALIZED), {3: EXPERTS + 1}),
    (("finalize", *FINALIZED), {3: EXPERTS * 0}),
    (("finalize", *FINALIZED), {4: None}),
    (("finalize", *FINALIZED), {4: EXPERTS + 1}),
    (("finalize", *FINALIZED), {4: EXPERTS.float()}),
    (("finalize", *FINALIZED), {4: EXPERTS[0]}),
    (("finalize", *FINALIZED), {5: None}),
    (("finalize", *FINALIZED), {5: ROWS[:, 1:]}),
    (("finalize", *FINALIZED), {5: ROWS.half()}),
    (("finalize", *FINALIZED), {5: ROWS[0]}),
    (("finalize", *FINALIZED), {6: ROWS}),
    (("finalize", *FINALIZED), {6: ROWS[:1].half()}),
    (("finalize", *FINALIZED), {7: ROWS[:1, 1:]}),
    (("finalize_out", *FINALIZED, ROWS), {}),
    (("finalize_out", *FINALIZED, ROWS[:1].half()), {}),
    (("finalize_out", *FINALIZED, torch.zeros(8, 2).T[:1]), {}),
]


@needs_native
@pytest.mark.parametrize(
    ("call", "changes"), MISFITS, ids=[f"{call[0]}-{[*changes]}" for call, changes in MISFITS]
)
def test_the_extension_reads_nothing_that_is_not_there(call, changes):
    """Called without the public function, which would have said so in words."""
    name, *args = [changes.get(place, value) for place, value in enumerate(call)]
    with pytest.raises((ValueError, TypeError, RuntimeError)):
        getattr(torch.ops.triselect, name).backend(*args, "native")


@pytest.mark.parametrize("name", OPERATORS)
def test_the_reference_runs_every_operator(name):
    """In the dtypes and shapes of the others."""
    overload = getattr(torch.ops.triselect, name).backend
    results = overload(*OPERATORS[name], "reference"), overload(*OPERATORS[name], "eager")
    if results == (None, None):  # they write into an argument
        return
    for mine, theirs in zip(*results, strict=True):
        assert (mine.shape, mine.dtype) == (theirs.shape, theirs.dtype)
