"""How much of an analysed layer a trace keeps, and how it is packed. Numpy only.

summary: numbers, patterns, selections, key masses, and small maps and recall tracks (64 cells; weights as 8-bit square roots).
explore: the overview (512 cells, lower triangle), the kept tiles as bits, and the sampled tile masses that What-if reads. Recall
is kept of every row up to 16,384 tokens, beyond as each overview row's least.
pinned: explore, and q, k, logsumexp and every row's recall of chosen heads, in files of their own.
"""

from __future__ import annotations

import numpy as np

from sampleattn import recall
from sampleattn.trace_format import FEWER_SAMPLED, FULL_TOKENS, SAMPLED

WHITE = 255


def pack(arrays: dict[str, np.ndarray], sizes: dict[str, int], level: str, block: int) -> dict[str, np.ndarray]:
    """The arrays of a layer's file at a level, of what its analysis gave (`trace_format.ANALYSED_ARRAYS`)."""
    overview = triangle(pooled(arrays["overview"], sizes["side"]))
    tracks = arrays["recall"] if sizes["track"] == sizes["N"] else recall.track(arrays["recall"], sizes["track"])
    packed = arrays | {
        "overview": overview.astype(np.float16),
        "recall": tracks,
        "recall_quantiles": recall.quantiles(arrays["recall"]),
        "columns": bits(arrays["columns"]),
        "slashes": bits(arrays["slashes"]),
    }
    if level == "summary":
        masses = {name: arrays[name].astype(np.float16) for name in ("column_mass", "slash_mass")}
        small = np.rint(np.sqrt(overview.astype(np.float32)) * WHITE).astype(np.uint8)
        left_out = {"block_mask", "rows", "tile_masses"}
        return {name: array for name, array in packed.items() if name not in left_out} | masses | {"overview": small}
    kept = spread(len(arrays["rows"]), SAMPLED if sizes["N"] <= FULL_TOKENS else FEWER_SAMPLED)
    rows = arrays["rows"][kept]
    return packed | {
        "block_mask": bits(triangle(arrays["block_mask"])),
        "rows": rows,
        "tile_masses": arrays["tile_masses"][:, kept][:, seen(rows, sizes["kb"], block)].astype(np.float16),
    }


def spread(count: int, most: int) -> np.ndarray:
    """Which of `count` rows are kept: all, or `most` evenly spread ones. int64 [at most `most`]"""
    return np.arange(count) if count <= most else np.rint(np.linspace(0, count - 1, most)).astype(np.int64)


def pooled(overview: np.ndarray, cells: int) -> np.ndarray:
    """The overview [..., h, h] in at most `cells` x `cells` cells, each the largest of what it covers."""
    starts = recall.cell_edges(overview.shape[-1], cells)[:-1]
    return np.maximum.reduceat(np.maximum.reduceat(overview, starts, axis=-2), starts, axis=-1)


def triangle(square: np.ndarray) -> np.ndarray:
    """The cells of [..., n, n] on and below the diagonal, row by row: [..., n (n + 1) / 2]."""
    return square[..., np.tri(square.shape[-1], dtype=bool)]


def square(values: np.ndarray, side: int) -> np.ndarray:
    """`triangle` undone: [n (n + 1) / 2] -> [n, n], 0 above the diagonal."""
    whole = np.zeros((side, side), values.dtype)
    whole[np.tri(side, dtype=bool)] = values
    return whole


def seen(rows: np.ndarray, blocks: int, block: int) -> np.ndarray:
    """The tiles of sampled rows that are not above the diagonal: bool [rows, key blocks]."""
    return np.arange(blocks) <= rows[:, None] // block


def bits(flags: np.ndarray) -> np.ndarray:
    """Flags as bytes along the last axis, the first flag in the lowest bit."""
    return np.packbits(flags, axis=-1, bitorder="little")


def flags(packed: np.ndarray, count: int) -> np.ndarray:
    """`bits` undone: bool [..., count]."""
    return np.unpackbits(packed, axis=-1, count=count, bitorder="little").astype(bool)


def tiles_of(columns: np.ndarray, slashes: np.ndarray, last_blocks: int) -> np.ndarray:
    """The tiles that columns [S, blocks] and slashes [S, blocks] keep, and the last rows of tiles: bool [blocks, blocks].

    What `block_mask.Grid.tiles` and `last_rows` give for a prompt without padding.
    """
    segments, blocks = columns.shape
    i = np.arange(blocks)
    segment = i * segments // blocks
    shifted = np.lib.stride_tricks.sliding_window_view(np.pad(slashes[:, ::-1], ((0, 0), (0, blocks))), blocks, axis=1)
    kept = shifted[segment, blocks - 1 - i]
    kept |= columns[segment]
    kept[max(blocks - last_blocks, 0) :] = True
    return np.tril(kept)
