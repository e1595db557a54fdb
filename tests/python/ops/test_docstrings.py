"""The examples in the docstrings of public functions run, and there is one for each."""

import doctest
import importlib

import pytest

import triselect.ops

MODULES = [f"ops.{name}" for name in triselect.ops.__all__ if name[0].islower()]
MODULES += ["moe.balance"]


@pytest.mark.parametrize("name", MODULES)
def test_examples_run(name):
    module = importlib.import_module(f"triselect.{name}")
    results = doctest.testmod(module)
    assert results.attempted > 0
    assert results.failed == 0
