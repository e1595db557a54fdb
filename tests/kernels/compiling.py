"""The same answers from a compiled function, compiled once for all numbers of tokens."""

import shutil
from collections.abc import Callable
from typing import Any

import pytest
import torch

from .backends import assert_bits

TOKENS = (2, 7, 64, 333)


@pytest.fixture
def fresh_dynamo():
    torch._dynamo.reset()
    yield
    torch._dynamo.reset()


@pytest.fixture(params=["aot_eager", pytest.param("inductor", marks=pytest.mark.slow)])
def compiler(request, fresh_dynamo):
    if request.param == "inductor" and not (shutil.which("g++") or shutil.which("clang++")):
        pytest.skip("inductor needs a C++ compiler")
    return request.param


def no_recompilation():
    return torch._dynamo.config.patch(error_on_recompile=True)


def assert_compiles_once(
    function: Callable[..., Any],
    inputs: Callable[[int], tuple[Any, ...]],
    compiler: str,
    few: tuple[int, ...] = (1, 0),
    wrap: Callable[[Callable], Callable] = lambda function: function,
    compare: Callable[[Any, Any], None] = assert_bits,
) -> None:
    """One graph gives what `function` gives, on the `inputs` of any number of tokens.

    `wrap` makes of either function what is compared, such as its gradients. Dynamo itself compiles
    the token counts `few` apart.
    """
    compiled = wrap(torch.compile(function, backend=compiler, fullgraph=True, dynamic=True))
    plain = wrap(function)

    def assert_same(tokens: int) -> None:
        arguments = inputs(tokens)
        compare(compiled(*arguments), plain(*arguments))

    assert_same(TOKENS[0])
    with no_recompilation():
        for tokens in TOKENS:
            assert_same(tokens)
    for tokens in few:
        assert_same(tokens)
