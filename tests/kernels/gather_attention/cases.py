"""What the tests of the attention operators feed them: a step of ESA, and each of its halves."""

from typing import Any, NamedTuple

import numpy as np
import pytest
import torch
from torch import Tensor
from triselect.kernels.gather_attention import reference

from triselect.ops import Attention, gather_attention, selected_attention, window_attention

from ..backends import LAYOUTS, over_backends


class Step(NamedTuple):
    """The arguments of `selected_attention`; the other two operators take some of them."""

    q_far: Tensor
    q: Tensor
    k: Tensor
    v: Tensor
    index: Tensor
    num_initial: int = 0
    start: Tensor | None = None
    end: Tensor | None = None
    cos: Tensor | None = None
    sin: Tensor | None = None
    block_table: Tensor | None = None
    scale: float = 0.25

    def of(self, kind: str) -> dict[str, Any]:
        """Arguments of the operator of that kind: "far", "window" or "selected"."""
        step = self._asdict()
        if kind == "far":
            step["q"], step["end"] = self.q_far, self.start
        names = {
            "far": ("q", "k", "v", "index", "num_initial", "end", "block_table", "scale"),
            "window": ("q", "k", "v", "start", "end", "cos", "sin", "block_table", "scale"),
            "selected": tuple(step),
        }
        return {name: step[name] for name in names[kind]}

    @property
    def tokens(self) -> int:
        pages = 1 if self.block_table is None else self.block_table.shape[1]
        return self.k.shape[1] * pages


OPERATORS = {"far": gather_attention, "window": window_attention, "selected": selected_attention}
KINDS = tuple(OPERATORS)
every_kind = pytest.mark.parametrize("kind", KINDS)


def attend(kind: str, *step: Any, backend: str, layout: str = "contiguous", **options: Any):
    """The public function of that kind, with all tensors stored in some layout."""
    arguments = Step(*step).of(kind)
    for name, value in arguments.items():
        if isinstance(value, Tensor):
            arguments[name] = stored(value, layout)
    return OPERATORS[kind](**arguments, **options, backend=backend)


def stored(x: Tensor, layout: str) -> Tensor:
    if layout == "heads first":  # as transformers has queries and caches
        return x.transpose(1, 2).contiguous().transpose(1, 2) if x.dim() == 4 else x
    return LAYOUTS[layout](x)


NAMES = ("gather_attention", "window_attention", "selected_attention")
every_backend = over_backends(attend, *NAMES)


def expected(kind: str, step: Step) -> tuple[np.ndarray, np.ndarray]:
    """The reference's out and lse, in float64."""
    arrays = {
        name: (value.float() if value.is_floating_point() else value).numpy()
        if isinstance(value, Tensor)
        else value
        for name, value in step.of(kind).items()
    }
    name = OPERATORS[kind].__name__
    with np.errstate(invalid="ignore"):  # rotation of NaN that no one attends to
        return getattr(reference, name)(**arrays)


def random_step(
    seed: int = 0,
    *,
    batch: int = 2,
    queries: int = 1,
    groups: int = 2,
    shared: int = 3,
    dim: int = 16,
    tokens: int = 60,
    selected: int = 12,
    num_initial: int = 4,
    size: int | None = None,
    holes: float = 0.0,
    rotate: bool = True,
    dtype: torch.dtype = torch.float32,
    indices: torch.dtype = torch.int64,
    spread: float = 1.0,
    repeated: bool = False,
) -> Step:
    """Random vectors; ragged ranges; entries anywhere, also where there are no far tokens.

    With a `size` of blocks the cache is paged: its blocks are anywhere, and some belong to no one.
    """
    rng = np.random.default_rng(seed)

    def normal(*shape: int) -> Tensor:
        return torch.from_numpy(rng.standard_normal(shape, np.float32) * spread).to(dtype)

    rows: tuple[int, ...] = (batch, tokens)
    table = None
    if size is not None:
        pages = -(-tokens // size)
        tokens = pages * size
        rows = (batch * pages + 2, size)
        table = torch.from_numpy(rng.permutation(rows[0])[: batch * pages]).view(batch, pages)
        table[torch.from_numpy(rng.random((batch, pages)) < holes)] = -1
        table = table.to(indices)
    q_far, q = (normal(batch, queries, groups * shared, dim) for _ in range(2))
    k, v = (normal(*rows, groups, dim) for _ in range(2))
    start = torch.from_numpy(rng.integers(0, tokens + 1, batch))
    end = start + torch.from_numpy(rng.integers(0, tokens - start.numpy() + 1))
    angle = torch.from_numpy(rng.uniform(0, 6, (tokens, dim // 2)).astype(np.float32))
    return Step(
        q_far,
        q,
        k,
        v,
        entries(rng, batch, selected, tokens, repeated).to(indices),
        min(num_initial, tokens),
        start.to(indices),
        end.to(indices),
        angle.cos() if rotate and dim % 2 == 0 else None,
        angle.sin() if rotate and dim % 2 == 0 else None,
        table,
        dim**-0.5,
    )


def entries(
    rng: np.random.Generator, batch: int, selected: int, tokens: int, repeated: bool
) -> Tensor:
    """Ascending tokens, in every row another number of them, and padding behind."""
    index = np.full((batch, selected), -1)
    for row in index:
        count = rng.integers(0, selected + 1)
        if tokens and repeated:
            row[:count] = np.sort(rng.integers(0, tokens, count))
        else:
            chosen = rng.permutation(tokens)[:count]
            row[: len(chosen)] = np.sort(chosen)
    return torch.from_numpy(index)


def attended(kind: str, step: Step) -> np.ndarray:
    """Which tokens each query attends to, ``(B, C, N)``, in either half."""
    arrays = Step(*(x.float().numpy() if i in (2, 3) else x for i, x in enumerate(step)))
    table = None if step.block_table is None else step.block_table.numpy()
    _, _, there = reference.unpaged(arrays.k, arrays.v, table)
    start, end = (None if x is None else x.numpy() for x in (step.start, step.end))
    found = np.zeros((*step.q.shape[:2], step.tokens), bool)
    for b in range(len(found)):
        if kind != "window":
            index = step.index.numpy()
            found[b] |= reference.far(b, step.q, index, step.num_initial, start, there)
        if kind != "far":
            found[b] |= reference.window(b, step.q, start, end, there)
    return found


def spoiled(kind: str, step: Step, value: float = torch.nan) -> Step:
    """The same, with `value` for all keys and values that no one attends to."""
    used = torch.from_numpy(attended(kind, step).any(1))  # (B, N)
    if step.block_table is not None:
        rows = torch.zeros(step.k.shape[:2], dtype=torch.bool)
        by_page = used.view(*step.block_table.shape, -1)
        real = step.block_table >= 0
        rows[step.block_table[real].long()] = by_page[real]
        used = rows
    k, v = (x.masked_fill(~used[..., None, None], value) for x in (step.k, step.v))
    return step._replace(k=k, v=v)


def exactly_empty(got: Attention, where: Any = ...) -> bool:
    return bool((got.out[where] == 0).all()) and bool((got.lse[where] == -torch.inf).all())
