"""The grid of tiles (query block x key block): which are causal, which are always kept, and how pieces become a mask."""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property

import torch
from torch import Tensor

from sampleattn.config import SampleAttentionConfig


@dataclass(frozen=True)
class Grid:
    """Nq query rows, right-aligned to Nk keys, cut into blocks. Slash of tile (i, j): i + ceil((Nk - Nq) / block) - j >= 0."""

    nq: int
    nk: int
    block: int
    device: torch.device
    key_range: Tensor | None = None

    @property
    def offset(self) -> int:
        return self.nk - self.nq

    @property
    def query_blocks(self) -> int:
        return -(-self.nq // self.block)

    @property
    def key_blocks(self) -> int:
        return -(-self.nk // self.block)

    @property
    def shift(self) -> int:
        return -(-self.offset // self.block)

    @property
    def slashes(self) -> int:
        return self.query_blocks + self.shift

    @property
    def crossed(self) -> int:
        """1 where the diagonal runs through two tiles of a query block, else 0."""
        return int(self.offset % self.block != 0)

    def window_blocks(self, ratio: float) -> int:
        """A local window of `ratio` of the keys in blocks, up to and with the diagonal (arXiv v1/v2)."""
        return -(-int(ratio * self.nk) // self.block) + 1

    @cached_property
    def slash_index(self) -> Tensor:
        """int64 [query blocks, key blocks]: the slash of each tile; negative above the diagonal."""
        return self.slash_of_rows(torch.arange(self.query_blocks, device=self.device))

    @cached_property
    def causal(self) -> Tensor:
        """bool [B or 1, 1, query blocks, key blocks]: tiles with at least one visible cell."""
        first_query, last_query = self._query_positions
        first_key = torch.arange(self.key_blocks, device=self.device) * self.block
        visible = first_key <= last_query[:, None]
        if self.key_range is None:
            return visible[None, None]
        start, end = self.key_range[:, 0, None, None], self.key_range[:, 1, None, None]
        first_visible_key = torch.maximum(first_key.expand(1, 1, -1), start)
        last_real_query = torch.minimum(last_query[None, :, None], end - 1)
        real_keys = (first_key + self.block > start) & (first_key < end)
        real_queries = (last_query[:, None] >= start) & (first_query[:, None] < end)
        return (visible & real_keys & real_queries & (first_visible_key <= last_real_query))[:, None]

    @cached_property
    def real_rows(self) -> Tensor:
        """bool [B or 1, query rows]: False where the query itself is padding."""
        position = torch.arange(self.nq, device=self.device) + self.offset
        if self.key_range is None:
            return torch.ones(1, self.nq, dtype=torch.bool, device=self.device)
        return (position >= self.key_range[:, :1]) & (position < self.key_range[:, 1:])

    @property
    def _query_positions(self) -> tuple[Tensor, Tensor]:
        """Key positions of each query block's first and last row."""
        first = torch.arange(self.query_blocks, device=self.device) * self.block + self.offset
        return first, (first + self.block - 1).clamp_max(self.nk - 1)

    def sink_columns(self, config: SampleAttentionConfig) -> Tensor:
        """bool [B or 1, 1, 1, key blocks]: the first real key blocks."""
        j = torch.arange(self.key_blocks, device=self.device)
        return (j < self.real_key_blocks[0] + config.sink_blocks) & (j >= self.real_key_blocks[0])

    def local_slashes(self, blocks: int) -> Tensor:
        """bool [1, 1, 1, slashes]: the diagonal and its neighbours; a diagonal that crosses two tiles counts as one."""
        return (torch.arange(self.slashes, device=self.device) < blocks + self.crossed)[None, None, None]

    def last_rows(self, config: SampleAttentionConfig) -> Tensor:
        """bool [B or 1, 1, query blocks, key blocks]: the causal tiles of the last real query blocks."""
        i = torch.arange(self.query_blocks, device=self.device)[:, None]
        return self.causal & (i > self.last_query_block - config.last_blocks)

    @cached_property
    def real_key_blocks(self) -> tuple[Tensor, Tensor]:
        """The first and the last key block with a real key: int64 [B or 1, 1, 1, 1] each."""
        if self.key_range is None:
            ends = torch.zeros(1, 1, 1, 1, dtype=torch.int64, device=self.device)
            return ends, ends + self.key_blocks - 1
        first, last = self.key_range.long().sub(torch.arange(2, device=self.device)).unbind(-1)
        return (first // self.block)[:, None, None, None], (last // self.block)[:, None, None, None]

    @property
    def last_query_block(self) -> Tensor:
        """The last query block with a real query: int64 [B or 1, 1, 1, 1]."""
        if self.key_range is None:
            return torch.full((1, 1, 1, 1), self.query_blocks - 1, device=self.device)
        return ((self.key_range[:, 1].long() - 1 - self.offset).clamp_min(0) // self.block)[:, None, None, None]

    def query_blocks_of_segments(self, segments: int) -> tuple[Tensor, Tensor]:
        """The first and the last real query block of each segment: int64 [B or 1, 1, S, 1] each."""
        edges = -(-torch.arange(segments + 1, device=self.device) * self.query_blocks // segments)
        first, last = edges[None, None, :-1, None], edges[None, None, 1:, None] - 1
        if self.key_range is None:
            return first, last
        real = (self.key_range[:, 0].long() - self.offset).clamp_min(0) // self.block
        return torch.maximum(first, real[:, None, None, None]), torch.minimum(last, self.last_query_block)

    def slash_of_rows(self, block: Tensor) -> Tensor:
        """The slash of each tile of rows in query blocks `block` [...]: int64 [..., key blocks], negative above the diagonal."""
        return block[..., None] + self.shift - torch.arange(self.key_blocks, device=self.device)

    def by_slash(self, masses: Tensor, block: Tensor) -> Tensor:
        """masses [..., R, key blocks] of rows in query blocks `block` [..., R], indexed by slash instead: [..., R, slashes]."""
        j = block[..., None] + self.shift - torch.arange(self.slashes, device=self.device)
        index = j.clamp(0, self.key_blocks - 1).expand(*masses.shape[:-1], -1)
        return masses.gather(-1, index) * ((j >= 0) & (j < self.key_blocks))

    def segment_of_block(self, segments: int) -> Tensor:
        """int64 [query blocks]: which of `segments` equal parts each query block is in."""
        return torch.arange(self.query_blocks, device=self.device) * segments // self.query_blocks

    def tiles(self, columns: Tensor, slashes: Tensor) -> Tensor:
        """The union of columns [B, H, S, key blocks] and slashes [B, H, S, slashes]: bool [B, H, query blocks, key blocks]."""
        segment = self.segment_of_block(columns.shape[2])
        index = self.slash_index.clamp_min(0).expand(*slashes.shape[:2], -1, -1)
        return (columns[:, :, segment] | slashes[:, :, segment].gather(-1, index)) & self.causal

    def density(self, mask: Tensor) -> Tensor:
        """fp32 [B, H]: tiles of `mask` over the causal tiles."""
        causal = self.causal.sum((-2, -1), dtype=torch.float32).clamp_min(1)
        return (mask & self.causal).sum((-2, -1), dtype=torch.float32) / causal


def key_range(padding: Tensor | None) -> Tensor | None:
    """int32 [B, 2], first and one-past-last real key, of padding [B, Nk] (nonzero = real, contiguous in each row)."""
    if padding is None:
        return None
    real = padding != 0
    length = real.sum(-1)
    start = real.to(torch.int8).argmax(-1)
    return torch.stack((start, start + length), -1).to(torch.int32)
