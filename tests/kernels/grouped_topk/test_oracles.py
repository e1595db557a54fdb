"""Routers that no one here wrote: those of Hugging Face transformers, as they are.

Two things are theirs and not the operator's. Their top-k is unsorted, so experts are compared as
sets and weights expert by expert. And DeepSeek-V2 masks excluded groups with a score of 0.0 where
-inf is meant: the same routing as long as the kept groups hold `top_k` scores above zero, which
a softmax of ordinary logits does.
"""

import pytest
import torch

import triselect

from .cases import every_backend
from .compare import Keys, complete

pytest.importorskip("transformers", reason="transformers is not installed")

from transformers.models.deepseek_v2.configuration_deepseek_v2 import (
    DeepseekV2Config,
)
from transformers.models.deepseek_v2.modeling_deepseek_v2 import DeepseekV2TopkRouter
from transformers.models.deepseek_v3.configuration_deepseek_v3 import (
    DeepseekV3Config,
)
from transformers.models.deepseek_v3.modeling_deepseek_v3 import DeepseekV3TopkRouter
from transformers.models.qwen3_moe.configuration_qwen3_moe import Qwen3MoeConfig
from transformers.models.qwen3_moe.modeling_qwen3_moe import Qwen3MoeTopKRouter


def routed(router: torch.nn.Module, hidden_size: int, dtype: torch.dtype, tokens: int = 64):
    """Logits, weights and experts of a router with random weights on random hidden states."""
    torch.manual_seed(0)
    torch.nn.init.normal_(router.weight, std=1.5 * hidden_size**-0.5)
    with torch.no_grad():
        return router.to(dtype)(torch.randn(tokens, hidden_size, dtype=dtype))


def assert_same_experts_and_weights(got: triselect.Routing, logits, weights, experts, clear=None):
    """Equal sets, and for each expert of a set equal weights: both as dense ``(T, E)`` rows."""
    clear = torch.ones(len(logits), dtype=torch.bool) if clear is None else clear
    assert clear.float().mean() > 0.95
    mine = torch.zeros_like(logits, dtype=torch.float32)
    theirs = mine.clone()
    mine.scatter_(1, got.experts.long(), got.weights)
    theirs.scatter_(1, experts, weights.float())
    assert torch.equal((mine != 0)[clear], (theirs != 0)[clear])
    # Theirs are rounded to the dtype of the router, ours are float32.
    rtol = max(1e-6, torch.finfo(weights.dtype).eps)
    torch.testing.assert_close(mine[clear], theirs[clear], rtol=rtol, atol=0)


@every_backend
@pytest.mark.parametrize("norm_topk_prob", [True, False])
@pytest.mark.parametrize(
    ("hidden_size", "experts", "groups", "kept", "top_k"),
    [(32, 24, 4, 2, 5), (64, 60, 5, 3, 7), (7168, 256, 8, 4, 8)],
    ids=["small", "odd", "full-size"],
)
def test_deepseek_v3(backend, hidden_size, experts, groups, kept, top_k, norm_topk_prob):
    config = DeepseekV3Config(
        hidden_size=hidden_size,
        n_routed_experts=experts,
        n_group=groups,
        topk_group=kept,
        num_experts_per_tok=top_k,
        norm_topk_prob=norm_topk_prob,
        routed_scaling_factor=2.5,
    )
    router = DeepseekV3TopkRouter(config)
    router.e_score_correction_bias.normal_(std=0.1)
    logits, weights, ids = routed(router, hidden_size, torch.float32)
    options = {
        "top_k": top_k,
        "num_expert_group": groups,
        "topk_group": kept,
        "scoring_func": "sigmoid",
        "group_score": "top2_sum",
        "e_score_correction_bias": router.e_score_correction_bias,
        "renormalize": norm_topk_prob,
        "routed_scaling_factor": 2.5,
    }
    clear = torch.from_numpy(Keys(logits.double().numpy(), complete(options)).clear())
    got = backend(logits, **options)
    assert_same_experts_and_weights(got, logits, weights, ids, clear)


@every_backend
@pytest.mark.parametrize("topk_method", ["greedy", "group_limited_greedy"])
@pytest.mark.parametrize(
    ("hidden_size", "experts", "groups", "kept", "top_k"),
    [(32, 24, 4, 2, 5), (5120, 160, 8, 3, 6)],
    ids=["small", "full-size"],
)
def test_deepseek_v2(backend, hidden_size, experts, groups, kept, top_k, topk_method):
    config = DeepseekV2Config(
        hidden_size=hidden_size,
        n_routed_experts=experts,
        n_group=groups,
        topk_group=kept,
        num_experts_per_tok=top_k,
        topk_method=topk_method,
        routed_scaling_factor=16.0,
    )
    logits, weights, ids = routed(DeepseekV2TopkRouter(config), hidden_size, torch.float32)
    options = {"num_expert_group": groups, "topk_group": kept} if "group" in topk_method else {}
    got = backend(logits, top_k=top_k, routed_scaling_factor=16.0, **options)
    assert_same_experts_and_weights(got, logits, weights, ids)


@every_backend
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=["float32", "bfloat16"])
@pytest.mark.parametrize("norm_topk_prob", [True, False])
@pytest.mark.parametrize(
    ("hidden_size", "experts", "top_k"),
    [(32, 12, 3), (2048, 128, 8)],
    ids=["small", "full-size"],
)
def test_qwen3_moe(backend, hidden_size, experts, top_k, norm_topk_prob, dtype):
    config = Qwen3MoeConfig(
        hidden_size=hidden_size,
        num_experts=experts,
        num_experts_per_tok=top_k,
        norm_topk_prob=norm_topk_prob,
    )
    logits, weights, ids = routed(Qwen3MoeTopKRouter(config), hidden_size, dtype)
    got = backend(logits, top_k=top_k, renormalize=norm_topk_prob)
    # Of equal bfloat16 logits at the boundary they take any: the same keys all the same.
    keys = [logits.gather(1, i.long()).sort(-1).values for i in (got.experts, ids)]
    assert torch.equal(*keys)
    best = logits.float().sort(-1, descending=True).values
    tied = best[:, top_k - 1] == best[:, top_k]
    assert_same_experts_and_weights(
        triselect.Routing(got.weights[~tied], got.experts[~tied]),
        *(t[~tied] for t in (logits, weights, ids)),
    )
