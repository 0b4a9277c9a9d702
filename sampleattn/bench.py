"""`python -m sampleattn bench`: what each stage costs, next to dense attention, on inputs whose structure is planted and known.

Times are medians with their 20th and 80th percentile; operations of causal attention are counted once, on the computed tiles.
No speed is reported unless the operators first pass a check against float64 on the same device.
"""

from __future__ import annotations

import argparse
import csv
import datetime
import platform
import statistics
import sys
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path

import torch
import torch.nn.functional as F
from torch import Tensor

from sampleattn import backends
from sampleattn.attention import sample_attention
from sampleattn.block_mask import Grid
from sampleattn.config import SampleAttentionConfig
from sampleattn.filtering import select
from sampleattn.planted import BLOCK, Planted, planted
from sampleattn.sampling import sampled_rows

WHERE = ("date", "gpu", "torch", "triton")
WHAT = ("what", "implementation", "length", "head_dim", "heads", "kv_heads", "density", "dtype")
COLUMNS = (*WHERE, *WHAT, "median_ms", "p20_ms", "p80_ms", "tflops")

Progress = Callable[[float, str], None]


def time_call(
    fn: Callable[[], object], device, seconds: float = 0.5, least: int = 5, most: int = 50
) -> tuple[float, float, float]:
    """(median, 20th, 80th percentile) milliseconds of fn(): CUDA events on a GPU, a clock elsewhere; warmed up, then repeated for
    about `seconds`."""
    cuda = torch.device(device).type == "cuda"
    fn()  # compiles
    once = _timed(fn, cuda, 1)[0]
    times = sorted(_timed(fn, cuda, min(max(int(seconds * 1e3 / max(once, 1e-3)), least), most)))
    return statistics.median(times), times[len(times) // 5], times[-1 - len(times) // 5]


def _timed(fn, cuda, repeats):
    if not cuda:
        clock = [time.perf_counter()]
        for _ in range(repeats):
            fn()
            clock.append(time.perf_counter())
        return [1e3 * (b - a) for a, b in zip(clock, clock[1:], strict=False)]
    marks = [(torch.cuda.Event(enable_timing=True), torch.cuda.Event(enable_timing=True)) for _ in range(repeats)]
    torch.cuda.synchronize()
    for start, end in marks:
        start.record()
        fn()
        end.record()
    torch.cuda.synchronize()
    return [start.elapsed_time(end) for start, end in marks]


# What is timed


@dataclass(frozen=True)
class Case:
    """One thing to time: `make()` prepares it and returns the call; operations counted once; density is the tiles' share."""

    what: str
    implementation: str
    make: Callable[[], Callable[[], object]]
    density: float | None
    operations: float | None


def cases(x: Planted, config: SampleAttentionConfig, selections=("joint",), rivals=True) -> Iterator[Case]:
    """The stages on planted inputs with the planted mask, the whole method for each selection, and the dense rivals."""
    q, k, v, mask = x.q, x.k, x.v, x.mask
    heads, length, head_dim = q.shape[1:]
    ops = backends.twins(backends.resolve(config.backend, q.device))
    dense = 4 * heads * head_dim * length**2 / 2
    grid = Grid(length, length, BLOCK, q.device)
    rows = sampled_rows(grid, config)
    if rivals:
        for name in ("cudnn", "flash", "flex") if q.is_cuda else ("sdpa",):
            yield Case("dense", name, lambda name=name: _dense(name, q, k, v), 1.0, dense)
    yield Case(
        "sparse_forward",
        ops.name,
        lambda: lambda: ops.block_sparse_attention(q, k, v, mask),
        x.density,
        _on_tiles(mask, head_dim),
    )
    if rivals and q.is_cuda:
        yield Case("sparse_forward", "flex", lambda: _flex(q, k, v, mask), x.density, _on_tiles(mask, head_dim))
    seen = float((rows + 1).sum())
    yield Case("stage_1", ops.name, lambda: lambda: ops.sampled_tile_masses(q, k, rows), None, 2 * heads * head_dim * seen)
    for selection in selections:
        chosen = config.replace(selection=selection)
        masses, _ = ops.sampled_tile_masses(q, k, rows)
        picked = select(masses, rows, grid, chosen)
        share, work = float(picked.density.mean()), _on_tiles(picked.block_mask, head_dim)
        yield Case("selection", selection, lambda m=masses, c=chosen: lambda: select(m, rows, grid, c), share, None)
        del masses, picked
        yield Case(
            "sample_attention", f"{ops.name}, {selection}", lambda c=chosen: lambda: sample_attention(q, k, v, c), share, work
        )
    yield Case("row_logsumexp", ops.name, lambda: lambda: ops.row_logsumexp(q, k), 1.0, dense / 2)


def _on_tiles(mask: Tensor, head_dim: int) -> float:
    """Operations of QK and PV over the tiles of a causal mask; a diagonal tile counts half."""
    tiles = float(mask.sum()) - float(mask.diagonal(dim1=-2, dim2=-1).sum()) / 2
    return 4 * head_dim * BLOCK**2 * tiles


def _dense(name, q, k, v):
    if name == "flex":
        blocks = -(-q.shape[2] // BLOCK)
        return _flex(q, k, v, torch.ones(1, 1, blocks, blocks, dtype=torch.bool, device=q.device).tril())
    if name == "sdpa":
        return lambda: F.scaled_dot_product_attention(q, k, v, is_causal=True, enable_gqa=True)
    from torch.nn.attention import SDPBackend, sdpa_kernel

    kernel = {"cudnn": SDPBackend.CUDNN_ATTENTION, "flash": SDPBackend.FLASH_ATTENTION}[name]

    def call(k=k, v=v, grouped=True):
        with sdpa_kernel(kernel):
            return F.scaled_dot_product_attention(q, k, v, is_causal=True, enable_gqa=grouped)

    try:
        call()
    except RuntimeError:  # no grouped heads: the keys are repeated outside the timed call
        group = q.shape[1] // k.shape[1]
        repeated = [x.repeat_interleave(group, 1) for x in (k, v)]
        return lambda: call(*repeated, grouped=False)
    return call


def _flex(q, k, v, mask):
    from torch.nn.attention.flex_attention import BlockMask, flex_attention

    def causal(b, h, i, j):
        return i >= j

    diagonal = torch.eye(mask.shape[-1], dtype=torch.bool, device=mask.device)
    lists = []
    for tiles in (mask & diagonal, mask & ~diagonal):
        lists += [tiles.sum(-1, dtype=torch.int32), tiles.byte().argsort(dim=-1, descending=True, stable=True).int()]
    block_mask = BlockMask.from_kv_blocks(*lists, BLOCK_SIZE=BLOCK, mask_mod=causal, seq_lengths=(q.shape[2], k.shape[2]))
    compiled = torch.compile(flex_attention, dynamic=False)
    return lambda: compiled(q, k, v, block_mask=block_mask, enable_gqa=True)


def check(backend: str, device, dtype, head_dim: int) -> str:
    """What is wrong with the three operators at a small size, against float64; empty if nothing is."""
    generator = torch.Generator().manual_seed(7)
    q, k, v = (torch.randn(1, heads, 600, head_dim, generator=generator).to(device, dtype) for heads in (4, 2, 2))
    mask = (torch.rand(1, 4, 5, 5, generator=generator) < 0.5).logical_or(torch.eye(5, dtype=torch.bool)).tril().to(device)
    ops = backends.twins(backend)
    logits = q.double() @ k.double().repeat_interleave(2, 1).mT * head_dim**-0.5
    logits = logits.masked_fill(~torch.ones(600, 600, dtype=torch.bool, device=device).tril(), -torch.inf)
    cells = mask.repeat_interleave(BLOCK, 2).repeat_interleave(BLOCK, 3)[:, :, :600, :600]
    exact = logits.masked_fill(~cells, -torch.inf).softmax(-1) @ v.double().repeat_interleave(2, 1)
    rows = torch.arange(0, 600, 3, device=device)[None]
    masses = F.pad(logits.softmax(-1)[:, :, ::3], (0, 40)).unflatten(-1, (5, BLOCK)).sum(-1)
    results = {
        "block_sparse_attention": (ops.block_sparse_attention(q, k, v, mask)[0], exact, max(4 * torch.finfo(dtype).eps, 1e-5)),
        "row_logsumexp": (ops.row_logsumexp(q, k), logits.logsumexp(-1), 1e-4),
        "sampled_tile_masses": (ops.sampled_tile_masses(q, k, rows)[0], masses, 1e-4),
    }
    for name, (found, truth, allowed) in results.items():
        error = float((found.double() - truth).abs().max())
        if not error <= allowed:
            return f"{name} is off by {error:.3g} from float64 at 600 tokens (allowed {allowed:.3g}), so no speed is reported"
    return ""


def measure(
    lengths,
    heads: int = 32,
    kv_heads: int = 8,
    head_dim: int = 128,
    density: float = 0.1,
    dtype=torch.bfloat16,
    device="cuda",
    config: SampleAttentionConfig | None = None,
    rivals: bool = True,
    progress: Progress | None = None,
    cancelled: Callable[[], bool] | None = None,
    seconds: float = 0.5,
) -> list[dict]:
    """Rows (dicts of COLUMNS) for each length. `progress(fraction, text)` is called before each case; `cancelled()` ends early
    with the rows so far. A rival that is not available is left out with a note to `progress`. RuntimeError if `check` fails.
    """
    device, config = torch.device(device), config or SampleAttentionConfig(dense_below=0)
    progress, cancelled = progress or (lambda fraction, text: None), cancelled or (lambda: False)
    wrong = check(backends.resolve(config.backend, device), device, dtype, head_dim)
    if wrong:
        raise RuntimeError(wrong)
    rows, lengths = [], list(lengths)
    for n, length in enumerate(lengths):
        progress(n / len(lengths), f"{length:,} tokens: planting")
        x = planted(length, heads, kv_heads, head_dim, density, dtype, device)
        for m, case in enumerate(cases(x, config, rivals=rivals)):
            if cancelled():
                return rows
            progress((n + (m + 1) / 12) / len(lengths), f"{length:,} tokens: {case.what}, {case.implementation}")
            try:
                median, p20, p80 = time_call(case.make(), device, seconds)
            except Exception as error:  # a rival that is not built in, or not for this card; our own must run
                if case.implementation not in ("cudnn", "flash", "flex", "sdpa"):
                    raise
                progress((n + (m + 1) / 12) / len(lengths), f"{case.implementation} left out: {str(error).splitlines()[0][:200]}")
                continue
            rows.append(
                machine(device)
                | {"what": case.what, "implementation": case.implementation, "length": length, "head_dim": head_dim}
                | {"heads": heads, "kv_heads": kv_heads, "density": "" if case.density is None else round(case.density, 4)}
                | {"dtype": str(dtype).removeprefix("torch."), "median_ms": round(median, 4)}
                | {"p20_ms": round(p20, 4), "p80_ms": round(p80, 4)}
                | {"tflops": "" if case.operations is None else round(case.operations / median / 1e9, 2)}
            )
        del x, case
    progress(1.0, "done")
    return rows


def time_here(length: int, progress: Progress | None = None, cancelled: Callable[[], bool] | None = None) -> list[dict]:
    """`measure` at one length, in a size that suits this machine: a large model's layer on a GPU, a small one on a CPU."""
    if torch.cuda.is_available():
        return measure([length], progress=progress, cancelled=cancelled)
    return measure([length], 4, 2, 64, 0.25, torch.float32, "cpu", progress=progress, cancelled=cancelled)


def machine(device) -> dict:
    """date, gpu, torch, triton: what a row says of where it was measured."""
    cuda = torch.device(device).type == "cuda"
    triton = __import__("triton").__version__ if find_spec("triton") else ""
    return {
        "date": datetime.date.today().isoformat(),
        "gpu": torch.cuda.get_device_name(device) if cuda else f"CPU {platform.machine()}",
        "torch": torch.__version__,
        "triton": triton,
    }


# The command


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--out", type=Path, required=True, help="CSV file that the rows are appended to")
    parser.add_argument("--lengths", default="8192,32768,131072", help="tokens, with commas (default %(default)s)")
    parser.add_argument(
        "--density", type=float, default=0.1, help="share of the causal tiles that is planted (default %(default)s)"
    )
    parser.add_argument("--head-dim", type=int, default=128)
    parser.add_argument("--heads", type=int, default=32)
    parser.add_argument("--kv-heads", type=int, default=8)
    parser.add_argument("--dtype", choices=("bfloat16", "float16", "float32"), default=None, help="bfloat16; float32 on a CPU")
    parser.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu")
    parser.add_argument("--no-rivals", action="store_true", help="leave out dense attention and FlexAttention")


def run(args: argparse.Namespace) -> int:
    """The command: 0 when rows were written, 1 with a sentence on stderr when not."""
    device = torch.device(args.device)
    dtype = getattr(torch, args.dtype or ("bfloat16" if device.type == "cuda" else "float32"))
    try:
        lengths = [int(text) for text in args.lengths.split(",")]
        if min(lengths) < 1 or not 0 < args.density <= 1 or args.heads % args.kv_heads:
            raise ValueError("lengths must be positive, density above 0 and at most 1, heads a multiple of kv-heads")
        shape = (args.heads, args.kv_heads, args.head_dim)
        rows = measure(lengths, *shape, args.density, dtype, device, rivals=not args.no_rivals, progress=_say)
        detected = detection(min(lengths[0], 8192), *shape, args.density, dtype, device)
    except (RuntimeError, ValueError, TypeError) as error:
        print(f"bench: {error}", file=sys.stderr)
        return 1
    append(args.out, rows)
    print(table(rows))
    print(detected)
    return 0


def detection(length, heads, kv_heads, head_dim, density, dtype, device, config: SampleAttentionConfig | None = None) -> str:
    """One line: how much of what was planted `sample_attention` finds."""
    x = planted(length, heads, kv_heads, head_dim, density, dtype, device)
    _, selection = sample_attention(x.q, x.k, x.v, config or SampleAttentionConfig(dense_below=0), return_selection=True)
    return (
        f"Of the tiles planted at {length:,} tokens (density {x.density:.3f}) {x.found(selection.block_mask):.1%} were kept, "
        f"at density {float(selection.density.mean()):.3f}; sampled CRA at least {float(selection.sampled_cra.min()):.3f}."
    )


def append(path: Path, rows: list[dict]) -> None:
    """Add rows to a CSV file with the header COLUMNS; the file and its folder are made if need be."""
    path.parent.mkdir(parents=True, exist_ok=True)
    new = not path.exists() or path.stat().st_size == 0
    with open(path, "a", newline="", encoding="utf-8") as file:
        writer = csv.DictWriter(file, COLUMNS, lineterminator="\n")
        if new:
            writer.writeheader()
        writer.writerows(rows)


def table(rows: list[dict]) -> str:
    """The rows as text: machine first, then one line each."""
    if not rows:
        return "nothing was measured"
    first = rows[0]
    lines = [f"{first['gpu']}, torch {first['torch']}, triton {first['triton'] or 'none'}, {first['date']}"]
    names = ("what", "implementation", "length", "head_dim", "density", "median_ms", "p20_ms", "p80_ms", "tflops")
    lines.append("{:<17}{:<22}{:>8}{:>9}{:>9}{:>11}{:>11}{:>11}{:>8}".format(*names))
    lines += ["{:<17}{:<22}{:>8}{:>9}{:>9}{:>11}{:>11}{:>11}{:>8}".format(*(row[name] for name in names)) for row in rows]
    return "\n".join(lines)


def _say(fraction: float, text: str) -> None:
    print(f"{fraction:4.0%}  {text}", file=sys.stderr, flush=True)
