"""The guided run of grouped top-k routing: what runs, is it equal, fast, balanced?"""

from pathlib import Path

import torch
from rich.console import Console
from rich.markup import escape
from rich.padding import Padding
from rich.progress import BarColumn, Progress, TextColumn, TimeElapsedColumn

from triselect.report import (
    budgets,
    budgets_page,
    capabilities,
    interpreted,
    layer,
    layer_page,
    loads,
    machine,
    moe_page,
    terminal,
    trained,
    trained_page,
)
from triselect.report.equivalence import DTYPES, ROUTERS, judge
from triselect.report.moe_page import Findings
from triselect.report.page import render
from triselect.report.routers import DEEPSEEK_V3, PANGU, sample
from triselect.report.speed import sweep

TOKENS = (1, 16, 256, 4096, 16384)


def play(console: Console, out: Path, *, quick: bool = False) -> Path:
    """Run, tell, and write the page `out`. Quick leaves out what takes long, and says so."""
    console.print()
    terminal.tell(
        console,
        "[bold]Grouped top-k routing[/]",
        "A mixture-of-experts model sends each token to a few of its experts. Which ones is the "
        "router's choice: it gives every expert a score, a logit, and the best are taken. Experts "
        "live on several devices, and if most tokens choose experts of one device, the others "
        "wait. Balanced routing (MoGE, of Pangu Pro MoE) takes the same number of experts from "
        "every group, so that with a group to a device no one waits.",
    )
    data = sample()
    found = Findings(machine.describe(), data.source)
    console.print(Padding(f"[dim]{escape(machine.header(found.machine))}[/]", (0, 2, 0, 2)))
    _what_runs(console, found)
    with Progress(
        TextColumn("  {task.description}"),
        BarColumn(bar_width=28),
        TimeElapsedColumn(),
        console=console,
        transient=True,
    ) as progress:
        _equality(console, progress, found, quick)
        _speed(console, progress, found, quick)
        _layer(console, progress, found, quick)
        _balance(console, progress, found)
        _trained(console, progress, found)
        _budgets(console, progress, found)
    out.write_text(render(moe_page.page(found)), encoding="utf-8")
    console.print(f"\n  The whole story with figures: [bold]{escape(str(out.resolve()))}[/]\n")
    return out


def _what_runs(console: Console, found: Findings) -> None:
    found.backends, found.choices = capabilities.available(), capabilities.choices()
    terminal.tell(
        console,
        "[bold]1 · What can run here[/]",
        "The operator exists several times over, once per kind of machine. Unless you name one, "
        "the device of your tensors decides.",
    )
    terminal.show_backends(console, found.backends)
    console.print()
    terminal.show_choices(console, found.choices)


def _equality(console: Console, progress: Progress, found: Findings, quick: bool) -> None:
    tokens = 1024 if quick else sample().logits.flatten(0, 2).shape[0]
    terminal.tell(
        console,
        "[bold]2 · Is it the same everywhere?[/]",
        f"Every backend routes {found.source}: {tokens:,} tokens, as float32 and as bfloat16. The "
        "experts must be those of the float64 reference, in the same order. (For DeepSeek-V3's 256 "
        "experts, the logits of 4 layers stand side by side.)",
    )
    able = {b.name: b for b in found.backends if b.name != "reference"}
    judged = [name for name, backend in able.items() if backend.missing is None]
    task = progress.add_task("comparing", total=len(judged) * len(ROUTERS) * len(DTYPES) + 1)
    for name in judged:
        device = "cuda" if name == "triton" else "cpu"
        for router in ROUTERS:
            for dtype in DTYPES:
                found.verdicts.append(judge(name, router, dtype, tokens, device))
                progress.advance(task)
    for name, backend in able.items():
        if backend.missing is not None:
            found.not_judged[name] = backend.missing
    if "triton" in found.not_judged and found.machine["triton"] and not quick:
        progress.update(task, description="asking Triton's interpreter, in a process of its own")
        try:
            found.verdicts += interpreted.verdicts(tokens=8)
        except interpreted.InterpreterFailed as error:
            found.not_judged["triton (interpreted)"] = str(error)
        else:
            del found.not_judged["triton"]
    progress.remove_task(task)
    terminal.show(console, moe_page.equivalence_table(found))
    for line in moe_page.not_judged(found):
        console.print(Padding(f"[yellow]{escape(line)}[/]", (0, 2, 0, 2)))


