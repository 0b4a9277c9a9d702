"""The map of one head: as the canvas's buffer for the page and as a chart for files."""

from __future__ import annotations

import numpy as np

from app.figures.chart import Chart, Heat, Marks, Outline, Tint
from app.figures.palette import DROPPED, KEPT, RAMP

LOWEST = 1e-5


def colour_range(weights: np.ndarray) -> tuple[float, float]:
    """The least and the greatest weight that the colours tell apart."""
    high = float(weights.max(initial=0))
    return LOWEST, max(high, 10 * LOWEST)


def header(weights, mask, columns, slashes, block_size, length, labels, scale, overlay, **more) -> dict:
    """What the canvas needs beside the planes; `labels` holds the text of each row (and column) of cells."""
    low, high = colour_range(weights)
    return {
        "cells": list(weights.shape),
        "rows": [0, length],
        "cols": [0, length],
        "row_labels": labels,
        "block": block_size,
        "tiles": list(mask.shape),
        "columns": [int(column) for column in columns],
        "slashes": [int(slash) for slash in slashes],
        "scale": scale,
        "overlay": bool(overlay),
        "low": low,
        "high": high,
        "ramp": RAMP,
        "kept": KEPT,
        "dropped": DROPPED,
        **more,
    }


def causal_tiles(mask: np.ndarray) -> np.ndarray:
    """The tiles at or below the diagonal, for queries and keys that stand at the same positions."""
    return np.tri(*mask.shape, dtype=bool)


def border(region: np.ndarray, block: int, length: int) -> np.ndarray:
    """The pieces (x0, y0, x1, y1) between a region of tiles and the rest, in tokens."""
    padded = np.pad(region, 1)
    tops = np.argwhere(padded[1:, 1:-1] != padded[:-1, 1:-1])
    sides = np.argwhere(padded[1:-1, 1:] != padded[1:-1, :-1])
    across = np.stack([tops[:, 1], tops[:, 0], tops[:, 1] + 1, tops[:, 0]], 1)
    down = np.stack([sides[:, 1], sides[:, 0], sides[:, 1], sides[:, 0] + 1], 1)
    return np.minimum(np.concatenate([across, down]) * block, length)


def chart(weights, mask, columns, slashes, block_size, length, scale, overlay, title, footer) -> Chart:
    """The map as a figure for a paper: weights, kept outline, dropped tint, columns and slashes at the edges."""
    low, high = colour_range(weights)
    cells = np.arange(len(weights))
    shown = np.where(cells[None, :] <= cells[:, None], weights, np.nan)
    edge = (0.0, float(length))
    log = scale == "log"
    layers = [Heat(shown, edge, edge, "attention weight (greatest of each cell)", low if log else 0.0, high, log)]
    tiles_edge = (0.0, float(block_size * len(mask)))
    if overlay:
        dropped = causal_tiles(mask) & ~mask
        if dropped.any():
            layers.append(Tint(dropped, tiles_edge, tiles_edge, "dropped", DROPPED))
        layers.append(Outline(border(mask & causal_tiles(mask), block_size, length), "kept tiles", KEPT))
    if len(columns):
        layers.append(Marks((np.asarray(columns) + 0.5) * block_size, "bottom", "columns", KEPT))
    if len(slashes):
        layers.append(Marks((np.asarray(slashes) + 0.5) * block_size, "left", "slashes", KEPT))
    return Chart(
        title=title,
        x="key (token)",
        y="query (token)",
        layers=tuple(layers),
        footer=footer,
        values={"weights": weights, "block_mask": mask, "columns": np.asarray(columns), "slashes": np.asarray(slashes)},
        downwards=True,
        square=True,
        height=720,
    )
