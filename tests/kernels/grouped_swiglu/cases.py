"""What the tests of grouped_swiglu feed it: experts in every format, their rows, and what came out.

What is exact is the float64 reference on the weights as they are stored. Errors are held against
those of plain PyTorch in the rows' dtype.
"""

from collections.abc import Callable, Sequence
from itertools import pairwise
from typing import Any, NamedTuple

import numpy as np
import pytest
import torch
from torch import Tensor
from triselect.kernels.grouped_swiglu import reference

from triselect.ops.grouped_swiglu import grouped_swiglu, project, up

from ..backends import LAYOUTS, Backend, over_backends
from ..compress.cases import EPS, FEW, integers, random, steps

TINY = float(np.finfo(np.float32).tiny)
BLOCK = 128
FORMATS = {"as rows": None, "int8": torch.int8, "float8": torch.float8_e4m3fn}
every_format = pytest.mark.parametrize("weights", FORMATS)
Data = Callable[..., np.ndarray]


def experts(
    rows: Tensor,
    gate_up: Tensor,
    down: Tensor,
    offsets: Tensor,
    source: Tensor | None = None,
    gate_up_scale: Tensor | None = None,
    down_scale: Tensor | None = None,
    *,
    layout: str = "contiguous",
    **options: Any,
) -> Tensor:
    """`grouped_swiglu` of rows that are stored so."""
    return grouped_swiglu(
        LAYOUTS[layout](rows),
        gate_up,
        down,
        offsets,
        source=source,
        gate_up_scale=gate_up_scale,
        down_scale=down_scale,
        **options,
    )


every_backend = over_backends(experts, "grouped_swiglu_up", "grouped_swiglu_down")


def ups(backend: Backend) -> Backend:
    """The first operator alone, by the same backend."""
    return backend._replace(function=up)


def downs(backend: Backend) -> Backend:
    """The second."""
    return backend._replace(function=project)


class Case(NamedTuple):
    rows: Tensor
    gate_up: Tensor
    down: Tensor
    offsets: Tensor
    source: Tensor | None
    gate_up_scale: Tensor | None
    down_scale: Tensor | None

    @property
    def up(self) -> tuple[Tensor | None, ...]:
        """Arguments of the first operator."""
        return self.rows, self.gate_up, self.offsets, self.source, self.gate_up_scale

    def project(self, h: Tensor) -> tuple[Tensor | None, ...]:
        """Arguments of the second."""
        return h, self.down, self.offsets, self.down_scale

    @property
    def x(self) -> Tensor:
        """A row for each of the result; which one where there is none does not matter."""
        return self.rows if self.source is None else self.rows[self.source.clamp(min=0).long()]

    @property
    def used(self) -> int:
        return int(self.offsets[-1])

    def of_expert(self, e: int) -> slice:
        return slice(int(self.offsets[e]), int(self.offsets[e + 1]))


def case(
    seed: int = 0,
    *,
    counts: Sequence[int] = (3, 0, 5, 1),
    hidden: int = 12,
    inner: int = 10,
    padding: int = 0,
    tokens: int | None = None,
    dtype: torch.dtype = torch.float32,
    weights: str = "as rows",
    data: Data = random,
) -> Case:
    """Experts that have `counts` of rows, and `padding` behind them; a source, of `tokens` rows,
    where these are given.
    """
    rng = np.random.default_rng(seed)
    bounds = np.cumsum([0, *counts])
    size, source = int(bounds[-1]) + padding, None
    if tokens is not None:
        source = rng.integers(0, tokens, size).astype(np.int32)
        source[bounds[-1] :] = -1
    gate_up, of_gate_up = stored(rng, (len(counts), 2 * inner, hidden), dtype, weights, data)
    down, of_down = stored(rng, (len(counts), hidden, inner), dtype, weights, data)
    rows = torch.from_numpy(data(rng, size if tokens is None else tokens, hidden)).to(dtype)
    return Case(
        rows,
        gate_up,
        down,
        torch.from_numpy(bounds.astype(np.int32)),
        None if source is None else torch.from_numpy(source),
        of_gate_up,
        of_down,
    )


