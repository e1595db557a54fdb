"""Every backend routes by ids as the reference does, whatever the table, the dtypes or layout."""

import pytest
import torch

from ..backends import LAYOUTS, assert_bits, every_dtype, every_index_dtype
from ..grouped_topk.cases import every_scoring
from .cases import assert_same_routing, every_backend, random_call

every_source = pytest.mark.parametrize(
    ("vocabulary", "k"), [(40, 3), (40, 0), (None, 3)], ids=["table", "vector", "hash"]
)


@every_backend
@every_index_dtype
@every_source
@pytest.mark.parametrize("groups", [1, 4])
@pytest.mark.parametrize("tokens", [0, 1, 15, 16, 17, 300])
def test_experts_alone(backend, tokens, groups, vocabulary, k, dtype):
    call = random_call(tokens, vocabulary, k, groups, dtype=dtype)
    assert_same_routing(backend(*call), call)


@every_backend
@every_dtype
@every_scoring
@every_source
@pytest.mark.parametrize("renormalize", [False, True])
def test_weights(backend, vocabulary, k, scoring_func, renormalize, dtype):
    call = random_call(
        vocabulary=vocabulary,
        k=k,
        groups=3,
        logits=dtype,
        scoring_func=scoring_func,
        renormalize=renormalize,
        routed_scaling_factor=2.5,
    )
    assert_same_routing(backend(*call), call)


@every_backend
@every_source
@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize("logits", [None, torch.float32, torch.bfloat16])
def test_layouts(backend, vocabulary, k, layout, logits):
    """Of ids, table, domains and logits, all at once."""
    call = random_call(21, vocabulary, k, groups=2, logits=logits, padding=0.05)
    got = backend(*call, layout=layout)
    plain = type(call)(
        *(v.contiguous() if isinstance(v, torch.Tensor) else v for v in call.stored(layout))
    )
    assert_same_routing(got, plain)
    assert_bits(got, backend(*plain))


@every_backend
@pytest.mark.parametrize("size", [1, 2, 3, 64, 100, 1000, 2**20])
@pytest.mark.parametrize("seed", [0, 1, 2**31, 2**32 - 1])
def test_hash(backend, size, seed):
    for k in {1, min(size, 7), min(size, 8)}:
        call = random_call(500, None, k, groups=2, size=size)._replace(seed=seed)
        assert_same_routing(backend(*call), call)


@every_backend
@pytest.mark.parametrize("logits", [None, torch.float32])
def test_the_same_expert_twice(backend, logits):
    """A table may say so: each of the two has the expert's weight."""
    call = random_call(50, logits=logits, renormalize=True, size=4, k=4)
    call.table[::2] = call.table[::2, :1]
    got = backend(*call)
    assert_same_routing(got, call)
    assert (got.experts.sort(-1).values.diff(dim=-1) == 0).any()


@every_backend
@pytest.mark.parametrize("logits", [None, torch.float32])
def test_a_vocabulary_of_a_real_model(backend, logits):
    call = random_call(2000, 150_000, 6, size=256, logits=logits, renormalize=True)
    got = backend(*call)
    assert_same_routing(got, call)
    assert_bits(got, backend(*call))


@every_backend
@every_scoring
def test_a_token_is_routed_alone_as_in_any_batch(backend, scoring_func):
    call = random_call(50, logits=torch.float32, renormalize=True, scoring_func=scoring_func)
    call = call._replace(domains=None)
    whole = backend(*call)
    for rows in (slice(1), slice(7, 8), slice(49, 50), slice(3, 20)):
        part = call._replace(token_ids=call.token_ids[rows], logits=call.logits[rows])
        assert_bits(backend(*part), [t[rows] for t in whole])
