"""The torch twins of the Triton kernels: same names, same signatures, and the path that runs on a CPU.

Arithmetic is float32 (float64 for float64 inputs). Nothing of size Nq x Nk is ever allocated: rows are taken in chunks.
"""

from __future__ import annotations

from collections.abc import Iterator

import torch
import torch.nn.functional as F
from torch import Tensor

from sampleattn.inputs import check_block_mask, check_inputs

CHUNK_BYTES = 1 << 23  # larger ones leave the cache of a CPU and are twice as slow (notes/study.md)


def sampled_tile_masses(
    q: Tensor, k: Tensor, rows: Tensor, scale: float | None = None, key_range: Tensor | None = None, block_size: int = 128
) -> tuple[Tensor, Tensor]:
    """Exact softmax mass of each key tile, for the sampled rows only (section 3.2 of arXiv 2406.15486).

    q [B, Hq, Nq, D]; k [B, Hkv, Nk, D]; rows int64 [B or 1, R], -1 for none; key_range int32 [B, 2] or None.
    Returns masses fp32 [B, Hq, R, key blocks], each real row adding up to 1, and the rows' logsumexp fp32 [B, Hq, R].
    """
    batch, heads, nq, _ = q.shape
    nk = k.shape[2]
    rows = rows.expand(batch, -1)
    q, k = _compute(q), _compute(k)
    masses = q.new_zeros(batch, heads, rows.shape[1], -(-nk // block_size))
    lse = q.new_full((batch, heads, rows.shape[1]), -torch.inf)
    for part in _chunks(rows.shape[1], batch * heads * nk * 4):
        chunk = rows[:, part]
        picked = q.gather(2, chunk.clamp_min(0)[:, None, :, None].expand(-1, heads, -1, q.shape[-1]))
        seen = nk if q.is_cuda else min(int(chunk.max()) + nk - nq + 1, nk)
        if seen <= nk - nq:
            continue
        scores = logits(picked, k[:, :, :seen], scale)
        position = torch.where(chunk < 0, -1, chunk + nk - nq)
        scores.masked_fill_(~_visible(position, torch.arange(seen, device=q.device), key_range), -torch.inf)
        weights, total, lse[:, :, part] = _exponentials(scores)
        tiles = F.pad(weights, (0, -seen % block_size)).unflatten(-1, (-1, block_size)).sum(-1)
        masses[:, :, part, : tiles.shape[-1]] = tiles / total
    return masses, lse


def block_sparse_attention(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    block_mask: Tensor,
    scale: float | None = None,
    key_range: Tensor | None = None,
    block_size: int = 128,
) -> tuple[Tensor, Tensor]:
    """Attention over the kept tiles only.

    q [B, Hq, Nq, D]; k [B, Hkv, Nk, D]; v [B, Hkv, Nk, Dv]; block_mask bool [B, Hq, query blocks, key blocks].
    Returns out [B, Hq, Nq, Dv] in q's dtype and the logsumexp over the kept keys, fp32 [B, Hq, Nq]. A row without a kept key
    gives 0 and -inf. Query blocks of all heads are worked through together, those with about as many tiles side by side.
    """
    check_inputs(q, k, v, scale=scale)
    check_block_mask(block_mask, q, k, block_size)
    batch, heads, nq, _ = q.shape
    nk, group, key_blocks = k.shape[2], heads // k.shape[1], block_mask.shape[-1]
    queries, keys, values = (_blocks(_compute(x), block_size) for x in (q, k, v))
    queries = queries * (q.shape[-1] ** -0.5 if scale is None else scale)
    out = queries.new_zeros(*queries.shape[:-1], v.shape[-1])
    lse = queries.new_full(queries.shape[:-1], -torch.inf)
    within = torch.arange(block_size, device=q.device)
    counts = block_mask.sum(-1)
    kept = block_mask.to(torch.uint8).argsort(dim=-1, descending=True, stable=True)  # the kept key blocks first, ascending
    order = counts.flatten().argsort(descending=True, stable=True)[: int((counts > 0).sum())]
    while len(order):
        most = int(counts.view(-1)[order[0]])
        chunk, order = order.tensor_split([max(CHUNK_BYTES // (4 * most * block_size**2), 1)])
        b, h, i = torch.unravel_index(chunk, counts.shape)
        filled_up = torch.arange(most, device=q.device) >= counts[b, h, i][:, None]
        tiles = kept[b, h, i, :most].masked_fill(filled_up, key_blocks)  # a tile after the last, which no row sees
        row = i[:, None] * block_size + within + nk - nq
        whole = 0 if key_range is not None else int((tiles < (row[:, :1] + 1) // block_size).sum(-1).min())
        column = (tiles[:, whole:, None] * block_size + within).flatten(1)
        visible = _visible(row, column[:, None], key_range if key_range is None else key_range[b])[:, 0]
        place = b[:, None], h[:, None] // group, tiles.clamp_max(key_blocks - 1)
        scores = queries[b, h, i] @ keys[place].flatten(1, 2).mT
        scores[..., whole * block_size :].masked_fill_(~visible, -torch.inf)
        weights, total, lse[b, h, i] = _exponentials(scores)
        out[b, h, i] = weights @ values[place].flatten(1, 2) / total
    return out.flatten(2, 3)[:, :, :nq].to(q.dtype), lse.flatten(2, 3)[:, :, :nq]


def causal_attention(q: Tensor, k: Tensor, v: Tensor, scale: float | None = None) -> Tensor:
    """Attention of each query over all keys up to its own: out [B, Hq, Nq, Dv] in q's dtype."""
    every_tile = torch.ones(1, 1, -(-q.shape[2] // 128), -(-k.shape[2] // 128), dtype=torch.bool, device=q.device)
    return block_sparse_attention(q, k, v, every_tile.expand(*q.shape[:2], -1, -1), scale)[0]


def row_logsumexp(q: Tensor, k: Tensor, scale: float | None = None, key_range: Tensor | None = None) -> Tensor:
    """The logsumexp of each row's visible logits, dense: fp32 [B, Hq, Nq]; -inf for a row that sees no key."""
    batch, heads, nq, _ = q.shape
    nk = k.shape[2]
    q, k = _compute(q), _compute(k)
    lse = q.new_empty(batch, heads, nq)
    for part in _chunks(nq, batch * heads * nk * 4):
        seen = part.stop + nk - nq
        scores = logits(q[:, :, part], k[:, :, :seen], scale)
        position = torch.arange(part.start, part.stop, device=q.device) + nk - nq
        scores.masked_fill_(~_visible(position[None], torch.arange(seen, device=q.device), key_range), -torch.inf)
        lse[:, :, part] = torch.logsumexp(scores, -1)
    return lse


def _blocks(x: Tensor, block_size: int) -> Tensor:
    """x [B, H, N, D] as blocks [B, H, blocks, block_size, D], the last one filled up with zeros."""
    return F.pad(x, (0, 0, 0, -x.shape[2] % block_size)).unflatten(2, (-1, block_size))


def _compute(x: Tensor) -> Tensor:
    return x if x.dtype == torch.float64 else x.float()


def logits(q: Tensor, k: Tensor, scale: float | None) -> Tensor:
    """scale * q.k [B, Hq, rows, keys]: the heads of a group are stacked as rows, so keys are not repeated."""
    group = q.shape[1] // k.shape[1]
    stacked = (q * (q.shape[-1] ** -0.5 if scale is None else scale)).unflatten(1, (-1, group)).flatten(2, 3)
    return (stacked @ k.transpose(-1, -2)).unflatten(2, (group, -1)).flatten(1, 2)


def _visible(position: Tensor, keys: Tensor, key_range: Tensor | None) -> Tensor:
    """bool [B or 1, 1, rows, keys]: keys [keys] or [B, 1, keys] at or before the rows' position [B or 1, rows], and both real."""
    visible = keys <= position[..., None]
    if key_range is not None:
        start, end = key_range[:, :1, None], key_range[:, 1:, None]
        visible = visible & (keys >= start) & (keys < end) & (position[..., None] >= start) & (position[..., None] < end)
    return visible[:, None]


def _exponentials(scores: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """In place: exp(scores - their maximum), its sum (1 for a row without a key) [..., 1], and the logsumexp [...]."""
    if scores.shape[-1] == 0:
        return scores, scores.new_ones(*scores.shape[:-1], 1), scores.new_full(scores.shape[:-1], -torch.inf)
    top = scores.amax(-1, keepdim=True)
    top = top.masked_fill(top == -torch.inf, 0)
    weights = scores.sub_(top).exp_()
    total = weights.sum(-1, keepdim=True)
    return weights, total.masked_fill(total == 0, 1), (top + total.log())[..., 0]


def _chunks(rows: int, bytes_per_row: int) -> Iterator[slice]:
    step = max(CHUNK_BYTES // max(bytes_per_row, 1), 1)
    for start in range(0, rows, step):
        yield slice(start, min(start + step, rows))
