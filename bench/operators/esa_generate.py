"""A decoding step of a Llama-type model with ESA enabled, against transformers as it is.

The model has random weights and the caches random tokens, put there without reading a text: what
is timed is what `generate` does for each token behind so many, in bfloat16. ESA with the paper's
budget, 128 + 2048 + 4096 tokens. "all tokens (ours)" is ESA told to attend to everything: what
remains of the difference is what selecting brings. Offloaded: all but 16,384 tokens of each layer
are in the host's memory, which on a CPU is the same memory. DynamicCache is what `generate` takes
of itself: it copies the whole cache for every token, where StaticCache does not.
"""

from collections.abc import Callable
from functools import partial
from typing import Any

import torch
from torch import Tensor

from bench.device.records import OURS
from bench.registry import Case, Small, Work
from triselect import esa

OPERATORS = ("compress", "token_scores", "select_tokens", "selected_attention")
OPERATOR = OPERATORS[3]
INT8 = "int8 keys (ours)"
HOST = "offloaded (ours)"
ALL = "all tokens (ours)"
DYNAMIC, STATIC = "SDPA, DynamicCache", "SDPA, StaticCache"
OFFLOADED = 16384  # tokens that stay on the device
DIM = 64  # numbers of a compressed key, of 256 of a key
SIZES = {
    **{"hidden_size": 1024, "intermediate_size": 2816, "num_hidden_layers": 8},
    **{"num_attention_heads": 16, "num_key_value_heads": 4, "vocab_size": 32000},
}
FEW = {
    **{"hidden_size": 64, "intermediate_size": 64, "num_hidden_layers": 2},
    **{"num_attention_heads": 4, "num_key_value_heads": 2, "vocab_size": 100},
}


def llama(sizes: dict[str, int], device: str) -> Callable[[], Any]:
    """Makes models that share their weights."""
    from transformers import LlamaConfig, LlamaForCausalLM

    def one(weights: dict[str, Tensor] | None = None) -> Any:
        with torch.device("meta" if weights else device):
            config = LlamaConfig(**sizes, max_position_embeddings=2**20)  # type: ignore[arg-type]
            config.dtype = torch.bfloat16
            made = LlamaForCausalLM(config).eval()
        if weights is None:
            return made.bfloat16()
        rotary = first.model.rotary_emb.inv_freq
        made.load_state_dict(weights, assign=True)
        made.model.rotary_emb.inv_freq = rotary
        return made

    torch.manual_seed(0)
    first = one()
    return lambda: one(first.state_dict())


def compressors(sizes: dict[str, int], device: str) -> list[esa.Compressor]:
    heads, groups = sizes["num_attention_heads"], sizes["num_key_value_heads"]
    head_dim = sizes["hidden_size"] // heads
    width = groups * head_dim
    generator = torch.Generator(device).manual_seed(1)
    maps = torch.randn(2, min(DIM, width), width, generator=generator, device=device) / width**0.5
    return [esa.Compressor(*maps, heads, groups, head_dim)] * sizes["num_hidden_layers"]


