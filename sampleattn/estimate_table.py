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
        return self._at(config)

    def coarse(self, config: SampleAttentionConfig, tokens: int) -> dict[str, np.ndarray]:
        """As `answers`, roughly, for a config that differs in its target, sink or local blocks as well.

        Between two targets, in proportion. Tiles that other sink or local blocks always keep take the place of chosen ones
        wholly, or not at all: the density is the middle of the two, and recall is taken to be the same.
        """
        found = self._at(config)
        before, after = (always_kept(tokens, settings) for settings in (self.settings, config))
        outside = np.clip((found["density"] - before) / max(1 - before, 1e-9), 0, 1)
        in_place, beside = np.maximum(found["density"], after), after + (1 - after) * outside
        return found | {"density": found["density"] if after == before else (in_place + beside) / 2}

    def _at(self, config):
        kind = KINDS.index((config.selection, config.scope))
        place = np.interp(config.cra, TARGETS, np.arange(len(TARGETS)))
        low, part = int(place), place - int(place)
        high = min(low + 1, len(TARGETS) - 1)
        numbers = {name: getattr(self, name)[..., kind, :] for name in FIELDS}
        return {name: (1 - part) * found[..., low] + part * found[..., high] for name, found in numbers.items()}


def of_table(settings: SampleAttentionConfig, selection: str, scope: str, target: float) -> SampleAttentionConfig:
    """The settings with another selection, scope and target; shares and a density fixed for the recorded ones fall away."""
    free = dict(alpha_columns=None, alpha_slashes=None, density=None)
    return settings.replace(selection=selection, scope=scope, cra=target, **free)


def always_kept(tokens: int, config: SampleAttentionConfig) -> float:
    """The share of the causal tiles in sink, local and last blocks, which no choice can drop."""
    blocks = -(-tokens // config.block_size)
    i = np.arange(blocks)
    kept = np.minimum(i + 1, np.minimum(config.sink_blocks, i + 1) + np.minimum(config.local_blocks, i + 1))
    kept[max(blocks - config.last_blocks, 0) :] = i[max(blocks - config.last_blocks, 0) :] + 1
    return float(kept.sum() / (i + 1).sum())
