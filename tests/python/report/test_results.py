"""From a benchmark file to tables in Markdown and a page."""

import json
from pathlib import Path

import pytest

pytest.importorskip("jinja2")
pytest.importorskip("plotly")

from triselect.report import machine, results, results_operators
from triselect.report.page import render


def entry(provider: str, us: float, tokens: int = 16, **more: object) -> dict:
    info = {
        "op": "grouped_topk",
        "router": "pangu-pro",
        "label": "Pangu Pro MoE (64/8/1)",
        "tokens": tokens,
        "dtype": "float32",
        "device": "cpu",
        "provider": provider,
        "backend": "native",
        "us_p20": us - 1,
        "us_p50": us,
        "us_p80": us + 1,
        "samples": 9,
        "copy_us_p50": 5.0,
    }
    return {"extra_info": info | more}


@pytest.fixture
def measured(tmp_path: Path) -> Path:
    entries = [
        entry(provider, us, tokens)
        for tokens in (16, 64, 256)
        for provider, us in (("triselect", 20.0), ("composition", 130.0), ("selection", 8.0))
    ]
    floor = {
        "label": "Pangu",
        "tokens": 16384,
        "dtype": "float32",
        "native_us_p50": 300.0,
        "bytes_us_p50": 60.0,
        "keys_us_p50": 140.0,
        "floor_us": 200.0,
    }
    path = tmp_path / "run.json"
    content = {
        "machine_info": {"triselect": machine.describe()},
        "benchmarks": [*entries, {"extra_info": floor}],
    }
    path.write_text(json.dumps(content))
    return path


def test_ratios_shares_and_floors_are_in_the_table(measured: Path) -> None:
    text = results.markdown([results.load(measured)])
    row = next(line for line in text.splitlines() if "| 64 |" in line)
    assert "| 20 (19–21) |" in row
    assert "| 6.50× |" in row
    assert "| **0.40×** |" in row, "a losing case is not marked"
    assert "| 25 % |" in row
    assert "1.50×" in text
    assert "0.40× in geometric mean of 3 cases, 3 of them lost" in text
    assert machine.describe()["torch"] in text
    assert "Wide spreads" not in text


def test_wide_spreads_are_told_of(measured: Path) -> None:
    content = json.loads(measured.read_text())
    content["benchmarks"][1]["extra_info"]["us_p80"] = 300.0
    measured.write_text(json.dumps(content))
    assert "Wide spreads (p80 over twice p20): 1;" in results.markdown([results.load(measured)])


def test_device_time_has_a_table_of_its_own(measured: Path) -> None:
    assert len(results.tables(results.load(measured))) == 2
    content = json.loads(measured.read_text())
    device = {"device_us_p20": 2.0, "device_us_p50": 3.0, "device_us_p80": 4.0}
    device |= {"device_copy_us_p50": 1.5, "device_samples": 9}
    content["benchmarks"][0]["extra_info"] |= device
    measured.write_text(json.dumps(content))
    host, on_device, _ = results.tables(results.load(measured))
    assert len(host.rows) == 3
    assert len(on_device.rows) == 1
    assert "50 %" in on_device.rows[0]


def test_other_operators_have_a_table_each(measured: Path) -> None:
    content = json.loads(measured.read_text())
    timing = {"p20": 4.0, "p50": 5.0, "p80": 6.0, "samples": 9}
    case = {"label": "two tokens", "dtype": "int32", "backend": "native"}
    for op, slower in (("permute", 20.0), ("permute", 2.5), ("limit_experts", 10.0)):
        providers = {"triselect": timing, "torch.sort": timing | {"p50": slower}}
        more = {"op": op, "sizes": {"tokens": int(slower)}, "providers": providers}
        content["benchmarks"].append({"extra_info": case | more})
    measured.write_text(json.dumps(content))
    *_, permute, limit = results.tables(results.load(measured))
    assert [row[-1] for row in permute.rows] == ["!0.50×", "4.00×"]
    assert permute.caption.startswith("permute. Against torch.sort: 1.41× in geometric mean of 2")
    assert "1 of them lost" in permute.caption
    assert "| two tokens | 10 | int32 | 5 (4–6) | native | 2.00× |" in results.markdown(
        [results.load(measured)]
    )
    assert limit.rows


def test_parts_of_ours_are_shares_and_not_rivals() -> None:
    timing = {"p20": 4.0, "p50": 5.0, "p80": 6.0, "samples": 9}
    case = {"label": "a round", "dtype": "int32", "backend": "native", "op": "round", "sizes": {}}
    others = {"of it: model": 4.0, "of it: the rest": 0.02, "eager": 10.0}
    providers = {"triselect": timing} | {n: timing | {"p50": t} for n, t in others.items()}
    (table,) = results_operators.tables([case | {"providers": providers}])
    assert table.rows[0][-3:] == ("80 %", "0.40 %", "2.00×")
    assert (
        table.caption == "round. Against eager: 2.00× in geometric mean of 1 cases, 0 of them lost."
    )


def test_merging_twice_is_merging_once(measured: Path) -> None:
    text = f"before\n{results.OPENING}\nold\n{results.CLOSING}\nafter\n"
    table = results.markdown([results.load(measured)])
    once = results.merge(text, table)
    assert once == results.merge(once, table)
    assert once.startswith("before\n")
    assert once.endswith("\nafter\n")
    assert "old" not in once
    assert table in once


@pytest.mark.parametrize("text", ["", results.OPENING, f"{results.CLOSING}\n{results.OPENING}"])
def test_missing_markers_are_named(text: str) -> None:
    with pytest.raises(results.BadResults, match="results -->"):
        results.merge(text, "table")


@pytest.mark.parametrize("content", ["", "{}", "[]", '{"machine_info": {}, "benchmarks": []}'])
def test_another_file_is_refused(tmp_path: Path, content: str) -> None:
    path = tmp_path / "other.json"
    path.write_text(content)
    with pytest.raises(results.BadResults, match=r"other\.json"):
        results.load(path)


def test_page_of_a_run_has_its_figures_and_numbers(measured: Path) -> None:
    html = render(results.page([results.load(measured)]))
    assert html.count('class="plot"') == 1
    assert '"loses">0.40×' in html.replace("number ", "")
    assert "1.50×" in html
