"""The CSV file and the rows as text. No torch."""

from __future__ import annotations

import csv
from pathlib import Path

from sampleattn.bench.rows import COLUMNS

SHOWN = {"what": 17, "implementation": 31, "length": 9, "head_dim": 9, "density": 9, "input": 9, "mode": 7}
SHOWN |= {"median_ms": 12, "p20_ms": 12, "p80_ms": 12, "tflops": 9, "memory_mb": 10}


def append(path: Path, rows: list[dict]) -> None:
    """Add rows to a CSV file with the header COLUMNS; the file and its folder are made if need be.

    A file with another header is written anew, with the columns that it lacked empty.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    before = _rows_to_rewrite(path)
    if before is not None:
        rows = [*before, *rows]
    with open(path, "a" if before is None else "w", newline="", encoding="utf-8") as file:
        writer = csv.DictWriter(file, COLUMNS, lineterminator="\n", extrasaction="ignore", restval="")
        if before is not None:
            writer.writeheader()
        writer.writerows(rows)


def _rows_to_rewrite(path: Path) -> list[dict] | None:
    """The rows of a file that needs a new header (a missing or empty file has none); None if its header is COLUMNS."""
    if not path.exists():
        return []
    with open(path, newline="", encoding="utf-8") as file:
        reader = csv.DictReader(file)
        return None if tuple(reader.fieldnames or ()) == COLUMNS else list(reader)


def header() -> str:
    return "".join(f"{name:<{width}}" if width > 12 else f"{name:>{width}}" for name, width in SHOWN.items())


def line(row: dict) -> str:
    return "".join(f"{row[name]:<{width}}" if width > 12 else f"{row[name]:>{width}}" for name, width in SHOWN.items())


def read(path: Path) -> list[dict]:
    """The rows of a file, as texts; none if there is no file."""
    if not path.is_file():
        return []
    with open(path, newline="", encoding="utf-8") as file:
        return list(csv.DictReader(file))
