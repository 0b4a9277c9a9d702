"""`python -m sampleattn bench`: times the parts asked for, appends their rows to a CSV file, and prints them beside the bars."""

from __future__ import annotations

import argparse
import sys
from pathlib import Path

import torch

from sampleattn.attention import sample_attention
from sampleattn.bench import readme, report
from sampleattn.bench.bars import bars_table, prefill_sentences
from sampleattn.bench.cases import forced
from sampleattn.bench.measure import DEFAULT, PARTS, Shape, measure
from sampleattn.bench.rows import machine_line
from sampleattn.planted import planted

DETECTION_LENGTH = 32768
NAMES = ("roof", *PARTS, "prefill")


def add_arguments(parser: argparse.ArgumentParser) -> None:
    known = ", ".join(NAMES)
    parser.add_argument("--out", type=Path, required=True, help="CSV file that the rows are appended to")
    parser.add_argument("--only", help=f'parts, with commas, of: {known} (default: {", ".join(DEFAULT)}); "" for none')
    parser.add_argument("--lengths", help="tokens, with commas (default: those of each part)")
    parser.add_argument("--density", type=float, default=0.1, help="share of the causal tiles (default %(default)s)")
    parser.add_argument("--head-dim", type=int, default=128)
    parser.add_argument("--heads", type=int, default=32)
    parser.add_argument("--kv-heads", type=int, default=8)
    parser.add_argument("--dtype", choices=("bfloat16", "float16", "float32"), help="bfloat16; float32 on a CPU")
    parser.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu")
    parser.add_argument("--seconds", type=float, default=0.3, help="how long each call is repeated (default %(default)s)")
    parser.add_argument("--readme", type=Path, help="Markdown file whose table of speeds is then made anew from --out")
    parser.add_argument("--no-rivals", action="store_true", help="leave out the attention of others")


def run(args: argparse.Namespace) -> int:
    """The command: 0 when rows were written, 1 with a sentence on stderr when something failed (rows so far are kept)."""
    rows, failed = [], 0
    try:
        names, lengths, shape = _arguments(args)
        progress = _Progress()
        for row in measure(names, shape, args.density, lengths, not args.no_rivals, args.seconds, progress):
            if not rows:
                print(f"{machine_line(row)}\n{report.header()}")
            rows.append(row)
            report.append(args.out, [row])
            print(report.line(row), flush=True)
    except (RuntimeError, ValueError, TypeError) as error:
        print(f"bench: {error}", file=sys.stderr)
        failed = 1
    if rows:
        print("\n".join(["", *bars_table(rows), *prefill_sentences(rows), "", *progress.notes]))
        print(detection(min(max(lengths or [DETECTION_LENGTH]), DETECTION_LENGTH), shape, args.density))
    if args.readme and not failed:
        readme.write(args.readme, report.read(args.out))
    return failed


def _arguments(args) -> tuple[list[str], list[int] | None, Shape]:
    names = list(DEFAULT) if args.only is None else [name.strip() for name in args.only.split(",") if name.strip()]
    unknown = sorted(set(names) - set(NAMES))
    if unknown:
        raise ValueError(f"--only knows no {', '.join(unknown)}; it knows {', '.join(NAMES)}")
    lengths = [int(text) for text in args.lengths.split(",")] if args.lengths else None
    counts = (*(lengths or ()), args.heads, args.kv_heads, args.head_dim)
    if min(counts) < 1 or not 0 < args.density <= 1 or args.heads % args.kv_heads:
        raise ValueError("lengths must be positive, sizes too, density above 0 and at most 1, heads a multiple of kv-heads")
    device = torch.device(args.device)
    if device.type == "cuda" and not torch.cuda.is_available():
        raise ValueError(f"{args.device} can't be used: torch finds no such device on this machine; choose --device cpu")
    dtype = getattr(torch, args.dtype or ("bfloat16" if device.type == "cuda" else "float32"))
    return names, lengths, Shape(args.heads, args.kv_heads, args.head_dim, dtype, device)


def detection(length: int, shape: Shape, density: float) -> str:
    """One line: how much of what was planted `sample_attention` finds."""
    x = planted(length, shape.heads, shape.kv_heads, shape.head_dim, density, shape.dtype, shape.device)
    _, selection = sample_attention(x.q, x.k, x.v, forced(shape.device), return_selection=True)
    return (
        f"Of the tiles planted at {length:,} tokens (density {x.density:.3f}) {x.found(selection.block_mask):.1%} were kept, "
        f"at density {float(selection.density.mean()):.3f}; sampled CRA at least {float(selection.sampled_cra.min()):.3f}."
    )


class _Progress:
    """Says on stderr what is being timed, and keeps what was left out for the end."""

    def __init__(self):
        self.notes = []

    def __call__(self, fraction: float, text: str) -> None:
        if (" left out: " in text or text.startswith("no graph of")) and text not in self.notes:
            self.notes.append(text)
        print(f"{fraction:4.0%}  {text}", file=sys.stderr, flush=True)
