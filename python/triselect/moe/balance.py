"""How evenly a routing spreads the work over experts and devices, and the loss that evens it out.

Experts are placed on devices in contiguous blocks: device d of D holds experts
``[d · E / D, (d + 1) · E / D)``. With MoGE and one group, or several, to a device, every device
gets the same load for any logits; with other routings the spread is a matter of luck and of skew.

Index -1 is padding and counts nowhere. Any other index out of range is refused on the CPU; on a
device it acts as padding, since looking would wait for the device. Results are tensors where the
input is, the same on every run.
"""

import torch
from torch import Tensor


def expert_load(experts: Tensor, num_experts: int) -> Tensor:
    """Evaluations of every expert.

    Parameters
    ----------
    experts : ``(T, top_k)`` int32 or int64
        Experts chosen by each token.
    num_experts : int
        E.

    Returns
    -------
    Tensor
        ``(E,)`` int64 counts.

    Raises
    ------
    ValueError
        An argument that does not fit, by name.

    Examples
    --------
    >>> expert_load(torch.tensor([[0, 2], [0, 3]]), 4)
    tensor([2, 0, 1, 1])
    """
    _check(experts, num_experts)
    index = experts.flatten().long()
    padding = (index < 0) | (index >= num_experts)
    # One slot more takes the padding. Integer sums do not depend on their order.
    load = torch.zeros(num_experts + 1, dtype=torch.int64, device=experts.device)
    index = index.masked_fill(padding, num_experts)
    return load.scatter_add(0, index, torch.ones_like(index))[:num_experts]


def device_load(experts: Tensor, num_experts: int, num_devices: int) -> Tensor:
    """Expert evaluations on every device: T_i of Pangu Pro MoE.

    Parameters
    ----------
    experts : ``(T, top_k)`` int32 or int64
        Experts chosen by each token.
    num_experts, num_devices : int
        E and D; D divides E.

    Returns
    -------
    Tensor
        ``(D,)`` int64 counts.

    Raises
    ------
    ValueError
        An argument that does not fit, by name.

    Examples
    --------
    >>> device_load(torch.tensor([[0, 2], [0, 3]]), 4, 2)
    tensor([2, 2])
    """
    _check(experts, num_experts, num_devices)
    return expert_load(experts, num_experts).view(num_devices, -1).sum(1)


def active_experts(experts: Tensor, num_experts: int, num_devices: int) -> Tensor:
    """Distinct experts evaluated on every device: what it must load of its weights for this batch.

    Parameters
    ----------
    experts : ``(T, top_k)`` int32 or int64
        Experts chosen by each token.
    num_experts, num_devices : int
        E and D; D divides E.

    Returns
    -------
    Tensor
        ``(D,)`` int64 counts, at most E / D.

    Raises
    ------
    ValueError
        An argument that does not fit, by name.

    Examples
    --------
    >>> active_experts(torch.tensor([[0, 2], [0, 3]]), 4, 2)
    tensor([1, 2])
    """
    _check(experts, num_experts, num_devices)
    return (expert_load(experts, num_experts) > 0).view(num_devices, -1).sum(1)


def imbalance_score(experts: Tensor, num_experts: int, num_devices: int) -> Tensor:
    """Imbalance score (max T_i - min T_i) / T of a batch of T tokens; 0 is perfect balance.

    Parameters
    ----------
    experts : ``(T, top_k)`` int32 or int64
        Experts chosen by each token.
    num_experts, num_devices : int
        E and D; D divides E.

    Returns
    -------
    Tensor
        Scalar, float64; 0 for no tokens.

    Raises
    ------
    ValueError
        An argument that does not fit, by name.

    Notes
    -----
    Pangu Pro MoE, arXiv 2505.21411, section 2.1. Where every token draws its K experts uniformly,
    E[IS] ≈ d · sqrt(D / (D - 1)) · s / sqrt(T), with s² = K (1/D) (1 - 1/D) (E - K) / (E - 1) the
    variance of one token's evaluations on one device and d the expected range of D standard normal
    variables (2.847 for 8).

    Examples
    --------
    >>> imbalance_score(torch.tensor([[0, 1], [0, 3]]), 4, 2)
    tensor(1., dtype=torch.float64)
    """
    load = device_load(experts, num_experts, num_devices)
    return (load.amax() - load.amin()).double() / max(experts.shape[0], 1)


