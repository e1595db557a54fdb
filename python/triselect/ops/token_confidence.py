"""`token_confidence`: the token of each row of logits, its probability, and how sure it is."""

from collections.abc import Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor

from triselect.ops import backends, cache, operator

SCORES = ("max_prob", "margin", "neg_entropy")
LOWEST, HIGHEST = 1e-6, 1e6  # temperatures
NUMBERS = (float, torch.SymFloat, *operator.INTEGERS)


class Confidence(NamedTuple):
    """`token` int32, `prob` and `score` float32, one of each per row."""

    token: Tensor
    prob: Tensor
    score: Tensor


class Partial(NamedTuple):
    """What a part of the vocabulary says: `token` ``(R,)`` int32, `parts` ``(R, 6)`` float32."""

    token: Tensor
    parts: Tensor


def token_confidence(
    logits: Tensor,
    *,
    score: str = "max_prob",
    temperature: float | Tensor = 1.0,
    mask_token: int = -1,
    rows: Tensor | None = None,
    seed: Tensor | None = None,
    position: Tensor | None = None,
    step: Tensor | None = None,
    backend: str = "auto",
) -> Confidence:
    """The token of each row, its probability, and how sure the model is: one pass over the logits.

    Parameters
    ----------
    logits : ``(R, V)`` float32, float16 or bfloat16
        At least two tokens; any strides, tokens side by side are read in place.
    score : "max_prob", "margin" or "neg_entropy"
        The token's probability, the largest minus the second largest, or the sum of
        ``p * log(p)``. Larger is surer.
    temperature : float, or ``(R,)`` float32
        What logits are divided by, from 1e-6 to 1e6. As a tensor one for each row, and
        torch.compile compiles once for all values; of a float it makes a constant.
    mask_token : int
        A token that has no part in anything; -1 for none.
    rows : ``(R,)`` bool, optional
        Which rows are asked for: by default all. Others are not read.
    seed, position, step : ``(R,)`` int64, optional
        All three, or none. With them the token is drawn: of softmax(logits / temperature), by
        noise that depends on these three and the token alone. Without, it is the most probable.
    backend : "auto", "native", "triton", "eager" or "reference"
        A named backend runs or raises; "auto" chooses by device.

    Returns
    -------
    Confidence
        `token` ``(R,)`` int32, `prob` and `score` ``(R,)`` float32. Of equal tokens the lowest. A
        row with NaN or +inf, or with nothing above -inf, is the least confident there is: prob 0,
        score -inf. So is one that is not asked for; its token is -1.

    Raises
    ------
    ValueError, TypeError
        An argument that does not fit, by name.
    BackendUnavailable
        A named backend that cannot run here.

    Notes
    -----
    Temperatures in a tensor are looked at on the CPU alone; on a device a row whose temperature is
    out of range has undefined results.

    No gradient: the results are detached. Greedy tokens are the same on all backends; drawn ones
    are, unless two come within the rounding of a logarithm. The noise is Gumbel's, of the bits of
    Philox4x32-10 (Salmon et al. 2011) under the key `seed`: word ``token % 4`` of counter
    ``(token // 4, position, step, 0)``. A row has the same bits whatever the others are. Nothing of
    the size of the logits is written (but by "eager" and "reference"), and nothing waits for the
    device.

    Examples
    --------
    >>> logits = torch.tensor([[0.0, 9.0, 1.0, 1.0], [0.5, 0.0, 0.0, 0.0]])
    >>> found = token_confidence(logits, mask_token=1)
    >>> found.token
    tensor([2, 0], dtype=torch.int32)
    >>> found.prob
    tensor([0.4223, 0.4519])
    >>> at = torch.tensor([7, 8])
    >>> token_confidence(logits, seed=at, position=at, step=at).token
    tensor([1, 0], dtype=torch.int32)
    """
    given = (logits, rows, seed, position, step)
    args = (*given, *_temperature(temperature), score, mask_token, 0)
    token, prob, found, _ = _call(args, backend)
    return Confidence(token, prob, found)


