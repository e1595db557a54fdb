"""Every backend commits what the reference commits: rules, ties, sizes, layouts."""

import numpy as np
import pytest
import torch

from ..backends import LAYOUTS, assert_bits
from ..spawn.cases import KINDS, every_kind
from .cases import a_round, assert_as_the_reference, every_backend, every_rule, run


def rng(seed: int = 0) -> np.random.Generator:
    return np.random.default_rng(seed)


@every_backend
@every_rule
@every_kind
@pytest.mark.parametrize("shift", [False, True])
@pytest.mark.parametrize("released", [False, True])
def test_rules(backend, released, shift, kind, rule):
    for unfilled in (0.5, 0.1):
        options = {"rule": rule, "shift": shift, "released": released, "unfilled": unfilled}
        given = a_round(rng(), 20, kind=kind, **options)
        assert_as_the_reference(run(backend, given), given)


@every_backend
@pytest.mark.parametrize("ratio", [1e-300, 0.1, 0.3, 0.5, 0.7, 1 - 2**-53, 1.0])
def test_shares_of_the_lowest(backend, ratio):
    """Of 1 to 30 positions: a share in float32 would be another number of them."""
    for kind in ("normal", "few values"):
        given = a_round(rng(), 30, 40, 30, 6, kind=kind, rule="lowest", ratio=ratio)
        given.is_open[:] = torch.arange(30) < torch.arange(1, 31)[:, None, None]
        assert_as_the_reference(run(backend, given), given)


@every_backend
@pytest.mark.parametrize("threshold", [0.0, 0.5, 0.9, 1.0])
def test_thresholds(backend, threshold):
    given = a_round(rng(), 20, kind="few values", rule="count", threshold=threshold)
    assert_as_the_reference(run(backend, given), given)


@every_backend
@every_kind
@pytest.mark.parametrize("released", [False, True])
def test_worth_that_is_given(backend, released, kind):
    given = a_round(rng(), 30, k=5, released=released, spawned=0.5)
    given = given.but(worth=torch.from_numpy(KINDS[kind](rng(1), (30, 6))))
    assert_as_the_reference(run(backend, given), given)
    assert_as_the_reference(run(backend, given.but(rule="lowest")), given)


@every_backend
@pytest.mark.parametrize("value", [-torch.inf, torch.nan, 0.1, 3e38, 3.4e38, torch.inf, -0.0])
def test_rounding_to_16_bits(backend, value):
    """Neighbours in float32 may be one number then; what is too large is infinite."""
    given = a_round(rng(), 8, k=3, released=True)
    worth = torch.full((8, 4), value)
    worth[:, 1::2] = worth[:, 1::2].nextafter(torch.tensor(torch.inf))
    worth[::2] = worth[::2].flip(1)
    given = given.but(worth=worth)
    got = run(backend, given)
    assert_as_the_reference(got, given)
    live = (given.extra >= 0) | (torch.arange(4) == 0)
    expected = worth.nan_to_num(-torch.inf, torch.inf, -torch.inf).bfloat16().float()
    assert torch.equal(got.worth[live], expected[live])


@every_backend
@every_rule
@pytest.mark.parametrize(
    ("length", "window", "k"),
    [(1, 1, 0), (1, 1, 3), (512, 128, 4), (600, 512, 16), (2048, 2048, 3), (33, 17, 40)],
)
def test_sizes(backend, length, window, k, rule):
    given = a_round(rng(), 5, length, window, k, rule=rule, shift=True)
    assert_as_the_reference(run(backend, given), given)


@every_backend
def test_a_batch_for_several_threads(backend):
    given = a_round(rng(), 150, 512, 128, 4)
    assert_as_the_reference(run(backend, given), given)


@every_backend
def test_windows_at_the_end(backend):
    """Half of it behind the sequence, or all."""
    for start in (8, 15, 16):
        for shift in (False, True):
            given = a_round(rng(), 6, shift=shift)
            given.start.fill_(start)
            assert_as_the_reference(run(backend, given), given)


@every_backend
def test_flat_predictions(backend):
    """As `token_confidence` returns them."""
    given = a_round(rng(), 6)
    flat = {name: getattr(given, name).flatten() for name in ("new_token", "new_prob", "new_score")}
    assert_bits(run(backend, given._replace(**flat)), run(backend, given))


@every_backend
@pytest.mark.parametrize("layout", ["transposed", "sliced", "narrow"])
def test_layouts(backend, layout):
    given = a_round(rng(), 5, worth=torch.rand(5, 4))
    for case in (given, given.but(worth=None)):
        stored = [LAYOUTS[layout](x) if x.is_floating_point() else x for x in case[:-1]]
        if layout != "sliced":
            stored = [LAYOUTS[layout](x) for x in case[:-1]]
        options = dict(case.options)
        if options["worth"] is not None:
            options["worth"] = LAYOUTS[layout](options["worth"])
        got = backend.function(
            *map(backend.put, stored),
            backend=backend.name,
            **{name: backend.put(value) for name, value in options.items()},
        )
        assert_as_the_reference(backend._back(got), case)


@every_backend
def test_no_sequences(backend):
    given = a_round(rng(), 0)
    assert_as_the_reference(run(backend, given), given)


@every_backend
def test_inputs_are_left_alone(backend):
    given = a_round(rng(), 5)
    before = [x.clone() for x in given[:-1]]
    run(backend, given)
    for now, then in zip(given[:-1], before, strict=True):
        assert torch.equal(now, then)
