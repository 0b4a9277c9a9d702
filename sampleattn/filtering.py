"""Stage 2, score-based key-value filtering: from the sampled rows' tile masses to the columns and slashes that are kept."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from sampleattn.block_mask import Grid
from sampleattn.config import SampleAttentionConfig
from sampleattn.sampling import segment_count

ROUNDS = 64
ROUND_THRESHOLD = 0.7


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
        choose = {"joint": _joint, "independent": _independent, "window": _window}[config.selection]
        samples = _Samples.of(masses, rows, grid, segments)
        columns, slashes = choose(samples, grid, config)
        mask = grid.tiles(columns, slashes) | grid.always_kept(config)
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


def by_slash(masses: Tensor, block: Tensor, grid: Grid) -> Tensor:
    """masses [..., R, key blocks] of rows in query blocks `block` [..., R], indexed by slash instead: [..., R, slashes]."""
    j = block[..., None] + grid.shift - torch.arange(grid.slashes, device=masses.device)
    exists = (j >= 0) & (j < grid.key_blocks)
    index = j.clamp(0, grid.key_blocks - 1).expand(*masses.shape[:-1], -1)
    return masses.gather(-1, index) * exists


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
    slash_mass = by_slash(samples.masses, samples.block, grid).sum(-2)
    return (
        _smallest_prefix(column_mass, config.alpha_columns or config.cra),
        _smallest_prefix(slash_mass, config.alpha_slashes or config.cra),
    )


def _window(samples: _Samples, grid: Grid, config: SampleAttentionConfig) -> tuple[Tensor, Tensor]:
    """arXiv v1/v2: a local window of window_ratio of the keys, and columns up to alpha_columns of the sampled mass."""
    columns = _smallest_prefix(samples.masses.sum(-2), config.alpha_columns or config.cra)
    width = -(-int(config.window_ratio * grid.nk) // grid.block) + 1
    slashes = torch.arange(grid.slashes, device=columns.device) < grid.local_slashes(width)
    return columns, slashes.expand(*columns.shape[:3], -1)


def _smallest_prefix(scores: Tensor, share: float) -> Tensor:
    """bool like scores: the highest ones, as few as add up to `share` of the total."""
    ordered, index = scores.sort(dim=-1, descending=True, stable=True)
    before = ordered.cumsum(-1) - ordered
    keep = (before < share * ordered.sum(-1, keepdim=True)) & (ordered > 0)
    return torch.zeros_like(keep).scatter(-1, index, keep)


def _joint(samples: _Samples, grid: Grid, config: SampleAttentionConfig) -> tuple[Tensor, Tensor]:
    """Ours: columns and slashes together, at few tiles, until `rows_at_target` of the sampled rows keep `cra` of their mass.

    Greedy in rounds: a piece's score is the still-missing mass that it would bring to the sampled rows, per tile that it would
    add; each round takes every piece that scores at least ROUND_THRESHOLD of the best. A head that has enough stops changing.
    """
    batch, heads, segments = samples.masses.shape[:3]
    always = grid.always_kept(config.replace(last_blocks=0))  # rows of the last blocks speak for the others
    columns = samples.masses.new_zeros(batch, heads, segments, grid.key_blocks, dtype=torch.bool)
    slashes = samples.masses.new_zeros(batch, heads, segments, grid.slashes, dtype=torch.bool)
    wanted = config.rows_at_target * samples.real.sum(-1)
    for _ in range(ROUNDS):
        mask = grid.tiles(columns, slashes) | always
        missing = samples.masses * ~_rows_of(mask, samples.block)
        need = ((config.cra - 1 + missing.sum(-1)).clamp_min(0)) * samples.real
        short = ((need == 0) & samples.real).sum(-1) < wanted
        if not short.is_cuda and not short.any():
            break
        gain = torch.minimum(missing, need[..., None])
        column_tiles, slash_tiles = grid.tiles_added(mask, segments)
        column_score = gain.sum(-2) / column_tiles.clamp_min(1)
        slash_score = by_slash(gain, samples.block, grid).sum(-2) / slash_tiles.clamp_min(1)
        best = torch.maximum(column_score.amax(-1), slash_score.amax(-1))
        bar = (ROUND_THRESHOLD * best).masked_fill(~short, torch.inf)[..., None]
        columns = columns | ((column_score >= bar) & (column_score > 0))
        slashes = slashes | ((slash_score >= bar) & (slash_score > 0))
    return columns, slashes


def _rows_of(mask: Tensor, block: Tensor) -> Tensor:
    """The mask's row of tiles for each sampled row: bool [B, H, S, m, key blocks] from [B, H, query blocks, key blocks]."""
    flat = block.flatten(2)[..., None].expand(*mask.shape[:2], -1, mask.shape[-1])
    return mask.gather(2, flat).unflatten(2, block.shape[2:])
