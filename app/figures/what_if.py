"""Density against recall: what other targets would cost and keep."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from app.figures.chart import Chart, Line
from app.figures.palette import KEPT, MUTED, OTHER, SPARSE


@dataclass(frozen=True)
class Point:
    """A target, the mean density of all heads, and the recall that most rows reach: mean over heads, and of the hardest head."""

    target: float
    density: float
    recall: float
    hardest: float


def of_heads(target: float, density: np.ndarray, recall: np.ndarray) -> Point:
    """The point of a target from the density and the recall of each head."""
    return Point(target, float(density.mean()), float(recall.mean()), float(recall.min()))


def chart(points: list[Point], shown: Point | None, recorded: Point | None, share: float, rows: int, title, footer) -> Chart:
    """The estimated points, in order of density; the one of the settings shown; and what was recorded, exact over all rows."""
    points = sorted(points, key=lambda point: point.density)
    layers = [
        _line(points, f"mean of the heads, estimated from {rows} sampled rows", KEPT, "circle"),
        _line(points, "hardest head, estimated", MUTED, "triangle", "hardest"),
    ]
    layers += [_pair(shown, "these settings, estimated", OTHER, "square")] if shown else []
    layers += [_pair(recorded, "as recorded, all rows (exact)", SPARSE, "diamond", dash=False)] if recorded else []
    everything = [*points, *([recorded] if recorded else [])]
    return Chart(
        title=title,
        x="tiles computed, mean of all heads (share of the causal tiles)",
        y=f"recall that {share:.0%} of the rows reach",
        layers=tuple(layers),
        footer=footer,
        values={name: np.array([getattr(point, name) for point in points]) for name in Point.__dataclass_fields__},
        y_range=(max(0.0, min((point.hardest for point in everything), default=0.0) - 0.03), 1.01),
        height=380,
    )


def _line(points, label, colour, symbol, height="recall") -> Line:
    return _drawn([(point, getattr(point, height)) for point in points], label, colour, symbol)


def _pair(point, label, colour, symbol, dash=True) -> Line:
    """The mean of a point above its hardest head."""
    return _drawn([(point, point.recall), (point, point.hardest)], f"{label}: mean and hardest head", colour, symbol, dash)


def _drawn(places, label, colour, symbol, dash=True) -> Line:
    return Line(
        np.array([point.density for point, _ in places]),
        np.array([y for _, y in places]),
        label,
        colour,
        dash=dash,
        marker=True,
        symbol=symbol,
        hover=tuple(f"target {point.target:g}: {point.density:.1%} of the tiles, recall {y:.3f}" for point, y in places),
    )
