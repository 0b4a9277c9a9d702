"""What other settings would keep of a recorded prompt: the method's own choice, made again from the trace's sampled tile masses.

No model and no q or k is needed. The masses are stored as float16, and of more than 512 sampled rows 512 are stored, so a choice
near a limit may fall otherwise than it did; recall is known of these rows only.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from sampleattn import backends
from sampleattn.block_mask import Grid
from sampleattn.config import SampleAttentionConfig
from sampleattn.filtering import Selection, select
from sampleattn.sampling import sampled_rows, segment_count
from sampleattn.trace import Trace

CELLS_AT_ONCE = 1 << 22  # heads x rows x key blocks; the choice takes about 50 bytes for each
TOLERANCE = 1e-6


@dataclass(frozen=True)
class Estimate:
    """Of some heads, float32 [H] each. density: tiles computed / causal tiles; recall: what `rows_at_target` of the sampled rows
    keep at least; at_target: the share of them that reach `cra`; worst: the least."""

    density: np.ndarray
    recall: np.ndarray
    at_target: np.ndarray
    worst: np.ndarray


def estimates(trace: Trace, layer: int, config: SampleAttentionConfig) -> Iterator[tuple[slice, Estimate]]:
    """The heads of a recorded layer, some at a time: (heads, their Estimate). Nothing for a layer whose rows were not sampled.

    Raises TraceError if the layer can't be read, ValueError if the stored rows don't tell enough (see `choose_again`).
    """
    rows = trace.rows(layer)
    if not len(rows):
        return
    together = max(1, CELLS_AT_ONCE // (len(rows) * -(-trace.length // config.block_size)))
    for first in range(0, trace.heads, together):
        heads = slice(first, min(first + together, trace.heads))
        masses = np.stack([trace.tile_masses(layer, head) for head in range(heads.start, heads.stop)])
        selection = choose_again(torch.from_numpy(masses), torch.from_numpy(rows.astype(np.int64)), trace.length, config)
        yield heads, estimate(selection, config)


def choose_again(masses: Tensor, rows: Tensor, tokens: int, config: SampleAttentionConfig) -> Selection:
    """The selection that the config makes from stored masses fp32 [H, R, key blocks] of rows int64 [R] of a prompt (batch 1).

    Raises ValueError if it chooses by segment and none of the rows lies in one of them.
    """
    grid = Grid(tokens, tokens, config.block_size, masses.device)
    segments, sampled = segment_count(grid, config), int((sampled_rows(grid, config) >= 0).sum())
    # The margin is for the rows that would be sampled, of which fewer may be stored.
    config = config.replace(sampling_margin=config.sampling_margin * (len(rows) / sampled) ** 0.5)
    masses, rows, fewest = _by_segment(masses, rows, grid, segments)
    if config.scope == "segment" and not fewest:
        raise ValueError(f"the trace holds no sampled row of some of the {segments} segments; choose per head")
    return select(masses[None], rows[None], grid, config, backends.twins("torch"))


def estimate(selection: Selection, config: SampleAttentionConfig) -> Estimate:
    """What a selection (batch 1) computes, and the recall of its sampled rows."""
    real = selection.rows[0] >= 0
    kept = selection.block_mask[0, :, selection.rows[0, real] // selection.grid.block]
    recall = (1 - selection.tile_masses[0, :, real].masked_fill(kept, 0).sum(-1)).clamp(0, 1).numpy()
    return Estimate(
        selection.density[0].numpy(),
        reached_by(recall, config.rows_at_target),
        (recall >= config.cra - TOLERANCE).mean(-1, dtype=np.float32),
        recall.min(-1),
    )


def reached_by(recall: np.ndarray, share: float) -> np.ndarray:
    """The recall that `share` of the rows reach: [..., rows] -> [...]."""
    below = recall.shape[-1] - max(1, int(np.ceil(recall.shape[-1] * share)))
    return np.partition(recall, below, axis=-1)[..., below]


def recorded_recall(trace: Trace, layer: int) -> np.ndarray:
    """The recall that `rows_at_target` of all rows reach with what was recorded: exact, float32 [H]."""
    share = trace.config.rows_at_target
    return np.stack([reached_by(trace.recall(layer, head), share) for head in range(trace.heads)])


def _by_segment(masses, rows, grid, segments):
    """Masses and rows with as many rows for each segment (-1 where there are fewer), and the fewest rows that one has."""
    rows, order = rows.sort()
    segment = grid.segment_of_block(segments)[rows // grid.block]
    counts = segment.bincount(minlength=segments)
    widest = int(counts.max())
    place = segment * widest + torch.arange(len(rows)) - (counts.cumsum(0) - counts)[segment]
    placed_rows = rows.new_full((segments * widest,), -1)
    placed_rows[place] = rows
    placed = masses.new_zeros(masses.shape[0], segments * widest, masses.shape[2])
    placed[:, place] = masses[:, order]
    return placed, placed_rows, int(counts.min())