def straggler_factor(experts: Tensor, num_experts: int, num_devices: int) -> Tensor:
    """Largest device load over the mean: how much longer the slowest device computes; 1 is perfect.

    Parameters
    ----------
    experts : ``(T, top_k)`` int32 or int64
        Experts chosen by each token.
    num_experts, num_devices : int
        E and D; D divides E.

    Returns
    -------
    Tensor
        Scalar, float64; 1 where nothing is evaluated.

    Raises
    ------
    ValueError
        An argument that does not fit, by name.

    Examples
    --------
    >>> straggler_factor(torch.tensor([[0, 1], [0, 3]]), 4, 2)
    tensor(1.5000, dtype=torch.float64)
    """
    load = device_load(experts, num_experts, num_devices).double()
    mean = load.mean()
    return torch.where(mean > 0, load.amax() / mean, 1.0)


def balance_loss(logits: Tensor, experts: Tensor) -> Tensor:
    """Auxiliary loss Σ_i f_i · p_i of a batch: 1 where experts are used evenly, more with skew.

    Parameters
    ----------
    logits : ``(T, E)`` float32, float16 or bfloat16
        Router logits.
    experts : ``(T, top_k)`` int32 or int64
        Experts chosen by each token.

    Returns
    -------
    Tensor
        Scalar, float32, differentiable in `logits`; 0 for no tokens.

    Raises
    ------
    ValueError
        An argument that does not fit, by name.

    Notes
    -----
    f_i = E / (top_k · T) · (tokens that chose i) has no gradient; p_i is the mean over tokens of
    the softmax over all experts, not over a group. MoGE balances groups by construction: there the
    loss acts within groups. Pangu Pro MoE, arXiv 2505.21411, section 2.

    Examples
    --------
    >>> balance_loss(torch.zeros(2, 4), torch.tensor([[0, 2], [1, 3]]))
    tensor(1.)
    """
    if logits.dim() != 2 or not logits.is_floating_point():
        raise ValueError(
            f"logits must be (tokens, experts) floating point, got {tuple(logits.shape)} "
            f"{logits.dtype}"
        )
    _check(experts, logits.shape[1])
    if experts.shape[0] != logits.shape[0]:
        raise ValueError(
            f"experts must have the {logits.shape[0]} rows of logits, got {experts.shape[0]}"
        )
    load = expert_load(experts, logits.shape[1]).float()
    share = load * (logits.shape[1] / max(experts.numel(), 1))
    probability = logits.float().softmax(-1).sum(0) / max(logits.shape[0], 1)
    return (share * probability).sum()


def _check(experts: Tensor, num_experts: int, num_devices: int = 1) -> None:
    if experts.dim() != 2:
        raise ValueError(f"experts must be (tokens, top_k), got shape {tuple(experts.shape)}")
    if experts.dtype not in (torch.int32, torch.int64):
        raise ValueError(f"experts must be int32 or int64, got {experts.dtype}")
    if num_experts < 1:
        raise ValueError(f"num_experts must be at least 1, got {num_experts}")
    if num_devices < 1 or num_experts % num_devices:
        raise ValueError(
            f"num_devices must divide the number of experts, {num_experts}, got {num_devices}"
        )
    if experts.is_cpu and experts.numel() and not torch.compiler.is_compiling():
        low, high = (int(bound) for bound in experts.aminmax())
        if low < -1 or high >= num_experts:
            raise ValueError(
                f"experts must be below num_experts = {num_experts} (-1 for padding), "
                f"got values from {low} to {high}"
            )