def steps(
    sizes: dict[str, int], tokens: int, device: str, next_token: Tensor
) -> dict[str, Callable[[], Callable[..., Tensor]]]:
    """By provider: fills a cache with `tokens` and returns what decodes one more."""
    from transformers import DynamicCache, StaticCache

    from triselect import hf

    model = llama(sizes, device)
    groups = sizes["num_key_value_heads"]
    shape = (1, tokens, groups, sizes["hidden_size"] // sizes["num_attention_heads"])
    generator = torch.Generator(device).manual_seed(0)
    # The same in every layer: caches differ by what they do, not by what they hold.
    k, v = (torch.randn(shape, generator=generator, device=device).bfloat16() for _ in range(2))
    room = tokens + 8

    def with_esa(config: esa.Config, offload: int | None = None) -> Callable[..., Tensor]:
        mine = model()
        exact = config.scorer == "exact"
        enabled = hf.enable_esa(mine, config, None if exact else compressors(sizes, device))
        cache = enabled.new_cache(room, offload=offload)
        for layer in range(sizes["num_hidden_layers"]):
            at = cache.esa.chunk(layer, k, None)
            cache.esa.store(layer, at, k, v, k, cache.esa.compressor(layer, of_heads(sizes, k), k))
        cache.advance(tokens, [0])

        @torch.inference_mode()
        def step(backend: str = "auto") -> Tensor:
            enabled.backend = backend
            logits: Tensor = mine(next_token, past_key_values=cache).logits
            cache.crop(-1)
            return logits

        return step

    def with_theirs(of: Callable[[], Any]) -> Callable[..., Tensor]:
        mine, cache = model(), of()
        mine.set_attn_implementation("sdpa")
        for layer in range(sizes["num_hidden_layers"]):
            cache.update(k.transpose(1, 2), v.transpose(1, 2), layer)

        @torch.inference_mode()
        def step() -> Tensor:
            logits: Tensor = mine(next_token, past_key_values=cache).logits
            back(cache, tokens)
            return logits

        return step

    everything = esa.Config(scorer="exact", positions="original", top_k=max(3, tokens))
    fixed = partial(StaticCache, config=model().config, max_cache_len=room)
    return {
        OURS: partial(with_esa, esa.Config(dim=DIM)),
        INT8: partial(with_esa, esa.Config(dim=DIM, key_dtype=torch.int8)),
        HOST: partial(with_esa, esa.Config(dim=DIM), OFFLOADED),
        ALL: partial(with_esa, everything),
        DYNAMIC: partial(with_theirs, DynamicCache),
        STATIC: partial(with_theirs, fixed),
    }


def build(sizes: dict[str, int], tokens: int, device: str, compiler: str | None) -> Work:
    next_token = torch.ones(1, 1, dtype=torch.long, device=device)
    makers = steps(sizes, tokens, device, next_token)
    calls = {name: make() for name, make in makers.items()}

    def verify(provider: str, result: Tensor) -> None:
        if provider in (OURS, INT8, HOST):
            expected = calls[provider]("eager")
        else:  # all tokens
            expected = calls[STATIC if provider == DYNAMIC else DYNAMIC]()
        spread = float(expected.float().std())  # another token differs by as much
        torch.testing.assert_close(result, expected, atol=0.2 * spread, rtol=0)

    width = sizes["num_key_value_heads"] * sizes["hidden_size"] // sizes["num_attention_heads"]
    of_layer = 2 * width * min(tokens, esa.Config().budget) + min(DIM, width) * tokens
    weights = sum(p.nbytes for p in llama(sizes, "meta")().parameters())
    return Work(
        calls=calls,
        unavailable={},
        refresh=lambda i: next_token.fill_(i + 2),
        verify=verify,
        bytes=weights + 2 * of_layer * sizes["num_hidden_layers"],
        data="a random model",
    )


def of_heads(sizes: dict[str, int], k: Tensor) -> Tensor:
    """Queries as many as the model has heads: of these only the shape is asked for."""
    return k[:, :1].repeat(1, 1, sizes["num_attention_heads"] // k.shape[2], 1)


def back(cache: Any, tokens: int) -> None:
    """The cache before the last token."""
    for layer in cache.layers:
        if hasattr(layer, "cumulative_length"):  # static: the place is written to again
            layer.cumulative_length.fill_(tokens)
        else:
            layer.crop(-1)


def case(label: str, sizes: dict[str, int], tokens: int) -> Case:
    return Case(label, {"tokens": tokens}, torch.bfloat16, partial(build, sizes, tokens))


LABEL = "Llama type, 158 M"
CASES = [case(LABEL, SIZES, tokens) for tokens in (131072, 32768, 8192, 16384)]
TINY = [case("Llama type, tiny", FEW, 100)]


def small(name: str, scorer: Any) -> Small:
    """A text in two parts, most of which is not read again, and a token behind it."""
    heads, groups, dim, tokens = 4, 2, 8, 40
    maps = esa.Compressor(torch.eye(16), torch.eye(16), heads, groups, dim)
    config = esa.Config(initial=2, local=5, top_k=6, chunk=16, dim=16, scorer=scorer)

    def inputs(seed: int) -> list[Tensor]:
        generator = torch.Generator().manual_seed(seed)
        shapes = ((heads, dim), (groups, dim), (groups, dim))
        return [torch.randn(2, tokens, *shape, generator=generator) for shape in shapes]

    def call(q: Tensor, k: Tensor, v: Tensor, *, backend: str = "auto") -> list[Tensor]:
        cache = esa.Cache(config, compressors=[maps], capacity=tokens)
        rotary = esa.Rotary.of(dim)
        parts = zip(*(x.split([30, 9, 1], 1) for x in (q, k, v)), strict=True)
        return [esa.attend(*part, cache, 0, rotary=rotary, backend=backend) for part in parts]

    return Small(name, inputs, call)


SMALL = [small("compressed keys", "compressed"), small("all heads", "exact")]
