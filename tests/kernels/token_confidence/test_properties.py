"""Any logits on any backend are as sure of the same token as by the reference."""

from .cases import assert_confident_as_the_reference, every_backend
from .strategies import Case, random_case


@every_backend
@random_case
def test_random_logits(backend, case: Case):
    got = backend(case.logits, layout=case.layout, **case.options)
    assert_confident_as_the_reference(got, case.logits, **case.options)
