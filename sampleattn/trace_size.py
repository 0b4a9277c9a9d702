"""How large a trace will be, before it is recorded. No torch."""

from __future__ import annotations

import math
from collections.abc import Collection

import numpy as np

from sampleattn.config import SampleAttentionConfig
from sampleattn.trace_format import (
    DTYPES,
    ESTIMATE_ARRAYS,
    FEWER_SAMPLED,
    FULL_TOKENS,
    HEAD_ARRAYS,
    OUTPUT_ARRAYS,
    PINNED_KEY,
    PINNED_QUERY,
    PINNED_RECALL,
    SAMPLED,
    SCHEMA,
    TOKEN_ARRAYS,
    layer_table,
    sizes,
)
from sampleattn.trace_levels import seen, spread

# Bytes that hold no array: of a file's header, and in meta.json of a trace, a layer, a head and a listed file.
ARRAY_HEADER, META_TRACE, META_LAYER, META_HEAD, META_FILE = 75, 6000, 700, 45, 170
CONTINUATION, POSITIONS = 32, 1024
BYTES_A_TOKEN = 4


def estimate_size(
    level: str,
    layers: int,
    heads: int,
    kv_heads: int,
    head_dim: int,
    tokens: int,
    pins: Collection[tuple[int, int]] = (),
    *,
    config: SampleAttentionConfig | None = None,
    vocabulary: int = 32_000,
    text_bytes: int | None = None,
    pin_bytes: int = 2,
) -> int:
    """About the bytes of a trace's folder (a zip is smaller): the arrays of `trace_format`, headers and meta.json roughly.

    A layer's file at 128K tokens, for each head: summary 12 KB; explore 0.5 MB. A pinned head of dimension D adds
    tokens * (D * pin_bytes + 8) bytes, and its key-value head, once, tokens * D * pin_bytes. pins: the (layer, head) pairs.
    vocabulary: of the two rows of logits. text_bytes: of the prompt (4 a token if not given). pin_bytes: 4 for models in float32.
    """
    config = config or SampleAttentionConfig()
    model = {"layers": layers, "heads": heads, "kv_heads": kv_heads, "head_dim": head_dim}
    meta = {"schema": SCHEMA, "level": level, "model": model, "prompt": {"tokens": tokens}, "settings": config.to_dict()}
    fixed = sizes(meta)
    rows = _sampled_rows(tokens, config)
    fixed |= {
        "S": fixed["kb"] // 8 or 1 if config.scope == "segment" else 1,
        "R": len(rows),
        "sampled": int(seen(rows, fixed["kb"], config.block_size).sum()),
        "characters": BYTES_A_TOKEN * tokens if text_bytes is None else text_bytes,
        "V": vocabulary,
        "T": CONTINUATION,
        "P": min(POSITIONS, tokens - 1),
    }
    queries = PINNED_QUERY | (PINNED_RECALL if fixed["track"] < tokens else {})
    keys = {(layer, head // (heads // kv_heads)) for layer, head in pins}
    tables = [TOKEN_ARRAYS, HEAD_ARRAYS, OUTPUT_ARRAYS]
    tables += layers * ([layer_table(meta, ())] + [ESTIMATE_ARRAYS][: len(rows)])
    tables += len(pins) * [queries] + len(keys) * [PINNED_KEY]
    arrays = sum(_bytes(table, fixed, pin_bytes) for table in tables)
    return arrays + META_TRACE + layers * (META_LAYER + META_HEAD * heads) + META_FILE * len(tables)


def readable(size: float) -> str:
    """Bytes in words: "640 KB", "12 MB", "1.3 GB"."""
    for unit, factor in (("GB", 1e9), ("MB", 1e6)):
        if size >= factor:
            return f"{size / factor:.{0 if size >= 10 * factor else 1}f} {unit}"
    return f"{size / 1e3:.0f} KB"


def _sampled_rows(tokens, config):
    if tokens < config.dense_below:
        return np.empty(0, np.int64)
    count = max(min(round(config.sample_ratio * tokens), config.max_sampled_rows), 1)
    rows = (2 * np.arange(count) + 1) * tokens // (2 * count)
    return rows[spread(count, SAMPLED if tokens <= FULL_TOKENS else FEWER_SAMPLED)]


def _bytes(table, fixed, pin_bytes):
    return sum(_array_bytes(codes.split(), dims.split(), fixed, pin_bytes) for codes, dims in table.values())


def _array_bytes(codes, dims, fixed, pin_bytes):
    item = pin_bytes if len(codes) > 1 else np.dtype(DTYPES[codes[0]]).itemsize
    return ARRAY_HEADER + item * math.prod(int(dim) if dim.isdigit() else fixed[dim] for dim in dims)
