"""Stage 2, score-based key-value filtering: from the sampled rows' tile masses to the columns and slashes that are kept."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from types import SimpleNamespace

import torch
from torch import Tensor

from sampleattn import backends
from sampleattn.block_mask import Grid
from sampleattn.config import SampleAttentionConfig
from sampleattn.joint import joint
from sampleattn.pieces import Samples, best_first, single


@dataclass(frozen=True)
class Selection:
    """What is kept, for every head of a layer. Shapes as in ARCHITECTURE.md; S is 1 unless scope="segment"."""

    block_mask: Tensor
    columns: Tensor
    slashes: Tensor
    rows: Tensor
    tile_masses: Tensor
    grid: Grid
    dense: bool = False
    reason: str = ""

    @cached_property
    def density(self) -> Tensor:
        """fp32 [B, H]: tiles computed / causal tiles."""
        return self.grid.density(self.block_mask)

    @cached_property
    def sampled_cra(self) -> Tensor:
        """fp32 [B, H]: the least recall over the sampled rows; 1 without any."""
        index = (self.rows.clamp_min(0) // self.grid.block)[:, None, :, None]
        kept = self.block_mask.gather(2, index.expand(*self.tile_masses.shape))
        recall = torch.where(kept, self.tile_masses, 0).sum(-1).clamp_max(1)
        full = torch.ones(*recall.shape[:2], 1, device=recall.device)
        return torch.cat((recall.masked_fill((self.rows < 0)[:, None], 1), full), -1).amin(-1)


def select(
    masses: Tensor, rows: Tensor, grid: Grid, config: SampleAttentionConfig, ops: SimpleNamespace | None = None
) -> Selection:
    """The selection of the config's kind from masses [B, H, R, key blocks] of rows [B or 1, R].

    ops: the twins to use (`backends.twins`); those of the config's backend if None.
    """
    batch, heads = masses.shape[:2]
    segments = config.segment_count(grid.nq) if config.scope == "segment" else 1
    if config.cra == 1 and config.density is None:
        columns = torch.ones(1, 1, 1, 1, dtype=torch.bool, device=masses.device).expand(batch, heads, segments, grid.key_blocks)
        slashes = columns[..., :1].expand(-1, -1, -1, grid.slashes)
        return Selection(grid.causal.expand(batch, heads, -1, -1), columns, slashes, rows, masses, grid)
    ops = ops or backends.twins(backends.resolve(config.backend, masses.device, block_size=grid.block))
    return Selection(*ops.selected_tiles(masses, rows, grid, config, segments), rows, masses, grid)


def everything(batch: int, heads: int, grid: Grid, reason: str) -> Selection:
    """The selection of a layer that runs dense: every causal tile, nothing sampled."""
    ones = torch.ones(batch, heads, 1, 1, dtype=torch.bool, device=grid.device)
    mask = grid.causal.expand(batch, heads, -1, -1)
    rows = torch.empty(batch, 0, dtype=torch.int64, device=grid.device)
    masses = torch.empty(batch, heads, 0, grid.key_blocks, device=grid.device)
    columns, slashes = ones.expand(-1, -1, -1, grid.key_blocks), ones.expand(-1, -1, -1, grid.slashes)
    return Selection(mask, columns, slashes, rows, masses, grid, dense=True, reason=reason)


def selected_tiles(
    masses: Tensor, rows: Tensor, grid: Grid, config: SampleAttentionConfig, segments: int
) -> tuple[Tensor, Tensor, Tensor]:
    """Stage 2: masses fp32 [B, H, R, key blocks] of rows int64 [B or 1, R], which are the same number for each of `segments`.

    Returns block_mask bool [B, H, query blocks, key blocks], columns bool [B, H, segments, key blocks] and slashes bool
    [B, H, segments, slashes]. The twin of `kernels/selected_tiles.py`, equal bit for bit.
    """
    columns, slashes = _pieces(Samples.of(masses, rows, grid, segments), masses.shape[0], grid, config, config.cra)
    return grid.tiles(columns, slashes) | grid.last_rows(config), columns, slashes


def pieces_at_targets(
    masses: Tensor, rows: Tensor, grid: Grid, config: SampleAttentionConfig, segments: int, targets: Sequence[float]
) -> tuple[Tensor, Tensor]:
    """The columns [targets, H, segments, key blocks] and slashes [targets, H, segments, slashes] that `select` keeps with each
    target in place of the config's `cra`, from masses of batch 1, all in one go."""
    cra = torch.tensor(targets, dtype=torch.float64, device=masses.device)[:, None, None, None]
    columns, slashes = _pieces(Samples.of(masses, rows, grid, segments), len(targets), grid, config, cra)
    whole = cra == 1 if config.density is None else torch.zeros_like(cra, dtype=torch.bool)
    return columns | whole, slashes | whole


def _pieces(samples, batch, grid, config, cra):
    _, heads, segments, _, _ = samples.masses.shape
    columns = grid.sink_columns(config).expand(batch, heads, segments, -1)
    slashes = grid.local_slashes(config.local_blocks).expand(batch, heads, segments, -1)
    if config.selection == "joint":
        columns, slashes = joint(samples, columns, slashes, grid, config, cra)
    else:
        mass = samples.worth(samples.masses, grid)
        columns = columns | _smallest_prefix(mass[..., : grid.key_blocks], config.alpha_columns or cra)
        if config.selection == "window":
            slashes = slashes | grid.local_slashes(grid.window_blocks(config.window_ratio))
        else:
            slashes = slashes | _smallest_prefix(mass[..., grid.key_blocks :], config.alpha_slashes or cra)
    return columns, slashes


def _smallest_prefix(mass: Tensor, share: float | Tensor) -> Tensor:
    """bool like mass int32 [..., pieces]: the pieces of most mass, as few as add up to `share` of the total."""
    total = mass.sum(-1, keepdim=True, dtype=torch.int32)
    return best_first(mass, mass, (total.float() * single(share)).ceil().int())
