"""Exact numbers of all rows of a layer, without an N x N array: here a query block at a time, by torch; see `exact_kernels`."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from sampleattn import trace_format
from sampleattn.config import SampleAttentionConfig
from sampleattn.metrics import oracle_tiles
from sampleattn.reference import logits
from sampleattn.trace_levels import spread

CHUNK_BYTES = 256 << 20
ORACLE_BLOCKS = 128


@dataclass(frozen=True)
class Exact:
    """Of a layer's H heads and N rows, in `blocks` blocks, fp32 on the layer's device.

    lse, recall [H, N]; tiles [H, blocks, blocks]: each tile's mass, summed over its rows; overview [H, h, h]: the largest weight
    of each cell; oracle_density [H]: of `oracle_blocks`.
    """

    lse: Tensor
    recall: Tensor
    tiles: Tensor
    overview: Tensor
    oracle_density: Tensor
    block: int

    def mean_tiles(self) -> np.ndarray:
        """The mean mass of each tile over its rows: float32 [H, blocks, blocks]."""
        rows = rows_of_blocks(self.lse.shape[-1], self.block)[:, None]
        return (self.tiles / torch.from_numpy(rows).to(self.tiles.device)).cpu().numpy()


def rows_of_blocks(tokens: int, block: int) -> np.ndarray:
    """How many rows each query block has: float32 [blocks]."""
    return np.minimum(tokens - np.arange(0, tokens, block), block).astype(np.float32)


def oracle_blocks(tokens: int, block: int) -> np.ndarray:
    """The query blocks that the oracle looks at: all, and of prompts beyond 16,384 tokens 128 evenly spread ones."""
    return spread(-(-tokens // block), ORACLE_BLOCKS if tokens > trace_format.FULL_TOKENS else tokens)


def exact_by_torch(
    query: Tensor,
    key: Tensor,
    block_mask: Tensor,
    config: SampleAttentionConfig,
    scale: float,
    tick: Callable[[float], None] = lambda share: None,
) -> Exact:
    """query [1, H, N, D]; key [1, Hkv, N, D]; block_mask bool [1, H, blocks, blocks]. tick is called with the share done."""
    one_pass = _OnePass(query[0], key[0], block_mask[0], config, scale)
    one_pass.run(tick)
    return one_pass.exact()


class _OnePass:
    """Exact weights, a query block and some heads at a time, reduced at once to what is kept of them."""

    def __init__(self, query, key, mask, config, scale):
        self.query, self.key, self.mask, self.scale, self.target = query, key, mask, scale, config.cra
        self.heads, self.tokens = query.shape[:2]
        self.block, self.blocks = config.block_size, mask.shape[-1]
        self.cells = min(trace_format.OVERVIEW, self.tokens)
        self.edges = [cell * self.tokens // self.cells for cell in range(self.cells + 1)]
        self.looked_at = set(oracle_blocks(self.tokens, self.block).tolist())
        self.lse, self.recall = query.new_empty(2, self.heads, self.tokens, dtype=torch.float32)
        self.tiles = query.new_zeros(self.heads, self.blocks, self.blocks, dtype=torch.float32)
        self.oracle = query.new_zeros(self.heads, dtype=torch.float32)
        self.overview = query.new_zeros(self.heads, self.cells, self.cells, dtype=torch.float32)

    def exact(self):
        causal = sum(self.looked_at) + len(self.looked_at)
        return Exact(self.lse, self.recall, self.tiles, self.overview, self.oracle / causal, self.block)

    def run(self, tick):
        group = self.heads // self.key.shape[0]
        for i in range(self.blocks):
            begin, end = i * self.block, min((i + 1) * self.block, self.tokens)
            together = max(CHUNK_BYTES // (4 * (end - begin) * end * group), 1) * group
            for first in range(0, self.heads, together):
                self._block(i, begin, end, slice(first, min(first + together, self.heads)), group)
            tick((end / self.tokens) ** 2)

    def _block(self, i, begin, end, heads, group):
        keys = self.key[heads.start // group : heads.stop // group, :end].float()
        weights = logits(self.query[None, heads, begin:end].float(), keys[None], self.scale)[0]
        above = torch.ones(end - begin, end - begin, dtype=torch.bool, device=weights.device).triu_(1)
        weights[..., begin:end].masked_fill_(above, -torch.inf)
        top = weights.amax(-1, keepdim=True)
        total = weights.sub_(top).exp_().sum(-1, keepdim=True)
        weights.mul_(1 / total)
        self.lse[heads, begin:end] = (top + total.log())[..., 0]
        masses = weights.new_zeros(*weights.shape[:2], self.blocks)
        masses[..., : end // self.block] = weights[..., : end // self.block * self.block].unflatten(-1, (-1, self.block)).sum(-1)
        if end % self.block:
            masses[..., end // self.block] = weights[..., end // self.block * self.block :].sum(-1)
        self.recall[heads, begin:end] = (masses * self.mask[heads, i, None]).sum(-1).clamp_max_(1)
        self.tiles[heads, i] = masses.sum(1)
        if i in self.looked_at:
            self.oracle[heads] += oracle_tiles(masses[..., : i + 1], self.target).sum(-1)
        self._draw(weights, begin, end, heads)

    def _draw(self, weights, begin, end, heads):
        """Into the overview: the largest weight of each cell. Rows are pooled first, which leaves little to pool along keys."""
        first, last = (begin + 1) * self.cells - 1, end * self.cells - 1
        first, last = first // self.tokens, last // self.tokens
        cuts = [max(self.edges[cell], begin) - begin for cell in range(first, last + 1)] + [end - begin]
        rows = torch.stack([weights[:, a:b].amax(1) for a, b in zip(cuts, cuts[1:], strict=False)], 1)
        picture = self.overview[heads, first : last + 1]
        filled = _pool_max(rows, self.edges, last + 1)
        picture[..., : last + 1] = torch.maximum(picture[..., : last + 1], filled)


def _pool_max(rows: Tensor, edges: list[int], cells: int) -> Tensor:
    """The maximum of non-negative rows [..., keys] within the first `cells` of the edges: [..., cells]."""
    starts = torch.tensor(edges[:cells], device=rows.device)
    sizes = torch.tensor(edges[1 : cells + 1], device=rows.device) - starts
    widest = max(b - a for a, b in zip(edges, edges[1:], strict=False))
    within = torch.arange(widest, device=rows.device)
    picked = rows[..., (starts[:, None] + within).clamp_max(rows.shape[-1] - 1)]
    return picked.masked_fill_(within >= sizes[:, None], 0).amax(-1)
