"""A round in a CUDA graph: nothing in it waits for the device."""

import pytest
import torch
from torch import Tensor

from triselect.lopa import Config, Decoder, State, ToyDenoiser

from .cases import assert_same


def tensors(state: State) -> list[Tensor]:
    return [x for x in (*state, *state.predicted) if isinstance(x, Tensor)]


@pytest.mark.gpu
def test_a_captured_round_goes_on_from_what_is_in_its_memory():
    model = ToyDenoiser(50, device="cuda")
    decoder = Decoder(model, Config(length=32, block_length=8, num_lookaheads=3))
    state = decoder.begin([torch.arange(5), torch.arange(2)])
    decoder.step(state)  # compiles
    torch.cuda.synchronize()
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        after = decoder.step(state)
    expected = state._replace(
        **{name: x.clone() for name, x in state._asdict().items() if isinstance(x, Tensor)}
    )
    for _ in range(5):
        expected = decoder.step(expected)
        graph.replay()
        assert_same(after, expected)
        for mine, new in zip(tensors(state), tensors(after), strict=True):
            mine.copy_(new)
