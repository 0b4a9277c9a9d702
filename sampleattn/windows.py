"""Exact windows of one head's map, from its q, k and row logsumexp. Numpy only, a few megabytes at a time.

Two planes of one window: the weights, and the missed mass (the weights outside the kept tiles).
"""

from __future__ import annotations

import numpy as np

CHUNK_CELLS = 1 << 20
REDUCTIONS = ("max", "mean", "sum")


def attention_window(q, k, lse, scale, rows, cols, shape=None, reduce="max", block_mask=None, block_size=128, cell=1):
    """One head's weights exp(scale * q.k - lse) over a window, pooled: (weights, missed), both float32 [h, w].

    rows (r0, r1), cols (c0, c1): token positions. q [r1 - r0, D] and lse [r1 - r0] of the window's rows; k [c1 - c0, D] of its
    columns. Cell (a, b) of shape (h, w) covers rows r0 + a*n//h .. r0 + (a+1)*n//h - 1, n = r1 - r0, and columns alike; shape is
    cut to one token a cell. Without a shape, cells are `cell` tokens wide from r0 and c0 on, the last one as it comes. reduce:
    "max", "mean" or "sum" over the cell; weights above the diagonal are 0. block_mask [query blocks, key blocks] bool: the kept
    tiles; None keeps all. missed takes the weights outside them only, so with "mean" and "sum" kept + missed = weights. Raises
    ValueError if the window is empty or sizes do not agree.
    """
    (r0, r1), (c0, c1) = rows, cols
    height, width = r1 - r0, c1 - c0
    if not (0 <= r0 < r1 and 0 <= c0 < c1 and q.shape == (height, k.shape[1]) and len(lse) == height and len(k) == width):
        raise ValueError(f"rows {r0}:{r1} and columns {c0}:{c1} do not fit q {q.shape}, lse {lse.shape} and k {k.shape}")
    if reduce not in REDUCTIONS or min(shape or (cell,)) < 1:
        raise ValueError(f"reduce must be max, mean or sum and cells positive, not {reduce!r} and {shape or cell}")
    block = block_size if block_mask is not None else max(r1, c1)
    row_edges, column_edges = (
        np.arange(min(cells, n) + 1) * n // min(cells, n) if cells else np.append(np.arange(0, n, cell), n)
        for n, cells in zip((height, width), shape or (0, 0), strict=True)
    )
    row_pieces, row_cells = _pieces(r0, row_edges, block)
    column_pieces, column_cells = _pieces(c0, column_edges, block)
    combine = np.maximum if reduce == "max" else np.add
    pieces = _pooled(q, k, lse, scale, r0 - c0, row_pieces, column_pieces, reduce == "max")
    if block_mask is None:
        missed = np.zeros_like(pieces)
    else:
        kept = block_mask[np.ix_((row_pieces[:-1] + r0) // block, (column_pieces[:-1] + c0) // block)]
        missed = np.where(kept, np.float32(0), pieces)
    size = np.outer(np.diff(row_edges), np.diff(column_edges)) if reduce == "mean" else np.float32(1)
    return tuple(
        (combine.reduceat(combine.reduceat(plane, row_cells, axis=0), column_cells, axis=1) / size).astype(np.float32)
        for plane in (pieces, missed)
    )


def _pieces(start, edges, block):
    """The edges of the pieces into which tile borders cut the cells, and each cell's first piece."""
    borders = np.arange(-(-start // block) * block, start + edges[-1], block) - start
    pieces = np.union1d(edges, borders)
    return pieces, np.searchsorted(pieces, edges[:-1])


def _pooled(q, k, lse, scale, ahead, row_pieces, column_pieces, greatest):
    """The weights' maximum or sum over the pieces, float32. Row i of q sees the columns 0 .. i + ahead of k."""
    combine = np.maximum if greatest else np.add
    empty = np.float32(-np.inf if greatest else 0)
    queries = np.concatenate([q.astype(np.float32) * np.float32(scale), -lse.astype(np.float32)[:, None]], axis=1)
    keys = np.concatenate([k.astype(np.float32), np.ones((len(k), 1), np.float32)], axis=1).T
    out = np.full((len(row_pieces) - 1, len(column_pieces) - 1), empty, np.float32)
    step = max(1, CHUNK_CELLS // len(k))
    for begin in range(max(0, -ahead), len(q), step):
        end = min(begin + step, len(q))
        seen, sure = min(end + ahead, len(k)), max(begin + ahead + 1, 0)
        scores = queries[begin:end] @ keys[:, :seen]
        if sure < seen:
            scores[:, sure:][np.arange(sure, seen) > np.arange(begin, end)[:, None] + ahead] = -np.inf
        if not greatest:
            np.exp(np.minimum(scores, 0, out=scores), out=scores)
        first, last = np.searchsorted(row_pieces, begin, "right") - 1, np.searchsorted(row_pieces, end)
        cuts = np.clip(row_pieces[first : last + 1], begin, end) - begin
        by_row = np.full((last - first, len(k)), empty, np.float32)
        for piece, (a, b) in enumerate(zip(cuts[:-1], cuts[1:], strict=True)):
            combine.reduce(scores[a:b], axis=0, out=by_row[piece, :seen])
        out[first:last] = combine(out[first:last], combine.reduceat(by_row, column_pieces[:-1], axis=1))
    return np.exp(np.minimum(out, 0)) if greatest else out
