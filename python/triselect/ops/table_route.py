"""`table_route`: the token's id decides which experts it goes to."""

from typing import Any

import torch
from torch import Tensor

from triselect.ops import backends, operator
from triselect.ops.grouped_topk import (
    DTYPES,
    SCORING_FUNCS,
    Routing,
    backward,
    must_be_finite,
    needs_grad,
)


def table_route(
    token_ids: Tensor,
    table: Tensor | None,
    num_experts: int,
    *,
    domains: Tensor | None = None,
    num_expert_group: int = 1,
    logits: Tensor | None = None,
    scoring_func: str = "sqrt_softplus",
    renormalize: bool = False,
    routed_scaling_factor: float = 1.0,
    top_k: int | None = None,
    seed: int = 0,
    validate: bool = False,
    backend: str = "auto",
) -> Routing:
    """Route tokens by their ids: by a table, or by a hash where there is none.

    Parameters
    ----------
    token_ids : ``(T,)`` int32 or int64
        Ids of T tokens (0 and up). -1 is padding.
    table : ``(V, K)`` or ``(V,)`` int32 or int64, or None
        Experts of every id of the vocabulary, counted within a group; one table per layer. None
        computes them from the id and `seed`: nothing to store.
    num_experts : int
        E.
    domains : ``(T,)`` int32 or int64, optional
        Group of each token; without them all groups are one.
    num_expert_group : int
        Contiguous groups G; divides E. More than one needs `domains`.
    logits : ``(T, E)`` float32, float16 or bfloat16, optional
        Where the weights come from. Without them every expert weighs 1.
    scoring_func : "softmax", "sigmoid", "sqrt_softplus" or "identity"
        Scores from logits, in float32. Softmax runs over all E experts.
    renormalize : bool
        Divide a token's scores by their sum (plus 1e-20).
    routed_scaling_factor : float
        Multiplies all weights.
    top_k : int, optional
        Experts per token K: without a table 1 by default; a table says it by its shape.
    seed : int
        Of the hash, below 2**32; one per layer.
    validate : bool
        Look at the values of ids, domains and table on a device too, which waits for it. On the CPU
        they are always looked at.
    backend : "auto", "native", "triton", "eager" or "reference"
        A named backend runs or raises; "auto" chooses by device.

    Returns
    -------
    Routing
        ``weights (T, K) float32`` and ``experts (T, K) int32``, in the order of the table. Padding
        has expert -1 and weight 0.

    Raises
    ------
    ValueError, TypeError
        An argument that does not fit, by name. An id that the table has no row for, an entry or a
        domain out of range are refused on the CPU; on a device they act as padding, unless
        `validate` asks to look.
    BackendUnavailable
        A named backend that cannot run here.

    Notes
    -----
    PanGu-Sigma's random routed experts (arXiv 2303.10845): `domains` choose the group, a table
    drawn per layer (`triselect.moe.random_table`) the expert in it. Hash layers
    (arXiv 2106.04426): a table alone. DeepSeek-V4: a table and `logits`, with
    ``renormalize=True``. The hash is MurmurHash3's finaliser, the same on every backend; its K
    experts are ``N // K`` apart in a group of N. Differentiable in `logits`.

    Examples
    --------
    >>> table = torch.tensor([[0, 2], [1, 3], [2, 0]])
    >>> table_route(torch.tensor([2, 0]), table, 4).experts
    tensor([[2, 0],
            [0, 2]], dtype=torch.int32)
    >>> table_route(torch.tensor([2, 0]), None, 8, domains=torch.tensor([0, 1]),
    ...             num_expert_group=2).weights
    tensor([[1.],
            [1.]])
    """
    if table is not None:
        columns = table.shape[1] if isinstance(table, Tensor) and table.dim() == 2 else 1
        if top_k is not None and top_k != columns:
            raise ValueError(f"top_k must be the columns of the table, {columns}, got {top_k}")
        top_k = columns
    args: tuple[Any, ...] = (
        token_ids,
        table,
        num_experts,
        domains,
        num_expert_group,
        logits,
        scoring_func,
        renormalize,
        routed_scaling_factor,
        1 if top_k is None else top_k,
        seed,
    )
    _validate(*args)
    if validate:
        _check(*args)
    if backend == "auto" and not needs_grad(logits):
        return Routing(*_table_route.auto(*args))
    backends.must_be_known(backend)
    return Routing(*_table_route.named(*args, backend))


