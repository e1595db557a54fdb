"""The commands of ``triselect``."""

from enum import StrEnum
from pathlib import Path
from typing import Annotated, NoReturn

import typer
from rich.console import Console

app = typer.Typer(
    help="Inference-acceleration kernels that select: what runs here, is it equal, is it fast?",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
)
console = Console(highlight=False)


class Playground(StrEnum):
    """Guided runs, by system."""

    moe = "moe"
    esa = "esa"
    lopa = "lopa"


@app.command()
def env() -> None:
    """Say what can run here, why the rest cannot, and what backend="auto" chooses."""
    from triselect.report import capabilities, machine, terminal

    console.print("\n  [bold]Machine[/]")
    for name, value in machine.describe().items():
        console.print(f"    {name.replace('_', ' '):<16}[bold]{value or '–'}[/]", soft_wrap=True)
    console.print("\n  [bold]Backends[/]")
    terminal.show_backends(console, capabilities.available())
    console.print('\n  [bold]What backend="auto" chooses[/]')
    terminal.show_choices(console, capabilities.choices())
    console.print()


@app.command()
def play(
    what: Annotated[
        Playground | None, typer.Argument(help="A guided run; all of them by default.")
    ] = None,
    out: Annotated[
        Path,
        typer.Option(
            help="Where the report goes; of all guided runs, one for each: report-esa.html"
        ),
    ] = Path("report.html"),
    quick: Annotated[
        bool,
        typer.Option(
            "--quick",
            help="Leave out torch.compile, large batches, the longest texts and most puzzles.",
        ),
    ] = False,
) -> None:
    """Run an accelerator on real data, step by step, and write a report."""
    from triselect.report import play_esa, play_lopa, play_moe

    _must_be_writable(out)
    guided = {
        Playground.moe: play_moe.play,
        Playground.esa: play_esa.play,
        Playground.lopa: play_lopa.play,
    }
    for name in Playground if what is None else (what,):
        page = out if what else out.with_stem(f"{out.stem}-{name}")
        guided[name](console, page, quick=quick)


@app.command()
def bench(
    smoke: Annotated[
        bool, typer.Option("--smoke", help="Every case once, with a few tokens; nothing is timed.")
    ] = False,
    expression: Annotated[
        str | None, typer.Option("-k", metavar="EXPR", help="Only cases that match, as in pytest.")
    ] = None,
    out: Annotated[
        Path | None, typer.Option(help="The JSON file; bench/results/local/ by default.")
    ] = None,
) -> None:
    """Measure the operators on this machine with the repository's benchmark suites."""
    from triselect.report import machine, results, terminal
    from triselect.report.repository import NoRepository, run_benchmarks

    if out is not None:
        _must_be_writable(out)
    if not smoke and (warning := machine.busy(machine.describe())):
        console.print(f"[yellow]Note: {warning}.[/]")
    try:
        code, written = run_benchmarks(out, smoke=smoke, expression=expression)
        if code:
            raise typer.Exit(code)
        if smoke:
            return
        for table in results.tables(results.load(written)):
            terminal.show(console, table)
    except (NoRepository, results.BadResults) as error:
        _fail(str(error))
    console.print(f"Measured: {written}\nNext: triselect report {written}", soft_wrap=True)


@app.command()
def report(
    results: Annotated[
        list[Path] | None, typer.Argument(metavar="[JSON]...", help="What `triselect bench` wrote.")
    ] = None,
    html: Annotated[
        Path | None, typer.Option(help="The page to write; report.html if nothing is asked for.")
    ] = None,
    markdown: Annotated[
        Path | None, typer.Option(help="A file whose text between the results markers is replaced.")
    ] = None,
) -> None:
    """Turn measurements into one self-contained page, a Markdown table, or both."""
    from triselect.report import repository
    from triselect.report import results as measured
    from triselect.report.page import render

    if html is None and markdown is None:
        html = Path("report.html")
    try:
        paths = results or repository.measured()
        if not paths:
            _fail("nothing was measured yet: run `triselect bench` first")
        runs = [measured.load(path) for path in paths]
        if html is not None:
            _must_be_writable(html)
            html.write_text(render(measured.page(runs)), encoding="utf-8")
            console.print(f"Written: {html.resolve()}", soft_wrap=True)
        if markdown is not None:
            if not markdown.exists():
                _fail(f"{markdown} does not exist")
            text = markdown.read_text(encoding="utf-8")
            markdown.write_text(measured.merge(text, measured.markdown(runs)), encoding="utf-8")
            console.print(f"Updated: {markdown.resolve()}", soft_wrap=True)
    except (repository.NoRepository, measured.BadResults) as error:
        _fail(str(error))


def _must_be_writable(path: Path) -> None:
    if path.is_dir():
        _fail(f"{path} is a directory: name a file")
    if not path.absolute().parent.is_dir():
        _fail(f"{path.absolute().parent} is not a directory")


def _fail(message: str) -> NoReturn:
    Console(stderr=True, highlight=False).print(f"[red]triselect:[/] {message}", soft_wrap=True)
    raise typer.Exit(2)
