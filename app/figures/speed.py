"""Where the time goes, as bars; times over length; and rates below the roof of the machine."""

from __future__ import annotations

import numpy as np

from app.figures.chart import Bars, Chart, Line, Span
from app.figures.palette import DENSE, KEPT, MUTED, OTHER, SPARSE
from sampleattn.bench.rows import BY_TARGET, WORDS, label, tokens


def seconds(value: float) -> str:
    return f"{value:.2f} s" if value >= 1 else f"{value * 1e3:.3g} ms" if value >= 1e-3 else f"{value * 1e6:.3g} µs"


def stages(times: dict[str, float], title, footer) -> Chart:
    """One bar per stage."""
    names, values = tuple(times), np.array(list(times.values()), float)
    return Chart(
        title=title,
        x="seconds",
        y="",
        layers=(Bars(names, values, "time", SPARSE, tuple(map(seconds, values))),),
        footer=footer,
        values={"stage": np.array(names), "seconds": values},
        height=90 + 34 * len(names),
    )


def by_layer(times: dict[str, list[float]], title, footer) -> Chart:
    """Seconds of each layer's attention, one curve per run."""
    layers = np.arange(max(map(len, times.values())))
    styles = ((DENSE, False), (SPARSE, True))
    return Chart(
        title=title,
        x="layer",
        y="seconds",
        layers=tuple(
            Line(layers, np.array(values, float), name, colour, dash=dash, marker=True)
            for (name, values), (colour, dash) in zip(times.items(), styles, strict=False)
        ),
        footer=footer,
        values={"layer": layers} | {name: np.array(values, float) for name, values in times.items()},
        height=260,
    )


def over_length(rows: list[dict], title, footer, slower_until: float | None = None) -> Chart:
    """Median milliseconds over length, one curve per thing and implementation.

    Solid: attention of others; dashed: ours. slower_until: the length up to which "slower here" is shaded.
    """
    curves: dict[tuple, list] = {}
    for row in rows:
        curves.setdefault((row["what"], row["implementation"]), []).append(row)
    lengths = sorted({row["length"] for row in rows})
    lines = [_curve(what, name, points) for (what, name), points in sorted(curves.items(), key=_place)]
    shade = ()
    if slower_until is not None and lengths[0] < slower_until:
        shade = (Span(lengths[0], slower_until, f"slower here (below {tokens(slower_until)} tokens)", MUTED),)
    names = ("what", "implementation", "length", "head_dim", "density", "median_ms", "p20_ms", "p80_ms")
    return Chart(
        title=title,
        x="tokens",
        y="milliseconds (median)",
        layers=(*shade, *lines),
        footer=footer,
        values={name: np.array([row[name] for row in rows]) for name in names},
        log_x=True,
        log_y=True,
        x_ticks=tuple((float(length), tokens(length)) for length in lengths),
        y_ticks=_decades([row["median_ms"] for row in rows]),
        height=430,
    )


def roofline(rows: list[dict], roof, intensity, title, footer) -> Chart:
    """Operations per second over operations per byte, below what the machine can do.

    roof: `benchmarks.Roof`; intensity: operations per byte of a row.
    """
    curves: dict[tuple, list] = {}
    for row in rows:
        curves.setdefault((row["what"], row["implementation"]), []).append(row)
    reached = [intensity(row) for row in rows]
    x = np.geomspace(min(roof.ridge, *reached) / 4, max(roof.ridge, *reached) * 2, 64)
    unit, factor = ("TFLOP/s", 1.0) if roof.rate >= 1 else ("GFLOP/s", 1e3)
    lines = [Line(x, roof.limit(x) * factor, "what this machine can do", MUTED, width=3)]
    for (what, name), points in sorted(curves.items(), key=_place):
        rates = [row["tflops"] * factor for row in points]
        lines.append(_curve(what, name, points, [intensity(row) for row in points], rates))
    names = ("what", "implementation", "length", "density", "tflops", "gbytes", "median_ms")
    return Chart(
        title=title,
        x="operations per byte moved at least",
        y=unit,
        layers=tuple(lines),
        footer=footer,
        values={name: np.array([row[name] for row in rows]) for name in names},
        log_x=True,
        log_y=True,
        x_ticks=_decades(x),
        y_ticks=_decades([y for line in lines for y in line.y]),
        height=430,
    )


STYLE = {
    "dense": (DENSE, "square"),
    "sample_attention": (SPARSE, "circle"),
    "sparse_forward": (KEPT, "diamond"),
    "stage_1": ("#009e73", "triangle"),
    "selection": (OTHER, "cross"),
    "index_lists": ("#cc79a7", "square"),
    "row_logsumexp": (MUTED, "circle"),
}
SHADES = {
    "cudnn": (DENSE, "square"),
    "flash": ("#c7a008", "triangle"),
    "flex": ("#cc79a7", "diamond"),
    "fa4": (OTHER, "cross"),
    "auto": ("#009e73", "triangle"),
}


def _decades(values) -> tuple[tuple[float, str], ...]:
    """Ticks of a logarithmic axis: the powers of ten that the values reach; of less than two decades also their 2 and 5 fold."""
    steps = (1, 2, 5) if max(values) < 100 * min(values) else (1,)
    low, high = np.floor(np.log10(min(values))), np.ceil(np.log10(max(values)))
    ticks = [step * 10.0**power for power in np.arange(low, high + 1) for step in steps]
    return tuple((tick, f"{tick:,g}") for tick in ticks)


def _place(curve):
    """The order of the legend: that of WORDS."""
    (what, name), _ = curve
    return (list(WORDS).index(what) if what in WORDS else len(WORDS), name)


def _curve(what, implementation, points, x=None, y=None) -> Line:
    points = sorted(points, key=lambda row: row["length"])
    colour, symbol = SHADES.get(implementation.split(",")[0]) or STYLE.get(what, (MUTED, "circle"))
    if label(what, implementation).endswith(BY_TARGET):
        symbol = "square"
    hover = [
        f"{label(what, implementation)}, {row['length']:,.0f} tokens{_tiles(row)}: {row['median_ms']:.3g} ms "
        f"({row['p20_ms']:.3g} to {row['p80_ms']:.3g}){_rate(row)}"
        for row in points
    ]
    return Line(
        np.array([row["length"] for row in points] if x is None else x),
        np.array([row["median_ms"] for row in points] if y is None else y),
        label(what, implementation),
        colour,
        dash=what != "dense",
        marker=True,
        width=2.5 if what == "sample_attention" else 1.5,
        hover=tuple(hover),
        symbol=symbol,
    )


def rate(tflops: float) -> str:
    """Operations per second as people say it."""
    return f"{tflops:.3g} TFLOP/s" if tflops >= 1 else f"{tflops * 1e3:.3g} GFLOP/s"


def _tiles(row) -> str:
    return f", {row['density']:.0%} of the tiles" if row["density"] < 1 else ""


def _rate(row) -> str:
    return f", {rate(row['tflops'])}" if row["tflops"] > 0 else ""
