"""The joint choice of columns and slashes (ours): few tiles, so that nearly every sampled row keeps the target."""

from __future__ import annotations

import torch
from torch import Tensor

from sampleattn.block_mask import Grid
from sampleattn.config import SampleAttentionConfig

ROUNDS = 20
SHARE_OF_NEED = 0.5


def joint(
    masses: Tensor, block: Tensor, real: Tensor, columns: Tensor, slashes: Tensor, grid: Grid, config: SampleAttentionConfig
) -> tuple[Tensor, Tensor]:
    """More columns [B, H, S, key blocks] and slashes [B, H, S, slashes], until `rows_at_target` of the sampled rows have enough.

    masses [B, H, S, m, key blocks] of the m sampled rows of each segment, in query blocks `block` [B or 1, 1, S, m]; `real` is
    False for rows that are none. Greedy in rounds: a piece's price is the number of tiles that it would add, its worth the mass
    that it would bring to rows that are short. Each round buys the pieces of most worth per tile, as many as add up to
    SHARE_OF_NEED of what is missing; a head that has enough buys no more. The choice fits the sampled rows better than the
    others, so that more than the target is asked of them: see `demand`. There is no host synchronisation on a GPU.
    """
    counts = real.sum(-1)
    target = demand(counts, config)[..., None]
    slash_of_tile = grid.slash_of_rows(block)
    for _ in range(ROUNDS):
        kept = columns[..., None, :] | _at(slashes, slash_of_tile)
        missing = masses.masked_fill(kept, 0)
        need = (missing.sum(-1) - 1 + target).clamp_min(0) * real
        short = ((need == 0) & real).sum(-1) < config.rows_at_target * counts
        if not short.is_cuda and not short.any():
            break
        gain = torch.minimum(missing, need[..., None])
        worth = torch.cat((gain.sum(-2), grid.by_slash(gain, block).sum(-2)), -1)
        price = torch.cat(_tiles_added(columns, slashes, grid), -1)
        order = (worth / price.clamp_min(1)).sort(dim=-1, descending=True, stable=True).indices
        ordered = worth.gather(-1, order)
        bought = (ordered.cumsum(-1) - ordered < SHARE_OF_NEED * need.sum(-1, keepdim=True)) & (ordered > 0) & short[..., None]
        bought = torch.zeros_like(bought).scatter(-1, order, bought)
        columns, slashes = columns | bought[..., : grid.key_blocks], slashes | bought[..., grid.key_blocks :]
    return columns, slashes


def demand(rows: Tensor, config: SampleAttentionConfig) -> Tensor:
    """The recall asked of sampled rows: `cra`, and a margin that shrinks with the square root of how many rows there are."""
    return config.cra + (1 - config.cra) * (config.sampling_margin / rows.clamp_min(1).sqrt()).clamp_max(1)


def _at(slashes: Tensor, index: Tensor) -> Tensor:
    """slashes [B, H, S, slashes] at index [B or 1, 1, S, m, key blocks] (negative above the diagonal): bool of index's shape."""
    flat = index.clamp_min(0).flatten(-2).expand(*slashes.shape[:3], -1)
    return slashes.gather(-1, flat).unflatten(-1, index.shape[-2:])


def _tiles_added(columns: Tensor, slashes: Tensor, grid: Grid) -> tuple[Tensor, Tensor]:
    """How many tiles each column [B, H, S, key blocks] and each slash [B, H, S, slashes] would add to those that are kept."""
    first, last = grid.query_blocks_of_segments(columns.shape[2])
    j = torch.arange(grid.key_blocks, device=grid.device)
    s = torch.arange(grid.slashes, device=grid.device)
    lowest, highest = grid.real_key_blocks
    column_tiles = _count_clear(slashes, first + grid.shift - j, last + grid.shift - j)
    slash_tiles = _count_clear(
        columns, torch.maximum(first + grid.shift - s, lowest), torch.minimum(last + grid.shift - s, highest)
    )
    return column_tiles, slash_tiles


def _count_clear(kept: Tensor, first: Tensor, last: Tensor) -> Tensor:
    """How many of kept[..., first..last] (both included, cut to what exists) are False; 0 where the range is empty."""
    clear = torch.nn.functional.pad((~kept).cumsum(-1), (1, 0))
    low = first.clamp(0, kept.shape[-1]).expand(*kept.shape[:3], -1)
    high = (last + 1).clamp(0, kept.shape[-1]).expand(*kept.shape[:3], -1)
    return (clear.gather(-1, high) - clear.gather(-1, low)).clamp_min(0)
