"""Settings: what they mean, and what is refused."""

import pytest

from triselect.lopa import Config
from triselect.lopa.config import at_least


@pytest.mark.parametrize(
    ("options", "error", "message"),
    [
        ({"length": -1}, ValueError, "length must be at least 0, got -1"),
        ({"length": 30, "block_length": 8}, ValueError, "multiple of block_length, got 30 and 8"),
        ({"block_length": 0}, ValueError, "block_length must be at least 1, got 0"),
        ({"length": 8.0}, TypeError, "length must be an int, got 8.0"),
        ({"num_lookaheads": -1}, ValueError, "num_lookaheads must be at least 0, got -1"),
        ({"num_lookaheads": "many"}, TypeError, "must be an int or \"auto\", got 'many'"),
        ({"num_lookaheads": True}, TypeError, 'must be an int or "auto", got True'),
        ({"threshold": 1.5}, ValueError, "threshold must be between 0 and 1, got 1.5"),
        ({"threshold": -0.1}, ValueError, "threshold must be between 0 and 1, got -0.1"),
        ({"threshold": float("nan")}, ValueError, "threshold must be between 0 and 1, got nan"),
        ({"threshold": "high"}, TypeError, "threshold must be a number, got str"),
        ({"add_threshold": 2}, ValueError, "add_threshold must be between 0 and 1, got 2"),
        ({"activate_threshold": -1}, ValueError, "activate_threshold must be between"),
        ({"factor": 0.0}, ValueError, "factor must be above 0"),
        ({"factor": float("inf")}, ValueError, "factor must be between 0 and inf, got inf"),
        ({"lowest": 0.0}, ValueError, "lowest must be above 0"),
        ({"confirm": 1.5}, ValueError, "confirm must be between 0 and 1, got 1.5"),
        ({"confirm": "yes"}, TypeError, "confirm must be a number, got str"),
        ({"temperature": -1.0}, ValueError, "temperature must be between 0 and inf, got -1"),
        ({"open_blocks": 0}, ValueError, "open_blocks must be at least 1, got 0"),
        ({"look_every": 0}, ValueError, "look_every must be at least 1, got 0"),
        ({"attention": "all"}, ValueError, "attention must be one of .*, got 'all'"),
        ({"score": "sure"}, ValueError, "score must be one of .*, got 'sure'"),
        ({"branch_score": "best"}, ValueError, "branch_score must be a function or one of"),
        ({"branch_score": "information_gain"}, ValueError, 'compares score="neg_entropy"'),
        ({"compatibility": "old"}, ValueError, "compatibility must be \"released\", got 'old'"),
        ({"attention": "bidirectional"}, ValueError, "use it with cache=False"),
        ({"top_k": 5}, ValueError, "set a temperature"),
        ({"top_k": 0, "temperature": 1.0}, ValueError, "top_k must be at least 1, got 0"),
        ({"top_p": 0.0, "temperature": 1.0}, ValueError, "top_p must be above 0"),
        ({"top_p": 1.1, "temperature": 1.0}, ValueError, "top_p must be between 0 and 1, got 1.1"),
    ],
)
def test_refused_by_name(options, error, message):
    with pytest.raises(error, match=message):
        Config(**options)


@pytest.mark.parametrize("of", range(1, 101))
def test_a_share_is_the_least_number_that_is_as_much(of):
    for percent in range(101):
        n = at_least(percent / 100, of)
        assert 100 * n >= percent * of
        assert n == 0 or 100 * (n - 1) < percent * of


def test_the_window_has_room_for_what_is_frozen():
    assert Config(length=64, block_length=8, open_blocks=2).window == 24
    assert Config(length=16, block_length=8, open_blocks=2).window == 16
    assert Config(length=64, block_length=8, attention="bidirectional", cache=False).window == 64
