"""What a trace may hold: the names, dtypes and shapes of its files. Numpy only.

The reader and the writer use the same tables, so what is written can be read and nothing else is accepted.
"""

from __future__ import annotations

import re

import numpy as np

from sampleattn.estimate_table import FIELDS, KINDS, TARGETS

SCHEMA = 3
READABLE = (1, 2, 3)
LEVELS = ("summary", "explore", "pinned")
META, TOKENS, HEADS, OUTPUT = "meta.json", "tokens.safetensors", "heads.safetensors", "output.safetensors"
FILE_NAME = re.compile(r"(tokens|heads|output|layers/\d{3}|estimates/\d{3}|pinned/\d{3}_[qk]\d{4})\.safetensors")
FOLDERS = ("layers/", "estimates/", "pinned/")

OVERVIEW, THUMBNAIL = 512, 64
# Up to this length, recall is kept of every row and 512 sampled rows; beyond it, recall per overview row and 128 sampled rows.
FULL_TOKENS = 16_384
SAMPLED, FEWER_SAMPLED = 512, 128

MAX_LAYERS, MAX_HEADS, MAX_HEAD_DIM, MAX_TOKENS, MAX_BLOCKS = 999, 1024, 1024, 1 << 21, 1 << 14
# The most that the sizes which meta.json does not fix may be: bytes of text, vocabulary, tokens of a continuation.
MOST = {"characters": 1 << 28, "V": 1 << 22, "T": 1 << 16}

DTYPES = {"F32": np.float32, "F16": np.float16, "I32": np.int32, "U8": np.uint8, "BOOL": np.bool_}
_CODES = {np.dtype(dtype): code for code, dtype in DTYPES.items()}

NUMBERS = ("density", "cra", "sampled_cra", "output_error", "oracle_density", "rows_at_target", "recall_reached")
OLD_NUMBERS = tuple(name for name in NUMBERS if name != "recall_reached")

# name: (dtypes, shape). A letter is a size that meta.json fixes (see `sizes`), or a free one that is the same all over the file.
# What the analysis of a layer gives, before a level decides how much of it is kept:
ANALYSED_ARRAYS = {
    "overview": ("F16", "H h h"),
    "recall": ("F32", "H N"),
    "block_mask": ("BOOL", "H kb kb"),
    "columns": ("BOOL", "H S kb"),
    "slashes": ("BOOL", "H S kb"),
    "column_mass": ("F32", "H kb"),
    "slash_mass": ("F32", "H kb"),
    "rows": ("I32", "R"),
    "tile_masses": ("F16 F32", "H R kb"),
    **dict.fromkeys(NUMBERS, ("F32", "H")),
}
# What a layer's file holds, packed by `trace_levels`:
LAYER_ARRAYS = {
    "overview": ("F16", "H cells"),
    "recall": ("F32", "H track"),
    "recall_quantiles": ("F32", "H 9"),
    "block_mask": ("U8", "H tiles"),
    "columns": ("U8", "H S bytes"),
    "slashes": ("U8", "H S bytes"),
    "column_mass": ("F32", "H kb"),
    "slash_mass": ("F32", "H kb"),
    "rows": ("I32", "R"),
    "tile_masses": ("F16", "H sampled"),
    **dict.fromkeys(NUMBERS, ("F32", "H")),
}
SUMMARY_ARRAYS = {name: LAYER_ARRAYS[name] for name in LAYER_ARRAYS if name not in ("block_mask", "rows", "tile_masses")} | {
    "overview": ("U8", "H cells"),
    "column_mass": ("F16", "H kb"),
    "slash_mass": ("F16", "H kb"),
}
# The answers of a layer's heads to other settings (see `estimate_table`), and how many sampled rows they come from.
ESTIMATE_ARRAYS = {**dict.fromkeys(FIELDS, ("F32", f"H {len(KINDS)} {len(TARGETS)}")), "rows": ("I32", "1")}
# Schemas 1 and 2 held a layer unpacked.
OLD_LAYER_ARRAYS = {
    "overview": ("F16", "H h h"),
    "recall": ("F32", "H N"),
    "block_mask": ("U8", "H kb bytes"),
    "columns": ("U8", "H S kb"),
    "slashes": ("U8", "H S kb"),
    "column_mass": ("F32", "H kb"),
    "slash_mass": ("F32", "H kb"),
    "rows": ("I32", "R"),
    "tile_masses": ("F16", "H R kb"),
    **dict.fromkeys(OLD_NUMBERS, ("F32", "H")),
}
# Schema 1 kept q, k and lse of a whole layer among the arrays of its file.
OLD_PINNED_ARRAYS = {"q": ("F16 F32", "H N D"), "k": ("F16 F32", "K N D"), "lse": ("F32", "H N")}
PINNED_QUERY = {"q": ("F16 F32", "N D"), "lse": ("F32", "N")}
PINNED_RECALL = {"recall": ("F32", "N")}
PINNED_KEY = {"k": ("F16 F32", "N D")}
TOKEN_ARRAYS = {"ids": ("I32", "N"), "offsets": ("I32", "N 2"), "text": ("U8", "characters")}
# The numbers of all heads once more, so that a large trace opens without its layers being read; NaN and 0 where not analysed.
HEAD_ARRAYS = {**dict.fromkeys(NUMBERS, ("F32", "L H")), **dict.fromkeys(("columns_kept", "slashes_kept"), ("I32", "L H"))}
OLD_HEAD_ARRAYS = {name: HEAD_ARRAYS[name] for name in HEAD_ARRAYS if name != "recall_reached"}
OUTPUT_ARRAYS = {
    "logits_dense": ("F32", "V"),
    "logits_sparse": ("F32", "V"),
    "continuation_dense": ("I32", "T"),
    "continuation_sparse": ("I32", "T"),
    "continuation_kl": ("F32", "T"),
    "positions": ("I32", "P"),
    "kl": ("F32", "P"),
    "top1_equal": ("U8", "P"),
    "nll_dense": ("F32", "P"),
    "nll_sparse": ("F32", "P"),
}


