"""The guided run of ESA: does a small model remember texts much longer than it was trained on?"""

from pathlib import Path

import torch
from rich.console import Console
from rich.markup import escape
from rich.padding import Padding
from rich.progress import Progress

from triselect.models.recall import load_recall
from triselect.models.recall_task import KINDS
from triselect.report import esa_bytes, esa_page, esa_questions, esa_tables, machine, terminal
from triselect.report.esa_methods import CONFIG, all_methods
from triselect.report.esa_tables import Findings
from triselect.report.page import render


def play(console: Console, out: Path, *, quick: bool = False) -> Path:
    """Run, tell, and write the page `out`. Quick leaves out the longest texts."""
    model = load_recall()
    texts = esa_questions.QUICK if quick else esa_questions.TEXTS
    console.print()
    terminal.tell(
        console,
        "[bold]Efficient selective attention[/]",
        "Attention compares every token with all before it. ESA scores them by short summaries of "
        f"their keys, takes the best, and attends to {CONFIG.budget} tokens however long the text "
        "is. Nothing is forgotten: the next chunk may select others.",
    )
    found = Findings(machine.describe(), {}, model.config.context)
    console.print(Padding(f"[dim]{escape(machine.header(found.machine))}[/]", (0, 2, 0, 2)))
    with torch.inference_mode(), terminal.progress(console) as progress:
        methods = all_methods(esa_questions.calibrate(model))
        found.labels = {method.name: method.title for method in methods}
        terminal.tell(
            console,
            "[bold]1 · Questions about long texts[/]",
            f"A small model was trained on texts of up to {model.config.context} tokens of noise "
            "in which keys have values and marks recur. Now it is asked about texts of "
            f"{', '.join(f'{length:,}' for length in texts)}. {esa_tables.STAND_INS}"
            + (" --quick leaves out the longest texts." if quick else ""),
        )
        total = len(methods) * len(KINDS) * len(texts)
        task = progress.add_task("reading and answering", total=total)
        found.answered = esa_questions.measure(
            model, methods, texts, done=lambda: progress.advance(task)
        )
        progress.remove_task(task)
        for kind in KINDS:
            terminal.show(console, esa_tables.accuracy_table(found, kind))
        terminal.tell(console, "", esa_page.verdict(found))
        terminal.tell(
            console,
            "[bold]2 · What was attended to[/]",
            "A needle that is not attended to cannot be answered for, but by luck.",
        )
        terminal.show(console, esa_tables.reading_table(found))
        terminal.tell(console, "[bold]3 · Where ESA loses[/]", " ".join(esa_page.lost(found)))
        terminal.tell(
            console, "[bold]4 · What reading costs[/]", "With the whole model around it, each once."
        )
        terminal.show(console, esa_tables.cost_table(found))
        _text(console, progress, found)
    out.write_text(render(esa_page.page(found)), encoding="utf-8")
    console.print(f"\n  The whole story with figures: [bold]{escape(str(out.resolve()))}[/]\n")
    return out


def _text(console: Console, progress: Progress, found: Findings) -> None:
    total = len(esa_bytes.BUDGETS) * len(esa_bytes.methods([]))
    task = progress.add_task("reading source text", total=total)
    found.losses = esa_bytes.measure(esa_bytes.BUDGETS, done=lambda: progress.advance(task))
    progress.remove_task(task)
    terminal.tell(
        console,
        "[bold]5 · Real text, at lengths of the training[/]",
        "The shipped byte-level model reads held-out source text within budgets. "
        + esa_page.of_bytes(found.losses),
    )
    terminal.show(console, esa_tables.losses_table(found.losses))
