"""The board of all heads: as one buffer for the page's canvas, and as a chart for files."""

from __future__ import annotations

import numpy as np

from app.figures.chart import Chart, Heat
from app.figures.head_map import colour_range
from app.packing import pack

THUMBNAIL = 64


def mean_of(values: np.ndarray, axis: int) -> np.ndarray:
    """The mean along an axis of the values that are known; NaN where none is."""
    known = np.isfinite(values)
    count = known.sum(axis)
    return np.where(count, np.where(known, values, 0).sum(axis) / np.maximum(count, 1), np.nan)


def thumbnail(overview: np.ndarray) -> np.ndarray:
    """A head's overview in at most 64 x 64 cells, on a log scale: 0 nothing, 255 its greatest weight. uint8 [n, n]"""
    size = min(THUMBNAIL, len(overview))
    edges = np.arange(size) * len(overview) // size
    cells = np.maximum.reduceat(np.maximum.reduceat(overview, edges, axis=0), edges, axis=1)
    low, high = colour_range(overview)
    return np.round(255 * np.log(np.clip(cells, low, high) / low) / np.log(high / low)).astype(np.uint8)


def target_board(values: np.ndarray, steps: np.ndarray, header: dict) -> bytes:
    """As `board`, with the numbers of every target: steps float [targets, layers, heads], NaN where nothing is known.

    header: besides, targets: the slider's; at: which of them `values` are of; exact: the recorded one, -1 if there is none."""
    return pack(
        {"layers": len(values), "heads": values.shape[1], **header},
        values=values.astype(np.float32),
        dimmed=np.zeros(values.shape, np.uint8),
        thumbnails=np.zeros(0, np.uint8),
        steps=steps.astype(np.float32),
    )


def board(values: np.ndarray, dimmed: np.ndarray, header: dict, thumbnails: list[np.ndarray]) -> bytes:
    """What the board's canvas draws (see components/head_board.js): values float, dimmed bool [layers, heads], thumbnails [n, n].

    header: the words and colours, as the view gives them.
    """
    return pack(
        {"layers": len(values), "heads": values.shape[1], **header},
        values=values.astype(np.float32),
        dimmed=dimmed.astype(np.uint8),
        thumbnails=np.array(thumbnails, np.uint8),
    )


def chart(values, text, labels, kv_heads, name, low_high, title, footer) -> Chart:
    """The board as a heat map; an empty column stands between groups of query heads that share a key head."""
    layers, heads = values.shape
    group = heads // kv_heads
    gaps = list(range(group, heads, group)) if kv_heads < heads else []
    spread = np.insert(values.astype(float), gaps, np.nan, axis=1)
    words = tuple(tuple(np.insert(np.array(row, dtype=object), gaps, "").tolist()) for row in text)
    places = [head + head // group * bool(gaps) for head in range(heads)]
    width = spread.shape[1]
    return Chart(
        title=title,
        x="head (a gap between groups that share a key head)" if gaps else "head",
        y="layer",
        layers=(Heat(spread, (-0.5, width - 0.5), (-0.5, layers - 0.5), name, *low_high, text=words if heads <= 16 else ()),),
        footer=footer,
        values={
            "values": values, "labels": np.array(labels),
            "mean_of_layer": mean_of(values, 1), "mean_of_head": mean_of(values, 0),
        },
        downwards=True,
        x_ticks=tuple((float(place), str(head)) for head, place in enumerate(places) if heads <= 32 or head % 8 == 0),
        y_ticks=tuple((float(layer), str(layer)) for layer in range(layers) if layers <= 40 or layer % 4 == 0),
        height=max(320, 26 * layers + 120),
    )  # fmt: skip
