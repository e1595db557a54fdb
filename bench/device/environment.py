"""environment.json: the machine as it was found, and the software on it.

``python -m bench.device.environment OUT [--dry-run]``. The commit is that of the variable `COMMIT`,
as the package is installed from a copy that has no history.
"""

import json
import os
import shutil
import subprocess
import sys
from importlib.metadata import distributions
from pathlib import Path
from typing import Any

import torch

from bench.device.records import ENVIRONMENT
from triselect.report import capabilities, machine

TOOLS = ("nvidia-smi", "nvcc", "g++", "compute-sanitizer", "ncu", "cuobjdump")
STATE = (
    "pstate,clocks.sm,clocks.mem,clocks.max.sm,clocks.max.mem,temperature.gpu,power.draw,"
    "power.limit,memory.total,memory.used,utilization.gpu"
)


def describe(dry_run: bool) -> dict[str, Any]:
    found = machine.describe() | {"commit": os.environ.get("COMMIT") or None, "dry_run": dry_run}
    found["tools"] = {tool: shutil.which(tool) is not None for tool in TOOLS}
    found["auto"] = [choice._asdict() for choice in capabilities.choices()]
    found["packages"] = {d.name: d.version for d in distributions() if d.name}
    if torch.cuda.is_available():
        gpu = torch.cuda.get_device_properties()
        found["gpu"] = {
            "capability": [gpu.major, gpu.minor],
            "multiprocessors": gpu.multi_processor_count,
            "memory_bytes": gpu.total_memory,
            "l2_bytes": gpu.L2_cache_size,
        }
        found["state"] = state()
    return found


def state() -> dict[str, str]:
    """Clocks, temperature and load of the first GPU as nvidia-smi says; empty where it does not."""
    command = ["nvidia-smi", f"--query-gpu={STATE}", "--format=csv,noheader"]
    try:
        said = subprocess.run(command, capture_output=True, text=True, timeout=10, check=True)
    except (OSError, subprocess.SubprocessError):
        return {}
    values = said.stdout.split("\n", 1)[0].split(", ")
    return dict(zip(STATE.split(","), values, strict=False))


if __name__ == "__main__":
    found = describe(dry_run="--dry-run" in sys.argv)
    text = json.dumps(found, indent=2, sort_keys=True)
    (Path(sys.argv[1]) / ENVIRONMENT).write_text(text + "\n", encoding="utf-8")
    print(machine.header(found))
