"""`gather_attention`, `window_attention`, and both as one: attention over some of a cache."""

from typing import Any, NamedTuple

import torch
from torch import Tensor

from triselect.ops import backends, cache, operator


class Attention(NamedTuple):
    """``out (B, C, H, D)`` of the queries' dtype, and ``lse (B, C, H) float32``.

    lse is the natural logarithm of the sum of ``exp(scale * q · k)``. Where there is nothing to
    attend to, out is 0 and lse is -inf.
    """

    out: Tensor
    lse: Tensor


def gather_attention(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    index: Tensor,
    *,
    num_initial: int = 0,
    end: Tensor | None = None,
    block_table: Tensor | None = None,
    scale: float | None = None,
    validate: bool = False,
    backend: str = "auto",
) -> Attention:
    """Attend to the initial tokens and to those of a list, which all queries and heads share.

    Parameters
    ----------
    q : ``(B, C, H, D)`` float32, float16 or bfloat16
        C queries of each of B sequences.
    k, v : ``(B, N, G, D)``, of q's dtype
        Cached keys and values of N tokens, any strides; G divides H, and head h has those of
        head ``h // (H / G)``. With a `block_table`: ``(blocks, size, G, D)``.
    index : ``(B, K)`` int32 or int64
        Tokens of each sequence, ascending, and -1 behind them (`select_tokens`). One that is
        listed twice, or is initial, counts once.
    num_initial : int
        The first tokens, 0 to ``num_initial - 1``, are attended to without being listed.
    end : ``(B,)`` int32 or int64, optional
        Tokens of sequence b from ``end[b]`` on do not exist.
    block_table : ``(B, P)`` int32 or int64, optional
        Blocks of a paged cache: token t of sequence b is row ``t % size`` of block
        ``block_table[b, t // size]``; -1 is a hole without tokens, and N is ``P * size``.
    scale : float, optional
        ``1 / sqrt(D)`` by default.
    validate : bool
        Look at the values of the index tensors on a device too, which waits for it. On the CPU
        they are always looked at.
    backend : "auto", "native", "triton", "eager" or "reference"
        A named backend runs or raises; "auto" chooses by device.

    Returns
    -------
    Attention
        ``out (B, C, H, D)`` of q's dtype and ``lse (B, C, H) float32``.

    Raises
    ------
    ValueError, TypeError
        An argument that does not fit, by name. Tokens out of range and rows that do not ascend are
        refused on the CPU; on a device they are passed over, unless `validate` asks to look.
    BackendUnavailable
        A named backend that cannot run here.

    Notes
    -----
    The far part of ESA (arXiv 2502.14477, equation 2 and algorithm 1): keys as they were before
    rotation, at position 0, and queries rotated by one fixed angle. No mask: all listed tokens are
    in the past. No gradient.

    Examples
    --------
    >>> k = torch.tensor([0.0, 9.0, 0.0]).view(1, 3, 1, 1)
    >>> v = torch.tensor([1.0, 5.0, 3.0]).view(1, 3, 1, 1)
    >>> gather_attention(torch.ones(1, 1, 1, 1), k, v, torch.tensor([[0, 2, -1]])).out.item()
    2.0
    """
    args = (q, k, v, index, num_initial, end, block_table, _scale(scale, q))
    _validate(q, k, v, block_table)
    _validate_far(q, k, index, num_initial, block_table)
    cache.must_be_per_sequence("end", end, q)
    if validate:
        _check_gather(*args)
    return _call(_gather, args, backend)


def window_attention(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    *,
    start: Tensor | None = None,
    end: Tensor | None = None,
    cos: Tensor | None = None,
    sin: Tensor | None = None,
    block_table: Tensor | None = None,
    scale: float | None = None,
    validate: bool = False,
    backend: str = "auto",
) -> Attention:
    """Attend causally to a window of tokens, the last of which are the queries' own.

    Parameters
    ----------
    q : ``(B, C, H, D)`` float32, float16 or bfloat16
        The last C queries of the window: query i stands at ``end[b] - C + i``.
    k, v : ``(B, N, G, D)``, of q's dtype
        Cached keys and values, as `gather_attention` takes them.
    start, end : ``(B,)`` int32 or int64, optional
        The window of sequence b goes from ``start[b]`` to ``end[b] - 1``: by default all tokens,
        which with one query is dense decoding.
    cos, sin : ``(P, D / 2)`` float32, optional
        Rotates the key of token t by row ``t - start[b]`` as it is read, pairs ``(i, i + D / 2)``;
        for caches that hold keys before rotation. The queries come rotated.
    block_table, scale, validate, backend
        As `gather_attention` takes them.

    Returns
    -------
    Attention
        ``out (B, C, H, D)`` of q's dtype and ``lse (B, C, H) float32``.

    Raises
    ------
    ValueError, TypeError
        An argument that does not fit, by name. On a device tokens that `cos` has no row for are
        passed over.
    BackendUnavailable
        A named backend that cannot run here.

    Notes
    -----
    The local part of ESA (arXiv 2502.14477, algorithm 1). No gradient.

    Examples
    --------
    >>> k, v = torch.zeros(1, 3, 1, 1), torch.tensor([1.0, 3.0, 8.0]).view(1, 3, 1, 1)
    >>> window_attention(torch.ones(1, 2, 1, 1), k, v).out.flatten()
    tensor([2., 4.])
    """
    args = (q, k, v, start, end, cos, sin, block_table, _scale(scale, q))
    _validate(q, k, v, block_table)
    _validate_window(q, start, end, cos, sin)
    if validate:
        _check_window(*args)
    return _call(_window, args, backend)


