"""Recall per row beside the target."""

from __future__ import annotations

import numpy as np

from app.figures.chart import Chart, Level, Line
from app.figures.palette import DROPPED, KEPT, MUTED

POINTS = 1024


def chart(recall, target, title, footer, parts=None) -> Chart:
    """The least and the median recall of up to 1,024 equal groups of rows, the target, and how far groups fall below it; where
    recall is known of fewer `parts` of the rows (`Trace.recall_parts`), the least of each part."""
    parts = parts or len(recall)
    count = min(POINTS, parts)
    edges = np.arange(count + 1) * len(recall) // count
    groups = list(zip(edges[:-1], edges[1:], strict=True))
    least = np.array([recall[a:b].min() for a, b in groups])
    middle = np.array([np.median(recall[a:b]) for a, b in groups])
    size = int(np.ceil(len(recall) / count))
    each = "of each row" if size == 1 else f"of each {size} rows"
    curves = [Line(edges[:-1], least, f"least {each}", KEPT, width=1.2)]
    if size > 1 and parts == len(recall):
        curves.append(Line(edges[:-1], middle, f"median {each}", MUTED, dash=True, width=1.2))
    if (least < target).any():
        curves.append(_below(edges[:-1], least, target))
    low = min(float(recall.min()), target)
    return Chart(
        title=title,
        x="query row (token)",
        y="recall",
        layers=(*curves, Level(target, f"target {target:g}", MUTED)),
        footer=footer,
        values={"recall": recall},
        y_range=(max(0.0, low - 0.05), 1.01),
        height=340,
    )


def _below(at, least, target) -> Line:
    """A stroke from the target down to each value below it."""
    found = np.flatnonzero(least < target)
    x, y = np.repeat(at[found].astype(float), 3), np.full((len(found), 3), target)
    y[:, 1] = least[found]
    x[2::3] = y[:, 2] = np.nan
    return Line(x, y.ravel(), f"below the target ({len(found):,} of {len(least):,})", DROPPED, width=1.6)
