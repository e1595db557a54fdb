"""`attend`: one layer of ESA over a chunk of new tokens."""

from collections.abc import Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor

from triselect.esa.cache import Cache, Chunk
from triselect.esa.compressor import Compressor
from triselect.esa.config import Config
from triselect.esa.rotary import Rotary
from triselect.ops import (
    cache as accepts,
)
from triselect.ops import (
    compress,
    operator,
    select_tokens,
    selected_attention,
    token_scores,
    window_attention,
)
from triselect.ops.cache import FLOATS


def attend(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    cache: Cache,
    layer: int,
    *,
    rotary: Rotary | None = None,
    scale: float | None = None,
    padding: Sequence[int] | None = None,
    backend: str = "auto",
) -> Tensor:
    """Store new tokens of a layer and attend from them, to selected tokens of all before.

    Parameters
    ----------
    q : ``(B, C, H, D)`` float32, float16 or bfloat16
    k, v : ``(B, C, G, D)``, of q's dtype
        Of C new tokens of each of B sequences, before rotation: one, a whole text, or any part of
        it. G divides H.
    cache : Cache
        Of the tokens before; the new ones are added.
    layer : int
    rotary : Rotary, optional
        The model's. Without it there are no positions.
    scale : float, optional
        ``1 / sqrt(D)`` by default.
    padding : sequence of int, optional
        For each sequence, how many of the C tokens are padding, the first ones: they are not
        stored, and what they get is finite and means nothing.
    backend : "auto", "native", "triton", "eager" or "reference"
        Of the operators.

    Returns
    -------
    ``(B, C, H, D)`` of q's dtype

    Raises
    ------
    ValueError, TypeError
        An argument that does not fit, by name; a compressor for another model. Nothing is stored.
    BackendUnavailable
        A named backend that cannot run here.

    Notes
    -----
    ESA (arXiv 2502.14477), section 3 and algorithm 1. More than ``config.chunk`` tokens are taken
    in chunks of so many. A chunk scores the tokens between the initial and the local ones by ``max
    over its queries c of (q'_c · k'_m - max over m' of q'_c · k'_m')``, with compressed queries at
    the angle of position ``local``; it takes the best `top_k` for all its queries and heads, and
    attends to initial, selected, local and its own tokens in one softmax. With positions "rerope"
    the distance to all that is not local is `local`, so what is near depends on the chunk; with
    "original" and a budget that covers everything this is ordinary attention. No gradient.

    Examples
    --------
    >>> from triselect.esa import Cache, Config
    >>> cache = Cache(Config(initial=4, local=16, top_k=8, chunk=8, scorer="exact"))
    >>> q, k = torch.randn(1, 100, 4, 8), torch.randn(1, 100, 2, 8)
    >>> attend(q, k, k, cache, 0, rotary=Rotary.of(8)).shape
    torch.Size([1, 100, 4, 8])
    """
    _validate(q, k, v, cache, layer, rotary, padding)
    config = cache.of_layer(layer)
    compressor = cache.compressor(layer, q, k)
    parts = []
    for i in range(0, q.shape[1], config.chunk):
        part = slice(i, i + config.chunk)
        count = min(config.chunk, q.shape[1] - i)
        left = None if padding is None else [min(max(0, pad - i), count) for pad in padding]
        at = cache.chunk(layer, q[:, part], left)
        parts.append(
            _chunk(
                *(q[:, part], k[:, part], v[:, part], cache, layer, at),
                *(config, compressor, rotary, scale, backend),
            )
        )
    return parts[0] if len(parts) == 1 else torch.cat([q[:, :0], *parts], 1)


def _chunk(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    cache: Cache,
    layer: int,
    at: Chunk,
    config: Config,
    compressor: Compressor | None,
    rotary: Rotary | None,
    scale: float | None,
    backend: str,
) -> Tensor:
    of = _rotated(q, k, at, config, rotary)
    cache.store(layer, at, of.k, v, k, compressor, backend)
    num_initial, index = at.far, at.start.new_empty(len(q), 0)  # all of them, as if initial
    if at.most > config.top_k:
        num_initial = min(config.initial, at.far)
        index = _selected(of, cache, layer, at, config, compressor, backend)
    k, v, table = cache.keys_values(layer, at, num_initial, index)
    options: dict[str, Any] = {
        **{"start": at.start, "end": at.end, "cos": of.cos, "sin": of.sin},
        **{"block_table": table, "scale": scale, "backend": backend},
    }
    if not at.far:
        return window_attention(of.near, k, v, **options).out
    found = selected_attention(of.far, of.near, k, v, index, num_initial=num_initial, **options)
    return found.out


