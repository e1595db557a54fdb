"""Which models ESA can be enabled in, and the parts of them that it needs."""

from typing import Any, NamedTuple

from torch import nn

from triselect.esa.layout import Layout

# Attention that computes q, k and v by projections, perhaps norms of q and k, rotates all of both
# by the model's one rotary embedding, and calls the attention interface; and nothing else.
ATTENTIONS = (
    "LlamaAttention",
    "MistralAttention",
    "MixtralAttention",
    "Qwen2Attention",
    "Qwen2MoeAttention",
    "Qwen3Attention",
    "Qwen3MoeAttention",
)
ROPE_TYPES = ("default", "linear", "llama3", "yarn")  # whose frequencies do not depend on the text


class Parts(NamedTuple):
    """A model's decoder, its attention layers in order, by name, and what has a `generate`."""

    decoder: Any
    attentions: dict[str, Any]
    generators: list[Any]

    @property
    def layouts(self) -> list[Layout]:
        return [layout(attention) for attention in self.attentions.values()]


def layout(attention: Any) -> Layout:
    config = attention.config
    return Layout(config.num_attention_heads, config.num_key_value_heads, attention.head_dim)


def find(model: nn.Module) -> Parts:
    """Raises ValueError where ESA cannot take the place of the model's attention, and why."""
    kind = getattr(getattr(model, "config", None), "model_type", type(model).__name__)
    attentions = {
        name: module
        for name, module in model.named_modules()
        if type(module).__name__ in ATTENTIONS
        and type(module).__module__.startswith("transformers.models.")
    }
    decoders = [
        module
        for module in model.modules()
        if hasattr(module, "rotary_emb")
        and isinstance(getattr(module, "layers", None), nn.ModuleList)
    ]
    if len(decoders) != 1 or not attentions:
        raise ValueError(
            f"model must be of a type that ESA is made for, with attention of one of "
            f"{', '.join(ATTENTIONS)} as transformers has it, got {kind!r}"
        )
    decoder: Any = decoders[0]
    if [a.layer_idx for a in attentions.values()] != list(range(len(decoder.layers))):
        raise ValueError(
            f"model must have one attention in each of its {len(decoder.layers)} layers, "
            f"{kind!r} has {', '.join(attentions)}"
        )
    for name, attention in attentions.items():
        window = getattr(
            attention, "sliding_window", getattr(attention.config, "sliding_window", 0)
        )
        if window:
            raise ValueError(
                f"model must attend to all that is before: {name} has a sliding window of {window}"
            )
    _must_be_fixed(decoder.rotary_emb, next(iter(attentions.values())).head_dim)
    generators = [m for m in model.modules() if hasattr(m, "_prepare_cache_for_generation")]
    return Parts(decoder, attentions, generators)


def _must_be_fixed(rotary: Any, head_dim: int) -> None:
    """One rotation of whole heads, the same for every text."""
    kind = getattr(rotary, "rope_type", None)
    if kind not in ROPE_TYPES:
        raise ValueError(
            f"model must have rotary positions of one of the types {', '.join(ROPE_TYPES)}, "
            f"got {kind!r}"
        )
    if 2 * len(rotary.inv_freq) != head_dim:
        raise ValueError(
            f"model must rotate its heads of {head_dim} whole: partial rotary positions, of "
            f"{2 * len(rotary.inv_freq)}, are not supported"
        )
