"""What a call launches on the GPU."""

from collections.abc import Callable
from typing import Any

import torch


def launches(call: Callable[..., Any], *args: Any, **options: Any) -> list[str]:
    """Names of what runs there, in order, once everything is compiled."""
    args = tuple(map(on_gpu, args))
    options = {name: on_gpu(value) for name, value in options.items()}
    # Deterministic mode would fill the outputs, one launch each.
    torch.use_deterministic_algorithms(False)
    call(*args, **options)
    torch.cuda.synchronize()
    with torch.profiler.profile(activities=[torch.profiler.ProfilerActivity.CUDA]) as profile:
        call(*args, **options)
        torch.cuda.synchronize()
    device = torch.autograd.DeviceType.CUDA
    return [event.name for event in profile.events() if event.device_type == device]


def on_gpu(value: Any) -> Any:
    return value.cuda() if isinstance(value, torch.Tensor) else value
