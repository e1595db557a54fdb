"""What the tests of token_scores feed it: queries and keys, ranges of tokens, blocks, backends."""

from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor

from triselect.ops.token_scores import token_scores

from ..backends import LAYOUTS, over_backends

KEY_DTYPES = (None, torch.int8, torch.float8_e4m3fn)  # as the queries, or with a scale


def laid_out(q: Tensor, k: Tensor, *, layout: str = "contiguous", **options: Any) -> Tensor:
    """`token_scores` of queries and keys that are stored so."""
    return token_scores(stored(q, layout), stored(k, layout), **options)


def stored(x: Tensor, layout: str) -> Tensor:
    if layout == "heads first":  # as transformers has them
        return x.transpose(1, -2).contiguous().transpose(1, -2)
    if x.dtype is torch.float8_e4m3fn:  # which cannot be filled
        return LAYOUTS[layout](x.view(torch.int8)).view(x.dtype)
    return LAYOUTS[layout](x)


every_backend = over_backends(laid_out, "token_scores")


class Case(NamedTuple):
    q: Tensor
    k: Tensor
    options: dict[str, Any]


def random(rng: np.random.Generator, *shape: int) -> np.ndarray:
    return rng.standard_normal(shape, dtype=np.float32)


def integers(rng: np.random.Generator, *shape: int) -> np.ndarray:
    """Few and small: their dot products are exact in float32, and often equal."""
    return rng.integers(-2, 3, shape).astype(np.float32)


def wild(rng: np.random.Generator, *shape: int) -> np.ndarray:
    """The same, now and then not a number, or infinite."""
    x = integers(rng, *shape)
    where = rng.random(shape) < rng.choice([0.003, 0.05])
    x[where] = rng.choice([np.inf, -np.inf, np.nan, -0.0], where.sum())
    return x


def case(
    seed: int = 0,
    *,
    batch: int = 2,
    chunk: int = 5,
    tokens: int = 40,
    heads: tuple[int, int] | None = None,
    dim: int = 16,
    dtype: torch.dtype = torch.float32,
    keys: torch.dtype | None = None,
    data: Any = random,
) -> Case:
    """Compressed queries and keys, or with the heads of either; `keys` is their dtype of 8 bits."""
    rng = np.random.default_rng(seed)
    of_q, of_k = ((), ()) if heads is None else ((heads[0],), (heads[1],))
    q = torch.from_numpy(data(rng, batch, chunk, *of_q, dim)).to(dtype)
    k = torch.from_numpy(data(rng, batch, tokens, *of_k, dim))
    if keys is None:
        return Case(q, k.to(dtype), {})
    k = k.nan_to_num(posinf=1, neginf=-1)
    scale = torch.from_numpy(2.0 ** rng.integers(-2, 3, (batch, tokens)).astype(np.float32))
    k = (k * 20).clamp(-127, 127) if data is random else k
    return Case(q, k.to(keys), {"k_scale": scale})


def paged(
    case: Case, size: int, rng: np.random.Generator, holes: float = 0.0, junk: bool = True
) -> Case:
    """The same tokens in shuffled blocks, of which some are no one's. Tokens in holes are lost.

    A sequence gets as many more tokens as its last block has room for; `end` cuts them off.
    """
    q, k, options = case
    batch, tokens = k.shape[:2]
    pages = -(-tokens // size)
    blocks = batch * pages + 3
    order = torch.from_numpy(rng.permutation(blocks)[: batch * pages]).view(batch, pages)
    table = order.masked_fill(torch.from_numpy(rng.random((batch, pages)) < holes), -1)

    def scatter(x: Tensor) -> Tensor:
        bits = x.view({1: torch.int8, 2: torch.int16, 4: torch.int32}[x.itemsize])
        fill = -1 if junk else 0  # NaN, whatever the dtype of the floats
        room = bits.new_full((batch, pages * size, *x.shape[2:]), fill)
        room[:, :tokens] = bits
        out = bits.new_full((blocks, size, *x.shape[2:]), fill)
        out[order] = room.view(batch, pages, size, *x.shape[2:])
        return out.view(x.dtype)

    end = options.get("end")
    end = torch.full((batch,), tokens) if end is None else end
    options = options | {"end": end, "block_table": table}
    if "k_scale" in options:
        options["k_scale"] = scatter(options["k_scale"])
    return Case(q, scatter(k), options)
