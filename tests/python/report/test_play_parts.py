"""The measurements of the guided run."""

import pytest
import torch

from triselect.report import capabilities, interpreted, layer, loads, machine
from triselect.report.equivalence import judge
from triselect.report.routers import DEEPSEEK_V3, PANGU
from triselect.report.speed import Speed, geometric_mean, sweep
from triselect.report.timing import Timing


def test_eager_is_the_reference_and_the_rest_is_counted(monkeypatch: pytest.MonkeyPatch) -> None:
    verdict = judge("eager", PANGU, torch.bfloat16, 300)
    assert (verdict.identical, verdict.tokens) == (300, 300)
    assert 0 < verdict.mean_error < verdict.worst_error < 1e-6

    right = type(PANGU).__call__

    def wrong(self, logits, *, backend):
        routing = right(self, logits, backend=backend)
        routing.experts[:7] = routing.experts[:7].flip(-1)
        return routing

    monkeypatch.setattr(type(PANGU), "__call__", wrong)
    assert judge("eager", PANGU, torch.float32, 300).identical == 293


def test_loads_of_three_routings_and_of_noise() -> None:
    plain, limited, balanced, noise = loads.measure()
    assert all(row.mean == 0 for row in balanced.imbalance)
    assert balanced.device_load == [1.0] * 8
    assert balanced.devices_per_token == 8
    assert limited.devices_per_token <= 4 < plain.devices_per_token < 8
    assert sum(plain.device_load) == pytest.approx(8)
    # Uniform choice of 8 of 64 experts on 8 devices: 2.684 / sqrt(B) (normal approximation).
    (at_64,) = (row.mean for row in noise.imbalance if row.tokens == 64)
    assert at_64 == pytest.approx(2.684 / 8, rel=0.05)
    assert [row.tokens for row in plain.imbalance] == list(loads.BATCHES)
    assert all(row.p10 <= row.mean <= row.p90 for row in noise.imbalance)


def test_sweep_times_everyone_and_says_who_is_missing() -> None:
    done = []
    rows = sweep(DEEPSEEK_V3, (1, 3), compiler=None, seconds=0, done=lambda: done.append(1))
    assert [row.tokens for row in rows] == [1, 3]
    assert len(done) == 2
    assert rows[0].ratio("composition") > 0
    assert rows[0].ratio("compiled") is None
    assert "compiled" in rows[0].unavailable


def test_the_layer_is_timed_against_what_gives_the_same(monkeypatch) -> None:
    done = []
    sizes = (64, 32, 16)
    rows = layer.measure((1, 3), sizes=sizes, seconds=0, done=lambda: done.append(1))
    assert [row.tokens for row in rows] == [1, 3]
    assert len(done) == 2
    assert rows[0].weight_bytes == 8 * 3 * 64 * 32 * 2  # all of its 8 experts
    assert set(rows[0].timings) == {"triselect", "int8", "grouped_mm", "loop"}
    monkeypatch.setattr(layer, "fused_moe", lambda hidden, *args, **scales: hidden)
    with pytest.raises(RuntimeError, match="differ"):
        layer.measure((1,), sizes=sizes, seconds=0)


def test_ratio_says_how_many_times_as_long_the_rival_takes() -> None:
    timings = {"triselect": Timing(1, 2, 3, 5), "composition": Timing(5, 6, 7, 5)}
    assert Speed("r", 1, "float32", timings, {}).ratio("composition") == 3
    assert geometric_mean([1.0, 4.0]) == pytest.approx(2)


def test_every_backend_has_a_reason_or_runs() -> None:
    found = {backend.name: backend.missing for backend in capabilities.available()}
    assert found["reference"] is None
    assert found["eager"] is None
    for choice in capabilities.choices():
        assert choice.why
        if choice.device == "CPU":
            assert choice.backend == ("eager" if found["native"] else "native")
    assert {"grouped_topk", "grouped_swiglu_up"} < set(capabilities.operators())
    assert "grouped_topk_backward" not in capabilities.operators()
    assert "shared" not in capabilities.operators()


def test_header_names_machine_versions_and_date() -> None:
    described = machine.describe()
    line = machine.header(described)
    for name in ("device", "torch", "python", "date"):
        assert described[name] in line
    assert f"{torch.get_num_threads()} thread" in line


def test_a_busy_machine_is_told_of() -> None:
    assert machine.busy({"load": 0.2, "cores": 2}) is None
    assert "load 5.1 on 2 cores" in machine.busy({"load": 5.1, "cores": 2})


@pytest.mark.slow
def test_interpreted_triton_is_equal() -> None:
    pytest.importorskip("triton")
    verdicts = interpreted.verdicts(tokens=2)
    assert len(verdicts) == 4
    assert all(v.identical == v.tokens == 2 for v in verdicts)


def test_interpreter_that_fails_says_why() -> None:
    with pytest.raises(interpreted.InterpreterFailed, match="invalid literal for int"):
        interpreted.verdicts(tokens="some")  # type: ignore[arg-type]
    with pytest.raises(interpreted.InterpreterFailed, match="no answer within"):
        interpreted.verdicts(tokens=1, timeout=0.01)
