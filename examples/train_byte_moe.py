"""Train `triselect.models.ByteMoE` on the source text of Python's own standard library.

    python examples/train_byte_moe.py               # the shipped models: minutes on two cores each
    python examples/train_byte_moe.py --routing top-k --steps 100 --out quick

Once with MoGE and once with plain top-k: the same sizes, text, batches, schedule and balance loss,
and from the same seed the same initial weights. Only what the router may choose differs.

The text is every *.py file of the running interpreter's standard library, as bytes, without
site-packages, tests, and the tables in `encodings`, `pydoc_data` and `_sysconfigdata`. Files whose
path has a CRC-32 divisible by 24 are held out. Ctrl-C ends a run and writes what it reached.

Written to `--out`, for MoGE: `byte_moe.safetensors` (weights, bfloat16) and
`router_logits.safetensors` (router logits of every layer on held-out text, float16, with that
text); for top-k the same with `_top_k` in the names. Of several seeds, the first is kept so.
`training.json` holds loss and load of every run.
"""

import argparse
import itertools
import lzma
import math
import os
import platform
import sysconfig
import time
import zlib
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import NamedTuple

import numpy as np
import torch
import torch.nn.functional as F
from rich.console import Console
from rich.progress import BarColumn, Progress, TextColumn, TimeElapsedColumn, TimeRemainingColumn
from safetensors.torch import save_file
from torch import Tensor

import triselect
from triselect.models import ByteMoE, ByteMoEConfig, byte_moe, training
from triselect.moe import balance

EXCLUDED = {"site-packages", "test", "tests", "idle_test", "encodings", "pydoc_data", "turtledemo"}
HELD_OUT = 24
SAMPLE_SEQUENCES, SAMPLE_LENGTH = 16, 224
BATCH, BALANCE_WEIGHT = 8, 0.01
# Expert groups, and the files of the package that hold the trained model.
ROUTINGS = {
    "moge": (8, byte_moe.WEIGHTS, byte_moe.ROUTER_LOGITS),
    "top-k": (1, byte_moe.TOP_K_WEIGHTS, byte_moe.TOP_K_ROUTER_LOGITS),
}


def standard_library() -> tuple[dict[str, bytes], dict[str, bytes]]:
    """Source files for training and held out, by path."""
    root = Path(sysconfig.get_paths()["stdlib"])
    splits: tuple[dict[str, bytes], dict[str, bytes]] = {}, {}
    for file in sorted(root.rglob("*.py")):
        path = file.relative_to(root)
        if EXCLUDED.isdisjoint(path.parts) and not path.name.startswith("_sysconfigdata"):
            # By a hash of the path: the same file is held out whatever else a Python version ships.
            name = path.as_posix()
            splits[zlib.crc32(name.encode()) % HELD_OUT == 0][name] = file.read_bytes()
    return splits


def as_bytes(files: dict[str, bytes]) -> np.ndarray:
    return np.frombuffer(b"".join(files.values()), np.uint8)


def ngram_bits_per_byte(train: np.ndarray, text: np.ndarray, order: int) -> float:
    """Cross-entropy of `text` under byte counts in `train` after the `order` bytes before each.

    Interpolated with all shorter contexts (Witten-Bell): with T different successors seen in n
    occurrences, p = (count + T · p_shorter) / (n + T).
    """
    probability = np.full(len(text) - order, 1 / 256)
    for n in range(order + 1):
        seen, counts = np.unique(_windows(train, n + 1), return_counts=True)
        contexts, first = np.unique(seen >> 8, return_index=True)
        total, distinct = np.add.reduceat(counts, first), np.diff(np.append(first, len(seen)))
        wanted = _windows(text[order - n :], n + 1)
        count = _look_up(seen, counts, wanted)
        prefix = wanted >> 8
        total, distinct = _look_up(contexts, total, prefix), _look_up(contexts, distinct, prefix)
        known = total > 0
        probability[known] = ((count + distinct * probability) / (total + distinct + ~known))[known]
    return float(-np.log2(probability).mean())


