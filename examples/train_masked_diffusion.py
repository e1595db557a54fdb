"""Train `triselect.models.MaskedDiffusion` to solve puzzles by filling in what is masked.

    python examples/train_masked_diffusion.py                  # the shipped model, on one core
    python examples/train_masked_diffusion.py --seed 1 --out other.safetensors

Every other step is Latin squares: of a square each cell is masked with a probability that is drawn
anew for every square. The rest is letters, in blocks: some are whole, the next ones lose more and
more of their letters, as they stand in a pipeline (D2F). Of half of them one to three blocks see
each other, as the decoder's window does with ``attention="full"``; a model that has only seen
blocks one after the other breaks under it. Ctrl-C ends a run and writes what it reached.

Written to `--out`: the weights, bfloat16, with seed, steps, seconds of CPU time, and how many of
500 puzzles that were not trained on are solved one token a round, and by a threshold. One thread is
used unless told otherwise: to train from several seeds, start as many processes.
"""

import argparse
import json
import os
import time
from collections.abc import Callable
from pathlib import Path
from typing import NamedTuple

import torch
import torch.nn.functional as F
from rich.console import Console
from rich.progress import BarColumn, Progress, TextColumn, TimeElapsedColumn, TimeRemainingColumn
from torch import Tensor
from torch.nn.attention import SDPBackend, sdpa_kernel

from triselect.models import masked_diffusion
from triselect.models.puzzles import BLOCK, EOS, KINDS, MASK, VOCABULARY, Kind, Puzzles, puzzles
from triselect.report.lopa_fronts import TARGET, measure
from triselect.report.lopa_methods import ONE, THRESHOLD

BATCH, STEPS = 64, 5400
LEARNING_RATE, WARMUP = 1.5e-3, 100
MAX_LENGTH = 128
TRAINED_FROM = 1 << 32  # seeds of puzzles, beside that none of them is held out
TESTED = 500  # puzzles of each kind, none of which was trained on


class Step(NamedTuple):
    """One step: its number from 1, the kind, and the share of masked tokens that it got right."""

    number: int
    kind: Kind
    right: float


def mask_some(drawn: Puzzles, generator: torch.Generator) -> tuple[Tensor, Tensor, Tensor]:
    """Answers ``(B, G)`` with masks, the level of each position (see `lopa.Denoiser`), and the
    weight of its loss: 0 where nothing is masked, else less where much is.
    """
    count, length = drawn.answers.shape
    blocks = length // BLOCK[drawn.kind]
    whole = torch.randint(blocks, (count, 1), generator=generator)
    index = torch.arange(blocks).expand(count, -1)
    ratio = torch.rand(count, blocks, generator=generator).masked_fill(index < whole, 0.0)
    ratio = ratio.sort(1).values  # more is missing in each block than in the one before
    wide = torch.randint(1, 4, (count, 1), generator=generator)
    together = (index >= whole) & (index < whole + wide)
    together &= torch.rand(count, 1, generator=generator) < 0.5
    level = 1 + index.where(~together, whole)

    ratio, level = (x.repeat_interleave(BLOCK[drawn.kind], 1) for x in (ratio, level))
    masked = torch.rand(count, length, generator=generator) < ratio
    weight = masked * ratio.clamp_min(1e-3) ** -0.5
    behind = (drawn.answers == EOS).cumsum(1) > 1
    weight = weight.where(~behind, 0.1 * weight)  # most of what is masked, and soon learnt
    return drawn.answers.masked_fill(masked, MASK), level.int(), weight


def train(
    model: masked_diffusion.MaskedDiffusion,
    *,
    seed: int = 0,
    steps: int = STEPS,
    report: Callable[[Step], None] = lambda step: None,
) -> int:
    """Train in place, and return how many steps were taken."""
    optimizer = torch.optim.AdamW(
        model.parameters(), lr=LEARNING_RATE, betas=(0.9, 0.98), weight_decay=0.01, fused=True
    )
    generator = torch.Generator().manual_seed(seed)
    step = 0
    model.train()
    try:
        for step in range(1, steps + 1):
            for group in optimizer.param_groups:
                group["lr"] = LEARNING_RATE * min(step / WARMUP, 1 - (step - 1) / steps)
            kind = KINDS[step % 2]
            drawn = puzzles(TRAINED_FROM * (1 + seed) + step, BATCH, kind, held_out=False)
            masked, level, weight = mask_some(drawn, generator)
            prompt = torch.zeros_like(drawn.prompts, dtype=torch.int32)
            tokens = torch.cat([drawn.prompts, masked], 1)[:, None]
            level = torch.cat([prompt, level], 1)
            # Written out, attention takes a CPU two thirds of the time that the fused one takes.
            with torch.autocast("cpu", torch.bfloat16), sdpa_kernel(SDPBackend.MATH):
                logits = model(tokens, prompt[:, 0], level, None)
            logits = logits[:, 0, prompt.shape[1] :].float()
            each = F.cross_entropy(logits.transpose(1, 2), drawn.answers, reduction="none")
            masks = (weight > 0).sum()
            loss = (weight * each).sum() / masks.clamp_min(1)
            optimizer.zero_grad()
            loss.backward()
            torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
            optimizer.step()
            right = (logits.argmax(-1) == drawn.answers) & (weight > 0)
            report(Step(step, kind, float(right.sum() / masks)))
    except KeyboardInterrupt:
        pass
    model.eval()
    return step


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--steps", type=int, default=STEPS, help=f"(default: {STEPS})")
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument(
        "--out", type=Path, default=masked_diffusion.WEIGHTS, help="file (default: the package's)"
    )
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    torch.manual_seed(options.seed)
    model = masked_diffusion.MaskedDiffusion(VOCABULARY, max_length=MAX_LENGTH, eos_token=EOS)
    console = Console()

    columns = BarColumn(), TextColumn("{task.description}"), TimeElapsedColumn()
    wall, cpu = time.perf_counter(), time.process_time()
    with Progress(*columns, TimeRemainingColumn(), console=console) as bar:
        task = bar.add_task("", total=options.steps)
        right = dict.fromkeys(KINDS, 0.0)

        def report(step: Step) -> None:
            right[step.kind] += 0.05 * (step.right - right[step.kind])
            shares = ", ".join(f"{kind} {share:.3f}" for kind, share in right.items())
            bar.update(task, completed=step.number, description=f"step {step.number}: {shares}")

        steps = train(model, seed=options.seed, steps=options.steps, report=report)
    wall, cpu = time.perf_counter() - wall, time.process_time() - cpu

    for parameter in model.parameters():
        parameter.data = parameter.data.bfloat16().float()  # rounded, as it is written
    console.print(f"seed {options.seed}: {steps} steps in {wall:.0f} s ({cpu:.0f} s of CPU time)")
    reached = {
        kind: {
            name: measure(model, puzzles(0, TESTED, kind), method, TARGET).accuracy.mean
            for name, method in ((ONE.title, ONE), (f"{THRESHOLD.title} {TARGET}", THRESHOLD))
        }
        for kind in KINDS
    }
    console.print(f"solved: {reached}")
    about = {
        "seed": str(options.seed),
        "steps": str(steps),
        "cpu_seconds": f"{cpu:.0f}",
        "solved": json.dumps(reached),
    }
    partial = options.out.with_suffix(".partial")
    masked_diffusion.save_masked_diffusion(model, partial, about)
    os.replace(partial, options.out)  # in one go: an interrupted run leaves a whole file


if __name__ == "__main__":
    main()
