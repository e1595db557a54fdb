"""Memory of a decoding step at the end of a long text: `python -m bench.esa_memory [TOKENS...]`.

A process for each way and length, whose peak is compared with what it holds before it makes its
cache; the model and its sizes are those of `operators/esa_generate.py`.
"""

import resource
import subprocess
import sys

from bench.operators.esa_generate import ALL, HOST, SIZES, steps

TOKENS = (8192, 32768, 131072)


def peak() -> int:
    """Of this process, in MB."""
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss // 1024


def measure(provider: str, tokens: int) -> int:
    makers = steps(SIZES, tokens, "cpu")
    before = peak()
    step = makers[provider]()
    for _ in range(3):
        step()
    return peak() - before


def main() -> None:
    if len(sys.argv) == 3 and not sys.argv[1].isdigit():
        print(measure(sys.argv[1], int(sys.argv[2])))
        return
    lengths = [int(x) for x in sys.argv[1:]] or list(TOKENS)
    names = [name for name in steps(SIZES, 1, "cpu") if name not in (HOST, ALL)]
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
