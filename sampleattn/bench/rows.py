"""Rows of the benchmark as values: numbers, the newest row for a question, and names in words. No torch."""

from __future__ import annotations

from collections.abc import Iterable, Iterator

WHERE = ("date", "gpu", "torch", "triton", "libraries")
SETTING = ("what", "implementation", "length", "head_dim", "heads", "kv_heads", "density", "dtype", "input", "mode")
MEASURED = ("median_ms", "p20_ms", "p80_ms", "tflops", "gbytes", "memory_mb")
COLUMNS = (*WHERE, *SETTING, *MEASURED)
NUMBERS = ("length", "head_dim", "heads", "kv_heads", "density", *MEASURED)

WORDS = {
    "dense": "dense",
    "sample_attention": "whole method",
    "sparse_forward": "sparse attention",
    "stage_1": "stage 1: sampling",
    "selection": "stage 2: selection",
    "index_lists": "index lists",
    "choosing": "both stages and the lists",
    "row_logsumexp": "logsumexp of every row",
}
BY_TARGET = "tiles by target"
RIVALS = {
    "cudnn": "cuDNN",
    "flash": "FlashAttention-2",
    "flex": "FlexAttention",
    "fa4": "FlashAttention-4",
    "sdpa": "PyTorch SDPA",
}


def readable(rows: Iterable[dict]) -> list[dict]:
    """Rows of a file or of a run, with every column, numbers as floats (NaN where empty); without those that hold no time."""
    texts = [name for name in COLUMNS if name not in NUMBERS]
    rows = [
        {name: str(row.get(name) or "") for name in texts} | {name: _number(row.get(name)) for name in NUMBERS} for row in rows
    ]
    return [row for row in rows if row["median_ms"] > 0]


def of_last_gpu(rows: list[dict]) -> list[dict]:
    """The rows of the GPU that was measured last: times of different GPUs are not held beside each other."""
    return [row for row in rows if row["gpu"] == rows[-1]["gpu"]]


def _number(text) -> float:
    try:
        return float(text)
    except (TypeError, ValueError):
        return float("nan")


def is_rival(row: dict) -> bool:
    """Whether the row times something of others."""
    return row["implementation"] in RIVALS


class Finder:
    """Finds readable rows of planted (or random) inputs."""

    def __init__(self, rows: list[dict]):
        self.rows = [row for row in rows if row["input"] != "recorded"]

    def all(self, what, implementation, length, head_dim=128) -> Iterator[dict]:
        """The rows, newest first. implementation: a name or the start of one; None means ours."""
        for row in reversed(self.rows):
            fits = not is_rival(row) if implementation is None else row["implementation"].startswith(implementation)
            if fits and (row["what"], row["length"], row["head_dim"]) == (what, length, head_dim):
                yield row

    def row(self, what, implementation, length, head_dim=128, density=None) -> dict | None:
        """The newest row; its density within 15% of `density`."""
        rows = self.all(what, implementation, length, head_dim)
        return next((row for row in rows if density is None or abs(row["density"] - density) <= 0.15 * density), None)

    def time(self, what, implementation, length, head_dim=128, density=None) -> float | None:
        """Milliseconds."""
        row = self.row(what, implementation, length, head_dim, density)
        return row and row["median_ms"]

    def rate(self, what, implementation, length, head_dim=128, density=None) -> float | None:
        """TFLOP/s."""
        row = self.row(what, implementation, length, head_dim, density)
        return row and row["tflops"]


def label(what: str, implementation: str) -> str:
    """What a row shows, in words: whose it is if not ours, and how the tiles were chosen."""
    words = WORDS.get(what, what.replace("_", " "))
    if implementation in RIVALS:
        return f"{RIVALS[implementation]} {'dense' if what == 'dense' else 'on the same tiles'}"
    backend, _, choice = implementation.partition(", ")
    if what == "sample_attention":
        return f"{'auto' if backend == 'auto' else words}, {_choice(choice)}"
    return words if what in WORDS else f"{words}, {implementation}"


def _choice(choice: str) -> str:
    kind, _, share = choice.partition(" ")
    return f"{_number(share):.0%} of the tiles" if kind == "density" else BY_TARGET


def tokens(length: float) -> str:
    """A length as people say it: 512, 8K, 5.3K."""
    thousands = length / 1024
    return f"{length:.0f}" if thousands < 1 else f"{thousands:.2g}K" if thousands < 10 else f"{thousands:.0f}K"


def machine_line(row: dict) -> str:
    """GPU, versions and date."""
    versions = (f"torch {row['torch']}", f"triton {row['triton'] or 'none'}", *filter(None, (row["libraries"],)))
    return ", ".join((row["gpu"], *versions, row["date"]))
