"""What a trace may hold: the names, dtypes and shapes of its files, and the checks of its meta.json. Numpy only.

The reader and the writer use the same tables, so what is written can be read and nothing else is accepted.
"""

from __future__ import annotations

import hashlib
import json
import math
import re

import numpy as np

from sampleattn.config import SampleAttentionConfig

SCHEMA = 2
READABLE = (1, 2)
META, TOKENS, HEADS, OUTPUT = "meta.json", "tokens.safetensors", "heads.safetensors", "output.safetensors"
FILE_NAME = re.compile(r"(tokens|heads|output|layers/\d{3}|pinned/\d{3}_[qk]\d{4})\.safetensors")
FOLDERS = ("layers/", "pinned/")
OVERVIEW = 512

MAX_META_BYTES = 16 << 20
MAX_LAYERS, MAX_HEADS, MAX_HEAD_DIM, MAX_TOKENS = 999, 1024, 8192, 1 << 26

DTYPES = {"F32": np.float32, "F16": np.float16, "I32": np.int32, "U8": np.uint8}
_CODES = {np.dtype(dtype): code for code, dtype in DTYPES.items()}

NUMBERS = ("density", "cra", "sampled_cra", "output_error", "oracle_density", "rows_at_target")

# name: (dtypes, shape). A letter is a size that meta.json fixes (see `sizes`), or a free one that is the same all over the file.
LAYER_ARRAYS = {
    "overview": ("F16", "H h h"),
    "recall": ("F32", "H N"),
    "block_mask": ("U8", "H kb bytes"),
    "columns": ("U8", "H S kb"),
    "slashes": ("U8", "H S kb"),
    "column_mass": ("F32", "H kb"),
    "slash_mass": ("F32", "H kb"),
    "rows": ("I32", "R"),
    "tile_masses": ("F16", "H R kb"),
    **dict.fromkeys(NUMBERS, ("F32", "H")),
}
PINNED_QUERY = {"q": ("F16 F32", "N D"), "lse": ("F32", "N")}
PINNED_KEY = {"k": ("F16 F32", "N D")}
# Schema 1 kept q, k and lse of a whole layer among the arrays of its file.
PINNED_ARRAYS = {"q": ("F16 F32", "H N D"), "k": ("F16 F32", "K N D"), "lse": ("F32", "H N")}
TOKEN_ARRAYS = {"ids": ("I32", "N"), "offsets": ("I32", "N 2"), "text": ("U8", "characters")}
# The numbers of all heads once more, so that a large trace opens without its layers being read; NaN and 0 where not analysed.
HEAD_ARRAYS = {**dict.fromkeys(NUMBERS, ("F32", "L H")), **dict.fromkeys(("columns_kept", "slashes_kept"), ("I32", "L H"))}
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

PROVENANCE = {
    **dict.fromkeys(("overview", "recall", "cra", "rows_at_target", "oracle_density"), ("exact", "dense")),
    **dict.fromkeys(("column_mass", "slash_mass", "output_error"), ("exact", "dense")),
    **dict.fromkeys(("tile_masses", "sampled_cra"), ("sampled", "dense")),
    **dict.fromkeys(("block_mask", "columns", "slashes", "density"), ("exact", "dense")),
    "sparse_run_density": ("exact", "sparse"),
    **dict.fromkeys(("logits", "continuation", "kl", "nll"), ("exact", "both")),
    "timings": ("recorded", "both"),
}
PROVENANCE = {name: {"kind": kind, "run": run} for name, (kind, run) in PROVENANCE.items()}


class TraceError(ValueError):
    """A trace that can't be read or written; the message is one sentence that says what to do."""


def layer_file(layer: int) -> str:
    return f"layers/{layer:03d}.safetensors"


def pinned_query(layer: int, head: int) -> str:
    """The file with the q and lse of a pinned head."""
    return f"pinned/{layer:03d}_q{head:04d}.safetensors"


def pinned_key(layer: int, kv_head: int) -> str:
    """The file with the k of a key-value head that pinned heads read."""
    return f"pinned/{layer:03d}_k{kv_head:04d}.safetensors"


