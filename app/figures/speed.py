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


def over_length(rows: list[dict], title, footer) -> Chart:
    """Median milliseconds over length, one curve per implementation; sparse ones are dashed."""
    curves: dict[str, list] = {}
    for row in rows:
        sparse = row["density"] == row["density"] and row["density"] < 1
        curves.setdefault(row["implementation"] + (f", {row['density']:.0%} of tiles" if sparse else ""), []).append(
            (row["length"], row["median_ms"], sparse)
        )
    lines = []
    for i, (name, points) in enumerate(sorted(curves.items(), key=lambda item: -max(point[1] for point in item[1]))):
        x, y, sparse = zip(*sorted(points), strict=True)
        lines.append(Line(np.array(x), np.array(y), name, CYCLE[i % len(CYCLE)], dash=any(sparse), marker=True))
    return Chart(
        title=title,
        x="tokens",
        y="milliseconds (median)",
        layers=tuple(lines),
        footer=footer,
        values={
            name: np.array([row[name] for row in rows])
            for name in ("what", "implementation", "length", "head_dim", "density", "median_ms")
        },
        log_x=True,
        log_y=True,
        x_ticks=tuple((float(length), f"{length / 1024:g}K") for length in sorted({row["length"] for row in rows})),
        height=430,
    )
