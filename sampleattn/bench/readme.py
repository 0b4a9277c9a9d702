"""The table of speeds in README.md, made of the rows of a CSV file. No torch."""

from __future__ import annotations

from pathlib import Path

from sampleattn.bench.bars import break_even, prefill_sentences
from sampleattn.bench.rows import Finder, label, machine_line, of_last_gpu, readable, tokens

BEGIN, END = "<!-- python -m sampleattn bench: table -->", "<!-- end of table -->"
LENGTHS = (8192, 32768, 131072)
LINES = (
    ("dense", "cudnn"),
    ("dense", "flash"),
    ("dense", "fa4"),
    ("sparse_forward", None),
    ("sparse_forward", "flex"),
    ("sparse_forward", "fa4"),
    ("sample_attention", "triton, density 0.1"),
    ("sample_attention", "triton, joint"),
    ("sample_attention", "auto, density 0.1"),
)


def table(rows: list[dict]) -> list[str]:
    """Lines of Markdown: milliseconds call by call, at head_dim 128 and the fewest tiles, and how many times cuDNN's speed."""
    rows = of_last_gpu([row for row in readable(rows) if row["mode"] != "graph"])
    find = Finder(rows)
    whole = {length: _fewest(find, "sample_attention", "triton", length) for length in LENGTHS}
    lengths = [length for length, row in whole.items() if row and find.time("dense", "cudnn", length)]
    if not lengths:
        return ["No figures yet."]
    head = [f"{tokens(length)} tokens, {whole[length]['density']:.0%} of the tiles" for length in lengths]
    lines = [f"| milliseconds | {' | '.join(head)} |", "|---" * (len(lengths) + 1) + "|"]
    for what, name in LINES:
        found = [_fewest(find, what, name, length) for length in lengths]
        if any(found):
            cells = [_cell(row, find.time("dense", "cudnn", length)) for row, length in zip(found, lengths, strict=True)]
            lines.append(f"| {label(what, name or 'triton')} | {' | '.join(cells)} |")
    measured = [row for row in rows if row["what"] in ("dense", "sample_attention", "sparse_forward")]
    machine = machine_line(max(reversed(measured), key=lambda row: len(row["libraries"])))  # of a run with all rivals
    return [*lines, "", *_sentences(find, rows), f"{machine}; bfloat16, 32 query and 8 key heads."]


def _fewest(find, what, name, length):
    """The newest row of the least density."""
    return min(find.all(what, name, length), key=lambda row: row["density"], default=None)


def _cell(row, dense) -> str:
    if row is None:
        return ""
    times = dense / row["median_ms"]
    return f"{row['median_ms']:.3g}" + ("" if row["implementation"] == "cudnn" else f" ({times:.2g}×)")


def _sentences(find, rows) -> list[str]:
    for name in ("triton, density", "triton, joint"):
        lengths = sorted({row["length"] for row in rows if row["what"] == "sample_attention"})
        pairs = [(n, find.time("sample_attention", name, n), find.time("dense", "cudnn", n)) for n in lengths]
        pairs = [pair for pair in pairs if None not in pair]
        if pairs:
            even = break_even(*zip(*pairs, strict=True))
            words = (
                "The whole method is slower than cuDNN dense at every length."
                if even is None
                else f"The whole method pays from {tokens(even)} tokens on."
            )
            return [words, *prefill_sentences(rows)]
    return prefill_sentences(rows)


def write(path: Path, rows: list[dict]) -> None:
    """Put the table between the two marks in a Markdown file. ValueError if they are not there."""
    text = path.read_text(encoding="utf-8")
    before, begin, rest = text.partition(BEGIN)
    _, end, after = rest.partition(END)
    if not begin or not end:
        raise ValueError(f"{path} has no lines {BEGIN} and {END} to write the table between")
    path.write_text(f"{before}{BEGIN}\n\n{chr(10).join(table(rows))}\n\n{END}{after}", encoding="utf-8")
