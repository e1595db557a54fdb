"""`ByteMoE`: a small byte-level language model with grouped mixture-of-experts routing (MoGE).

Its weights and a sample of its router logits are shipped, trained with MoGE and, to compare, with
plain top-k; `examples/train_byte_moe.py` made them.
"""

from collections.abc import Callable
from dataclasses import asdict, dataclass
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from triselect.models import weights
from triselect.ops import grouped_topk
from triselect.optional import safetensors

# (layer, queries (B, T, heads, head_dim), keys and values (B, T, kv_heads, head_dim)), all before
# RoPE, to what attention gives the queries.
Attend = Callable[[int, Tensor, Tensor, Tensor], Tensor]
BYTES = 256
WEIGHTS = Path(__file__).with_name("byte_moe.safetensors")
ROUTER_LOGITS = Path(__file__).with_name("router_logits.safetensors")
# Trained with plain top-k: for `load_byte_moe` and `router_logits`.
TOP_K_WEIGHTS = Path(__file__).with_name("byte_moe_top_k.safetensors")
TOP_K_ROUTER_LOGITS = Path(__file__).with_name("router_logits_top_k.safetensors")


@dataclass(frozen=True)
class ByteMoEConfig:
    """Sizes of a `ByteMoE`. Routing as in Pangu Pro MoE: 64 experts, one from each of 8 groups.

    With one group, the best `top_k` of all experts: plain top-k.
    """

    width: int = 128
    layers: int = 4
    heads: int = 4
    kv_heads: int = 2
    experts: int = 64
    expert_groups: int = 8
    top_k: int = 8
    expert_width: int = 8
    rope_theta: float = 10_000.0
    context: int = 256

    def __post_init__(self) -> None:
        for name, divisor in (("width", 2 * self.heads), ("heads", self.kv_heads)):
            if getattr(self, name) % divisor:
                raise ValueError(
                    f"{name} must be a multiple of {divisor}, got {getattr(self, name)}"
                )

    @property
    def head_dim(self) -> int:
        return self.width // self.heads


class Trace(NamedTuple):
    """What a forward pass decided: ``logits (B, T, 256)`` and, for each layer, the router's
    ``router_logits (B·T, E) float32`` and the chosen ``experts (B·T, top_k) int32``."""

    logits: Tensor
    router_logits: tuple[Tensor, ...]
    experts: tuple[Tensor, ...]


class RouterLogits(NamedTuple):
    """Router logits of the shipped model on text it was not trained on.

    ``logits (layers, sequences, tokens, E) float16`` at every position of
    ``text (sequences, tokens) uint8``; ``metadata`` says where text and numbers come from.
    """

    logits: Tensor
    text: Tensor
    metadata: dict[str, str]


def rotate(x: Tensor, theta: float) -> Tensor:
    """Rotary position embedding of ``x (B, heads, T, head_dim)``, positions counted from 0."""
    length, dim = x.shape[-2:]
    frequency = theta ** (-torch.arange(0, dim, 2, device=x.device, dtype=torch.float32) / dim)
    angle = torch.outer(torch.arange(length, device=x.device, dtype=torch.float32), frequency)
    cos, sin = angle.cos().to(x.dtype), angle.sin().to(x.dtype)
    a, b = x.chunk(2, -1)
    return torch.cat((a * cos - b * sin, b * cos + a * sin), -1)


class Attention(nn.Module):
    """Causal attention; `kv_heads` key and value heads, each shared by a group of query heads."""

    def __init__(self, config: ByteMoEConfig) -> None:
        super().__init__()
        self.config = config
        kv_width = config.kv_heads * config.head_dim
        self.q = nn.Linear(config.width, config.width, bias=False)
        self.k = nn.Linear(config.width, kv_width, bias=False)
        self.v = nn.Linear(config.width, kv_width, bias=False)
        self.out = nn.Linear(config.width, config.width, bias=False)

    def queries_and_keys(self, x: Tensor, *, rotated: bool = True) -> tuple[Tensor, Tensor]:
        """``(B, heads, T, head_dim)`` and ``(B, kv_heads, T, head_dim)`` of ``x (B, T, width)``."""
        q, k = self._heads(self.q(x)), self._heads(self.k(x))
        if rotated:
            q, k = rotate(q, self.config.rope_theta), rotate(k, self.config.rope_theta)
        return q, k

    def forward(
        self, x: Tensor, attend: Callable[[Tensor, Tensor, Tensor], Tensor] | None = None
    ) -> Tensor:
        """Full causal attention, or what `attend` makes of queries, keys and values."""
        q, k = self.queries_and_keys(x, rotated=attend is None)
        v = self._heads(self.v(x))
        if attend is None:
            out = F.scaled_dot_product_attention(q, k, v, is_causal=True, enable_gqa=True)
            return self.out(out.transpose(1, 2).flatten(2))
        return self.out(attend(*(y.transpose(1, 2) for y in (q, k, v))).flatten(2))

    def _heads(self, x: Tensor) -> Tensor:
        return x.unflatten(-1, (-1, self.config.head_dim)).transpose(1, 2)


