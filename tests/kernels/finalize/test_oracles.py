"""The same sums by operators of PyTorch, in float64."""

import torch

import triselect

from .cases import every_backend

TOKENS, K, E, H = 64, 8, 32, 48


def routed():
    generator = torch.Generator().manual_seed(0)
    routing = triselect.grouped_topk(torch.randn(TOKENS, E, generator=generator), K)
    permutation = triselect.permute(routing.experts, E)
    rows = torch.randn(TOKENS * K, H, generator=generator)
    return rows, routing, permutation


@every_backend
def test_index_add(backend):
    """From the rows' side: each is added to its token."""
    rows, routing, permutation = routed()
    of_row = torch.empty(TOKENS * K)
    of_row[permutation.slot_of.flatten().long()] = routing.weights.flatten()
    expected = torch.zeros(TOKENS, H, dtype=torch.float64)
    expected.index_add_(0, permutation.source, (rows * of_row[:, None]).double())
    got = backend(rows, routing.weights, permutation.slot_of)
    torch.testing.assert_close(got.double(), expected, rtol=1e-5, atol=1e-6)


@every_backend
def test_a_matrix_of_weights(backend):
    """Also with biases, which a token has by the sum of its weights for an expert."""
    rows, routing, permutation = routed()
    bias = torch.randn(E, H, generator=torch.Generator().manual_seed(1))
    index = permutation.slot_of.long()
    of_rows = torch.zeros(TOKENS, TOKENS * K).scatter_(1, index, routing.weights)
    of_experts = torch.zeros(TOKENS, E).scatter_(1, routing.experts.long(), routing.weights)
    expected = of_rows.double() @ rows.double() + of_experts.double() @ bias.double()
    got = backend(rows, routing.weights, permutation.slot_of, routing.experts, bias)
    torch.testing.assert_close(got.double(), expected, rtol=1e-5, atol=1e-6)
