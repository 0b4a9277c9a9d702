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
    """One speed-up, and the sentence that says of what."""

    speedup: float
    sentence: str


def headline(rows: list[dict]) -> Headline | None:
    """SampleAttention against the fastest dense attention, at the greatest recorded length where both are."""
    for what, words in (
        ("sample_attention", "the whole method"),
        ("sparse_forward", "sparse attention alone (without choosing the tiles)"),
    ):
        sparse = [row for row in rows if row["what"] == what]
        for mine in sorted(sparse, key=lambda row: (-row["length"], row["density"])):
            dense = [
                row
                for row in rows
                if row["what"] == "dense" and all(row[name] == mine[name] for name in ("length", "head_dim", "gpu"))
            ]
            if dense:
                best = min(dense, key=lambda row: row["median_ms"])
                share = f" at {mine['density']:.0%} of the tiles" if mine["density"] == mine["density"] else ""
                return Headline(
                    best["median_ms"] / mine["median_ms"],
                    f"{words[0].upper()}{words[1:]}{share} against the fastest dense attention ({best['implementation']}) for one layer at "
                    f"{mine['length']:,.0f} tokens: {mine['median_ms']:.3g} against {best['median_ms']:.3g} ms on {mine['gpu']}, {mine['date']}.",
                )
    return None
