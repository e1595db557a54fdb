"""A whole step, operator after operator: compress, score, select, gather, attend."""

from typing import Any

import pytest
import torch
from torch import Tensor

from triselect import esa

HEADS, GROUPS, DIM, COMPRESSED = 32, 8, 128, 128  # Llama-3-8B


def step(
    q: Tensor, k: Tensor, v: Tensor, keys: esa.Compressed, maps: Tensor, top_k: int, **sizes: int
) -> esa.Attention:
    """C queries, whose own keys are the cache's last."""
    chunk, initial, local = q.shape[1], sizes["initial"], sizes["local"]
    tokens = k.shape[1]
    slots = torch.arange(tokens - chunk, tokens).expand(len(q), -1)
    if len(q) == 1:
        esa.compress(k[:, -chunk:], maps[1], out=keys, slots=slots)
    first, start = torch.full((len(q),), initial), torch.full((len(q),), tokens - chunk - local)
    compressed = esa.compress(q, maps[0]).values
    scores = esa.token_scores(compressed, keys.values, k_scale=keys.scale, start=first, end=start)
    index = esa.select_tokens(scores, top_k, start=first, end=start)
    return esa.selected_attention(q, q, k, v, index, num_initial=initial, start=start)


@pytest.mark.parametrize("chunk", [1, 3, 16])
def test_selecting_everything_is_attention(chunk):
    """What no one here wrote, SDPA, says the same where all tokens are selected."""
    generator = torch.Generator().manual_seed(chunk)
    q = torch.randn(1, chunk, 6, 16, generator=generator)
    k, v = torch.randn(2, 1, 200, 2, 16, generator=generator)
    maps = torch.randn(2, 8, 32, generator=generator)
    keys = esa.compress(k, maps[1])
    got = step(q, k, v, keys, maps, 1000, initial=4, local=20)
    mask = torch.ones(chunk, 200, dtype=torch.bool).tril(200 - chunk)
    q, k, v = (x.transpose(1, 2) for x in (q, k, v))
    expected = torch.nn.functional.scaled_dot_product_attention(q, k, v, mask, enable_gqa=True)
    torch.testing.assert_close(got.out, expected.transpose(1, 2))


def test_the_best_tokens_are_found():
    """Full rank compression loses nothing: the token that all heads ask for is attended to."""
    generator = torch.Generator().manual_seed(0)
    k = torch.randn(1, 300, 2, 16, generator=generator)
    v = torch.zeros(1, 300, 2, 16)
    v[0, 123] = 1.0
    q = 16 * k[:, 123:124].repeat_interleave(3, 2)
    maps = torch.linalg.qr(torch.randn(32, 32, generator=generator)).Q.expand(2, -1, -1)
    got = step(q, k, v, esa.compress(k, maps[1]), maps, 2, initial=4, local=20)
    assert got.out.min() > 0.99


@pytest.mark.parametrize(
    ("dtype", "share"),
    [(torch.bfloat16, 0.0625), (torch.int8, 132 / 4096), (torch.float8_e4m3fn, 132 / 4096)],
)
def test_compressed_keys_are_a_small_part_of_the_cache(dtype, share):
    k = torch.zeros(1, 64, GROUPS, DIM, dtype=torch.bfloat16)
    keys = esa.compress(k, torch.zeros(COMPRESSED, GROUPS * DIM), dtype=dtype)
    extra = keys.values.nbytes + (0 if keys.scale is None else keys.scale.nbytes)
    assert extra / (2 * k.nbytes) == pytest.approx(share)


@pytest.mark.skipif(
    not torch._C._dispatch_has_kernel_for_dispatch_key("triselect::token_scores", "CPU"),
    reason="the C++ extension was not built",
)
@pytest.mark.parametrize(("chunk", "tokens"), [(1, 262144), (64, 262144)])
def test_temporaries_do_not_grow_with_queries_times_tokens(chunk, tokens):
    """A score per token, and what a chunk needs for itself: no matter of a quarter of a million."""
    cache = torch.ones(1, 1, GROUPS, DIM, dtype=torch.bfloat16).expand(1, tokens, -1, -1)
    keys = esa.Compressed(
        torch.ones(1, tokens, COMPRESSED, dtype=torch.int8), torch.ones(1, tokens)
    )
    q = torch.ones(1, chunk, HEADS, DIM, dtype=torch.bfloat16)
    maps = torch.ones(2, COMPRESSED, GROUPS * DIM, dtype=torch.bfloat16) / 1024
    arguments: tuple[Any, ...] = (q, cache, cache, keys, maps, 2048)
    with torch.profiler.profile(profile_memory=True) as profile:
        got = step(*arguments, initial=128, local=4096)
    assert torch.equal(got.out, torch.ones_like(got.out))
    # What was allocated, whether or not it was given back in between.
    allocated = sum(
        event.self_cpu_memory_usage
        for event in profile.key_averages()
        if event.self_cpu_memory_usage > 0
    )
    scores = 4 * tokens
    assert scores <= allocated < scores + 2**20 + 2 * chunk * 2**17
