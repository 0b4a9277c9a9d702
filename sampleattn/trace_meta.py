"""meta.json: written with its own checksum, and read as hostile input. No numpy."""

from __future__ import annotations

import hashlib
import json
import math

from sampleattn.config import SampleAttentionConfig
from sampleattn.text import printable
from sampleattn.trace_format import (
    FILE_NAME,
    FULL_TOKENS,
    LEVELS,
    MAX_BLOCKS,
    MAX_HEAD_DIM,
    MAX_HEADS,
    MAX_LAYERS,
    MAX_TOKENS,
    META,
    OUTPUT,
    READABLE,
    SCHEMA,
    TOKENS,
    TraceError,
    layer_file,
)

KINDS = ("exact", "reduced", "sampled", "recorded")
_PROVENANCE = {
    **dict.fromkeys(("overview", "recall", "cra", "rows_at_target", "recall_reached"), ("exact", "dense")),
    **dict.fromkeys(("column_mass", "slash_mass", "output_error", "oracle_density"), ("exact", "dense")),
    **dict.fromkeys(("tile_masses", "sampled_cra"), ("sampled", "dense")),
    **dict.fromkeys(("block_mask", "columns", "slashes", "density"), ("exact", "dense")),
    "sparse_run_density": ("exact", "sparse"),
    **dict.fromkeys(("logits", "continuation", "kl", "nll"), ("exact", "both")),
    "timings": ("recorded", "both"),
}


def provenance(level: str, tokens: int) -> dict[str, dict[str, str]]:
    """Where each number comes from: {"kind": "exact", "sampled", "reduced" (kept of parts only) or "recorded", "run"}."""
    kinds = {name: {"kind": kind, "run": run} for name, (kind, run) in _PROVENANCE.items()}
    if level == "summary":
        kinds["overview"]["kind"] = "reduced"
    if level == "summary" or tokens > FULL_TOKENS:
        kinds["recall"]["kind"] = "reduced"
    if tokens > FULL_TOKENS:
        kinds["oracle_density"]["kind"] = "sampled"
    return kinds


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
    """A JSON object without NaN, infinities, numbers beyond 64 bits or deep nesting. Raises TraceError."""

    def finite(text):
        value = float(text)
        if not math.isfinite(value):
            raise ValueError(f"{text} is no finite number")
        return value

    def whole(text):
        value = int(text)
        if not -(2**63) <= value < 2**63:
            raise ValueError(f"{text} has more than 64 bits")
        return value

    try:
        value = json.loads(data.decode("utf-8"), parse_float=finite, parse_int=whole, parse_constant=finite)
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
    "level": str,
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
        if schema < 3:
            meta["level"] = "explore"
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
    _require(meta["level"] in LEVELS, "has an unknown level")
    try:
        meta["settings"] = SampleAttentionConfig.from_dict(meta["settings"]).to_dict()
    except ValueError as error:
        reason = printable(str(error)[:120])
        raise TraceError(f"meta.json holds settings that are not valid ({reason}); record the trace again.") from None
    blocks = -(-prompt["tokens"] // meta["settings"]["block_size"])
    _require(blocks <= MAX_BLOCKS, f"says {blocks:,} blocks, more than {MAX_BLOCKS:,}")
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
        _require(entry["kind"] in KINDS, "has an unknown kind of provenance")
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
