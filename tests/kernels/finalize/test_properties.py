"""Any rows, on any backend, become what the reference makes of them."""

from .cases import assert_exact, assert_finalized, every_backend, integers
from .strategies import Drawn, cases, given


@every_backend
@given(drawn=cases())
def test_random_numbers(backend, drawn: Drawn):
    assert_finalized(backend(*drawn.case, layout=drawn.layout), drawn.case)


@every_backend
@given(drawn=cases(integers))
def test_integers_are_exact(backend, drawn: Drawn):
    assert_exact(backend(*drawn.case, layout=drawn.layout), drawn.case)
