"""Formulas no one here wrote: PyTorch's scaled_dot_product_attention over the same tokens."""

import pytest
import torch
from torch import Tensor
from torch.nn.functional import scaled_dot_product_attention

from ..backends import every_dtype
from .cases import Step, every_backend, every_kind, random_step

CLOSE = {
    torch.float32: {"rtol": 2e-5, "atol": 2e-6},
    torch.float16: {"rtol": 4e-3, "atol": 2e-3},
    torch.bfloat16: {"rtol": 3e-2, "atol": 2e-2},
}


def dense(q: Tensor, k: Tensor, v: Tensor, scale: float, mask: Tensor | None = None) -> Tensor:
    """(B, C, H, D), with grouped heads as PyTorch groups them."""
    q, k, v = (x.transpose(1, 2) for x in (q, k, v))
    out = scaled_dot_product_attention(q, k, v, mask, scale=scale, enable_gqa=True)
    return out.transpose(1, 2)


def full(step: Step) -> Step:
    """A list of all tokens, and a window of all, without rotation."""
    batch = len(step.q)
    return step._replace(
        q_far=step.q,
        index=torch.arange(step.tokens).expand(batch, -1),
        num_initial=0,
        start=None,
        end=None,
        cos=None,
        sin=None,
    )


def causal(queries: int, tokens: int) -> Tensor:
    return torch.ones(queries, tokens, dtype=torch.bool).tril(tokens - queries)


@every_backend
@every_dtype
@pytest.mark.parametrize("queries", [1, 9])
def test_a_list_of_everything_is_attention(backend, queries, dtype):
    step = full(random_step(queries=queries, tokens=130, dim=64, dtype=dtype))
    expected = dense(step.q, step.k, step.v, step.scale)
    torch.testing.assert_close(backend("far", *step).out, expected, **CLOSE[dtype])


@every_backend
@every_dtype
@pytest.mark.parametrize("queries", [1, 9, 130])
def test_a_window_of_everything_is_causal_attention(backend, queries, dtype):
    """With one query, it is dense decoding."""
    step = full(random_step(queries=queries, tokens=130, dim=64, dtype=dtype))
    expected = dense(step.q, step.k, step.v, step.scale, causal(queries, 130))
    torch.testing.assert_close(backend("window", *step).out, expected, **CLOSE[dtype])


@every_backend
@every_dtype
@pytest.mark.parametrize("queries", [1, 5])
def test_all_far_tokens_and_the_window_are_causal_attention(backend, queries, dtype):
    """Some of the far tokens are initial, the others listed; a third of the tokens is near."""
    step = full(random_step(queries=queries, tokens=130, dim=64, dtype=dtype))
    step = step._replace(num_initial=11, start=torch.tensor([90, 125]), end=torch.tensor([130] * 2))
    expected = dense(step.q, step.k, step.v, step.scale, causal(queries, 130))
    torch.testing.assert_close(backend("selected", *step).out, expected, **CLOSE[dtype])


@every_backend
def test_heads_attend_to_the_keys_of_their_group(backend):
    """Head h has those of group h // 3: every group's values are its number."""
    step = random_step(groups=4, shared=3, queries=2, tokens=40)
    groups = torch.arange(4.0)[:, None]
    step = step._replace(v=groups.expand(4, 16).expand_as(step.v), num_initial=3)
    for kind in ("far", "window", "selected"):
        out, lse = backend(kind, *step)
        heads = torch.arange(12.0) // 3
        expected = heads[:, None].where((lse > -torch.inf)[..., None], 0.0).expand_as(out)
        torch.testing.assert_close(out, expected)


@every_backend
@every_kind
def test_the_keys_of_another_group_change_nothing(backend, kind):
    step = random_step(groups=3, shared=2, queries=3)
    k, v = step.k.clone(), step.v.clone()
    k[:, :, 1] = torch.nan
    v[:, :, 1] = torch.nan
    out, lse = backend(kind, *step._replace(k=k, v=v))
    before = backend(kind, *step)
    for heads in (slice(0, 2), slice(4, 6)):
        assert torch.equal(out[:, :, heads], before.out[:, :, heads])
        assert torch.equal(lse[:, :, heads], before.lse[:, :, heads])
    assert out[:, :, 2:4][before.lse[:, :, 2:4] > -torch.inf].isnan().all()


@every_backend
def test_the_logarithm_of_the_sum(backend):
    """Of keys that are zero, as many as there are."""
    step = random_step(batch=3, tokens=50, selected=20)
    step = step._replace(k=step.k * 0, start=torch.tensor([50, 50, 2]), num_initial=7)
    index = torch.full((3, 20), -1)
    index[0, :4] = torch.tensor([3, 8, 8, 49])  # an initial one, and one twice
    lse = backend("far", *step._replace(index=index)).lse
    expected = torch.tensor([9.0, 7.0, 2.0]).log()[:, None, None].expand_as(lse)
    torch.testing.assert_close(lse, expected)
