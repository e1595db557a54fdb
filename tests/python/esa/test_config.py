"""`Config`: what is refused, and settings of single layers."""

import pytest
import torch

from triselect.esa import Config

BAD = {
    "initial": ({"initial": -1}, "initial must be between 0 and"),
    "local": ({"local": -1}, "local must be between 0 and"),
    "top_k": ({"top_k": 0}, "top_k must be between 1 and"),
    "proximity": ({"proximity": -1}, "proximity must be between 0 and"),
    "chunk": ({"chunk": 0}, "chunk must be between 1 and"),
    "dim": ({"dim": 0}, "dim must be between 1 and"),
    "scorer": ({"scorer": "best"}, "scorer must be one of"),
    "positions": ({"positions": "yarn"}, "positions must be one of"),
    "key_dtype": ({"key_dtype": torch.int32}, "key_dtype must be a float or int8, got torch.int32"),
    "keys of the exact scorer": (
        {"key_dtype": torch.int8, "scorer": "exact"},
        'key_dtype is that of compressed keys, and scorer="exact" has none',
    ),
    "a ball larger than the budget": (
        {"proximity": 4, "top_k": 8},
        "proximity 4 selects 9 tokens around one, more than top_k, 8",
    ),
    "layers": ({"layers": {-1: {}}}, "layers must map numbers of layers, 0 and up, got -1"),
    "setting of a layer": ({"layers": {2: {"chunk": 3}}}, r"layers\[2\] has \['chunk'\]"),
    "value in a layer": ({"layers": {2: {"top_k": 0}}}, "top_k must be between 1 and"),
}


@pytest.mark.parametrize("case", BAD)
def test_bad_settings(case):
    settings, message = BAD[case]
    with pytest.raises(ValueError, match=message):
        Config(**settings)


def test_bad_types():
    with pytest.raises(TypeError, match="top_k must be an int"):
        Config(top_k=2.0)


def test_layers():
    config = Config(top_k=64, layers={3: {"top_k": 128, "scorer": "exact"}})
    assert config.of_layer(0) == Config(top_k=64)
    assert config.of_layer(3) == Config(top_k=128, scorer="exact")
    assert config.budget == 128 + 64 + 4096
