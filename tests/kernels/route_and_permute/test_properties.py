"""Any router on any backend: one operator gives the bits of two, on random data and on ties."""

from ..grouped_topk.strategies import Case, random_case, tied_case
from .cases import every_backend
from .test_equivalence import assert_as_apart, assert_as_meant


@every_backend
@random_case
def test_random_logits(backend, case: Case):
    got = assert_as_apart(backend, case.logits, layout=case.layout, **case.options)
    assert_as_meant(got, case.logits, case.options, clear_share=0)


@every_backend
@tied_case
def test_tied_and_infinite_logits(backend, case: Case):
    got = assert_as_apart(backend, case.logits, layout=case.layout, **case.options)
    assert_as_meant(got, case.logits, case.options, clear_share=0)
