"""The operators among PyTorch's: opcheck, one compilation for all numbers of queries, meta."""

import pytest
import torch

from triselect.ops import gather_attention, selected_attention, window_attention

from ..backends import DTYPES, assert_bits, opcheck
from ..compiling import assert_compiles_once
from .cases import OPERATORS, every_backend, every_kind, random_step


@every_backend
@every_kind
@pytest.mark.parametrize("size", [None, 8])
def test_opcheck(backend, kind, size):
    for dtype in DTYPES:
        step = random_step(queries=2, tokens=20, size=size, dtype=dtype)
        opcheck(OPERATORS[kind].__name__, tuple(step.of(kind).values()), backend)


@every_backend
@every_kind
def test_opcheck_without_what_is_optional(backend, kind):
    step = random_step(tokens=20, rotate=False)._replace(start=None, end=None)
    opcheck(OPERATORS[kind].__name__, tuple(step.of(kind).values()), backend)


@every_kind
def test_both_overloads_agree(kind):
    arguments = tuple(random_step(queries=3).of(kind).values())
    operator = getattr(torch.ops.triselect, OPERATORS[kind].__name__)
    assert_bits(operator.default(*arguments), operator.backend(*arguments, "auto"))


@every_backend
@every_kind
def test_one_compilation_for_every_number_of_queries(backend, kind, compiler):
    rest = random_step(batch=3, groups=3, shared=4, tokens=400).of(kind)
    rest = {name: backend.put(x) for name, x in rest.items() if not name.startswith("q")}
    names = ("q_far", "q")[kind != "selected" :]

    def attended(q_far, q):
        chunk = dict(zip(names, (q_far * 2, q * 2)[-len(names) :], strict=True))
        out, lse = OPERATORS[kind](**chunk, **rest, backend=backend.name)
        return out + 1, lse

    def queries(count):
        step = random_step(count, batch=3, queries=count, groups=3, shared=4, tokens=1)
        return backend.put(step.q_far), backend.put(step.q)

    assert_compiles_once(attended, queries, compiler)


def test_meta_tensors_have_the_shapes_of_real_ones():
    for kind, operator in OPERATORS.items():
        for dtype in DTYPES:
            real = random_step(queries=3, dtype=dtype).of(kind)
            meta = {n: x.to("meta") if isinstance(x, torch.Tensor) else x for n, x in real.items()}
            results = operator(**meta), operator(**real)
            mine, theirs = ([(t.shape, t.dtype) for t in result] for result in results)
            assert mine == theirs


def test_the_scale_is_one_over_the_root_of_dim():
    step = random_step(dim=64)
    arguments = {kind: step.of(kind) for kind in OPERATORS}
    for kind, operator in OPERATORS.items():
        del arguments[kind]["scale"]
        by_default = operator(**arguments[kind])
        assert_bits(by_default, operator(**arguments[kind], scale=0.125))


def test_results_have_names():
    step = random_step()
    for operator, kind in ((gather_attention, "far"), (window_attention, "window")):
        got = operator(**step.of(kind))
        assert got._fields == ("out", "lse")
    assert type(selected_attention(**step.of("selected"))) is type(got)
