"""results.jsonl: one JSON object per line, written as it is known, whatever comes after.

``kind`` says what it is: ``benchmark``, ``roof``, ``tests``, ``sanitizer``, or ``error``, which is
a phase that failed, or with ``cut`` one that was left out or stopped for want of time. Needs only
the standard library, as does summary.py: both work where nothing else does.

``python -m bench.device.records OUT tests NAME STATUS``       what OUT/tests.log says of a run
``python -m bench.device.records OUT sanitizer TOOL STATUS``   the same of OUT/sanitizer.log
``python -m bench.device.records OUT error PHASE MESSAGE``     something went wrong
``python -m bench.device.records OUT cut PHASE MESSAGE``       something got no time
"""

import json
import os
import re
import sys
from pathlib import Path
from typing import Any

OURS = "triselect"  # the provider that is our public function; the others are compared with it
FILE = "results.jsonl"
ENVIRONMENT = "environment.json"
IDENTITY = ("device", "driver", "torch", "triton", "python", "triselect", "commit", "dry_run")
STOPPED, KILLED = 124, 137  # what `timeout` returns: on its first signal, on the second
OUTCOME = r"\b(PASSED|FAILED|ERROR|SKIPPED|XFAIL|XPASS)\b"
UNAVAILABLE = r"^=+ .*(not supported|[Ii]nternal.*error|[Ff]ailed to initialize|Unable to find).*"
FOUND = r"(?:ERROR|RACECHECK) SUMMARY: (\d+) (?:error|hazard)"


def environment(out: Path) -> dict[str, Any]:
    """What environment.json says; nothing where it was not written."""
    path = out / ENVIRONMENT
    return json.loads(path.read_text(encoding="utf-8")) if path.exists() else {}


def append(out: Path, kind: str, **fields: Any) -> None:
    """Adds a line, with the machine and the versions, and has it on the disk before it returns."""
    known = environment(out)
    identity = {name: known[name] for name in IDENTITY if name in known}
    with (out / FILE).open("a", encoding="utf-8") as file:
        file.write(json.dumps({"kind": kind} | fields | identity) + "\n")
        file.flush()
        os.fsync(file.fileno())


def load(out: Path) -> list[dict[str, Any]]:
    """Every whole line; a write that was interrupted leaves a half."""
    rows = []
    path = out / FILE
    for line in path.read_text(encoding="utf-8").splitlines() if path.exists() else ():
        try:
            rows.append(json.loads(line))
        except ValueError:
            continue
    return rows


def of_phase(log: str, name: str) -> str:
    """The part of a log that a phase wrote: what follows its heading; nothing if it never began."""
    return log.partition(f"== {name} (at most ")[2]


def tests(log: str, status: int) -> dict[str, Any]:
    """Counts of ``pytest -v``, read test by test: a killed run prints no summary.

    Lines are ``ID OUTCOME [ 1%]``, or under pytest-xdist ``[gw0] [ 1%] OUTCOME ID``.
    """
    counts = dict.fromkeys(("PASSED", "FAILED", "ERROR", "SKIPPED", "XFAIL", "XPASS"), 0)
    wrong = []
    for line in log.splitlines():
        if not re.search(r"\[ *\d+%\]", line) or not (outcome := re.search(OUTCOME, line)):
            continue
        counts[outcome[1]] += 1
        if outcome[1] in ("FAILED", "ERROR"):
            wrong += re.findall(r"\S+::.*?(?= FAILED| ERROR| *$)", line)
    return {
        **{outcome.lower(): count for outcome, count in counts.items()},
        "wrong": wrong[:20],
        "status": status,
        "finished": status not in (STOPPED, KILLED),
    }


def sanitizer(log: str, status: int, dry_run: bool) -> dict[str, Any]:
    """The verdict: clean, found, failed, unavailable, cut, or rehearsed without the tool."""
    cases = re.search(r"^(\d+) small cases are right", log, re.MULTILINE)
    found = re.findall(FOUND, log)
    refused = re.search(UNAVAILABLE, log, re.MULTILINE)
    if dry_run:
        verdict, detail = ("rehearsed" if cases else "failed"), ""
    elif status in (STOPPED, KILLED):
        verdict, detail = "cut", "it did not finish within its time"
    elif refused:
        verdict, detail = "unavailable", refused[0].strip("= ")
    elif any(int(count) for count in found):
        verdict, detail = "found", f"{found[-1]} in all"
    elif status == 0 and found and cases:
        verdict, detail = "clean", ""
    else:
        verdict, detail = "failed", f"exit status {status}"
    return {"verdict": verdict, "detail": detail, "cases": int(cases[1]) if cases else 0}


def main(out: Path, kind: str, name: str, value: str) -> None:
    match kind:
        case "tests":
            log = (out / "tests.log").read_text(encoding="utf-8", errors="replace")
            append(out, kind, name=name, **tests(of_phase(log, name), int(value)))
        case "sanitizer":
            log = (out / "sanitizer.log").read_text(encoding="utf-8", errors="replace")
            dry_run = bool(environment(out).get("dry_run"))
            append(out, kind, tool=name, **sanitizer(of_phase(log, name), int(value), dry_run))
        case "error" | "cut":
            append(out, "error", phase=name, message=value, cut=kind == "cut")
        case _:
            raise SystemExit(__doc__)


if __name__ == "__main__":
    main(Path(sys.argv[1]), *sys.argv[2:5])
