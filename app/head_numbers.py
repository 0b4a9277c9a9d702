"""The numbers of a head that the board can show: where they come from, which way is hard, and their words. No streamlit."""

from __future__ import annotations

import re
from collections.abc import Callable
from dataclasses import dataclass

import numpy as np

from app.reading import visible
from sampleattn.summary import column_share, sparse_seconds

SHARE, RECALL, PLAIN, SECONDS = "share", "recall", "plain", "seconds"
PLACE = re.compile(r"(layer|head)\s+(\d)")


@dataclass(frozen=True)
class HeadNumber:
    """One number of every head.

    field: a name for links and files. values: trace -> float [layers, heads], NaN where not known. kind: "exact", "sampled" or
    "recorded". form: SHARE, RECALL, PLAIN or SECONDS. hard: "low" or "high" values are the hard ones, "" if neither is.
    holds: trace -> the threshold to start with. per_layer: all heads of a layer have the layer's number.
    """

    field: str
    name: str
    sentence: str
    values: Callable
    kind: str = "exact"
    form: str = SHARE
    hard: str = ""
    holds: Callable = lambda trace: 0.0
    per_layer: bool = False

    @property
    def side(self) -> str:
        """The side of the threshold on which heads hold."""
        return "at least" if self.hard == "low" else "at most"

    def text(self, value: float) -> str:
        """The value in words."""
        if value != value:
            return "–"
        return {SHARE: f"{value:.1%}", RECALL: f"{value:.3f}", PLAIN: f"{value:.3g}", SECONDS: _seconds(value)}[self.form]

    def short(self, value: float) -> str:
        """The value as it fits into a cell of the board."""
        if value != value:
            return "–"
        return {SHARE: f"{value:.0%}", RECALL: f"{value:.2f}", PLAIN: f"{value:.2g}", SECONDS: _seconds(value)}[self.form]

    def range(self, values: np.ndarray) -> tuple[float, float]:
        """The range that the colours and the threshold cover: 0 to 1 for shares and recalls, else 0 to the greatest value."""
        most = np.nanmax(values, initial=0.0)
        return (0.0, 1.0) if self.form in (SHARE, RECALL) else (0.0, float(most) if most > 0 else 1.0)

    def holding(self, values: np.ndarray, threshold: float) -> np.ndarray:
        """The heads that are no harder than the threshold. bool [layers, heads]"""
        if not self.hard:
            return np.zeros(values.shape, bool)
        return values >= threshold if self.hard == "low" else values <= threshold


def _seconds(value: float) -> str:
    return f"{value:.3g} s" if value >= 0.1 else f"{value * 1e3:.3g} ms"


NUMBERS = (
    HeadNumber("density", "Density", "Tiles computed, as a share of the causal tiles: less is cheaper.",
               lambda trace: trace.density, hard="high"),
    HeadNumber("cra", "CRA", "The worst row's recall (CRA), over every row of the prompt.",
               lambda trace: trace.cra, form=RECALL, hard="low", holds=lambda trace: trace.config.cra),
    HeadNumber("rows_at_target", "Rows at target", "The share of all rows whose recall reaches the target.",
               lambda trace: trace.rows_at_target, hard="low", holds=lambda trace: trace.config.rows_at_target),
    HeadNumber("recall_of_99", "Recall of 99% of rows",
               "The recall that 99% of all rows reach: the highest target that all but 1 row in 100 meet.",
               lambda trace: trace.recall_of_99, form=RECALL, hard="low", holds=lambda trace: trace.config.cra),
    HeadNumber("columns", "Columns or slashes",
               "Of the attention in a head's kept columns and slashes, the share in columns: 0% is all slashes, 100% columns.",
               column_share),
    HeadNumber("output_error", "Output error", "How far the sparse output is from the dense one, relative to the dense one.",
               lambda trace: trace.output_error, form=PLAIN, hard="high"),
    HeadNumber("seconds", "Time", "Seconds of sampling, filtering and sparse attention, recorded for each layer as a whole.",
               lambda trace: np.repeat(sparse_seconds(trace)[:, None], trace.heads, axis=1), "recorded", SECONDS, "high",
               per_layer=True),
    HeadNumber("sampled_cra", "Sampled CRA", "The worst recall among the sampled rows: all that the method itself can see.",
               lambda trace: trace.sampled_cra, "sampled", RECALL, "low", holds=lambda trace: trace.config.cra),
    HeadNumber("oracle_density", "Oracle density", "The fewest tiles, found greedily, that would bring every row to the target.",
               lambda trace: trace.oracle_density, hard="high"),
)  # fmt: skip
BY_NAME = {number.name: number for number in NUMBERS}
ORDERS = ("Hardest", "Easiest", "By layer")


def ordered(number: HeadNumber, values: np.ndarray, density: np.ndarray, order: str) -> list[tuple[int, int]]:
    """The (layer, head) pairs that have a number, in an order of ORDERS; of a number per layer, its densest head for each.

    Where no way is hard, high values come first under "Hardest".
    """
    places = [(layer, head) for layer, head in np.argwhere(np.isfinite(values)).tolist()]
    if number.per_layer:
        densest = np.nan_to_num(density, nan=-1).argmax(axis=1)
        places = [(layer, int(densest[layer])) for layer in sorted({layer for layer, _ in places})]
    if order == "By layer":
        return places
    sign = 1 if (number.hard == "low") == (order == "Hardest") else -1
    return sorted(places, key=lambda place: sign * values[place])


def matching(trace, wanted: str) -> np.ndarray:
    """The heads that a search finds, as "slash", "layer 3" or "3.5": every word must fit. bool [layers, heads]"""
    words = PLACE.sub(r"\1\2", wanted.lower()).replace(",", " ").split()

    def found(layer, head):
        label, places = visible(trace.label(layer, head)).lower(), (f"layer{layer}", f"head{head}", f"{layer}.{head}")
        return all(word in places or (word in label and not word[0].isdigit()) for word in words)

    return np.array([[found(layer, head) for head in range(trace.heads)] for layer in range(trace.layers)])
