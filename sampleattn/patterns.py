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
    i, j = np.indices(tiles.shape)
    counted = (j <= i) & (i >= FIRST_BLOCK)
    hot = np.zeros_like(counted)
    for row in range(FIRST_BLOCK, blocks):
        seen = tiles[row, : row + 1]
        hot[row, : row + 1] = seen >= max(HOT_MASS, HOT_RATIO * np.quantile(seen, 0.25))
    pieces = {("column", n): j == n for n in range(blocks)} | {("slash", n): i - j == n for n in range(blocks)}
    pieces = {piece: cells & counted for piece, cells in pieces.items()}
    found, mass = {"column": [], "slash": []}, {"column": 0.0, "slash": 0.0}
    left = counted
    while True:
        hits = {piece: int((hot & left & cells).sum()) for piece, cells in pieces.items()}
        passing = [p for p, hit in hits.items() if hit >= LEAST_TILES and hit >= HOT_SHARE * int((left & pieces[p]).sum())]
        if not passing:
            break
        kind, n = max(passing, key=hits.get)
        taken = left & pieces.pop((kind, n))
        found[kind].append(n)
        mass[kind] += float(tiles[taken].sum()) / max(blocks - FIRST_BLOCK, 1)
        left = left & ~taken
    return Patterns(tuple(sorted(found["column"])), tuple(sorted(found["slash"])), mass["column"], mass["slash"])


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
    return np.stack([np.trace(tiles, offset=-n, axis1=-2, axis2=-1) for n in range(tiles.shape[-2])], axis=-1)
