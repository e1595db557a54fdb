"""Weights of the small models: safetensors in bfloat16, with the sizes in the file's metadata."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any, TypeVar

import torch
from torch import nn

from triselect.optional import safetensors

Model = TypeVar("Model", bound=nn.Module)


def save(model: nn.Module, config: dict[str, Any], path: Path, metadata: dict[str, str]) -> None:
    weights = {name: w.detach().to(torch.bfloat16) for name, w in model.state_dict().items()}
    safetensors().save_file(weights, path, {**metadata, "config": json.dumps(config)})


def load(make: Callable[[dict[str, Any]], Model], path: Path | str) -> Model:
    """What `make` makes of the sizes, with these weights, in evaluation mode."""
    with safetensors().safe_open(str(path), "pt") as file:
        model = make(json.loads(file.metadata()["config"]))
        model.load_state_dict({name: file.get_tensor(name) for name in file.keys()})  # noqa: SIM118
    return model.eval().requires_grad_(False)
