"""Tables of random experts: distinct in a row, evenly drawn, independent from layer to layer."""

import doctest
import importlib
import re

import pytest
import torch

from triselect import table_route
from triselect.moe import random_table

tables = importlib.import_module("triselect.moe.tables")


def seeded(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def unlikely(degrees: int) -> float:
    """Five standard deviations above the mean of a chi-square of many degrees of freedom."""
    return degrees + 5 * (2 * degrees) ** 0.5


def chi_square(index: torch.Tensor, cells: int) -> float:
    """How far from even the counts of an index below `cells` are."""
    expected = index.numel() / cells
    counts = index.flatten().bincount(minlength=cells)
    return float(((counts - expected) ** 2 / expected).sum())


@pytest.mark.parametrize(("vocabulary", "experts", "k"), [(0, 5, 2), (1, 1, 1), (1000, 12, 12)])
def test_every_row_has_distinct_experts(vocabulary: int, experts: int, k: int) -> None:
    table = random_table(vocabulary, experts, k, generator=seeded())
    assert table.shape == (vocabulary, k)
    assert table.dtype == torch.int32
    assert ((table >= 0) & (table < experts)).all()
    assert (table.sort(-1).values.diff(dim=-1) > 0).all()


@pytest.mark.parametrize("k", [1, 3])
def test_every_expert_is_drawn_equally_often_in_every_column(k: int) -> None:
    table = random_table(50_000, 60, k, generator=seeded())
    for column in table.t():
        assert chi_square(column, 60) < unlikely(59)


def test_every_pair_of_experts_is_drawn_equally_often() -> None:
    first, second = random_table(90_000, 10, 2, generator=seeded()).t()
    # The second is one of the nine that the first has left.
    pairs = first * 9 + second - (second > first).int()
    assert chi_square(pairs, 90) < unlikely(89)


def test_rows_are_independent() -> None:
    experts = 16
    table = random_table(40_000, experts, generator=seeded()).flatten()
    assert chi_square(table[:-1] * experts + table[1:], experts**2) < unlikely(experts**2 - 1)


def test_seams_between_chunks(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(tables, "CHUNK", 70)
    table = random_table(20_002, 16, 2, generator=seeded())  # four rows at a time, then two
    assert (table[:, 0] != table[:, 1]).all()
    for at in range(4):
        assert chi_square(table[at::4, 0], 16) < unlikely(15)
    pairs = table[3:-1:4, 0] * 16 + table[4::4, 0]
    assert chi_square(pairs, 256) < unlikely(255)


def test_memory_is_bounded(monkeypatch: pytest.MonkeyPatch) -> None:
    """However large the vocabulary, no more is drawn at a time than a chunk."""
    drawn = []
    rand = torch.rand
    monkeypatch.setattr(
        torch, "rand", lambda *shape, **options: (drawn.append(shape), rand(*shape, **options))[1]
    )
    random_table(150_000, 64, generator=seeded())
    assert sum(rows for rows, _ in drawn) == 150_000
    assert max(rows * experts for rows, experts in drawn) <= 2**20


def test_the_generator_decides() -> None:
    one, same = (random_table(500, 20, 3, generator=seeded(7)) for _ in range(2))
    assert torch.equal(one, same)
    assert not torch.equal(one, random_table(500, 20, 3, generator=seeded(8)))


def test_layers_draw_again_from_the_same_generator() -> None:
    generator = seeded()
    experts = 12
    first, second = (random_table(50_000, experts, generator=generator).flatten() for _ in range(2))
    assert chi_square(first * experts + second, experts**2) < unlikely(experts**2 - 1)


def test_without_a_generator_torch_s_own_is_used() -> None:
    torch.manual_seed(3)
    once = random_table(100, 9)
    torch.manual_seed(3)
    assert torch.equal(once, random_table(100, 9))
    assert not torch.equal(once, random_table(100, 9))


def test_the_table_routes() -> None:
    table = random_table(100, 8, 2, generator=seeded())
    ids = torch.arange(100)
    routing = table_route(ids, table, 32, domains=ids % 4, num_expert_group=4)
    assert torch.equal(routing.experts, table + 8 * (ids % 4)[:, None].int())


@pytest.mark.gpu
def test_a_generator_of_a_device_draws_there() -> None:
    generator = torch.Generator("cuda").manual_seed(0)
    assert random_table(50, 8, 2, generator=generator).is_cuda


@pytest.mark.parametrize(
    ("arguments", "error", "message"),
    [
        ((-1, 8, 1), ValueError, "vocab_size must be at least 0, got -1"),
        ((5.0, 8, 1), TypeError, "vocab_size must be an int, got float"),
        ((5, 0, 1), ValueError, "num_experts must be between 1 and 2**31 - 1, got 0"),
        ((5, 2**31, 1), ValueError, "num_experts must be between 1 and 2**31 - 1, got 2147483648"),
        ((5, True, 1), TypeError, "num_experts must be an int, got bool"),
        ((5, 8, 0), ValueError, "top_k must be between 1 and num_experts = 8, got 0"),
        ((5, 8, 9), ValueError, "top_k must be between 1 and num_experts = 8, got 9"),
        ((5, 8, None), TypeError, "top_k must be an int, got NoneType"),
    ],
)
def test_bad_input_is_named(arguments: tuple, error: type, message: str) -> None:
    with pytest.raises(error, match=re.escape(message)):
        random_table(*arguments)


def test_the_example_runs() -> None:
    results = doctest.testmod(tables)
    assert results.attempted > 0
    assert results.failed == 0