class MoE(nn.Module):
    """SwiGLU experts, `top_k` of them per token, the same number from every group."""

    def __init__(self, config: ByteMoEConfig) -> None:
        super().__init__()
        self.config = config
        experts, hidden, width = config.experts, config.expert_width, config.width
        self.router = nn.Linear(width, experts, bias=False)
        # Softmax weights start near 1 / experts: this scale lets the chosen ones sum to about 1.
        self.router_scale = nn.Parameter(torch.full((experts,), experts / config.top_k))
        self.gate_up = nn.Parameter(torch.empty(experts, 2 * hidden, width))
        self.down = nn.Parameter(torch.empty(experts, width, hidden))

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Of ``x (N, width)``: output, router logits ``(N, E)`` and experts ``(N, top_k)``."""
        config = self.config
        # In float32 under autocast too: rounding the logits to bfloat16 would make ties.
        with torch.autocast(x.device.type, enabled=False):
            logits = F.linear(x.float(), self.router.weight.float())
            weights, experts = grouped_topk(
                logits,
                config.top_k,
                num_expert_group=config.expert_groups,
                balanced=True,
                expert_scale=self.router_scale.float(),
            )
        # The experts are tiny (a few hundred thousand FLOPs per token for all of them), so they run
        # as one wide SwiGLU, without gathering rows. Scaling every hidden unit by its expert's
        # weight, zero where not chosen, is exact: the down projection is linear.
        scale = torch.zeros_like(logits).scatter(1, experts.long(), weights)
        gate, up = self.gate_up.chunk(2, 1)
        hidden = F.silu(F.linear(x, gate.flatten(0, 1))) * F.linear(x, up.flatten(0, 1))
        hidden = hidden.unflatten(1, (config.experts, -1)) * scale.to(hidden.dtype)[:, :, None]
        out = F.linear(hidden.flatten(1), self.down.transpose(0, 1).flatten(1))
        return out, logits, experts


class Layer(nn.Module):
    def __init__(self, config: ByteMoEConfig) -> None:
        super().__init__()
        self.attention_norm = nn.RMSNorm(config.width, eps=1e-5)
        self.attention = Attention(config)
        self.moe_norm = nn.RMSNorm(config.width, eps=1e-5)
        self.moe = MoE(config)

    def forward(
        self, x: Tensor, attend: Callable[[Tensor, Tensor, Tensor], Tensor] | None = None
    ) -> tuple[Tensor, Tensor, Tensor]:
        x = x + self.attention(self.attention_norm(x), attend)
        out, router_logits, experts = self.moe(self.moe_norm(x).flatten(0, 1))
        return x + out.view_as(x), router_logits, experts


class ByteMoE(nn.Module):
    """A decoder-only language model over bytes: RMSNorm, RoPE, grouped key-value heads, MoGE.

    Parameters
    ----------
    config : ByteMoEConfig
        Sizes; the shipped model's by default.

    Examples
    --------
    >>> model = ByteMoE(ByteMoEConfig(width=16, layers=1, heads=2, kv_heads=1))
    >>> model(torch.tensor([list(b"import this")])).shape
    torch.Size([1, 11, 256])
    """

    def __init__(self, config: ByteMoEConfig | None = None) -> None:
        super().__init__()
        self.config = config = config or ByteMoEConfig()
        self.embedding = nn.Embedding(BYTES, config.width)
        self.layers = nn.ModuleList(Layer(config) for _ in range(config.layers))
        self.norm = nn.RMSNorm(config.width, eps=1e-5)
        self.head = nn.Linear(config.width, BYTES, bias=False)
        self._initialise()

    def _initialise(self) -> None:
        for name, parameter in self.named_parameters():
            if parameter.dim() > 1:
                std = parameter.shape[-1] ** -0.5
                if name.endswith(("attention.out.weight", "moe.down")):
                    # Each adds to the residual stream: keep its variance from growing with depth.
                    std /= (2 * self.config.layers) ** 0.5
                if name.endswith("moe.down"):
                    # `top_k` experts add up in one output.
                    std /= self.config.top_k**0.5
                if name == "embedding.weight":
                    std = 1.0
                nn.init.normal_(parameter, std=std)

    def forward(self, tokens: Tensor, attention: Attend | None = None) -> Tensor:
        """Logits ``(B, T, 256)`` of the byte after every position of integers ``tokens (B, T)``.

        With an `attention` that remembers, such as `triselect.esa.attend` with a cache, the text
        may come in chunks.
        """
        return self.trace(tokens, attention).logits

    def trace(self, tokens: Tensor, attention: Attend | None = None) -> Trace:
        """A forward pass that also returns every layer's router logits and chosen experts."""
        x = self._embed(tokens)
        router_logits, experts = [], []
        for i, layer in enumerate(self.layers):
            attend = None if attention is None else partial(attention, i)
            x, layer_logits, layer_experts = layer(x, attend)
            router_logits.append(layer_logits)
            experts.append(layer_experts)
        return Trace(self.head(self.norm(x)), tuple(router_logits), tuple(experts))

    def queries_and_keys(
        self, tokens: Tensor, layer: int, *, rotated: bool = True
    ) -> tuple[Tensor, Tensor]:
        """What attention compares in one layer.

        Parameters
        ----------
        tokens : ``(B, T)`` integers
            Bytes.
        layer : int
            From 0.
        rotated : bool
            After RoPE, as attention uses them; before it otherwise.

        Returns
        -------
        tuple of Tensor
            Queries ``(B, heads, T, head_dim)`` and keys ``(B, kv_heads, T, head_dim)``.
        """
        if not 0 <= layer < len(self.layers):
            raise ValueError(f"layer must be between 0 and {len(self.layers) - 1}, got {layer}")
        x = self._embed(tokens)
        for below in self.layers[:layer]:
            x, _, _ = below(x)
        here: Any = self.layers[layer]
        return here.attention.queries_and_keys(here.attention_norm(x), rotated=rotated)

    def _embed(self, tokens: Tensor) -> Tensor:
        if tokens.dim() != 2:
            raise ValueError(f"tokens must be (batch, length), got shape {tuple(tokens.shape)}")
        if tokens.is_floating_point():
            raise ValueError(f"tokens must be integers, got {tokens.dtype}")
        return self.embedding(tokens.long())


