"""The joint choice of columns and slashes (ours): few tiles, so that nearly every sampled row keeps the target."""

from __future__ import annotations

import torch
from torch import Tensor

from sampleattn.block_mask import Grid
from sampleattn.config import SampleAttentionConfig
from sampleattn.pieces import Samples, best_first, single, worth_per_tile

ROUNDS = 20
LEAST_SHARE, MOST_SHARE = 0.4, 0.8  # of what is missing, that a round buys
HALVED_ROUNDS = 2  # of a budget
CRUMB_BITS = 10  # a budget of which less than 1 in 2**10 is left is used up


def joint(
    samples: Samples, columns: Tensor, slashes: Tensor, grid: Grid, config: SampleAttentionConfig, cra: float | Tensor
) -> tuple[Tensor, Tensor]:
    """More columns [B, H, S, key blocks] and slashes [B, H, S, slashes], until `rows_at_target` of the sampled rows have enough,
    or until the budget of tiles is used, if the config has a `density`. cra takes the place of the config's; for a target of its
    own for each of the batch, [B, 1, 1, 1], the samples may have batch 1.

    Greedy in rounds: a piece's price is the number of tiles that it would add, its worth the mass that it would bring to rows
    that are short. Each round buys the pieces of most worth per tile, as many as bring a part of what is missing: the part of the
    short rows that must still get enough, at least 0.4 and at most 0.8. Of a budget the first two rounds use half of what is
    left, the others all of it, until less than a thousandth of the budget is left. A head that has enough buys no more. The
    choice fits the sampled rows better than the others, so that more than the target is asked of them: see `demand`. There is no
    host synchronisation on a GPU.
    """
    slash_of_tile = grid.slash_of_rows(samples.block)
    counts = samples.real.sum(-1, keepdim=True)
    target = (demand(counts, config, cra) * samples.one + 0.5).int().clamp_max(samples.one)
    enough = counts.float() * config.rows_at_target
    budget = None if config.density is None else _budget(grid, config, columns.shape[2])
    for round in range(ROUNDS):
        missing = samples.masses * ~(columns[..., None, :] | at_tiles(slashes, slash_of_tile))
        if budget is None:
            need = (missing.sum(-1, dtype=torch.int32) - samples.one + target).clamp_min_(0)
            short = (need > 0).sum(-1, keepdim=True)
            more = enough - (counts - short)
            if not more.is_cuda and not (more > 0).any():
                break
            price = torch.cat(tiles_added(columns, slashes, grid, config), -1)
            worth = samples.worth(torch.minimum(missing, need[..., None]), grid)
            share = (more / short.clamp_min(1)).clamp(LEAST_SHARE, MOST_SHARE)
            limit = torch.where(more > 0, (need.sum(-1, keepdim=True) * share).ceil().int(), 0)
            bought = best_first(worth_per_tile(worth, price), worth, limit)
        else:
            price = torch.cat(tiles_added(columns, slashes, grid, config), -1)
            left = budget - _tiles(columns, slashes, price[..., grid.key_blocks :], grid, config)
            order = worth_per_tile(samples.worth(missing, grid), price)
            limit = (left + 1) // 2 if round < HALVED_ROUNDS else left
            limit = torch.where(left > budget >> CRUMB_BITS, limit, 0)
            bought = best_first(torch.where(price <= left, order, 0), price, limit, left)
        if not bought.is_cuda and not bought.any():
            break
        columns, slashes = columns | bought[..., : grid.key_blocks], slashes | bought[..., grid.key_blocks :]
    return columns, slashes


def demand(rows: Tensor, config: SampleAttentionConfig, cra: float | Tensor) -> Tensor:
    """The recall asked of sampled rows: cra, and a margin that shrinks with the square root of how many rows there are."""
    root = rows.clamp_min(1).float().sqrt()
    margin = (torch.full_like(root, config.sampling_margin) / root).clamp_max(1)
    return single(cra) + single(1 - cra) * margin


def tiles_added(columns: Tensor, slashes: Tensor, grid: Grid, config: SampleAttentionConfig) -> tuple[Tensor, Tensor]:
    """How many tiles each column [B, H, S, key blocks] and each slash [B, H, S, slashes] would add to those of the mask, or has
    alone if it is kept. The last query blocks are computed in full and count for nothing."""
    first, last = _open_query_blocks(grid, config, columns.shape[2])
    s = torch.arange(grid.slashes, device=grid.device)
    lowest, highest = grid.real_key_blocks
    column_tiles = _count_clear(slashes, *_slashes_of_columns(first, last, grid))
    slash_tiles = _count_clear(
        columns, torch.maximum(first + grid.shift - s, lowest), torch.minimum(last + grid.shift - s, highest)
    )
    return column_tiles, slash_tiles


