"""The plots of LoPA: runs to step through, fronts, and the number of branches."""

from collections.abc import Callable, Sequence

import plotly.graph_objects as go

from triselect.models.puzzles import EOS, SYMBOLS
from triselect.report.estimate import Estimate
from triselect.report.figures import BLUE, GRID, INK, MUTED, ORANGE, TEAL, VIOLET, blank
from triselect.report.lopa_fronts import Point
from triselect.report.lopa_methods import METHODS
from triselect.report.lopa_replay import ACROSS, Fill, Replay

# Colour, width, dash, marker; LoPA has one colour, in which the paper's score and what is confirmed
# are thick.
STYLES = {
    "one": (MUTED, 2.0, "solid", "x"),
    "threshold": (INK, 2.5, "solid", "circle"),
    "factor": (VIOLET, 2.0, "solid", "circle"),
    "d2f": (BLUE, 2.5, "solid", "circle"),
    "extra": (ORANGE, 2.5, "dot", "square"),
    "mean": (TEAL, 3.5, "solid", "circle"),
    "margin": (TEAL, 1.0, "dash", "diamond"),
    "entropy": (TEAL, 1.0, "dash", "triangle-up"),
    "lowest": (TEAL, 1.0, "dot", "triangle-down"),
    "common": (TEAL, 1.0, "dot", "pentagon"),
    "count": (TEAL, 2.0, "solid", "star"),
    "log_prob": (TEAL, 1.0, "dashdot", "cross"),
    "gain": (TEAL, 1.0, "dashdot", "hexagon"),
    "count_entropy": (TEAL, 1.0, "solid", "star-open"),
    "confirmed_7": (TEAL, 3.5, "dash", "diamond"),
    "confirmed_9": (TEAL, 3.5, "dot", "square"),
}
OPEN = "rgba(128,128,128,0.12)"
COLOURS = (OPEN, GRID, TEAL, ORANGE, VIOLET, BLUE)  # ..., given, anchor, lookaheads
_PACE = 600  # milliseconds a round


