"""`MoGELayer`: router, experts and shared experts as one module."""

from typing import Any

import torch
from torch import Tensor, nn

from triselect.moe.fused import Shared, fused_moe
from triselect.ops import RoutedPermutation, route_and_permute


class MoGELayer(nn.Module):
    """A mixture of grouped experts (Pangu Pro MoE, arXiv 2505.21411, equations 5 to 7).

    Parameters
    ----------
    hidden_size, intermediate_size : int
        H, and I of each expert.
    num_experts, top_k, num_expert_group : int
        E experts in groups; ``top_k / num_expert_group`` of each group are taken.
    shared_intermediate_size : int
        Is of the experts that every token goes through, all of them together; 0 for none.
    expert_scale : bool
        Whether the weights of an expert are multiplied by a number of its own (`router_scale`).
    routing : dict, optional
        Options of `route_and_permute` in place of MoGE's, such as DeepSeek's ``{"balanced": False,
        "topk_group": 4, "scoring_func": "sigmoid"}``.
    backend : str
        As in `fused_moe`.
    device, dtype
        Of the parameters.

    Raises
    ------
    ValueError, TypeError
        At the first call, for sizes that do not fit each other, by name.

    Notes
    -----
    Weights are in the layout of transformers' experts: ``gate_up_proj (E, 2 * I, H)`` and
    ``down_proj (E, H, I)``. The router's product is in the layer's dtype, its softmax in float32.

    Examples
    --------
    >>> layer = MoGELayer(32, 16, num_experts=8, top_k=4, num_expert_group=4)
    >>> layer(torch.randn(2, 5, 32)).shape
    torch.Size([2, 5, 32])
    """

    def __init__(
        self,
        hidden_size: int,
        intermediate_size: int,
        *,
        num_experts: int,
        top_k: int,
        num_expert_group: int,
        shared_intermediate_size: int = 0,
        expert_scale: bool = False,
        routing: dict[str, Any] | None = None,
        backend: str = "auto",
        device: Any = None,
        dtype: torch.dtype | None = None,
    ) -> None:
        super().__init__()
        self.top_k = top_k
        self.routing = {"num_expert_group": num_expert_group, "balanced": True} | (routing or {})
        self.backend = backend

        def weight(*shape: int) -> nn.Parameter:
            made = torch.empty(shape, device=device, dtype=dtype)
            return nn.Parameter(nn.init.normal_(made, std=shape[-1] ** -0.5))

        self.router = weight(num_experts, hidden_size)
        self.gate_up_proj = weight(num_experts, 2 * intermediate_size, hidden_size)
        self.down_proj = weight(num_experts, hidden_size, intermediate_size)
        self.router_scale = self.shared_gate_up_proj = self.shared_down_proj = None
        if expert_scale:
            ones = torch.ones(num_experts, device=device, dtype=torch.float32)
            self.router_scale = nn.Parameter(ones)
        if shared_intermediate_size:
            self.shared_gate_up_proj = weight(2 * shared_intermediate_size, hidden_size)
            self.shared_down_proj = weight(hidden_size, shared_intermediate_size)

    def route(self, hidden: Tensor) -> RoutedPermutation:
        """Weights and experts of tokens ``(T, H)``, and the order of their copies."""
        logits = nn.functional.linear(hidden, self.router)
        return route_and_permute(
            logits, self.top_k, expert_scale=self.router_scale, backend=self.backend, **self.routing
        )

    def forward(self, hidden: Tensor) -> Tensor:
        """Tokens ``(..., H)`` to ``(..., H)``."""
        tokens = hidden.flatten(0, -2)
        shared = None
        if self.shared_gate_up_proj is not None and self.shared_down_proj is not None:
            shared = Shared(self.shared_gate_up_proj, self.shared_down_proj)
        found = fused_moe(
            tokens,
            self.route(tokens),
            self.gate_up_proj,
            self.down_proj,
            shared=shared,
            backend=self.backend,
        )
        return found.view(hidden.shape)
