"""A `Chart` as a matplotlib picture: PNG, SVG and PDF, without a browser. Imported only when a file is asked for."""

from __future__ import annotations

import io
from functools import singledispatch
from textwrap import fill

import matplotlib
import numpy as np
from matplotlib.colors import LinearSegmentedColormap, LogNorm, Normalize
from matplotlib.figure import Figure
from matplotlib.ticker import StrMethodFormatter

from app.figures.chart import Bars, Chart, Heat, Level, Line, Marks, Outline, Span, Tint

STYLE = {"svg.fonttype": "none", "pdf.fonttype": 42, "font.size": 9, "text.parse_math": False, "hatch.linewidth": 0.4}
MARKERS = {"circle": "o", "square": "s", "diamond": "D", "triangle": "^", "cross": "X"}


def picture(chart: Chart, kind: str) -> bytes:
    """The chart as the bytes of a "png", "svg" or "pdf" file."""
    with matplotlib.rc_context(STYLE):
        wide, high = (7.2, 6.6) if chart.square else (8.0, max(3.6, chart.height / 90 + 0.8))
        fig = Figure(figsize=(wide, high), layout="constrained")
        axes = fig.add_subplot()
        for layer in chart.layers:
            _draw(layer, axes)
        axes.set(xlabel=chart.x, ylabel=chart.y)
        axes.set_title(fill(chart.title, 90), loc="left", fontsize=10, pad=8)
        _scale(chart, axes)
        if sum(not isinstance(layer, (Heat, Level)) for layer in chart.layers) > 1:
            axes.legend(loc="upper right" if chart.square else "best", fontsize=8, framealpha=0.9)
        lines = "\n".join(fill(line, 110 if chart.square else 140) for line in chart.footer.split("\n"))
        fig.supxlabel(lines, x=0.01, ha="left", fontsize=6, color="#555555")
        buffer = io.BytesIO()
        fig.savefig(buffer, format=kind, dpi=200)
        return buffer.getvalue()


def _scale(chart, axes):
    if chart.log_x:
        axes.set_xscale("log")
    if chart.log_y:
        axes.set_yscale("log")
    if chart.y_range:
        axes.set_ylim(*chart.y_range)
    if chart.downwards and not axes.yaxis_inverted():
        axes.invert_yaxis()
    if chart.square:
        axes.set_aspect("equal")
    for axis, ticks in ((axes.xaxis, chart.x_ticks), (axes.yaxis, chart.y_ticks)):
        if not ticks and axis.get_major_locator().__class__.__name__ != "FixedLocator":
            axis.set_major_formatter(StrMethodFormatter("{x:,g}"))
    if chart.x_ticks:
        axes.set_xticks([at for at, _ in chart.x_ticks], [text for _, text in chart.x_ticks])
        axes.minorticks_off()
    if chart.y_ticks:
        axes.set_yticks([at for at, _ in chart.y_ticks], [text for _, text in chart.y_ticks])


@singledispatch
def _draw(layer, axes):
    raise TypeError(f"no way to draw {type(layer).__name__}")


@_draw.register
def _(layer: Line, axes):
    axes.plot(
        layer.x,
        layer.y,
        label=layer.name,
        color=layer.colour,
        linewidth=layer.width,
        linestyle="--" if layer.dash else "-",
        marker=MARKERS[layer.symbol] if layer.marker else None,
        markersize=3 if layer.width else 6,
    )


@_draw.register
def _(layer: Span, axes):
    axes.axvspan(layer.begin, layer.end, facecolor="none", edgecolor=layer.colour, alpha=0.4, hatch="////", label=layer.name)


@_draw.register
def _(layer: Level, axes):
    axes.axhline(layer.y, color=layer.colour, linestyle="--", linewidth=1)
    place = {"xycoords": ("axes fraction", "data"), "xytext": (4, 0), "textcoords": "offset points"}
    axes.annotate(layer.name, (1, layer.y), ha="left", va="center", fontsize=8, **place)


@_draw.register
def _(layer: Bars, axes):
    groups = getattr(axes, "_bar_groups", 0)
    axes._bar_groups = groups + 1
    bars = axes.barh(np.arange(len(layer.names)) + 0.38 * groups, layer.values, height=0.36, color=layer.colour, label=layer.name)
    axes.set_yticks(np.arange(len(layer.names)), layer.names)
    if layer.text:
        axes.bar_label(bars, layer.text, padding=3, fontsize=8)
    axes.margins(x=0.2)
    if not axes.yaxis_inverted():
        axes.invert_yaxis()


def _extent(layer):
    return (*layer.x, layer.y[1], layer.y[0])


@_draw.register
def _(layer: Heat, axes):
    norm = LogNorm(layer.low, layer.high) if layer.log else Normalize(layer.low, layer.high)
    shown = np.ma.masked_invalid(layer.values)
    shown = np.ma.maximum(shown, layer.low) if layer.log else shown
    colours = LinearSegmentedColormap.from_list("ramp", layer.ramp)
    image = axes.imshow(shown, cmap=colours, norm=norm, extent=_extent(layer), aspect="auto", interpolation="nearest")
    bar = axes.figure.colorbar(image, ax=axes, label=layer.name, fraction=0.046, pad=0.02)
    bar.ax.yaxis.set_major_formatter(StrMethodFormatter("{x:g}"))
    height, width = layer.values.shape
    for r, row in enumerate(layer.text):
        for c, text in enumerate(row):
            dark = norm(layer.values[r, c]) < 0.6 if np.isfinite(layer.values[r, c]) else False
            x = layer.x[0] + (c + 0.5) * (layer.x[1] - layer.x[0]) / width
            y = layer.y[0] + (r + 0.5) * (layer.y[1] - layer.y[0]) / height
            axes.text(x, y, text, ha="center", va="center", fontsize=6, color="white" if dark else "black")


@_draw.register
def _(layer: Tint, axes):
    colour = LinearSegmentedColormap.from_list("tint", [layer.colour, layer.colour])
    axes.imshow(
        np.ma.masked_equal(layer.mask.astype(float), 0),
        cmap=colour,
        alpha=0.35,
        extent=_extent(layer),
        aspect="auto",
        interpolation="nearest",
    )
    height, width = layer.mask.shape
    axes.fill_between([], [], color=layer.colour, alpha=0.35, hatch="////", label=layer.name)
    if width <= 128:
        x, y = np.linspace(*layer.x, width + 1), np.linspace(*layer.y, height + 1)
        for r, c in zip(*np.nonzero(layer.mask), strict=True):
            axes.plot([x[c], x[c + 1]], [y[r + 1], y[r]], color=layer.colour, linewidth=0.5)


@_draw.register
def _(layer: Outline, axes):
    x, y = layer.pieces[:, [0, 2]], layer.pieces[:, [1, 3]]
    axes.plot(x.T[:, :1], y.T[:, :1], color=layer.colour, linewidth=1, label=layer.name)
    axes.plot(x.T, y.T, color=layer.colour, linewidth=1)


@_draw.register
def _(layer: Marks, axes):
    across = layer.side == "bottom"
    place = axes.get_xaxis_transform() if across else axes.get_yaxis_transform()
    edge = np.full(len(layer.at), -0.012)
    axes.plot(
        *((layer.at, edge) if across else (edge, layer.at)),
        transform=place,
        linestyle="",
        marker="^" if across else ">",
        markersize=4,
        color=layer.colour,
        clip_on=False,
        label=layer.name,
    )
