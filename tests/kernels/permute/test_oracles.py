"""Sorting and grouping that no one here wrote: torch's stable sort, transformers' experts."""

import numpy as np
import pytest
import torch

from .cases import assignments, every_backend


@every_backend
@pytest.mark.parametrize("skew", ["uniform", "skewed", "one expert"])
def test_a_stable_sort(backend, skew):
    experts = assignments(np.random.default_rng(0), 400, 8, 64, skew)
    source, slot_of, _ = backend(experts, 64)
    order = experts.flatten().sort(stable=True).indices
    assert torch.equal(source.long(), order // 8)
    assert torch.equal(slot_of.flatten().long(), order.argsort())


@every_backend
@pytest.mark.parametrize("skew", ["uniform", "skewed", "one expert"])
def test_the_experts_of_transformers(backend, skew):
    """Rows by expert through its projections, then summed by token: their layer's output.

    Their layer loops over experts and adds each one's rows where they came from: no sort at all.
    """
    pytest.importorskip("transformers", reason="transformers is not installed")
    from transformers.models.qwen3_moe.configuration_qwen3_moe import Qwen3MoeConfig
    from transformers.models.qwen3_moe.modeling_qwen3_moe import Qwen3MoeExperts

    config = Qwen3MoeConfig(hidden_size=8, moe_intermediate_size=6, num_experts=12)
    config._experts_implementation = "eager"
    layer = Qwen3MoeExperts(config).double()
    generator = torch.Generator().manual_seed(0)
    for parameter in layer.parameters():
        torch.nn.init.normal_(parameter, generator=generator)
    hidden = torch.randn(50, 8, generator=generator, dtype=torch.float64)
    weights = torch.rand(50, 3, generator=generator, dtype=torch.float64)
    experts = assignments(np.random.default_rng(0), 50, 3, 12, skew)
    with torch.no_grad():
        theirs = layer(hidden, experts.long(), weights)

        source, slot_of, offsets = (t.long() for t in backend(experts, 12))
        rows = hidden[source]
        for expert in range(12):
            mine = slice(offsets[expert], offsets[expert + 1])
            gate, up = (rows[mine] @ layer.gate_up_proj[expert].t()).chunk(2, dim=-1)
            rows[mine] = (layer.act_fn(gate) * up) @ layer.down_proj[expert].t()
        summed = (rows[slot_of] * weights[:, :, None]).sum(1)
    torch.testing.assert_close(summed, theirs, rtol=1e-12, atol=1e-12)
