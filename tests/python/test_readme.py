"""The README's quick start runs as it stands."""

import re
from pathlib import Path

README = Path(__file__).parents[2] / "README.md"


def test_quick_start():
    names: dict = {}
    for block in re.findall(r"```python\n(.*?)```", README.read_text(), re.DOTALL):
        exec(compile(block, str(README), "exec"), names)
    assert names["moge"].experts.shape == names["v3"].experts.shape == (16, 8)
    assert (names["moge"].experts // 8).tolist() == [list(range(8))] * 16
    assert names["plain"].weights.diff(dim=1).max() <= 0
    assert names["attended"].out.shape == (1, 1, 8, 32)
    assert names["index"].shape == (1, 256)
