"""Experts of other libraries, where they are installed. Both run on a GPU only.

vLLM's Triton experts (``pip install vllm``, which brings a torch of its own) take tiles that were
tuned for the GPU at hand, where vLLM ships them. ``triton_kernels`` lies in Triton's repository
(``python/triton_kernels``): its products gather rows by themselves, and its SwiGLU is another
function (of gpt-oss), so that the activation and the sum are torch's.
"""

from collections.abc import Callable
from typing import Any, NamedTuple

import torch
from torch import Tensor
from torch.nn.functional import silu

Layer = Callable[[Any], Tensor]  # a batch: hidden, weights, experts


class Grouped(NamedTuple):
    order: Tensor  # (T·K,), assignments expert by expert
    ends: Tensor  # (E,) int32, where each expert's end

    def summed(self, y: Tensor, batch: Any) -> Tensor:
        """Weighted rows back with their tokens."""
        y = y * batch.weights.flatten()[self.order, None]
        back = y[self.order.argsort()].unflatten(0, batch.experts.shape)
        return back.sum(1).to(batch.hidden.dtype)


def grouped(experts: Tensor, num_experts: int) -> Grouped:
    ordered, order = experts.flatten().sort(stable=True)
    numbers = torch.arange(1, num_experts + 1, device=order.device, dtype=ordered.dtype)
    return Grouped(order, torch.searchsorted(ordered, numbers).int())


def of_vllm(gate_up: Tensor, down: Tensor) -> Layer:
    from vllm.model_executor.layers.fused_moe import fused_experts

    return lambda b: fused_experts(b.hidden, gate_up, down, b.weights, b.experts)


def of_triton_kernels(gate_up: Tensor, down: Tensor) -> Layer:
    from triton_kernels.matmul import matmul
    from triton_kernels.tensor_details.ragged_tensor import make_ragged_tensor_metadata

    def call(batch: Any) -> Tensor:
        order, ends = by_expert = grouped(batch.experts, len(gate_up))
        sizes = ends.diff(prepend=ends.new_zeros(1))
        ragged = make_ragged_tensor_metadata(sizes, len(order))
        tokens = (order // batch.experts.shape[1]).int()
        both = matmul(batch.hidden, gate_up.mT, None, a_ragged_metadata=ragged, gather_indx=tokens)
        gate, up = both.chunk(2, -1)
        y = matmul(silu(gate) * up, down.mT, None, a_ragged_metadata=ragged)
        return by_expert.summed(y, batch)

    return call


PEERS = {"vLLM": of_vllm, "triton_kernels": of_triton_kernels}


def installed(gate_up: Tensor, down: Tensor, batch: Any) -> tuple[dict[str, Layer], dict[str, str]]:
    """Those that run here on such weights, and why the others do not."""
    calls: dict[str, Layer] = {}
    unavailable = {}
    for name, of in PEERS.items():
        try:
            if gate_up.device.type == "cpu":
                raise RuntimeError("it runs on a GPU only")
            layer = of(gate_up, down)
            layer(batch)
        except Exception as error:  # it may be absent, too old, or refuse this GPU
            unavailable[name] = str(error).strip().split("\n", 1)[0]
        else:
            calls[name] = layer
    return calls, unavailable
