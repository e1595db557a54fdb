"""Any experts and rows on any backend become what the reference makes of them."""

from ..backends import LAYOUTS, assert_bits
from .cases import assert_h, assert_y, downs, every_backend, ups
from .strategies import Drawn, cases, given


@every_backend
@given(drawn=cases())
def test_up(backend, drawn: Drawn):
    rows, *others = drawn.case.up
    assert_h(ups(backend)(LAYOUTS[drawn.layout](rows), *others), drawn.case)


@every_backend
@given(drawn=cases())
def test_down(backend, drawn: Drawn):
    h, *others = drawn.case.project(drawn.h)
    assert_y(downs(backend)(LAYOUTS[drawn.layout](h), *others), drawn.case, h)


@every_backend
@given(drawn=cases())
def test_the_one_after_the_other(backend, drawn: Drawn):
    h = ups(backend)(*drawn.case.up)
    expected = downs(backend)(*drawn.case.project(h))
    assert_bits(backend(*drawn.case, layout=drawn.layout), expected)