def _speed(console: Console, progress: Progress, found: Findings, quick: bool) -> None:
    counts = TOKENS[:3] if quick else TOKENS
    terminal.tell(
        console,
        "[bold]3 · Is it fast?[/]",
        "One call of triselect.grouped_topk against the composition of PyTorch operators that "
        "serving engines use, and against torch.compile of it. They take turns, after each was "
        "checked to choose the same experts."
        + (" --quick leaves out torch.compile and the large batches." if quick else ""),
    )
    if warning := machine.busy(machine.describe()):
        console.print(Padding(f"[yellow]Note: {warning}.[/]", (0, 2, 1, 2)))
    task = progress.add_task("timing", total=2 * len(counts))
    for router in (PANGU, DEEPSEEK_V3):
        progress.update(task, description=f"compiling and timing {router.label}")
        rows = sweep(
            router,
            counts,
            compiler=None if quick else "inductor",
            seconds=0.2 if quick else 1.0,
            done=lambda: progress.advance(task),
        )
        found.speeds += rows
        console.print(f"  [bold]{router.label}[/]")
        terminal.show(console, moe_page.speed_table(rows))
        if (why := rows[0].unavailable.get("compiled")) and not quick:
            console.print(
                Padding(f"[yellow]torch.compile is missing: {escape(why)}[/]", (0, 2, 1, 2))
            )
    progress.remove_task(task)


def _layer(console: Console, progress: Progress, found: Findings, quick: bool) -> None:
    counts = layer.TOKENS[:3] if quick else layer.TOKENS
    terminal.tell(
        console,
        "[bold]4 · And the whole layer?[/]",
        "Behind the router come the experts. triselect.fused_moe against the two ways in which "
        "models run them, expert by expert and with PyTorch's grouped products.",
    )
    task = progress.add_task("timing the layer", total=len(counts))
    with torch.inference_mode():
        found.layers = layer.measure(
            counts, seconds=0.2 if quick else 1.0, done=lambda: progress.advance(task)
        )
    progress.remove_task(task)
    terminal.show(console, layer_page.table(found.layers))
    terminal.tell(console, "", layer_page.verdict(found.layers))


def _balance(console: Console, progress: Progress, found: Findings) -> None:
    terminal.tell(
        console,
        "[bold]5 · Is it balanced?[/]",
        "Now the devices. 64 experts live on 8 devices, and each token takes 8 experts: the best "
        "8, the best 8 of the best 4 groups, or the best of each group. The imbalance score is the "
        "work of the fullest device less that of the emptiest, per token; 0 is perfect. "
        + moe_page.LOGITS_OF,
    )
    task = progress.add_task("routing and counting", total=None)
    with torch.inference_mode():
        found.loads = loads.measure()
    progress.remove_task(task)
    terminal.show(console, moe_page.load_table(found.loads))
    for load in found.loads[:3]:
        console.print(f"  {load.label}: work of each device, {loads.SHOWN} tokens, 1 = the mean")
        console.print(terminal.bars(load))
    plain, _, balanced, _ = found.loads
    terminal.tell(
        console,
        "",
        f"Balance has a price: each token's data goes to {balanced.devices_per_token:.0f} devices, "
        f"where plain routing needs {plain.devices_per_token:.1f}.",
    )


def _trained(console: Console, progress: Progress, found: Findings) -> None:
    task = progress.add_task("routing what each model was trained for", total=None)
    with torch.inference_mode():
        found.trained = trained.measure()
    progress.remove_task(task)
    run = found.trained[0].runs[0]
    terminal.tell(
        console,
        "[bold]6 · Trained both ways[/]",
        f"The same byte-level model, trained once with plain top-8 and once with balanced routing: "
        f"{run.steps:,} steps of {run.batch_bytes:,} bytes, the same initial weights and batches. "
        "The loss was recorded then; the loads are counted now, on held-out text, each model "
        "routed as it was trained.",
    )
    terminal.show(console, trained_page.table(found.trained))
    terminal.tell(console, "", trained_page.verdict(found.trained))


def _budgets(console: Console, progress: Progress, found: Findings) -> None:
    task = progress.add_task("routing within budgets", total=None)
    with torch.inference_mode():
        found.budgets = budgets.measure()
    progress.remove_task(task)
    terminal.tell(
        console,
        "[bold]7 · A budget of experts[/]",
        "A decoding step is as fast as the weights it reads. triselect.limit_experts lets the "
        "batch vote, keeps the most-voted experts of every group, and routes again among those.",
    )
    terminal.show(console, budgets_page.table(found.budgets))
