"""Windows of a head's attention map: exact weights, pooled to the cells that a picture has room for."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

from sampleattn.inputs import check_inputs
from sampleattn.reference import CHUNK_BYTES, logits, row_logsumexp

REDUCTIONS = ("max", "mean", "sum")


def attention_map(
    q: Tensor,
    k: Tensor,
    rows: tuple[int, int] | None = None,
    cols: tuple[int, int] | None = None,
    shape: tuple[int, int] = (512, 512),
    reduce: str = "max",
    scale: float | None = None,
) -> Tensor:
    """Exact attention weights of query rows r0..r1 and keys c0..c1, pooled to `shape`: fp32 [B, Hq, h, w].

    q [B, Hq, Nq, D]; k [B, Hkv, Nk, D]; causal, queries right-aligned. Cell (y, x) covers rows floor(y*n/h)..floor((y+1)*n/h) of
    the window's n, and columns likewise; weights above the diagonal are 0 and count in the mean. Every row is normalised over
    all its keys, also those outside the window. Raises ValueError if the window is empty, out of range, or smaller than `shape`.
    """
    check_inputs(q, k)
    nq, nk = q.shape[2], k.shape[2]
    (r0, r1), (c0, c1) = rows or (0, nq), cols or (0, nk)
    height, width = shape
    if reduce not in REDUCTIONS:
        raise ValueError(f"reduce must be one of {', '.join(REDUCTIONS)}, not {reduce!r}")
    if not (0 <= r0 < r1 <= nq and 0 <= c0 < c1 <= nk):
        raise ValueError(f"the window rows {r0}..{r1}, columns {c0}..{c1} must be non-empty and inside {nq} rows x {nk} columns")
    if not (1 <= height <= r1 - r0 and 1 <= width <= c1 - c0):
        raise ValueError(f"shape {height} x {width} must be at least 1 x 1 and at most the window's {r1 - r0} x {c1 - c0}")
    edges = _edges(c1 - c0, width)
    out = torch.zeros(*q.shape[:2], height, width, device=q.device)
    step = max(CHUNK_BYTES // (q.shape[0] * q.shape[1] * max(c1 - c0, 1) * 4), 1)
    for first in range(r0, r1, step):
        last = min(first + step, r1)
        weights = _weights(q[:, :, first:last], k[:, :, : last + nk - nq], (c0, c1), scale)
        cell = (torch.arange(first - r0 + 1, last - r0 + 1, device=q.device) * height - 1) // (r1 - r0)
        pooled = _pool(weights, edges, torch.amax if reduce == "max" else torch.sum).float()
        out.scatter_reduce_(2, cell[:, None].expand_as(pooled), pooled, "amax" if reduce == "max" else "sum")
    if reduce == "mean":
        cells = torch.tensor(_edges(r1 - r0, height)).diff()[:, None] * torch.tensor(edges).diff()
        out /= cells.to(q.device)
    return out


def _weights(q: Tensor, k: Tensor, cols: tuple[int, int], scale: float | None) -> Tensor:
    """Softmax weights [B, Hq, rows, c1 - c0] of the last rows of k's causal triangle, in the window's columns."""
    start, end = cols
    position = torch.arange(q.shape[2], device=q.device) + k.shape[2] - q.shape[2]
    key = torch.arange(start, end, device=q.device)
    weights = q.new_zeros(*q.shape[:3], end - start, dtype=torch.promote_types(q.dtype, torch.float32))
    seen = min(end, k.shape[2])
    if seen > start:
        weights[..., : seen - start] = (logits(q, k[:, :, start:seen], scale) - row_logsumexp(q, k, scale)[..., None]).exp_()
    return weights.masked_fill_(key > position[:, None], 0)


def _edges(length: int, cells: int) -> list[int]:
    return [cell * length // cells for cell in range(cells + 1)]


def _pool(x: Tensor, edges: list[int], reduce: Callable) -> Tensor:
    """Reduces the last dimension of non-negative x within consecutive edges."""
    if x.shape[-1] % (len(edges) - 1) == 0:
        return reduce(x.unflatten(-1, (len(edges) - 1, -1)), -1)
    start = torch.tensor(edges[:-1], device=x.device)
    size = torch.tensor(edges[1:], device=x.device) - start
    step = torch.arange(int(max(edges[i + 1] - edges[i] for i in range(len(edges) - 1))), device=x.device)
    index = (start[:, None] + step).clamp_max(x.shape[-1] - 1)
    return reduce(x[..., index] * (step < size[:, None]), -1)