class TraceError(ValueError):
    """A trace that can't be read or written; the message is one sentence that says what to do."""


def layer_file(layer: int) -> str:
    return f"layers/{layer:03d}.safetensors"


def estimates_file(layer: int) -> str:
    """The file with the answers of a layer's heads to other settings."""
    return f"estimates/{layer:03d}.safetensors"


def pinned_query(layer: int, head: int) -> str:
    """The file with the q and lse of a pinned head."""
    return f"pinned/{layer:03d}_q{head:04d}.safetensors"


def pinned_key(layer: int, kv_head: int) -> str:
    """The file with the k of a key-value head that pinned heads read."""
    return f"pinned/{layer:03d}_k{kv_head:04d}.safetensors"


def sizes(meta: dict) -> dict[str, int]:
    """The sizes that meta fixes: layers L, heads H, kv heads K, tokens N, head_dim D, key blocks kb, their packed bytes; overview
    h; as stored: its side, the cells of its triangle, the recall track, and the packed bytes of a triangle of tiles."""
    model, tokens = meta["model"], meta["prompt"]["tokens"]
    blocks = -(-tokens // meta["settings"]["block_size"])
    side = min(THUMBNAIL if meta["level"] == "summary" else OVERVIEW, tokens)
    return {
        "L": model["layers"],
        "H": model["heads"],
        "K": model["kv_heads"],
        "D": model["head_dim"],
        "N": tokens,
        "kb": blocks,
        "bytes": -(-blocks // 8),
        "h": min(OVERVIEW, tokens),
        "side": side,
        "cells": side * (side + 1) // 2,
        "track": tokens if tokens <= FULL_TOKENS and meta["level"] != "summary" else side,
        "tiles": -(-blocks * (blocks + 1) // 16),
    }


def check_arrays(found: dict[str, tuple[str, tuple]], table: dict, fixed: dict[str, int], where: str) -> None:
    """Raise TraceError unless `found` (name -> dtype code, shape) holds the arrays of `table`, with shapes that agree."""
    if set(found) != set(table):
        odd = sorted(set(found) ^ set(table))[0]
        fault = "lacks the array" if odd in table else "holds the unknown array"
        raise TraceError(f"{where} {fault} {odd[:40]!r}; record the trace again.")
    known = dict(fixed)
    for name, (codes, dims) in table.items():
        code, shape = found[name]
        dims = dims.split()
        if code not in codes.split():
            raise TraceError(f"{where} holds {name!r} as {code} instead of {codes}; record the trace again.")
        wanted = [int(dim) if dim.isdigit() else known.get(dim) for dim in dims]
        if len(shape) != len(dims) or any(want not in (None, have) for want, have in zip(wanted, shape, strict=False)):
            raise TraceError(f"{where} holds {name!r} with a shape that does not fit meta.json; record the trace again.")
        known.update({dim: have for dim, have in zip(dims, shape, strict=True) if not dim.isdigit()})
    for dim, most in MOST.items():
        if known.get(dim, 0) > most:
            raise TraceError(f"{where} holds an array of {known[dim]:,}, more than {most:,}; record the trace again.")
    if known.get("R", 0) > known.get("N", 0) or known.get("S", 1) > max(known.get("kb", 1), 1):
        raise TraceError(f"{where} holds more sampled rows or segments than tokens; record the trace again.")


def layer_table(meta: dict, arrays) -> dict:
    """The arrays that a layer's file must hold, by meta's schema and level, and the names of the arrays found in it."""
    if meta["schema"] >= 3:
        return SUMMARY_ARRAYS if meta["level"] == "summary" else LAYER_ARRAYS
    return OLD_LAYER_ARRAYS | (OLD_PINNED_ARRAYS if OLD_PINNED_ARRAYS.keys() & set(arrays) else {})


def table_of(file: str, meta: dict, arrays) -> dict:
    """The arrays that a file of a trace must hold, by its name, the trace's meta and the names of the arrays found in it."""
    if file == HEADS:
        return HEAD_ARRAYS if meta["schema"] >= 3 else OLD_HEAD_ARRAYS
    if file in (TOKENS, OUTPUT):
        return TOKEN_ARRAYS if file == TOKENS else OUTPUT_ARRAYS
    if file.startswith("estimates/"):
        return ESTIMATE_ARRAYS
    if file.startswith("pinned/"):
        return PINNED_KEY if "_k" in file else PINNED_QUERY | (PINNED_RECALL if "recall" in arrays else {})
    return layer_table(meta, arrays)


def describe(arrays: dict[str, np.ndarray]) -> dict[str, tuple[str, tuple]]:
    """Name -> (dtype code, shape) of arrays in memory, for `check_arrays`."""
    return {name: (_CODES.get(array.dtype, str(array.dtype)), array.shape) for name, array in arrays.items()}