def selected_attention(
    q_far: Tensor,
    q: Tensor,
    k: Tensor,
    v: Tensor,
    index: Tensor,
    *,
    num_initial: int = 0,
    start: Tensor | None = None,
    end: Tensor | None = None,
    cos: Tensor | None = None,
    sin: Tensor | None = None,
    block_table: Tensor | None = None,
    scale: float | None = None,
    validate: bool = False,
    backend: str = "auto",
) -> Attention:
    """Attend to initial and listed tokens and to a window, in one softmax: a whole step of ESA.

    Parameters
    ----------
    q_far, q : ``(B, C, H, D)`` float32, float16 or bfloat16
        The same queries for the far tokens and for the window: rotated by the fixed angle, and as
        their places in the window say.
    k, v, index, num_initial, block_table, scale, validate, backend
        As `gather_attention` takes them. Tokens from ``start[b]`` on are the window's and not far
        ones; without `start` that is all of them.
    start, end, cos, sin
        As `window_attention` takes them.

    Returns
    -------
    Attention
        ``out (B, C, H, D)`` of q's dtype and ``lse (B, C, H) float32``: what `merge` makes of the
        two, without the rounding in between.

    Raises
    ------
    ValueError, TypeError
        An argument that does not fit, by name, as of the two.
    BackendUnavailable
        A named backend that cannot run here.

    Notes
    -----
    ESA (arXiv 2502.14477), algorithm 1. No gradient.

    Examples
    --------
    >>> k, v = torch.zeros(1, 4, 1, 1), torch.tensor([1.0, 5.0, 7.0, 4.0]).view(1, 4, 1, 1)
    >>> q, index, start = torch.ones(1, 1, 1, 1), torch.tensor([[0]]), torch.tensor([3])
    >>> selected_attention(q, q, k, v, index, start=start).out.item()
    2.5
    """
    args = (
        *(q_far, q, k, v, index, num_initial, start, end, cos, sin, block_table),
        _scale(scale, q),
    )
    _validate(q, k, v, block_table)
    cache.must_be_tensor("q_far", q_far, "(batch, queries, heads, dim)", q.device)
    cache.must_have_dtype("q_far", q_far, q.dtype)
    cache.must_have_shape("q_far", q_far, q.shape, "as q")
    _validate_far(q, k, index, num_initial, block_table)
    _validate_window(q, start, end, cos, sin)
    if validate:
        _check_selected(*args)
    return _call(_selected, args, backend)


def _call(found: operator.Operator, args: tuple[Any, ...], backend: str) -> Attention:
    if backend == "auto":
        return Attention(*found.auto(*args))
    backends.must_be_known(backend)
    return Attention(*found.named(*args, backend))


def _scale(scale: float | None, q: Tensor) -> float:
    if scale is None:
        return float(max(1, q.shape[-1])) ** -0.5 if isinstance(q, Tensor) and q.dim() else 1.0
    if isinstance(scale, bool) or not isinstance(scale, int | float):
        raise TypeError(f"scale must be a float, got {type(scale).__name__}")
    if not abs(scale) < float("inf"):
        raise ValueError(f"scale must be finite, got {scale}")
    return float(scale)


def _validate(q: Tensor, k: Tensor, v: Tensor, block_table: Tensor | None) -> None:
    cache.must_be_tensor("q", q, "(batch, queries, heads, dim)")
    if q.dtype not in cache.FLOATS:
        raise TypeError(f"q must be float32, float16 or bfloat16, got {q.dtype}")
    for name, value in (("k", k), ("v", v)):
        cache.must_be_tensor(name, value, "(batch, tokens, heads, dim)", q.device)
        cache.must_have_dtype(name, value, q.dtype)
        if value.shape[3] != q.shape[3] or not q.shape[3]:
            raise ValueError(
                f"{name} must have q's {q.shape[3]} numbers per head, got {tuple(value.shape)}"
            )
    cache.must_have_shape("v", v, k.shape, "as k")
    if not k.shape[2] or q.shape[2] % k.shape[2]:
        raise ValueError(f"k's {k.shape[2]} heads must divide q's, {q.shape[2]}")
    cache.capacity("k", k, len(q), block_table)


