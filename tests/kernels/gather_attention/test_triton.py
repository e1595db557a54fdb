"""The Triton kernels: small cases in the interpreter, and what only a GPU shows.

On a GPU the tests of every backend run them too (test_properties, test_invariants, test_memory).
"""

import pytest
import torch

from ..backends import DTYPES, Backend, assert_bits, every_dtype, every_index_dtype
from ..launches import launches, on_gpu
from .cases import (
    KINDS,
    OPERATORS,
    Step,
    attend,
    every_kind,
    exactly_empty,
    random_step,
    spoiled,
)
from .compare import assert_attention

# NumPy, the interpreter's engine, warns about infinities and NaN, which are meant to go through.
pytestmark = pytest.mark.filterwarnings("ignore::RuntimeWarning")

interpreted = Backend(attend, "triton", "cpu")
on_device = Backend(attend, "triton", "cuda")

SHAPES = {
    "one query": {},
    "chunk": {"queries": 5},
    "several tiles of rows": {"queries": 23, "shared": 4, "groups": 1},
    "one head to a group": {"shared": 1, "groups": 3},
    "8 heads to a group": {"shared": 8, "groups": 1, "queries": 2},
    "17 heads to a group": {"shared": 17, "groups": 1},
    "80 numbers": {"dim": 80},
    "7 numbers": {"dim": 7, "queries": 2},
    "1 number": {"dim": 1},
    "256 numbers": {"dim": 256, "batch": 1},
    "many tokens": {"tokens": 300, "selected": 150},
    "pages of 1": {"size": 1, "holes": 0.2},
    "pages of 7": {"size": 7, "holes": 0.3, "queries": 3},
    "only holes": {"size": 16, "holes": 1.0},
    "repeated": {"repeated": True, "selected": 80, "num_initial": 9},
}


@pytest.fixture(autouse=True)
def _programs(monkeypatch):
    """Few, so that small cases are shared out as large ones are on a device."""
    from triselect.kernels.gather_attention import triton

    if not torch.cuda.is_available():
        monkeypatch.setattr(triton, "PROGRAMS", 12)


@pytest.mark.interpret
@every_kind
@pytest.mark.parametrize("shape", SHAPES.values(), ids=SHAPES.keys())
def test_shapes(kind, shape):
    step = spoiled(kind, random_step(**shape))
    assert_attention(kind, interpreted(kind, *step), step)


@pytest.mark.interpret
@every_dtype
@pytest.mark.parametrize("programs", [1, 7, 1000])
def test_shares(dtype, programs, monkeypatch):
    """All tokens to one program; to some; more programs than tokens."""
    from triselect.kernels.gather_attention import triton

    monkeypatch.setattr(triton, "PROGRAMS", programs)
    step = random_step(batch=1, groups=1, queries=2, tokens=180, selected=90, dtype=dtype)
    step = step._replace(start=torch.tensor([71]), end=torch.tensor([170]))
    assert_attention("selected", interpreted("selected", *step), step)


@pytest.mark.interpret
@every_kind
@pytest.mark.parametrize("layout", ["heads first", "transposed", "sliced", "narrow"])
def test_layouts(kind, layout):
    step = random_step(queries=2, tokens=40, size=8)
    assert_bits(interpreted(kind, *step, layout=layout), interpreted(kind, *step))


@pytest.mark.interpret
@every_kind
def test_without_bounds(kind):
    step = random_step(queries=2, tokens=40, rotate=False)
    step = step._replace(end=None, start=step.start if kind == "selected" else None)
    assert_attention(kind, interpreted(kind, *step), step)


@pytest.mark.interpret
def test_a_window_from_the_first_token_leaves_nothing_far():
    step = random_step(tokens=40)._replace(start=None)
    zeros = step._replace(start=torch.zeros(2, dtype=torch.long))
    assert_bits(interpreted("selected", *step), interpreted("selected", *zeros))
    assert_bits(interpreted("selected", *step), interpreted("window", *zeros))


@pytest.mark.interpret
@every_kind
def test_nothing(kind):
    """No queries, no tokens, nothing among the tokens."""
    assert interpreted(kind, *random_step(queries=0)).out.shape == (2, 0, 6, 16)
    assert exactly_empty(interpreted(kind, *random_step(tokens=0)))
    step = random_step(selected=0, num_initial=0)
    nothing = torch.zeros(2, dtype=torch.long)
    assert exactly_empty(interpreted(kind, *step._replace(start=nothing, end=nothing)))


@pytest.mark.interpret
@pytest.mark.parametrize("value", [torch.nan, torch.inf, -torch.inf])
@pytest.mark.parametrize("what", ["k", "v"])
def test_later_tokens_of_a_chunk(what, value):
    step = random_step(batch=1, queries=40, tokens=90, groups=1, shared=1)
    step = step._replace(start=torch.tensor([10]), end=torch.tensor([90]))
    cache = getattr(step, what).clone()
    cache[:, 70] = value  # that of query 20
    got = interpreted("window", *step._replace(**{what: cache}))
    before = interpreted("window", *step)
    assert_bits((got.out[:, :20], got.lse[:, :20]), (before.out[:, :20], before.lse[:, :20]))
    assert not got.out[:, 20:].isfinite().any()


