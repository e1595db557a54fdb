"""tools/device_suite.sh ends in time with what it has; logs are read, and the table written, right.

The phases themselves are rehearsed by `tools/device_suite.sh OUT --dry-run`, a layer of .ci/run.
"""

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
from bench.device import records, summary

ROOT = Path(__file__).parents[2]
ENVIRONMENT = {"device": "A GPU", "torch": "2.11.0", "commit": "abc1234", "date": "today"}


@pytest.fixture
def out(tmp_path: Path) -> Path:
    folder = tmp_path / "out"
    folder.mkdir()
    return folder


def start(out: Path, script: str) -> subprocess.Popen:
    """A suite with phases of the test's own."""
    site = out.parent / "site"
    site.mkdir()
    (site / "bench").symlink_to(ROOT / "bench")
    names = {"out": out, "python": sys.executable, "work": site, "log": out / "suite.log"}
    given = "".join(f"{name}='{value}'\n" for name, value in names.items())
    return subprocess.Popen(
        ["bash", "-c", f"source '{ROOT}/tools/device_suite.sh'\nchild=\n{given}{script}"],
        env={**os.environ, "PYTHONPATH": str(site), "PYTHONSAFEPATH": "1"},
        start_new_session=True,
    )


def run(out: Path, script: str) -> int:
    return start(out, script).wait(timeout=60)


def rows(out: Path, kind: str) -> list[dict]:
    return [row for row in records.load(out) if row["kind"] == kind]


def ended(pid: Path) -> bool:
    """The process that wrote its number there ends within seconds."""
    for _ in range(100):
        try:
            os.kill(int(pid.read_text()), 0)
        except ProcessLookupError:
            return True
        time.sleep(0.05)
    return False


def test_a_phase_that_hangs_is_stopped_and_the_rest_is_told(out):
    begin = time.monotonic()
    status = run(
        out,
        """
        phase hang 2 "$log" "$python" -c 'import time; time.sleep(50)'; echo "hang $?" >>"$log"
        GRACE=1
        phase deaf 1 "$log" bash -c 'trap "" INT; echo $$ >"$0"; while :; do sleep 0.1; done' \
            "$out/pid"
        echo "deaf $?" >>"$log"
        phase good 9 "$log" echo done; echo "good $?" >>"$log"
        record cut hang "it was stopped"
        finish
        """,
    )
    log = (out / "suite.log").read_text()
    assert time.monotonic() - begin < 30
    assert {"hang 124", "deaf 137", "done", "good 0"} <= set(log.splitlines())
    assert "KeyboardInterrupt" in log  # pytest then reports what it has
    assert ended(out / "pid")
    assert status == 3
    assert "cut: hang: it was stopped" in (out / "summary.md").read_text()


def test_the_last_phases_get_what_the_deadline_leaves(out):
    status = run(
        out,
        """
        DEADLINE=$((SECONDS + 3)) RESERVE=1
        phase long 99 "$log" sleep 50; echo "long $?" >>"$log"
        phase late 99 "$log" echo begun; echo "late $?" >>"$log"
        finish
        """,
    )
    log = (out / "suite.log").read_text().splitlines()
    assert {"long 124", "late 124"} <= set(log)
    assert "begun" not in log
    assert [row["phase"] for row in rows(out, "error")] == ["late"]
    assert status == 3


def test_told_to_stop_it_writes_what_it_has(out):
    suite = start(
        out,
        """
        trap interrupted TERM
        record error before "of some kind"
        phase hang 50 "$log" bash -c 'echo $$ >"$0"; sleep 50' "$out/pid"
        echo "not reached" >>"$log"
        """,
    )
    while not (out / "pid").exists() or not (out / "pid").read_text():
        time.sleep(0.05)
    suite.send_signal(signal.SIGTERM)
    assert suite.wait(timeout=30) == 1
    text = (out / "summary.md").read_text()
    assert "wrong: before: of some kind" in text
    assert "cut: suite: it was told to stop" in text
    assert "not reached" not in (out / "suite.log").read_text()
    assert ended(out / "pid")


def test_a_phase_that_must_succeed_ends_the_suite(out):
    assert run(out, 'must install 9 false; echo "not reached" >>"$log"') == 1
    assert [row["phase"] for row in rows(out, "error")] == ["install"]
    assert "not reached" not in (out / "suite.log").read_text()


