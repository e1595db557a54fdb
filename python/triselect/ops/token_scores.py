"""`token_scores`: how much a chunk of queries wants each cached token."""

import torch
from torch import Tensor

from triselect.ops import backends, cache, operator


def token_scores(
    q: Tensor,
    k: Tensor,
    *,
    k_scale: Tensor | None = None,
    start: Tensor | None = None,
    end: Tensor | None = None,
    num_queries: Tensor | None = None,
    block_table: Tensor | None = None,
    validate: bool = False,
    backend: str = "auto",
) -> Tensor:
    """Score the cached tokens for a chunk of queries, one number for each token.

    Parameters
    ----------
    q : ``(B, C, E)`` or ``(B, C, H, D)`` float32, float16 or bfloat16
        C queries of each of B sequences: compressed to E numbers, or all H heads as they are.
    k : ``(B, N, E)`` or ``(B, N, G, D)``, of q's dtype
        Keys of N tokens; G heads, where G divides H. Compressed keys may be int8 or float8_e4m3fn.
        With a `block_table`: ``(blocks, size, E)`` or ``(blocks, size, G, D)``.
    k_scale : ``(B, N)`` or ``(blocks, size)`` float32
        What 8-bit keys are multiplied with; needed for these and for no others.
    start, end : ``(B,)`` int32 or int64, optional
        Sequence b scores its tokens from ``start[b]`` to ``end[b] - 1``: by default all.
    num_queries : ``(B,)`` int32 or int64, optional
        How many of the C queries are real, the first ones: by default all.
    block_table : ``(B, P)`` int32 or int64, optional
        Blocks of a paged cache, see Notes.
    validate : bool
        Look at the values of the index tensors on a device too, which waits for it. On the CPU
        they are always looked at.
    backend : "auto", "native", "triton", "eager" or "reference"
        A named backend runs or raises; "auto" chooses by device.

    Returns
    -------
    ``(B, N)`` float32
        -inf outside the range, in holes of the block table, and where there is no query.

    Raises
    ------
    ValueError, TypeError
        An argument that does not fit, by name. Index tensors out of range are refused on the CPU;
        on a device what they name does not exist, unless `validate` asks to look.
    BackendUnavailable
        A named backend that cannot run here.

    Notes
    -----
    ESA (arXiv 2502.14477), equations 3 to 6: ``F(m) = max over c of (f(m; c) - max over m' of
    f(m'; c))`` with ``f(m; c) = q_c · k_m``, over the tokens of the range; at most 0. All heads:
    queries are added up over the heads that share a key first, which is exact. A sequence of one
    query keeps f itself: the order is the same and the keys are read once. NaN counts as -inf. No
    temporary has the size of queries times tokens.

    Paged: token t of sequence b is row ``t % size`` of block ``block_table[b, t // size]``, -1
    is a hole without tokens, and N is ``P * size``.

    Examples
    --------
    >>> q = torch.tensor([[[1.0, 0.0], [0.0, 5.0]]])
    >>> k = torch.tensor([[[2.0, 0.0], [1.0, 1.0], [0.0, 0.5]]])
    >>> token_scores(q, k)  # the first query's best token is 0, the second's is 1
    tensor([[ 0.,  0., -2.]])
    """
    args = (q, k, k_scale, start, end, num_queries, block_table)
    _validate(*args)
    if validate:
        _check(*args)
    found: Tensor
    if backend == "auto":
        found = _token_scores.auto(*args)
    else:
        backends.must_be_known(backend)
        found = _token_scores.named(*args, backend)
    return found


def _validate(
    q: Tensor,
    k: Tensor,
    k_scale: Tensor | None,
    start: Tensor | None,
    end: Tensor | None,
    num_queries: Tensor | None,
    block_table: Tensor | None,
) -> None:
    exact = isinstance(q, Tensor) and q.dim() == 4
    cache.must_be_tensor(
        "q", q, "(batch, queries, heads, dim)" if exact else "(batch, queries, dim)"
    )
    cache.must_be_tensor(
        "k", k, "(batch, tokens, heads, dim)" if exact else "(batch, tokens, dim)", q.device
    )
    if q.dtype not in cache.FLOATS:
        raise TypeError(f"q must be float32, float16 or bfloat16, got {q.dtype}")
    if q.shape[-1] != k.shape[-1] or not k.shape[-1]:
        raise ValueError(
            f"q and k must have vectors of one length, got {tuple(q.shape)} and {tuple(k.shape)}"
        )
    if exact and (not k.shape[2] or q.shape[2] % k.shape[2]):
        raise ValueError(f"k's {k.shape[2]} heads must divide q's, {q.shape[2]}")
    if k.dtype in cache.EIGHT_BITS and not exact:
        if k_scale is None:
            raise ValueError(
                f"k_scale must say what keys of {k.dtype} are multiplied with, got None"
            )
        cache.must_be_tensor("k_scale", k_scale, "(batch, tokens)", q.device)
        cache.must_have_dtype("k_scale", k_scale, torch.float32)
        cache.must_have_shape("k_scale", k_scale, k.shape[:2], "as k")
    else:
        cache.must_have_dtype("k", k, q.dtype)
        if k_scale is not None:
            raise ValueError(f"k_scale is for keys of 8 bits, k has {k.dtype}")
    cache.capacity("k", k, len(q), block_table)
    for name, value in (("start", start), ("end", end), ("num_queries", num_queries)):
        cache.must_be_per_sequence(name, value, q)


def _check(
    q: Tensor,
    k: Tensor,
    k_scale: Tensor | None,
    start: Tensor | None,
    end: Tensor | None,
    num_queries: Tensor | None,
    block_table: Tensor | None,
) -> None:
    cache.check_range(start, end, cache.capacity("k", k, len(q), block_table))
    cache.check_block_table(block_table, k)
    if num_queries is not None:
        operator.must_be_in_range("num_queries", num_queries, 0, q.shape[1], "the queries of q")


def _empty(
    q: Tensor,
    k: Tensor,
    k_scale: Tensor | None,
    start: Tensor | None,
    end: Tensor | None,
    num_queries: Tensor | None,
    block_table: Tensor | None,
) -> Tensor:
    tokens = k.shape[1] if block_table is None else k.shape[1] * block_table.shape[1]
    return q.new_empty((q.shape[0], tokens), dtype=torch.float32)


_token_scores = operator.define(
    "token_scores",
    "Tensor q, Tensor k, Tensor? k_scale, Tensor? start, Tensor? end, Tensor? num_queries, "
    "Tensor? block_table",
    "Tensor",
    _empty,
    check=_check,
)
