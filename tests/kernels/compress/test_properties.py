"""Any tokens and any compressor on any backend become what the reference makes of them."""

from .cases import assert_compressed, assert_exact, every_backend, integers
from .strategies import Drawn, cases, given


@every_backend
@given(drawn=cases())
def test_random_numbers(backend, drawn: Drawn):
    got = backend(*drawn.case, dtype=drawn.dtype, layout=drawn.layout)
    assert got.values.dtype is drawn.dtype
    assert_compressed(got, drawn.case)


@every_backend
@given(drawn=cases(integers))
def test_integers_are_exact(backend, drawn: Drawn):
    assert_exact(backend(*drawn.case, dtype=drawn.dtype, layout=drawn.layout), drawn.case)
