"""`as_denoiser`: a masked diffusion language model of transformers, as LoPA decodes it."""

from typing import Any

from torch import nn

from triselect.hf.denoiser import TransformersDenoiser
from triselect.hf.esa_models import ATTENTIONS, ROPE_TYPES

ELSEWHERE = {
    "diffusion_gemma": "it has no mask token: a step may change tokens that an earlier one "
    "accepted, starts from random ones and reads the logits of the step before, where LoPA fills "
    "masks, once and for all",
    "Dream": "its code is not transformers': triselect.hf.load_diffusion(path) loads it into "
    "transformers' Qwen2",
    "llada": "its code is not transformers': triselect.hf.load_diffusion(path) loads it into "
    "transformers' Llama",
}


def as_denoiser(
    model: nn.Module,
    *,
    mask_token: int | None = None,
    eos_token: int | None = None,
    shift: bool | None = None,
    max_length: int | None = None,
) -> TransformersDenoiser:
    """What `triselect.lopa.generate` decodes, from a model of transformers.

    What the model's configuration says need not be said: `load_diffusion`, `dream_config` and
    `llada_config` write all of it there.

    Parameters
    ----------
    model : nn.Module
        Llama, Mistral, Mixtral, Qwen2 or Qwen3 (the latter two also with experts) of transformers 5
        or later with its head, trained to fill in masks, in evaluation mode and on one device. It
        is called, not changed; it attends as it is told, whatever it does on its own.
    mask_token : int, optional
        By default ``model.config.mask_token_id``.
    eos_token : int, optional
        The token that ends a text; by default ``model.config.eos_token_id``.
    shift : bool, optional
        Whether logits at a position predict the next one; by default
        ``model.config.shift_logits``. Models that began as autoregressive ones do (Dream).
    max_length : int, optional
        Positions of prompt and generation together; by default
        ``model.config.max_position_embeddings``.

    Returns
    -------
    TransformersDenoiser

    Raises
    ------
    TypeError
        An argument of a wrong type, by name.
    ValueError
        A model that cannot be decoded by LoPA, and why; what neither the arguments nor the
        configuration say, and which argument says it.

    Notes
    -----
    Attention is transformers' own, by "sdpa" or "eager". The branches of a round share one pass and
    one prefix: they are further queries, not further sequences.

    Examples
    --------
    >>> import torch
    >>> from transformers import AutoModelForCausalLM
    >>> from triselect import hf, lopa
    >>> sizes = {"hidden_size": 32, "num_attention_heads": 4, "num_key_value_heads": 2}
    >>> sizes |= {"num_hidden_layers": 2, "intermediate_size": 64, "vocab_size": 100}
    >>> config = hf.dream_config(**sizes, mask_token_id=99, eos_token_id=98)
    >>> model = AutoModelForCausalLM.from_config(config).eval()
    >>> settings = lopa.Config(length=8, block_length=4, num_lookaheads=2)
    >>> done = lopa.generate(hf.as_denoiser(model), torch.tensor([[1, 2, 3]]), settings)
    >>> len(done.history.round[0])
    8
    """
    if not isinstance(model, nn.Module):
        raise TypeError(f"model must be a torch.nn.Module, got {type(model).__name__}")
    attentions = _attentions(model)
    of: Any = model
    head = of.get_output_embeddings()
    if head is None:
        raise ValueError(
            f"model must have a head that predicts tokens (…ForCausalLM), {type(model).__name__} "
            "has none"
        )
    devices = {str(parameter.device) for parameter in model.parameters()}
    if len(devices) != 1:
        raise ValueError(f"model must be on one device, it is on {', '.join(sorted(devices))}")
    config = of.config
    vocabulary = head.weight.shape[0]
    mask_token = _token("mask_token", mask_token, config, vocabulary)
    if mask_token is None:
        raise ValueError(
            "mask_token must be given: model.config has no mask_token_id. Is the model trained to "
            "fill in masks?"
        )
    eos_token = _token("eos_token", eos_token, config, vocabulary)
    if mask_token == eos_token:
        raise ValueError(f"mask_token and eos_token must differ, both are {mask_token}")
    if shift is None:
        shift = getattr(config, "shift_logits", None)
    if shift is None:
        raise ValueError(
            "shift must be given: True for a model whose logits at a position predict the next one "
            "(Dream), False where they predict the position itself (LLaDA)"
        )
    if not isinstance(shift, bool):
        raise TypeError(f"shift must be a bool, got {shift!r}")
    if max_length is None:
        max_length = getattr(config, "max_position_embeddings", None)
    if isinstance(max_length, bool) or not isinstance(max_length, int):
        raise TypeError(f"max_length must be an int, got {max_length!r}")
    if max_length < 1:
        raise ValueError(f"max_length must be at least 1, got {max_length}")
    return TransformersDenoiser(
        of.get_decoder(), head, attentions, mask_token, eos_token, shift, max_length
    )


def _attentions(model: Any) -> list[Any]:
    """Those of the layers, in order. Raises ValueError where a mask, positions and a cache of ours
    would not be all that decides what a position sees.
    """
    kind = getattr(getattr(model, "config", None), "model_type", type(model).__name__)
    if kind in ELSEWHERE:
        raise ValueError(f"model of type {kind!r} cannot be decoded by LoPA: {ELSEWHERE[kind]}")
    found = {
        name: module
        for name, module in model.named_modules()
        if type(module).__name__ in ATTENTIONS
        and type(module).__module__.startswith("transformers.models.")
    }
    rotary = [m.rotary_emb for m in model.modules() if hasattr(m, "rotary_emb")]
    if not found or len(rotary) != 1:
        raise ValueError(
            f"model must attend by one of {', '.join(ATTENTIONS)} as transformers has it, "
            f"got {kind!r}"
        )
    if [a.layer_idx for a in found.values()] != list(range(model.config.num_hidden_layers)):
        raise ValueError(
            f"model must have such an attention in each of its {model.config.num_hidden_layers} "
            f"layers, {kind!r} has {', '.join(found)}"
        )
    for name, attention in found.items():
        window = getattr(
            attention, "sliding_window", getattr(attention.config, "sliding_window", 0)
        )
        if window:
            raise ValueError(
                f"model must be able to see everything: {name} has a sliding window of {window}"
            )
    rope = rotary[0].rope_type
    if rope not in ROPE_TYPES:
        raise ValueError(
            f"model must have rotary positions of one of the types {', '.join(ROPE_TYPES)}, which "
            f"are the same for every text, got {rope!r}"
        )
    return list(found.values())


def _token(name: str, given: int | None, config: Any, vocabulary: int) -> int | None:
    token = getattr(config, f"{name}_id", None) if given is None else given
    if isinstance(token, list):
        if len(token) != 1:
            raise ValueError(f"{name} must be given: model.config has {token}")
        token = token[0]
    if token is None:
        return None
    if isinstance(token, bool) or not isinstance(token, int):
        raise TypeError(f"{name} must be an int, got {token!r}")
    if not 0 <= token < vocabulary:
        raise ValueError(
            f"{name} must be below the {vocabulary} tokens of the model and not negative, "
            f"got {token}"
        )
    return token
