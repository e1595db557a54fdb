"""`assess`: what selecting by compressed scores keeps of what exact scores select."""

from typing import NamedTuple

import torch
from torch import Tensor

from triselect.esa.compressor import Compressor
from triselect.esa.layout import fold, layout_of, must_be_heads
from triselect.esa.recall import chunk_scores, found, kth_best, pieces
from triselect.ops import compress, operator, select_tokens, token_scores
from triselect.ops.cache import EIGHT_BITS


class Assessment(NamedTuple):
    """Shares between 0 and 1, means over the queries.

    Of the tokens that exact scores select, the share selected by compressed ones: ``recall``.
    Of the softmax over all tokens, the share that the selected tokens have: ``kept_mass``, mean of
    the heads, and ``worst_head_mass``; and the same of exact scores, the most one can hope for:
    ``exact_kept_mass``, ``exact_worst_head_mass``. What is not kept is the total variation distance
    between the attention of the step and attention to the selected tokens alone.
    """

    recall: float
    kept_mass: float
    worst_head_mass: float
    exact_kept_mass: float
    exact_worst_head_mass: float


def assess(
    compressor: Compressor,
    queries: Tensor,
    keys: Tensor,
    *,
    top_k: int,
    chunk: int = 1,
    key_dtype: torch.dtype = torch.float32,
    scale: float | None = None,
) -> Assessment:
    """Compare selection by compressed scores with selection by exact ones, on given tokens.

    Parameters
    ----------
    compressor : Compressor
        Of this layer.
    queries : ``(T, H, D)`` floating point
        Queries in order, `chunk` after `chunk` (the last may be shorter).
    keys : ``(N, G, D)`` floating point
        The tokens that all of them select from.
    top_k : int
        Tokens selected; all if there are no more.
    chunk : int
        Queries that select together, 1 as in decoding.
    key_dtype : torch.dtype
        Of the compressed keys: float32, float16 or bfloat16 (the compressed queries likewise), or
        int8 or float8_e4m3fn with a scale per token, for queries in float32.
    scale : float, optional
        Of the attention whose softmax is measured: 1 / sqrt(D) by default.

    Returns
    -------
    Assessment

    Raises
    ------
    ValueError, TypeError
        An argument that does not fit, by name; a compressor for other heads by both.

    Notes
    -----
    Compressed scores are those of `compress`, `token_scores` and `select_tokens`; exact ones are
    computed here in float64, and the softmax in float32. A selected token counts as found if its
    exact score is not below the k-th best, so that of equal scores any will do. Products of queries
    and keys are kept a few chunks at a time.

    Examples
    --------
    >>> from triselect.esa import calibrate
    >>> generator = torch.Generator().manual_seed(0)
    >>> queries = torch.randn(64, 4, 8, generator=generator)
    >>> keys = torch.randn(64, 2, 8, generator=generator)
    >>> assess(calibrate(queries, keys), queries, keys, top_k=8).recall > 0.99  # all 16 numbers
    True
    """
    for name, value in (("queries", queries), ("keys", keys)):
        must_be_heads(name, value)
        if not len(value):
            raise ValueError(f"{name} must have at least one token, got none")
    layout = layout_of(queries, keys)
    if layout != compressor.layout:
        raise ValueError(
            f"the compressor is for {compressor.layout}, queries {tuple(queries.shape)} and keys "
            f"{tuple(keys.shape)} are {layout}"
        )
    for name, size in (("top_k", top_k), ("chunk", chunk)):
        operator.must_be_int(name, size)
        if size < 1:
            raise ValueError(f"{name} must be at least 1, got {size}")
    top_k = min(top_k, len(keys))
    scale = layout.head_dim**-0.5 if scale is None else scale

    c = compressor.to(queries.device)
    query_dtype = torch.float32 if key_dtype in EIGHT_BITS else key_dtype
    short_q, _ = compress(queries.float(), c.query, c.query_bias, dtype=query_dtype)
    short_k, k_scale = compress(keys.float(), c.key, c.key_bias, dtype=key_dtype)
    folded_q, folded_k = fold(queries, layout.groups), fold(keys, layout.groups)

    hits, chunks = 0, 0
    mass = torch.zeros(2, layout.heads, dtype=torch.float64, device=queries.device)
    for part in pieces(len(queries), len(keys), chunk):
        exact = chunk_scores(folded_q[part] @ folded_k.T, chunk)
        index = _selected(short_q[part], short_k, k_scale, chunk, top_k)
        hits += found(exact, kth_best(exact, top_k), index)
        chunks += len(exact)
        best = select_tokens(exact.float(), top_k)
        mass += _mass(queries[part], keys, (index, best), chunk, scale)
    kept, exact_kept = mass / len(queries)
    return Assessment(
        hits / (chunks * top_k),
        kept.mean().item(),
        kept.min().item(),
        exact_kept.mean().item(),
        exact_kept.min().item(),
    )


def _selected(q: Tensor, k: Tensor, k_scale: Tensor | None, chunk: int, top_k: int) -> Tensor:
    """``(chunks, top_k)`` indices, of compressed queries ``(T, E)`` and keys ``(N, E)``."""
    chunks = -(-len(q) // chunk)
    real = torch.full((chunks,), chunk, device=q.device)
    real[-1] -= chunks * chunk - len(q)
    q = torch.nn.functional.pad(q, (0, 0, 0, chunks * chunk - len(q))).unflatten(0, (chunks, chunk))
    scores = token_scores(
        q,
        k.expand(chunks, -1, -1),
        k_scale=None if k_scale is None else k_scale.expand(chunks, -1),
        num_queries=real,
    )
    return select_tokens(scores, top_k)


def _mass(
    queries: Tensor, keys: Tensor, selected: tuple[Tensor, ...], chunk: int, scale: float
) -> Tensor:
    """``(selections, H)``: the softmax on the tokens of each chunk's row, summed over queries."""
    rows = [index.long().repeat_interleave(chunk, 0)[: len(queries)] for index in selected]
    shared = queries.shape[1] // keys.shape[1]
    mass = []
    for head in range(queries.shape[1]):
        scores = queries[:, head].float() @ keys[:, head // shared].float().T * scale
        softmax = scores.softmax(1)
        mass.append(torch.stack([softmax.gather(1, index).double().sum() for index in rows]))
    return torch.stack(mass, 1)