class _Rotated(NamedTuple):
    """Queries for what is far, for the window, and to be compressed; keys to be stored; and the
    angles of the window's keys, where these are stored without."""

    far: Tensor
    near: Tensor
    to_compress: Tensor
    k: Tensor
    cos: Tensor | None = None
    sin: Tensor | None = None


def _rotated(q: Tensor, k: Tensor, at: Chunk, config: Config, rotary: Rotary | None) -> _Rotated:
    if rotary is None:
        return _Rotated(q, q, q, k)
    rotary = rotary.to(q.device)
    distant = q
    if at.far:
        distant = rotary.rotate(q, torch.full((1,), config.local, device=q.device))
    if config.positions == "original":
        rotated = rotary.rotate(q, at.position)
        return _Rotated(rotated, rotated, distant, rotary.rotate(k, at.position))
    # Far keys are at position 0, where rotating them leaves YaRN's factor.
    far = distant if rotary.scaling == 1 else distant * rotary.scaling
    near = rotary.rotate(q, at.in_window)
    return _Rotated(far, near, distant, k, *rotary.table(config.local + config.chunk))


def _selected(
    of: _Rotated,
    cache: Cache,
    layer: int,
    at: Chunk,
    config: Config,
    compressor: Compressor | None,
    backend: str,
) -> Tensor:
    if compressor is None:
        queries = of.far
    else:
        queries = _compressed(of.to_compress, compressor, config, backend)
    if at.real is not None:  # padding repeats a query, which changes no maximum
        real = at.real.unflatten(1, (-1, *(1,) * (queries.dim() - 2)))
        queries = queries.where(real, queries[:, -1:])
    keys, scale = cache.keys_to_score(layer, at.far, compressor is None)
    table = cache.table(at.far)
    bounds: dict[str, Any] = {"start": at.first, "end": at.start, "backend": backend}
    scores = token_scores(queries, keys, k_scale=scale, block_table=table, **bounds)
    return select_tokens(scores, config.top_k, proximity=config.proximity, **bounds)


def _compressed(q: Tensor, of: Compressor, config: Config, backend: str) -> Tensor:
    wanted = config.key_dtype if config.key_dtype in FLOATS else q.dtype
    return compress(q, of.query, of.query_bias, dtype=wanted, backend=backend).values


def _validate(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    cache: Cache,
    layer: int,
    rotary: Rotary | None,
    padding: Sequence[int] | None,
) -> None:
    accepts.must_be_tensor("q", q, "(batch, queries, heads, dim)")
    if q.dtype not in FLOATS:
        raise TypeError(f"q must be float32, float16 or bfloat16, got {q.dtype}")
    if not isinstance(cache, Cache):
        raise TypeError(f"cache must be an esa.Cache, got {type(cache).__name__}")
    for name, value in (("k", k), ("v", v)):
        accepts.must_be_tensor(name, value, "(batch, tokens, heads, dim)", q.device)
        accepts.must_have_dtype(name, value, q.dtype)
        accepts.must_have_shape(name, value, (*q.shape[:2], k.shape[2], q.shape[3]), "as q and k")
    if not k.shape[2] or q.shape[2] % k.shape[2]:
        raise ValueError(f"k's {k.shape[2]} heads must divide q's, {q.shape[2]}")
    operator.must_be_int("layer", layer)
    if layer < 0:
        raise ValueError(f"layer must be at least 0, got {layer}")
    if rotary is not None and 2 * len(rotary.inv_freq) != q.shape[3]:
        raise ValueError(
            f"rotary must be for heads of {q.shape[3]}, got {2 * len(rotary.inv_freq)}"
        )
    if padding is not None:
        if len(padding) != len(q):
            raise ValueError(f"padding must have {len(q)} entries, got {len(padding)}")
        if bad := [pad for pad in padding if not 0 <= pad <= q.shape[1]]:
            raise ValueError(f"padding must be between 0 and {q.shape[1]}, got {bad[0]}")
