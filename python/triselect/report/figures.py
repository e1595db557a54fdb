"""The plots: light on ink, labelled where the eye already is, readable at phone width."""

from collections.abc import Callable, Sequence
from math import log10
from statistics import mean
from typing import Any

import plotly.graph_objects as go

from triselect.models.training import Record
from triselect.report.loads import Load
from triselect.report.speed import Speed
from triselect.report.trained import Trained

INK, MUTED, GRID = "#1f2933", "#52606d", "#e4e7eb"
TEAL, ORANGE, VIOLET, BLUE = "#0f766e", "#c2410c", "#6d28d9", "#1d4ed8"
# Figures are drawn in the colours for light; the page swaps them for these in the dark.
DARK = {
    INK: "#e4e7eb",
    MUTED: "#9aa5b1",
    GRID: "#2f3943",
    TEAL: "#2dd4bf",
    ORANGE: "#fb923c",
    VIOLET: "#a78bfa",
    BLUE: "#60a5fa",
}
PROVIDERS = {
    "triselect": ("triselect", TEAL, 3.5, "solid"),
    "composition": ("eager composition", ORANGE, 2, "solid"),
    "compiled": ("torch.compile", VIOLET, 2, "solid"),
    "selection": ("plain top-k,<br>selection alone", BLUE, 1.5, "dot"),
}
ROUTINGS = {
    "plain": ("plain", ORANGE, "solid"),
    "limited": ("group-limited", VIOLET, "solid"),
    "balanced": ("balanced", TEAL, "solid"),
    "simulated": ("random numbers<br>(simulated)", MUTED, "dot"),
}


def speed(found: Sequence[Speed]) -> go.Figure:
    """Microseconds per call over tokens, both logarithmic; bars span p20 to p80."""
    figure = blank(height=400, right=136)
    ends = {}
    for name, (label, colour, width, dash) in PROVIDERS.items():
        rows = [row for row in found if name in row.timings]
        if not rows:
            continue
        timings = [row.timings[name] for row in rows]
        figure.add_scatter(
            x=[row.tokens for row in rows],
            y=[t.p50 for t in timings],
            error_y={
                "type": "data",
                "symmetric": False,
                "array": [t.p80 - t.p50 for t in timings],
                "arrayminus": [t.p50 - t.p20 for t in timings],
                "thickness": 1,
                "width": 2,
            },
            mode="lines+markers",
            line={"color": colour, "width": width, "dash": dash},
            marker={"size": 6, "color": colour},
            name=label.replace("<br>", " "),
            hovertemplate="%{y:.3~s} µs at %{x} tokens<extra>%{fullData.name}</extra>",
        )
        ends[label] = (log10(timings[-1].p50), colour)
    values = [t.p50 for row in found for n, t in row.timings.items() if n in PROVIDERS]
    span = log10(max(values) / min(values))
    labels_at_the_right(figure, ends, gap=span / 14)
    token_counts(figure, [row.tokens for row in found], "tokens per call")
    figure.update_yaxes(type="log", title_text="µs per call", dtick=1, tickformat=",")
    return figure


def imbalance(loads: Sequence[Load]) -> go.Figure:
    """Mean imbalance score over the batch size; bands from the 10th to the 90th percentile."""
    figure = blank(height=400, right=140)
    ends = {}
    for load in loads:
        label, colour, dash = ROUTINGS[load.routing]
        tokens = [row.tokens for row in load.imbalance]
        if load.routing != "simulated":
            figure.add_scatter(
                x=tokens + tokens[::-1],
                y=[row.p90 for row in load.imbalance] + [r.p10 for r in load.imbalance[::-1]],
                fill="toself",
                fillcolor=colour,
                opacity=0.1,
                line={"width": 0},
                mode="lines",
                hoverinfo="skip",
            )
        figure.add_scatter(
            x=tokens,
            y=[row.mean for row in load.imbalance],
            mode="lines+markers",
            line={"color": colour, "width": 3 if load.routing == "balanced" else 2, "dash": dash},
            marker={"size": 6, "color": colour},
            name=label.replace("<br>", " "),
            hovertemplate="%{y:.3f} at a batch of %{x}<extra>%{fullData.name}</extra>",
        )
        ends[label] = (load.imbalance[-1].mean, colour)
    top = max(row.p90 for load in loads for row in load.imbalance)
    labels_at_the_right(figure, ends, gap=top / 14)
    token_counts(figure, [row.tokens for row in loads[0].imbalance], "tokens in the batch")
    figure.update_yaxes(title_text="imbalance score", rangemode="tozero")
    return figure


def device_load(loads: Sequence[Load]) -> go.Figure:
    """Each device's share of one batch, three routings above one another, 1 = the mean."""
    shown = [load for load in loads if load.routing != "simulated"]
    figure = blank(height=130 * len(shown) + 60, right=12)
    gap = 0.36 / len(shown)
    for i, load in enumerate(shown):
        label, colour, _ = ROUTINGS[load.routing]
        axis = "" if i == 0 else str(i + 1)
        bottom = 1 - (i + 1) / len(shown)
        figure.add_bar(
            x=list(range(len(load.device_load))),
            y=load.device_load,
            yaxis=f"y{axis}",
            marker={"color": colour},
            text=[f"{value:.2f}" for value in load.device_load],
            textposition="outside",
            textfont={"size": 11, "color": INK},
            cliponaxis=False,
            name=label,
            hovertemplate="device %{x}: %{y:.3f} × the mean<extra>%{fullData.name}</extra>",
        )
        domain = [bottom, bottom + 1 / len(shown) - gap]
        highest = 1.15 * max(max(load.device_load) for load in shown)
        figure.update_layout(
            {
                f"yaxis{axis}": {
                    "domain": domain,
                    "range": [0, highest],
                    "tickvals": [0, 1],
                    "gridcolor": GRID,
                    "zeroline": False,
                }
            }
        )
        figure.add_annotation(
            x=0,
            xref="paper",
            xanchor="left",
            y=domain[1] + 0.035,
            yref="paper",
            yanchor="bottom",
            text=f"<b>{label}</b>: the fullest device has {max(load.device_load):.2f} × the mean",
            showarrow=False,
            font={"color": colour, "size": 13},
        )
    figure.update_layout(bargap=0.25, margin={"t": 34})
    figure.update_xaxes(
        tickvals=list(range(8)), title_text="device", showgrid=False, anchor=f"y{axis}"
    )
    return figure


