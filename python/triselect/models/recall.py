"""`RecallModel`: a small transformer that remembers, in which attention can be exchanged.

It answers questions about what stood in a noisy context (`triselect.models.recall_task`). The
weights are shipped; `examples/train_recall.py` made them, at contexts of at most 256 tokens.
"""

from collections.abc import Callable
from dataclasses import asdict, dataclass
from pathlib import Path

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from triselect.esa.rotary import Rotary
from triselect.models import weights
from triselect.models.recall_task import VOCABULARY

WEIGHTS = Path(__file__).with_name("recall.safetensors")

# (layer, q (B, C, H, D), k (B, C, G, D), v (B, C, G, D)) -> (B, C, H, D), before rotation.
Attention = Callable[[int, Tensor, Tensor, Tensor], Tensor]


@dataclass(frozen=True)
class RecallConfig:
    """Sizes of a `RecallModel`. `context`: the longest it was trained on, without questions."""

    vocab_size: int = VOCABULARY
    width: int = 128
    layers: int = 2
    heads: int = 4
    kv_heads: int = 2
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


class Layer(nn.Module):
    def __init__(self, config: RecallConfig) -> None:
        super().__init__()
        width, kv_width = config.width, config.kv_heads * config.head_dim
        self.head_dim = config.head_dim
        self.attention_norm = nn.RMSNorm(width, eps=1e-5)
        self.q = nn.Linear(width, width, bias=False)
        self.k = nn.Linear(width, kv_width, bias=False)
        self.v = nn.Linear(width, kv_width, bias=False)
        self.out = nn.Linear(width, width, bias=False)
        self.mlp_norm = nn.RMSNorm(width, eps=1e-5)
        self.up = nn.Linear(width, 4 * width, bias=False)
        self.down = nn.Linear(4 * width, width, bias=False)

    def project(self, x: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Queries ``(B, C, H, D)``, keys and values ``(B, C, G, D)`` of ``x (B, C, width)``."""
        x = self.attention_norm(x)
        q, k, v = (p(x).unflatten(-1, (-1, self.head_dim)) for p in (self.q, self.k, self.v))
        return q, k, v

    def forward(self, x: Tensor, attended: Tensor) -> Tensor:
        x = x + self.out(attended.flatten(2))
        found: Tensor = x + self.down(F.gelu(self.up(self.mlp_norm(x))))
        return found


class RecallModel(nn.Module):
    """A decoder-only transformer: RMSNorm, RoPE, grouped key-value heads, GELU.

    Parameters
    ----------
    config : RecallConfig
        Sizes; the shipped model's by default.

    Examples
    --------
    >>> model = RecallModel()
    >>> model(torch.tensor([[0, 1, 2]])).shape
    torch.Size([1, 3, 175])
    """

    def __init__(self, config: RecallConfig | None = None) -> None:
        super().__init__()
        self.config = config = config or RecallConfig()
        self.rotary = Rotary.of(config.head_dim, config.rope_theta)
        self.embedding = nn.Embedding(config.vocab_size, config.width)
        self.layers = nn.ModuleList(Layer(config) for _ in range(config.layers))
        self.norm = nn.RMSNorm(config.width, eps=1e-5)
        self.head = nn.Linear(config.width, config.vocab_size, bias=False)

    def forward(
        self, tokens: Tensor, attention: Attention | None = None, logits_from: int = 0
    ) -> Tensor:
        """Logits of the token after every position.

        Parameters
        ----------
        tokens : ``(B, T)`` integers
            All, or with an `attention` that remembers those before, the next ones.
        attention : callable, optional
            ``attention(layer, q, k, v)`` of ``q (B, T, H, D)`` and ``k, v (B, T, G, D)``, not
            rotated yet, gives ``(B, T, H, D)``. By default full causal attention with RoPE over
            `tokens`.
        logits_from : int
            Of positions of `tokens` from here on only.

        Returns
        -------
        Tensor
            ``(B, T - logits_from, vocab_size)``.
        """
        if tokens.dim() != 2 or tokens.is_floating_point():
            raise ValueError(
                f"tokens must be integers (batch, length), got {tuple(tokens.shape)} {tokens.dtype}"
            )
        attention = attention or self.full_attention
        x = self.embedding(tokens.long())
        for i, layer in enumerate(self.layers):
            assert isinstance(layer, Layer)
            x = layer(x, attention(i, *layer.project(x)))
        found: Tensor = self.head(self.norm(x[:, logits_from:]))
        return found

    def full_attention(self, layer: int, q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        """Causal attention with RoPE, positions counted from 0; the same in every layer."""
        rotary, positions = self.rotary.to(q.device), torch.arange(q.shape[1], device=q.device)
        q, k = rotary.rotate(q, positions), rotary.rotate(k, positions)
        q, k, v = (x.transpose(1, 2) for x in (q, k, v))
        out = F.scaled_dot_product_attention(q, k, v, is_causal=True, enable_gqa=True)
        return out.transpose(1, 2)


def save_recall(model: RecallModel, path: Path, metadata: dict[str, str]) -> None:
    """Write weights as bfloat16, with the configuration in the file's metadata."""
    weights.save(model, asdict(model.config), path, metadata)


def load_recall(path: Path | str = WEIGHTS) -> RecallModel:
    """The shipped model, or another that `examples/train_recall.py` wrote.

    Parameters
    ----------
    path : Path or str, optional
        A safetensors file.

    Returns
    -------
    RecallModel
        In float32, on the CPU, in evaluation mode. (Stored as bfloat16.)

    Raises
    ------
    ImportError
        safetensors is not installed.
    """
    return weights.load(lambda config: RecallModel(RecallConfig(**config)), path)
