"""The recorded GPU figures of data/benchmarks.csv. No streamlit."""

from __future__ import annotations

import csv
from dataclasses import dataclass
from pathlib import Path

from app.reading import ROOT, visible

FILE = ROOT / "data" / "benchmarks.csv"
TEXT = ("date", "gpu", "torch", "triton", "what", "implementation", "dtype")
NUMBERS = ("length", "head_dim", "heads", "kv_heads", "density", "median_ms", "p20_ms", "p80_ms", "tflops")


def load(path: Path = FILE) -> list[dict]:
    """The rows that can be read, numbers as floats (NaN where empty); an empty list if there is no such file."""
    if not path.is_file():
        return []
    with open(path, newline="", encoding="utf-8", errors="replace") as file:
        rows = [_row(row) for row in csv.DictReader(line for line in file if not line.startswith("#"))]
    return [row for row in rows if row["median_ms"] > 0 and row["length"] > 0]


def _row(row):
    return {name: visible(row.get(name) or "") for name in TEXT} | {name: _number(row.get(name)) for name in NUMBERS}


def _number(text) -> float:
    try:
        return float(text)
    except (TypeError, ValueError):
        return float("nan")


@dataclass(frozen=True)
class Headline:
    """The speed-up of the whole method, and the sentence that says of what."""

    speedup: float
    sentence: str


def headline(rows: list[dict], head_dim: int | None = None) -> Headline | None:
    """SampleAttention against the fastest dense attention at the longest recorded length; None without both."""
    wanted = [row for row in rows if head_dim in (None, row["head_dim"])]
    for mine in sorted(
        (row for row in wanted if row["what"] == "sample_attention"), key=lambda row: (-row["length"], row["median_ms"])
    ):
        there = [row for row in wanted if all(row[name] == mine[name] for name in ("length", "head_dim", "heads", "gpu"))]
        dense = min((row for row in there if row["what"] == "dense"), key=_time, default=None)
        alone = min((row for row in there if row["what"] == "sparse_forward"), key=_time, default=None)
        if dense:
            return Headline(_time(dense) / _time(mine), _sentence(mine, dense, alone))
    return None


def _time(row) -> float:
    return row["median_ms"]


def _sentence(mine, dense, alone) -> str:
    sentence = (
        f"For the attention of one layer at {mine['length']:,.0f} tokens and {mine['density']:.0%} of the tiles: "
        f"{_time(mine):.3g} ms for the whole method, {_time(dense):.3g} ms for the fastest "
        f"dense attention ({dense['implementation']}). "
    )
    if alone:
        sentence += f"Without choosing the tiles: {_time(dense) / _time(alone):.1f} × ({_time(alone):.3g} ms). "
    return f"{sentence}{mine['gpu']}, {mine['date']}."
