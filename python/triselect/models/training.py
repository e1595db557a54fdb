"""How the shipped models were trained: loss and load of the experts along the way.

`examples/train_byte_moe.py` records, `triselect play` shows.
"""

import json
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

import torch
from torch import Tensor

from triselect.moe import balance

TRAINING = Path(__file__).with_name("training.json")
DEVICES = 8
EVERY = 25  # steps in a record


@dataclass(frozen=True)
class Record:
    """Means over the `EVERY` training batches up to `step`.

    The loss in bits per byte; the balance loss, a mean over layers; and for each layer the
    imbalance score and the straggler factor of `DEVICES` devices, and the largest share of the
    tokens that one expert gets (even: top_k / E).
    """

    step: int
    bits_per_byte: float
    balance_loss: float
    imbalance: list[float]
    straggler: list[float]
    largest_share: list[float]


@dataclass(frozen=True)
class Run:
    """One training: `steps` of `batch_bytes` bytes each, with `balance_weight` times the balance
    loss. `bits_per_byte` is that of all held-out text; `kept`: its weights were written."""

    routing: str
    seed: int
    steps: int
    batch_bytes: int
    balance_weight: float
    trained_on: str
    kept: bool
    bits_per_byte: float
    records: list[Record]


class Recorder:
    """Collects `records` from what every training step gives."""

    def __init__(self, experts: int) -> None:
        self.experts = experts
        self.records: list[Record] = []
        self._rows: list[Tensor] = []

    def add(
        self, step: int, bits_per_byte: float, balance_loss: float, experts: Sequence[Tensor]
    ) -> None:
        """Of one step: `experts` are those that each layer chose, ``(tokens, top_k)``."""
        loads = [
            (
                balance.imbalance_score(chosen, self.experts, DEVICES),
                balance.straggler_factor(chosen, self.experts, DEVICES),
                balance.expert_load(chosen, self.experts).amax() / len(chosen),
            )
            for chosen in experts
        ]
        row = torch.tensor([[float(value) for value in load] for load in loads])
        losses = torch.tensor([[bits_per_byte, balance_loss, 0.0]])
        self._rows.append(torch.cat([losses, row]))
        if len(self._rows) == EVERY:
            (bits, uneven, _), *layers = torch.stack(self._rows).mean(0).tolist()
            columns = (
                [round(value, 4) for value in column] for column in zip(*layers, strict=True)
            )
            self.records.append(Record(step, round(bits, 4), round(uneven, 4), *columns))
            self._rows.clear()


def read_runs(path: Path | str = TRAINING) -> list[Run]:
    """The shipped training runs, or others that `examples/train_byte_moe.py` recorded."""
    runs = json.loads(Path(path).read_text(encoding="utf-8"))
    return [Run(**run | {"records": [Record(**r) for r in run["records"]]}) for run in runs]


def add_run(run: Run, path: Path) -> None:
    """Write `run` into the file, in place of one of the same routing and seed; others stay."""
    runs = {(r.routing, r.seed): r for r in (read_runs(path) if path.exists() else [])}
    runs[run.routing, run.seed] = run
    blocks = []
    for _, each in sorted(runs.items()):
        fields = asdict(each)
        # A record to a line: short to read, and a diff shows which steps changed.
        records = ",\n".join(json.dumps(record) for record in fields.pop("records"))
        blocks.append(f'{json.dumps(fields, indent=1)[:-2]},\n "records": [\n{records}\n]}}')
    path.write_text("[\n" + ",\n".join(blocks) + "\n]\n", encoding="utf-8")
