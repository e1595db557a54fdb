"""Where the benchmark suites are, and how they are run."""

import subprocess
import sys
from datetime import UTC, datetime
from pathlib import Path

from triselect.report.machine import PACKAGE


class NoRepository(RuntimeError):
    """The suites are not part of the installed package."""


def root() -> Path:
    """The checkout that triselect is imported from, or the current directory if that is one.

    Raises
    ------
    NoRepository
        There is none.
    """
    for path in (PACKAGE.parents[1], Path.cwd()):
        if (path / "bench" / "conftest.py").exists() and (path / "kernels").is_dir():
            return path
    raise NoRepository(
        "the benchmark suites are in the repository, not in the installed package: "
        "clone it and run `triselect bench` there"
    )


def measured() -> list[Path]:
    """Files with results: those that the repository keeps, or else the newest of this machine's."""
    results = root() / "bench" / "results"
    local = sorted(results.glob("local/*.json"))
    return sorted(results.glob("*.json")) or local[-1:]


def run_benchmarks(out: Path | None, *, smoke: bool, expression: str | None) -> tuple[int, Path]:
    """Run the suites. Returns pytest's exit code and the file, written unless `smoke`."""
    here = root()
    if out is None:
        stamp = datetime.now(UTC).strftime("%Y%m%d-%H%M%S")
        out = here / "bench" / "results" / "local" / f"{stamp}.json"
    out = out.resolve()
    suites = [str(path) for path in sorted((here / "bench").glob("bench_*.py"))]
    command = [sys.executable, "-m", "pytest", *suites, "-q"]
    command += ["-k", expression] if expression else []
    if smoke:
        command += ["--smoke"]
    else:
        out.parent.mkdir(parents=True, exist_ok=True)
        command += ["--benchmark-quiet", f"--benchmark-json={out}"]
    return subprocess.run(command, cwd=here).returncode, out
