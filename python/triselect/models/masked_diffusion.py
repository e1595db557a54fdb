"""A small masked diffusion language model that can be decoded by LoPA: a `Denoiser`.

A transformer with rotary positions, RMS norms and SwiGLU, in which a position sees those at its
level or below (see `triselect.lopa.Denoiser`). The weights that are shipped solve
`triselect.models.puzzles`; `examples/train_masked_diffusion.py` made them.
"""

from pathlib import Path
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from triselect.models import weights

WEIGHTS = Path(__file__).with_name("masked_diffusion.safetensors")


class Cache(NamedTuple):
    """Keys and values ``(layers, B, heads, length + 1, D)``; the last one takes what is dropped."""

    keys: Tensor
    values: Tensor


class MaskedDiffusion(nn.Module):
    """About ``12 * layers * width ** 2`` parameters: 0.8 M by default.

    >>> model = MaskedDiffusion(vocab_size=20)
    >>> sum(p.numel() for p in model.parameters()) // 1000
    793
    """

    cos: Tensor
    sin: Tensor

    def __init__(
        self,
        vocab_size: int,
        *,
        width: int = 128,
        layers: int = 4,
        heads: int = 4,
        max_length: int = 1024,
        shift: bool = False,
        eos_token: int | None = None,
    ) -> None:
        super().__init__()
        self.sizes: dict[str, Any] = {
            "vocab_size": vocab_size,
            "width": width,
            "layers": layers,
            "heads": heads,
            "max_length": max_length,
            "shift": shift,
            "eos_token": eos_token,
        }
        self.mask_token = vocab_size - 1
        self.eos_token = eos_token
        self.shift = shift
        self.max_length = max_length
        self.heads = heads
        self.embedding = nn.Embedding(vocab_size, width)
        self.blocks = nn.ModuleList(Block(width, heads) for _ in range(layers))
        self.norm = nn.RMSNorm(width)
        self.head = nn.Linear(width, vocab_size, bias=False)
        half = width // heads // 2
        angle = torch.arange(max_length)[:, None] * 10000.0 ** -(torch.arange(half) / half)
        self.register_buffer("cos", angle.cos(), persistent=False)
        self.register_buffer("sin", angle.sin(), persistent=False)

    @property
    def device(self) -> torch.device:
        return self.embedding.weight.device

    def new_cache(self, batch: int, length: int) -> Cache:
        shape = (len(self.blocks), batch, self.heads, length + 1, 2 * self.cos.shape[1])
        empty = self.embedding.weight.new_zeros(shape)
        return Cache(empty, empty.clone())

    def prefill(self, tokens: Tensor, lengths: Tensor, cache: Cache | None) -> Tensor:
        level = (torch.arange(tokens.shape[1], device=tokens.device) >= lengths[:, None]).int()
        x = self.hidden(tokens[:, None], torch.zeros_like(lengths), level, cache)
        last = (lengths - 1).clamp_min(0).long()[:, None, None, None]
        return self.logits(x.take_along_dim(last, 2)[:, 0, 0])

    def forward(self, tokens: Tensor, start: Tensor, level: Tensor, cache: Cache | None) -> Tensor:
        return self.logits(self.hidden(tokens, start, level, cache))

    def logits(self, x: Tensor) -> Tensor:
        found: Tensor = self.head(self.norm(x))
        return found

    def hidden(self, tokens: Tensor, start: Tensor, level: Tensor, cache: Cache | None) -> Tensor:
        """``(B, R, S, width)``"""
        batch, rows, size = tokens.shape
        place = start[:, None] + torch.arange(size, device=tokens.device)
        sees = level[:, None, :] <= level[:, :, None]  # (B, query, key)
        if cache is not None:
            past = torch.arange(cache.keys.shape[3] - 1, device=tokens.device) < start[:, None]
            sees = torch.cat([past[:, None].expand(-1, size, -1), sees], 2)
            place_in_cache = place.clamp_max(cache.keys.shape[3] - 1).long()
        sees = sees[:, None].expand(-1, rows, -1, -1).flatten(0, 1)[:, None]  # of all heads

        turn = place.clamp_max(self.max_length - 1).long()
        cos, sin = (x[turn][:, None, None] for x in (self.cos, self.sin))  # (B, 1, 1, S, D / 2)
        x = self.embedding(tokens.long())
        for i, block in enumerate(self.blocks):
            assert isinstance(block, Block)
            q, k, v = block.project(x, cos, sin)  # (B, R, heads, S, D)
            if cache is not None:
                past_k, past_v = cache.keys[i], cache.values[i]
                at = place_in_cache[:, None, :, None].expand_as(k[:, 0])
                before = [c[:, None, :, :-1].expand(-1, rows, -1, -1, -1) for c in (past_k, past_v)]
                all_k, all_v = torch.cat([before[0], k], 3), torch.cat([before[1], v], 3)
                past_k.scatter_(2, at, k[:, 0])
                past_v.scatter_(2, at, v[:, 0])
                k, v = all_k, all_v
            q, k, v = (h.flatten(0, 1) for h in (q, k, v))
            attended = F.scaled_dot_product_attention(q, k, v, sees)
            x = block(x, attended.view(batch, rows, *attended.shape[1:]))
        return x


class Block(nn.Module):
    def __init__(self, width: int, heads: int) -> None:
        super().__init__()
        self.heads = heads
        self.norm1, self.norm2 = nn.RMSNorm(width), nn.RMSNorm(width)
        self.qkv = nn.Linear(width, 3 * width, bias=False)
        self.out = nn.Linear(width, width, bias=False)
        inner = width * 8 // 3
        self.gate_up = nn.Linear(width, 2 * inner, bias=False)
        self.down = nn.Linear(inner, width, bias=False)

    def project(self, x: Tensor, cos: Tensor, sin: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Queries, keys, values ``(B, R, heads, S, D)``, the first two rotated."""
        qkv = self.qkv(self.norm1(x)).unflatten(-1, (3, self.heads, -1))
        q, k, v = qkv.permute(3, 0, 1, 4, 2, 5)
        return rotate(q, cos, sin), rotate(k, cos, sin), v

    def forward(self, x: Tensor, attended: Tensor) -> Tensor:
        x = x + self.out(attended.transpose(2, 3).flatten(-2))
        gate, up = self.gate_up(self.norm2(x)).chunk(2, -1)
        y: Tensor = x + self.down(F.silu(gate) * up)
        return y


def rotate(x: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
    a, b = x.chunk(2, -1)
    return torch.cat([a * cos - b * sin, b * cos + a * sin], -1)


def save_masked_diffusion(model: MaskedDiffusion, path: Path, metadata: dict[str, str]) -> None:
    """Write weights as bfloat16, with the sizes in the file's metadata."""
    weights.save(model, model.sizes, path, metadata)


def load_masked_diffusion(path: Path | str = WEIGHTS) -> MaskedDiffusion:
    """The shipped model, or another that `examples/train_masked_diffusion.py` wrote.

    Parameters
    ----------
    path : Path or str, optional
        A safetensors file.

    Returns
    -------
    MaskedDiffusion
        In float32, on the CPU, in evaluation mode. (Stored as bfloat16.)

    Raises
    ------
    ImportError
        safetensors is not installed.
    """
    return weights.load(lambda sizes: MaskedDiffusion(**sizes), path)