def _validate(
    token_ids: Tensor,
    table: Tensor | None,
    num_experts: int,
    domains: Tensor | None,
    groups: int,
    logits: Tensor | None,
    scoring_func: str,
    renormalize: bool,
    factor: float,
    top_k: int,
    seed: int,
) -> None:
    _validate_ids("token_ids", token_ids, ("(tokens,)",))
    integers = {"num_experts": num_experts, "num_expert_group": groups}
    for name, value in (integers | {"top_k": top_k, "seed": seed}).items():
        operator.must_be_int(name, value)
    if not 1 <= num_experts <= operator.LARGEST_INT32:
        raise ValueError(f"num_experts must be between 1 and 2**31 - 1, got {num_experts}")
    if groups < 1 or num_experts % groups:
        raise ValueError(
            f"num_expert_group must divide the number of experts, {num_experts}, got {groups}"
        )
    if groups > 1 and domains is None:
        raise ValueError(f"domains must say which of num_expert_group = {groups} a token goes to")
    if not 1 <= top_k <= num_experts // groups:
        raise ValueError(
            f"top_k must be between 1 and the {num_experts // groups} experts of a group, "
            f"got {top_k}"
        )
    if not 0 <= seed < 2**32:
        raise ValueError(f"seed must be between 0 and 2**32 - 1, got {seed}")
    if table is not None:
        _validate_ids("table", table, ("(vocabulary,)", "(vocabulary, top_k)"), token_ids.device)
    if domains is not None:
        _validate_ids("domains", domains, ("(tokens,)",), token_ids.device)
        if domains.shape != token_ids.shape:
            raise ValueError(
                f"domains must be {tuple(token_ids.shape)} as token_ids, got {tuple(domains.shape)}"
            )
    if scoring_func not in SCORING_FUNCS:
        raise ValueError(f"scoring_func must be one of {SCORING_FUNCS}, got {scoring_func!r}")
    if type(renormalize) is not bool:
        raise TypeError(f"renormalize must be a bool, got {type(renormalize).__name__}")
    must_be_finite("routed_scaling_factor", factor)
    if logits is not None:
        _validate_logits(logits, token_ids, num_experts)


def _validate_ids(
    name: str, ids: Tensor, shapes: tuple[str, ...], device: torch.device | None = None
) -> None:
    if not isinstance(ids, Tensor):
        raise TypeError(f"{name} must be a tensor, got {type(ids).__name__}")
    if not 1 <= ids.dim() <= len(shapes):
        raise ValueError(f"{name} must be {' or '.join(shapes)}, got shape {tuple(ids.shape)}")
    if ids.dtype is not torch.int32 and ids.dtype is not torch.int64:
        raise TypeError(f"{name} must be int32 or int64, got {ids.dtype}")
    if device is not None and ids.device != device:
        raise ValueError(f"{name} must be on {device} as token_ids, got {ids.device}")


def _validate_logits(logits: Tensor, token_ids: Tensor, num_experts: int) -> None:
    if not isinstance(logits, Tensor):
        raise TypeError(f"logits must be a tensor, got {type(logits).__name__}")
    shape = (len(token_ids), num_experts)
    if logits.shape != shape:
        raise ValueError(f"logits must be (tokens, experts) = {shape}, got {tuple(logits.shape)}")
    if logits.dtype not in DTYPES:
        raise TypeError(f"logits must be float32, float16 or bfloat16, got {logits.dtype}")
    if logits.device != token_ids.device:
        raise ValueError(f"logits must be on {token_ids.device} as token_ids, got {logits.device}")


def _check(
    token_ids: Tensor,
    table: Tensor | None,
    num_experts: int,
    domains: Tensor | None,
    groups: int,
    *args: Any,
) -> None:
    if domains is not None:
        operator.must_be_in_range("domains", domains, 0, groups - 1, "the groups")
    if table is None:
        last, meaning = operator.LARGEST_INT32, "-1 for padding"
    else:
        last, meaning = len(table) - 1, "the table's rows, -1 for padding"
    operator.must_be_in_range("token_ids", token_ids, -1, last, meaning)
    if table is not None:
        # Only the rows that are read: a whole table is read in vain with every call.
        rows = table[token_ids[token_ids >= 0].long()]
        size = num_experts // groups
        operator.must_be_in_range("table", rows, 0, size - 1, "the experts of a group")


def _empty(token_ids: Tensor, *args: Any) -> tuple[Tensor, Tensor]:
    shape = (token_ids.shape[0], args[8])
    weights = token_ids.new_empty(shape, dtype=torch.float32)
    return weights, token_ids.new_empty(shape, dtype=torch.int32)


_table_route = operator.define(
    "table_route",
    "Tensor token_ids, Tensor? table, int num_experts, Tensor? domains, int num_expert_group, "
    "Tensor? logits, str scoring_func, bool renormalize, float routed_scaling_factor, int top_k, "
    "int seed",
    "(Tensor weights, Tensor experts)",
    _empty,
    check=_check,
)


def _save(ctx: Any, inputs: tuple, output: tuple[Tensor, Tensor]) -> None:
    _, _, _, _, _, logits, scoring_func, renormalize, factor, _, _, backend = inputs
    ctx.save_for_backward(logits, output[1])
    ctx.options = scoring_func, renormalize, factor, None, backend
    ctx.mark_non_differentiable(output[1])


def _gradients(ctx: Any, grad: Tensor, _: Any) -> tuple[Tensor | None, ...]:
    logits, experts = ctx.saved_tensors
    d_logits, _ = backward.named(grad, logits, experts, *ctx.options)
    return *(None,) * 5, d_logits, *(None,) * 6


_table_route.differentiable(_gradients, _save)