def trade(loads: Sequence[Load], tokens: int) -> go.Figure:
    """What balance costs: imbalance against the devices that a token must be sent to."""
    figure = blank(height=320, right=24)
    highest = 0.0
    for load in loads:
        if load.routing == "simulated":
            continue
        label, colour, _ = ROUTINGS[load.routing]
        (score,) = (row.mean for row in load.imbalance if row.tokens == tokens)
        highest = max(highest, score)
        figure.add_scatter(
            x=[load.devices_per_token],
            y=[score],
            mode="markers+text",
            marker={"size": 15, "color": colour},
            text=[f"<b>{label}</b><br>{load.devices_per_token:.2f} devices · {score:.2f}"],
            textposition="middle right" if load.routing == "plain" else "middle left",
            textfont={"color": colour, "size": 13},
            cliponaxis=False,
            name=label,
            hoverinfo="skip",
        )
    figure.update_xaxes(
        title_text="devices that a token is sent to (of 8)", range=[0.6, 8.4], dtick=1
    )
    figure.update_yaxes(title_text="imbalance score", range=[-0.12 * highest, 1.2 * highest])
    return figure


def loss(trained: Sequence[Trained]) -> go.Figure:
    """Bits per byte of the training batches over the steps, the loss logarithmic."""
    figure = _over_steps(trained, lambda record: record.bits_per_byte)
    figure.update_yaxes(type="log", title_text="bits per byte", tickvals=[1.5, 2, 2.5, 3, 4, 6, 8])
    return figure


def training_imbalance(trained: Sequence[Trained]) -> go.Figure:
    """Imbalance score of the training batches over the steps, mean of the layers."""
    figure = _over_steps(trained, lambda record: mean(record.imbalance))
    figure.update_yaxes(title_text="imbalance score", rangemode="tozero")
    return figure


def _over_steps(trained: Sequence[Trained], value: Callable[[Record], float]) -> go.Figure:
    """A line per run; those of the shipped models are the thick ones."""
    figure = blank(height=360, right=24)
    for each in trained:
        label, colour, _ = ROUTINGS[each.load.routing]
        for run in each.runs:
            figure.add_scatter(
                x=[record.step for record in run.records],
                y=[value(record) for record in run.records],
                mode="lines",
                line={"color": colour, "width": 2.5 if run.kept else 1},
                name=label,
                legendgroup=label,
                showlegend=run.kept,
                hovertemplate=f"%{{y:.3f}} at step %{{x}}<extra>{label}, seed {run.seed}</extra>",
            )
    # The lines may lie upon one another: a legend, not names beside the ends.
    figure.update_layout(showlegend=True, legend={"x": 1, "xanchor": "right", "y": 1})
    figure.update_xaxes(title_text="training step")
    return figure


def blank(*, height: int, right: int) -> go.Figure:
    """A figure in the style of the page, to be filled."""
    figure = go.Figure()
    figure.update_layout(
        height=height,
        margin={"l": 58, "r": right, "t": 14, "b": 50},
        paper_bgcolor="rgba(0,0,0,0)",
        plot_bgcolor="rgba(0,0,0,0)",
        font={"family": "system-ui, sans-serif", "size": 13, "color": INK},
        showlegend=False,
        hoverlabel={"font": {"size": 13}},
        dragmode=False,
    )
    quiet: dict[str, Any] = {"gridcolor": GRID, "zeroline": False, "fixedrange": True}
    quiet["title"] = {"font": {"size": 13, "color": MUTED}, "standoff": 8}
    figure.update_xaxes(**quiet, showgrid=False, ticks="outside", tickcolor=GRID)
    figure.update_yaxes(**quiet)
    return figure


def labels_at_the_right(figure: go.Figure, ends: dict[str, tuple[float, str]], gap: float) -> None:
    """Names beside the last points, from the lowest up, moved apart where they would overlap."""
    lowest = float("-inf")
    for label, (y, colour) in sorted(ends.items(), key=lambda item: item[1][0]):
        lines = label.count("<br>") + 1
        y = max(y, lowest + gap * (lines + 1) / 2)
        lowest = y + gap * (lines - 1) / 2
        figure.add_annotation(
            x=1,
            xref="paper",
            xanchor="left",
            xshift=4,
            y=y,
            yanchor="middle",
            text=label,
            align="left",
            showarrow=False,
            font={"color": colour, "size": 13},
        )


def token_counts(figure: go.Figure, counts: Sequence[int], title: str) -> None:
    """A logarithmic axis of these numbers."""
    text = [f"{n // 1024}k" if n >= 1024 and n % 1024 == 0 else str(n) for n in counts]
    figure.update_xaxes(type="log", title_text=title, tickvals=counts, ticktext=text)
