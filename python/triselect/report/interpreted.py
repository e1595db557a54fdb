"""The Triton kernels in Triton's interpreter, in a process of its own: equal, and never timed.

``TRITON_INTERPRET=1 python -m triselect.report.interpreted TOKENS`` prints verdicts as JSON.
"""

import json
import os
import subprocess
import sys

from triselect.report.equivalence import DTYPES, INTERPRETED, Verdict, judge


class InterpreterFailed(RuntimeError):
    """The other process ended without verdicts; the message is the last thing it said."""


def verdicts(tokens: int, timeout: float = 240) -> list[Verdict]:
    """What the interpreter makes of the first `tokens` tokens.

    Raises
    ------
    InterpreterFailed
        It could not run, or took longer than `timeout` seconds.
    """
    command = [sys.executable, "-m", "triselect.report.interpreted", str(tokens)]
    environment = {**os.environ, "TRITON_INTERPRET": "1", "CUDA_VISIBLE_DEVICES": ""}
    try:
        result = subprocess.run(
            command, env=environment, capture_output=True, text=True, timeout=timeout
        )
    except subprocess.TimeoutExpired as error:
        raise InterpreterFailed(f"no answer within {timeout:.0f} s") from error
    if result.returncode:
        said = result.stderr.strip().splitlines()
        raise InterpreterFailed(said[-1] if said else f"exit code {result.returncode}")
    return [Verdict(**verdict) for verdict in json.loads(result.stdout)]


if __name__ == "__main__":
    count = int(sys.argv[1])
    found = [judge("triton", router, dtype, count) for router in INTERPRETED for dtype in DTYPES]
    json.dump([verdict.as_dict() for verdict in found], sys.stdout)
