"""Small random models of transformers whose attention ESA can take over."""

from typing import Any

import pytest
import torch
from torch import Tensor, nn

pytest.importorskip("transformers", minversion="5.23")

from transformers import (
    LlamaConfig,
    LlamaForCausalLM,
    MistralConfig,
    MistralForCausalLM,
    MixtralConfig,
    MixtralForCausalLM,
    Qwen2Config,
    Qwen2ForCausalLM,
    Qwen2MoeConfig,
    Qwen2MoeForCausalLM,
    Qwen3Config,
    Qwen3ForCausalLM,
    Qwen3MoeConfig,
    Qwen3MoeForCausalLM,
)

from triselect import esa

VOCABULARY = 97
SIZES = {
    "vocab_size": VOCABULARY,
    "hidden_size": 32,
    "intermediate_size": 40,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "head_dim": 16,
    "max_position_embeddings": 256,
    "pad_token_id": 0,
    "bos_token_id": 1,
    "eos_token_id": None,
}
MOE = {"moe_intermediate_size": 24, "num_experts": 6, "num_experts_per_tok": 2}
KINDS: dict[str, tuple[Any, Any, dict[str, Any]]] = {
    "llama": (LlamaConfig, LlamaForCausalLM, {}),
    "mistral": (MistralConfig, MistralForCausalLM, {"sliding_window": None}),
    "mixtral": (MixtralConfig, MixtralForCausalLM, {"num_local_experts": 4}),
    "qwen2": (Qwen2Config, Qwen2ForCausalLM, {}),
    "qwen3": (Qwen3Config, Qwen3ForCausalLM, {}),
    "qwen2_moe": (Qwen2MoeConfig, Qwen2MoeForCausalLM, MOE),
    "qwen3_moe": (Qwen3MoeConfig, Qwen3MoeForCausalLM, MOE),
}
ROPES: dict[str, dict[str, Any]] = {
    "linear": {"rope_type": "linear", "factor": 3.0},
    "llama3": {
        "rope_type": "llama3",
        "factor": 4.0,
        "low_freq_factor": 1.0,
        "high_freq_factor": 4.0,
        "original_max_position_embeddings": 64,
    },
    "yarn": {"rope_type": "yarn", "factor": 4.0, "original_max_position_embeddings": 64},
}

# Everything is attended to, where it is: ordinary attention.
WHOLE = esa.Config(
    initial=3, local=9, top_k=200, chunk=8, scorer="exact", positions="original", proximity=0
)
# Most is left out.
SMALL = esa.Config(initial=2, local=8, top_k=6, chunk=4, scorer="exact")


def make(kind: str = "llama", *, rope: str | None = None, seed: int = 0, **options: Any) -> Any:
    """A model that has opinions: transformers starts with logits near zero."""
    torch.manual_seed(seed)
    of_config, of_model, more = KINDS[kind]
    config = of_config(**SIZES | more | options)
    if rope is not None:
        config.rope_parameters = {"rope_theta": 100.0, **ROPES[rope]}
    model = of_model(config)
    with torch.no_grad():
        for name, value in model.state_dict().items():
            if value.dim() > 1:
                nn.init.normal_(value, std=1.5 * value.shape[-1] ** -0.5)
            elif name.endswith(("bias", "norm.weight")):
                nn.init.normal_(value, mean=float(name.endswith("weight")), std=0.3)
    return model.eval()


def tokens(batch: int = 2, length: int = 37, seed: int = 1) -> Tensor:
    generator = torch.Generator().manual_seed(seed)
    return torch.randint(3, VOCABULARY, (batch, length), generator=generator)


def padded(*lengths: int) -> dict[str, Tensor]:
    """Rows of these lengths, padded on the left."""
    ids = tokens(len(lengths), max(lengths), seed=2)
    mask = torch.stack([torch.arange(max(lengths)) >= max(lengths) - n for n in lengths]).long()
    return {"input_ids": ids * mask, "attention_mask": mask}


def state(model: Any) -> list[Any]:
    """All that `enable_esa` may change."""
    parts = [(attributes(m), type(m), type(m).forward) for m in model.modules()]
    parameters = [(key, value.data_ptr()) for key, value in model.state_dict().items()]
    buffers = [(key, value.data_ptr()) for key, value in model.named_buffers()]
    return [parts, parameters, buffers, model.config.to_dict(), model.config._attn_implementation]


def attributes(module: nn.Module) -> dict[str, Any]:
    """Copies of hooks and children: they are changed in place."""
    return {key: x.copy() if isinstance(x, dict) else x for key, x in vars(module).items()}
