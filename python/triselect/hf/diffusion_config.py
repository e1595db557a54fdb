"""`dream_config` and `llada_config`: published masked diffusion models as transformers' own.

Dream is Qwen2 that sees everything and predicts the next position; LLaDA is Llama that sees
everything, under other names. Settings have the names of their published config.json.
"""

from itertools import pairwise
from typing import Any

from transformers import LlamaConfig, PreTrainedConfig, Qwen2Config

# Of Dream-v0-Instruct-7B and LLaDA-8B-Instruct.
DREAM_7B = {
    "hidden_size": 3584,
    "intermediate_size": 18944,
    "num_hidden_layers": 28,
    "num_attention_heads": 28,
    "num_key_value_heads": 4,
    "vocab_size": 152064,
    "max_position_embeddings": 131072,
    "rms_norm_eps": 1e-6,
    "rope_theta": 1e6,
    "mask_token_id": 151666,
    "eos_token_id": 151643,
    "tie_word_embeddings": False,
}
LLADA_8B = {
    "d_model": 4096,
    "mlp_hidden_size": 12288,
    "n_layers": 32,
    "n_heads": 32,
    "n_kv_heads": 32,
    "vocab_size": 126464,
    "embedding_size": 126464,
    "max_sequence_length": 4096,
    "rms_norm_eps": 1e-5,
    "rope_theta": 5e5,
    "mask_token_id": 126336,
    "eos_token_id": 126081,
    "weight_tying": False,
    "activation_type": "silu",
    "block_type": "llama",
    "layer_norm_type": "rms",
    "rope": True,
}
# What else a config.json may say, if it says this. LLaDA's code has settings of a family of models.
DREAM_IS = {
    "architectures": ["DreamModel"],
    "model_type": "Dream",
    "hidden_act": "silu",
    "rope_scaling": None,
    "use_mrope": False,
    "use_sliding_window": False,
}
LLADA_IS = {
    "architectures": ["LLaDAModelLM"],
    "model_type": "llada",
    "activation_type": "silu",
    "alibi": False,
    "attention_layer_norm": False,
    "bias_for_layer_norm": (False, None),
    "block_group_size": 1,
    "block_type": "llama",
    "include_bias": False,
    "include_qkv_bias": (False, None),
    "input_emb_norm": False,
    "layer_norm_type": "rms",
    "layer_norm_with_affine": True,
    "multi_query_attention": (False, None),
    "rope": True,
    "scale_logits": False,
}
MAY_BE_NULL = {"embedding_size", "eos_token_id", "n_kv_heads"}
OFF = (None, False)  # of a setting that is not known here
# What has no bearing on what the model computes: how it was made and is run.
DREAM_IGNORES = {"initializer_range", "max_window_layers", "sliding_window"}
LLADA_IGNORES = {
    "alibi_bias_max",
    "attention_layer_norm_with_affine",
    "embedding_dropout",
    "flash_attention",
    "init_cutoff_factor",
    "init_device",
    "init_fn",
    "init_std",
    "mlp_ratio",
    "precision",
    "residual_dropout",
    "rope_full_precision",
}
EITHER_IGNORES = {
    "attention_dropout",
    "auto_map",
    "bos_token_id",
    "pad_token_id",
    "torch_dtype",
    "transformers_version",
    "use_cache",
} | set(PreTrainedConfig().to_dict())


def dream_config(**changes: Any) -> Qwen2Config:
    """The configuration of Dream-v0-Instruct-7B, or of one with other sizes.

    Parameters
    ----------
    **changes
        Settings under the names of its config.json.

    Returns
    -------
    transformers.Qwen2Config
        With `mask_token_id` and `shift_logits`.

    Raises
    ------
    ValueError
        A setting that would make it another kind of model, by name.

    Examples
    --------
    A random model of that size, in the half precision of a GPU::

        with torch.device("cuda"):
            model = AutoModelForCausalLM.from_config(dream_config(), dtype=torch.bfloat16).eval()

    >>> dream_config().num_hidden_layers, dream_config(num_hidden_layers=2).num_hidden_layers
    (28, 2)
    """
    return read_dream(DREAM_7B | changes)