@pytest.mark.parametrize("arguments", [[], ["a", "b"], ["a", "--dry-run", "c"]])
def test_called_wrongly_it_says_how(arguments, tmp_path):
    script = ROOT / "tools" / "device_suite.sh"
    result = subprocess.run([script, *arguments], cwd=tmp_path, capture_output=True, text=True)
    assert result.returncode == 2
    assert "--dry-run" in result.stdout
    assert not list(tmp_path.iterdir())


def test_without_a_gpu_it_says_what_to_do(tmp_path):
    result = subprocess.run(
        [ROOT / "tools" / "device_suite.sh", tmp_path / "out"],
        env={**os.environ, "PYTHON": sys.executable, "CUDA_VISIBLE_DEVICES": ""},
        capture_output=True,
        text=True,
    )
    assert result.returncode == 2
    assert "--dry-run rehearses" in result.stderr
    assert not list((tmp_path / "out").iterdir())


def test_lines_name_the_machine_and_survive_a_half_written_one(out):
    (out / records.ENVIRONMENT).write_text(json.dumps(ENVIRONMENT | {"packages": {"a": "1"}}))
    records.append(out, "error", phase="a", message="b", cut=False)
    with (out / records.FILE).open("a") as file:
        file.write('{"kind": "bench')
    (row,) = records.load(out)
    assert row["commit"] == "abc1234"
    assert "packages" not in row


PYTEST = """\
== other (at most 9 s)
tests/a.py::test_a PASSED [ 50%]
== gpu-tests (at most 90 s)
collecting ... collected 4 items
tests/a.py::test_a PASSED [ 25%]
tests/a.py::test_b[x - 1] FAILED [ 50%]
tests/a.py::test_c ERROR [ 75%]
tests/a.py::test_d SKIPPED (no) [100%]
FAILED tests/a.py::test_b[x - 1] - assert 1 == 2
"""
XDIST = """\
== gpu-tests (at most 90 s)
tests/a.py::test_a
[gw0] [ 25%] PASSED tests/a.py::test_a
[gw1] [ 50%] FAILED tests/a.py::test_b[x - 1]
[gw0] [ 75%] ERROR tests/a.py::test_c
[gw0] [100%] SKIPPED tests/a.py::test_d
"""


@pytest.mark.parametrize("log", [PYTEST, XDIST], ids=["plain", "xdist"])
def test_outcomes_are_counted_one_by_one(log):
    found = records.tests(records.of_phase(log, "gpu-tests"), 1)
    assert [found[name] for name in ("passed", "failed", "error", "skipped")] == [1, 1, 1, 1]
    assert found["wrong"] == ["tests/a.py::test_b[x - 1]", "tests/a.py::test_c"]
    assert found["finished"]
    assert not records.tests("", records.STOPPED)["finished"]


RIGHT = "11 small cases are right\n"
CLEAN = RIGHT + "========= ERROR SUMMARY: 0 errors\n"
RACES = RIGHT + "========= RACECHECK SUMMARY: 2 hazards displayed (2 errors, 0 warnings)\n"


@pytest.mark.parametrize(
    ("log", "status", "dry_run", "verdict"),
    [
        (CLEAN, 0, False, "clean"),
        (
            RIGHT + "========= RACECHECK SUMMARY: 0 hazards displayed (0 errors)\n",
            0,
            False,
            "clean",
        ),
        (RIGHT + "========= ERROR SUMMARY: 3 errors\n", 86, False, "found"),
        (RACES, 86, False, "found"),
        ("========= Error: Device not supported.\n" + RACES, 1, False, "unavailable"),
        ("= compute-sanitizer: not supported here\n", 0, False, "unavailable"),
        ("AssertionError\n========= ERROR SUMMARY: 0 errors\n", 1, False, "failed"),
        ("========= ERROR SUMMARY: 0 errors\n", 0, False, "failed"),  # nothing was run
        (RIGHT, 0, False, "failed"),  # nothing was looked at
        ("", records.KILLED, False, "cut"),
        (RIGHT, 0, True, "rehearsed"),
        ("AssertionError\n", 1, True, "failed"),
    ],
)
def test_what_a_sanitizer_found(log, status, dry_run, verdict):
    assert records.sanitizer(log, status, dry_run)["verdict"] == verdict