def partial_confidence(
    logits: Tensor,
    *,
    first_token: int,
    temperature: float | Tensor = 1.0,
    mask_token: int = -1,
    rows: Tensor | None = None,
    seed: Tensor | None = None,
    position: Tensor | None = None,
    step: Tensor | None = None,
    backend: str = "auto",
) -> Partial:
    """What a part of the vocabulary says, for `merge_confidence`: where devices hold a part each.

    Parameters
    ----------
    logits : ``(R, V)`` float32, float16 or bfloat16
        Of the tokens `first_token` to ``first_token + V - 1``, two or more.
    first_token : int
        The first token of this part.
    temperature, mask_token, rows, seed, position, step, backend
        As in `token_confidence`, the same for all parts.

    Returns
    -------
    Partial
        `token` ``(R,)`` int32, the best of the part, and six numbers ``(R, 6)`` float32: the
        largest ``z = logits / temperature``, the sums of ``exp(z - largest)`` and of that times
        ``z - largest``, the second largest z, and of the token what it was chosen by (the logit,
        or z and noise) and z.

    Raises
    ------
    ValueError, TypeError
        An argument that does not fit, by name.
    BackendUnavailable
        A named backend that cannot run here.

    Examples
    --------
    >>> logits = torch.tensor([[0.0, 9.0, 1.0, 1.0]])
    >>> partial_confidence(logits[:, 2:], first_token=2).token
    tensor([2], dtype=torch.int32)
    """
    score = "neg_entropy"  # which needs all six numbers
    given = (logits, rows, seed, position, step)
    args = (*given, *_temperature(temperature), score, mask_token, first_token)
    token, _, _, parts = _call(args, backend)
    return Partial(token, parts)


def merge_confidence(partials: Sequence[Partial], *, score: str = "max_prob") -> Confidence:
    """Token and confidence of a vocabulary from those of its parts, in any order.

    Parameters
    ----------
    partials : sequence of Partial
        Of all parts, on one device: R numbers of each, whatever V is.
    score : "max_prob", "margin" or "neg_entropy"
        As in `token_confidence`.

    Returns
    -------
    Confidence
        As of `token_confidence` over the whole vocabulary: the same tokens, and the same numbers up
        to rounding.

    Raises
    ------
    ValueError, TypeError
        An argument that does not fit, by name.

    Examples
    --------
    >>> logits = torch.tensor([[0.0, 3.0, 1.0, 1.0]])
    >>> parts = [partial_confidence(logits[:, i : i + 2], first_token=i) for i in (0, 2)]
    >>> merge_confidence(parts)
    Confidence(token=tensor([1], dtype=torch.int32), prob=tensor([0.7573]), score=tensor([0.7573]))
    """
    from triselect.kernels.token_confidence import eager

    _must_be_score(score)
    if not partials:
        raise ValueError("partials must hold one part or more, got none")
    for partial in partials:
        _must_be_partial(partial, partials[0])
    with torch.no_grad():
        token, parts = partials[0]
        for other in partials[1:]:
            token, parts = eager.merge(token, parts, *other)
        return Confidence(token, *eager.finish(parts, score))


def _temperature(temperature: float | Tensor) -> tuple[Tensor | None, float]:
    return (temperature, 1.0) if isinstance(temperature, Tensor) else (None, temperature)


def _call(args: tuple[Any, ...], backend: str) -> tuple[Tensor, ...]:
    _validate(*args)
    if args[0].requires_grad:
        args = (args[0].detach(), *args[1:])
    found: tuple[Tensor, ...]
    if backend == "auto":
        found = _token_confidence.auto(*args)
    else:
        backends.must_be_known(backend)
        found = _token_confidence.named(*args, backend)
    return found


