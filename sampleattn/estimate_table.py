"""The answers that a trace holds to other settings: each target of What-if, selection and scope, of every head. Numpy only.

They are made when a layer is recorded (`estimate.table`), from all of its sampled rows, so that a look-up is enough later.
"""

from __future__ import annotations

import itertools
from dataclasses import dataclass

import numpy as np

from sampleattn.config import SCOPES, SELECTIONS, SampleAttentionConfig

TARGETS = tuple(percent / 100 for percent in range(50, 101))
KINDS = tuple(itertools.product(SELECTIONS, SCOPES))
FIELDS = ("density", "recall", "at_target", "worst")
# How much of the tiles that more sink blocks, and more local blocks, always keep comes beside the chosen ones (notes/study.md).
BESIDE = {"joint": (0.8, 0.2), "independent": (0.5, 0.8), "window": (0.5, 0.8)}
# How far coarse densities were off there, in points: the median over the heads, and a single head, of the worst settings tried.
COARSE_ERROR = {"joint": (2, 12), "independent": (5, 39), "window": (5, 18)}


@dataclass(frozen=True)
class EstimateTable:
    """The answers of some heads, by kind and target.

    density, recall, at_target, worst: float32 [..., heads, kinds, targets], as `estimate.Estimate` has them; NaN where a layer
    holds none. rows: how many sampled rows they come from. settings: the recorded ones, of which all but target, selection and
    scope are kept.
    """

    density: np.ndarray
    recall: np.ndarray
    at_target: np.ndarray
    worst: np.ndarray
    rows: int
    settings: SampleAttentionConfig

    def answers(self, config: SampleAttentionConfig) -> dict[str, np.ndarray] | None:
        """field -> float [..., heads] for a config of the table; None if it is not one of them."""
        if config.cra not in TARGETS or config != of_table(self.settings, config.selection, config.scope, config.cra):
            return None
        return self._at(config.selection, config.scope, config.cra)

    def nearest(self, config: SampleAttentionConfig) -> SampleAttentionConfig:
        """The settings of the table that are most like the config: its selection, scope and, rounded, target."""
        return of_table(self.settings, config.selection, config.scope, min(TARGETS, key=lambda target: abs(target - config.cra)))

    def suffices(self, config: SampleAttentionConfig, rows: int) -> bool:
        """Whether `coarse` is as near to the truth as `estimate.estimates` from so many stored rows (notes/study.md)."""
        return not rows or (config.selection == "joint" and rows < self.rows)

    def coarse(self, config: SampleAttentionConfig, tokens: int) -> dict[str, np.ndarray]:
        """As `answers`, roughly, for a config that differs in its target, segments, sink or local blocks as well.

        Between two targets, in proportion. Tiles that other sink or local blocks always keep take the place of chosen ones, or
        come beside them: a part of both, see `BESIDE`. Recall is taken to be the same.
        """
        found, settings = self._in_segments(config, tokens), self.settings.replace(selection=config.selection, density=None)
        density = found["density"]
        for name, beside in zip(("sink_blocks", "local_blocks"), BESIDE[config.selection], strict=True):
            other = settings.replace(**{name: getattr(config, name)})
            density = _with_kept(density, always_kept(tokens, settings), always_kept(tokens, other), beside)
            settings = other
        return found | {"density": density}

    def _in_segments(self, config, tokens):
        """Between one segment, which is the choice per head, and the recorded number of segments.

        `joint` asks more of fewer rows (`joint.demand`), so its answers are those of the target at which as much was asked. What
        other segments change beside that is taken to grow with their number; of the other selections, with their length.
        """
        wanted, recorded = config.segment_count(tokens), self.settings.segment_count(tokens)
        if config.scope == "head":
            return self._at(config.selection, "head", config.cra)
        if wanted == recorded:
            return self._at(config.selection, "segment", config.cra)
        if config.selection == "joint":
            asked = config.cra + (1 - config.cra) * self._margin(wanted)
            targets = [(asked - margin) / (1 - margin) if margin < 1 else 1.0 for margin in map(self._margin, (1, recorded))]
            part = (wanted - 1) / (recorded - 1) if recorded > 1 and self._margin(recorded) < 1 else 0.0
        else:
            targets = [config.cra] * 2
            part = (1 - 1 / wanted) / (1 - 1 / recorded) if recorded > 1 else 0.0
        one, many = (
            self._at(config.selection, scope, target) for scope, target in zip(("head", "segment"), targets, strict=True)
        )
        part = min(part, 1.0)
        return {name: (1 - part) * one[name] + part * many[name] for name in FIELDS}

    def _margin(self, segments):
        """What `joint` adds to a target, as a share of the rest, where the rows are cut into so many segments."""
        return min(self.settings.sampling_margin * (segments / max(self.rows, 1)) ** 0.5, 1.0)

    def _at(self, selection, scope, target):
        kind = KINDS.index((selection, scope))
        place = np.interp(target, TARGETS, np.arange(len(TARGETS)))
        low, part = int(place), place - int(place)
        high = min(low + 1, len(TARGETS) - 1)
        numbers = {name: getattr(self, name)[..., kind, :] for name in FIELDS}
        return {name: (1 - part) * found[..., low] + part * found[..., high] for name, found in numbers.items()}


def _with_kept(density, before, after, beside):
    """The density with a share `after` of the tiles always kept, where it was `before`."""
    if after == before:
        return density
    outside = np.clip((density - before) / max(1 - before, 1e-9), 0, 1)
    return (1 - beside) * np.maximum(density, after) + beside * (after + (1 - after) * outside)


def of_table(settings: SampleAttentionConfig, selection: str, scope: str, target: float) -> SampleAttentionConfig:
    """The settings with another selection, scope and target; shares and a density fixed for the recorded ones fall away."""
    free = dict(alpha_columns=None, alpha_slashes=None, density=None)
    return settings.replace(selection=selection, scope=scope, cra=target, **free)


def always_kept(tokens: int, config: SampleAttentionConfig) -> float:
    """The share of the causal tiles in sink, local (for `window`, its window) and last blocks, which no choice can drop."""
    blocks, local = -(-tokens // config.block_size), config.local_blocks
    if config.selection == "window":
        local = max(local, -(-int(config.window_ratio * tokens) // config.block_size) + 1)
    i = np.arange(blocks)
    kept = np.minimum(i + 1, np.minimum(config.sink_blocks, i + 1) + np.minimum(local, i + 1))
    kept[max(blocks - config.last_blocks, 0) :] = i[max(blocks - config.last_blocks, 0) :] + 1
    return float(kept.sum() / (i + 1).sum())
