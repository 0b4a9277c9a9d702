"""What the browser's map asks for, as one buffer: the head and the text once, then exact tiles. No streamlit, no torch."""

from __future__ import annotations

import os
import re
import time
from concurrent.futures import ThreadPoolExecutor

import numpy as np

from app import reading
from app.figures import head_map, palette
from app.packing import pack
from sampleattn.windows import REDUCTIONS

TILE = 128
COARSEST, COARSEST_FAST = 6, 10
SECONDS = 0.25
WORKERS = min(4, len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1)
STATE = {
    "view": re.compile(r"\d{1,9}\.\d{1,9}\.\d{1,9}|"),
    "at": re.compile(r"\d{1,9}\.\d{1,9}|"),
    "pool": re.compile("|".join(REDUCTIONS)),
    "colours": re.compile("log|linear"),
    **dict.fromkeys(("weights", "kept", "missed"), re.compile("on|off")),
    "sink": re.compile("show|hide"),
    "lock": re.compile(r"off|[0-9.e+-]{1,12}"),
}
USUAL = {"view": "", "at": "", "pool": "max", "colours": "log", "weights": "on", "kept": "on", "missed": "off", "sink": "show",
         "lock": "off"}  # fmt: skip
PALETTE = {"ramp": palette.RAMP, "missed_ramp": palette.MISSED_RAMP, "difference_ramp": palette.DIFFERENCE_RAMP,
           "kept": palette.KEPT, "dropped": palette.DROPPED}  # fmt: skip

_workers = ThreadPoolExecutor(WORKERS, "map")


def checked_state(given: dict | None) -> dict[str, str]:
    """The map's state for the page's address; what is not valid becomes what is usual."""
    given = given or {}
    return {
        name: given[name] if isinstance(given.get(name), str) and STATE[name].fullmatch(given[name]) else usual
        for name, usual in USUAL.items()
    }


def message(trace, layer: int, head: int, asked: dict | None, state: dict, compact: bool, below: int) -> bytes:
    """The buffer for the canvas (see components/map/main.js): what it does not hold yet, and the tiles it asked for.

    asked: {"serial", "holds": {"prompt", "heads"}, "head", "pool", "tiles": [[level, i, j], ...]} from the browser, or None: the
    ids of what it holds, and tiles of the head it shows. state: as `checked_state` gives it. below: the height of the rest of the
    page, in pixels where its font has 16. compact: no zoom, no panel.
    The prompt's text goes only to a browser that has asked: the first picture does not wait for it.
    Tiles are computed for SECONDS at most, but at least one a worker; the browser asks again for the rest.
    """
    asked = asked if isinstance(asked, dict) else {}
    holds = asked.get("holds") or {}
    prompt_id = f"{trace.meta['prompt']['sha256'][:16]}.{trace.length}"
    head_id = f"{prompt_id}.{trace.meta['created']}.{layer}.{head}.{trace.pinned(layer, head)}"
    header = {
        "serial": asked.get("serial", 0),
        "wanted": {"prompt": prompt_id, "length": trace.length, "head": head_id},
        "state": state,
        "compact": compact,
        "below": below,
        "palette": PALETTE,
    }
    planes = {}
    if asked and holds.get("prompt") != prompt_id:
        planes |= _text(trace)
    if head_id not in (holds.get("heads") or ()):
        part, more = _head(trace, layer, head, compact)
        header["head"] = {"id": head_id} | part
        planes |= more
    pool = asked.get("pool", "max")
    places = _places(asked.get("tiles"), trace, layer, head, pool) if asked.get("head") == head_id else []
    if places:
        places, weights, missed = _tiles(trace, layer, head, places, pool)
        header["tiles"] = {"head": head_id, "pool": pool, "places": places}
        planes |= {"tile_weights": weights} | _missed(weights, missed)
    return pack(header, **planes)


def comparison(sides, titles: tuple[str, str], asked: dict | None, state: dict, below: int) -> bytes:
    """The buffer for two maps side by side (see components/map/compare.js): the message of each.

    sides: (trace, layer, head) of A and of B. asked: {"a", "b"}, each as `message` takes it, or None.
    """
    asked = asked if isinstance(asked, dict) else {}
    messages = {
        name: np.frombuffer(message(*side, asked.get(name), state, compact=True, below=below), np.uint8)
        for name, side in zip("ab", sides, strict=True)
    }
    return pack({"titles": titles, "difference": comparable(*sides), "palette": PALETTE}, **messages)