def _validate_far(
    q: Tensor, k: Tensor, index: Tensor, num_initial: int, block_table: Tensor | None
) -> None:
    cache.must_be_tensor("index", index, "(batch, selected)", q.device)
    cache.must_be_integers("index", index)
    if index.shape[0] != q.shape[0]:
        raise ValueError(f"index must have {q.shape[0]} rows as q, got {index.shape[0]}")
    operator.must_be_int("num_initial", num_initial)
    tokens = cache.capacity("k", k, len(q), block_table)
    if not 0 <= num_initial <= tokens:
        raise ValueError(
            f"num_initial must be between 0 and the {tokens} tokens, got {num_initial}"
        )


def _validate_window(
    q: Tensor, start: Tensor | None, end: Tensor | None, cos: Tensor | None, sin: Tensor | None
) -> None:
    cache.must_be_per_sequence("start", start, q)
    cache.must_be_per_sequence("end", end, q)
    if (cos is None) != (sin is None):
        raise ValueError("cos and sin must come together, got one of them")
    if cos is None or sin is None:
        return
    for name, value in (("cos", cos), ("sin", sin)):
        cache.must_be_tensor(name, value, "(places, dim / 2)", q.device)
        cache.must_have_dtype(name, value, torch.float32)
        if q.shape[3] % 2 or value.shape[1] != q.shape[3] // 2:
            raise ValueError(
                f"{name} must be (places, dim / 2) for dim {q.shape[3]}, got {tuple(value.shape)}"
            )
    cache.must_have_shape("sin", sin, cos.shape, "as cos")


def _check_gather(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    index: Tensor,
    num_initial: int,
    end: Tensor | None,
    block_table: Tensor | None,
    scale: float,
) -> None:
    tokens = cache.capacity("k", k, len(q), block_table)
    cache.check_range(None, end, tokens)
    cache.check_block_table(block_table, k)
    operator.must_be_in_range("index", index, -1, tokens - 1, "-1 for padding")
    # Padding behind a token descends too: -1 counts as the largest here.
    ordered = index.where(index >= 0, operator.LARGEST_INT32)
    if bool((ordered.diff(dim=1) < 0).any()):
        raise ValueError("index must ascend in every row, with padding behind the tokens")


def _check_window(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    start: Tensor | None,
    end: Tensor | None,
    cos: Tensor | None,
    sin: Tensor | None,
    block_table: Tensor | None,
    scale: float,
) -> None:
    tokens = cache.capacity("k", k, len(q), block_table)
    cache.check_range(start, end, tokens)
    cache.check_block_table(block_table, k)
    if cos is None or not len(q):
        return
    lengths = q.new_full((len(q),), tokens, dtype=torch.int64) if end is None else end
    longest = int((lengths if start is None else lengths - start).max())
    if longest > len(cos):
        raise ValueError(f"cos must have a row for each of {longest} places, got {len(cos)}")


def _check_selected(
    q_far: Tensor,
    q: Tensor,
    k: Tensor,
    v: Tensor,
    index: Tensor,
    num_initial: int,
    start: Tensor | None,
    end: Tensor | None,
    cos: Tensor | None,
    sin: Tensor | None,
    block_table: Tensor | None,
    scale: float,
) -> None:
    _check_gather(q, k, v, index, num_initial, None, block_table, scale)
    _check_window(q, k, v, start, end, cos, sin, block_table, scale)


def _empty(q: Tensor, *args: Any) -> tuple[Tensor, Tensor]:
    return q.new_empty(q.shape), q.new_empty(q.shape[:3], dtype=torch.float32)


RETURNS = "(Tensor out, Tensor lse)"
FAR = "Tensor k, Tensor v, Tensor index, int num_initial"
WINDOW = "Tensor? start, Tensor? end, Tensor? cos, Tensor? sin, Tensor? block_table, float scale"

_gather = operator.define(
    "gather_attention",
    f"Tensor q, {FAR}, Tensor? end, Tensor? block_table, float scale",
    RETURNS,
    _empty,
    check=_check_gather,
)
_window = operator.define(
    "window_attention",
    f"Tensor q, Tensor k, Tensor v, {WINDOW}",
    RETURNS,
    _empty,
    room="gather_attention",
    check=_check_window,
)
_selected = operator.define(
    "selected_attention",
    f"Tensor q_far, Tensor q, {FAR}, {WINDOW}",
    RETURNS,
    _empty,
    room="gather_attention",
    check=_check_selected,
)
