"""`load_diffusion`: a published checkpoint of Dream or LLaDA, into models of transformers."""

import json
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from torch import Tensor, nn
from transformers import LlamaForCausalLM, PreTrainedModel, Qwen2ForCausalLM

from triselect.hf.diffusion_config import read_dream, read_llada

SINGLE, INDEX = "model.safetensors", "model.safetensors.index.json"
# What LLaDA calls the parameters of Llama, within model.transformer and its blocks.
LLADA = {"model.embed_tokens": "wte", "model.norm": "ln_f", "lm_head": "ff_out"}
LLADA_BLOCK = {
    "input_layernorm": "attn_norm",
    "self_attn.q_proj": "q_proj",
    "self_attn.k_proj": "k_proj",
    "self_attn.v_proj": "v_proj",
    "self_attn.o_proj": "attn_out",
    "post_attention_layernorm": "ff_norm",
    "mlp.gate_proj": "ff_proj",
    "mlp.up_proj": "up_proj",
    "mlp.down_proj": "ff_out",
}


def load_diffusion(
    path: str | Path,
    *,
    dtype: torch.dtype | None = None,
    device: str | torch.device = "cpu",
) -> PreTrainedModel:
    """A masked diffusion language model from its published checkpoint.

    Parameters
    ----------
    path : str or Path
        A folder with config.json of Dream (``"model_type": "Dream"``) or LLaDA (``"llada"``), and
        model.safetensors, or model.safetensors.index.json and the files that it names. To get one:
        ``huggingface_hub.snapshot_download("Dream-org/Dream-v0-Instruct-7B")``.
    dtype : torch.dtype, optional
        By default as stored.
    device : str or torch.device

    Returns
    -------
    transformers.PreTrainedModel
        Qwen2 or Llama of transformers, in evaluation mode and without gradients, whose
        configuration tells `as_denoiser` everything. Called on its own it would see only what is
        before, as transformers has it; `as_denoiser` says what it is to see.

    Raises
    ------
    ValueError
        No such checkpoint; a setting of it that would make it another kind of model; a tensor that
        is missing, not known or of another shape; all by name. Nothing is unpickled.

    Notes
    -----
    One tensor is read at a time, straight to the device.

    Examples
    --------
    ::

        model = as_denoiser(load_diffusion(path, dtype=torch.bfloat16, device="cuda"))
        done = lopa.generate(model, input_ids)
    """
    path = Path(path)
    published = _json(path / "config.json")
    kind = published.get("model_type")
    model: Any
    with torch.device("meta"):
        if kind == "Dream":
            model = Qwen2ForCausalLM(read_dream(published))
        elif kind == "llada":
            model = LlamaForCausalLM(read_llada(published))
        else:
            raise ValueError(f'{path}: model_type must be "Dream" or "llada", got {kind!r}')
    _fill(model, _tensors(path, str(device)), kind == "llada", dtype)
    model.tie_weights()
    # Frequencies are not stored, and those on the device "meta" were never computed.
    model.model.rotary_emb = type(model.model.rotary_emb)(model.config).to(device)
    model.eval().requires_grad_(False)
    found: PreTrainedModel = model
    return found


def _fill(
    model: Any, tensors: Iterator[tuple[str, Tensor]], is_llada: bool, dtype: torch.dtype | None
) -> None:
    wanted = {llada_name(n) if is_llada else n: (n, p.shape) for n, p in model.named_parameters()}
    for name, tensor in tensors:
        if name not in wanted:
            raise ValueError(f"{name} is no tensor of this model, or one that came before")
        own, shape = wanted.pop(name)
        if tensor.shape != shape or not tensor.is_floating_point():
            raise ValueError(
                f"{name} must be {tuple(shape)} of floating point, got {tuple(tensor.shape)} "
                f"{tensor.dtype}"
            )
        module, _, leaf = own.rpartition(".")
        setattr(model.get_submodule(module), leaf, nn.Parameter(tensor.to(dtype)))
    if wanted:
        names = sorted(wanted)
        more = f" and {len(names) - 3} more" if len(names) > 3 else ""
        raise ValueError(f"the checkpoint lacks {', '.join(names[:3])}{more}")


def llada_name(own: str) -> str:
    """What LLaDA calls a parameter of Llama."""
    if match := re.fullmatch(r"model\.layers\.(\d+)\.(.+)\.weight", own):
        return f"model.transformer.blocks.{match[1]}.{LLADA_BLOCK[match[2]]}.weight"
    return f"model.transformer.{LLADA[own.removesuffix('.weight')]}.weight"


def _tensors(path: Path, device: str) -> Iterator[tuple[str, Tensor]]:
    for name in _files(path):
        try:
            with safe_open(path / name, "pt", device) as file:
                for key in file.keys():  # noqa: SIM118
                    yield key, file.get_tensor(key)
        except (SafetensorError, OSError) as error:
            raise ValueError(
                f"{path / name} is no safetensors file, or a part of one: {error}"
            ) from error


def _files(path: Path) -> list[str]:
    if (path / SINGLE).is_file():
        return [SINGLE]
    if not (path / INDEX).is_file():
        pickled = (
            " (what is pickled is not read)" if [*path.glob("*.bin"), *path.glob("*.pt")] else ""
        )
        raise ValueError(f"{path} must have {SINGLE} or {INDEX}{pickled}")
    names = sorted(set(_json(path / INDEX).get("weight_map", {}).values()))
    if outside := [name for name in names if Path(name).name != name]:
        raise ValueError(f"{path / INDEX} must name files beside it, got {outside[0]!r}")
    return names


def _json(path: Path) -> dict[str, Any]:
    try:
        found = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise ValueError(f"{path} must be a file of JSON: {error}") from error
    if not isinstance(found, dict):
        raise ValueError(f"{path} must hold an object, got {type(found).__name__}")
    return found
