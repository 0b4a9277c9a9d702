"""Trace: one recorded prompt, read from a folder or a zip. Needs numpy only; what it reads is treated as hostile input."""

from __future__ import annotations

from functools import cached_property, lru_cache
from pathlib import Path

import numpy as np

from sampleattn.config import SampleAttentionConfig
from sampleattn.estimate_table import FIELDS, KINDS, TARGETS, EstimateTable
from sampleattn.recall import SHARES, reached_by
from sampleattn.trace_files import ArrayFile, open_source, read_meta_bytes, trace_errors
from sampleattn.trace_format import (
    HEADS,
    META,
    OUTPUT,
    TOKENS,
    TraceError,
    check_arrays,
    estimates_file,
    pinned_key,
    pinned_query,
    sizes,
    table_of,
)
from sampleattn.trace_layer import Layer, OldLayer
from sampleattn.trace_meta import parse_meta
from sampleattn.trace_output import TraceOutput, read_output
from sampleattn.trace_save import save_files
from sampleattn.trace_writer import TraceWriter
from sampleattn.windows import attention_window

__all__ = ["Trace", "TraceError", "TraceOutput", "TraceWriter"]
MASKS_HELD = 8


class Trace:
    """A recorded prompt. A trace still being written opens with what it has (`complete` is False).

    Layers are counted from 0. Asking for one that was not analysed raises TraceError; in the [layers, heads] arrays it is NaN.
    Files of layers are read, and their checksums compared, when they are first asked for.
    """

    def __init__(self, source):
        self._source = source
        self.meta = parse_meta(read_meta_bytes(source))
        self._sizes = sizes(self.meta)
        self.complete = self.meta["state"] == "complete"
        self._layer_info = {entry["layer"]: entry for entry in self.meta["layers"]}
        self._files, self._layers = {}, {}
        self._kept = lru_cache(MASKS_HELD)(self._unpacked_mask)  # a map is made of many windows of one head
        self.accelerator = None  # a torch_windows.TorchWindows, for `window`
        with trace_errors("The trace"):
            self._names = [name for name in self.meta["files"] if self._present(name)]
        self._read_tokens()

    @classmethod
    def load(cls, path_or_file) -> Trace:
        """The trace in a folder, a .zip, bytes of a zip or an open binary file. Raises TraceError."""
        return cls(open_source(path_or_file))

    def _present(self, name):
        if self._source.size(name) is not None:
            return True
        if self.complete or name == TOKENS:
            raise TraceError(f"{name} is missing; copy or record the trace again.")
        return False

    def _file(self, name):
        if name not in self._files:
            file = ArrayFile(self._source, name, self.meta["files"][name]["bytes"], self.meta["files"][name]["sha256"])
            check_arrays(file.described, table_of(name, self.meta, file.described), self._sizes, name)
            self._files[name] = file
        return self._files[name]

    def _read_tokens(self):
        file = self._file(TOKENS)
        with trace_errors(TOKENS):
            self.text = file.read("text").tobytes().decode("utf-8")
        self.token_ids, self.offsets = file.read("ids"), file.read("offsets")
        begin, end = self.offsets[:, 0], self.offsets[:, 1]
        if (begin < 0).any() or (begin > end).any() or (end > len(self.text)).any() or (np.diff(self.offsets, axis=0) < 0).any():
            raise TraceError(f"{TOKENS} holds offsets that are out of range or order; record the trace again.")

    @property
    def length(self) -> int:
        """Tokens of the prompt."""
        return self.meta["prompt"]["tokens"]

    @property
    def layers(self) -> int:
        return self.meta["model"]["layers"]

    @property
    def heads(self) -> int:
        return self.meta["model"]["heads"]

    @property
    def kv_heads(self) -> int:
        return self.meta["model"]["kv_heads"]

    @property
    def level(self) -> str:
        """How much was recorded: "summary", "explore" or "pinned" (see `trace_levels`)."""
        return self.meta["level"]

    @cached_property
    def config(self) -> SampleAttentionConfig:
        """The settings of the sparse run."""
        return SampleAttentionConfig.from_dict(self.meta["settings"])

    @cached_property
    def tokens(self) -> list[str]:
        """The text of each token; "" for special tokens. Byte tokens that share a character each give the whole character."""
        return [self.text[begin:end] for begin, end in self.offsets.tolist()]

    @cached_property
    def recorded_layers(self) -> list[int]:
        """The layers that were analysed and can be drawn."""
        return [layer for layer, entry in self._layer_info.items() if entry["file"] in self._names]

    def layer_reason(self, layer: int) -> str:
        """Why a layer ran dense in the sparse run; "" if it ran sparse or is not recorded yet."""
        return self._layer_info.get(layer, {}).get("reason", "")

    def _layer(self, layer) -> Layer:
        if layer not in self.recorded_layers:
            reason = self.layer_reason(layer) or ("it was not recorded" if self.complete else "the recording stopped before it")
            raise TraceError(f"Layer {layer} has no picture ({reason}); choose another layer.")
        if layer not in self._layers:
            kind = Layer if self.meta["schema"] >= 3 else OldLayer
            file, config = self._file(self._layer_info[layer]["file"]), self.config
            self._layers[layer] = kind(file, layer, self._sizes, config.block_size, config.last_blocks)
        return self._layers[layer]

    def _per_head(self, name):
        if HEADS in self._names:
            return self._file(HEADS).read(name).astype(float)
        values = np.full((self.layers, self.heads), np.nan)
        for layer in self.recorded_layers:
            values[layer] = self._layer(layer).file.read(name)
        return values

    @cached_property
    def density(self) -> np.ndarray:
        """Tiles computed / causal tiles, of the selection from the dense run's q and k. float [layers, heads]"""
        return self._per_head("density")

    @cached_property
    def sparse_run_density(self) -> np.ndarray:
        """The density that the sparse run had. float [layers, heads]"""
        values = np.full((self.layers, self.heads), np.nan)
        for layer, entry in self._layer_info.items():
            if entry["sparse_run_density"]:
                values[layer] = entry["sparse_run_density"]
        return values

    @cached_property
    def cra(self) -> np.ndarray:
        """The least recall over all rows: exact. float [layers, heads]"""
        return self._per_head("cra")

    @cached_property
    def sampled_cra(self) -> np.ndarray:
        """The least recall over the sampled rows. float [layers, heads]"""
        return self._per_head("sampled_cra")

    @cached_property
    def output_error(self) -> np.ndarray:
        """|sparse - dense| / |dense| of each head's output on the dense run's q, k, v. float [layers, heads]"""
        return self._per_head("output_error")

    @cached_property
    def oracle_density(self) -> np.ndarray:
        """The density of the fewest tiles (greedy) that bring every row to the target. float [layers, heads]"""
        return self._per_head("oracle_density")

    @cached_property
    def rows_at_target(self) -> np.ndarray:
        """The share of all rows whose recall reaches the target. float [layers, heads]"""
        return self._per_head("rows_at_target")

    @cached_property
    def recall_reached(self) -> np.ndarray:
        """The recall that `rows_at_target` of all rows reach: exact. float [layers, heads]"""
        if self.meta["schema"] >= 3:
            return self._per_head("recall_reached")
        values = np.full((self.layers, self.heads), np.nan)
        for layer in self.recorded_layers:
            for head in range(self.heads):
                values[layer, head] = reached_by(self.recall(layer, head), self.config.rows_at_target)
        return values

    @cached_property
    def recall_of_99(self) -> np.ndarray:
        """The recall that 99% of all rows reach: exact at every level, from the layers' files. float [layers, heads]"""
        values, place = np.full((self.layers, self.heads), np.nan), SHARES.index(0.01)
        for layer in self.recorded_layers:
            values[layer] = [self.recall_quantiles(layer, head)[place] for head in range(self.heads)]
        return values

    @cached_property
    def columns_kept(self) -> np.ndarray:
        """How many columns are kept in any segment; 0 where not recorded. int [layers, heads]"""
        return self._count("columns")

    @cached_property
    def slashes_kept(self) -> np.ndarray:
        """How many slashes are kept in any segment; 0 where not recorded. int [layers, heads]"""
        return self._count("slashes")

    def _count(self, name):
        if HEADS in self._names:
            return self._file(HEADS).read(f"{name}_kept")
        counts = np.zeros((self.layers, self.heads), int)
        for layer in self.recorded_layers:
            for head in range(self.heads):
                counts[layer, head] = getattr(self._layer(layer), name)(head).any(axis=0).sum()
        return counts

    @property
    def overview_cells(self) -> int:
        """The cells along a side of `overview`."""
        return self._sizes["side"]

    def overview(self, layer: int, head: int) -> np.ndarray:
        """The largest weight of each cell of the whole map. float32 [h, h], h = min(512, N)

        At the level "summary" h = min(64, N), and weights are rounded: their square roots to 1/255.
        """
        return self._layer(layer).overview(head)

    def overview_missed(self, layer: int, head: int) -> np.ndarray:
        """The overview in those cells that touch dropped tiles only, 0 elsewhere: what is surely missed. float32 [h, h]"""
        overview, mask = self.overview(layer, head), self._kept(layer, head)
        edges = np.arange(len(overview) + 1) * self.length // len(overview)
        first, last = edges[:-1] // self.config.block_size, (edges[1:] - 1) // self.config.block_size
        for axis in (0, 1):
            tiles = mask
            mask = tiles.take(first, axis)
            for further in range(1, int((last - first).max()) + 1):
                mask |= tiles.take(np.minimum(first + further, last), axis)
        return np.where(mask, np.float32(0), overview)

    def recall(self, layer: int, head: int) -> np.ndarray:
        """The exact recall of every row, or the least of some rows together where that is kept (`recall_parts`). float32 [N]"""
        name = pinned_query(layer, head)
        if name in self._names and "recall" in self._file(name).described:
            return self._file(name).read("recall")
        return self._layer(layer).recall(head)

    def recall_parts(self, layer: int, head: int) -> int:
        """Into how many equal parts of the rows (`recall.cell_edges`) `recall` is cut, each its least row: N is every row."""
        name = pinned_query(layer, head)
        if name in self._names and "recall" in self._file(name).described:
            return self.length
        return self._layer(layer).track

    def recall_quantiles(self, layer: int, head: int) -> np.ndarray:
        """The recall that all rows but each of `recall.SHARES` reach: exact at every level. float32 [9]"""
        return self._layer(layer).recall_quantiles(head)

    def block_mask(self, layer: int, head: int) -> np.ndarray:
        """The tiles that are computed. bool [query blocks, key blocks]"""
        return self._kept(layer, head).copy()

    def _unpacked_mask(self, layer, head):
        return self._layer(layer).block_mask(head)

    def columns(self, layer: int, head: int) -> np.ndarray:
        """The key blocks kept as columns in any segment, ascending."""
        return np.flatnonzero(self._layer(layer).columns(head).any(axis=0))

    def slashes(self, layer: int, head: int) -> np.ndarray:
        """The slashes (query block - key block) kept in any segment, ascending."""
        return np.flatnonzero(self._layer(layer).slashes(head).any(axis=0))

    def column_mass(self, layer: int, head: int) -> np.ndarray:
        """The share of all rows' mass in each key block. float32 [key blocks]"""
        return self._layer(layer).numbers("column_mass", head)

    def slash_mass(self, layer: int, head: int) -> np.ndarray:
        """The share of all rows' mass in each slash. float32 [slashes]"""
        return self._layer(layer).numbers("slash_mass", head)

    def rows(self, layer: int) -> np.ndarray:
        """The sampled rows whose tile masses are recorded; none at the level "summary". int32 [R]"""
        return self._layer(layer).rows()

    def tile_masses(self, layer: int, head: int) -> np.ndarray:
        """The mass in each tile of the sampled rows. float32 [R, key blocks]"""
        return self._layer(layer).tile_masses(head)

    @cached_property
    def estimate_table(self) -> EstimateTable | None:
        """The answers to other settings that were made when recording, [layers, heads, ...]; None if there are none."""
        files = {layer: self._file(name) for layer in self.recorded_layers if (name := estimates_file(layer)) in self._names}
        if not files:
            return None
        numbers = np.full((len(FIELDS), self.layers, self.heads, len(KINDS), len(TARGETS)), np.nan, np.float32)
        for layer, file in files.items():
            numbers[:, layer] = [file.read(name) for name in FIELDS]
            if not ((numbers[:, layer] >= 0) & (numbers[:, layer] <= 1)).all():
                raise TraceError(f"Layer {layer} holds estimates that are no shares; record the trace again.")
        rows = max(int(file.read("rows")[0]) for file in files.values())
        return EstimateTable(**dict(zip(FIELDS, numbers, strict=True)), rows=rows, settings=self.config)

    def label(self, layer: int, head: int) -> str:
        """The head's pattern (see `patterns.label_heads`); "" if the layer was not analysed."""
        labels = self._layer_info.get(layer, {}).get("labels") or []
        return labels[head] if labels else ""

    def pinned(self, layer: int, head: int) -> bool:
        """Whether the head's q and k were kept, so that `window` works."""
        if layer not in self.recorded_layers or not 0 <= head < self.heads:
            return False
        names = pinned_query(layer, head), pinned_key(layer, self._kv_head(head))
        old = self.meta["schema"] < 3 and "q" in self._layer(layer).file.described
        return old or all(name in self._names for name in names)

    def _kv_head(self, head):
        return head // (self.heads // self.kv_heads)

    def _read_pinned(self, layer, head, rows, cols):
        if not self.pinned(layer, head):
            raise TraceError(
                f"Layer {layer}, head {head} was recorded without its q and k; pin it (python -m sampleattn pin) to see windows."
            )
        query, key = pinned_query(layer, head), pinned_key(layer, self._kv_head(head))
        if query in self._names:
            queries, keys = self._file(query), self._file(key)
            return queries.read("q", rows=rows), keys.read("k", rows=cols), queries.read("lse", rows=rows)
        file = self._layer(layer).file
        return file.read("q", head, rows), file.read("k", self._kv_head(head), cols), file.read("lse", head, rows)

    def queries_and_keys(self, layer: int, head: int) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """q and k [N, D] and the rows' logsumexp [N] of a pinned head, as recorded. Raises TraceError if it is not pinned."""
        every = (0, self.length)
        return self._read_pinned(layer, head, every, every)

    def scale(self, layer: int) -> float:
        """The factor of q.k in the layer."""
        scale = self._layer_info[layer]["scale"]
        return self._sizes["D"] ** -0.5 if scale is None else scale

    def window(self, layer: int, head: int, rows: tuple, cols: tuple, shape: tuple, reduce: str = "max") -> np.ndarray:
        """The exact weights of rows r0..r1 and columns c0..c1, pooled to at most shape (h, w) cells. float32 [h, w]

        Cell (a, b) covers rows r0 + a*n//h .. r0 + (a+1)*n//h - 1, n = r1 - r0, and columns alike. reduce: "max", "mean" or "sum"
        over the cell; weights above the diagonal are 0.
        Raises TraceError if the head is not pinned, ValueError for a bad window.
        """
        return self.window_planes(layer, head, rows, cols, shape, reduce)[0]

    def window_planes(self, layer, head, rows, cols, shape=None, reduce="max", cell=1) -> tuple[np.ndarray, np.ndarray]:
        """(weights, missed) of a window: `window`, and the same of the weights outside the kept tiles only.

        Without a shape, cells are `cell` tokens wide from r0 and c0 on.
        """
        if not (0 <= rows[0] < rows[1] <= self.length and 0 <= cols[0] < cols[1] <= self.length):
            raise ValueError(f"the window rows {rows}, columns {cols} does not lie within {self.length} tokens")
        if self.accelerator is not None and self.accelerator.ready and self.pinned(layer, head):
            planes = self.accelerator.planes(self, layer, head, rows, cols, shape, reduce, cell)
            if planes is not None:
                return planes
        q, k, lse = self._read_pinned(layer, head, rows, cols)
        mask, block = self._kept(layer, head), self.config.block_size
        return attention_window(q, k, lse, self.scale(layer), rows, cols, shape, reduce, mask, block, cell)

    @cached_property
    def output(self) -> TraceOutput | None:
        """What both runs predict; None if the recording stopped before it."""
        if OUTPUT not in self._names:
            return None
        return read_output(self._file(OUTPUT), self.meta["output"])

    def save(self, path) -> Path:
        """Copy the trace to a folder, or into one zip if the path ends in .zip; an older trace there stays until it is whole.

        Raises TraceError if a file of this trace is damaged, or if something that is no trace is in the way.
        """
        for name in self._names:
            self._file(name)
        path = Path(path)
        with trace_errors(str(path)):
            save_files(self._source, [META, *self._names], path)
        return path
