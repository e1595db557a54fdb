"""Any router on any backend routes as the reference does: random data, and data made of ties."""

from .cases import every_backend
from .compare import assert_same_routing
from .strategies import Case, random_case, tied_case


@every_backend
@random_case
def test_random_logits(backend, case: Case):
    got = backend(case.logits, layout=case.layout, **case.options)
    # Rounded keys collide now and then, and one in a handful of tokens is a large share.
    assert_same_routing(got, case.logits, case.options, clear_share=0)


@every_backend
@tied_case
def test_tied_and_infinite_logits(backend, case: Case):
    got = backend(case.logits, layout=case.layout, **case.options)
    assert_same_routing(got, case.logits, case.options, clear_share=0)
