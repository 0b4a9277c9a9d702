"""What other settings would keep of a recorded prompt: the method's own choice, made again from its sampled tile masses.

While a layer is recorded, `table` asks for many settings at once. Later, `estimates` asks for any others, from the masses that
the trace holds: these are float16, and of some of the sampled rows only, so a choice near a limit may fall otherwise than it did.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from sampleattn import backends
from sampleattn.block_mask import Grid
from sampleattn.config import SampleAttentionConfig
from sampleattn.estimate_table import FIELDS, KINDS, TARGETS, of_table
from sampleattn.filtering import Selection, select, tiles_at_targets
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
    together = 1 if selection.tile_masses.is_cuda else max(1, CELLS_AT_ONCE // selection.tile_masses.numel())
    for kind in KINDS:
        for first in range(0, len(TARGETS), together):
            tick()
            targets = TARGETS[first : first + together]
            masks = _masks(selection, of_table(config, *kind, targets[0]), targets)
            found.append(sampled.numbers(masks, selection.grid, config.rows_at_target, targets))
    numbers = torch.cat(found, 1).unflatten(1, (len(KINDS), len(TARGETS))).movedim(-1, 1).cpu().numpy()
    return dict(zip(FIELDS, numbers, strict=True)) | {"rows": np.array([sampled.masses.shape[1]], np.int32)}


def _masks(selection, config, targets):
    """What the config with each of the targets keeps of the selection's samples: bool [targets, H, query blocks, key blocks]."""
    given = selection.tile_masses, selection.rows, selection.grid
    if len(targets) == 1:
        return select(*given, config).block_mask
    segments = segment_count(selection.grid, config) if config.scope == "segment" else 1
    masks = tiles_at_targets(*given, config, segments, targets)
    masks[torch.tensor(targets) == 1] = selection.grid.causal[0]
    return masks


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
    numbers = _Sampled.of(selection).numbers(selection.block_mask, selection.grid, config.rows_at_target, [config.cra])
    return Estimate(*numbers[:, 0].numpy())


@dataclass(frozen=True)
class _Sampled:
    """The rows that are rows: masses fp32 [H, R, key blocks], and the query block of each, int64 [R]."""

    masses: Tensor
    block: Tensor

    @classmethod
    def of(cls, selection: Selection) -> _Sampled:
        real = selection.rows[0] >= 0
        return cls(selection.tile_masses[0][:, real], selection.rows[0, real] // selection.grid.block)

    def numbers(self, masks: Tensor, grid: Grid, share: float, targets: Sequence[float]) -> Tensor:
        """FIELDS of the masks bool [T, H, query blocks, key blocks] that were chosen for the targets: fp32 [4, T, H].

        share: `rows_at_target`."""
        recall = (1 - self.masses.masked_fill(masks[:, :, self.block], 0).sum(-1)).clamp(0, 1)
        count = recall.shape[-1]
        below = count - max(1, int(np.ceil(count * share)))
        ascending = recall.sort(-1).values
        enough = torch.tensor(targets, device=recall.device)[:, None, None] - TOLERANCE
        at_target = (recall >= enough).sum(-1) / count
        return torch.stack((grid.density(masks), ascending[..., below], at_target, ascending[..., 0]))


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