def replay(replays: Sequence[Replay]) -> go.Figure:
    """Runs of one puzzle side by side, with a slider over the rounds and a button to play them."""
    last = max(each.rounds for each in replays)
    down = -(-(len(replays[0].prompt) - 1) // ACROSS[replays[0].kind])
    figure = blank(height=min(60 + 52 * down, 370) + 150, right=12)
    for i, each in enumerate(replays):
        axis = "" if i == 0 else str(i + 1)
        left, right = i / len(replays), (i + 0.94) / len(replays)
        figure.add_heatmap(
            **_cells(each, last),
            xaxis=f"x{axis}",
            yaxis=f"y{axis}",
            zmin=-0.5,
            zmax=len(COLOURS) - 0.5,
            colorscale=_steps(COLOURS),
            showscale=False,
            xgap=3,
            ygap=3,
            texttemplate="%{text}",
            textfont={"size": 15},
            hovertemplate="%{customdata}<extra>%{fullData.name}</extra>",
            hoverongaps=False,
            name=each.title,
        )
        quiet = {"showgrid": False, "showticklabels": False, "ticks": "", "zeroline": False}
        quiet |= {"fixedrange": True}
        figure.update_layout(
            {
                f"xaxis{axis}": {**quiet, "domain": [left, right], "anchor": f"y{axis}"},
                f"yaxis{axis}": {**quiet, "autorange": "reversed", "anchor": f"x{axis}"},
            }
        )
        solved = "solved" if each.right else "not solved"
        figure.add_annotation(
            x=left,
            xref="paper",
            xanchor="left",
            y=1,
            yref="paper",
            yanchor="bottom",
            text=f"<b>{each.title}</b><br>{each.rounds} rounds, {solved}",
            align="left",
            showarrow=False,
            font={"color": INK, "size": 13},
        )
    figure.frames = [
        go.Frame(
            name=str(n),
            data=[go.Heatmap(**_cells(each, n)) for each in replays],
            traces=list(range(len(replays))),
        )
        for n in range(last + 1)
    ]
    figure.update_layout(
        margin={"l": 12, "t": 52, "b": 100}, sliders=[_slider(last)], updatemenus=[_play()]
    )
    return figure


def _cells(replay: Replay, rounds: int) -> dict[str, list[list[object]]]:
    """Who filled each cell, its symbol with the round, and what to say of it, after so many."""
    who: list[object] = []
    text: list[object] = []
    said: list[object] = []
    for at in range(len(replay.prompt) - 1):
        fill, given = replay.fills.get(at), replay.given(at)
        behind = replay.end is not None and at > replay.end
        if behind:
            who.append(None)
            text.append("")
            said.append("")
        elif fill is None or fill.round > rounds:
            who.append(0 if given is None else 1)
            text.append("" if given is None else SYMBOLS[given])
            said.append("open" if given is None else "given")
        else:
            who.append(1 if given is not None else min(2 + fill.branch, len(COLOURS) - 1))
            text.append(f"{SYMBOLS[fill.token]}<sub>{fill.round}</sub>")
            said.append(_say(fill) + ", given" * (given is not None))
    across = ACROSS[replay.kind]
    rows = range(0, len(who), across)
    return {
        name: [values[at : at + across] for at in rows]
        for name, values in (("z", who), ("text", text), ("customdata", said))
    }


def _say(fill: Fill) -> str:
    branch = f"lookahead {fill.branch}" if fill.branch else "anchor"
    symbol = "end of text" if fill.token == EOS else SYMBOLS[fill.token]
    return f"{symbol}: round {fill.round}, {branch}, probability {fill.prob:.3f}"


def _slider(last: int) -> dict[str, object]:
    now = {"mode": "immediate", "frame": {"duration": 0, "redraw": True}}
    now["transition"] = {"duration": 0}
    steps = [
        {"label": str(n), "method": "animate", "args": [[str(n)], now]} for n in range(last + 1)
    ]
    return {
        "active": last,
        "steps": steps,
        "x": 0.14,
        "len": 0.86,
        "y": 0,
        "pad": {"t": 12},
        "bgcolor": GRID,
        "activebgcolor": TEAL,
        "bordercolor": GRID,
        "tickcolor": MUTED,
        "font": {"color": MUTED, "size": 11},
        "currentvalue": {"prefix": "round ", "font": {"color": INK, "size": 13}},
    }


def _play() -> dict[str, object]:
    pace = {"frame": {"duration": _PACE, "redraw": True}, "transition": {"duration": 0}}
    return {
        "type": "buttons",
        "showactive": False,
        "x": 0,
        "xanchor": "left",
        "y": 0,
        "yanchor": "top",
        "pad": {"t": 26},
        "bgcolor": GRID,
        "bordercolor": GRID,
        "font": {"color": MUTED},
        "buttons": [{"label": "▶", "method": "animate", "args": [None, pace]}],
    }


def _steps(colours: Sequence[str]) -> list[list[object]]:
    """A scale that does not blend."""
    n = len(colours)
    return [[(i + end) / n, colour] for i, colour in enumerate(colours) for end in (0, 1)]


def fronts(points: Sequence[Point]) -> go.Figure:
    """Puzzles solved over tokens per round, a line for each method over τ."""
    return _front(points, lambda point: point.tokens_per_round, "tokens per round")


def fronts_by_forward(points: Sequence[Point]) -> go.Figure:
    """The same over tokens per branch that the model read; errors as those per round."""

    def per_forward(point: Point) -> Estimate:
        share = point.tokens_per_forward / point.tokens_per_round.mean
        return Estimate(point.tokens_per_forward, share * point.tokens_per_round.error)

    return _front(points, per_forward, "tokens per branch and round")


def _front(points: Sequence[Point], speed: Callable[[Point], Estimate], axis: str) -> go.Figure:
    figure = blank(height=520, right=16)
    for method in METHODS:
        mine = sorted((p for p in points if p.method == method.name), key=lambda point: point.tau)
        if not mine:
            continue
        colour, width, dash, symbol = STYLES[method.name]
        speeds = [speed(point) for point in mine]
        figure.add_scatter(
            x=[estimate.mean for estimate in speeds],
            y=[point.accuracy.mean for point in mine],
            error_x=_bars(speeds, colour),
            error_y=_bars([point.accuracy for point in mine], colour),
            customdata=[
                f"τ = {point.tau:g}, " * method.swept + f"{point.rounds.mean:.1f} rounds"
                for point in mine
            ],
            mode="lines+markers",
            line={"color": colour, "width": width, "dash": dash},
            marker={"size": 7, "color": colour, "symbol": symbol},
            name=method.title,
            hovertemplate="%{y:.1%} at %{x:.2f}, %{customdata}<extra>%{fullData.name}</extra>",
        )
    figure.update_layout(
        showlegend=True,
        legend={
            "orientation": "h",
            "x": 0,
            "y": -0.16,
            "yanchor": "top",
            "font": {"size": 12},
            "entrywidth": 0.49,
            "entrywidthmode": "fraction",
        },
    )
    figure.update_xaxes(title_text=axis)
    figure.update_yaxes(title_text="puzzles solved", tickformat=".0%")
    return figure


def by_branches(points: Sequence[Point]) -> go.Figure:
    """Rounds, and below them puzzles solved, over the number of lookaheads."""
    figure = blank(height=400, right=16)
    for axis, title, colour, of in (
        ("", "rounds", TEAL, lambda point: point.rounds),
        ("2", "puzzles solved", ORANGE, lambda point: point.accuracy),
    ):
        estimates = [of(point) for point in points]
        figure.add_scatter(
            x=[point.lookaheads for point in points],
            y=[estimate.mean for estimate in estimates],
            error_y=_bars(estimates, colour),
            yaxis=f"y{axis}",
            mode="lines+markers",
            line={"color": colour, "width": 2.5},
            marker={"size": 7, "color": colour},
            name=title,
            hovertemplate=("%{y:.1%}" if axis else "%{y:.2f} rounds")
            + ", %{x} lookaheads<extra></extra>",
        )
    quiet = {"gridcolor": GRID, "zeroline": False, "fixedrange": True}
    figure.update_layout(
        yaxis={"domain": [0.56, 1], "title_text": "rounds", "rangemode": "tozero"},
        yaxis2={
            **quiet,
            "domain": [0, 0.44],
            "anchor": "x",
            "title": {
                "text": "puzzles solved",
                "font": {"size": 13, "color": MUTED},
                "standoff": 8,
            },
            "tickformat": ".0%",
        },
    )
    figure.update_xaxes(
        title_text="lookaheads beside the anchor",
        tickvals=[point.lookaheads for point in points],
        anchor="y2",
    )
    return figure


def _bars(estimates: Sequence[Estimate], colour: str) -> dict[str, object]:
    errors = [estimate.error for estimate in estimates]
    return {"type": "data", "array": errors, "thickness": 1, "width": 2, "color": colour}
