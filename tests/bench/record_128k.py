"""A recording of the bundled model at 131,072 tokens, eight times its context: time, memory, sizes, windows. A table, no tests.

python tests/bench/record_128k.py OUT [--tokens 131072] [--pin-heads 4.0,4.1]

OUT is the trace's folder or .zip. The model was trained up to 16,384 tokens: what is looked at is the tool, not the model.
"""

from __future__ import annotations

import argparse
import os
import resource
import sys
import time
from pathlib import Path

import numpy as np
import torch

ROOT = Path(__file__).resolve().parents[2]
sys.path.insert(0, str(ROOT))

from sampleattn import Trace, record  # noqa: E402
from sampleattn.models import load_model  # noqa: E402
from sampleattn.trace_size import estimate_size  # noqa: E402


def python_sources(characters: int) -> str:
    """The modules of Python's library, one after the other, as far as is asked for."""
    texts, size = [], 0
    for path in sorted(Path(os.__file__).parent.glob("*.py")):
        texts.append(path.read_text(errors="ignore"))
        size += len(texts[-1])
        if size > characters:
            break
    return "\n".join(texts)


def furthest_from_softmax(trace: Trace, layer: int, head: int, windows: int = 6) -> float:
    """The largest relative error of weights above 1e-8 in windows of 64 x 64 tokens, against a float64 softmax."""
    q, k, _ = (array.astype(np.float64) for array in trace.queries_and_keys(layer, head))
    rng, worst = np.random.default_rng(0), 0.0
    for _ in range(windows):
        row = int(rng.integers(64, trace.length - 64))
        column = int(rng.integers(row - 63))
        scores = q[row : row + 64] @ k[: row + 64].T * trace.scale(layer)
        scores[np.arange(row + 64) > np.arange(row, row + 64)[:, None]] = -np.inf
        weights = np.exp(scores - scores.max(axis=1, keepdims=True))
        exact = (weights / weights.sum(axis=1, keepdims=True))[:, column : column + 64]
        found = trace.window(layer, head, (row, row + 64), (column, column + 64), (64, 64))
        worst = max(worst, float((np.abs(found - exact) / np.maximum(exact, 1e-8)).max()))
    return worst


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("out", type=Path)
    parser.add_argument("--tokens", type=int, default=131072)
    parser.add_argument("--pin-heads", default="4.0,4.1", help="layer.head,... (default: 4.0,4.1)")
    args = parser.parse_args()
    pins = [tuple(map(int, pair.split("."))) for pair in args.pin_heads.split(",")]
    cuda = torch.cuda.is_available()
    model, tokenizer, _ = load_model("bundled", "cuda" if cuda else "cpu", torch.bfloat16 if cuda else None)
    model.config.max_position_embeddings = max(args.tokens, model.config.max_position_embeddings)
    started = time.perf_counter()
    trace = record(
        model, tokenizer, python_sources(8 * args.tokens), max_tokens=args.tokens, level="pinned", pin_heads=pins,
        model_name="bundled", title=f"Python sources, {args.tokens:,} tokens",
        progress=lambda share, text, left: print(f"\r{share:4.0%} {text:40}", end="", file=sys.stderr),
    )  # fmt: skip
    rows = [("whole recording, s", f"{time.perf_counter() - started:.1f}")]
    rows += [(name, f"{seconds:.2f}") for name, seconds in trace.meta["timings"].items() if name.endswith("_s")]
    if cuda:
        rows.append(("peak GPU memory, GiB", f"{torch.cuda.max_memory_allocated() / 2**30:.2f}"))
    rows.append(("peak memory, GiB", f"{resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**20:.2f}"))
    sizes = trace.meta["model"]
    shape = *(sizes[name] for name in ("layers", "heads", "kv_heads", "head_dim")), trace.length
    given = {"vocabulary": model.config.vocab_size, "text_bytes": len(trace.text.encode()), "pin_bytes": 2 if cuda else 4}
    written = sum(file["bytes"] for file in trace.meta["files"].values())
    rows.append(("bytes written, estimated", f"{written:,}, {estimate_size('pinned', *shape, pins, **given):,}"))
    rows += [
        (f"windows of {layer}.{head}, largest error", f"{furthest_from_softmax(trace, layer, head):.1e}") for layer, head in pins
    ]
    trace.save(args.out)
    print("\n| what | measured |\n|---|---|\n" + "\n".join(f"| {name} | {value} |" for name, value in rows))


if __name__ == "__main__":
    main()
