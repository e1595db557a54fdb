"""One self-contained HTML page: sections of prose, figures and tables."""

import json
import re
from collections.abc import Sequence
from dataclasses import dataclass, field
from importlib.resources import files
from typing import Any

from triselect.report.machine import header


@dataclass(frozen=True)
class Table:
    """Rows of text under column names; cells that start with ``!`` are marked as losing.

    Columns of numbers are set flush right, all others flush left.
    """

    columns: Sequence[str]
    rows: Sequence[Sequence[str]]
    caption: str = ""
    open: bool = True

    def numeric(self, column: int) -> bool:
        cells = [row[column] for row in self.rows if row[column]]
        return bool(cells) and all(re.match(r"(!|all )?\d", cell) for cell in cells)


def micro(value: float) -> str:
    """A cell of microseconds."""
    return f"{value:,.0f}" if value >= 100 else f"{value:.3g}"


def times(ratio: float | None) -> str:
    """A cell that says how many times as long another takes; below 1 it is marked as losing."""
    if ratio is None:
        return ""
    if ratio >= 1:
        digits = 0 if ratio >= 99.5 else 1 if ratio >= 9.95 else 2
        return f"{ratio:,.{digits}f}×"
    return f"!{ratio:.2f}×" if ratio >= 0.1 else f"!{ratio:.1g}×"


@dataclass(frozen=True)
class Figure:
    """A plotly figure and the one sentence that says what it shows."""

    plot: Any
    sentence: str
    title: str = ""


@dataclass(frozen=True)
class Section:
    """A heading, paragraphs, figures side by side where there is room, then tables."""

    title: str
    prose: Sequence[str] = ()
    figures: Sequence[Figure] = ()
    tables: Sequence[Table] = ()


@dataclass(frozen=True)
class Page:
    """What is shown: `tiles` are ``(number, meaning)``, `data` is embedded for reuse."""

    title: str
    lead: str
    machine: dict[str, Any]
    sections: Sequence[Section]
    tiles: Sequence[tuple[str, str]] = ()
    data: dict[str, Any] = field(default_factory=dict)


def render(page: Page) -> str:
    """The page as HTML, with plotly.js in it once if there is anything to plot."""
    from jinja2 import Environment
    from plotly.offline import get_plotlyjs

    from triselect.report.figures import DARK

    environment = Environment(autoescape=True, trim_blocks=True, lstrip_blocks=True)
    environment.filters["plot"] = lambda figure: _script(json.loads(figure.to_json()))
    template = environment.from_string(files(__package__).joinpath("page.html").read_text("utf-8"))
    plotted = any(section.figures for section in page.sections)
    return template.render(
        page=page,
        header=header(page.machine),
        plotly=get_plotlyjs() if plotted else "",
        dark=_script(DARK),
        data=_script({"machine": page.machine, **page.data}),
    )


def _script(value: Any) -> str:
    """JSON that cannot end the script element it stands in."""
    return json.dumps(value, allow_nan=False).replace("</", "<\\/").replace("<!--", "<\\!--")