def stored(
    rng: np.random.Generator,
    shape: tuple[int, int, int],
    dtype: torch.dtype,
    weights: str,
    data: Data,
) -> tuple[Tensor, Tensor | None]:
    """Weights and their scales; random ones make of rows what has about their size."""
    whole = data is integers
    size = 1 if whole else shape[2] ** -0.5
    w = torch.from_numpy(data(rng, *shape))
    if weights == "as rows":
        return (w * size).to(dtype), None
    blocks = (shape[0], -(-shape[1] // BLOCK), -(-shape[2] // BLOCK))
    of = shape[:2] if weights == "int8" else blocks
    scale = rng.choice([1, 2], of) if whole else rng.uniform(0.5, 1.5, of) * size
    steps_of_one = 1 if whole else 40
    q = (w * steps_of_one).round() if weights == "int8" else w * steps_of_one
    return q.to(FORMATS[weights]), torch.from_numpy(scale / steps_of_one).float()


def array(t: Tensor | None) -> Any:
    if t is None:
        return None
    return t.numpy() if t.dtype in (torch.int32, torch.int64) else t.double().numpy()


def product(x: np.ndarray, w: np.ndarray, case: Case) -> np.ndarray:
    """``w[e] @ x`` of each expert's rows in float64."""
    return reference.grouped_swiglu_down(x, w, array(case.offsets), None)


class Exact(NamedTuple):
    """Numbers in float64, what one rounding in float32 of their sums may be, and the size of errors
    of low precision: as if each product in a sum had been rounded, in either direction.
    """

    values: np.ndarray
    sums: np.ndarray
    unit: np.ndarray


def exact_up(case: Case) -> Exact:
    """h."""
    h = reference.grouped_swiglu_up(*map(array, case.up))
    w, x = reference.dequantised(array(case.gate_up), array(case.gate_up_scale)), array(case.x)
    gate, up = np.split(product(x, w, case), 2, 1)

    def of_both(of_gate: np.ndarray, of_up: np.ndarray) -> np.ndarray:
        slope = 1.1  # of silu, at most
        return slope * abs(up) * of_gate + abs(gate * reference.sigmoid(gate)) * of_up

    sums = of_both(*np.split(product(abs(x), abs(w), case), 2, 1))
    spread = of_both(*np.split(product(x**2, w**2, case) ** 0.5, 2, 1))
    return Exact(h, EPS * sums, eps(case) * (spread + abs(h)))


def exact_down(case: Case, h: np.ndarray) -> Exact:
    """y of h."""
    w = reference.dequantised(array(case.down), array(case.down_scale))
    y, spread = product(h, w, case), product(h**2, w**2, case) ** 0.5
    return Exact(y, EPS * product(abs(h), abs(w), case), eps(case) * (spread + abs(y)))


def exact(case: Case) -> Exact:
    """y of both, one after the other."""
    h = exact_up(case)
    w = abs(reference.dequantised(array(case.down), array(case.down_scale)))
    y = exact_down(case, h.values)
    unit = product(h.unit**2, w**2, case) ** 0.5
    return Exact(y.values, y.sums + product(h.sums, w, case), y.unit + unit)


def eps(case: Case) -> float:
    return torch.finfo(case.rows.dtype).eps


def dequantised(q: Tensor, scale: Tensor | None, dtype: torch.dtype) -> Tensor:
    """As anyone would have them: in the rows' dtype."""
    return torch.from_numpy(reference.dequantised(array(q), array(scale))).to(dtype)


def plain(
    x: Tensor, gate_up: Tensor | None, down: Tensor | None, offsets: Tensor | Sequence[int]
) -> Tensor:
    """An expert after the other in plain PyTorch; without one of the weights, a half of it."""
    parts = []
    for e, (first, last) in enumerate(pairwise(offsets)):
        part = x[int(first) : int(last)]
        if gate_up is not None:
            gate, up = torch.nn.functional.linear(part, gate_up[e]).chunk(2, -1)
            part = torch.nn.functional.silu(gate) * up
        if down is not None:
            part = torch.nn.functional.linear(part, down[e])
        parts.append(part)
    found = torch.cat(parts)
    return torch.nn.functional.pad(found, (0, 0, 0, len(x) - len(found)))


def assert_no_worse(
    got: Tensor, theirs: Tensor, exact: Exact, used: int, mean_alone: bool = False
) -> None:
    """The largest and the mean error of `got` are at most those of plain PyTorch, plus rounding.

    In the largest, that is one of the sums in float32, whose order is free, and one step of the
    dtype; in the mean a tenth of the former, and half of the latter.
    """
    y, sums, unit = (x[:used] for x in exact)
    assert (got.shape, got.dtype) == (exact.values.shape, theirs.dtype)
    assert_no_one(got, used)
    if not used:
        return
    unit = np.maximum(unit, TINY)
    mine, others = (abs(array(t[:used]) - y) for t in (got, theirs))
    step = steps(y, got.dtype)
    if not mean_alone:
        assert np.max((mine - sums - step) / unit) <= np.max(others / unit)
    if mine.size >= FEW:
        assert np.mean((mine - sums / 10 - step / 2).clip(0) / unit) <= np.mean(others / unit)


def assert_no_one(got: Tensor, used: int) -> None:
    """Rows behind the last expert's are zero, and no minus zero."""
    rest = got[used:]
    assert not rest.contiguous().view(torch.uint8).any()


def assert_h(got: Tensor, case: Case) -> None:
    """What the reference makes of products that are exact in any dtype, rounded once.

    Up to what float32 makes of silu: an exponential, a sum, a division, and two products.
    """
    h = exact_up(case).values
    assert (got.shape, got.dtype) == (h.shape, case.rows.dtype)
    assert_no_one(got, case.used)
    x, w = array(case.x), reference.dequantised(array(case.gate_up), array(case.gate_up_scale))
    gate, up = np.split(product(x, w, case), 2, 1)
    assert abs(gate).max(initial=0) <= 256  # or bfloat16 would not hold it
    error = abs(array(got) - h)
    slack = 8 * EPS * abs(h) + TINY * (1 + abs(gate * up))
    assert (error <= steps(h, got.dtype) / 2 + slack).all()


def assert_y(got: Tensor, case: Case, h: Tensor) -> None:
    """What the reference makes of sums that are exact in float32, rounded once: its bits."""
    y = torch.from_numpy(exact_down(case, array(h)).values).float().to(h.dtype)
    assert_no_one(got, case.used)
    torch.testing.assert_close(got, y, rtol=0, atol=0)