def llada_config(**changes: Any) -> LlamaConfig:
    """The configuration of LLaDA-8B-Instruct, or of one with other sizes.

    Parameters
    ----------
    **changes
        Settings under the names of its config.json.

    Returns
    -------
    transformers.LlamaConfig
        With `mask_token_id` and `shift_logits`.

    Raises
    ------
    ValueError
        A setting that would make it another kind of model, by name.

    Notes
    -----
    Rotations of positions round as transformers' Llama has it; LLaDA's code computes them in
    float32 where the model is in half precision.

    Examples
    --------
    >>> llada_config().hidden_size, llada_config(d_model=2048).hidden_size
    (4096, 2048)
    """
    return read_llada(LLADA_8B | changes)


def read_dream(published: dict[str, Any]) -> Qwen2Config:
    """From a config.json."""
    _must_be("Dream", published, DREAM_7B, DREAM_IS, DREAM_IGNORES)
    _must_divide(published, "num_key_value_heads", "num_attention_heads", "hidden_size")
    return Qwen2Config(
        **{name: published[name] for name in DREAM_7B if name != "rope_theta"},
        rope_parameters={"rope_type": "default", "rope_theta": published["rope_theta"]},
        shift_logits=True,
    )


def read_llada(published: dict[str, Any]) -> LlamaConfig:
    """From a config.json."""
    _must_be("LLaDA", published, LLADA_8B, LLADA_IS, LLADA_IGNORES)
    _must_divide(published, "n_kv_heads", "n_heads", "d_model")
    return LlamaConfig(
        hidden_size=published["d_model"],
        intermediate_size=published["mlp_hidden_size"],
        num_hidden_layers=published["n_layers"],
        num_attention_heads=published["n_heads"],
        num_key_value_heads=published["n_kv_heads"],
        vocab_size=published["embedding_size"] or published["vocab_size"],
        max_position_embeddings=published["max_sequence_length"],
        rms_norm_eps=published["rms_norm_eps"],
        rope_parameters={"rope_type": "default", "rope_theta": published["rope_theta"]},
        mask_token_id=published["mask_token_id"],
        eos_token_id=published["eos_token_id"],
        tie_word_embeddings=published["weight_tying"],
        shift_logits=False,
    )


def _must_be(
    kind: str,
    published: dict[str, Any],
    needed: dict[str, Any],
    fixed: dict[str, Any],
    ignored: set[str],
) -> None:
    """Raises ValueError where a setting is missing, or may mean that something else is computed."""
    if missing := [name for name in needed if name not in published]:
        raise ValueError(f"a configuration of {kind} must have {', '.join(missing)}")
    for name, example in needed.items():
        value = published[name]
        if isinstance(example, str) or (value is None and name in MAY_BE_NULL):
            continue
        expected = type(example) if isinstance(example, int) else (int, float)
        if not isinstance(value, expected) or isinstance(value, bool) != isinstance(example, bool):
            raise ValueError(f"{name} of {kind} must be of the kind of {example}, got {value!r}")
        if value <= 0 and not isinstance(value, bool) and not name.endswith("token_id"):
            raise ValueError(f"{name} of {kind} must be above 0, got {value}")
    for name, value in published.items():
        if name in fixed:
            allowed = fixed[name] if isinstance(fixed[name], tuple) else (fixed[name],)
            if value not in allowed:
                raise ValueError(f"{name} of {kind} must be {allowed[0]!r}, got {value!r}")
        elif name not in needed and name not in ignored | EITHER_IGNORES and value not in OFF:
            raise ValueError(f"{name} = {value!r} is not known of {kind}: is it another model?")


def _must_divide(published: dict[str, Any], *names: str) -> None:
    """Each the next, where it is given."""
    for name, multiple in pairwise(names):
        if published[multiple] % (published[name] or 1):
            raise ValueError(
                f"{multiple} must be a multiple of {name}, got {published[multiple]} and "
                f"{published[name]}"
            )
