"""Any scores, ranges and reach on any backend are selected from as by the reference."""

from .cases import assert_selects_as_the_reference, every_backend
from .strategies import Case, random_case, tied_case


def assert_same(backend, case: Case) -> None:
    got = backend(case.scores, case.k, layout=case.layout, **case.options())
    assert_selects_as_the_reference(got, case.scores, case.k, **case.options())


@every_backend
@random_case
def test_random_scores(backend, case: Case):
    assert_same(backend, case)


@every_backend
@tied_case
def test_ties(backend, case: Case):
    assert_same(backend, case)
