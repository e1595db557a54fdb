"""Train `triselect.models.ByteMoE` on the source text of Python's own standard library.

    python examples/train_byte_moe.py               # the shipped model: minutes on two cores
    python examples/train_byte_moe.py --steps 100 --out quick

The text is every *.py file of the running interpreter's standard library, as bytes, without
site-packages, tests, and the tables in `encodings`, `pydoc_data` and `_sysconfigdata`. Files whose
path has a CRC-32 divisible by 24 are held out. Ctrl-C stops training and writes what was reached.

Written to `--out`: `byte_moe.safetensors` (weights, bfloat16) and `router_logits.safetensors`
(router logits of every layer on held-out text, float16, with that text).
"""

import argparse
import lzma
import math
import os
import platform
import sysconfig
import time
import zlib
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from rich.console import Console
from rich.progress import BarColumn, Progress, TextColumn, TimeElapsedColumn, TimeRemainingColumn
from safetensors.torch import save_file
from torch import Tensor

import triselect
from triselect.models import ByteMoE, ByteMoEConfig, byte_moe
from triselect.moe import balance

EXCLUDED = {"site-packages", "test", "tests", "idle_test", "encodings", "pydoc_data", "turtledemo"}
HELD_OUT = 24
SAMPLE_SEQUENCES, SAMPLE_LENGTH = 16, 224


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


def train(
    model: ByteMoE,
    text: np.ndarray,
    *,
    steps: int,
    minutes: float = math.inf,
    batch: int = 8,
    lr: float = 3e-3,
    warmup: int = 50,
    balance_weight: float = 0.01,
    seed: int = 0,
    report: Callable[[int, float, float], None] = lambda step, done, loss: None,
) -> int:
    """Train in place and return the steps taken, fewer than `steps` where `minutes` ran out.

    `report` is given the step, the share of the work done, and the loss in bits per byte.
    """
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
            (loss + balance_weight * uneven).backward()
            torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
            optimizer.step()
            step += 1
            report(step, done, loss.item() / math.log(2))
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


def largest_shares(logits: Tensor, groups: int, top_k: int) -> list[float]:
    """For each layer, the largest share that one expert takes of its group's work under MoGE."""
    shares = []
    for layer in logits.float().flatten(1, 2):
        chosen = triselect.grouped_topk(layer, top_k, num_expert_group=groups, balanced=True)
        load = balance.expert_load(chosen.experts, layer.shape[1]).view(groups, -1)
        shares.append(float((load / load.sum(1, keepdim=True)).max()))
    return shares


def write(path: Path, save: Callable[[Path], None]) -> None:
    """Replace the file in one go, so that an interrupted run leaves a whole one."""
    partial = path.with_suffix(".partial")
    save(partial)
    os.replace(partial, path)


def save(
    model: ByteMoE, folder: Path, held_out: dict[str, bytes], about: dict[str, str]
) -> tuple[Path, Path]:
    """Write the weights, and the router logits that they give on the sample of held-out text."""
    folder.mkdir(parents=True, exist_ok=True)
    weights, router_logits = (
        folder / file.name for file in (byte_moe.WEIGHTS, byte_moe.ROUTER_LOGITS)
    )
    origin = f"Python {platform.python_version()} standard library"
    about = about | {"trained_on": origin}
    write(weights, lambda path: byte_moe.save_byte_moe(model, path, about))

    model = byte_moe.load_byte_moe(weights)  # rounded, as everyone will have it
    text, places = sample_text(held_out)
    trace = model.trace(text)
    logits = torch.stack(trace.router_logits).view(model.config.layers, *text.shape, -1)
    nats = F.cross_entropy(trace.logits[:, :-1].flatten(0, 1), text[:, 1:].flatten().long())
    about |= {
        "text": f"{origin}, held-out files, path:offset {' '.join(places)}",
        "license": "the text is CPython's, under the Python Software Foundation License Version 2",
        "bits_per_byte": f"{nats.item() / math.log(2):.4f}",
    }
    tensors = {"logits": logits.to(torch.float16), "text": text}
    write(router_logits, lambda path: save_file(tensors, path, about))
    return weights, router_logits


def measure(
    console: Console, weights: Path, router_logits: Path, text: np.ndarray, held_out: np.ndarray
) -> None:
    """Print what the saved model is worth, beside simpler predictors, and how it routes."""
    model = byte_moe.load_byte_moe(weights)
    console.print(f"bits per byte of held-out text: {bits_per_byte(model, held_out):.3f}")
    for order in range(5):
        baseline = ngram_bits_per_byte(text, held_out, order)
        console.print(f"  order-{order} counts of the training text: {baseline:.3f}")
    for name, compressed in (
        ("zlib -9", zlib.compress(held_out, 9)),
        ("lzma -9", lzma.compress(held_out, preset=9)),
    ):
        ratio = 8 * len(compressed) / len(held_out)
        console.print(f"  {name} of the held-out text alone: {ratio:.3f}")

    groups, top_k = model.config.expert_groups, model.config.top_k
    logits = byte_moe.router_logits(router_logits).logits
    console.print(f"mean imbalance score and straggler factor on held-out text, {groups} devices")
    for name, size, score, factor in imbalance_table(logits, groups, top_k):
        console.print(f"  {name:>15}  {size:5} tokens  {score:.3f}  {factor:.3f}")
    shares = ", ".join(f"{share:.3f}" for share in largest_shares(logits, groups, top_k))
    even = groups / model.config.experts
    console.print(
        f"largest share of one expert in its group, by layer: {shares} (even: {even:.3f})"
    )


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--steps", type=int, default=1500, help="of 2048 bytes (default: 1500)")
    parser.add_argument("--minutes", type=float, default=math.inf, help="stop by then")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument(
        "--out", type=Path, default=byte_moe.WEIGHTS.parent, help="folder (default: the package's)"
    )
    options = parser.parse_args()
    console = Console()

    training_files, held_out_files = standard_library()
    text, held_out = as_bytes(training_files), as_bytes(held_out_files)
    torch.manual_seed(options.seed)
    model = ByteMoE(ByteMoEConfig())
    parameters = sum(p.numel() for p in model.parameters())
    console.print(
        f"{parameters:,} parameters; {len(text):,} bytes of {len(training_files)} files, "
        f"{len(held_out):,} bytes of {len(held_out_files)} files held out"
    )

    wall, cpu = time.perf_counter(), time.process_time()
    columns = "{task.description}", BarColumn(), TimeElapsedColumn(), TimeRemainingColumn()
    bar = Progress(*(TextColumn(c) if isinstance(c, str) else c for c in columns), console=console)
    with bar:
        task = bar.add_task("training", total=1.0)
        smooth = 8.0

        def report(step: int, done: float, loss: float) -> None:
            nonlocal smooth
            smooth += 0.05 * (loss - smooth)
            bar.update(task, completed=done, description=f"step {step}: {smooth:.3f} bits per byte")

        steps = train(
            model,
            text,
            steps=options.steps,
            minutes=options.minutes,
            seed=options.seed,
            report=report,
        )
    wall, cpu = time.perf_counter() - wall, time.process_time() - cpu

    console.print(f"{steps} steps in {wall:.0f} s ({cpu:.0f} s of CPU time)")
    files = save(
        model, options.out, held_out_files, {"step": str(steps), "seed": str(options.seed)}
    )
    for file in files:
        console.print(f"{file}: {file.stat().st_size:,} bytes")
    with console.status("measuring"):
        measure(console, *files, text, held_out)


if __name__ == "__main__":
    main()
