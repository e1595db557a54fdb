"""Memory: what is not attended to has no influence, and no cache is ever copied."""

import numpy as np
import pytest
import torch

from ..backends import assert_bits, every_dtype
from .cases import attended, every_backend, every_kind, random_step, spoiled
from .compare import assert_attention

WILD = [torch.nan, torch.inf, -torch.inf]


@every_backend
@every_kind
@every_dtype
@pytest.mark.parametrize("size", [None, 8])
@pytest.mark.parametrize("value", WILD)
def test_what_no_one_attends_to(backend, kind, dtype, size, value):
    step = random_step(queries=3, tokens=64, size=size, holes=0.2, dtype=dtype)
    expected = backend(kind, *spoiled(kind, step, 0.0))
    assert_bits(backend(kind, *spoiled(kind, step, value)), expected)


@every_backend
@pytest.mark.parametrize("value", WILD)
@pytest.mark.parametrize("what", ["k", "v"])
@pytest.mark.parametrize("kind", ["window", "selected"])
@pytest.mark.parametrize("queries", [6, 40])
def test_later_tokens_of_a_chunk(backend, kind, what, queries, value):
    """Queries attend to tokens up to their own: what is behind may be anything."""
    step = random_step(batch=1, queries=queries, tokens=90)
    step = step._replace(start=torch.tensor([10]), end=torch.tensor([90]))
    at = queries // 2  # of the chunk
    cache = getattr(step, what).clone()
    cache[:, 90 - queries + at] = value
    got = backend(kind, *step._replace(**{what: cache}))
    before = backend(kind, *step)
    assert_bits((got.out[:, :at], got.lse[:, :at]), (before.out[:, :at], before.lse[:, :at]))
    assert not got.out[:, at:].isfinite().any()


@every_backend
@every_kind
@pytest.mark.parametrize("what", ["q", "k", "v"])
def test_nan_goes_to_those_who_attend_to_it(backend, kind, what):
    step = random_step(batch=1, queries=3, tokens=50)
    step = step._replace(start=torch.tensor([40]), end=torch.tensor([50]))
    if what == "q":
        for name in ("q_far", "q"):
            q = getattr(step, name).clone()
            q[0, 1, 2, 5] = torch.nan
            step = step._replace(**{name: q})
        wild = torch.zeros(1, 3, 6, dtype=torch.bool)
        wild[0, 1, 2] = True
    else:
        token = 2 if kind == "far" else 48  # 2 is an initial one
        cache = getattr(step, what).clone()
        cache[0, token, 1, 5] = torch.nan
        step = step._replace(**{what: cache})
        wild = torch.from_numpy(attended(kind, step))[:, :, token, None].repeat(1, 1, 6)
        wild[:, :, :3] = False  # heads of the first group
    out = backend(kind, *step).out
    assert wild.any()
    assert out[..., 5][wild].isnan().all()
    assert out[~wild].isfinite().all()


@every_backend
@every_kind
def test_a_million_tokens(backend, kind):
    """2**20 places of a cache, of which a few rows of memory hold all."""
    step = random_step(batch=1, tokens=64, selected=0)
    k, v = (x.repeat(1, 2**14, 1, 1) if x is None else x for x in (step.k, step.v))
    k, v = (x[:, :1].expand(1, 2**20, -1, -1) for x in (k, v))
    index = torch.tensor([[5, 2**19, 2**20 - 1]], dtype=torch.int32)
    bounds = torch.tensor([2**20 - 7]), torch.tensor([2**20])
    step = step._replace(k=k, v=v, index=index, start=bounds[0], end=bounds[1], num_initial=3)
    out, lse = backend(kind, *step._replace(cos=None, sin=None))
    expected = v[:, :1].repeat_interleave(3, 2)
    torch.testing.assert_close(out, expected.expand_as(out))
    count = {"far": 5, "window": 7, "selected": 12}[kind]
    q = step.q_far if kind == "far" else step.q
    s = (q * k[:, :1].repeat_interleave(3, 2)).sum(-1) * step.scale
    if kind != "selected":
        torch.testing.assert_close(lse, s + float(np.log(count)))


@every_backend
@every_kind
def test_offsets_beyond_32_bits(backend, kind):
    """Tokens 2**29 numbers apart; NumPy's memory costs nothing until it is written."""
    if backend.device != "cpu":
        pytest.skip("a device would take all of it")
    far = torch.from_numpy(np.empty(5 * 2**29 + 64, np.float32))
    step = random_step(batch=1, tokens=6, selected=3, num_initial=1)
    step = step._replace(start=torch.tensor([4]), end=torch.tensor([6]))
    k = far.as_strided((1, 6, 2, 16), (0, 2**29, 16, 1))
    v = far[32:].as_strided((1, 6, 2, 16), (0, 2**29, 16, 1))
    k.copy_(step.k)
    v.copy_(step.v)
    assert_attention(kind, backend(kind, *step._replace(k=k, v=v)), step)


@every_backend
@every_kind
@pytest.mark.parametrize("layout", ["contiguous", "heads first"])
def test_no_copy_of_the_cache(backend, kind, layout):
    """64 tokens of 64 Ki: what is allocated has the size of the tokens, not of the cache."""
    step = random_step(batch=1, tokens=2**16, dim=32, selected=64, num_initial=0, rotate=False)
    step = step._replace(start=torch.tensor([2**16 - 64]), end=torch.tensor([2**16]))
    if layout == "heads first":
        k, v = (x.transpose(1, 2).contiguous().transpose(1, 2) for x in (step.k, step.v))
        step = step._replace(k=k, v=v)
    step = type(step)(*map(backend.put, step))
    call = lambda: backend(kind, *step)  # noqa: E731
    call()
    if backend.device == "cuda":
        torch.cuda.reset_peak_memory_stats()
        before = torch.cuda.memory_allocated()
        call()
        most = torch.cuda.max_memory_allocated() - before
    else:
        with torch.profiler.profile(profile_memory=True) as profile:
            call()
        most = max((e.self_cpu_memory_usage for e in profile.key_averages()), default=0)
    cache = step.k.nbytes
    assert most < cache / 16


@every_backend
@every_kind
def test_nothing_stays_of_the_call_before(backend, kind):
    """Whatever a kernel keeps between calls."""
    step = random_step(queries=3)
    first = backend(kind, *step)
    backend(kind, *step._replace(q_far=step.q_far * torch.nan, q=step.q * torch.nan))
    assert_bits(backend(kind, *step), first)
