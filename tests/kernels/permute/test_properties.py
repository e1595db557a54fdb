"""Any assignments on any backend are permuted as by the reference."""

from .cases import assert_same_permutation, every_backend
from .strategies import Case, random_case


@every_backend
@random_case
def test_random_assignments(backend, case: Case):
    got = backend(case.experts, case.num_experts, layout=case.layout)
    assert_same_permutation(got, case.experts, case.num_experts)
