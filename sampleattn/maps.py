"""Windows of a head's attention map: exact weights, pooled to the cells that a picture has room for."""

from __future__ import annotations

from math import isqrt

import torch
from torch import Tensor

from sampleattn import backends
from sampleattn.inputs import check_block_mask, check_inputs
from sampleattn.reference import CHUNK_BYTES, logits

REDUCTIONS = ("max", "mean", "sum")


def attention_map(
    q: Tensor,
    k: Tensor,
    rows: tuple[int, int] | None = None,
    cols: tuple[int, int] | None = None,
    shape: tuple[int, int] = (512, 512),
    reduce: str = "max",
    scale: float | None = None,
    lse: Tensor | None = None,
    block_mask: Tensor | None = None,
    block_size: int = 128,
    backend: str = "auto",
) -> Tensor | tuple[Tensor, Tensor]:
    """Exact attention weights of query rows r0..r1 and keys c0..c1, pooled to `shape`: fp32 [B, Hq, h, w].

    q [B, Hq, Nq, D]; k [B, Hkv, Nk, D]; causal, queries right-aligned. Cell (y, x) covers rows floor(y*n/h)..floor((y+1)*n/h) of
    the window's n, and columns likewise; weights above the diagonal are 0 and count in the mean. Every row is normalised over
    all its keys, also those outside the window: by `lse`, the rows' natural logsumexp, fp32 [B, Hq, Nq] or [B, Hq, r1 - r0]
    (computed if None, at the cost of all keys before the window).
    With block_mask, bool [B, Hq, query blocks, key blocks], returns (weights, missed): missed pools the weights outside the kept
    tiles. For mean and sum the kept plane is weights - missed.
    Raises ValueError if the window is empty, out of range, or smaller than `shape`; TypeError for a wrong dtype.
    """
    check_inputs(q, k, scale=scale)
    nq, nk = q.shape[2], k.shape[2]
    (r0, r1), (c0, c1) = rows, cols = rows or (0, nq), cols or (0, nk)
    height, width = shape
    if reduce not in REDUCTIONS:
        raise ValueError(f"reduce must be one of {', '.join(REDUCTIONS)}, not {reduce!r}")
    if not (0 <= r0 < r1 <= nq and 0 <= c0 < c1 <= nk):
        raise ValueError(f"the window rows {r0}..{r1}, columns {c0}..{c1} must be non-empty and inside {nq} rows x {nk} columns")
    if not (1 <= height <= r1 - r0 and 1 <= width <= c1 - c0):
        raise ValueError(f"shape {height} x {width} must be at least 1 x 1 and at most the window's {r1 - r0} x {c1 - c0}")
    if block_mask is not None:
        check_block_mask(block_mask, q, k, block_size)
    ops = backends.twins(backends.resolve(backend, q.device, q.dtype, block_size, q.shape[3]))
    if lse is None:
        lse = ops.row_logsumexp(q[:, :, r0:r1], k[:, :, : r1 + nk - nq], scale)
    elif lse.shape not in {(*q.shape[:2], nq), (*q.shape[:2], r1 - r0)}:
        raise ValueError(f"lse must be [batch, heads, {nq} or {r1 - r0} rows], not {tuple(lse.shape)}")
    elif lse.shape[2] == nq:
        lse = lse[:, :, r0:r1]
    planes = ops.map_window(q, k, lse, rows, cols, shape, "max" if reduce == "max" else "sum", scale, block_mask, block_size)
    if reduce == "mean":
        planes /= _edges(r1 - r0, height, q.device).diff()[:, None] * _edges(c1 - c0, width, q.device).diff()
    return planes[0] if block_mask is None else (planes[0], planes[1])


def map_window(
    q: Tensor,
    k: Tensor,
    lse: Tensor,
    rows: tuple[int, int],
    cols: tuple[int, int],
    shape: tuple[int, int],
    reduce: str,
    scale: float | None = None,
    block_mask: Tensor | None = None,
    block_size: int = 128,
) -> Tensor:
    """The torch twin of the kernel: weights of rows r0..r1 and keys c0..c1 of q and k, pooled by "max" or "sum".

    lse [B, Hq, r1 - r0]. Returns planes fp32 [1 or 2, B, Hq, h, w]: the weights and, given a block_mask, those outside its tiles.
    Works on square blocks of at most CHUNK_BYTES and skips those above the diagonal. A block holds its keys as [nth key of the
    cell, cell], so that pooling goes over a leading dimension.
    """
    (r0, r1), (c0, c1), (height, width) = rows, cols, shape
    offset = k.shape[2] - q.shape[2]
    dtype = torch.promote_types(q.dtype, torch.float32)
    operation, empty = ("amax", -torch.inf) if reduce == "max" else ("sum", 0.0)
    planes = q.new_full((1 if block_mask is None else 2, *q.shape[:2], height, width), empty, dtype=dtype)
    edges = c0 + _edges(c1 - c0, width, q.device)
    widest = -(-(c1 - c0) // width)
    nth = torch.arange(widest, device=q.device)[:, None]
    side = isqrt(CHUNK_BYTES // (4 * q.shape[0] * q.shape[1]))
    across = max(side // widest, 1)
    down = max(side**2 // (across * widest), 1)
    for x in range(0, width, across):
        begin, end = edges[:-1][x : x + across], edges[1:][x : x + across]
        keys = torch.minimum(begin + nth, end - 1)
        outside = begin + nth >= end
        part = k[:, :, keys.flatten()].to(dtype)
        first_key, last_key = c0 + x * (c1 - c0) // width, c0 + min(x + across, width) * (c1 - c0) // width - 1
        for first in range(max(r0, first_key - offset), r1, down):
            last = min(first + down, r1)
            row = torch.arange(first, last, device=q.device)
            values = logits(q[:, :, first:last].to(dtype), part, scale).unflatten(-1, keys.shape)
            values -= lse[:, :, first - r0 : last - r0, None, None]
            if last_key > first + offset or (c1 - c0) % width:
                values.masked_fill_((keys > (row + offset)[:, None, None]) | outside, -torch.inf)
            if reduce == "sum":
                values.exp_()
            cell = (((row - r0 + 1) * height - 1) // (r1 - r0))[:, None]
            for plane, masked in zip(planes, (None, block_mask), strict=False):
                if masked is not None:
                    values.masked_fill_(masked[:, :, row // block_size][..., keys // block_size], empty)
                pooled = getattr(values, operation)(-2)
                plane[..., x : x + across].scatter_reduce_(2, cell.expand_as(pooled), pooled, operation)
    return (planes.exp_() if reduce == "max" else planes).float()


def _edges(length: int, cells: int, device: torch.device) -> Tensor:
    """Where `cells` equal parts of `length` tokens begin, and where the last one ends: int64 [cells + 1]."""
    return torch.arange(cells + 1, device=device) * length // cells
