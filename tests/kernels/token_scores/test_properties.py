"""Any queries and keys on any backend are scored as by the reference."""

from .cases import every_backend
from .compare import assert_exact, assert_scores
from .strategies import Drawn, cases, exact_data, given


@every_backend
@given(drawn=cases())
def test_random_numbers(backend, drawn: Drawn):
    q, k, options = drawn.case
    assert_scores(backend(q, k, layout=drawn.layout, **options), q, k, options)


@every_backend
@given(drawn=cases(exact_data))
def test_integers_infinities_and_no_numbers(backend, drawn: Drawn):
    q, k, options = drawn.case
    assert_exact(backend(q, k, layout=drawn.layout, **options), q, k, options)
