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

from sampleattn.block_mask import Grid
from sampleattn.config import SampleAttentionConfig
from sampleattn.estimate_table import FIELDS, KINDS, TARGETS, of_table
from sampleattn.filtering import Selection, pieces_at_targets, select
from sampleattn.joint import at_tiles, density
from sampleattn.recall import TOLERANCE
from sampleattn.sampling import sampled_rows
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
    found, masses = [], selection.tile_masses
    together = 1 if masses.is_cuda else max(1, CELLS_AT_ONCE // masses.numel())
    for kind in KINDS:
        for first in range(0, len(TARGETS), together):
            tick()
            targets = TARGETS[first : first + together]
            settings = of_table(config, *kind, targets[0])
            pieces = _pieces(masses, selection.rows, selection.grid, settings, targets)
            found.append(_numbers(masses, selection.rows, selection.grid, *pieces, settings, targets))
    numbers = torch.cat(found, 1).unflatten(1, (len(KINDS), len(TARGETS))).movedim(-1, 1).cpu().numpy()
    return dict(zip(FIELDS, numbers, strict=True)) | {"rows": np.array([int((selection.rows >= 0).sum())], np.int32)}


def _pieces(masses, rows, grid, config, targets) -> tuple[Tensor, Tensor]:
    """What the config keeps with each of the targets: columns [targets, H, S, key blocks], slashes [targets, H, S, slashes]."""
    if masses.is_cuda and len(targets) == 1:
        chosen = select(masses, rows, grid, config.replace(cra=targets[0]))
        return chosen.columns, chosen.slashes
    segments = config.segment_count(grid.nq) if config.scope == "segment" else 1
    return pieces_at_targets(masses, rows, grid, config, segments, targets)


def _numbers(masses, rows, grid, columns, slashes, config, targets) -> Tensor:
    """FIELDS of the columns and slashes that were chosen for the targets: fp32 [4, targets, H]."""
    segments, real = columns.shape[2], rows[0] >= 0
    block = (rows.clamp_min(0) // grid.block).unflatten(1, (segments, -1))[:, None]
    last = block > grid.last_query_block - config.last_blocks
    kept = columns[..., None, :] | at_tiles(slashes, grid.slash_of_rows(block)) | last[..., None]
    missing = (masses.unflatten(2, (segments, -1)) * ~kept).sum(-1).flatten(2)
    recall = (1 - missing[..., real]).clamp(0, 1)
    count = recall.shape[-1]
    below = count - max(1, int(np.ceil(count * config.rows_at_target)))
    ascending = recall.sort(-1).values
    enough = torch.tensor(targets, device=recall.device)[:, None, None] - TOLERANCE
    at_target = (recall >= enough).sum(-1) / count
    return torch.stack((density(columns, slashes, grid, config), ascending[..., below], at_target, ascending[..., 0]))


def estimates(trace: Trace, layer: int, config: SampleAttentionConfig) -> Iterator[tuple[slice, Estimate]]:
    """The heads of a recorded layer, some at a time: (heads, their Estimate). Nothing for a layer whose rows were not sampled.

    Where the trace holds fewer rows than were sampled, and answers from all of them, the estimate is the answer to the nearest
    recorded settings, and by how much a choice from these rows changes from those settings to the config.
    Raises TraceError if the layer can't be read, ValueError if the stored rows don't tell enough (see `choose_again`).
    """
    rows, answers = trace.rows(layer), trace.estimate_table
    if not len(rows):
        return
    nearest = answers.nearest(config) if answers is not None and len(rows) < answers.rows else None
    together = max(1, CELLS_AT_ONCE // (len(rows) * -(-trace.length // config.block_size)))
    for first in range(0, trace.heads, together):
        heads = slice(first, min(first + together, trace.heads))
        masses = np.stack([trace.tile_masses(layer, head) for head in range(heads.start, heads.stop)])
        stored = torch.from_numpy(masses), torch.from_numpy(rows.astype(np.int64)), trace.length
        found = estimate(choose_again(*stored, config), config)
        if nearest is not None:
            known, again = answers.answers(nearest), estimate(choose_again(*stored, nearest), nearest)
            found = Estimate(*(_moved(known[name][layer, heads], getattr(again, name), getattr(found, name)) for name in FIELDS))
        yield heads, found


def _moved(known, before, after):
    """A known share, changed by as much as an estimate of it changes."""
    return np.clip(known + after - before, 0, 1)


@dataclass(frozen=True)
class Choice:
    """A Selection (batch 1) of columns and slashes without its block mask, which takes longer to make than they to choose."""

    columns: Tensor
    slashes: Tensor
    rows: Tensor
    tile_masses: Tensor
    grid: Grid


def choose_again(masses: Tensor, rows: Tensor, tokens: int, config: SampleAttentionConfig) -> Choice:
    """What the config chooses from stored masses fp32 [H, R, key blocks] of rows int64 [R] of a prompt.

    Raises ValueError if it chooses by segment and none of the rows lies in one of them.
    """
    grid = Grid(tokens, tokens, config.block_size, masses.device)
    segments, sampled = config.segment_count(grid.nq), int((sampled_rows(grid, config) >= 0).sum())
    # The margin is for the rows that would be sampled, of which fewer may be stored.
    config = config.replace(sampling_margin=config.sampling_margin * (len(rows) / sampled) ** 0.5)
    masses, rows, fewest = _by_segment(masses, rows, grid, segments)
    if config.scope == "segment" and not fewest:
        raise ValueError(f"the trace holds no sampled row of some of the {segments} segments; choose per head")
    return Choice(*_pieces(masses[None], rows[None], grid, config, [config.cra]), rows[None], masses[None], grid)


def estimate(choice: Choice | Selection, config: SampleAttentionConfig) -> Estimate:
    """What a choice (batch 1) computes, and the recall of its sampled rows."""
    pieces = choice.columns, choice.slashes
    return Estimate(*_numbers(choice.tile_masses, choice.rows, choice.grid, *pieces, config, [config.cra])[:, 0].numpy())


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