TESTS = {"kind": "tests", "name": "gpu-tests", "wrong": [], "status": 0, "finished": True}
TESTS |= {"passed": 5, "failed": 0, "error": 0, "skipped": 1}
SANITIZER = {"kind": "sanitizer", "tool": "memcheck", "verdict": "clean", "detail": "", "cases": 11}
CUT = {"kind": "error", "phase": "benchmarks", "message": "2 were left out", "cut": True}
ROOF = {"kind": "roof", "name": "copy", "gb_per_s": 2000.0, "tflop_per_s": None}
ROOF |= {"device_us_p20": 900.0, "device_us_p50": 1000.0, "device_us_p80": 1100.0}
BENCHMARK = {
    "kind": "benchmark",
    "op": "grouped_topk",
    "label": "a router",
    "sizes": {"tokens": 4096},
    "dtype": "float32",
    "provider": "triselect",
    "backend": "triton",
    "verified": True,
    **{f"host_us_{p}": 20.0 for p in ("p20", "p50", "p80")},
    **{f"device_us_{p}": 8.0 for p in ("p20", "p50", "p80")},
    "captured": True,
    "empty_us_p50": 2.0,
    "gb_per_s": 500.0,
    "tflop_per_s": None,
    "share_of_roof": 0.25,
    "unavailable": {"torch.compile": "there was no time to compile it"},
}


def rival(name: str, microseconds: float, captured: bool = True) -> dict:
    changed = {"provider": name, "captured": captured, "unavailable": {}}
    return BENCHMARK | changed | {f"device_us_{p}": microseconds for p in ("p20", "p50", "p80")}


@pytest.mark.parametrize(
    ("found", "expected"),
    [
        ([TESTS, SANITIZER, BENCHMARK], 0),
        ([TESTS, SANITIZER | {"verdict": "unavailable"}], 0),
        ([], 1),
        ([TESTS | {"failed": 1}], 1),
        ([TESTS | {"error": 1}], 1),
        ([TESTS | {"passed": 0}], 1),  # all skipped
        ([TESTS | {"status": 5}], 1),
        ([TESTS | {"status": records.KILLED, "finished": False}], 1),
        ([TESTS | {"status": records.STOPPED, "finished": False}], 3),
        ([TESTS | {"status": records.STOPPED, "finished": False, "failed": 1}], 1),
        ([TESTS | {"passed": 0, "dry_run": True}], 0),
        ([TESTS | {"passed": 0, "skipped": 0, "dry_run": True}], 1),  # none was collected
        ([SANITIZER | {"verdict": "found"}], 1),
        ([SANITIZER | {"verdict": "failed"}], 1),
        ([SANITIZER | {"verdict": "cut"}], 3),
        ([CUT], 3),
        ([CUT, CUT | {"cut": False}], 1),
    ],
)
def test_the_verdict(found, expected):
    assert summary.verdict(found) == expected


def test_a_table_of_what_was_measured():
    found = [
        TESTS,
        SANITIZER,
        ROOF,
        BENCHMARK,
        rival("eager", 20.0, False),
        rival("other", 4.0),
        CUT,
    ]
    text = summary.render(found, ENVIRONMENT)
    assert "*A GPU · torch 2.11.0 · commit abc1234 · today*" in text
    assert "- cut: benchmarks: 2 were left out" in text
    assert "| gpu-tests | 5 | 0 | 0 | 1 |  |" in text
    assert "| memcheck | clean | 11 |" in text
    assert "| copy | 1,000 (900–1,100) | 2,000 |  |" in text
    cells = "a router | 4,096 | float32 | 8 (8–8) | 20 (20–20) | triton | 500 | 25.0%"
    assert f"| {cells} | 2.50×\\* | **0.50×** |" in text
    assert "- torch.compile: there was no time to compile it" in text


def test_what_was_not_measured_is_blank():
    nothing = {name: None for name in BENCHMARK if name.startswith(("host", "device"))}
    nothing |= dict.fromkeys(("captured", "empty_us_p50", "gb_per_s", "share_of_roof"))
    found = [BENCHMARK | nothing, rival("eager", 1.0) | nothing]
    text = summary.render(found, ENVIRONMENT | {"dry_run": True})
    assert "nothing was timed" in text
    assert "| a router | 4,096 | float32 |  |  | triton |  |  |  |" in text
