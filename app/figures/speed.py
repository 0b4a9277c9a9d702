"""Where the time goes, as bars; and recorded times over length."""

from __future__ import annotations

import numpy as np

from app.figures.chart import Bars, Chart, Line
from app.figures.palette import DENSE, DROPPED, KEPT, MUTED, SPARSE

CYCLE = (SPARSE, DROPPED, DENSE, KEPT, "#56b4e9", "#009e73", "#cc79a7", MUTED)


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


def over_length(rows: list[dict], title, footer) -> Chart:
    """Median milliseconds over length, one curve per implementation; what is sparse is dashed."""
    curves: dict[tuple, list] = {}
    for row in rows:
        curves.setdefault((row["what"], row["implementation"]), []).append(row)
    lines = []
    for i, ((what, implementation), points) in enumerate(curves.items()):
        points = sorted(points, key=lambda row: row["length"])
        hover = [
            f"{row['length']:,.0f} tokens, {_tiles(row)}: {row['median_ms']:.3g} ms ({row['p20_ms']:.3g} to {row['p80_ms']:.3g})"
            for row in points
        ]
        lines.append(
            Line(
                np.array([row["length"] for row in points]),
                np.array([row["median_ms"] for row in points]),
                f"{what.replace('_', ' ')}, {implementation}",
                CYCLE[i % len(CYCLE)],
                dash=what != "dense",
                marker=True,
                hover=tuple(hover),
            )
        )
    names = ("what", "implementation", "length", "head_dim", "density", "median_ms", "p20_ms", "p80_ms")
    return Chart(
        title=title,
        x="tokens",
        y="milliseconds (median)",
        layers=tuple(lines),
        footer=footer,
        values={name: np.array([row[name] for row in rows]) for name in names},
        log_x=True,
        log_y=True,
        x_ticks=tuple((float(length), f"{length / 1024:g}K") for length in sorted({row["length"] for row in rows})),
        height=430,
    )


def _tiles(row) -> str:
    return "all tiles" if not row["density"] < 1 else f"{row['density']:.0%} of the tiles"
