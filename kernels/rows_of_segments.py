"""Which query rows are sampled, in one launch."""

import torch
import triton
import triton.language as tl

from .launch import Launch, plan
from .primitives import real_keys
from .sizes import cdiv


def rows_of_segments(grid, segments, count, sampling):
    """The twin of `sampleattn.sampling.rows_of_segments`: int64 [B or 1, segments * count], `count` rows of each segment.

    grid: read for its sizes and key range only; sampling: "spread" or "tail"."""
    batch = 1 if grid.key_range is None else grid.key_range.shape[0]
    rows = torch.empty(batch, segments * count, dtype=torch.int64, device=grid.device)
    sizes = (batch, grid.nq, grid.nk, grid.block)
    _plan(sizes, segments, count, sampling, grid.key_range is not None, grid.device)(rows, grid.key_range)
    return rows


@plan
def _plan(sizes, segments, count, sampling, has_range, device):
    """The launch; one for each device, since a kernel is loaded on each."""
    batch, queries, keys, block = sizes
    return Launch(
        _rows, (cdiv(segments * count, 256), batch), (segments, count, queries, keys, cdiv(queries, block)),
        HAS_RANGE=has_range, BLOCK=block, TAIL=sampling == "tail",
    )  # fmt: skip


@triton.jit(do_not_specialize=["segments", "count", "Nq", "Nk", "query_blocks"])
def _rows(
    rows_ptr, range_ptr, segments, count, Nq, Nk, query_blocks, HAS_RANGE: tl.constexpr, BLOCK: tl.constexpr, TAIL: tl.constexpr
):
    entry, batch = tl.program_id(0) * 256 + tl.arange(0, 256), tl.program_id(1)
    lo, hi = real_keys(range_ptr, batch, Nk, HAS_RANGE)
    segment, step = entry // count, (entry % count).to(tl.int64)
    begin = tl.minimum(tl.cdiv(segment * query_blocks, segments) * BLOCK, Nq)
    end = tl.minimum(tl.cdiv((segment + 1) * query_blocks, segments) * BLOCK, Nq)
    if TAIL:
        row = end - count + step
        valid = row >= tl.maximum(begin, (end - 1) // BLOCK * BLOCK)
    else:
        taken = tl.minimum(end - begin, count)
        row = begin + (2 * step + 1) * (end - begin) // (2 * tl.maximum(taken, 1))
        valid = step < taken
    position = row + Nk - Nq
    row = tl.where(valid & (position >= lo) & (position < hi), row, -1)
    tl.store(rows_ptr + batch * (segments * count) + entry, row, mask=entry < segments * count)
