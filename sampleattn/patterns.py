"""What a head looks at: columns and slashes found in its tile masses, and a label in one word. Numpy only."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

LABELS = ("short", "column+slash", "column", "slash", "sink", "local", "sink+local", "dense", "mixed")

FIRST_BLOCK = 4
LEAST_TILES = 4
HOT_MASS = 0.02
HOT_RATIO = 4.0
HOT_SHARE = 0.8


@dataclass(frozen=True)
class Patterns:
    """columns: key blocks; slashes: query block - key block; both ascending. *_mass: the mean share of a row's mass in them."""

    columns: tuple[int, ...]
    slashes: tuple[int, ...]
    column_mass: float
    slash_mass: float


def find_patterns(tiles: np.ndarray) -> Patterns:
    """The columns and slashes of one head: tiles [query blocks, key blocks], the mean mass of each tile over its block's rows.

    A tile is hot if it holds at least 2% of the row's mass and 4 times as much as the lower quartile of its row's tiles; query
    blocks 0 to 3 see too few tiles and are left out. A column or slash is found if at least 4 of its tiles, and 80% of them,
    are hot. The one with the most hot tiles is taken first, and its tiles no longer count for the others, so that a
    slash which only crosses columns is none. Slashes 0 and 1 are the local window and column 0 is the sink; both may be found.
    Each tile's mass counts once, for the piece that was taken first.
    """
    blocks = len(tiles)
    i = np.arange(blocks)
    left = (i <= i[:, None]) & (i >= FIRST_BLOCK)[:, None]
    hot = left & (tiles >= np.maximum(HOT_MASS, HOT_RATIO * _lower_quartile(tiles))[:, None])
    hits = np.concatenate([hot.sum(axis=0), slash_sums(hot.astype(np.int32))])  # columns, then slashes
    tried = np.concatenate([left.sum(axis=0), slash_sums(left.astype(np.int32))])
    found, mass = ([], []), [0.0, 0.0]
    while True:
        passing = (hits >= LEAST_TILES) & (hits >= HOT_SHARE * tried)
        if not passing.any():
            break
        piece = int(np.where(passing, hits, -1).argmax())
        kind, n = divmod(piece, blocks)
        rows = i[n:] if kind else i
        columns = rows - n if kind else np.full(blocks, n)
        rows, columns = (part[left[rows, columns]] for part in (rows, columns))
        crossed = columns if kind else blocks + rows - columns  # the pieces of the other kind, each crossed once
        tried[crossed] -= 1
        hits[crossed] -= hot[rows, columns]
        hits[piece] = -1
        left[rows, columns] = False
        found[kind].append(n)
        mass[kind] += float(tiles[rows, columns].sum()) / max(blocks - FIRST_BLOCK, 1)
    return Patterns(tuple(sorted(found[0])), tuple(sorted(found[1])), *mass)


def _lower_quartile(tiles):
    """Of each row's tiles up to the diagonal: [blocks]."""
    ascending = np.sort(np.where(np.tri(len(tiles), dtype=bool), tiles, np.inf), axis=1)
    rows = np.arange(len(tiles))
    below, part = np.divmod(rows, 4)
    low, high = ascending[rows, below], ascending[rows, np.minimum(below + 1, rows)]
    return low + (high - low) * (part / 4)


def label_head(tiles: np.ndarray) -> str:
    """One head's pattern in a word, by the first rule that fits; tiles [query blocks, key blocks] as in `find_patterns`.

    All shares are of the mass of the rows from query block 4 on.
    1. "short": fewer than 8 query blocks, too few to tell patterns from chance.
    2. "column+slash", "column", "slash": columns other than the sink block 0, and slashes beyond the local window, were found
       (`find_patterns`) and hold at least 10% of the mass (each kind by itself). The local window is slashes 0 and 1, and the
       found slashes that follow them without a gap.
    3. "sink": block 0 holds at least half of the mass. "local": the local window does. "sink+local": both together do.
    4. "dense": 90% of a row's mass needs half of its tiles or more. Otherwise "mixed".
    """
    blocks = len(tiles)
    if blocks < 2 * FIRST_BLOCK:
        return "short"
    found = find_patterns(tiles)
    i, j = np.indices(tiles.shape)
    rows = np.asarray(tiles, np.float64)[FIRST_BLOCK:] / (blocks - FIRST_BLOCK)
    i, j = i[FIRST_BLOCK:], j[FIRST_BLOCK:]
    window = 1
    while window + 1 in found.slashes:
        window += 1
    far = (j > 0) & (i - j > window)
    columns = rows[far & np.isin(j, found.columns)].sum()
    slashes = rows[far & np.isin(i - j, found.slashes) & ~np.isin(j, found.columns)].sum()
    kinds = [name for name, mass in (("column", columns), ("slash", slashes)) if mass >= 0.1]
    if kinds:
        return "+".join(kinds)
    sink, local = rows[j == 0].sum(), rows[(i - j >= 0) & (i - j <= window)].sum()
    if max(sink, local) >= 0.5:
        return "sink" if sink >= local else "local"
    if sink + local >= 0.5:
        return "sink+local"
    descending = -np.sort(-tiles[FIRST_BLOCK:], axis=1)
    needed = (np.cumsum(descending, axis=1) < 0.9 * descending.sum(axis=1, keepdims=True)).sum(axis=1) + 1
    return "dense" if (needed / np.arange(FIRST_BLOCK + 1, blocks + 1)).mean() >= 0.5 else "mixed"


def label_heads(tiles: np.ndarray) -> list[str]:
    """The label of each head (see `label_head`): tiles [heads, query blocks, key blocks]."""
    return [label_head(head) for head in tiles]


def slash_sums(tiles: np.ndarray) -> np.ndarray:
    """The sum of tiles [..., query blocks, key blocks] along each slash (query block - key block): [..., query blocks]."""
    blocks = tiles.shape[-1]
    # Rows of one more cell each: the row i of the square then begins i cells to the left, and a slash is a column.
    flat = np.tril(tiles).reshape(*tiles.shape[:-2], blocks * blocks)
    shifted = np.concatenate([flat, np.zeros_like(flat[..., :blocks])], axis=-1).reshape(*flat.shape[:-1], blocks, blocks + 1)
    return shifted.sum(axis=-2)[..., -np.arange(blocks) % (blocks + 1)]
