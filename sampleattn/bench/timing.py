"""Medians of calls: CUDA events on a GPU, a clock elsewhere.

"eager": calls queued back to back, short ones several between two events, so that these cost little. Where the kernels of a call
are shorter than the host needs to launch them, its time is the host's. Inputs smaller than the L2 cache stay in it.
"graph": the call as a CUDA graph, replayed with the L2 cache overwritten before each replay: the GPU's time alone, from memory.
"""

from __future__ import annotations

import math
import statistics
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch

MODES = ("eager", "graph")
FLUSH_BYTES = 256 << 20
LEAST_MS, MOST_CALLS = 1.0, 32  # between two events, "eager"


@dataclass(frozen=True)
class Times:
    """Milliseconds of a call: median, 20th and 80th percentile."""

    median: float
    p20: float
    p80: float


def time_calls(
    calls: Sequence[Callable[[], object]], device, mode="eager", seconds: float = 0.3, least: int = 5, most: int = 400
) -> list[Times]:
    """The times of calls that have run before (and so are compiled). They take turns, so that all see the same clocks.

    Each is repeated for about `seconds`, after a warm-up of a tenth as many rounds; `least` rounds of long calls need none.
    mode: of MODES; "graph" needs a GPU. Raises what a call raises, and RuntimeError for a call that can't be captured.
    """
    cuda = torch.device(device).type == "cuda"
    if mode == "graph":
        calls = [_graph(call) for call in calls]
    flush = torch.empty(FLUSH_BYTES, dtype=torch.int8, device=device).zero_ if mode == "graph" else lambda: None
    once = [1] * len(calls)
    first = _rounds(calls, once, flush, cuda, 1)
    counts = [min(math.ceil(LEAST_MS / max(ms, 1e-3)), MOST_CALLS) for ms in first[0]] if cuda and mode == "eager" else once
    wanted = int(seconds * 1e3 * len(calls) / max(sum(ms * count for ms, count in zip(first[0], counts, strict=True)), 1e-3))
    if wanted <= least:
        rounds = first + _rounds(calls, once, flush, cuda, least - 1)
    else:
        _rounds(calls, counts, flush, cuda, min(wanted, most) // 10)
        rounds = _rounds(calls, counts, flush, cuda, min(wanted, most))
    return [_summary(times) for times in zip(*rounds, strict=True)]


def _summary(times) -> Times:
    times, fifth = sorted(times), len(times) // 5
    return Times(statistics.median(times), times[fifth], times[-1 - fifth])


def _graph(call) -> Callable[[], None]:
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        call()
    return graph.replay


def _rounds(calls, counts, flush, cuda, rounds) -> list[list[float]]:
    """Milliseconds of a call [rounds][calls]; on a GPU each is called as often as its count says, one after the other."""
    if not cuda:
        return [[_clocked(call) for call in calls] for _ in range(rounds)]
    marks = [[[torch.cuda.Event(enable_timing=True) for _ in range(2)] for _ in calls] for _ in range(rounds)]
    torch.cuda.synchronize()
    for row in marks:
        for call, count, (start, end) in zip(calls, counts, row, strict=True):
            flush()
            start.record()
            for _ in range(count):
                call()
            end.record()
    torch.cuda.synchronize()
    return [[start.elapsed_time(end) / count for count, (start, end) in zip(counts, row, strict=True)] for row in marks]


def _clocked(call) -> float:
    start = time.perf_counter()
    call()
    return 1e3 * (time.perf_counter() - start)


def with_memory(call: Callable[[], object], device) -> tuple[int | None, object]:
    """(bytes of GPU memory that a call needs above what is allocated before it and the tensors that it returns, its result).

    None on a CPU. Tensors count where they are the result, or in it if it is a tuple.
    """
    if torch.device(device).type != "cuda":
        return None, call()
    torch.cuda.synchronize(device)
    torch.cuda.reset_peak_memory_stats(device)
    before = torch.cuda.memory_allocated(device)
    result = call()
    torch.cuda.synchronize(device)
    returned = sum(x.nbytes for x in (result if isinstance(result, tuple) else (result,)) if isinstance(x, torch.Tensor))
    return torch.cuda.max_memory_allocated(device) - before - returned, result
