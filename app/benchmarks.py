"""What a benchmark's rows say: those of data/benchmarks.csv, or of a run on this machine. No streamlit, no torch."""

from __future__ import annotations

import csv
import statistics
from collections.abc import Iterable
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path

from app.reading import ROOT, visible
from sampleattn.bench import rows as benchmark_rows
from sampleattn.bench.bars import break_even
from sampleattn.bench.rows import is_rival, label

FILE = ROOT / "data" / "benchmarks.csv"
ROOF = ("matmul", "copy")


def load(path: Path = FILE) -> list[dict]:
    """The rows that can be read, numbers as floats (NaN where empty); an empty list if there is no such file. Read once: do not
    change them."""
    if not path.is_file():
        return []
    status = path.stat()
    return _read(path, (status.st_mtime_ns, status.st_size))


@lru_cache(4)
def _read(path: Path, stamp: tuple) -> list[dict]:
    with open(path, newline="", encoding="utf-8", errors="replace") as file:
        return readable(csv.DictReader(line for line in file if not line.startswith("#")))


def readable(rows: Iterable[dict]) -> list[dict]:
    """Rows of a file or of a run as `bench.rows.readable` gives them, safe to show; without those of no length or roof."""
    rows = [
        {name: visible(value) if isinstance(value, str) else value for name, value in row.items()}
        for row in benchmark_rows.readable(rows)
    ]
    return [row for row in rows if row["length"] > 0 or row["what"] in ROOF]


def by_gpu(rows: list[dict]) -> dict[str, list[dict]]:
    """The rows of each GPU (or CPU), the one measured last first: times of different ones are not held beside each other."""
    names = dict.fromkeys(row["gpu"] for row in reversed(rows))
    return {name: [row for row in rows if row["gpu"] == name] for name in names}


def newest(rows: list[dict]) -> list[dict]:
    """The rows of the GPU that was measured last."""
    return next(iter(by_gpu(rows).values()), [])


def compared(rows: list[dict], head_dim: float) -> list[dict]:
    """The rows to hold beside each other: one head_dim, call by call, one input; of each thing and length the fewest tiles."""
    kept: dict[tuple, dict] = {}
    inputs = {row["input"] for row in rows if row["what"] not in ROOF}
    wanted = ("planted", "") if inputs & {"planted", ""} else ("recorded",)
    for row in rows:
        if row["head_dim"] != head_dim or row["mode"] == "graph" or row["input"] not in wanted:
            continue
        key = row["what"], row["implementation"], row["length"]
        if key not in kept or not row["density"] > kept[key]["density"]:
            kept[key] = row
    return sorted(kept.values(), key=lambda row: row["length"])


def head_dims(rows: list[dict]) -> list[int]:
    """The head dimensions with both dense attention and the whole method, largest first."""
    both = ({row["head_dim"] for row in rows if row["what"] == what} for what in ("dense", "sample_attention"))
    return sorted((int(dim) for dim in set.intersection(*both) if dim == dim), reverse=True)


@dataclass(frozen=True)
class Comparison:
    """The whole method beside dense attention, at the lengths that have both.

    ours, dense: their rows, short lengths first. even: tokens from which on ours is not slower; None if it is at the longest.
    """

    ours: list[dict]
    dense: list[dict]
    even: float | None

    @property
    def speedup(self) -> float:
        """At the longest length."""
        return self.dense[-1]["median_ms"] / self.ours[-1]["median_ms"]


def comparison(rows: list[dict]) -> Comparison | None:
    """Of `compared` rows: the method (not `auto`) and the dense attention that were timed at most lengths; None without both."""
    ours = _longest([row for row in rows if row["what"] == "sample_attention" and not row["implementation"].startswith("auto")])
    dense = _longest([row for row in rows if row["what"] == "dense"])
    both = sorted(ours.keys() & dense.keys())
    if not both:
        return None
    pairs = [ours[length] for length in both], [dense[length] for length in both]
    return Comparison(*pairs, break_even(both, *([row["median_ms"] for row in rows] for rows in pairs)))


