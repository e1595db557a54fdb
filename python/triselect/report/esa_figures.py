"""The plots of ESA against other ways of reading."""

from collections.abc import Sequence
from typing import Literal

import plotly.graph_objects as go

from triselect.models.recall_task import Kind
from triselect.report.esa_bytes import Losses
from triselect.report.esa_methods import DIMS, PROXIMITIES
from triselect.report.esa_questions import DEPTHS, Answered
from triselect.report.estimate import Estimate
from triselect.report.figures import (
    BLUE,
    GRID,
    INK,
    MUTED,
    ORANGE,
    TEAL,
    VIOLET,
    blank,
    labels_at_the_right,
    token_counts,
)

# The shown ones: label, colour, width, dash.
METHODS = {
    "full": ("full attention", INK, 2.0, "solid"),
    "window": ("sinks + window", MUTED, 2.0, "solid"),
    "random": ("random tokens", MUTED, 2.0, "dot"),
    "pages": ("pages of 16", ORANGE, 2.0, "solid"),
    "mean": ("mean query", VIOLET, 2.0, "solid"),
    "exact-1": ("ESA, exact", TEAL, 3.5, "solid"),
    "dim-8": ("ESA, d′ = 8", BLUE, 2.0, "dash"),
}
KIND_COLOURS: dict[Kind, str] = {"value": TEAL, "values": BLUE, "count": ORANGE}
LOSSES = {
    "window": (MUTED, "solid"),
    "random": (MUTED, "dot"),
    "exact": (TEAL, "solid"),
    "compressed": (BLUE, "dash"),
    "rerope": (VIOLET, "solid"),
}


def accuracy(found: Sequence[Answered], kind: Kind) -> go.Figure:
    """Right answers over the length of the text; bars are standard errors over the texts."""
    figure = blank(height=380, right=124)
    ends = {}
    for name, (label, colour, width, dash) in METHODS.items():
        rows = [row for row in found if (row.method, row.kind) == (name, kind)]
        figure.add_scatter(
            x=[row.length for row in rows],
            y=[row.accuracy.mean for row in rows],
            error_y=_bars([row.accuracy for row in rows]),
            mode="lines+markers",
            line={"color": colour, "width": width, "dash": dash},
            marker={"size": 6, "color": colour},
            name=label,
            hovertemplate="%{y:.1%} at %{x} tokens<extra>%{fullData.name}</extra>",
        )
        ends[label] = (rows[-1].accuracy.mean, colour)
    labels_at_the_right(figure, ends, gap=0.065)
    token_counts(figure, _lengths(found), "tokens of the text")
    # Room for the names of all that end at the top.
    ticks = [0, 0.2, 0.4, 0.6, 0.8, 1]
    figure.update_yaxes(
        title_text="right answers", tickformat=".0%", tickvals=ticks, range=[-0.03, 1.35]
    )
    return figure


