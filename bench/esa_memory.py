"""Memory of a decoding step at the end of a long text: `python -m bench.esa_memory [TOKENS...]`.

A process for each way and length; what its memory grows by at most, from before it fills its cache
until it has decoded. The model and its sizes are those of `operators/esa_generate.py`. Linux only.
"""

import subprocess
import sys
from pathlib import Path

import torch

from bench.device.records import OURS
from bench.operators.esa_generate import DYNAMIC, INT8, SIZES, STATIC, steps

TOKENS = (8192, 32768, 131072)


PROCESS = Path("/proc/self")


def status(field: str) -> int:
    """Of this process, in MB: VmRSS, what it holds, or VmHWM, the most that it held."""
    text = (PROCESS / "status").read_text()
    return int(text.partition(f"{field}:")[2].split()[0]) // 1024


def measure(provider: str, tokens: int) -> int:
    make = steps(SIZES, tokens, "cpu", torch.ones(1, 1, dtype=torch.long))[provider]
    (PROCESS / "clear_refs").write_text("5")  # the most that it held so far is forgotten
    before = status("VmRSS")
    step = make()
    for _ in range(3):
        step()
    return status("VmHWM") - before


def main() -> None:
    if len(sys.argv) == 3 and not sys.argv[1].isdigit():
        print(measure(sys.argv[1], int(sys.argv[2])))
        return
    lengths = [int(x) for x in sys.argv[1:]] or list(TOKENS)
    names = (OURS, INT8, DYNAMIC, STATIC)
    print("| MB | " + " | ".join(f"{n:,} tokens" for n in lengths) + " |")
    print("| --- |" + " --: |" * len(lengths))
    for name in names:
        command = [sys.executable, "-m", "bench.esa_memory", name]
        found = [
            subprocess.run([*command, str(n)], check=True, capture_output=True, text=True).stdout
            for n in lengths
        ]
        print(f"| {name} | " + " | ".join(f"{int(mb):,}" for mb in found) + " |", flush=True)


if __name__ == "__main__":
    main()
