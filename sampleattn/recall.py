"""The recall of a head's rows in a few numbers. Numpy only; every function works on the last axis."""

from __future__ import annotations

import numpy as np

SHARES = (0.0, 0.001, 0.01, 0.05, 0.1, 0.25, 0.5, 0.75, 1.0)
TOLERANCE = 1e-6


def reached_by(recall: np.ndarray, share: float) -> np.ndarray:
    """The recall that `share` of the rows reach: [..., rows] -> [...]."""
    below = recall.shape[-1] - max(1, int(np.ceil(recall.shape[-1] * share - 1e-6)))
    return np.partition(recall, below, axis=-1)[..., below]


def at_target(recall: np.ndarray, target: float) -> np.ndarray:
    """The share of rows whose recall is at least the target: [..., rows] -> float32 [...]."""
    return (recall >= target - TOLERANCE).mean(axis=-1, dtype=np.float32)


def quantiles(recall: np.ndarray) -> np.ndarray:
    """The recall that all rows but each of SHARES reach: [..., rows] -> float32 [..., 9], ascending."""
    return np.stack([reached_by(recall, 1 - share) for share in SHARES], axis=-1).astype(np.float32)


def cell_edges(tokens: int, cells: int) -> np.ndarray:
    """Where `cells` equal parts of `tokens` begin, and where the last ends: int64 [cells + 1]."""
    return np.arange(cells + 1) * tokens // cells


def track(recall: np.ndarray, cells: int) -> np.ndarray:
    """The least recall in each of `cells` equal parts of the rows: [..., rows] -> [..., cells]."""
    return np.minimum.reduceat(recall, cell_edges(recall.shape[-1], cells)[:-1], axis=-1)
