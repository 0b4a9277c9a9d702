"""The answers to other settings of a trace: looked up where they were recorded, else estimated in a job's thread, and kept.

torch is imported in the thread only, and only when it runs.
"""

from __future__ import annotations

import itertools
import os
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from functools import cached_property

import numpy as np

from app.jobs import Cancelled, Job
from sampleattn.config import SampleAttentionConfig
from sampleattn.estimate_table import FIELDS, TARGETS, of_table
from sampleattn.trace import Trace

CURVE = (0.8, 0.9, 0.95, 0.99)
LOOKED_UP_CURVE = (0.5, 0.6, 0.7, 0.8, 0.85, 0.9, 0.95, 0.97, 0.99)
LAYERS_AT_ONCE = min(max((os.cpu_count() or 1) // 2, 2), 8)


@dataclass
class Board:
    """The answers of every head under one config, as `sampleattn.estimate.Estimate` has them; NaN where there is none yet.

    float [layers, heads] each. refined: bool [layers, heads], False where an answer is missing or `coarse`; moved: how far
    refining has moved a coarse density, NaN elsewhere; rows: how many sampled rows the answers come from.
    """

    density: np.ndarray
    recall: np.ndarray
    at_target: np.ndarray
    worst: np.ndarray
    refined: np.ndarray
    coarse: bool = False
    rows: int = 0
    moved: np.ndarray = field(init=False)

    def __post_init__(self):
        self.moved = np.full(self.density.shape, np.nan)


class Estimates:
    """All that is known of one trace under other settings. Tabs that have it open share it."""

    def __init__(self, trace: Trace):
        self.trace = trace
        self._layers = trace.recorded_layers
        self._boards: dict[SampleAttentionConfig, Board] = {}

    def board(self, config: SampleAttentionConfig) -> Board:
        """What is known for the config: looked up, else coarse or nothing until `work` has been there."""
        if config not in self._boards:
            self._boards[config] = self._first(config)
        return self._boards[config]

    def _first(self, config):
        shape, table = (self.trace.layers, self.trace.heads), self.trace.estimate_table
        if table is None or (config.alpha_columns, config.alpha_slashes, config.density) != (None, None, None):
            return Board(*np.full((len(FIELDS), *shape), np.nan), refined=np.zeros(shape, bool))
        found = table.answers(config)
        if found is not None:
            return Board(**found, refined=np.isfinite(found["density"]), rows=table.rows)
        return Board(**table.coarse(config, self.trace.length), refined=np.zeros(shape, bool), coarse=True, rows=table.rows)

    def complete(self, config: SampleAttentionConfig) -> bool:
        """Whether no recorded head lacks its answer, or has a coarse one where the stored rows tell more."""
        return all(self._known(config, layer) for layer in self._layers)

    def curve(self, config: SampleAttentionConfig) -> list[SampleAttentionConfig]:
        """The config, and the same with other targets: more of them where they only need to be looked up."""
        table = self.trace.estimate_table
        looked_up = table is not None and table.answers(config) is not None
        return curve(config, LOOKED_UP_CURVE if looked_up else CURVE)

    def _known(self, config, layer):
        board = self.board(config)
        return board.refined[layer].all() or (board.coarse and self.trace.estimate_table.suffices(config, self._stored_rows))

    @cached_property
    def _stored_rows(self):
        return len(self.trace.rows(self._layers[0]))

    def steps(self, config: SampleAttentionConfig) -> tuple[list[float], np.ndarray]:
        """The slider's targets, and the densities under each of them: float32 [targets, layers, heads], NaN where not known."""
        targets = sorted({*TARGETS, config.cra, self.trace.config.cra})
        boards = [self.board(with_target(config, target)).density for target in targets]
        return targets, np.stack(boards).astype(np.float32)

    def all_done(self, config: SampleAttentionConfig) -> bool:
        """Whether everything that is shown for the config is known, or can't be."""
        return all(map(self.complete, self._shown(config))) or self.trace.level == "summary"

    def _shown(self, config):
        """The points of the curve, and the recorded settings, which tell how good the estimate is."""
        return list(dict.fromkeys([*self.curve(config), self.trace.config]))

    def work(self, config: SampleAttentionConfig):
        """A job's work: the config's board first, then those of its curve, then the recorded one."""

        def estimate_them(job: Job):
            job.progress(0.0, "Loading torch")
            import torch

            def one(place):
                torch.set_num_threads(1)
                self._refine(job, *place)

            left = [place for place in itertools.product(self._shown(config), self._layers) if not self._known(*place)]
            with ThreadPoolExecutor(LAYERS_AT_ONCE) as pool:
                for done, _ in enumerate(pool.map(one, left), 1):
                    other, layer = left[done - 1]
                    job.progress(done / len(left), f"Target {other.cra:g}, layer {layer}")

        return estimate_them

    def _refine(self, job, config, layer):
        from sampleattn.estimate import estimates

        board, rows = self.board(config), len(self.trace.rows(layer))
        for heads, found in estimates(self.trace, layer, config):
            if job.cancel.is_set():
                raise Cancelled
            if board.coarse:
                board.moved[layer, heads] = found.density - board.density[layer, heads]
            for name in FIELDS:
                getattr(board, name)[layer, heads] = getattr(found, name)
            board.refined[layer, heads] = True
        board.refined[layer] = True
        board.rows = max(board.rows, rows)


def changed(recorded: SampleAttentionConfig, **changes) -> SampleAttentionConfig:
    """The recorded settings with some changed. Shares and a density fixed for another target or selection fall away."""
    if (changes["cra"], changes["selection"]) != (recorded.cra, recorded.selection):
        changes |= dict(alpha_columns=None, alpha_slashes=None, density=None)
    return recorded.replace(**changes)


def curve(config: SampleAttentionConfig, targets: tuple[float, ...]) -> list[SampleAttentionConfig]:
    """The config, and the same with each of the targets."""
    return list(dict.fromkeys([config, *(with_target(config, target) for target in targets)]))


def with_target(config: SampleAttentionConfig, target: float) -> SampleAttentionConfig:
    """The config with another target, for which no shares or density are fixed."""
    return config if target == config.cra else of_table(config, config.selection, config.scope, target)
