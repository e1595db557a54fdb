"""The examples in the docstrings of public functions run, and there is one for each."""

import doctest
import importlib

import pytest

import triselect.ops

FUNCTIONS = [getattr(triselect.ops, name) for name in triselect.ops.__all__ if name[0].islower()]
MODULES = sorted({function.__module__ for function in FUNCTIONS} | {"triselect.moe.balance"})


@pytest.mark.parametrize("function", FUNCTIONS, ids=lambda function: function.__name__)
def test_there_is_an_example(function):
    assert ">>> " in function.__doc__


@pytest.mark.parametrize("name", MODULES)
def test_examples_run(name):
    module = importlib.import_module(name)
    results = doctest.testmod(module)
    assert results.attempted > 0
    assert results.failed == 0
