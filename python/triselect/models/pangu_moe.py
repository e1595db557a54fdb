"""`PanguMoE`: the architecture of Pangu Pro MoE (arXiv 2505.21411), small unless told otherwise.

Attention with grouped key and value heads, rotary positions, and biases on its four projections;
before it and before the experts an RMS norm. Experts are `MoGELayer`s: one from each of 8 groups of
8, weighted by the softmax over all 64 times a number of each expert (`router_scale`), and 4 shared
experts as one network. (The depth-scaled norms of Pangu Ultra are not in this model.)
"""

from dataclasses import dataclass

import torch.nn.functional as F
from torch import Tensor, nn

from triselect.models.byte_moe import rotate
from triselect.moe.layer import MoGELayer


@dataclass(frozen=True)
class PanguMoEConfig:
    """Sizes of a `PanguMoE`; `PANGU_PRO` has the published ones."""

    vocab_size: int = 512
    hidden_size: int = 128
    intermediate_size: int = 32
    layers: int = 2
    heads: int = 4
    kv_heads: int = 2
    head_dim: int = 32
    experts: int = 64
    expert_groups: int = 8
    top_k: int = 8
    shared_experts: int = 4
    rope_theta: float = 1e6
    eps: float = 1e-5

    def __post_init__(self) -> None:
        for name, divisor in (("heads", self.kv_heads), ("head_dim", 2)):
            if getattr(self, name) % divisor:
                raise ValueError(
                    f"{name} must be a multiple of {divisor}, got {getattr(self, name)}"
                )


# Pangu Pro MoE, table 1: 72 billion parameters, 16.5 of them active.
PANGU_PRO = PanguMoEConfig(
    vocab_size=153_376,
    hidden_size=5120,
    intermediate_size=1344,
    layers=48,
    heads=40,
    kv_heads=8,
    head_dim=128,
)


class Attention(nn.Module):
    def __init__(self, config: PanguMoEConfig) -> None:
        super().__init__()
        self.config = config
        width, kv_width = config.heads * config.head_dim, config.kv_heads * config.head_dim
        self.q = nn.Linear(config.hidden_size, width)
        self.k = nn.Linear(config.hidden_size, kv_width)
        self.v = nn.Linear(config.hidden_size, kv_width)
        self.out = nn.Linear(width, config.hidden_size)

    def forward(self, x: Tensor) -> Tensor:
        q, k, v = (
            project(x).unflatten(-1, (-1, self.config.head_dim)).transpose(1, 2)
            for project in (self.q, self.k, self.v)
        )
        q, k = rotate(q, self.config.rope_theta), rotate(k, self.config.rope_theta)
        attended = F.scaled_dot_product_attention(q, k, v, is_causal=True, enable_gqa=True)
        found: Tensor = self.out(attended.transpose(1, 2).flatten(2))
        return found


class Layer(nn.Module):
    def __init__(self, config: PanguMoEConfig, backend: str) -> None:
        super().__init__()
        self.attention_norm = nn.RMSNorm(config.hidden_size, eps=config.eps)
        self.attention = Attention(config)
        self.moe_norm = nn.RMSNorm(config.hidden_size, eps=config.eps)
        self.moe = MoGELayer(
            config.hidden_size,
            config.intermediate_size,
            num_experts=config.experts,
            top_k=config.top_k,
            num_expert_group=config.expert_groups,
            shared_intermediate_size=config.shared_experts * config.intermediate_size,
            expert_scale=True,
            backend=backend,
        )

    def forward(self, x: Tensor) -> Tensor:
        x = x + self.attention(self.attention_norm(x))
        found: Tensor = x + self.moe(self.moe_norm(x))
        return found


class PanguMoE(nn.Module):
    """A decoder-only language model with random weights.

    Parameters
    ----------
    config : PanguMoEConfig
        Sizes; small by default.
    backend : str
        Of routers and experts, as in `fused_moe`.

    Examples
    --------
    >>> import torch
    >>> model = PanguMoE()
    >>> model(torch.tensor([[1, 2, 3]])).shape
    torch.Size([1, 3, 512])
    """

    def __init__(self, config: PanguMoEConfig | None = None, *, backend: str = "auto") -> None:
        super().__init__()
        self.config = config = config or PanguMoEConfig()
        self.embedding = nn.Embedding(config.vocab_size, config.hidden_size)
        self.layers = nn.ModuleList(Layer(config, backend) for _ in range(config.layers))
        self.norm = nn.RMSNorm(config.hidden_size, eps=config.eps)
        self.head = nn.Linear(config.hidden_size, config.vocab_size, bias=False)

    def forward(self, tokens: Tensor) -> Tensor:
        """Logits ``(B, T, vocab_size)`` of what follows each of ``tokens (B, T)``."""
        if tokens.dim() != 2 or tokens.is_floating_point():
            raise ValueError(
                f"tokens must be integers (batch, length), got {tuple(tokens.shape)} {tokens.dtype}"
            )
        x = self.embedding(tokens.long())
        for layer in self.layers:
            x = layer(x)
        found: Tensor = self.head(self.norm(x))
        return found