def by_depth(found: Sequence[Answered], what: Literal["right", "found"]) -> go.Figure:
    """Heat maps, a panel for each method: length across, depth of the needle downwards."""
    panels = [name for name in METHODS if name != "random"]
    across = 3
    down = -(-len(panels) // across)
    figure = blank(height=230 * down + 40, right=12)
    for i, name in enumerate(panels):
        rows = [row for row in found if row.method == name and row.kind == "value"]
        cells = [[row.depths[depth] for row in rows] for depth in range(DEPTHS)]
        axis = "" if i == 0 else str(i + 1)
        left, top = (i % across) / across, 1 - (i // across) / down
        width, height = 1 / across - 0.03, 1 / down - 0.12
        figure.add_heatmap(
            x=[_short(row.length) for row in rows],
            y=[f"{(depth + 0.5) / DEPTHS:.0%}" for depth in range(DEPTHS)],
            z=[[getattr(c, what) / c.answers if c.answers else None for c in row] for row in cells],
            customdata=[[c.answers for c in row] for row in cells],
            zmin=0,
            zmax=1,
            colorscale=[[0, GRID], [1, TEAL]],
            showscale=False,
            xgap=2,
            ygap=2,
            xaxis=f"x{axis}",
            yaxis=f"y{axis}",
            name=METHODS[name][0],
            hovertemplate="%{z:.0%} of %{customdata}, %{x} tokens, depth %{y}"
            "<extra>%{fullData.name}</extra>",
        )
        quiet = {"showgrid": False, "zeroline": False, "fixedrange": True, "type": "category"}
        figure.update_layout(
            {
                f"xaxis{axis}": {**quiet, "domain": [left, left + width], "anchor": f"y{axis}"},
                f"yaxis{axis}": {
                    **quiet,
                    "domain": [top - 0.05 - height, top - 0.05],
                    "anchor": f"x{axis}",
                    "autorange": "reversed",
                    "tickvals": [0, DEPTHS - 1],
                    "ticktext": ["start", "end"],
                    "showticklabels": i % across == 0,
                },
            }
        )
        figure.add_annotation(
            x=left,
            xref="paper",
            xanchor="left",
            y=top - 0.04,
            yref="paper",
            yanchor="bottom",
            text=f"<b>{METHODS[name][0]}</b>",
            showarrow=False,
            font={"color": INK, "size": 13},
        )
    return figure


def settings(found: Sequence[Answered]) -> go.Figure:
    """Right answers of ESA at the longest texts, by reach and by size of the compressed keys."""
    figure = blank(height=340, right=16)
    names = {f"exact-{p}": f"ε = {p}" for p in PROXIMITIES}
    names |= {f"dim-{dim}": f"d′ = {dim}" for dim in DIMS}
    longest = max(_lengths(found))
    rows = {(row.method, row.kind): row for row in found if row.length == longest}
    for kind, colour in KIND_COLOURS.items():
        estimates = [rows[name, kind].accuracy for name in names]
        figure.add_bar(
            x=list(names.values()),
            y=[estimate.mean for estimate in estimates],
            error_y=_bars(estimates),
            marker={"color": colour},
            name=KIND_NAMES[kind],
            hovertemplate="%{y:.1%}, %{x}<extra>%{fullData.name}</extra>",
        )
    figure.update_layout(
        showlegend=True,
        legend={"orientation": "h", "x": 0, "y": 1.02, "yanchor": "bottom"},
        margin={"t": 40},
        bargap=0.25,
    )
    figure.update_yaxes(title_text="right answers", tickformat=".0%", range=[0, 1.06])
    return figure


KIND_NAMES: dict[Kind, str] = {
    "value": "values of one token",
    "values": "values of four tokens",
    "count": "counting",
}


def cost(found: Sequence[Answered]) -> go.Figure:
    """Microseconds per token of reading over the length of the text, both logarithmic."""
    figure = blank(height=380, right=124)
    ends = {}
    for name, (label, colour, width, dash) in METHODS.items():
        rows = [row for row in found if (row.method, row.kind) == (name, "value")]
        micros = [1e6 * row.seconds for row in rows]
        figure.add_scatter(
            x=[row.length for row in rows],
            y=micros,
            mode="lines+markers",
            line={"color": colour, "width": width, "dash": dash},
            marker={"size": 6, "color": colour},
            name=label,
            hovertemplate="%{y:.3~s} µs per token at %{x}<extra>%{fullData.name}</extra>",
        )
        ends[label] = (micros[-1], colour)
    labels_at_the_right(figure, ends, gap=max(y for y, _ in ends.values()) / 15)
    token_counts(figure, _lengths(found), "tokens of the text")
    figure.update_yaxes(title_text="µs per token", rangemode="tozero")
    return figure


def losses(found: Losses) -> go.Figure:
    """Bits per byte over what full attention needs, by the number of selected tokens."""
    figure = blank(height=380, right=24)
    for name, (colour, dash) in LOSSES.items():
        rows = [row for row in found.rows if row.method == name]
        figure.add_scatter(
            x=[row.top_k for row in rows],
            y=[row.over.mean for row in rows],
            error_y=_bars([row.over for row in rows]),
            mode="lines+markers",
            line={"color": colour, "width": 3 if name == "exact" else 2, "dash": dash},
            marker={"size": 6, "color": colour},
            name=rows[0].label,
            hovertemplate="%{y:+.4f} bits per byte, %{x} selected<extra>%{fullData.name}</extra>",
        )
    # The lines meet where the budget covers everything: a legend, not names beside the ends.
    figure.update_layout(showlegend=True, legend={"x": 1, "xanchor": "right", "y": 1})
    token_counts(figure, sorted({row.top_k for row in found.rows}), "selected tokens")
    figure.update_yaxes(title_text="bits per byte over full attention")
    return figure


def _bars(estimates: Sequence[Estimate]) -> dict[str, object]:
    return {"type": "data", "array": [e.error for e in estimates], "thickness": 1, "width": 2}


def _lengths(found: Sequence[Answered]) -> list[int]:
    return sorted({row.length for row in found})


def _short(tokens: int) -> str:
    return f"{tokens // 1024}k" if tokens >= 1024 and tokens % 1024 == 0 else str(tokens)