def _validate(
    logits: Tensor,
    rows: Tensor | None,
    seed: Tensor | None,
    position: Tensor | None,
    step: Tensor | None,
    temperatures: Tensor | None,
    temperature: float,
    score: str,
    mask_token: int,
    first_token: int,
) -> None:
    # A few comparisons where all is well: small calls take as long as this.
    if not isinstance(logits, Tensor) or logits.dim() != 2:
        cache.must_be_tensor("logits", logits, "(rows, tokens)")
    if logits.dtype not in cache.FLOATS:
        raise TypeError(f"logits must be float32, float16 or bfloat16, got {logits.dtype}")
    tokens = logits.shape[1]
    if tokens < 2:
        raise ValueError(f"logits must have at least 2 tokens, got {tokens}")
    _must_be_token("mask_token", mask_token, -1)
    _must_be_token("first_token", first_token, 0)
    if first_token + tokens - 1 > operator.LARGEST_INT32:
        raise ValueError(f"tokens must be at most 2**31 - 1, got {tokens} from {first_token} on")
    if type(temperature) is not float and (
        isinstance(temperature, bool) or not isinstance(temperature, NUMBERS)
    ):
        raise TypeError(f"temperature must be a float, got {type(temperature).__name__}")
    if not LOWEST <= temperature <= HIGHEST:
        raise ValueError(f"temperature must be between 1e-6 and 1e6, got {temperature}")
    _must_be_score(score)
    if temperatures is not None:
        _must_be_per_row("temperature", temperatures, logits, torch.float32)
    if rows is not None:
        _must_be_per_row("rows", rows, logits, torch.bool)
    if seed is None and position is None and step is None:
        return
    for name, value in (("seed", seed), ("position", position), ("step", step)):
        if value is None:
            raise ValueError(f"seed, position and step go together, got no {name}")
        _must_be_per_row(name, value, logits, torch.int64)


def _must_be_token(name: str, value: Any, least: int) -> None:
    if type(value) is not int:
        operator.must_be_int(name, value)
    if not least <= value <= operator.LARGEST_INT32:
        raise ValueError(f"{name} must be between {least} and 2**31 - 1, got {value}")


def _must_be_score(score: str) -> None:
    if score not in SCORES:
        raise ValueError(f"score must be one of {SCORES}, got {score!r}")


def _must_be_per_row(name: str, value: Any, logits: Tensor, dtype: torch.dtype) -> None:
    cache.must_be_tensor(name, value, "(rows,)", logits.device)
    if value.dtype is not dtype:
        raise TypeError(f"{name} must be {dtype}, got {value.dtype}")
    if value.shape[0] != logits.shape[0]:
        raise ValueError(f"{name} must have {logits.shape[0]} entries, got {value.shape[0]}")


def _must_be_partial(partial: Any, first: Any) -> None:
    if not isinstance(partial, Partial):
        raise TypeError(f"partials must be Partial, got {type(partial).__name__}")
    token, parts = partial
    cache.must_be_tensor("token", token, "(rows,)", first.token.device)
    cache.must_be_tensor("parts", parts, "(rows, 6)", first.token.device)
    if token.dtype is not torch.int32:
        raise TypeError(f"token must be torch.int32, got {token.dtype}")
    if parts.dtype is not torch.float32:
        raise TypeError(f"parts must be torch.float32, got {parts.dtype}")
    rows = first.token.shape[0]
    if token.shape != (rows,) or parts.shape != (rows, 6):
        raise ValueError(
            f"partials must have the same rows, got token {tuple(token.shape)} and "
            f"parts {tuple(parts.shape)} beside {rows} rows"
        )


def _check(*args: Any) -> None:
    temperatures = args[5]
    if temperatures is None:
        return
    if not ((temperatures >= LOWEST) & (temperatures <= HIGHEST)).all():
        raise ValueError(f"temperature must be between 1e-6 and 1e6, got {temperatures.tolist()}")


def _empty(
    logits: Tensor,
    rows: Tensor | None,
    seed: Tensor | None,
    position: Tensor | None,
    step: Tensor | None,
    temperatures: Tensor | None,
    temperature: float,
    score: str,
    mask_token: int,
    first_token: int,
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    count = logits.shape[0]
    token = logits.new_empty((count,), dtype=torch.int32)
    prob, found = (logits.new_empty((count,), dtype=torch.float32) for _ in range(2))
    return token, prob, found, logits.new_empty((count, 6), dtype=torch.float32)


_token_confidence = operator.define(
    "token_confidence",
    "Tensor logits, Tensor? rows, Tensor? seed, Tensor? position, Tensor? step, "
    "Tensor? temperatures, float temperature, str score, int mask_token, int first_token",
    "(Tensor, Tensor, Tensor, Tensor)",
    _empty,
    check=_check,
)
