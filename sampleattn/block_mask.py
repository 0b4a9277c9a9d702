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

    @cached_property
    def slash_index(self) -> Tensor:
        """int64 [query blocks, key blocks]: the slash of each tile; negative above the diagonal."""
        i = torch.arange(self.query_blocks, device=self.device)[:, None]
        return i + self.shift - torch.arange(self.key_blocks, device=self.device)

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

    def always_kept(self, config: SampleAttentionConfig) -> Tensor:
        """bool [B or 1, 1, query blocks, key blocks]: sink, local and last blocks."""
        return self.causal & (self._sink(config.sink_blocks) | self._local(config.local_blocks) | self._last(config.last_blocks))

    def _sink(self, count: int) -> Tensor:
        j = torch.arange(self.key_blocks, device=self.device)[None, None, None]
        return j < (count if self.key_range is None else (self.key_range[:, 0] // self.block + count)[:, None, None, None])

    def _local(self, count: int) -> Tensor:
        return (self.slash_index < self.local_slashes(count))[None, None]

    def local_slashes(self, count: int) -> int:
        """How many of the first slashes are local: a diagonal that crosses two tiles counts as one."""
        return count + (1 if self.offset % self.block else 0)

    def _last(self, count: int) -> Tensor:
        i = torch.arange(self.query_blocks, device=self.device)
        if self.key_range is None:
            return (i >= self.query_blocks - count)[None, None, :, None]
        last = (self.key_range[:, 1] - 1 - self.offset).clamp_min(0) // self.block
        return (i > last[:, None] - count)[:, None, :, None]

    def segment_of_block(self, segments: int) -> Tensor:
        """int64 [query blocks]: which of `segments` equal parts each query block is in."""
        return torch.arange(self.query_blocks, device=self.device) * segments // self.query_blocks

    def tiles(self, columns: Tensor, slashes: Tensor) -> Tensor:
        """The union of columns [B, H, S, key blocks] and slashes [B, H, S, slashes]: bool [B, H, query blocks, key blocks]."""
        segment = self.segment_of_block(columns.shape[2])
        index = self.slash_index.clamp_min(0).expand(*slashes.shape[:2], -1, -1)
        return (columns[:, :, segment] | slashes[:, :, segment].gather(-1, index)) & self.causal

    def tiles_added(self, mask: Tensor, segments: int) -> tuple[Tensor, Tensor]:
        """How many tiles each column [B, H, S, key blocks] and slash [B, H, S, slashes] would add to `mask`."""
        missing = (self.causal & ~mask).to(torch.float32)
        skewed = missing.gather(-1, self._key_block_of_slash.clamp(0, self.key_blocks - 1).expand(*mask.shape[:2], -1, -1))
        skewed = skewed * ((self._key_block_of_slash >= 0) & (self._key_block_of_slash < self.key_blocks))
        part = torch.nn.functional.one_hot(self.segment_of_block(segments), segments).T.to(torch.float32)
        return part @ missing, part @ skewed

    @cached_property
    def _key_block_of_slash(self) -> Tensor:
        """int64 [query blocks, slashes]: the key block where each slash meets each query block; out of range where it doesn't."""
        i = torch.arange(self.query_blocks, device=self.device)[:, None]
        return i + self.shift - torch.arange(self.slashes, device=self.device)

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
