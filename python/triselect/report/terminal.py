"""How tables look in a terminal; the same `Table` that goes into a page."""

from collections.abc import Sequence

from rich import box
from rich.console import Console, Group
from rich.markup import escape
from rich.padding import Padding
from rich.progress import (
    BarColumn,
    MofNCompleteColumn,
    Progress,
    TextColumn,
    TimeElapsedColumn,
)
from rich.table import Table as RichTable
from rich.text import Text

from triselect.report.capabilities import Backend, Choice
from triselect.report.loads import Load
from triselect.report.page import Table


def tell(console: Console, title: str, prose: str) -> None:
    """A paragraph, at a width that reads well."""
    console.print(f"\n  {title}")
    console.print(Padding(prose, (0, 2, 1, 2)), width=min(console.width, 92))


def progress(console: Console) -> Progress:
    """A bar for each task that is gone when it is done: how many of how many, and for how long."""
    return Progress(
        TextColumn("  {task.description}"),
        BarColumn(bar_width=28),
        MofNCompleteColumn(),
        TimeElapsedColumn(),
        console=console,
        transient=True,
    )


def show(console: Console, table: Table) -> None:
    """Print a table, losing cells in red."""
    drawn = RichTable(box=box.SIMPLE_HEAD, header_style="dim", pad_edge=False)
    for i, name in enumerate(table.columns):
        cells = [row[i].lstrip("!") for row in table.rows]
        if table.numeric(i):
            # Headers wrap before numbers do.
            drawn.add_column(name, justify="right", min_width=max(map(len, cells), default=0))
        else:
            words = (len(word) for cell in cells for word in cell.split())
            drawn.add_column(name, min_width=max(words, default=0))
    for row in table.rows:
        cells = [f"[red]{escape(c[1:])}[/]" if c.startswith("!") else escape(c) for c in row]
        drawn.add_row(*cells)
    console.print(Padding(drawn, (0, 0, 0, 2)))
    if table.caption:
        console.print(Padding(Text(table.caption, style="dim"), (0, 2, 1, 2)))


def show_backends(console: Console, found: Sequence[Backend]) -> None:
    """One line each: a tick and what it is, or a cross, why not, and how to get it."""
    for backend in found:
        mark = "[red]✗[/]" if backend.missing else "[green]✓[/]"
        console.print(f"  {mark} [bold]{backend.name:<10}[/] {escape(backend.meaning)}")
        if backend.missing:
            why = Text(backend.missing, style="yellow")
            console.print(Padding(why, (0, 2, 0, 15)))


def show_choices(console: Console, found: Sequence[Choice]) -> None:
    """What ``auto`` takes, operator by operator."""
    for choice in found:
        chosen = f"[bold]{choice.operator}[/] on {choice.device} → [bold]{choice.backend}[/]"
        console.print(f"  {chosen}")
        console.print(Padding(Text(choice.why, style="dim"), (0, 2, 0, 4)))


def bars(load: Load, width: int = 30) -> Group:
    """The load of every device as a bar, the mean at two thirds of the width."""
    lines = []
    for device, value in enumerate(load.device_load):
        bar = "█" * round(value * width * 2 / 3)
        lines.append(Text.assemble(f"    {device} ", (bar, "cyan"), f" {value:.2f}"))
    return Group(*lines)
