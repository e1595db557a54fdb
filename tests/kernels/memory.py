"""How much memory a call takes beside its arguments."""

from collections.abc import Callable
from pathlib import Path

import pytest

STATUS, CLEAR = Path("/proc/self/status"), Path("/proc/self/clear_refs")


def growth(call: Callable[[], object]) -> int:
    """Bytes by which this process grows for a while as `call` runs, what it keeps aside."""
    try:
        call()  # has whatever is kept for the next call
        CLEAR.write_text("5")
        before = most_memory()
        call()
    except OSError:
        pytest.skip("Linux only, and where a process may look at itself")
    return most_memory() - before


def most_memory() -> int:
    """Bytes that this process has had at a time since `CLEAR` was written to."""
    line = next(line for line in STATUS.read_text().splitlines() if line.startswith("VmHWM"))
    return int(line.split()[1]) * 1024
