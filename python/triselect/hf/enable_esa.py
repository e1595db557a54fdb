"""`enable_esa`: a transformers model attends to selected tokens of a cache that forgets nothing."""

from collections.abc import Sequence

from torch import nn

from triselect import esa
from triselect.hf import esa_models
from triselect.hf.esa_attention import MARK, NAME
from triselect.hf.esa_enabled import EsaEnabled
from triselect.ops import backends


def enable_esa(
    model: nn.Module,
    config: esa.Config | None = None,
    compressors: Sequence[esa.Compressor] | None = None,
    *,
    backend: str = "auto",
) -> EsaEnabled:
    """Let a transformers model attend by ESA, in `generate` and in every other call.

    Parameters
    ----------
    model : nn.Module
        Llama, Mistral, Mixtral, Qwen2 or Qwen3 (the latter two also with experts) of transformers 5
        or later, with full attention in all layers and rotary positions of a type that does not
        depend on the text: default, linear, llama3 or yarn.
    config : esa.Config, optional
        By default ``esa.Config()`` with compressors and ``esa.Config(scorer="exact")`` without.
    compressors : sequence of esa.Compressor, optional
        One for each layer (`esa.calibrate_model`); not needed where all layers score exactly.
    backend : "auto", "native", "triton", "eager" or "reference"
        As in `esa.attend`.

    Returns
    -------
    EsaEnabled
        What was changed; its `undo` changes it back.

    Raises
    ------
    TypeError
        An argument of a wrong type, by name.
    ValueError
        A model that ESA is not made for, and why; compressors for another model; a configuration
        that does not fit the model. Nothing is changed.
    BackendUnavailable
        A named backend that cannot run here. Nothing is changed.

    Notes
    -----
    `generate` makes its own cache, with room for the longest text it may write, and so does a call
    without `past_key_values`. To hand one on from call to call, to share pages among beams or to
    keep keys and values on the host, make it by `EsaEnabled.new_cache`; caches of transformers do
    not hold what ESA needs and are refused. Beam search, assisted decoding, prefill in chunks and
    padding on the left work. There is no gradient and no mask but that of padding. Tokens that are
    read in one call select together, ``config.chunk`` at most, so what is generated may depend on
    how it is cut into calls, unless the budget covers everything.

    Attention is chosen in the model's configuration, under the name "triselect-esa", as
    ``set_attn_implementation`` does; weights stay where they are.

    Examples
    --------
    >>> import torch
    >>> from transformers import LlamaConfig, LlamaForCausalLM
    >>> sizes = {"hidden_size": 32, "num_attention_heads": 4, "num_key_value_heads": 2}
    >>> of = LlamaConfig(vocab_size=64, intermediate_size=32, num_hidden_layers=2, **sizes)
    >>> model = LlamaForCausalLM(of)
    >>> config = esa.Config(initial=4, top_k=16, local=32, chunk=16, scorer="exact")
    >>> with enable_esa(model, config):
    ...     text = model.generate(torch.randint(64, (1, 100)), max_new_tokens=5, eos_token_id=None)
    >>> text.shape
    torch.Size([1, 105])
    """
    if not isinstance(model, nn.Module):
        raise TypeError(f"model must be a torch.nn.Module, got {type(model).__name__}")
    if any(MARK in vars(module) for module in model.modules()):
        raise ValueError("ESA is enabled in this model already: disable_esa(model) first")
    parts = esa_models.find(model)
    if parts.decoder.config._attn_implementation == NAME:
        raise ValueError(
            "model shares its configuration object with a model in which ESA is enabled: give it "
            "one of its own"
        )
    if config is None:
        config = esa.Config() if compressors is not None else esa.Config(scorer="exact")
    compressors = None if compressors is None else list(compressors)
    esa.Cache(config, compressors=compressors)  # says what is wrong with the two
    _must_fit(config, compressors, parts)
    backends.must_be_known(backend)
    backends.require(backend, next(parts.decoder.parameters()).device)
    enabled = EsaEnabled(config, compressors, parts, backend)
    enabled.begin()
    return enabled


def disable_esa(model: nn.Module) -> None:
    """Undo `enable_esa`.

    Raises
    ------
    ValueError
        ESA is not enabled in `model`.
    """
    found = {id(e): e for m in model.modules() if (e := vars(m).get(MARK)) is not None}
    if not found:
        raise ValueError(f"ESA is not enabled in this {type(model).__name__}")
    for enabled in found.values():
        enabled.undo()


def _must_fit(
    config: esa.Config, compressors: list[esa.Compressor] | None, parts: esa_models.Parts
) -> None:
    layouts = parts.layouts
    if unknown := [layer for layer in config.layers if layer >= len(layouts)]:
        raise ValueError(f"config has layers[{unknown[0]}], the model has {len(layouts)} layers")
    known = getattr(parts.decoder.config, "max_position_embeddings", None)
    for layer in range(len(layouts)):
        of = config.of_layer(layer)
        if known and of.positions == "rerope" and of.local + of.chunk > known:
            raise ValueError(
                f"local + chunk must be at most the {known} positions that the model knows, got "
                f"{of.local} + {of.chunk}"
            )
    if compressors is None:
        return
    if len(compressors) != len(layouts):
        raise ValueError(
            f"compressors must be {len(layouts)}, one for each layer of the model, got "
            f"{len(compressors)}: are they for another model?"
        )
    for layer, (compressor, wanted) in enumerate(zip(compressors, layouts, strict=True)):
        if compressor.layout != wanted:
            raise ValueError(
                f"compressors[{layer}] is for another model: heads, groups and head_dim are "
                f"{tuple(compressor.layout)}, those of the layer {tuple(wanted)}"
            )
