"""TraceWriter: a trace's folder, written file by file so that what is there can be read after a crash. No torch."""

from __future__ import annotations

import datetime
import hashlib
from pathlib import Path

import numpy as np
from safetensors.numpy import save as to_safetensors

from sampleattn import trace_levels
from sampleattn.trace_files import ArrayFile, Folder, read_meta_bytes, write_atomically
from sampleattn.trace_format import (
    ANALYSED_ARRAYS,
    DTYPES,
    HEAD_ARRAYS,
    HEADS,
    META,
    NUMBERS,
    OUTPUT,
    SCHEMA,
    TOKENS,
    TraceError,
    check_arrays,
    describe,
    estimates_file,
    layer_file,
    pinned_key,
    pinned_query,
    sizes,
    table_of,
)
from sampleattn.trace_layer import Layer
from sampleattn.trace_meta import dump_meta, parse_meta, provenance

PIECES = ("columns", "slashes")
SAME = ("level", "model", "settings")
SAME_MACHINE = ("device", "dtype", "backend")


class TraceWriter:
    """Writes a trace into `folder`, which must be new or empty.

    meta: dict with model, settings and, where known, level ("explore" if not given), machine and prompt {"title"}; the writer
    fills in the rest. ids: int [N]; offsets: int [N, 2], character offsets of each token into `text`.
    Raises TraceError if the folder is in use, or if what is to be written does not fit ARCHITECTURE.md's trace.
    """

    def __init__(self, folder, meta: dict, ids, offsets, text: str):
        self.folder = Path(folder)
        if self.folder.exists() and (not self.folder.is_dir() or any(self.folder.iterdir())):
            raise TraceError(f"{self.folder} already exists and is not an empty folder; choose another name.")
        data = text.encode("utf-8")
        prompt = {"title": "", **meta.get("prompt", {})}
        self.meta = {
            "schema": SCHEMA,
            "state": "recording",
            "level": "explore",
            "created": datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds"),
            **meta,
            "prompt": prompt | {"sha256": hashlib.sha256(data).hexdigest(), "tokens": len(ids), "characters": len(text)},
            "layers": [],
            "timings": {},
            "machine": meta.get("machine", {}),
            "files": {},
            "provenance": {},
            "first_difference": None,
            "summary": {},
            "output": {},
        }
        self.meta["provenance"] = provenance(self.meta["level"], len(ids))
        ids, offsets = np.asarray(ids, np.int32), np.asarray(offsets, np.int32)
        arrays = {"ids": ids, "offsets": offsets, "text": np.frombuffer(data, np.uint8)}
        self._numbers = {}
        self._write_arrays(TOKENS, arrays)
        self._write_meta()

    @classmethod
    def reopen(cls, folder) -> TraceWriter:
        """A writer for a trace that lies in `folder` already: what it writes is added. Raises TraceError if there is none."""
        writer = cls.__new__(cls)
        writer.folder = Path(folder)
        meta = parse_meta(read_meta_bytes(Folder(writer.folder)))
        writer.meta = meta | {"schema": max(meta["schema"], 2)}
        return writer

    @classmethod
    def resume(cls, folder, meta: dict, ids) -> TraceWriter:
        """A writer that goes on with the unfinished recording in `folder`, of the same ids [N] and the meta that began it.

        Layers whose files are not whole are forgotten. Raises TraceError if there is no recording, it is complete, or it is
        another one's: other prompt, model, settings, level, device, dtype or backend.
        """
        writer = cls.reopen(folder)
        if writer.meta["state"] == "complete":
            raise TraceError(f"The recording in {folder} is complete, so there is nothing to go on with.")
        machine = {name: meta.get("machine", {}).get(name) for name in SAME_MACHINE}
        for name, value in ({"schema": SCHEMA} | {name: meta[name] for name in SAME} | machine).items():
            found = writer.meta["machine"].get(name) if name in machine else writer.meta[name]
            if found != value:
                raise TraceError(
                    f"The recording in {folder} has another {name}; give it the same one, or record under a new name."
                )
        if not np.array_equal(writer._open(TOKENS).read("ids"), ids):
            raise TraceError(f"The recording in {folder} is of another prompt; give it the same one, or record under a new name.")
        writer._numbers = {}
        for entry in list(writer.meta["layers"]):
            try:
                writer._numbers[entry["layer"]] = writer._stored_numbers(entry)
            except TraceError:
                writer.meta["layers"].remove(entry)
        writer._write_meta()
        return writer

    @property
    def analysed(self) -> list[int]:
        """The layers that are written, with their arrays."""
        return sorted(self._numbers)

    def _open(self, name):
        listed = self.meta["files"][name]
        file = ArrayFile(Folder(self.folder), name, listed["bytes"], listed["sha256"])
        check_arrays(file.described, table_of(name, self.meta, file.described), sizes(self.meta), name)
        return file

    def _stored_numbers(self, entry):
        if entry["file"] is None:
            raise TraceError(f"Layer {entry['layer']} was not analysed; record the trace again.")
        if (answers := estimates_file(entry["layer"])) in self.meta["files"]:
            self._open(answers)
        file, fixed = self._open(entry["file"]), sizes(self.meta)
        layer = Layer(file, entry["layer"], fixed, self.meta["settings"]["block_size"], 0)
        pieces = {kind: np.stack([getattr(layer, kind)(head) for head in range(fixed["H"])]) for kind in PIECES}
        return _numbers({name: file.read(name) for name in NUMBERS} | pieces)

    def write_pin(self, layer: int, head: int, q, lse, k, recall=None) -> None:
        """Pin a head: q [N, D] and lse [N] of it, k [N, D] of the key-value head it reads; float16 or float32, lse float32.

        recall: float32 [N] of its rows; kept where the layer's file holds less.
        """
        model = self.meta["model"]
        kv_head = head // (model["heads"] // model["kv_heads"])
        if pinned_key(layer, kv_head) not in self.meta["files"]:
            self._write_arrays(pinned_key(layer, kv_head), {"k": k})
        reduced = self.meta["schema"] >= 3 and sizes(self.meta)["track"] < len(q)
        more = {"recall": recall} if reduced and recall is not None else {}
        self._write_arrays(pinned_query(layer, head), {"q": q, "lse": lse} | more)
        if self.meta["level"] == "explore":
            self.meta["level"] = "pinned"
        self._write_meta()

    def write_estimates(self, layer: int, arrays: dict) -> None:
        """The answers of a layer's heads to other settings, `trace_format.ESTIMATE_ARRAYS`. Before `write_layer`, with which the
        layer is done."""
        self._write_arrays(estimates_file(layer), arrays)

    def write_layer(self, layer: int, arrays: dict | None, info: dict) -> None:
        """One layer of the dense run: what its analysis gave (`trace_format.ANALYSED_ARRAYS`; None if not analysed), of which the
        trace's level keeps its part; and info: labels, scale, seconds, reason, where known."""
        entry = {"layer": layer, "ran": "", "reason": "", "file": None, "labels": [], "seconds": {}, "scale": None, **info}
        entry.setdefault("sparse_run_density", [])
        if arrays is not None:
            entry["file"], fixed = layer_file(layer), sizes(self.meta)
            check_arrays(describe(arrays), ANALYSED_ARRAYS, fixed, f"layer {layer}")
            block = self.meta["settings"]["block_size"]
            self._write_arrays(entry["file"], trace_levels.pack(arrays, fixed, self.meta["level"], block))
            self._numbers[layer] = _numbers(arrays)
        others = [other for other in self.meta["layers"] if other["layer"] != layer]
        self.meta["layers"] = sorted([*others, entry], key=lambda entry: entry["layer"])
        self._write_meta()

    def write_sparse_run(self, layers: dict[int, dict]) -> None:
        """What the sparse run did: layer -> {ran, reason, sparse_run_density, seconds}, added to what is known of it."""
        for entry in self.meta["layers"]:
            known = layers.get(entry["layer"], {})
            entry.update(known | {"seconds": entry["seconds"] | known.get("seconds", {})})
        self._write_meta()

    def write_output(self, arrays: dict, texts: dict | None = None) -> None:
        """What both runs predict: arrays as in OUTPUT_ARRAYS; texts as `Trace.output` has them (*_text, next_tokens)."""
        self._write_arrays(OUTPUT, arrays)
        differs = np.flatnonzero(np.asarray(arrays["continuation_dense"]) != np.asarray(arrays["continuation_sparse"]))
        self.meta["first_difference"] = int(differs[0]) if differs.size else None
        self.meta["output"] = texts or {}
        self._write_meta()

    def update(self, **fields) -> None:
        """Put fields such as timings, machine or summary into meta.json."""
        self.meta.update(fields)
        self._write_meta()

    def finish(self, **fields) -> None:
        """The trace is complete: every layer and the output were written."""
        shape = self.meta["model"]["layers"], self.meta["model"]["heads"]
        table = {name: np.full(shape, np.nan if name in NUMBERS else 0, DTYPES[code]) for name, (code, _) in HEAD_ARRAYS.items()}
        for layer, numbers in self._numbers.items():
            for name, values in numbers.items():
                table[name][layer] = values
        self._write_arrays(HEADS, table)
        self.update(**fields, state="complete")

    def _write_arrays(self, name, arrays):
        arrays = {key: np.ascontiguousarray(array) for key, array in arrays.items()}
        check_arrays(describe(arrays), table_of(name, self.meta, arrays), sizes(self.meta), name)
        data = to_safetensors(arrays)
        write_atomically(self.folder / name, data)
        self.meta["files"][name] = {"bytes": len(data), "sha256": hashlib.sha256(data).hexdigest()}

    def _write_meta(self):
        data = dump_meta(self.meta)
        parse_meta(data)
        write_atomically(self.folder / META, data)


def _numbers(arrays):
    """A layer's rows of HEAD_ARRAYS."""
    return {name: arrays[name] for name in NUMBERS} | {f"{kind}_kept": arrays[kind].any(axis=1).sum(axis=-1) for kind in PIECES}
