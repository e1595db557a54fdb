"""A round of any sizes and rules is the reference's."""

from .cases import assert_as_the_reference, every_backend, run
from .strategies import random_round


@every_backend
@random_round
def test_random_rounds(backend, case):
    assert_as_the_reference(run(backend, case), case)