def _windows(text: np.ndarray, length: int) -> np.ndarray:
    """Every run of `length` bytes as one integer, first byte highest."""
    runs = np.zeros(len(text) - length + 1, np.int64)
    for i in range(length):
        runs = runs << 8 | text[i : i + len(runs)]
    return runs


def _look_up(keys: np.ndarray, values: np.ndarray, wanted: np.ndarray) -> np.ndarray:
    at = np.searchsorted(keys, wanted).clip(max=len(keys) - 1)
    return np.where(keys[at] == wanted, values[at], 0)


def batches(text: np.ndarray, size: int, length: int, seed: int) -> Iterator[Tensor]:
    """Windows ``(size, length + 1)`` from random places, forever."""
    generator = np.random.default_rng(seed)
    while True:
        starts = generator.integers(0, len(text) - length, size)
        yield torch.from_numpy(text[starts[:, None] + np.arange(length + 1)].astype(np.int64))


class Step(NamedTuple):
    """One step of training: its number from 1, the share of the work that was done before it, its
    losses, the first in bits per byte, and the experts that every layer chose."""

    number: int
    done: float
    bits_per_byte: float
    balance_loss: float
    experts: tuple[Tensor, ...]


def train(
    model: ByteMoE,
    text: np.ndarray,
    *,
    steps: int,
    minutes: float = math.inf,
    batch: int = BATCH,
    lr: float = 3e-3,
    warmup: int = 50,
    seed: int = 0,
    report: Callable[[Step], None] = lambda step: None,
) -> int:
    """Train in place and return the steps taken, fewer than `steps` where `minutes` ran out."""
    decay = [p for p in model.parameters() if p.dim() > 1]
    rest = [p for p in model.parameters() if p.dim() == 1]
    optimizer = torch.optim.AdamW(
        [{"params": decay, "weight_decay": 0.1}, {"params": rest, "weight_decay": 0.0}],
        lr=lr,
        betas=(0.9, 0.98),
        fused=True,
    )
    start, step = time.monotonic(), 0
    model.train()
    try:
        for windows in batches(text, batch, model.config.context, seed):
            done = max(step / steps, (time.monotonic() - start) / (60 * minutes))
            if done >= 1:
                break
            for group in optimizer.param_groups:
                group["lr"] = lr * min((step + 1) / warmup, 0.51 + 0.49 * math.cos(math.pi * done))
            with torch.autocast("cpu", torch.bfloat16):
                trace = model.trace(windows[:, :-1])
            loss = F.cross_entropy(trace.logits.float().flatten(0, 1), windows[:, 1:].flatten())
            routings = zip(trace.router_logits, trace.experts, strict=True)
            uneven = torch.stack([balance.balance_loss(*routing) for routing in routings]).mean()
            optimizer.zero_grad()
            (loss + BALANCE_WEIGHT * uneven).backward()
            torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
            optimizer.step()
            step += 1
            report(Step(step, done, loss.item() / math.log(2), uneven.item(), trace.experts))
    except KeyboardInterrupt:
        pass
    model.eval()
    return step