def density(columns: Tensor, slashes: Tensor, grid: Grid, config: SampleAttentionConfig) -> Tensor:
    """fp32 [B, H]: `Grid.density` of the tiles that columns [B, H, S, key blocks], slashes [B, H, S, slashes] and the last rows
    keep, counted without a mask; Nq = Nk, no padding."""
    causal, free = _causal_and_free(grid, config, columns.shape[2])
    _, added = tiles_added(columns, slashes, grid, config)
    tiles = causal - free + _tiles(columns, slashes, added, grid, config)
    return tiles.sum((-2, -1)).float() / causal.sum((-2, -1)).float()


def at_tiles(slashes: Tensor, slash_of_tile: Tensor) -> Tensor:
    """slashes [B, H, S, slashes] of tiles, whose slash is int64 [B or 1, 1, S, m, key blocks] (negative above the diagonal): bool
    of that shape, for B and H."""
    flat = slash_of_tile.clamp_min(0).flatten(-2).expand(*slashes.shape[:3], -1)
    return slashes.gather(-1, flat).unflatten(-1, slash_of_tile.shape[-2:])


def _budget(grid: Grid, config: SampleAttentionConfig, segments: int) -> Tensor:
    """The tiles that columns and slashes may have, int64 [B or 1, 1, S, 1]: `density` of the causal ones, less the last rows'."""
    causal, free = _causal_and_free(grid, config, segments)
    return (causal.float() * config.density).long() - (causal - free)


def _causal_and_free(grid: Grid, config: SampleAttentionConfig, segments: int) -> tuple[Tensor, Tensor]:
    """The causal tiles of each segment, and those of them outside the last rows: int64 [B or 1, 1, S, 1] each."""
    blocks = grid.query_blocks_of_segments(segments), _open_query_blocks(grid, config, segments)
    return tuple(_column_lengths(*both, grid).sum(-1, keepdim=True) for both in blocks)


def _tiles(columns: Tensor, slashes: Tensor, added: Tensor, grid: Grid, config: SampleAttentionConfig) -> Tensor:
    """How many tiles columns and slashes have together, [B, H, S, 1]; added: the slashes' of `tiles_added`."""
    lengths = _column_lengths(*_open_query_blocks(grid, config, columns.shape[2]), grid)
    return (columns * lengths).sum(-1, keepdim=True) + (slashes * added).sum(-1, keepdim=True)


def _open_query_blocks(grid: Grid, config: SampleAttentionConfig, segments: int) -> tuple[Tensor, Tensor]:
    """The first and the last query block of each segment, without padding and the last blocks: int64 [B or 1, 1, S, 1] each."""
    first, last = grid.query_blocks_of_segments(segments)
    return first, torch.minimum(last, grid.last_query_block - config.last_blocks)


def _slashes_of_columns(first: Tensor, last: Tensor, grid: Grid) -> tuple[Tensor, Tensor]:
    """The slashes of the tiles of each column in query blocks first..last, both included; an empty range outside real keys."""
    j = torch.arange(grid.key_blocks, device=grid.device)
    lowest, highest = grid.real_key_blocks
    real = (j >= lowest) & (j <= highest)
    return (first + grid.shift - j).clamp_min(0), torch.where(real, last + grid.shift - j, -1)


def _column_lengths(first: Tensor, last: Tensor, grid: Grid) -> Tensor:
    """How many causal tiles each column has in query blocks first..last: int64 [B or 1, 1, S, key blocks]."""
    low, high = _slashes_of_columns(first, last, grid)
    return (high + 1 - low).clamp_min(0)


def _count_clear(kept: Tensor, first: Tensor, last: Tensor) -> Tensor:
    """How many of kept[..., first..last] (both included, cut to what exists) are False; 0 where the range is empty."""
    clear = torch.nn.functional.pad((~kept).cumsum(-1), (1, 0))
    low = first.clamp(0, kept.shape[-1]).expand(*kept.shape[:3], -1)
    high = (last + 1).clamp(0, kept.shape[-1]).expand(*kept.shape[:3], -1)
    return (clear.gather(-1, high) - clear.gather(-1, low)).clamp_min(0)
