"""Any router with any budget on any backend: on random data, and on data made of ties."""

from .cases import assert_limited, every_backend
from .strategies import Limited, random_case, tied_case


def assert_as_the_reference(backend, drawn: Limited) -> None:
    case, budget, per_group = drawn
    got = backend(
        case.logits, layout=case.layout, budget=budget, per_group=per_group, **case.options
    )
    assert_limited(
        backend,
        got,
        case.logits,
        budget,
        per_group,
        case.options,
        clear_share=0,
        layout=case.layout,
    )


@every_backend
@random_case
def test_random_logits(backend, drawn: Limited):
    assert_as_the_reference(backend, drawn)


@every_backend
@tied_case
def test_tied_and_infinite_logits(backend, drawn: Limited):
    assert_as_the_reference(backend, drawn)
