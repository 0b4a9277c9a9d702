"""Stage 1, query-guided chunked sampling: which query rows are looked at (arXiv 2406.15486, section 3.2)."""

from __future__ import annotations

from types import SimpleNamespace

import torch
from torch import Tensor

from sampleattn.block_mask import Grid
from sampleattn.config import SampleAttentionConfig


def sampled_rows(grid: Grid, config: SampleAttentionConfig, ops: SimpleNamespace | None = None) -> Tensor:
    """int64 [B or 1, S * m]: m sampled query rows of each of the S segments in turn, ascending; -1 where a segment has none left.

    "tail" takes the last rows of each segment's last query block, at most a block of them; "spread" takes rows at equal
    distances. Rows that are padding are -1. ops: the twins to use (`backends.twins`); torch if None.
    """
    segments = config.segment_count(grid.nq)
    longest = min(-(-grid.query_blocks // segments) * grid.block, grid.nq)
    count = min(max(-(-config.rows_wanted(grid.nq) // segments), 1), longest)
    if config.sampling == "tail":
        count = min(count, grid.block)
    chosen = rows_of_segments if ops is None else ops.rows_of_segments
    return chosen(grid, segments, count, config.sampling)


def rows_of_segments(grid: Grid, segments: int, count: int, sampling: str) -> Tensor:
    """`sampled_rows` with `count` rows of each segment; the twin of `kernels/rows_of_segments.py`."""
    first_block = torch.arange(segments + 1, device=grid.device) * grid.query_blocks
    edges = (-(-first_block // segments) * grid.block).clamp_max(grid.nq)
    begin, end = edges[:-1, None], edges[1:, None]
    step = torch.arange(count, device=grid.device)
    if sampling == "tail":
        rows = end - count + step
        block_begin = (end - 1) // grid.block * grid.block
        rows = torch.where(rows >= torch.maximum(block_begin, begin), rows, -1)
    else:
        length = end - begin
        taken = length.clamp_max(count)
        rows = torch.where(step < taken, begin + ((2 * step + 1) * length) // (2 * taken), -1)
    rows = rows.reshape(1, -1)
    real = grid.real_rows.gather(-1, rows.clamp_min(0).expand(grid.real_rows.shape[0], -1))
    return torch.where(real & (rows >= 0), rows, -1)
