"""The record of a training: what is in it, how it is kept, and the one that is shipped."""

import json
import sys
from dataclasses import replace
from pathlib import Path
from types import ModuleType

import numpy as np
import pytest
import torch

from triselect.models import ByteMoE, ByteMoEConfig, byte_moe, load_byte_moe, router_logits
from triselect.models.training import EVERY, TRAINING, Record, Recorder, Run, add_run, read_runs

TINY = ByteMoEConfig(width=16, layers=1, heads=2, kv_heads=1, expert_width=2, context=24)
RUN = Run("moge", 0, 50, 2048, 0.01, "text", True, 2.5, [Record(25, 3.0, 1.1, [0.5], [1.5], [0.2])])


@pytest.fixture(scope="module")
def shipped() -> dict[str, list[Run]]:
    runs = read_runs()
    return {name: [run for run in runs if run.routing == name] for name in ("moge", "top-k")}


def test_a_record_is_the_mean_of_its_steps() -> None:
    even = torch.arange(64).view(8, 8)  # a token to a device: each has 8 of 64 evaluations
    first = even[:1].expand(8, -1)  # all on the first device
    recorder = Recorder(64)
    for step in range(1, 3 * EVERY):
        recorder.add(step, float(step), 2.0, (even, first if step <= 5 else even))
    record, later = recorder.records  # the third is not complete
    assert later == Record(2 * EVERY, EVERY + (EVERY + 1) / 2, 2.0, [0, 0], [1, 1], [1 / 8, 1 / 8])
    assert record.step == EVERY
    assert record.bits_per_byte == (EVERY + 1) / 2
    assert record.balance_loss == 2
    assert record.imbalance == pytest.approx([0, 5 / EVERY * 8])
    assert record.straggler == pytest.approx([1, 1 + 5 / EVERY * 7])
    assert record.largest_share == pytest.approx([1 / 8, 1 / 8 + 5 / EVERY * 7 / 8])


def test_runs_come_back_as_written_and_the_same_run_takes_its_own_place(tmp_path: Path) -> None:
    path = tmp_path / "training.json"
    for run in (RUN, replace(RUN, routing="top-k"), replace(RUN, seed=1, records=[])):
        add_run(run, path)
    again = replace(RUN, bits_per_byte=2.25)
    add_run(again, path)
    assert read_runs(path) == [
        again,
        replace(RUN, seed=1, records=[]),
        replace(RUN, routing="top-k"),
    ]
    assert path.read_text().count('\n{"step"') == 2, "a record to a line"


def test_the_example_trains_both_ways_and_writes_it_down(
    example: ModuleType, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    text = b"".join(b"for i in range(%d):\n    print(i, %d)\n" % (i, i * i) for i in range(400))
    files = {"a.py": text}, {"b.py": text[::2], "c.py": text[1::2]}
    monkeypatch.setattr(example, "standard_library", lambda: files)
    monkeypatch.setattr(
        example, "ByteMoEConfig", lambda expert_groups: replace(TINY, expert_groups=expert_groups)
    )
    out = tmp_path / "out"
    arguments = f"x --steps {2 * EVERY} --seeds 3 4 --out {out}".split()
    monkeypatch.setattr(sys, "argv", arguments)
    example.main()

    runs = read_runs(out / "training.json")
    assert [(r.routing, r.seed, r.kept) for r in runs] == [
        ("moge", 3, True),
        ("moge", 4, False),
        ("top-k", 3, True),
        ("top-k", 4, False),
    ]
    for run in runs:
        assert [record.step for record in run.records] == [EVERY, 2 * EVERY]
        assert run.records[1].bits_per_byte < run.records[0].bits_per_byte - 0.5
        for record in run.records:
            assert len(record.imbalance) == len(record.straggler) == TINY.layers
            assert (max(record.imbalance) == 0) == (run.routing == "moge")
            assert (max(record.straggler) == 1) == (run.routing == "moge")
            assert 1 / 8 <= min(record.largest_share) <= max(record.largest_share) <= 1

    for run in (runs[0], runs[2]):
        _, *names = example.ROUTINGS[run.routing]
        weights, logits = (out / file.name for file in names)
        model = load_byte_moe(weights)
        assert model.config.expert_groups == (8 if run.routing == "moge" else 1)
        held_out = np.frombuffer(b"".join(files[1].values()), np.uint8)
        assert example.bits_per_byte(model, held_out) == pytest.approx(run.bits_per_byte, abs=1e-3)
        assert router_logits(logits).logits.shape == (1, 2, 224, 64)
    assert {path.suffix for path in out.iterdir()} == {".json", ".safetensors"}


def test_both_routings_start_from_the_same_weights() -> None:
    starts = []
    for groups in (8, 1):
        torch.manual_seed(0)
        starts.append(ByteMoE(replace(TINY, expert_groups=groups)).state_dict())
    for name, weight in starts[0].items():
        assert torch.equal(weight, starts[1][name]), name


def test_shipped_runs_differ_in_nothing_but_routing_and_seed(shipped: dict[str, list[Run]]) -> None:
    assert TRAINING.stat().st_size < 50e3
    settings = {
        (run.steps, run.batch_bytes, run.balance_weight, run.trained_on)
        for runs in shipped.values()
        for run in runs
    }
    assert len(settings) == 1
    assert [r.seed for r in shipped["moge"]] == [r.seed for r in shipped["top-k"]]


@pytest.mark.parametrize(
    ("routing", "weights"), [("moge", byte_moe.WEIGHTS), ("top-k", byte_moe.TOP_K_WEIGHTS)]
)
def test_shipped_weights_are_of_a_recorded_run(
    routing: str, weights: Path, shipped: dict[str, list[Run]]
) -> None:
    safetensors = pytest.importorskip("safetensors")
    (run,) = (run for run in shipped[routing] if run.kept)
    with safetensors.safe_open(str(weights), "pt") as file:
        about = file.metadata()
    assert about["seed"] == str(run.seed)
    assert about["step"] == str(run.steps)
    assert about["trained_on"] == run.trained_on
    assert json.loads(about["config"])["context"] * 8 == run.batch_bytes


def test_shipped_runs_learned_and_moge_was_balanced_throughout(
    shipped: dict[str, list[Run]],
) -> None:
    for routing, runs in shipped.items():
        for run in runs:
            assert [r.step for r in run.records] == list(range(EVERY, run.steps + 1, EVERY))
            assert run.records[-1].bits_per_byte < run.records[0].bits_per_byte - 2
            assert 1.5 < run.bits_per_byte < 2.2
            for record in run.records:
                if routing == "moge":
                    assert set(record.imbalance) == {0.0}
                    assert set(record.straggler) == {1.0}
                else:
                    assert min(record.imbalance) > 0
                    assert min(record.straggler) > 1
