"""Any step on any backend is attended to as by the reference; what is not attended to is NaN."""

from .cases import every_backend
from .compare import assert_attention
from .strategies import Case, random_case


@every_backend
@random_case
def test_random_steps(backend, case: Case):
    got = backend(case.kind, *case.step, layout=case.layout)
    assert_attention(case.kind, got, case.step)
