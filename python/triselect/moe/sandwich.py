"""The depth-scaled sandwich norm: what its weights begin with, and how to do without it later."""

import math
from typing import NamedTuple

import torch
from torch import Tensor

from triselect.ops import operator

TOKENS = 4096  # activations at a time


class PostNormInit(NamedTuple):
    """What all numbers of a post-norm's weight begin with, behind attention and behind the MLP."""

    attention: float
    mlp: float


def post_norm_init(
    num_layers: int, *, c_attention: float = 0.283, c_mlp: float = 0.432
) -> PostNormInit:
    """What the weights of post-norms begin with: the deeper the model, the smaller its steps.

    Parameters
    ----------
    num_layers : int
        L, each of an attention and an MLP.
    c_attention, c_mlp : float
        The paper's constants.

    Returns
    -------
    PostNormInit
        ``c / sqrt(L)`` for both.

    Raises
    ------
    ValueError, TypeError
        An argument that does not fit, by name.

    Notes
    -----
    Pangu Ultra (arXiv 2504.07866): depth-scaled sandwich norm. The weights of the norms
    before attention and MLP begin with 1 as ever.

    Examples
    --------
    >>> init = post_norm_init(100)
    >>> round(init.attention, 4), round(init.mlp, 4)
    (0.0283, 0.0432)
    >>> weight = torch.nn.init.constant_(torch.empty(5120), init.mlp)
    """
    operator.must_be_int("num_layers", num_layers)
    if num_layers < 1:
        raise ValueError(f"num_layers must be at least 1, got {num_layers}")
    for name, value in (("c_attention", c_attention), ("c_mlp", c_mlp)):
        _must_be_number(name, value)
    depth = math.sqrt(num_layers)
    return PostNormInit(c_attention / depth, c_mlp / depth)


class Deviation(NamedTuple):
    """Over tokens t, the `mean` and the `largest` of ‖a_t - n_t‖ / ‖n_t‖: n_t is what projection
    and norm give, a_t what the absorbed projection gives. 0 where both are zero."""

    mean: float
    largest: float


class Absorbed(NamedTuple):
    """``weight (H, I)`` and ``bias (H,)`` or None, of the dtypes of those that were given."""

    weight: Tensor
    bias: Tensor | None
    deviation: Deviation


@torch.no_grad()
def absorb_post_norm(
    weight: Tensor,
    norm_weight: Tensor,
    activations: Tensor,
    *,
    bias: Tensor | None = None,
    eps: float = 1e-5,
) -> Absorbed:
    """Fold a post-norm into the projection before it, as a scale that no longer depends on input.

    Parameters
    ----------
    weight : ``(H, I)`` float
        Of the projection ``y = weight @ x + bias``, such as an attention's output projection or an
        MLP's down projection.
    norm_weight : ``(H,)`` float
        γ of the norm ``γ * y / rms(y)`` with ``rms(y) = sqrt(mean(y**2) + eps)``.
    activations : ``(..., I)`` float
        x of one calibration token or more.
    bias : ``(H,)`` float, optional
    eps : float
        The norm's.

    Returns
    -------
    Absorbed
        ``diag(γ * s) @ weight`` and ``γ * s * bias`` with s the mean of 1 / rms(y) over the tokens,
        and the deviation on the same tokens: `mean` and `largest` over tokens t of ``‖a_t - n_t‖ /
        ‖n_t‖``, where ``n_t = γ * y_t / rms(y_t)`` is exact and ``a_t`` is what the returned weight
        and bias give, in their dtypes. But for that rounding it is ``|s * rms(y_t) - 1|``.

    Raises
    ------
    ValueError, TypeError
        An argument that does not fit, by name; activations without a finite 1 / rms.

    Notes
    -----
    Pangu Light (arXiv 2505.20155): absorption of the post-RMSNorm. Exact where rms(y) is the same
    for all tokens; the deviation says how far from that it is, on tokens that had a say in s: look
    at others too. Computed in float64. A sub-layer whose norm was absorbed is added as it is, and a
    plain norm follows.

    Examples
    --------
    >>> absorbed = absorb_post_norm(torch.eye(2), torch.ones(2), torch.tensor([[1.0, 1], [2, -2]]))
    >>> absorbed.weight  # the mean of 1 and 1 / 2
    tensor([[0.7500, 0.0000],
            [0.0000, 0.7500]])
    >>> round(absorbed.deviation.mean, 4), round(absorbed.deviation.largest, 4)
    (0.375, 0.5)
    """
    _validate(weight, norm_weight, activations, bias, eps)
    tokens = activations.flatten(0, -2).split(TOKENS)
    gamma, exact = norm_weight.double(), (weight.double(), None if bias is None else bias.double())
    total = torch.zeros((), dtype=torch.float64, device=weight.device)
    for x in tokens:
        total += _inverse_rms(torch.nn.functional.linear(x.double(), *exact), eps).sum()
    scale = float(total) / sum(map(len, tokens))
    if not math.isfinite(scale):
        raise ValueError(f"activations must give a finite mean of 1 / rms, got {scale}")
    diagonal = gamma * scale
    new_weight = (diagonal[:, None] * exact[0]).to(weight.dtype)
    new_bias = None if bias is None else (diagonal * bias.double()).to(bias.dtype)
    absorbed = new_weight.double(), None if new_bias is None else new_bias.double()
    errors = []
    for x in tokens:
        y = torch.nn.functional.linear(x.double(), *exact)
        n = gamma * (y * _inverse_rms(y, eps))
        a = torch.nn.functional.linear(x.double(), *absorbed)
        off = (a - n).norm(dim=-1)
        errors.append(torch.where(off == 0, 0.0, off / n.norm(dim=-1)))
    error = torch.cat(errors)
    return Absorbed(new_weight, new_bias, Deviation(float(error.mean()), float(error.amax())))


def _inverse_rms(y: Tensor, eps: float) -> Tensor:
    return torch.rsqrt(y.square().mean(-1, keepdim=True) + eps)


def _must_be_number(name: str, value: float) -> None:
    if isinstance(value, bool) or not isinstance(value, int | float):
        raise TypeError(f"{name} must be a number, got {type(value).__name__}")
    if not 0 <= value < math.inf:
        raise ValueError(f"{name} must be at least 0 and finite, got {value}")


def _validate(
    weight: Tensor, norm_weight: Tensor, activations: Tensor, bias: Tensor | None, eps: float
) -> None:
    tensors = {"weight": weight, "norm_weight": norm_weight, "activations": activations}
    for name, value in (tensors if bias is None else tensors | {"bias": bias}).items():
        if not isinstance(value, Tensor):
            raise TypeError(f"{name} must be a tensor, got {type(value).__name__}")
        if not value.is_floating_point():
            raise TypeError(f"{name} must be floating point, got {value.dtype}")
        if value.device != weight.device:
            raise ValueError(f"{name} must be on {weight.device} as weight, got {value.device}")
    if weight.dim() != 2 or not weight.numel():
        raise ValueError(f"weight must be (hidden, intermediate), got shape {tuple(weight.shape)}")
    for name, vector in (("norm_weight", norm_weight), ("bias", bias)):
        if vector is not None and vector.shape != weight.shape[:1]:
            raise ValueError(
                f"{name} must be (hidden,) = ({weight.shape[0]},), got shape {tuple(vector.shape)}"
            )
    if activations.dim() < 2 or activations.shape[-1] != weight.shape[1] or not activations.numel():
        raise ValueError(
            f"activations must be (..., {weight.shape[1]}), one token or more, "
            f"got shape {tuple(activations.shape)}"
        )
    _must_be_number("eps", eps)
