"""Fixtures that tests of several operators use."""

from .compiling import compiler, fresh_dynamo

__all__ = ["compiler", "fresh_dynamo"]