def sizes(meta: dict) -> dict[str, int]:
    """The sizes that meta fixes: layers L, heads H, kv heads K, tokens N, head_dim D, key blocks kb, packed bytes, overview h."""
    model, tokens = meta["model"], meta["prompt"]["tokens"]
    blocks = -(-tokens // meta["settings"]["block_size"])
    return {
        "L": model["layers"],
        "H": model["heads"],
        "K": model["kv_heads"],
        "D": model["head_dim"],
        "N": tokens,
        "kb": blocks,
        "bytes": -(-blocks // 8),
        "h": min(OVERVIEW, tokens),
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
    if known.get("R", 0) > known.get("N", 0) or known.get("S", 1) > max(known.get("kb", 1), 1):
        raise TraceError(f"{where} holds more sampled rows or segments than tokens; record the trace again.")


def layer_table(names) -> dict:
    """The arrays that a layer file must hold: those of every layer, and q, k, lse if schema 1 pinned it."""
    return LAYER_ARRAYS | PINNED_ARRAYS if PINNED_ARRAYS.keys() & set(names) else LAYER_ARRAYS


def table_of(file: str, arrays) -> dict:
    """The arrays that a file of a trace must hold, by its name and the names of the arrays found in it."""
    fixed = {TOKENS: TOKEN_ARRAYS, HEADS: HEAD_ARRAYS, OUTPUT: OUTPUT_ARRAYS}
    if file in fixed:
        return fixed[file]
    if file.startswith("pinned/"):
        return PINNED_QUERY if "_q" in file else PINNED_KEY
    return layer_table(arrays)


def describe(arrays: dict[str, np.ndarray]) -> dict[str, tuple[str, tuple]]:
    """Name -> (dtype code, shape) of arrays in memory, for `check_arrays`."""
    return {name: (_CODES.get(array.dtype, str(array.dtype)), array.shape) for name, array in arrays.items()}


def dump_meta(meta: dict) -> bytes:
    """meta.json with its own checksum. Raises TraceError for a NaN or a value JSON does not know."""
    meta = {key: value for key, value in meta.items() if key != "checksum"}
    try:
        return json.dumps(meta | {"checksum": _checksum(meta)}, indent=1, ensure_ascii=False, allow_nan=False).encode()
    except (ValueError, TypeError) as error:
        raise TraceError(f"meta holds a value that JSON does not know ({error}); leave it out.") from None


def _checksum(meta: dict) -> str:
    canonical = json.dumps(meta, sort_keys=True, separators=(",", ":"), allow_nan=False)
    return hashlib.sha256(canonical.encode()).hexdigest()


def strict_json(data: bytes, where: str) -> dict:
    """A JSON object without NaN, infinities or deep nesting. Raises TraceError."""

    def finite(text):
        value = float(text)
        if not math.isfinite(value):
            raise ValueError(f"{text} is no finite number")
        return value

    try:
        value = json.loads(data.decode("utf-8"), parse_float=finite, parse_constant=finite)
    except RecursionError:
        raise TraceError(f"{where} is nested too deeply to be a trace's; choose another file.") from None
    except ValueError:
        raise TraceError(f"{where} is no valid JSON (damaged or not a trace); copy or record the trace again.") from None
    if not isinstance(value, dict):
        raise TraceError(f"{where} is no JSON object; choose a trace that record wrote.")
    return value


_NUMBER = (int, float)
_TEXT_OR_NONE = (str, type(None))
_META = {
    "state": str,
    "created": str,
    "model": {
        "name": str,
        "revision": _TEXT_OR_NONE,
        "layers": int,
        "heads": int,
        "kv_heads": int,
        "head_dim": int,
        "context": (int, type(None)),
        "parameters": int,
    },
    "settings": dict,
    "prompt": {"sha256": str, "tokens": int, "characters": int, "title": str},
    "layers": list,
    "timings": dict,
    "machine": dict,
    "files": dict,
    "provenance": dict,
    "first_difference": (int, type(None)),
    "summary": dict,
    "output": dict,
}
_LAYER = {
    "layer": int,
    "ran": str,
    "reason": str,
    "sparse_run_density": list,
    "file": _TEXT_OR_NONE,
    "labels": list,
    "seconds": dict,
    "scale": (*_NUMBER, type(None)),
}


def parse_meta(data: bytes) -> dict:
    """The checked meta of a trace. Raises TraceError: newer schema, altered, wrong types, sizes out of range."""
    meta = strict_json(data, META)
    schema = meta.get("schema")
    if type(schema) is not int:
        raise TraceError("meta.json has no schema number, so this is no trace; choose a folder or .zip that record wrote.")
    if schema not in READABLE:
        advice = "update this program" if schema > SCHEMA else "record it again"
        raise TraceError(f"This trace has schema {schema} and this version reads schemas up to {SCHEMA}; {advice}.")
    try:
        if meta.pop("checksum", None) != _checksum(meta):
            raise TraceError("meta.json was altered or damaged (its checksum differs); copy or record the trace again.")
        _check_meta(meta)
    except RecursionError:
        raise TraceError("meta.json is nested too deeply to be a trace's; choose another file.") from None
    return meta


def _check_meta(meta):
    _check_types(meta, _META, "meta.json")
    model, prompt = meta["model"], meta["prompt"]
    for value, most, name in (
        (model["layers"], MAX_LAYERS, "layers"),
        (model["heads"], MAX_HEADS, "heads"),
        (model["kv_heads"], model["heads"], "key-value heads"),
        (model["head_dim"], MAX_HEAD_DIM, "head dimensions"),
        (prompt["tokens"], MAX_TOKENS, "tokens"),
    ):
        _require(1 <= value <= most, f"says {value} {name}, outside 1 to {most}")
    _require(model["heads"] % model["kv_heads"] == 0, "says key-value heads that do not divide the heads")
    _require(meta["state"] in ("recording", "complete"), "has an unknown state")
    try:
        meta["settings"] = SampleAttentionConfig.from_dict(meta["settings"]).to_dict()
    except ValueError as error:
        raise TraceError(f"meta.json holds settings that are not valid ({error}); record the trace again.") from None
    for name, file in meta["files"].items():
        _require(FILE_NAME.fullmatch(name) is not None, f"lists the unknown file {name[:40]!r}")
        _require(isinstance(file, dict), f"has a wrong entry for {name}")
        _check_types(file, {"bytes": int, "sha256": str}, "meta.json")
        _require(file["bytes"] >= 8, f"has a wrong size for {name}")
    _require(TOKENS in meta["files"], f"does not list {TOKENS}")
    _check_layers(meta)
    for key in ("continuation_dense", "continuation_sparse"):
        texts = meta["output"].get(key, [])
        _require(isinstance(texts, list) and all(isinstance(text, str) for text in texts), f"has a wrong {key}")
    tokens = meta["output"].get("next_tokens", [])
    _require(isinstance(tokens, list) and all(isinstance(token, dict) for token in tokens), "has wrong next_tokens")
    for token in tokens:
        _check_types(token, {"id": int, "text": str}, "meta.json")
    _require(all(_is(value, _NUMBER) for value in meta["timings"].values()), "has a wrong timing")
    _require(all(_is(value, (*_NUMBER, str, type(None))) for value in meta["machine"].values()), "has a wrong machine")
    for entry in meta["provenance"].values():
        _require(isinstance(entry, dict), "has a wrong provenance")
        _check_types(entry, {"kind": str, "run": str}, "meta.json")
    if meta["state"] == "complete":
        whole = OUTPUT in meta["files"] and len(meta["layers"]) == model["layers"]
        _require(whole, "says complete, but layers or output are missing")


def _check_layers(meta):
    heads, last = meta["model"]["heads"], -1
    for entry in meta["layers"]:
        _require(isinstance(entry, dict), "has a wrong layer entry")
        _check_types(entry, _LAYER, "meta.json")
        _require(last < entry["layer"] < meta["model"]["layers"], "lists its layers out of order or range")
        last = entry["layer"]
        _require(entry["ran"] in ("sparse", "dense", ""), f"has a wrong 'ran' for layer {last}")
        _require(entry["file"] in (None, layer_file(last)), f"names a wrong file for layer {last}")
        _require(entry["file"] is None or entry["file"] in meta["files"], f"does not list the file of layer {last}")
        labels = entry["labels"]
        _require(all(isinstance(label, str) and len(label) <= 64 for label in labels), f"has wrong labels for layer {last}")
        _require(len(labels) == (heads if entry["file"] else 0), f"has {len(labels)} labels for layer {last}")
        densities = entry["sparse_run_density"]
        known = len(densities) in (0, heads) and all(_is(density, _NUMBER) for density in densities)
        _require(known, f"has wrong sparse-run densities for layer {last}")
        _require(all(_is(value, _NUMBER) for value in entry["seconds"].values()), f"has wrong seconds for layer {last}")


def _check_types(value, spec, where):
    for key, kind in spec.items():
        _require(key in value, f"lacks {key!r}")
        if isinstance(kind, dict):
            _require(isinstance(value[key], dict), f"has a wrong {key!r}")
            _check_types(value[key], kind, where)
        else:
            _require(_is(value[key], kind), f"has a wrong {key!r}")


def _is(value, kinds):
    return isinstance(value, kinds) and not isinstance(value, bool)


def _require(condition, what):
    if not condition:
        raise TraceError(f"meta.json {what}; record the trace again.")
