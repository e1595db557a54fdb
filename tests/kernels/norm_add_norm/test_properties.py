"""Any rows and any weights on any backend become what the reference makes of them."""

from .cases import assert_close, every_backend
from .strategies import Drawn, cases, given


@every_backend
@given(drawn=cases())
def test_random_numbers(backend, drawn: Drawn):
    case, eps, placement, layout = drawn
    got = backend(*case, eps=eps, placement=placement, layout=layout)
    assert_close(got, case, eps, placement)
