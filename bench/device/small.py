"""Runs every operator's small cases on a device: what compute-sanitizer looks into.

``python -m bench.device.small cuda``, or ``TRITON_INTERPRET=1 ... cpu`` for the same kernels in
Triton's interpreter.
"""

import sys

from bench.registry import assert_right, load, operators


def main(device: str) -> None:
    done = 0
    for operator in operators():
        for small in load(operator).SMALL:
            inputs = small.inputs(0)
            got = small.call(*(tensor.to(device) for tensor in inputs), backend="triton")
            assert_right(small, got, inputs)
            print(f"{operator}: {small.name}")
            done += 1
    print(f"{done} small cases are right")


if __name__ == "__main__":
    main(sys.argv[1])
