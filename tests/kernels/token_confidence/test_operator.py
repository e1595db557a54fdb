"""The operator among PyTorch's: opcheck, one compilation for every number of rows, meta."""

import numpy as np
import pytest
import torch

from triselect.ops import token_confidence
from triselect.ops.operator import has_kernel

from ..backends import DTYPES, opcheck
from ..compiling import assert_compiles_once
from ..memory import growth
from .cases import draws, every_backend, logits_of


@every_backend
def test_opcheck(backend):
    rng = np.random.default_rng(0)
    rows = torch.tensor([True, False, True])
    for dtype in DTYPES:
        logits = logits_of(rng, 3, 21, "normal", dtype)
        opcheck(
            "token_confidence",
            (logits, None, None, None, None, None, 1.0, "max_prob", -1, 0),
            backend,
        )
        drawn = draws(rng, 3).values()
        opcheck(
            "token_confidence", (logits, rows, *drawn, torch.ones(3), 1.0, "margin", 4, 7), backend
        )


@every_backend
def test_one_compilation_for_every_number_of_rows(backend, compiler):
    def confident(logits, rows, *drawn):
        of = dict(zip(("seed", "position", "step"), drawn, strict=True))
        return tuple(backend(logits, rows=rows, score="margin", mask_token=3, **of))

    def inputs(count):
        rng = np.random.default_rng(count)
        rows = torch.from_numpy(rng.random(count) < 0.7)
        return logits_of(rng, count, 77), rows, *draws(rng, count).values()

    assert_compiles_once(
        confident, inputs, compiler, compare=lambda a, b: torch.testing.assert_close(a, b)
    )


@every_backend
def test_one_compilation_for_every_temperature(backend, compiler):
    def inputs(count):
        rng = np.random.default_rng(count)
        return logits_of(rng, count, 77), torch.from_numpy(rng.uniform(0.1, 9, count)).float()

    assert_compiles_once(
        lambda logits, temperature: tuple(backend(logits, temperature=temperature)),
        inputs,
        compiler,
        compare=lambda a, b: torch.testing.assert_close(a, b),
    )


@every_backend
def test_compiled_with_a_float(backend, compiler):
    """Of a float torch.compile makes a constant: one graph each."""
    logits = logits_of(np.random.default_rng(0), 4, 50)
    compiled = torch.compile(
        lambda logits, temperature: tuple(backend(logits, temperature=temperature)),
        backend=compiler,
        fullgraph=True,
    )
    for temperature in (0.7, 0.3, 2.5):
        got = compiled(logits, temperature)
        torch.testing.assert_close(got, tuple(backend(logits, temperature=temperature)))


def test_meta_tensors_have_the_shapes():
    logits = torch.empty(5, 300, device="meta", dtype=torch.bfloat16)
    got = token_confidence(logits)
    assert [(x.shape, x.dtype) for x in got] == [
        ((5,), torch.int32),
        ((5,), torch.float32),
        ((5,), torch.float32),
    ]


@pytest.mark.gpu
def test_a_captured_graph_reads_new_logits():
    logits = torch.zeros(4, 20000, device="cuda")
    each = torch.zeros(4, dtype=torch.int64, device="cuda")
    drawn = {"seed": each, "position": each, "step": each}
    token_confidence(logits, **drawn)  # compiles
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        got = token_confidence(logits, **drawn)
    for seed in range(3):
        logits.copy_(logits_of(np.random.default_rng(seed), 4, 20000))
        each.fill_(seed)
        graph.replay()
        again = token_confidence(logits, **drawn)
        assert all(torch.equal(a, b) for a, b in zip(got, again, strict=True))


@every_backend
def test_nothing_of_the_size_of_the_logits(backend):
    if (
        backend.name == "eager"
        or backend.device != "cpu"
        or not has_kernel("token_confidence", "CPU")
    ):
        pytest.skip("plain PyTorch has copies; a device has memory of its own")
    logits = torch.zeros(32, 152064, dtype=torch.bfloat16)
    assert growth(lambda: backend(logits, score="margin")) < logits.nbytes / 4
