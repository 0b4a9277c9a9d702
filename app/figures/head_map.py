"""The map of one head: as the canvas's buffer for the page and as a chart for files."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from app.figures.chart import Chart, Heat, Marks, Outline, Tint
from app.figures.palette import DIFFERENCE_RAMP, DROPPED, KEPT, MISSED_RAMP

LOWEST = 1e-5
POOLS = {"max": "greatest", "mean": "mean", "sum": "sum"}


@dataclass(frozen=True)
class Look:
    """What of a map is drawn, as the page's switches say.

    pool: of POOLS, what a cell shows of its tokens. log: logarithmic colours. weights, missed, overlay: whether the weights,
    those outside the kept tiles, and the border of these are drawn. first_key: keys before it are left out (the sink). high:
    the greatest weight that the colours tell apart, or None for that of the window.
    """

    pool: str = "max"
    log: bool = True
    weights: bool = True
    missed: bool = False
    overlay: bool = True
    first_key: int = 0
    high: float | None = None


def colour_range(weights: np.ndarray) -> tuple[float, float]:
    """The least and the greatest weight that the colours tell apart."""
    high = float(weights.max(initial=0))
    return LOWEST, max(high, 10 * LOWEST)


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


def chart(weights, missed, mask, columns, slashes, block_size, length, rows, cols, look: Look, title, footer) -> Chart:
    """A window of the map as a figure for a paper: weights, kept outline, dropped tint, columns and slashes at the edges.

    length: tokens of the prompt. rows (r0, r1), cols (c0, c1): the window in tokens; weights and missed [h, w] are its cells,
    from equal pieces of it; missed counts the weights outside the kept tiles only.
    """
    (r0, r1), (c0, c1) = rows, cols
    row_edges, column_edges = _edges(rows, cols, weights.shape)
    causal = column_edges[None, :-1] < row_edges[1:, None]
    drawn = causal & (column_edges[None, :-1] >= look.first_key)
    low, high = colour_range(np.where(drawn, weights, 0))
    scale = low if look.log else 0.0, look.high or high, look.log
    x, y, outside = (float(c0), float(c1)), (float(r0), float(r1)), look.missed & (missed > 0)
    layers = []
    if look.weights:
        shown = np.where(drawn & ~outside, weights, np.nan)
        layers.append(Heat(shown, x, y, f"attention weight ({POOLS[look.pool]} of each cell)", *scale))
    if look.missed:
        shown = np.where(drawn & outside, missed, np.nan)
        layers.append(Heat(shown, x, y, "missed: weight outside the kept tiles", *scale, ramp=MISSED_RAMP))
    if look.overlay:
        kept = mask[np.ix_((row_edges[1:] - 1) // block_size, column_edges[:-1] // block_size)]
        if (causal & ~kept).any():
            layers.append(Tint(causal & ~kept, x, y, "dropped", DROPPED))
        layers.append(Outline(_clipped(border(mask & causal_tiles(mask), block_size, length), rows, cols), "kept tiles", KEPT))
    at = (np.asarray(columns) + 0.5) * block_size, c0 + (np.asarray(slashes) + 0.5) * block_size
    for where, (first, last), side, name in ((at[0], cols, "bottom", "columns"), (at[1], rows, "left", "slashes")):
        within = where[(where >= first) & (where < last)]
        if within.size:
            layers.append(Marks(within, side, name, KEPT))
    return Chart(
        title=title,
        x="key (token)",
        y="query (token)",
        layers=tuple(layers),
        footer=footer,
        values={
            "weights": weights, "missed": missed, "rows": np.array(rows), "cols": np.array(cols), "block_mask": mask,
            "columns": np.asarray(columns), "slashes": np.asarray(slashes),
        },
        downwards=True,
        square=True,
        height=720,
    )  # fmt: skip


def difference(values, rows, cols, title, footer) -> Chart:
    """A window of one head's map minus another's: values [h, w], on a linear scale that reaches as far on both sides."""
    row_edges, column_edges = _edges(rows, cols, values.shape)
    high = max(float(np.abs(values).max(initial=0)), 10 * LOWEST)
    shown = np.where(column_edges[None, :-1] < row_edges[1:, None], values, np.nan)
    x, y = tuple(map(float, cols)), tuple(map(float, rows))
    heat = Heat(shown, x, y, "weight in A − weight in B", -high, high, ramp=DIFFERENCE_RAMP)
    return Chart(
        title=title,
        x="key (token)",
        y="query (token)",
        layers=(heat,),
        footer=footer,
        values={"difference": values, "rows": np.array(rows), "cols": np.array(cols)},
        downwards=True,
        square=True,
        height=720,
    )


def _edges(rows, cols, shape):
    """Where the cells of a window begin and end, in tokens."""
    return tuple(start + np.arange(n + 1) * (stop - start) // n for (start, stop), n in zip((rows, cols), shape, strict=True))


def _clipped(pieces, rows, cols):
    """The pieces (x0, y0, x1, y1) that meet the window, cut to it."""
    (r0, r1), (c0, c1) = rows, cols
    meet = (pieces[:, 0] <= c1) & (pieces[:, 2] >= c0) & (pieces[:, 1] <= r1) & (pieces[:, 3] >= r0)
    cut = np.clip(pieces[meet], [c0, r0, c0, r0], [c1, r1, c1, r1])
    return cut[(cut[:, :2] != cut[:, 2:]).any(axis=1)]