@torch.no_grad()
def bits_per_byte(model: ByteMoE, text: np.ndarray) -> float:
    """Cross-entropy of the text cut into windows: their first bytes are guessed without context."""
    length = model.config.context
    windows = text[: len(text) // (length + 1) * (length + 1)].reshape(-1, length + 1)
    bits = 0.0
    for chunk in torch.from_numpy(windows.astype(np.int64)).split(32):
        logits = model(chunk[:, :-1]).flatten(0, 1)
        bits += F.cross_entropy(logits, chunk[:, 1:].flatten(), reduction="sum").item()
    return bits / (windows.shape[0] * length * math.log(2))


def sample_text(held_out: dict[str, bytes]) -> tuple[Tensor, list[str]]:
    """The middle `SAMPLE_LENGTH` bytes of the largest held-out files, and where they are."""
    names = sorted(sorted(held_out, key=lambda name: -len(held_out[name]))[:SAMPLE_SEQUENCES])
    places, passages = [], bytearray()
    for name in names:
        start = (len(held_out[name]) - SAMPLE_LENGTH) // 2
        places.append(f"{name}:{start}")
        passages += held_out[name][start : start + SAMPLE_LENGTH]
    return torch.frombuffer(passages, dtype=torch.uint8).view(len(names), -1), places


def imbalance_table(logits: Tensor, groups: int, top_k: int) -> list[tuple[str, int, float, float]]:
    """Mean imbalance score and straggler factor, a group to a device, by routing and batch size.

    `logits (layers, sequences, tokens, E)`; batches are random draws of positions.
    """
    experts = logits.shape[-1]
    half = groups // 2
    routings: dict[str, dict] = {
        "top-k": {},
        f"{half} of {groups} groups": {"num_expert_group": groups, "topk_group": half},
        "MoGE": {"num_expert_group": groups, "balanced": True},
    }
    generator = torch.Generator().manual_seed(0)
    rows = []
    for name, options in routings.items():
        for size in (16, 256, 1024):
            scores, factors = [], []
            for layer in logits.float().flatten(1, 2):
                for _ in range(64):
                    batch = layer[torch.randperm(len(layer), generator=generator)[:size]]
                    chosen = triselect.grouped_topk(batch, top_k, **options).experts
                    scores.append(balance.imbalance_score(chosen, experts, groups))
                    factors.append(balance.straggler_factor(chosen, experts, groups))
            rows.append(
                (name, size, float(torch.stack(scores).mean()), float(torch.stack(factors).mean()))
            )
    return rows


def largest_shares(logits: Tensor, config: ByteMoEConfig) -> list[float]:
    """For each layer, the largest share of the tokens that one expert of the model gets."""
    shares = []
    for layer in logits.float().flatten(1, 2):
        chosen = triselect.grouped_topk(
            layer, config.top_k, num_expert_group=config.expert_groups, balanced=True
        )
        load = balance.expert_load(chosen.experts, config.experts)
        shares.append(float(load.max() / len(layer)))
    return shares


def write(path: Path, save: Callable[[Path], None]) -> None:
    """Replace the file in one go, so that an interrupted run leaves a whole one."""
    partial = path.with_suffix(".partial")
    save(partial)
    os.replace(partial, path)


def save(
    model: ByteMoE,
    weights: Path,
    router_logits: Path,
    held_out: dict[str, bytes],
    about: dict[str, str],
) -> None:
    """Write the weights, and the router logits that they give on the sample of held-out text."""
    write(weights, lambda path: byte_moe.save_byte_moe(model, path, about))

    model = byte_moe.load_byte_moe(weights)  # rounded, as everyone will have it
    text, places = sample_text(held_out)
    trace = model.trace(text)
    logits = torch.stack(trace.router_logits).view(model.config.layers, *text.shape, -1)
    nats = F.cross_entropy(trace.logits[:, :-1].flatten(0, 1), text[:, 1:].flatten().long())
    about = about | {
        "text": f"{about['trained_on']}, held-out files, path:offset {' '.join(places)}",
        "license": "the text is CPython's, under the Python Software Foundation License Version 2",
        "bits_per_byte": f"{nats.item() / math.log(2):.4f}",
    }
    tensors = {"logits": logits.to(torch.float16), "text": text}
    write(router_logits, lambda path: save_file(tensors, path, about))


def baselines(console: Console, text: np.ndarray, held_out: np.ndarray) -> None:
    """Print what simpler predictors are worth."""
    console.print("bits per byte of held-out text by")
    for order in range(5):
        baseline = ngram_bits_per_byte(text, held_out, order)
        console.print(f"  order-{order} counts of the training text: {baseline:.3f}")
    for name, compressed in (
        ("zlib -9", zlib.compress(held_out, 9)),
        ("lzma -9", lzma.compress(held_out, preset=9)),
    ):
        ratio = 8 * len(compressed) / len(held_out)
        console.print(f"  {name} of the held-out text alone: {ratio:.3f}")


def show_load(console: Console, config: ByteMoEConfig, router_logits: Path) -> None:
    """Print how a saved model routes, and how its logits would be routed otherwise."""
    devices = training.DEVICES
    logits = byte_moe.router_logits(router_logits).logits
    console.print(f"mean imbalance score and straggler factor on held-out text, {devices} devices")
    for name, size, score, factor in imbalance_table(logits, devices, config.top_k):
        console.print(f"  {name:>15}  {size:5} tokens  {score:.3f}  {factor:.3f}")
    shares = ", ".join(f"{share:.3f}" for share in largest_shares(logits, config))
    even = config.top_k / config.experts
    console.print(f"largest share of the tokens for one expert, by layer: {shares} (even: {even})")


def run(
    console: Console, text: np.ndarray, routing: str, seed: int, steps: int, minutes: float
) -> tuple[ByteMoE, training.Recorder, int]:
    """Train behind a progress bar: the model, what was recorded, and the steps taken."""
    torch.manual_seed(seed)
    model = ByteMoE(ByteMoEConfig(expert_groups=ROUTINGS[routing][0]))
    recorder = training.Recorder(model.config.experts)
    wall, cpu = time.perf_counter(), time.process_time()
    columns = "{task.description}", BarColumn(), TimeElapsedColumn(), TimeRemainingColumn()
    bar = Progress(*(TextColumn(c) if isinstance(c, str) else c for c in columns), console=console)
    with bar:
        task = bar.add_task("training", total=1.0)
        smooth = 8.0

        def report(step: Step) -> None:
            nonlocal smooth
            smooth += 0.05 * (step.bits_per_byte - smooth)
            description = f"{routing}, step {step.number}: {smooth:.3f} bits per byte"
            bar.update(task, completed=step.done, description=description)
            recorder.add(step.number, step.bits_per_byte, step.balance_loss, step.experts)

        taken = train(model, text, steps=steps, minutes=minutes, seed=seed, report=report)
    wall, cpu = time.perf_counter() - wall, time.process_time() - cpu
    console.print(
        f"{routing}, seed {seed}: {taken} steps in {wall:.0f} s ({cpu:.0f} s of CPU time)"
    )
    return model, recorder, taken


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--routing", choices=[*ROUTINGS, "both"], default="both")
    parser.add_argument("--steps", type=int, default=1500, help="of 2048 bytes (default: 1500)")
    parser.add_argument("--minutes", type=float, default=math.inf, help="end each run by then")
    parser.add_argument("--seeds", type=int, nargs="+", default=[0], help="a run for each")
    parser.add_argument(
        "--out", type=Path, default=byte_moe.WEIGHTS.parent, help="folder (default: the package's)"
    )
    options = parser.parse_args()
    console = Console()

    training_files, held_out_files = standard_library()
    text, held_out = as_bytes(training_files), as_bytes(held_out_files)
    console.print(
        f"{len(text):,} bytes of {len(training_files)} files, "
        f"{len(held_out):,} bytes of {len(held_out_files)} files held out"
    )
    baselines(console, text, held_out)

    options.out.mkdir(parents=True, exist_ok=True)
    origin = f"Python {platform.python_version()} standard library"
    routings = list(ROUTINGS) if options.routing == "both" else [options.routing]
    for seed, routing in itertools.product(options.seeds, routings):
        model, recorder, steps = run(console, text, routing, seed, options.steps, options.minutes)
        kept = seed == options.seeds[0]
        if kept:
            weights, logits = (options.out / file.name for file in ROUTINGS[routing][1:])
            about = {"step": str(steps), "seed": str(seed), "trained_on": origin}
            save(model, weights, logits, held_out_files, about)
            show_load(console, model.config, logits)
        model.bfloat16().float()  # rounded, as it is written
        bits = bits_per_byte(model, held_out)
        console.print(f"{routing}, seed {seed}: {bits:.3f} bits per byte of held-out text")
        record = training.Run(
            routing=routing,
            seed=seed,
            steps=steps,
            batch_bytes=BATCH * model.config.context,
            balance_weight=BALANCE_WEIGHT,
            trained_on=origin,
            kept=kept,
            bits_per_byte=round(bits, 4),
            records=recorder.records,
        )
        training.add_run(record, options.out / training.TRAINING.name)


if __name__ == "__main__":
    main()
