"""The command line, as a user types it."""

import json
import re
import subprocess
import sys
from pathlib import Path

import pytest

pytest.importorskip("rich")
pytest.importorskip("plotly")
pytest.importorskip("jinja2")
pytest.importorskip("safetensors")
testing = pytest.importorskip("typer.testing")

from triselect.ops import backends  # noqa: E402
from triselect.report import machine, repository, results  # noqa: E402
from triselect.report.commands import app  # noqa: E402


def run(*arguments: str, code: int = 0) -> str:
    result = testing.CliRunner().invoke(app, arguments)
    assert result.exit_code == code, result.output
    assert "Traceback" not in result.output
    return re.sub(r"\s+", " ", result.output)


def write_results(path: Path) -> None:
    from .report.test_results import entry

    content = {
        "machine_info": {"triselect": machine.describe()},
        "benchmarks": [entry("triselect", 20.0), entry("composition", 130.0)],
    }
    path.write_text(json.dumps(content))


def test_env_names_every_backend_and_reason() -> None:
    output = run("env")
    for backend in ("reference", "eager", "native", "triton"):
        assert backend in output
    for reason in (backends.missing_native(), backends.missing_triton()):
        assert reason is None or reason in output
    chosen = "eager" if backends.missing_native() else "native"
    assert f"grouped_topk on CPU → {chosen}" in output


def test_quick_play_writes_one_self_contained_page(tmp_path: Path) -> None:
    out = tmp_path / "page.html"
    output = run("play", "moe", "--quick", "--out", str(out))
    assert "all 1,024" in output
    html = out.read_text(encoding="utf-8")

    data = json.loads(re.search(r'id="data">(.*?)</script>', html, re.DOTALL)[1])
    assert {row["backend"] for row in data["verdicts"]} >= {"eager"}
    assert all(row["identical"] == row["tokens"] for row in data["verdicts"])
    assert [row["tokens"] for row in data["speeds"]] == [1, 16, 256] * 2
    assert f">{data['loads'][0]['devices_per_token']:.2f}<" in html
    assert html.count('class="plot"') == 7
    plain, balanced = data["trained"]
    for page in (output, html):
        assert "Trained both ways" in page
        for each in (plain, balanced):
            assert f"{each['runs'][0]['bits_per_byte']:.3f}" in page
    assert plain["load"]["routing"] == "plain"
    assert {run["routing"] for run in balanced["runs"]} == {"moge"}

    # What is left without the scripts, plotly.js among them, must not load anything.
    page = re.sub(r"<script.*?</script>", "", html, flags=re.DOTALL)
    assert not re.search(r"https?:|//|@import|url\(", page)
    assert not re.search(r"<script[^>]*\ssrc=", html)


def test_unknown_guided_run_is_refused() -> None:
    assert "moe" in run("play", "nonsense", code=2)


@pytest.mark.parametrize("command", [("play",), ("bench",)])
def test_out_in_a_missing_directory_is_refused_at_once(command: tuple[str]) -> None:
    assert "is not a directory" in run(*command, "--out", "/no/such/folder/x", code=2)


def test_report_without_a_file_says_so() -> None:
    assert "no.json" in run("report", "no.json", code=2)


def test_report_updates_markdown_and_writes_a_page(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    readme = Path("README.md")
    write_results(Path("run.json"))
    readme.write_text(f"# Title\n{results.OPENING}\n{results.CLOSING}\n")
    run("report", "run.json", "--markdown", "README.md")
    once = readme.read_text()
    assert "6.50×" in once
    assert not Path("report.html").exists()
    run("report", "run.json", "--markdown", "README.md", "--html", "page.html")
    assert readme.read_text() == once
    assert "6.50×" in Path("page.html").read_text()

    readme.write_text("# no markers")
    assert "results -->" in run("report", "run.json", "--markdown", "README.md", code=2)
    assert readme.read_text() == "# no markers"


def test_bench_outside_the_repository_says_to_clone(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(repository, "PACKAGE", tmp_path / "site-packages" / "triselect")
    monkeypatch.chdir(tmp_path)
    assert "clone" in run("bench", code=2)
    assert "clone" in run("report", code=2)


def test_bench_passes_its_options_on_and_shows_what_was_measured(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    out, seen, real = tmp_path / "x.json", [], subprocess.run

    def fake(command: list[str], **options: object) -> subprocess.CompletedProcess:
        if "pytest" not in command:
            return real(command, **options)
        seen.append(command)
        write_results(out)
        return subprocess.CompletedProcess(command, 3 if "fails" in command else 0)

    monkeypatch.setattr(subprocess, "run", fake)
    output = run("bench", "-k", "pangu", "--out", str(out))
    assert str(out) in output
    assert "6.50×" in output
    assert seen[-1][-1] == f"--benchmark-json={out}"
    assert seen[-1][seen[-1].index("-k") + 1] == "pangu"
    run("bench", "--smoke")
    assert seen[-1][-1] == "--smoke"
    run("bench", "-k", "fails", code=3)


def test_missing_extra_is_named() -> None:
    code = (
        "import importlib.util as util\n"
        "real = util.find_spec\n"
        "util.find_spec = lambda name, *a: None if name == 'typer' else real(name, *a)\n"
        "from triselect.cli import main\n"
        "main()\n"
    )
    result = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert result.returncode == 1
    assert result.stderr.strip().endswith("needs typer: pip install 'triselect[cli]'")
