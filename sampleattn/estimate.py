"""What other settings would keep of a recorded prompt: the method's own choice, made again from its sampled tile masses.

While a layer is recorded, `table` asks for many settings at once. Later, `estimates` asks for any others, from the masses that
the trace holds: these are float16, and of some of the sampled rows only, so a choice near a limit may fall otherwise than it did.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from sampleattn import backends
from sampleattn.block_mask import Grid
from sampleattn.config import SampleAttentionConfig
from sampleattn.estimate_table import FIELDS, KINDS, TARGETS, of_table
from sampleattn.filtering import Selection, select
from sampleattn.recall import TOLERANCE
from sampleattn.sampling import sampled_rows, segment_count
from sampleattn.trace import Trace

CELLS_AT_ONCE = 1 << 20  # heads x rows x key blocks; the choice takes about 50 bytes for each


@dataclass(frozen=True)
class Estimate:
    """Of some heads, float32 [H] each. density: tiles computed / causal tiles; recall: what `rows_at_target` of the sampled rows
    keep at least; at_target: the share of them that reach `cra`; worst: the least."""

    density: np.ndarray
    recall: np.ndarray
    at_target: np.ndarray
    worst: np.ndarray


def table(selection: Selection, config: SampleAttentionConfig, tick: Callable[[], None] = lambda: None) -> dict[str, np.ndarray]:
    """For each kind and target of `estimate_table`, what the selection's sampled rows (batch 1) lead to: the arrays of an
    estimates file, see `trace_format.ESTIMATE_ARRAYS`. The choices are those of the config's backend. tick may raise to stop."""
    sampled, found = _Sampled.of(selection), []
    for wanted in (of_table(config, *kind, target) for kind in KINDS for target in TARGETS):
        tick()
        chosen = select(selection.tile_masses, selection.rows, selection.grid, wanted)
        found.append(sampled.numbers(chosen, wanted))
    numbers = torch.stack(found, -1).unflatten(-1, (len(KINDS), len(TARGETS))).cpu().numpy()
    return dict(zip(FIELDS, numbers, strict=True)) | {"rows": np.array([sampled.masses.shape[1]], np.int32)}


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
    return Estimate(*_Sampled.of(selection).numbers(selection, config).numpy())


@dataclass(frozen=True)
class _Sampled:
    """The rows that are rows: masses fp32 [H, R, key blocks], and the query block of each, int64 [R]."""

    masses: Tensor
    block: Tensor

    @classmethod
    def of(cls, selection: Selection) -> _Sampled:
        real = selection.rows[0] >= 0
        return cls(selection.tile_masses[0][:, real], selection.rows[0, real] // selection.grid.block)

    def numbers(self, selection: Selection, config: SampleAttentionConfig) -> Tensor:
        """Density, and the recall of these rows, of a selection (batch 1) in the order of FIELDS: fp32 [4, H]"""
        recall = (1 - self.masses.masked_fill(selection.block_mask[0][:, self.block], 0).sum(-1)).clamp(0, 1)
        count = recall.shape[-1]
        below = count - max(1, int(np.ceil(count * config.rows_at_target)))
        ascending = recall.sort(-1).values
        at_target = (recall >= config.cra - TOLERANCE).sum(-1) / count
        return torch.stack((selection.density[0], ascending[:, below], at_target, ascending[:, 0]))


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
