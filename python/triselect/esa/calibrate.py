"""`calibrate`: a compressor for one attention layer, from its queries and keys on any text."""

from collections.abc import Iterator
from typing import Literal, get_args

import torch
from torch import Tensor

from triselect.esa import factors, gradient
from triselect.esa.compressor import Compressor
from triselect.esa.factors import Factors
from triselect.esa.held_out import ONE_IN, HeldOut
from triselect.esa.layout import Chunks, Layout, rows
from triselect.esa.moments import Moments
from triselect.esa.recall import Curve, curve
from triselect.ops import operator

Method = Literal["closed_form", "centered", "pca", "gradient"]
DEFAULT_DIM = 128
BLOCK = 64  # tokens held out in a row, at least
HELD_OUT_QUERIES, HELD_OUT_KEYS = 512, 4096  # at most
KEPT_ONE_IN = 16  # by default: as 2048 of 32768


def calibrate(
    queries: Chunks,
    keys: Chunks,
    *,
    dim: int | None = None,
    recall: float | None = None,
    top_k: int | None = None,
    chunk: int = 1,
    method: Method = "closed_form",
    seed: int = 0,
) -> Compressor:
    """Calibrate ESA's compression of one layer's queries and keys.

    Parameters
    ----------
    queries : ``(T, H, D)`` floating point, or an iterable of such chunks
        Any number of queries, of any texts, tokens in order.
    keys : ``(T', G, D)``, or an iterable of such chunks
        Keys likewise; G divides H, and query head h reads key head ``h // (H / G)``. Iterables are
        read once, a chunk of each in turn, so that both may come from one `itertools.tee`.
    dim : int, optional
        Numbers to compress to, at most G · D: 128 by default, or G · D where that is less.
    recall : float, optional
        Instead of `dim`: the smallest size that finds this share, between 0 and 1, of the tokens
        that exact scores select. It is measured at up to 64 sizes (`Compressor.curve`) on blocks of
        tokens held out: one block of four, at most 512 queries and 4096 keys, so the share of a
        real context that is kept should be the share of the sample.
    top_k : int, optional
        With `recall`: how many tokens are selected; by default one of 16 of the keys held out.
    chunk : int
        With `recall`: queries that select together; 1 as in decoding.
    method : "closed_form", "centered", "pca" or "gradient"
        See Notes. Only the last needs all queries and keys in memory (folded, in float32).
    seed : int
        Of what is held out, and of the gradient method.

    Returns
    -------
    Compressor
        In float32 on the CPU. Where the data have fewer independent directions than `dim`, the
        rows beyond are zero: the compression is exact without them.

    Raises
    ------
    ValueError, TypeError
        An argument that does not fit, by name; too few tokens to hold some out; a recall that no
        size reaches.

    Notes
    -----
    ESA (arXiv 2502.14477), equations 5 to 7: ``f(m; c) ≈ (A q_c) · (B k_m)``, with A and B minimal
    in squared error over all pairs. Queries are folded first, added up over the heads that share a
    key, which changes no score and leaves G · D numbers of H · D.

    closed_form: the exact minimum without biases, from the second moments of queries and keys (not
    the covariances: the error is that of the scores themselves). centered: the same of keys less
    their mean, which moves all scores of a query alike and so selects the same; a rank is not
    spent on the mean, and the bias that takes it from the compressed keys leaves 8-bit ones a
    smaller range. pca: the principal axes of the keys for both, as in Loki (arXiv 2406.02542), but
    over all heads. gradient: the recipe of the paper, a linear layer with bias for each, learning
    rate 5e-4, batches of 128, 10 epochs. Which optimiser, which pairs and which initial weights the
    paper does not say; here Adam, all pairs of a batch, PyTorch's own.

    Queries and keys are compared as they are given. ESA keeps keys before their rotary embedding
    and places queries at one far position, so give keys before rotation, and queries either rotated
    to that position or not at all. That rotation is linear and the same for all heads: it
    commutes with the folding and could be multiplied into A.

    Examples
    --------
    >>> generator = torch.Generator().manual_seed(0)
    >>> queries = torch.randn(1000, 8, 32, generator=generator)
    >>> keys = torch.randn(1000, 2, 32, generator=generator)
    >>> compressor = calibrate(queries, keys, dim=16)
    >>> compressor.query.shape, compressor.key.shape
    (torch.Size([16, 64]), torch.Size([16, 64]))
    >>> calibrate(queries, keys, recall=0.9).dim > 16  # nothing to leave out in noise
    True
    """
    _validate(dim, recall, top_k, chunk, method, seed)
    layout, stream = rows(queries, keys)
    size = _size(dim, layout)
    if method == "gradient":
        parts = [(q.float().cpu(), k.float().cpu()) for q, k in stream]
        q, k = (torch.cat(part) for part in zip(*parts, strict=True))
        _must_have_tokens(len(q), len(k))
        layers = gradient.train(q, k, size, seed)
        return Compressor(**layers._asdict(), **layout._asdict(), method=method)

    samples = None if recall is None else _samples(chunk, seed)
    q_moments, k_moments = _moments(stream, layout.width, samples)
    _must_have_tokens(q_moments.count, k_moments.count)
    found = _factors(method, q_moments, k_moments)
    measured = None
    if recall is not None and samples is not None:
        measured = _measured(found, samples, top_k, chunk)
        size = measured.smallest(recall)
    return _cut(found, size, layout, k_moments, method, measured)


