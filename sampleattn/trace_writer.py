"""TraceWriter: a trace's folder, written file by file so that what is there can be read after a crash. No torch."""

from __future__ import annotations

import datetime
import hashlib
import os
import shutil
import tempfile
import zipfile
from pathlib import Path

import numpy as np
from safetensors.numpy import save as to_safetensors

from sampleattn.trace_files import CHUNK, Folder, read_meta_bytes, write_atomically
from sampleattn.trace_format import (
    DTYPES,
    HEAD_ARRAYS,
    HEADS,
    META,
    NUMBERS,
    OUTPUT,
    PROVENANCE,
    SCHEMA,
    TOKENS,
    TraceError,
    check_arrays,
    describe,
    dump_meta,
    layer_file,
    parse_meta,
    pinned_key,
    pinned_query,
    sizes,
    table_of,
)


class TraceWriter:
    """Writes a trace into `folder`, which must be new or empty.

    meta: dict with model, settings and, where known, machine and prompt {"title"}; the writer fills in the rest.
    ids: int [N]; offsets: int [N, 2], character offsets of each token into `text`.
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
            "created": datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds"),
            **meta,
            "prompt": prompt | {"sha256": hashlib.sha256(data).hexdigest(), "tokens": len(ids), "characters": len(text)},
            "layers": [],
            "timings": {},
            "machine": meta.get("machine", {}),
            "files": {},
            "provenance": PROVENANCE,
            "first_difference": None,
            "summary": {},
            "output": {},
        }
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
        writer.meta = parse_meta(read_meta_bytes(Folder(writer.folder))) | {"schema": SCHEMA}
        return writer

    def write_pin(self, layer: int, head: int, q, lse, k) -> None:
        """Pin a head: q [N, D] and lse [N] of it, k [N, D] of the key-value head it reads; float16 or float32, lse float32."""
        model = self.meta["model"]
        kv_head = head // (model["heads"] // model["kv_heads"])
        if pinned_key(layer, kv_head) not in self.meta["files"]:
            self._write_arrays(pinned_key(layer, kv_head), {"k": k})
        self._write_arrays(pinned_query(layer, head), {"q": q, "lse": lse})
        self._write_meta()

    def write_layer(self, layer: int, arrays: dict | None, info: dict) -> None:
        """One layer of the dense run: its arrays (None if not analysed) and info: labels, scale, seconds, reason, where known."""
        entry = {"layer": layer, "ran": "", "reason": "", "file": None, "labels": [], "seconds": {}, "scale": None, **info}
        entry.setdefault("sparse_run_density", [])
        if arrays is not None:
            entry["file"] = layer_file(layer)
            self._write_arrays(entry["file"], arrays)
            kept = {f"{kind}_kept": np.asarray(arrays[kind]).any(axis=1).sum(axis=-1) for kind in ("columns", "slashes")}
            self._numbers[layer] = {name: arrays[name] for name in NUMBERS} | kept
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
        check_arrays(describe(arrays), table_of(name, arrays), sizes(self.meta), name)
        data = to_safetensors(arrays)
        write_atomically(self.folder / name, data)
        self.meta["files"][name] = {"bytes": len(data), "sha256": hashlib.sha256(data).hexdigest()}

    def _write_meta(self):
        data = dump_meta(self.meta)
        parse_meta(data)
        write_atomically(self.folder / META, data)


def save_files(source, names, path: Path) -> None:
    """Copy the named files of a trace to a folder, or a zip if `path` ends in .zip; what lay there stays until it is whole."""
    path.parent.mkdir(parents=True, exist_ok=True)
    if path.suffix.lower() == ".zip":
        _save_zip(source, names, path)
    else:
        _save_folder(source, names, path)


def _save_zip(source, names, path):
    if path.is_dir():
        raise TraceError(f"{path} is a folder; choose another name for the .zip.")
    handle, temporary = tempfile.mkstemp(prefix=f".{path.name}.", suffix=".tmp", dir=path.parent)
    try:
        with os.fdopen(handle, "wb") as file, zipfile.ZipFile(file, "w", zipfile.ZIP_DEFLATED) as archive:
            for name in names:
                info = zipfile.ZipInfo(name)
                info.compress_type = zipfile.ZIP_DEFLATED
                with source.open(name) as original, archive.open(info, "w", force_zip64=True) as copy:
                    shutil.copyfileobj(original, copy, CHUNK)
        os.chmod(temporary, 0o644)
        os.replace(temporary, path)
    finally:
        Path(temporary).unlink(missing_ok=True)


def _save_folder(source, names, path):
    if path.exists() and not path.is_dir():
        raise TraceError(f"{path} is a file; choose another name, or one that ends in .zip.")
    if path.is_dir() and any(path.iterdir()) and not (path / META).is_file():
        raise TraceError(f"{path} is a folder with other things in it; choose another name.")
    temporary = Path(tempfile.mkdtemp(prefix=f".{path.name}.", suffix=".tmp", dir=path.parent))
    previous = temporary / "previous"
    try:
        fresh = temporary / "fresh"
        for name in names:
            (fresh / name).parent.mkdir(parents=True, exist_ok=True)
            with source.open(name) as original, open(fresh / name, "wb") as copy:
                shutil.copyfileobj(original, copy, CHUNK)
        if path.exists():
            os.replace(path, previous)
        os.replace(fresh, path)
    except BaseException:
        if previous.exists() and not path.exists():
            os.replace(previous, path)
        raise
    finally:
        shutil.rmtree(temporary, ignore_errors=True)
