"""Which machine, and which software: what every figure is worth nothing without."""

import os
import platform
import subprocess
from datetime import UTC, datetime
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

import torch

import triselect
from triselect.ops import backends

PACKAGE = Path(triselect.__file__).parent


def describe() -> dict[str, Any]:
    """Device, driver, versions, commit, threads and date, for reports and benchmark files."""
    gpu = torch.cuda.is_available()
    return {
        "device": torch.cuda.get_device_name() if gpu else cpu_model(),
        "driver": _output("nvidia-smi", "--query-gpu=driver_version", "--format=csv,noheader")
        if gpu
        else None,
        "cpu": cpu_model(),
        "cores": os.cpu_count(),
        "threads": torch.get_num_threads(),
        "load": round(os.getloadavg()[0], 1),
        "cpu_capability": cpu_capability(),
        "os": platform.platform(),
        "python": platform.python_version(),
        "torch": torch.__version__,
        "triton": _version("triton"),
        "triselect": triselect.__version__,
        "commit": commit(),
        "date": datetime.now(UTC).strftime("%Y-%m-%d %H:%M UTC"),
    }


def busy(machine: dict[str, Any]) -> str | None:
    """A warning where the machine had other work when it was described."""
    if machine["load"] < 0.75 * machine["cores"]:
        return None
    return (
        f"the machine is busy (load {machine['load']} on {machine['cores']} cores): "
        "timings will be wide, and ratios may be wrong"
    )


def header(machine: dict[str, Any]) -> str:
    """The one line that names the machine above every table and page."""
    threads = f"{machine['threads']} thread{'s' if machine['threads'] != 1 else ''}"
    parts = [machine["device"]]
    if machine["driver"]:
        parts += [f"driver {machine['driver']}", machine["cpu"]]
    parts += [f"{threads} of {machine['cores']} cores", machine["cpu_capability"]]
    parts += [f"torch {machine['torch']}", machine["triton"] and f"triton {machine['triton']}"]
    parts += [f"Python {machine['python']}", f"triselect {machine['triselect']}"]
    parts += [machine["commit"] and f"commit {machine['commit']}", machine["date"]]
    return " · ".join(part for part in parts if part)


def cpu_model() -> str:
    try:
        for line in Path("/proc/cpuinfo").read_text().splitlines():
            if line.startswith("model name"):
                return line.split(":", 1)[1].strip()
    except OSError:
        pass
    return platform.processor() or platform.machine()


def cpu_capability() -> str | None:
    """The instruction set that the C++ kernels use, or None without them."""
    if backends.missing_native():
        return None
    return str(torch.ops.triselect.cpu_capability())


def commit() -> str | None:
    """The checkout's commit, with ``+`` where files differ from it; None outside a checkout."""
    root = PACKAGE.parents[1]
    if not (root / ".git").exists():
        return None
    head = _output("git", "-C", str(root), "rev-parse", "--short", "HEAD")
    if head and _output("git", "-C", str(root), "status", "--porcelain", "--untracked-files=no"):
        head += "+"
    return head


def _version(package: str) -> str | None:
    try:
        return version(package)
    except PackageNotFoundError:
        return None


def _output(*command: str) -> str | None:
    try:
        result = subprocess.run(command, capture_output=True, text=True, timeout=10, check=True)
    except (OSError, subprocess.SubprocessError):
        return None
    return result.stdout.strip() or None
