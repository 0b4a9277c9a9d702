"""A `Chart` as a plotly figure: for the page, and for the HTML file that opens offline."""

from __future__ import annotations

from functools import singledispatch
from html import escape

import numpy as np
import plotly.graph_objects as go

from app.figures.chart import Bars, Chart, Heat, Level, Line, Marks, Outline, Span, Tint


def figure(chart: Chart, standalone: bool = False) -> go.Figure:
    """The plotly figure; with `standalone`, title and footer are part of it."""
    import pandas  # noqa: F401  plotly fails on a pandas that another thread is just importing, so wait for it

    fig = go.Figure()
    for layer in chart.layers:
        _add(layer, fig)
    fig.update_layout(
        height=chart.height,
        margin={"l": 10, "r": 90 if any(isinstance(layer, Level) for layer in chart.layers) else 10, "t": 34, "b": 10},
        legend={"orientation": "h", "x": 0, "y": 1.0, "yanchor": "bottom"},
        hovermode="closest",
        showlegend=sum(not isinstance(layer, (Heat, Level, Span)) for layer in chart.layers) > 1,
        barmode="group",
    )
    plain = {"automargin": True, "exponentformat": "none", "separatethousands": True}
    fig.update_xaxes(title_text=escape(chart.x), type="log" if chart.log_x else "-", **plain, **_ticks(chart.x_ticks))
    fig.update_yaxes(title_text=escape(chart.y), type="log" if chart.log_y else "-", **plain, **_ticks(chart.y_ticks))
    if chart.y_range:
        fig.update_yaxes(range=chart.y_range)
    if chart.downwards:
        fig.update_yaxes(autorange="reversed")
    if chart.square:
        fig.update_yaxes(scaleanchor="x", constrain="domain")
        fig.update_xaxes(constrain="domain")
    if standalone:
        fig.update_layout(
            title={"text": escape(chart.title), "font": {"size": 16}},
            height=max(chart.height, 760 if chart.square else 480),
            margin={"t": 90, "b": 120, "l": 60, "r": 90},
            template="plotly_white",
        )
        fig.add_annotation(
            text="<br>".join(escape(line) for line in chart.footer.split("\n")),
            xref="paper", yref="paper", x=0, y=0, yshift=-105, xanchor="left", yanchor="bottom",
            showarrow=False, align="left", font={"size": 10},
        )  # fmt: skip
    return fig


def html(chart: Chart) -> bytes:
    """A page with the figure and plotly itself in it: opens without network."""
    return figure(chart, standalone=True).to_html(include_plotlyjs=True, full_html=True, config={"displaylogo": False}).encode()


def _ticks(ticks):
    return {"tickvals": [at for at, _ in ticks], "ticktext": [escape(text) for _, text in ticks]} if ticks else {}


@singledispatch
def _add(layer, fig):
    raise TypeError(f"no way to draw {type(layer).__name__}")


@_add.register
def _(layer: Line, fig):
    fig.add_scatter(
        x=layer.x,
        y=layer.y,
        name=escape(layer.name),
        mode="lines+markers" if layer.marker else "lines",
        line={"color": layer.colour, "width": layer.width, "dash": "dash" if layer.dash else "solid"},
        marker={"symbol": {"triangle": "triangle-up"}.get(layer.symbol, layer.symbol), "size": 7},
        text=[escape(text) for text in layer.hover] or None,
        hovertemplate=("%{text}<extra></extra>" if layer.hover else None),
    )


@_add.register
def _(layer: Span, fig):
    fig.add_vrect(
        x0=layer.begin,
        x1=layer.end,
        fillcolor=layer.colour,
        opacity=0.14,
        line_width=0,
        layer="below",
    )
    fig.add_vline(
        x=layer.end,
        line={"color": layer.colour, "dash": "dot", "width": 1.5},
        label={
            "text": escape(layer.name),
            "textposition": "start",
            "textangle": 0,
            "xanchor": "right",
            "yanchor": "bottom",
            "padding": 6,
        },
    )


@_add.register
def _(layer: Level, fig):
    fig.add_hline(
        y=layer.y,
        line={"color": layer.colour, "dash": "dash", "width": 1.5},
        annotation_text=escape(layer.name),
        annotation_position="right",
    )


@_add.register
def _(layer: Bars, fig):
    fig.add_bar(
        y=[escape(name) for name in layer.names],
        x=layer.values,
        name=escape(layer.name),
        orientation="h",
        marker={"color": layer.colour},
        text=[escape(text) for text in layer.text] or None,
        textposition="outside",
        cliponaxis=False,
    )
    fig.update_yaxes(autorange="reversed")


def _centres(edges, count):
    step = (edges[1] - edges[0]) / count
    return edges[0] + step * (np.arange(count) + 0.5)


@_add.register
def _(layer: Heat, fig):
    height, width = layer.values.shape
    shown = np.log10(np.maximum(layer.values, layer.low)) if layer.log else layer.values
    low, high = (np.log10(layer.low), np.log10(layer.high)) if layer.log else (layer.low, layer.high)
    ticks = np.arange(np.ceil(low), np.floor(high) + 1) if layer.log else None
    bar = {"title": {"text": escape(layer.name), "side": "right"}, "thickness": 12}
    bar["x"] = 1.02 + 0.14 * sum(trace.type == "heatmap" for trace in fig.data)
    if layer.log:
        bar |= {"tickvals": ticks, "ticktext": [f"{10.0**tick:g}" for tick in ticks]}
    fig.add_heatmap(
        z=shown,
        customdata=layer.values,
        x=_centres(layer.x, width),
        y=_centres(layer.y, height),
        zmin=low,
        zmax=high,
        colorscale=[[i / (len(layer.ramp) - 1), colour] for i, colour in enumerate(layer.ramp)],
        colorbar=bar,
        text=[[escape(text) for text in row] for row in layer.text] or None,
        texttemplate="%{text}" if layer.text else None,
        hovertemplate="x %{x}, y %{y}: %{customdata:.3g}<extra></extra>",
    )


@_add.register
def _(layer: Tint, fig):
    height, width = layer.mask.shape
    fig.add_heatmap(
        z=np.where(layer.mask, 1.0, np.nan),
        x=_centres(layer.x, width),
        y=_centres(layer.y, height),
        colorscale=[[0, layer.colour], [1, layer.colour]],
        opacity=0.35,
        showscale=False,
        hoverinfo="skip",
        name=escape(layer.name),
    )


@_add.register
def _(layer: Outline, fig):
    gaps = np.full(len(layer.pieces), np.nan)
    fig.add_scatter(
        x=np.stack([layer.pieces[:, 0], layer.pieces[:, 2], gaps], 1).ravel(),
        y=np.stack([layer.pieces[:, 1], layer.pieces[:, 3], gaps], 1).ravel(),
        name=escape(layer.name),
        mode="lines",
        line={"color": layer.colour, "width": 1.5},
        hoverinfo="skip",
    )


@_add.register
def _(layer: Marks, fig):
    across = layer.side == "bottom"
    heat = next(trace for trace in fig.data if trace.type == "heatmap")
    edge = np.full(len(layer.at), heat.y[-1] if across else heat.x[0])
    fig.add_scatter(
        x=layer.at if across else edge,
        y=edge if across else layer.at,
        name=escape(layer.name),
        mode="markers",
        marker={"color": layer.colour, "symbol": "triangle-up" if across else "triangle-right", "size": 9},
        cliponaxis=False,
    )