def _longest(rows) -> dict[float, dict]:
    """length -> row, of the implementation with the most lengths; among equals the fastest at its longest."""
    curves: dict[str, dict[float, dict]] = {}
    for row in rows:
        curves.setdefault(row["implementation"], {})[row["length"]] = row
    return max(curves.values(), key=lambda curve: (len(curve), -curve[max(curve)]["median_ms"]), default={})


@dataclass(frozen=True)
class Roof:
    """What a machine can do, as measured: TFLOP/s of a large matrix product, TB/s of a copy."""

    rate: float
    bandwidth: float

    @property
    def ridge(self) -> float:
        """Operations per byte from which on the matrix rate is the limit."""
        return self.rate / self.bandwidth

    def limit(self, intensity):
        """TFLOP/s that are possible at so many operations per byte (a number or an array)."""
        import numpy as np

        return np.minimum(self.rate, intensity * self.bandwidth)


def roof(rows: list[dict]) -> Roof | None:
    """The newest measured roof; None if a row is missing."""
    newest: dict[str, dict] = {row["what"]: row for row in rows if row["what"] in ROOF}
    if len(newest) < 2:
        return None
    return Roof(newest["matmul"]["tflops"], newest["copy"]["gbytes"] / newest["copy"]["median_ms"])


def intensity(row: dict) -> float:
    """Operations per byte moved at least; NaN where either is not counted."""
    return row["tflops"] * row["median_ms"] / row["gbytes"]


@dataclass(frozen=True)
class Headline:
    """The speed-up of the whole method, and the sentence that says of what."""

    speedup: float
    sentence: str


def headline(rows: list[dict], head_dim: int | None = None) -> Headline | None:
    """SampleAttention against the fastest dense attention at the longest recorded length that has both; None without."""
    dims = head_dims(rows)
    if not dims or head_dim not in (None, *dims):
        return None
    rows = compared(rows, head_dim or dims[0])
    lengths = [{row["length"] for row in rows if row["what"] == what} for what in ("dense", "sample_attention")]
    if not set.intersection(*lengths):
        return None
    there = [row for row in rows if row["length"] == max(set.intersection(*lengths))]

    def fastest(what: str):
        wanted = (row for row in there if row["what"] == what and is_rival(row) == (what == "dense"))
        return min(wanted, key=lambda row: row["median_ms"], default=None)

    mine, dense = fastest("sample_attention"), fastest("dense")
    return Headline(dense["median_ms"] / mine["median_ms"], _sentence(mine, dense))


def of_recording(trace) -> Headline | None:
    """The median layer's attention in both runs of a trace recorded on a GPU; None of others."""
    device = trace.meta["machine"].get("device") or ""
    pairs = [
        (layer["seconds"]["dense_attention"], layer["seconds"]["sparse_run_attention"])
        for layer in trace.meta["layers"]
        if layer["ran"] == "sparse" and {"dense_attention", "sparse_run_attention"} <= layer["seconds"].keys()
    ]
    if not pairs or not device.startswith(("NVIDIA", "AMD")):
        return None
    dense, sparse = (1e3 * statistics.median(times) for times in zip(*pairs, strict=True))
    sentence = (
        f"A layer's attention, the choice of tiles included, took {sparse:.3g} ms in the sparse run of this prompt in place of "
        f"{dense:.3g} ms in the dense one: median of {len(pairs)} layers, one run each, on {device}."
    )
    return Headline(dense / sparse, sentence) if sparse > 0 else None


def _sentence(mine, dense) -> str:
    return (
        f"The attention of one layer at {mine['length']:,.0f} tokens and {mine['density']:.0%} of the tiles takes "
        f"{mine['median_ms']:.3g} ms in place of {dense['median_ms']:.3g} ms, the fastest dense attention "
        f"({label('dense', dense['implementation'])}), on {mine['gpu']}, {mine['date']}."
    )
