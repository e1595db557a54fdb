"""Small random models of transformers, with mixtures of experts."""

from collections.abc import Callable

import pytest
import torch
from torch import Tensor, nn

pytest.importorskip("transformers", minversion="5.23")

from transformers import (
    DeepseekV3Config,
    DeepseekV3ForCausalLM,
    MixtralConfig,
    MixtralForCausalLM,
    Qwen2MoeConfig,
    Qwen2MoeForCausalLM,
    Qwen3MoeConfig,
    Qwen3MoeForCausalLM,
)

VOCABULARY = 97
SIZES = {
    "vocab_size": VOCABULARY,
    "hidden_size": 32,
    "intermediate_size": 40,
    "num_hidden_layers": 3,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "pad_token_id": 0,
    "bos_token_id": 1,
    "eos_token_id": None,
}


def qwen3_moe() -> nn.Module:
    moe = {"moe_intermediate_size": 24, "num_experts": 8, "num_experts_per_tok": 3}
    return Qwen3MoeForCausalLM(Qwen3MoeConfig(**SIZES, **moe, head_dim=8, norm_topk_prob=True))


def qwen2_moe() -> nn.Module:
    """Weights that are not renormalised, and a shared expert."""
    moe = {"moe_intermediate_size": 24, "num_experts": 6, "num_experts_per_tok": 2}
    return Qwen2MoeForCausalLM(Qwen2MoeConfig(**SIZES, **moe, shared_expert_intermediate_size=16))


def deepseek_v3() -> nn.Module:
    """The best 2 of 4 groups, biased sigmoid, a shared expert, a first layer without experts."""
    moe = {"moe_intermediate_size": 24, "n_routed_experts": 16, "num_experts_per_tok": 4}
    groups = {"n_group": 4, "topk_group": 2, "n_shared_experts": 1, "first_k_dense_replace": 1}
    heads = {"qk_rope_head_dim": 8, "qk_nope_head_dim": 8, "v_head_dim": 8}
    ranks = {"kv_lora_rank": 16, "q_lora_rank": 16, "num_key_value_heads": 4}
    return DeepseekV3ForCausalLM(DeepseekV3Config(**SIZES | ranks, **moe, **groups, **heads))


def mixtral(**options: object) -> nn.Module:
    moe = {"num_local_experts": 5, "num_experts_per_tok": 2}
    return MixtralForCausalLM(MixtralConfig(**SIZES, **moe, **options))


MODELS: dict[str, Callable[[], nn.Module]] = {
    "qwen3_moe": qwen3_moe,
    "qwen2_moe": qwen2_moe,
    "deepseek_v3": deepseek_v3,
    "mixtral": mixtral,
}


def make(name: str, dtype: torch.dtype = torch.float32) -> nn.Module:
    """A model whose routers have opinions: transformers starts with logits near zero."""
    torch.manual_seed(0)
    model = MODELS[name]()
    with torch.no_grad():
        for key, value in model.state_dict().items():
            if value.dim() > 1:
                nn.init.normal_(value, std=value.shape[-1] ** -0.5)
            elif key.endswith("e_score_correction_bias"):
                nn.init.normal_(value, std=0.1)
    return model.eval().to(dtype)


def tokens(batch: int = 2, length: int = 11) -> Tensor:
    generator = torch.Generator().manual_seed(1)
    return torch.randint(3, VOCABULARY, (batch, length), generator=generator)