def comparable(a, b) -> bool:
    """Whether the maps of A and B, each (trace, layer, head), have the same tokens and cells, so that they can be subtracted."""
    return a[0].length == b[0].length


def linked_states(a, b, state: dict[str, str]) -> tuple[dict[str, str], dict[str, str]]:
    """The states in which A and B, each (trace, layer, head), are seen side by side: the same part of each prompt, and for the
    greatest weights one colour range."""
    high = max(head_map.colour_range(trace.overview(layer, head))[1] for trace, layer, head in (a, b))
    shared = state | {"lock": f"{high:.4g}" if state["pool"] == "max" else "off"}
    part, numbers = b[0].length / a[0].length, filter(None, state["view"].split("."))
    return shared, shared | {"view": ".".join(str(round(int(n) * part)) for n in numbers)}


def difference(a, b, view: str, pool: str = "max") -> tuple[np.ndarray, tuple[int, int], tuple[int, int]]:
    """The weights of A minus those of B in a view, its rows and its columns; exact if both heads are pinned (see `window`)."""
    exact = all(trace.pinned(layer, head) for trace, layer, head in (a, b))
    (first, _, rows, cols), (second, *_) = (window(*side, view, exact, pool) for side in (a, b))
    return first - second, rows, cols


def _text(trace) -> dict[str, np.ndarray]:
    """The text as UTF-8, and where each token begins and ends in it, counted as JavaScript does: in UTF-16 units."""
    points = np.frombuffer(trace.text.encode("utf-32-le"), np.uint32)
    units = np.concatenate([[0], np.cumsum(1 + (points > 0xFFFF))]).astype(np.int32)
    offsets = units[trace.offsets]
    return {
        "text": np.frombuffer(trace.text.encode(), np.uint8),
        "begins": np.ascontiguousarray(offsets[:, 0]),
        "ends": np.ascontiguousarray(offsets[:, 1]),
    }


def coarsest_level(trace, pool: str = "max") -> int:
    """The level (2 ** level tokens a cell) above which the overview is as fine as tiles would be, or tiles take too long.

    The overview holds the greatest weights only: means and sums need tiles up to the whole map.
    """
    enough = int(np.ceil(np.log2(trace.length / trace.overview_cells)))
    fast = trace.accelerator is not None and trace.accelerator.ready
    return max(0, min(COARSEST_FAST if fast else COARSEST, enough - 1 if pool == "max" else enough + 1))


