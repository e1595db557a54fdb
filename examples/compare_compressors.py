"""Compare ways to calibrate ESA's compression of queries and keys, on tokens that none has seen.

    python examples/compare_compressors.py              # minutes on two cores
    python examples/compare_compressors.py --data misaligned layer-2 --dims 16 --seeds 0 1 2

Data: every layer of the shipped byte-level model, and the distributions of
`triselect.esa.synthetic`. Of the model, queries and keys before rotation: calibrated on random
windows of the standard library's source that the model was trained on, tested on the text that
ships with the model, of files held out. All keys of those 16 passages are one context of 3584
tokens, of which every query (the last 32 of each passage) selects one in 16. Of the distributions
as many, drawn anew.

The methods are those of `triselect.esa.calibrate`. Printed for each size: recall when every query
selects alone, with compressed keys in float32 and, for the closed forms, in fewer bits; recall when
32 queries select together; the share of the attention that is kept, mean and worst of the heads,
beside what selection by exact scores keeps. The gradient method's are means over the seeds.
"""

import argparse
import json
from collections.abc import Callable
from pathlib import Path
from statistics import mean
from typing import NamedTuple

import torch
from rich.console import Console
from rich.progress import BarColumn, Progress, TextColumn, TimeElapsedColumn
from rich.table import Table
from torch import Tensor
from train_byte_moe import as_bytes, batches, standard_library

from triselect import esa
from triselect.esa import synthetic
from triselect.esa.layout import Layout
from triselect.models import ByteMoE, load_byte_moe, router_logits

METHODS = ("closed_form", "centered", "pca", "gradient")
KEY_DTYPES = {"bf16": torch.bfloat16, "int8": torch.int8, "fp8": torch.float8_e4m3fn}
CHUNK, ONE_IN, LAST = 32, 16, 32
LAYOUT = Layout(8, 2, 32)


class Data(NamedTuple):
    """Queries and keys to calibrate on, and others to test with."""

    calibration: tuple[Tensor, Tensor]
    queries: Tensor
    keys: Tensor


def of_model(model: ByteMoE, layer: int, training: Tensor, test: Tensor) -> Data:
    def queries_and_keys(text: Tensor) -> tuple[Tensor, Tensor]:
        """``(sequences, tokens, heads, dim)``."""
        parts = [model.queries_and_keys(some, layer, rotated=False) for some in text.split(32)]
        q, k = (torch.cat(part).transpose(1, 2) for part in zip(*parts, strict=True))
        return q, k

    q, k = queries_and_keys(training)
    test_q, test_k = queries_and_keys(test)
    calibration = q.flatten(0, 1), k.flatten(0, 1)
    return Data(calibration, test_q[:, -LAST:].flatten(0, 1), test_k.flatten(0, 1))


def of_distribution(name: str, tokens: int, queries: int, keys: int) -> Data:
    q, k = synthetic.DISTRIBUTIONS[name](tokens + keys, LAYOUT, 0)
    return Data((q[:tokens], k[:tokens]), q[tokens : tokens + queries], k[tokens:])


def sources(tokens: int) -> dict[str, Callable[[], Data]]:
    """What to compare on, by name; each is made when it is called."""
    model, test = load_byte_moe(), router_logits().text
    length = test.shape[1]
    text = as_bytes(standard_library()[0])
    training = next(batches(text, -(-tokens // length), length - 1, seed=0))
    made: dict[str, Callable[[], Data]] = {
        f"layer-{layer}": lambda layer=layer: of_model(model, layer, training, test)
        for layer in range(model.config.layers)
    }
    size = len(test) * LAST, test.numel()
    for name in synthetic.DISTRIBUTIONS:
        made[name] = lambda name=name: of_distribution(name, tokens, *size)
    return made


def measure(data: Data, dim: int, method: str, seeds: list[int]) -> dict[str, float]:
    """Recalls and masses, means over the seeds where there are any to draw."""
    found = []
    for seed in seeds if method == "gradient" else seeds[:1]:
        compressor = esa.calibrate(*data.calibration, dim=dim, method=method, seed=seed)

        def assess(chunk: int = 1, compressor=compressor, **options) -> esa.Assessment:
            return esa.assess(
                compressor,
                data.queries,
                data.keys,
                top_k=len(data.keys) // ONE_IN,
                chunk=chunk,
                **options,
            )

        alone = assess()
        row = alone._asdict() | {"recall_of_32": assess(CHUNK).recall}
        if method in METHODS[:2]:
            row |= {name: assess(key_dtype=dtype).recall for name, dtype in KEY_DTYPES.items()}
        found.append(row)
    return {name: mean(row[name] for row in found) for name in found[0]}


def tables(rows: list[dict]) -> list[Table]:
    recall = Table(
        title="recall, compressed keys in float32 or as named; C queries select together"
    )
    mass = Table(title="share of the attention kept (by exact scores)")
    for name in ("data", "d'", "method", "C=1", *KEY_DTYPES, "C=32"):
        recall.add_column(name, justify="left" if name in ("data", "method") else "right")
    for name in ("data", "d'", "method", "mean", "worst head"):
        mass.add_column(name, justify="left" if name in ("data", "method") else "right")
    for row in rows:
        cells = [row["data"], str(row["dim"]), row["method"]]
        names = ("recall", *KEY_DTYPES, "recall_of_32")
        recall.add_row(*cells, *(f"{row[n]:.3f}" if n in row else "" for n in names))
        pairs = ("kept_mass", "exact_kept_mass"), ("worst_head_mass", "exact_worst_head_mass")
        mass.add_row(*cells, *(f"{row[a]:.3f} ({row[b]:.3f})" for a, b in pairs))
        if row["method"] == METHODS[-1]:
            recall.add_section()
            mass.add_section()
    return [recall, mass]


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--tokens", type=int, default=50_000, help="to calibrate on")
    parser.add_argument("--dims", type=int, nargs="+", default=[8, 16, 32], help="of 64")
    parser.add_argument("--seeds", type=int, nargs="+", default=[0], help="of the gradient method")
    parser.add_argument("--data", nargs="+", help="layer-0, ..., isotropic, ... (default: all)")
    parser.add_argument("--json", type=Path, help="write the rows here too")
    options = parser.parse_args()
    console = Console()

    made = sources(options.tokens)
    if unknown := set(options.data or ()) - made.keys():
        parser.error(f"--data must be among {', '.join(made)}, got {', '.join(sorted(unknown))}")
    names = options.data or list(made)
    rows = []
    columns = TextColumn("{task.description}"), BarColumn(), TimeElapsedColumn()
    with Progress(*columns, console=console) as bar:
        task = bar.add_task("", total=len(names) * len(options.dims) * len(METHODS))
        for name in names:
            data = made[name]()
            for dim in options.dims:
                for method in METHODS:
                    bar.update(task, description=f"{name}, d' = {dim}, {method}")
                    row = {"data": name, "dim": dim, "method": method}
                    rows.append(row | measure(data, dim, method, options.seeds))
                    bar.advance(task)
    for table in tables(rows):
        console.print(table)
    if options.json:
        options.json.write_text(json.dumps(rows, indent=1) + "\n")


if __name__ == "__main__":
    main()
