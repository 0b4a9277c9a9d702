"""Which query rows are sampled, in one launch."""

import torch
import triton
import triton.language as tl

from .launch import cdiv, launch
from .primitives import real_keys


def rows_of_segments(grid, segments, count, sampling):
    """The twin of `sampleattn.sampling.rows_of_segments`: int64 [B or 1, segments * count], `count` rows of each segment.

    grid: read for its sizes and key range only; sampling: "spread" or "tail"."""
    batch = 1 if grid.key_range is None else grid.key_range.shape[0]
    rows = torch.empty(batch, segments * count, dtype=torch.int64, device=grid.device)
    launch(
        _rows, (cdiv(segments * count, 256), batch),
        (rows, grid.key_range), (segments, count, grid.nq, grid.nk, grid.query_blocks),
        HAS_RANGE=grid.key_range is not None, BLOCK=grid.block, TAIL=sampling == "tail",
    )  # fmt: skip
    return rows


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