def save_byte_moe(model: ByteMoE, path: Path, metadata: dict[str, str]) -> None:
    """Write weights as bfloat16, with the configuration in the file's metadata."""
    weights.save(model, asdict(model.config), path, metadata)


def load_byte_moe(path: Path | str = WEIGHTS) -> ByteMoE:
    """The shipped model, or another that `examples/train_byte_moe.py` wrote.

    Parameters
    ----------
    path : Path or str, optional
        A safetensors file.

    Returns
    -------
    ByteMoE
        In float32, on the CPU, in evaluation mode. (Stored as bfloat16.)

    Raises
    ------
    ImportError
        safetensors is not installed.
    """
    return weights.load(lambda config: ByteMoE(ByteMoEConfig(**config)), path)


def router_logits(path: Path | str = ROUTER_LOGITS) -> RouterLogits:
    """Router logits of the shipped model, and the held-out text on which they were computed.

    Parameters
    ----------
    path : Path or str, optional
        A safetensors file.

    Returns
    -------
    RouterLogits
        ``logits (layers, sequences, tokens, E) float16``, ``text (sequences, tokens) uint8`` and
        ``metadata``. Sequences are of different source files, so column ``[:, :, t]`` is what a
        decoding step over a batch of requests routes, and ``[:, s]`` what a prefill does.

    Raises
    ------
    ImportError
        safetensors is not installed.
    """
    with safetensors().safe_open(str(path), "pt") as file:
        return RouterLogits(file.get_tensor("logits"), file.get_tensor("text"), file.metadata())