def fit(
    layout: Layout, queries: Moments, keys: Moments, dim: int | None, method: Method
) -> Compressor:
    """By any method but the gradient's, from moments alone."""
    size = _size(dim, layout)
    _must_have_tokens(queries.count, keys.count)
    return _cut(_factors(method, queries, keys), size, layout, keys, method, None)


def _cut(
    found: Factors,
    size: int,
    layout: Layout,
    keys: Moments,
    method: Method,
    measured: Curve | None,
) -> Compressor:
    """The first `size` rows of the maps."""
    query, key = found.query[:size], found.key[:size]
    return Compressor(
        query.float(),
        key.float(),
        **layout._asdict(),
        key_bias=(-key @ keys.mean).float() if method == "centered" else None,
        method=method,
        curve=measured,
    )


def _size(dim: int | None, layout: Layout) -> int:
    if dim is None:
        return min(DEFAULT_DIM, layout.width)
    if dim > layout.width:
        raise ValueError(
            f"dim must be at most groups * head_dim = {layout.groups} * {layout.head_dim} = "
            f"{layout.width}, got {dim}"
        )
    return dim


def _samples(chunk: int, seed: int) -> tuple[HeldOut, HeldOut]:
    block = -(-BLOCK // chunk) * chunk  # whole chunks of queries
    return (
        HeldOut(block, max(1, HELD_OUT_QUERIES // block), seed),
        HeldOut(BLOCK, HELD_OUT_KEYS // BLOCK, seed),
    )


def _moments(
    stream: Iterator[tuple[Tensor, Tensor]],
    width: int,
    samples: tuple[HeldOut, HeldOut] | None,
) -> tuple[Moments, Moments]:
    """Of all rows but those held out."""
    moments = Moments(width), Moments(width)
    for pair in stream:
        for i, part in enumerate(pair):
            moments[i].add(part if samples is None else samples[i].add(part))
    for i, sample in enumerate(samples or ()):
        for part in sample.unfinished():
            moments[i].add(part)
    return moments


def _factors(method: Method, queries: Moments, keys: Moments) -> Factors:
    match method:
        case "closed_form":
            return factors.closed_form(queries.second, keys.second)
        case "centered":
            return factors.closed_form(queries.second, keys.covariance)
        case _:
            return factors.pca(keys.covariance)


def _measured(
    found: Factors, samples: tuple[HeldOut, HeldOut], top_k: int | None, chunk: int
) -> Curve:
    for name, sample in zip(("queries", "keys"), samples, strict=True):
        if not sample.held_out():
            raise ValueError(
                f"{name} must have at least {ONE_IN * sample.block} tokens, so that some can be "
                "held out to measure the recall"
            )
    q, k = (torch.cat(sample.held_out()) for sample in samples)
    if top_k is None:
        top_k = len(k) // KEPT_ONE_IN
    if top_k >= len(k):
        raise ValueError(f"top_k must be less than the {len(k)} keys held out, got {top_k}")
    return curve(found, q, k, top_k, chunk)


def _must_have_tokens(queries: int, keys: int) -> None:
    for name, count in (("queries", queries), ("keys", keys)):
        if not count:
            raise ValueError(f"{name} must have at least one token to calibrate on, got none")


def _validate(
    dim: int | None,
    recall: float | None,
    top_k: int | None,
    chunk: int,
    method: str,
    seed: int,
) -> None:
    for name, value, least in (
        ("dim", dim, 1),
        ("top_k", top_k, 1),
        ("chunk", chunk, 1),
        ("seed", seed, 0),
    ):
        if value is not None:
            operator.must_be_int(name, value)
            if value < least:
                raise ValueError(f"{name} must be at least {least}, got {value}")
    if method not in get_args(Method):
        raise ValueError(f"method must be one of {', '.join(get_args(Method))}, got {method!r}")
    if recall is None:
        return
    if not isinstance(recall, float | int):
        raise TypeError(f"recall must be a float, got {type(recall).__name__}")
    if not 0 < recall < 1:
        raise ValueError(f"recall must be between 0 and 1, both excluded, got {recall}")
    if dim is not None:
        raise ValueError(f"dim and recall exclude each other, got {dim} and {recall}")
    if method == "gradient":
        raise ValueError("recall needs maps of which every size is a part; gradient's are not")
