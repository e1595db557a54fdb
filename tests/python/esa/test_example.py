"""`examples/compare_compressors.py` on little."""

import importlib
import io
from pathlib import Path

import pytest
import torch

from triselect.esa import synthetic

EXAMPLES = Path(__file__).parents[3] / "examples"


@pytest.fixture
def example(monkeypatch):
    pytest.importorskip("rich")
    pytest.importorskip("safetensors")
    monkeypatch.syspath_prepend(str(EXAMPLES))
    return importlib.import_module("compare_compressors")


def test_every_method_is_measured_and_shown(example):
    from rich.console import Console

    data = example.of_distribution("misaligned", 400, 64, 320)
    assert [len(part) for part in data.calibration] == [400, 400]
    assert (len(data.queries), len(data.keys)) == (64, 320)
    rows = [
        {"data": "misaligned", "dim": 8, "method": method}
        | example.measure(data, 8, method, seeds=[0, 1])
        for method in example.METHODS
    ]
    by_method = {row["method"]: row for row in rows}
    assert by_method["closed_form"]["recall"] > by_method["pca"]["recall"]
    assert all(0 < row["recall"] < 1 for row in rows)
    one, other = (example.measure(data, 8, "gradient", [seed])["recall"] for seed in (0, 1))
    assert by_method["gradient"]["recall"] == pytest.approx((one + other) / 2)

    out = io.StringIO()
    for table in example.tables(rows):
        Console(file=out, width=120).print(table)
    assert out.getvalue().count("closed_form") == 2
    assert f"{by_method['centered']['int8']:.3f}" in out.getvalue()


def test_a_layer_gives_whole_windows_to_calibrate_on_and_late_queries_to_test_with(example):
    from triselect.models import ByteMoE, ByteMoEConfig

    config = ByteMoEConfig(width=16, layers=2, heads=4, kv_heads=2, experts=8, top_k=8)
    model = ByteMoE(config).requires_grad_(False)
    text = torch.randint(256, (35, 40), generator=torch.Generator().manual_seed(0))
    (q, k), test_q, test_k = example.of_model(model, 1, text, text[:3])
    assert (q.shape, k.shape) == ((35 * 40, 4, 4), (35 * 40, 2, 4))
    assert (test_q.shape, test_k.shape) == ((3 * 32, 4, 4), (3 * 40, 2, 4))
    plain_q, plain_k = model.queries_and_keys(text, 1, rotated=False)
    torch.testing.assert_close(q[40 * 34 + 7], plain_q[34, :, 7])
    torch.testing.assert_close(k[40 * 34 + 7], plain_k[34, :, 7])
    torch.testing.assert_close(test_q[32], plain_q[1, :, 8])
    torch.testing.assert_close(test_k[41], plain_k[1, :, 1])


def test_all_distributions_are_compared_and_all_layers(example):
    if len(example.as_bytes(example.standard_library()[0])) < 5_000_000:
        pytest.skip("this Python's standard library comes without its source")
    names = list(example.sources(448))
    assert names == [*(f"layer-{i}" for i in range(4)), *synthetic.DISTRIBUTIONS]
