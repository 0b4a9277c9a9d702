"""One layer's file of a trace, read head by head: a class for how it is packed now, and one for schemas 1 and 2. Numpy only."""

from __future__ import annotations

import numpy as np

from sampleattn import recall
from sampleattn.trace_files import ArrayFile
from sampleattn.trace_format import SAMPLED, TraceError, layer_file
from sampleattn.trace_levels import WHITE, flags, seen, square, tiles_of


class Layer:
    """file: the layer's; fixed: `trace_format.sizes`; block, last_blocks: of the config. Raises TraceError for numbers that are
    no numbers, or rows beyond the prompt."""

    def __init__(self, file: ArrayFile, number: int, fixed: dict[str, int], block: int, last_blocks: int):
        self.file, self.number, self.fixed = file, number, fixed
        self.block, self.last_blocks = block, last_blocks

    def numbers(self, name: str, head: int) -> np.ndarray:
        """An array of a head, float32."""
        values = self.file.read(name, head).astype(np.float32)
        if not np.isfinite(values).all():
            raise TraceError(f"Layer {self.number} holds a {name} that is no finite number; record the trace again.")
        return values

    def overview(self, head: int) -> np.ndarray:
        values = self.numbers("overview", head)
        if self.file.described["overview"][0] == "U8":
            values = (values / WHITE) ** 2
        return square(values, self.fixed["side"])

    def recall(self, head: int) -> np.ndarray:
        """Of every row; where only the least of each part of the rows is kept, that."""
        kept = self.numbers("recall", head)
        return np.repeat(kept, np.diff(recall.cell_edges(self.fixed["N"], len(kept))))

    def recall_quantiles(self, head: int) -> np.ndarray:
        return self.numbers("recall_quantiles", head)

    @property
    def track(self) -> int:
        """How many numbers the recall of a head is kept in."""
        return self.file.described["recall"][1][1]

    def block_mask(self, head: int) -> np.ndarray:
        if "block_mask" not in self.file.described:
            return tiles_of(self.columns(head), self.slashes(head), self.last_blocks)
        blocks = self.fixed["kb"]
        return square(flags(self.file.read("block_mask", head), blocks * (blocks + 1) // 2), blocks)

    def columns(self, head: int) -> np.ndarray:
        """bool [segments, key blocks]"""
        return flags(self.file.read("columns", head), self.fixed["kb"])

    def slashes(self, head: int) -> np.ndarray:
        """bool [segments, slashes]"""
        return flags(self.file.read("slashes", head), self.fixed["kb"])

    def rows(self) -> np.ndarray:
        if "rows" not in self.file.described:
            return np.empty(0, np.int32)
        rows = self.file.read("rows")
        if ((rows < 0) | (rows >= self.fixed["N"])).any():
            raise TraceError(f"Layer {self.number} holds sampled rows beyond the prompt; record the trace again.")
        return rows

    def tile_masses(self, head: int) -> np.ndarray:
        if "tile_masses" not in self.file.described:
            return np.empty((0, self.fixed["kb"]), np.float32)
        rows = self.rows()
        if len(rows) > SAMPLED:
            raise TraceError(f"Layer {self.number} holds more than {SAMPLED} sampled rows; record the trace again.")
        values, below = self.numbers("tile_masses", head), seen(rows, self.fixed["kb"], self.block)
        if below.sum() != len(values):
            raise TraceError(f"{layer_file(self.number)} holds tile_masses of other rows; record the trace again.")
        masses = np.zeros(below.shape, np.float32)
        masses[below] = values
        return masses


class OldLayer(Layer):
    """A layer of schema 1 or 2, which held whole squares and a byte for each column and slash."""

    def overview(self, head):
        return self.numbers("overview", head)

    def recall_quantiles(self, head):
        return recall.quantiles(self.recall(head))

    def block_mask(self, head):
        return flags(self.file.read("block_mask", head), self.fixed["kb"])

    def columns(self, head):
        return self.file.read("columns", head).astype(bool)

    def slashes(self, head):
        return self.file.read("slashes", head).astype(bool)

    def tile_masses(self, head):
        return self.numbers("tile_masses", head)
