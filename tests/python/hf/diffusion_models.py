"""Small random checkpoints of Dream and LLaDA, and what they compute, written from the formulas."""

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.nn import functional as F

pytest.importorskip("transformers", minversion="5.23")

from safetensors.torch import save_file

from triselect import hf

# config.json as the published ones are, smaller.
DREAM = {
    "architectures": ["DreamModel"],
    "attention_dropout": 0.0,
    "auto_map": {"AutoModel": "modeling_dream.DreamModel"},
    "bos_token_id": 3,
    "eos_token_id": 22,
    "hidden_act": "silu",
    "hidden_size": 32,
    "initializer_range": 0.02,
    "intermediate_size": 40,
    "mask_token_id": 23,
    "max_position_embeddings": 64,
    "max_window_layers": 2,
    "model_type": "Dream",
    "num_attention_heads": 4,
    "num_hidden_layers": 2,
    "num_key_value_heads": 2,
    "pad_token_id": 22,
    "rms_norm_eps": 1e-6,
    "rope_scaling": None,
    "rope_theta": 1000.0,
    "sliding_window": None,
    "tie_word_embeddings": False,
    "torch_dtype": "bfloat16",
    "transformers_version": "4.46.2",
    "use_cache": True,
    "use_mrope": False,
    "use_sliding_window": False,
    "vocab_size": 24,
}
LLADA = {
    "activation_type": "silu",
    "alibi": False,
    "alibi_bias_max": 8.0,
    "architectures": ["LLaDAModelLM"],
    "attention_dropout": 0.0,
    "attention_layer_norm": False,
    "attention_layer_norm_with_affine": True,
    "auto_map": {"AutoModel": "modeling_llada.LLaDAModelLM"},
    "bias_for_layer_norm": False,
    "block_group_size": 1,
    "block_type": "llama",
    "d_model": 32,
    "embedding_dropout": 0.0,
    "embedding_size": 24,
    "eos_token_id": 22,
    "flash_attention": False,
    "include_bias": False,
    "include_qkv_bias": False,
    "init_cutoff_factor": None,
    "init_device": "meta",
    "init_fn": "mitchell",
    "init_std": 0.02,
    "input_emb_norm": False,
    "layer_norm_type": "rms",
    "layer_norm_with_affine": True,
    "mask_token_id": 23,
    "max_sequence_length": 64,
    "mlp_hidden_size": 40,
    "mlp_ratio": 4,
    "model_type": "llada",
    "multi_query_attention": None,
    "n_heads": 4,
    "n_kv_heads": 4,
    "n_layers": 2,
    "pad_token_id": 22,
    "precision": "amp_bf16",
    "residual_dropout": 0.0,
    "rms_norm_eps": 1e-5,
    "rope": True,
    "rope_full_precision": True,
    "rope_theta": 500.0,
    "scale_logits": False,
    "transformers_version": "4.46.3",
    "use_cache": False,
    "vocab_size": 21,
    "weight_tying": False,
}
CONFIGS: dict[str, dict[str, Any]] = {"dream": DREAM, "llada": LLADA}
# Shapes of the tensors of a checkpoint, {} for the number of a layer.
SHAPES: dict[str, dict[str, tuple[int, ...]]] = {
    "dream": {
        "model.embed_tokens.weight": (24, 32),
        "model.layers.{}.input_layernorm.weight": (32,),
        "model.layers.{}.self_attn.q_proj.weight": (32, 32),
        "model.layers.{}.self_attn.q_proj.bias": (32,),
        "model.layers.{}.self_attn.k_proj.weight": (16, 32),
        "model.layers.{}.self_attn.k_proj.bias": (16,),
        "model.layers.{}.self_attn.v_proj.weight": (16, 32),
        "model.layers.{}.self_attn.v_proj.bias": (16,),
        "model.layers.{}.self_attn.o_proj.weight": (32, 32),
        "model.layers.{}.post_attention_layernorm.weight": (32,),
        "model.layers.{}.mlp.gate_proj.weight": (40, 32),
        "model.layers.{}.mlp.up_proj.weight": (40, 32),
        "model.layers.{}.mlp.down_proj.weight": (32, 40),
        "model.norm.weight": (32,),
        "lm_head.weight": (24, 32),
    },
    "llada": {
        "model.transformer.wte.weight": (24, 32),
        "model.transformer.blocks.{}.attn_norm.weight": (32,),
        "model.transformer.blocks.{}.q_proj.weight": (32, 32),
        "model.transformer.blocks.{}.k_proj.weight": (32, 32),
        "model.transformer.blocks.{}.v_proj.weight": (32, 32),
        "model.transformer.blocks.{}.attn_out.weight": (32, 32),
        "model.transformer.blocks.{}.ff_norm.weight": (32,),
        "model.transformer.blocks.{}.ff_proj.weight": (40, 32),
        "model.transformer.blocks.{}.up_proj.weight": (40, 32),
        "model.transformer.blocks.{}.ff_out.weight": (32, 40),
        "model.transformer.ln_f.weight": (32,),
        "model.transformer.ff_out.weight": (24, 32),
    },
}


