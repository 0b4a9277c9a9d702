"""Stage 2, score-based key-value filtering: from the sampled rows' tile masses to the columns and slashes that are kept."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from sampleattn.block_mask import Grid
from sampleattn.config import SampleAttentionConfig
from sampleattn.joint import joint
from sampleattn.sampling import segment_count


@dataclass(frozen=True)
class Selection:
    """What is kept, for every head of a layer. Shapes as in ARCHITECTURE.md; S is 1 unless scope="segment"."""

    block_mask: Tensor
    columns: Tensor
    slashes: Tensor
    density: Tensor
    sampled_cra: Tensor
    rows: Tensor
    tile_masses: Tensor
    dense: bool = False
    reason: str = ""


def select(masses: Tensor, rows: Tensor, grid: Grid, config: SampleAttentionConfig) -> Selection:
    """The selection of the config's kind from masses [B, Hq, R, key blocks] of rows [B or 1, R]."""
    batch, heads = masses.shape[:2]
    segments = segment_count(grid, config) if config.scope == "segment" else 1
    if config.cra == 1.0:
        columns = torch.ones(batch, heads, segments, grid.key_blocks, dtype=torch.bool, device=masses.device)
        slashes = torch.ones(batch, heads, segments, grid.slashes, dtype=torch.bool, device=masses.device)
        mask = grid.causal.expand(batch, heads, -1, -1)
    else:
        samples = _Samples.of(masses, rows, grid, segments)
        sink, local = grid.sink_columns(config), grid.local_slashes(config)
        columns, slashes = sink.expand(batch, heads, segments, -1), local.expand(batch, heads, segments, -1)
        if config.selection == "joint":
            columns, slashes = joint(samples.masses, samples.block, samples.real, columns, slashes, grid, config)
        else:
            choose = _independent if config.selection == "independent" else _window
            chosen_columns, chosen_slashes = choose(samples, grid, config)
            columns, slashes = columns | chosen_columns, slashes | chosen_slashes
        mask = grid.tiles(columns, slashes) | grid.last_rows(config)
    recall = sampled_recall(masses, rows, mask, grid.block)
    sampled_cra = recall.masked_fill((rows < 0)[:, None], 1.0).amin(-1)
    return Selection(mask, columns, slashes, grid.density(mask), sampled_cra, rows, masses)


def everything(batch: int, heads: int, grid: Grid, reason: str) -> Selection:
    """The selection of a layer that runs dense: every causal tile, nothing sampled."""
    ones = torch.ones(batch, heads, 1, 1, dtype=torch.bool, device=grid.device)
    mask = grid.causal.expand(batch, heads, -1, -1)
    rows = torch.empty(batch, 0, dtype=torch.int64, device=grid.device)
    masses = torch.empty(batch, heads, 0, grid.key_blocks, device=grid.device)
    columns, slashes = ones.expand(-1, -1, -1, grid.key_blocks), ones.expand(-1, -1, -1, grid.slashes)
    full = torch.ones(batch, heads, device=grid.device)
    return Selection(mask, columns, slashes, full, full, rows, masses, dense=True, reason=reason)


def sampled_recall(masses: Tensor, rows: Tensor, mask: Tensor, block: int) -> Tensor:
    """The exact recall of the sampled rows, [B, Hq, R]: their mass in the kept tiles of their query block."""
    index = (rows.clamp_min(0) // block)[:, None, :, None].expand(*masses.shape[:2], -1, mask.shape[-1])
    return masses.mul(mask.gather(2, index)).sum(-1).clamp_max(1.0)


@dataclass(frozen=True)
class _Samples:
    """The sampled rows regrouped by segment: masses [B, H, S, m, key blocks], block (query block of each row) and real (not -1)
    [B or 1, 1, S, m]."""

    masses: Tensor
    block: Tensor
    real: Tensor

    @classmethod
    def of(cls, masses: Tensor, rows: Tensor, grid: Grid, segments: int) -> _Samples:
        rows = rows.unflatten(1, (segments, -1))[:, None]
        return cls(masses.unflatten(2, (segments, -1)), rows.clamp_min(0) // grid.block, rows >= 0)


def _independent(samples: _Samples, grid: Grid, config: SampleAttentionConfig) -> tuple[Tensor, Tensor]:
    """The MLSys paper: columns and slashes sorted by sampled mass, each cut where the cumulative sum reaches its alpha."""
    column_mass = samples.masses.sum(-2)
    slash_mass = grid.by_slash(samples.masses, samples.block).sum(-2)
    return (
        _smallest_prefix(column_mass, config.alpha_columns or config.cra),
        _smallest_prefix(slash_mass, config.alpha_slashes or config.cra),
    )


def _window(samples: _Samples, grid: Grid, config: SampleAttentionConfig) -> tuple[Tensor, Tensor]:
    """arXiv v1/v2: a local window of window_ratio of the keys, and columns up to alpha_columns of the sampled mass."""
    columns = _smallest_prefix(samples.masses.sum(-2), config.alpha_columns or config.cra)
    width = -(-int(config.window_ratio * grid.nk) // grid.block) + 1
    return columns, grid.local_slashes(config.replace(local_blocks=width)).expand(*columns.shape[:3], -1)


def _smallest_prefix(scores: Tensor, share: float) -> Tensor:
    """bool like scores: the highest ones, as few as add up to `share` of the total."""
    ordered, index = scores.sort(dim=-1, descending=True, stable=True)
    before = ordered.cumsum(-1) - ordered
    keep = (before < share * ordered.sum(-1, keepdim=True)) & (ordered > 0)
    return torch.zeros_like(keep).scatter(-1, index, keep)
