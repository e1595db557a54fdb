"""Train `triselect.models.RecallModel` to answer questions about a noisy context.

    python examples/train_recall.py                         # the shipped model: minutes on one core
    python examples/train_recall.py --seed 1 --out other.safetensors

Contexts begin with 24 tokens and grow by 30 % whenever four of five answers are right, up to 256: a
model that sees 256 at once does not find out what is asked. Each of the three kinds of questions
(`triselect.models.recall_task`) has its own length; most steps are of the kind that is behind. When
all have arrived, the learning rate falls to zero in `--settle` steps. Ctrl-C ends a run and writes
what it reached.

Written to `--out`: the weights, bfloat16, with seed, steps, seconds of CPU time, and the accuracy
of each kind on contexts of 256 tokens that were not trained on. One thread is used unless told
otherwise: to train from several seeds, start as many processes.
"""

import argparse
import json
import math
import os
import random
import time
from collections.abc import Callable
from pathlib import Path
from typing import NamedTuple

import torch
import torch.nn.functional as F
from rich.console import Console
from rich.progress import BarColumn, Progress, TextColumn, TimeElapsedColumn
from torch import Tensor

from triselect.models import recall
from triselect.models.recall_task import KINDS, Kind, episodes, most_needles

SHORTEST, GROWTH, LEARNED = 24, 1.3, 0.8
BATCH, TOKENS = 64, 8192  # at most, in a step
LEARNING_RATE, WARMUP = 1.5e-3, 50
TRAINED_FROM = 1 << 32  # seeds of episodes: smaller ones are never trained on


class Step(NamedTuple):
    """One step: its number from 1, the length of contexts and the smoothed accuracy by kind."""

    number: int
    lengths: dict[Kind, int]
    accuracies: dict[Kind, float]


def plain_attention(model: recall.RecallModel) -> recall.Attention:
    """The model's own, written out: with it a step on a CPU takes less than half the time."""

    def attention(layer: int, q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        positions, group = torch.arange(q.shape[1]), q.shape[2] // k.shape[2]
        q, k = model.rotary.rotate(q, positions), model.rotary.rotate(k, positions)
        k, v = k.repeat_interleave(group, 2), v.repeat_interleave(group, 2)
        q, k, v = (x.transpose(1, 2) for x in (q * q.shape[-1] ** -0.5, k, v))
        unseen = torch.full((q.shape[2], q.shape[2]), -torch.inf, dtype=q.dtype).triu(1)
        weights = (q @ k.transpose(2, 3) + unseen).softmax(-1)
        return (weights @ v).transpose(1, 2)

    return attention


def train(
    model: recall.RecallModel,
    *,
    seed: int = 0,
    steps: int = 6000,
    settle: int = 500,
    report: Callable[[Step], None] = lambda step: None,
) -> int:
    """Train in place, at most `steps`, and return how many were taken."""
    optimizer = torch.optim.AdamW(model.parameters(), lr=LEARNING_RATE, fused=True)
    longest = model.config.context
    attention = plain_attention(model)
    lengths = dict.fromkeys(KINDS, SHORTEST)
    accuracies = dict.fromkeys(KINDS, 0.0)
    draw, settled, step = random.Random(seed), settle, 0
    model.train()
    try:
        while step < steps and settled > 0:
            for group in optimizer.param_groups:
                group["lr"] = LEARNING_RATE * min((step + 1) / WARMUP, settled / settle)
            kind = min(KINDS, key=lambda kind: (lengths[kind], accuracies[kind]))
            if step % 4 == 0:  # what is learnt is not forgotten
                kind = KINDS[step // 4 % len(KINDS)]
            length = lengths[kind]
            # Few needles are found out first, and many say more about it.
            most = most_needles(length, kind)
            needles = most if step % 2 else draw.randint(1, most)
            batch = min(BATCH, TOKENS // length)
            drawn = episodes(TRAINED_FROM * (1 + seed) + step, batch, length, kind, needles=needles)
            with torch.autocast("cpu", torch.bfloat16):
                logits = model(drawn.tokens, attention, length)
            logits = logits[:, drawn.asked - length].float()
            loss = F.cross_entropy(logits.flatten(0, 1), drawn.answers.flatten())
            optimizer.zero_grad()
            loss.backward()
            torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
            optimizer.step()
            step += 1
            settled -= min(lengths.values()) == longest
            right = (logits.argmax(-1) == drawn.answers).float().mean().item()
            accuracies[kind] += 0.1 * (right - accuracies[kind])
            if accuracies[kind] > LEARNED:
                lengths[kind] = min(math.ceil(GROWTH * length), longest)
            report(Step(step, lengths, accuracies))
    except KeyboardInterrupt:
        pass
    model.eval()
    return step


@torch.no_grad()
def accuracy(model: recall.RecallModel, kind: Kind, *, count: int = 256, seed: int = 0) -> float:
    """The share of tokens of answers that are right, on contexts as long as the longest."""
    drawn = episodes(seed, count, model.config.context, kind)
    found = model(drawn.tokens)[:, drawn.asked].argmax(-1)
    return (found == drawn.answers).float().mean().item()


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--steps", type=int, default=6000, help="at most (default: 6000)")
    parser.add_argument("--settle", type=int, default=500, help="the last ones (default: 500)")
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument(
        "--out", type=Path, default=recall.WEIGHTS, help="file (default: the package's)"
    )
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    torch.manual_seed(options.seed)
    model = recall.RecallModel()
    console = Console()

    columns = BarColumn(), TextColumn("{task.description}"), TimeElapsedColumn()
    wall, cpu = time.perf_counter(), time.process_time()
    with Progress(*columns, console=console) as bar:
        task = bar.add_task("", total=options.steps)

        def report(step: Step) -> None:
            kinds = ", ".join(
                f"{kind} {step.accuracies[kind]:.2f} at {step.lengths[kind]}" for kind in KINDS
            )
            bar.update(task, completed=step.number, description=f"step {step.number}: {kinds}")

        steps = train(
            model, seed=options.seed, steps=options.steps, settle=options.settle, report=report
        )
    wall, cpu = time.perf_counter() - wall, time.process_time() - cpu

    model.bfloat16().float()  # rounded, as it is written
    reached = {kind: round(accuracy(model, kind), 4) for kind in KINDS}
    console.print(f"seed {options.seed}: {steps} steps in {wall:.0f} s ({cpu:.0f} s of CPU time)")
    console.print(f"accuracy at {model.config.context} tokens: {reached}")
    about = {
        "seed": str(options.seed),
        "steps": str(steps),
        "cpu_seconds": f"{cpu:.0f}",
        "accuracy": json.dumps(reached),
    }
    partial = options.out.with_suffix(".partial")
    recall.save_recall(model, partial, about)
    os.replace(partial, options.out)  # in one go: an interrupted run leaves a whole file


if __name__ == "__main__":
    main()