def tensors(kind: str, seed: int = 0) -> dict[str, Tensor]:
    """Of a model that has opinions, and does not say the same everywhere."""
    generator = torch.Generator().manual_seed(seed)
    found = {}
    for name, shape in SHAPES[kind].items():
        for layer in range(2) if "{}" in name else [0]:
            x = torch.randn(shape, generator=generator, dtype=torch.float64)
            if len(shape) == 2:
                x *= (1.5 if shape == (24, 32) else 2.5) * shape[1] ** -0.5
            elif name.endswith("weight"):
                x = 1 + 0.3 * x
            found[name.format(layer)] = x
    return found


def write(folder: Path, kind: str, given: dict[str, Tensor] | None = None, **changes: Any) -> Path:
    """A checkpoint in one file."""
    (folder / "config.json").write_text(json.dumps(CONFIGS[kind] | changes))
    save_file(tensors(kind) if given is None else given, folder / "model.safetensors")
    return folder


def load(folder: Path, kind: str, seed: int = 0) -> Any:
    return hf.load_diffusion(write(folder, kind, tensors(kind, seed)))


class Plain:
    """One sequence, read anew, of a checkpoint of two layers."""

    def __init__(self, kind: str, given: dict[str, Tensor]) -> None:
        self.kind, self.tensors = kind, given
        self.config = CONFIGS[kind]
        self.mask_token, self.eos_token = 23, 22
        self.shift = kind == "dream"

    def __call__(self, tokens: Tensor, start: Tensor, level: Tensor, cache: None) -> Tensor:
        """As a `Denoiser`, of one variant of one sequence."""
        assert tokens.shape[:2] == (1, 1)
        assert not start
        sees = level[0] <= level[0][:, None]
        return self.logits(tokens[0, 0].long(), sees)[None, None].float()

    def logits(self, ids: Tensor, sees: Tensor) -> Tensor:
        """``(T, V)`` of ids ``(T,)``; position i sees j where sees ``(T, T)`` is true."""
        inside = "model." if self.kind == "dream" else "model.transformer."
        x = self.tensors[f"{inside}{'embed_tokens' if self.kind == 'dream' else 'wte'}.weight"][ids]
        for layer in range(2):
            x = self.dream_layer(x, layer, sees) if self.shift else self.llada_layer(x, layer, sees)
        if self.kind == "dream":
            return self.norm(x, "model.norm") @ self.tensors["lm_head.weight"].T
        return self.norm(x, "model.transformer.ln_f") @ self.tensors[f"{inside}ff_out.weight"].T

    def dream_layer(self, x: Tensor, layer: int, sees: Tensor) -> Tensor:
        at = f"model.layers.{layer}."
        normed = self.norm(x, at + "input_layernorm")
        q, k, v = (self.linear(normed, f"{at}self_attn.{p}_proj") for p in "qkv")
        x = x + self.linear(self.attend(q, k, v, sees), at + "self_attn.o_proj")
        normed = self.norm(x, at + "post_attention_layernorm")
        gate, up = (self.linear(normed, f"{at}mlp.{p}_proj") for p in ("gate", "up"))
        return x + self.linear(F.silu(gate) * up, at + "mlp.down_proj")

    def llada_layer(self, x: Tensor, layer: int, sees: Tensor) -> Tensor:
        at = f"model.transformer.blocks.{layer}."
        normed = self.norm(x, at + "attn_norm")
        q, k, v = (self.linear(normed, f"{at}{p}_proj") for p in "qkv")
        x = x + self.linear(self.attend(q, k, v, sees), at + "attn_out")
        normed = self.norm(x, at + "ff_norm")
        gate, up = (self.linear(normed, f"{at}{p}_proj") for p in ("ff", "up"))
        return x + self.linear(F.silu(gate) * up, at + "ff_out")

    def norm(self, x: Tensor, name: str) -> Tensor:
        mean_square = (x * x).mean(-1, keepdim=True)
        scale = (mean_square + self.config["rms_norm_eps"]).rsqrt()
        return x * scale * self.tensors[name + ".weight"]

    def linear(self, x: Tensor, name: str) -> Tensor:
        return x @ self.tensors[name + ".weight"].T + self.tensors.get(name + ".bias", 0.0)

    def attend(self, q: Tensor, k: Tensor, v: Tensor, sees: Tensor) -> Tensor:
        q, k, v = (x.unflatten(-1, (-1, 8)).transpose(0, 1) for x in (q, k, v))  # (heads, T, 8)
        q, k = self.rotate(q), self.rotate(k)
        shared = len(q) // len(k)
        k, v = k.repeat_interleave(shared, 0), v.repeat_interleave(shared, 0)
        scores = (q @ k.mT / 8**0.5).masked_fill(~sees, -torch.inf)
        return (scores.softmax(-1) @ v).transpose(0, 1).flatten(1)

    def rotate(self, x: Tensor) -> Tensor:
        """Component i and i + 4 of a head turn together."""
        pair = torch.arange(4, dtype=torch.float64)
        angle = torch.arange(x.shape[1])[:, None] * self.config["rope_theta"] ** (-pair / 4)
        a, b = x[..., :4], x[..., 4:]
        return torch.cat([a * angle.cos() - b * angle.sin(), b * angle.cos() + a * angle.sin()], -1)
