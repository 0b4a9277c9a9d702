"""The work of an estimate, run in a job's thread, and what is known so far. torch is imported here, and only when it runs."""

from __future__ import annotations

import threading
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field

import numpy as np

from app.jobs import Cancelled, Job
from sampleattn.config import SampleAttentionConfig
from sampleattn.trace import Trace

TARGETS = (0.8, 0.9, 0.95, 0.99)
LAYERS_AT_ONCE = 2
FIELDS = ("density", "recall", "at_target", "worst")


@dataclass
class Board:
    """Estimates of every head under one config, as `sampleattn.estimate.Estimate` has them; NaN until they are made.

    float [layers, heads] each; ready: the layers that are done; over: set when all recorded ones are.
    """

    density: np.ndarray
    recall: np.ndarray
    at_target: np.ndarray
    worst: np.ndarray
    ready: set[int] = field(default_factory=set)
    over: threading.Event = field(default_factory=threading.Event)


class Estimates:
    """All that was estimated of one trace, by settings. Tabs that have it open share it.

    recorded_recall: float [layers, heads], see `sampleattn.estimate.recorded_recall`; sampled_rows: int [layers], how many are
    stored. Both are filled by `work`.
    """

    def __init__(self, trace: Trace):
        self.trace = trace
        self.sampled_rows = np.zeros(trace.layers, int)
        self.recorded_recall = np.full((trace.layers, trace.heads), np.nan)
        self._boards: dict[SampleAttentionConfig, Board] = {}

    def board(self, config: SampleAttentionConfig) -> Board:
        """What is known for the config."""
        if config not in self._boards:
            empty = np.full((len(FIELDS), self.trace.layers, self.trace.heads), np.nan)
            self._boards[config] = Board(*empty)
        return self._boards[config]

    def complete(self, config: SampleAttentionConfig) -> bool:
        """Whether all recorded layers are estimated for the config."""
        return self.board(config).over.is_set()

    def all_done(self, config: SampleAttentionConfig) -> bool:
        """Whether `work` would find nothing to do."""
        recorded = self.recorded_recall[self.trace.recorded_layers]
        return all(map(self.complete, self._wanted(config))) and not np.isnan(recorded).any()

    def _wanted(self, config):
        """The points of the curve, and the recorded settings, which tell how good the estimate is."""
        return list(dict.fromkeys([*curve(config), self.trace.config]))

    def work(self, config: SampleAttentionConfig):
        """A job's work: the config's board first, then those of its curve, then the recall that was recorded."""

        def estimate_them(job: Job):
            job.progress(0.0, "Loading torch")
            import torch

            from sampleattn.estimate import estimates, recorded_recall

            def layer_of(wanted, layer):
                if job.cancel.is_set():
                    raise Cancelled
                torch.set_num_threads(1)
                board, self.sampled_rows[layer] = self.board(wanted), len(self.trace.rows(layer))
                for heads, found in estimates(self.trace, layer, wanted):
                    for name in FIELDS:
                        getattr(board, name)[layer, heads] = getattr(found, name)
                    if job.cancel.is_set():
                        raise Cancelled
                board.ready.add(layer)
                if board.ready.issuperset(self.trace.recorded_layers):
                    board.over.set()

            left = [
                (wanted, layer)
                for wanted in self._wanted(config)
                for layer in self.trace.recorded_layers
                if layer not in self.board(wanted).ready
            ]
            with ThreadPoolExecutor(LAYERS_AT_ONCE) as pool:
                for done, _ in enumerate(pool.map(lambda place: layer_of(*place), left)):
                    wanted, layer = left[done]
                    job.progress(done / len(left), f"Target {wanted.cra:g}, layer {layer}")
            for layer in self.trace.recorded_layers:
                job.progress(1.0, f"What was recorded, layer {layer}")
                if np.isnan(self.recorded_recall[layer]).any():
                    self.recorded_recall[layer] = recorded_recall(self.trace, layer)

        return estimate_them


def changed(recorded: SampleAttentionConfig, **changes) -> SampleAttentionConfig:
    """The recorded settings with some changed. Shares and a density fixed for another target or selection fall away."""
    if (changes["cra"], changes["selection"]) != (recorded.cra, recorded.selection):
        changes |= dict(alpha_columns=None, alpha_slashes=None, density=None)
    return recorded.replace(**changes)


def curve(config: SampleAttentionConfig) -> list[SampleAttentionConfig]:
    """The config, and the same with each of TARGETS: the points of its curve."""
    others = (changed(config, cra=target, selection=config.selection) for target in TARGETS)
    return [config, *(other for other in others if other != config)]