def _head(trace, layer, head, compact):
    block, length = trace.config.block_size, trace.length
    weights, mask, recall = trace.overview(layer, head), trace.block_mask(layer, head), trace.recall(layer, head)
    low, high = head_map.colour_range(weights)
    beyond = -(-trace.config.sink_blocks * block * len(weights) // length)
    column_mass, slash_mass = trace.column_mass(layer, head), trace.slash_mass(layer, head)
    columns = sorted(trace.columns(layer, head).tolist(), key=lambda column: -column_mass[column])
    slashes = sorted(trace.slashes(layer, head).tolist(), key=lambda slash: -slash_mass[slash])
    part = {
        "layer": layer,
        "head": head,
        "title": f"Attention map of layer {layer}, head {head}: {reading.counted(int(mask.sum()), 'tile')} computed, "
        f"{trace.density[layer, head]:.1%} of the causal triangle, worst row's recall {recall.min():.3f}",
        "cells": list(weights.shape),
        "block": block,
        "tiles": list(mask.shape),
        "kept_tiles": int(mask.sum()),
        "sink": trace.config.sink_blocks,
        "target": trace.config.cra,
        "lowest_recall": float(recall.min()),
        "low": low,
        "high": high,
        "high_without_sink": head_map.colour_range(weights[:, beyond:])[1],
        "pinned": trace.pinned(layer, head),
        "coarsest": {pool: coarsest_level(trace, pool) for pool in REDUCTIONS},
        "columns": [
            {
                "block": column,
                "mass": float(column_mass[column]),
                "text": reading.excerpt(trace, column * block, (column + 1) * block, 60),
            }
            for column in columns
        ],
        "slashes": [{"slash": slash, "mass": float(slash_mass[slash])} for slash in slashes],
    }
    planes = {
        "weights": weights.astype(np.float16)[np.tri(*weights.shape, dtype=bool)],
        "missed": np.packbits(trace.overview_missed(layer, head) > 0, bitorder="little"),
        "mask": np.packbits(mask, bitorder="little"),
    }
    return part, planes if compact else planes | {"recall": recall, "column_mass": column_mass}


def _places(asked, trace, layer, head, pool) -> list[list[int]]:
    """The tiles asked for that exist and touch the triangle; anything else is left out."""
    if not isinstance(asked, list) or pool not in REDUCTIONS or not trace.pinned(layer, head):
        return []
    places, coarsest = [], coarsest_level(trace, pool)
    for place in asked[:64]:
        if not (isinstance(place, list) and len(place) == 3 and all(type(n) is int for n in place)):
            continue
        level, i, j = place
        if 0 <= level <= coarsest and 0 <= j <= i and i * (TILE << level) < trace.length:
            places.append(place)
    return places


def _tiles(trace, layer, head, places, pool):
    """The tiles that are done in time: their places, weights and missed mass [n, 128, 128]; beyond the prompt they are 0."""

    def tile(place):
        level, i, j = place
        size = TILE << level
        rows, cols = ((at * size, min((at + 1) * size, trace.length)) for at in (i, j))
        planes = trace.window_planes(layer, head, rows, cols, reduce=pool, cell=1 << level)
        return [np.pad(plane, [(0, TILE - n) for n in plane.shape]) for plane in planes]

    started, done = time.perf_counter(), []
    while len(done) < len(places) and (not done or time.perf_counter() - started < SECONDS):
        done += _workers.map(tile, places[len(done) : len(done) + WORKERS])
    weights, missed = (np.stack(planes) for planes in zip(*done, strict=True))
    return places[: len(done)], weights, missed


def _missed(weights, missed) -> dict[str, np.ndarray]:
    """The missed mass as bits where it is all or nothing of each weight, as in cells that lie within one tile; else as it is."""
    lost = missed > 0
    if np.array_equal(np.where(lost, weights, 0), missed):
        return {"tile_lost": np.packbits(lost, bitorder="little")}
    return {"tile_missed": missed}


def window(
    trace, layer: int, head: int, view: str, exact: bool = True, pool: str = "max"
) -> tuple[np.ndarray, np.ndarray, tuple[int, int], tuple[int, int]]:
    """Of a view ("row.col.size", "" is the whole map): its weights in at most 512 x 512 cells, those outside the kept tiles, its
    rows and its columns.

    Exact if the head is pinned and the view is part of the map or not pooled by "max" (see `pool_of`), unless `exact` is
    declined; else cells of the overview, whose edges then move the window's.
    """
    overview, length = trace.overview(layer, head), trace.length
    row, col, size = _square(view, length)
    if exact and trace.pinned(layer, head) and (view or pool != "max"):
        rows, cols = (row, row + size), (col, col + size)
        return *trace.window_planes(layer, head, rows, cols, (512, 512), pool), rows, cols
    cells = len(overview)
    edges = np.arange(cells + 1) * length // cells
    (r0, r1), (c0, c1) = (
        (np.searchsorted(edges, start, "right") - 1, np.searchsorted(edges, start + size)) for start in (row, col)
    )
    planes = (plane[r0:r1, c0:c1] for plane in (overview, trace.overview_missed(layer, head)))
    return *planes, (int(edges[r0]), int(edges[r1])), (int(edges[c0]), int(edges[c1]))


def pool_of(trace, layer: int, head: int, state: dict[str, str]) -> str:
    """How the cells of the view are pooled: as chosen, if the head is pinned and the view is not too large; else by "max"."""
    size = _square(state["view"], trace.length)[2]
    fits = trace.pinned(layer, head) and size <= 512 << coarsest_level(trace, state["pool"])
    return state["pool"] if fits else "max"


def look_of(trace, layer: int, head: int, state: dict[str, str]) -> head_map.Look:
    """The page's switches, for a figure of what is on show."""
    sink = trace.config.sink_blocks * trace.config.block_size
    return head_map.Look(
        pool=pool_of(trace, layer, head, state),
        log=state["colours"] == "log",
        weights=state["weights"] == "on",
        missed=state["missed"] == "on",
        overlay=state["kept"] == "on",
        first_key=sink if state["sink"] == "hide" else 0,
        high=_locked(state["lock"]),
    )


def _locked(lock: str) -> float | None:
    """The greatest weight of a locked colour range; None if it is not locked, or what the address says is no number."""
    try:
        high = float(lock)
    except ValueError:
        return None
    return max(high, 10 * head_map.LOWEST) if 0 < high < float("inf") else None


def _square(view: str, length: int) -> tuple[int, int, int]:
    """Row, column and size of a view within the prompt."""
    row, col, size = (int(part) for part in view.split(".")) if view else (0, 0, length)
    size = min(max(size, 1), length)
    return min(row, length - size), min(col, length - size), size