def wild_steps(indices: torch.dtype) -> list[tuple[Step, Step]]:
    """Steps with values as far out of range as can be, and the same without what is out of range.

    On a device no one looks at the values; on the CPU the operators would refuse them.
    """
    info = torch.iinfo(indices)
    step = random_step(
        groups=1, queries=3, tokens=40, size=8, num_initial=3, rotate=False, indices=indices
    )
    rows = torch.tensor(
        [[info.min, -5, 7, 7, 12, 11, 30, 40, 41, info.max]] * 2, dtype=indices
    )  # 11 descends; 40 is the first that is not there
    real = torch.tensor([[7, 12, 30] + [-1] * 7] * 2, dtype=indices)
    start, end = step.start * 0 + 33, step.end * 0 + 40
    far = step._replace(index=rows, start=start, end=end)
    pairs = [(far, far._replace(index=real))]
    table = step.block_table.clone()
    table[0, 2], table[1, 4] = len(step.k), info.max
    holes = step.block_table.clone()
    holes[0, 2] = holes[1, 4] = -1
    here = step._replace(start=start, end=end)
    pairs.append((here._replace(block_table=table), here._replace(block_table=holes)))
    pairs.append((here._replace(block_table=-table - 2), here._replace(block_table=table * 0 - 1)))
    for high in (41, info.max):
        late = step._replace(start=step.start * 0 + high, end=end)
        pairs.append((late, late._replace(start=step.start * 0 + 40)))
    for low in (-1, info.min):
        early = step._replace(start=step.start * 0 + low, end=step.start * 0 + low)
        pairs.append((early, early._replace(start=step.start * 0, end=step.end * 0)))
    return pairs


@pytest.mark.interpret
@every_kind
@every_index_dtype
def test_whatever_is_out_of_range_does_not_exist(kind, dtype, monkeypatch):
    from triselect.kernels.gather_attention import triton

    monkeypatch.setattr(triton, "PROGRAMS", 1)
    kernel = getattr(triton, OPERATORS[kind].__name__)
    for wild, real in wild_steps(dtype):
        got, expected = (kernel(*step.of(kind).values()) for step in (wild, real))
        torch.testing.assert_close(got, expected)
    assert got[1].isneginf().all()


@pytest.mark.interpret
@every_kind
def test_a_table_of_angles_that_is_too_short(kind):
    """Tokens that it has no row for are passed over."""
    from triselect.kernels.gather_attention import triton

    step = random_step(batch=1, queries=2, tokens=40)
    step = step._replace(start=torch.tensor([10]), end=torch.tensor([40]))
    short = step._replace(cos=step.cos[:25], sin=step.sin[:25])
    kernel = getattr(triton, OPERATORS[kind].__name__)
    table = (torch.arange(40) < 35).long()[None] - 1  # pages of one token, holes behind
    k, v = (x.expand(1, -1, -1, -1)[0, :, None] for x in (step.k, step.v))
    table = torch.where(table == 0, torch.arange(40), -1)
    expected = step._replace(k=k, v=v, block_table=table)
    if kind == "far":
        expected = step
    got, there = (kernel(*s.of(kind).values()) for s in (short, expected))
    torch.testing.assert_close(got[0], there[0])
    torch.testing.assert_close(got[1], there[1])


@pytest.mark.interpret
def test_offsets_beyond_32_bits():
    """Tokens 2**29 numbers apart; NumPy's memory costs nothing until it is written."""
    import numpy as np

    far = torch.from_numpy(np.empty(5 * 2**29 + 64, np.float32))
    step = random_step(batch=1, tokens=6, selected=3, num_initial=1)
    step = step._replace(start=torch.tensor([4]), end=torch.tensor([6]))
    k = far.as_strided((1, 6, 2, 16), (0, 2**29, 16, 1))
    v = far[32:].as_strided((1, 6, 2, 16), (0, 2**29, 16, 1))
    k.copy_(step.k)
    v.copy_(step.v)
    for kind in KINDS:
        assert_attention(kind, interpreted(kind, *step._replace(k=k, v=v)), step)


@pytest.mark.interpret
def test_no_queries_launch_nothing(monkeypatch):
    from triselect.kernels.gather_attention import triton

    monkeypatch.setattr(triton, "attend", None)
    for kind in KINDS:
        interpreted(kind, *random_step(queries=0))


LLAMA = {"groups": 8, "shared": 4, "dim": 128}


@pytest.mark.gpu
@every_kind
@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("queries", [1, 7, 130])
@pytest.mark.parametrize("size", [None, 64])
def test_long_caches(kind, dtype, queries, size):
    step = random_step(
        tokens=3000, selected=500, num_initial=128, queries=queries, size=size, dtype=dtype, **LLAMA
    )
    step = spoiled(kind, step)
    assert_attention(kind, on_device(kind, *step), step)


@pytest.mark.gpu
@every_kind
@every_index_dtype
def test_wild_values_on_the_device(kind, dtype):
    for wild, real in wild_steps(dtype):
        torch.testing.assert_close(on_device(kind, *wild), on_device(kind, *real))


@pytest.mark.gpu
@every_kind
def test_launches(kind):
    """Few rows share the tokens out and are put together; many do not."""
    arguments = random_step(batch=1, tokens=8192, selected=2048, **LLAMA).of(kind)
    assert launches(OPERATORS[kind], **arguments) == ["attend", "combine"]
    arguments = random_step(batch=33, tokens=300, **LLAMA).of(kind)
    assert launches(OPERATORS[kind], **arguments) == ["attend"]


@pytest.mark.gpu
@every_kind
def test_a_captured_graph_attends_to_new_tokens(kind):
    """Lists, ranges, queries and caches may all change; nothing synchronises."""
    step = Step(*map(on_gpu, random_step(tokens=500, selected=64, **LLAMA)))
    call = lambda: OPERATORS[kind](**step.of(kind))  # noqa: E731
    call()  # compiles
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        got = call()
    for seed in range(1, 4):
        for mine, new in zip(
            step, random_step(seed, tokens=500, selected=64, **LLAMA), strict=True
        ):
            if isinstance(mine, torch.Tensor):
                mine.copy_(new)
        graph.replay()
        assert_bits(got, call())
