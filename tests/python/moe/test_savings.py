"""What a budget of experts saves and changes, counted by hand and by limit_experts."""

import doctest
import importlib
import re

import numpy as np
import pytest
import torch
from torch.utils._python_dispatch import TorchDispatchMode

from triselect import grouped_topk, limit_experts
from triselect.moe import Savings, savings

module = importlib.import_module("triselect.moe.savings")

BEFORE = torch.tensor([[0, 1], [0, 2], [3, 0]])


def counted(before: np.ndarray, after: np.ndarray, expert_bytes: int) -> list[int]:
    """In plain Python, token by token."""
    used = [{int(e) for e in experts.ravel()} - {-1} for experts in (before, after)]
    changed = sum(
        int(e) != -1 and e not in row for row, new in zip(before, after, strict=True) for e in new
    )
    many, few = map(len, used)
    return [many, few, (many - few) * expert_bytes, changed]


@pytest.mark.parametrize("dtypes", [(torch.int32, torch.int64), (torch.int64, torch.int32)])
@pytest.mark.parametrize(("tokens", "k"), [(0, 3), (1, 1), (37, 5), (200, 8), (5, 0)])
def test_counts(tokens: int, k: int, dtypes: tuple) -> None:
    rng = np.random.default_rng(tokens)
    before, after = rng.integers(-1, 30, (tokens, k)), rng.integers(-1, 12, (tokens, k))
    got = savings(
        torch.from_numpy(before).to(dtypes[0]), torch.from_numpy(after).to(dtypes[1]), 30, 1000
    )
    assert [int(count) for count in got] == counted(before, after, 1000)
    assert all((count.shape, count.dtype) == ((), torch.int64) for count in got)


def test_by_hand() -> None:
    after = torch.tensor([[1, 0], [0, 1], [1, 1]])
    # The first token has its experts in another order; the second loses 2, the third both.
    assert savings(BEFORE, after, 4, 10) == Savings(4, 2, 20, 3)


def test_nothing_changed() -> None:
    assert savings(BEFORE, BEFORE.flip(1), 4, 10) == Savings(4, 4, 0, 0)


def test_more_experts_cost_more() -> None:
    assert savings(BEFORE[:1], torch.tensor([[2, 3]]), 4, 10) == Savings(2, 2, 0, 2)
    after = torch.tensor([[0, 1], [2, 3], [1, 2]])
    before = torch.zeros_like(after)
    assert savings(before, after, 4, 10) == Savings(1, 4, -30, 5)


def test_padding_is_no_expert_and_no_change() -> None:
    before = torch.tensor([[0, -1], [-1, -1]])
    after = torch.tensor([[-1, 0], [-1, 2]])
    assert savings(before, after, 4, 10) == Savings(1, 2, -10, 1)


def test_large_experts_do_not_overflow() -> None:
    after = torch.zeros_like(BEFORE, dtype=torch.int32)
    assert int(savings(BEFORE.int(), after, 4, 2**40).bytes_saved) == 3 * 2**40


@pytest.mark.parametrize("budget", [1, 3, 5, 8])
def test_of_a_budget(budget: int) -> None:
    logits = torch.randn(20, 64, generator=torch.Generator().manual_seed(0))
    options = {"top_k": 8, "num_expert_group": 8, "balanced": True}
    before = grouped_topk(logits, **options).experts
    after = limit_experts(logits, budget=budget, **options).experts
    got = savings(before, after, 64, 100)
    assert [int(count) for count in got] == counted(before.numpy(), after.numpy(), 100)
    assert got.experts_after <= 8 * budget
    if budget == 8:
        assert got.assignments_changed == got.bytes_saved == 0
    else:
        assert got.bytes_saved > 0


class Waits(TorchDispatchMode):
    """Fails where a value is asked for."""

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        assert func is not torch.ops.aten._local_scalar_dense.default
        assert func is not torch.ops.aten.nonzero.default
        return func(*args, **(kwargs or {}))


def test_on_a_device_nothing_waits() -> None:
    """Meta tensors have no values to ask for."""
    with Waits():
        got = savings(BEFORE.to("meta"), BEFORE.to("meta"), 4, 10)
    assert all(count.is_meta for count in got)


def test_compiles_to_one_graph() -> None:
    compiled = torch.compile(savings, fullgraph=True, backend="aot_eager")
    after = torch.zeros_like(BEFORE)
    assert compiled(BEFORE, after, 4, 10) == savings(BEFORE, after, 4, 10)


@pytest.mark.parametrize(
    ("arguments", "error", "message"),
    [
        (([[0]], BEFORE, 4, 1), TypeError, "before must be a tensor, got list"),
        ((BEFORE, None, 4, 1), TypeError, "after must be a tensor, got NoneType"),
        ((BEFORE[0], BEFORE, 4, 1), ValueError, "before must be (tokens, top_k), got shape (2,)"),
        (
            (BEFORE, BEFORE.float(), 4, 1),
            TypeError,
            "after must be int32 or int64, got torch.float32",
        ),
        (
            (BEFORE, BEFORE + 1, 4, 1),
            ValueError,
            "after must be between -1 and 3 (-1 for padding), got values from 1 to 4",
        ),
        ((BEFORE - 2, BEFORE, 4, 1), ValueError, "before must be between -1 and 3"),
        (
            (BEFORE, BEFORE[:2], 4, 1),
            ValueError,
            "after must be (3, 2) on cpu as before, got (2, 2) on cpu",
        ),
        ((BEFORE, BEFORE[:, :1], 4, 1), ValueError, "after must be (3, 2) on cpu as before"),
        ((BEFORE, BEFORE.to("meta"), 4, 1), ValueError, "as before, got (3, 2) on meta"),
        ((BEFORE, BEFORE, 4.0, 1), TypeError, "num_experts must be an int, got float"),
        ((BEFORE[:0], BEFORE[:0], 0, 1), ValueError, "num_experts must be at least 1, got 0"),
        ((BEFORE, BEFORE, 4, 1.5), TypeError, "expert_bytes must be an int, got float"),
        ((BEFORE, BEFORE, 4, -1), ValueError, "expert_bytes must be at least 0, got -1"),
    ],
)
def test_bad_input_is_named(arguments: tuple, error: type, message: str) -> None:
    with pytest.raises(error, match=re.escape(message)):
        savings(*arguments)


def test_the_example_runs() -> None:
    results = doctest.testmod(module)
    assert results.attempted > 0
    assert results.failed == 0
