"""What the pages say of a trace in words: its model, its footer, its telling head, the text of a block. No streamlit."""

from __future__ import annotations

import re
from pathlib import Path

import numpy as np

from sampleattn.recall import cell_edges
from sampleattn.text import printable

ROOT = Path(__file__).resolve().parents[1]
PUNCTUATION = re.compile(r"([!-/:-@\[-`{-~])")
SPACES = re.compile(" {2,}")
VISIBLE = str.maketrans({"\n": "⏎", "\t": "⇥", "\r": "␍"})


def plain(text: str) -> str:
    """Text of a trace or a user, safe inside Markdown: every sign that Markdown could read is escaped."""
    return PUNCTUATION.sub(r"\\\1", visible(text))


def visible(text: str) -> str:
    """Text on one line: line ends and tabs as signs, other control characters as a box."""
    return printable(text.translate(VISIBLE))


def excerpt(trace, first: int, end: int, limit: int = 80) -> str:
    """The prompt's text at tokens first..end-1, on one line, cut to `limit` signs."""
    if first >= min(end, trace.length):
        return ""
    begin, stop = int(trace.offsets[first, 0]), int(trace.offsets[min(end, trace.length) - 1, 1])
    text = trace.text[begin : min(stop, begin + limit + 1)]
    return SPACES.sub(" ", visible(text[:limit])) + ("…" if stop - begin > limit else "")


def text_before(trace, end: int, limit: int = 80) -> str:
    """The last `limit` signs of the prompt's text before token `end`, on one line."""
    stop = int(trace.offsets[end, 0]) if end < trace.length else len(trace.text)
    begin = max(0, stop - limit)
    return ("…" if begin else "") + SPACES.sub(" ", visible(trace.text[begin:stop]))


def model_name(trace) -> str:
    name = trace.meta["model"]["name"]
    return "bundled model" if name == "bundled" else visible(name)[:60]


def counted(count: int, piece: str) -> str:
    """A number of pieces in words: "1 slash", "3 columns", "32 heads"."""
    return f"{count:,} {piece if count == 1 else f'{piece}es' if piece.endswith('sh') else f'{piece}s'}"


def title(trace) -> str:
    return visible(trace.meta["prompt"]["title"])[:80] or "untitled prompt"


def settings_line(config) -> str:
    """The settings that decide what is kept, in one line."""
    if config.selection == "joint":
        aim = f"target {config.cra:g} for {config.rows_at_target:.0%} of the sampled rows"
    else:
        columns = config.alpha_columns if config.alpha_columns is not None else config.cra
        slashes = config.alpha_slashes if config.alpha_slashes is not None else config.cra
        other = f"window {config.window_ratio:.0%}" if config.selection == "window" else f"slashes up to {slashes:g}"
        aim = f"columns up to {columns:g} of the mass, {other}"
    segments = "automatic" if config.segments is None else config.segments
    return (
        f"selection {config.selection}, {aim}, sampling {config.sampling} {config.sample_ratio:.3g}, segments {segments}, "
        f"scope {config.scope}, block {config.block_size}, sink {config.sink_blocks}, local {config.local_blocks}, "
        f"last {config.last_blocks}, dense below {config.dense_below}"
    )


def footer(trace, layer: int | None = None, head: int | None = None) -> str:
    """What an exported figure says of its origin: model, prompt hash, layer, head, settings."""
    model, prompt = trace.meta["model"], trace.meta["prompt"]
    revision = f" at {visible(model['revision'])[:12]}" if model.get("revision") else ""
    place = "all layers and heads" if layer is None else f"layer {layer}, head {head}"
    return (
        f"SampleAttention explorer · {model_name(trace)}{revision} · prompt {title(trace)}, {trace.length:,} tokens, "
        f"sha256 {visible(prompt['sha256'])[:16]} · {place}\n{settings_line(trace.config)}"
    )


def telling_head(trace) -> tuple[int, int]:
    """The head that a newcomer sees first: of those that keep more columns and slashes than are always kept, the sparsest.

    Where no head keeps both, one that keeps either; else the one with the fewest tiles.
    """
    if not trace.recorded_layers:
        return 0, 0
    always = trace.config.sink_blocks, trace.config.local_blocks
    chosen = {
        (layer, head): int(trace.columns_kept[layer, head] > always[0]) + int(trace.slashes_kept[layer, head] > always[1])
        for layer in trace.recorded_layers
        for head in range(trace.heads)
    }
    return min(chosen, key=lambda place: (-chosen[place], trace.density[place]))


def least_recall(trace, layer: int, head: int) -> tuple[float, str]:
    """The least recall of a head's rows, and the row that has it in words; it may be known of some rows together only."""
    recall, parts = trace.recall(layer, head), trace.recall_parts(layer, head)
    part = int(np.searchsorted(cell_edges(trace.length, parts), recall.argmin(), "right")) - 1
    return float(recall.min()), rows_of_part(trace, parts, part)


def most_missed(trace, layer: int, head: int, row: int) -> tuple[int, float]:
    """The key outside the kept tiles that a row of a pinned head attends to most, and its exact weight; (0, 0) without one."""
    _, missed = trace.window_planes(layer, head, (row, row + 1), (0, trace.length), cell=1)
    key = int(missed[0].argmax())
    return key, float(missed[0, key])


def rows_of_part(trace, parts: int, part: int) -> str:
    """The rows of one of `parts` equal parts of the prompt, in words: "row 17", "rows 256 to 511"."""
    begin, end = cell_edges(trace.length, parts)[part : part + 2].tolist()
    return f"row {begin:,}" if end == begin + 1 else f"rows {begin:,} to {end - 1:,}"


def kind_of(trace, field: str, otherwise: str) -> str:
    """Whether a number of the trace is "exact", "sampled", "reduced" or "recorded"."""
    return trace.meta["provenance"].get(field, {}).get("kind", otherwise)
