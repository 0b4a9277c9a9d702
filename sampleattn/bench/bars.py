"""What is wanted of a run's rows, as ratios of rows measured in that run, and what they reach. No torch."""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass

from sampleattn.bench.rows import Finder, readable

LENGTHS = {32768: "32K", 131072: "128K"}
AUTO = tuple(1024 << i for i in range(8))


@dataclass(frozen=True)
class Reached:
    """A bar: what is measured, its value in a run (a ratio, or a unit named in `what`), and the bar (at least, or at most)."""

    what: str
    value: float
    bar: float
    at_least: bool

    @property
    def met(self) -> bool:
        return self.value >= self.bar if self.at_least else self.value <= self.bar


def bars(rows: list[dict], mode: str = "eager") -> list[Reached]:
    """The bars that the rows of one mode say something of."""
    find = Finder([row for row in readable(rows) if row["mode"] == mode])
    return [Reached(what, value, bar, at_least) for what, value, bar, at_least in _bars(find) if value is not None]


def _bars(find) -> Iterator[tuple[str, float | None, float, bool]]:
    """(what, value or None where a row is missing, bar, whether it is a least)."""
    for density in (0.1, 0.25):
        for length, k in LENGTHS.items():
            ours = find.time("sparse_forward", None, length, density=density)
            for rival, bar in (("fa4", 0.95), ("flex", 1.35)):
                theirs = find.time("sparse_forward", rival, length, density=density)
                yield f"sparse forward at {density:.0%}, {k}: rate over {rival}'s", _over(theirs, ours), bar, True
    for what, head_dim, density, bar in (("at D=64, 10%", 64, 0.1, 1.0), ("with everything kept", 128, 1.0, 0.95)):
        ours = find.rate("sparse_forward", None, 32768, head_dim, density)
        theirs = find.rate("dense", "cudnn", 32768, head_dim)
        yield f"sparse forward {what}, 32K: rate over cuDNN dense", _over(ours, theirs), bar, True
    for length, k, bar in ((131072, "128K", 0.10), (32768, "32K", 0.20)):
        forward = find.time("sparse_forward", None, length, density=0.1)
        choosing = find.time("choosing", None, length)
        yield f"stage 1, stage 2, index lists in a row, {k}: share of the forward at 10%", _over(choosing, forward), bar, False
    for name, words in (("joint", "what the target asks"), ("density 0.1", "10% imposed")):
        for length, k, rival, bar in (
            (131072, "128K", "cudnn", 9.0),
            (32768, "32K", "cudnn", 6.0),
            (131072, "128K", "flash", 15.0),
        ):
            ours = find.time("sample_attention", f"triton, {name}", length)
            faster = _over(find.time("dense", rival, length), ours)
            yield f"sample_attention, {words}, {k}: times faster than {rival} dense", faster, bar, True
    for length in AUTO:
        ours = find.time("sample_attention", "auto", length)
        yield f"auto, {length // 1024}K: time over cuDNN dense", _over(ours, find.time("dense", "cudnn", length)), 1.03, False
    pairs = [(n, find.time("sample_attention", "triton, density", n), find.time("dense", "cudnn", n)) for n in AUTO]
    pairs = [pair for pair in pairs if None not in pair]
    even = break_even(*zip(*pairs, strict=True)) if pairs else None
    yield "break-even of sample_attention with cuDNN dense, tokens", (even or math.inf) if pairs else None, 8192, False
    ours = find.time("row_logsumexp", None, 131072)
    yield "row logsumexp, 128K: time over cuDNN dense", _over(ours, find.time("dense", "cudnn", 131072)), 0.55, False
    yield "map, whole triangle of 128K, ms", find.time("map_whole", None, 131072), 8.0, False
    yield "map, window of 4,096 tokens at 128K, ms", find.time("map_window", None, 131072), 1.0, False
    yield "memory of sample_attention above inputs and output, 128K, MiB", _memory(find, 131072), 512.0, False
    yield from _prefill(find)


def _memory(find, length):
    found = [row["memory_mb"] for row in find.all("sample_attention", "", length) if row["memory_mb"] >= 0]
    return max(found, default=None)


def _prefill(find):
    dense, ours, rest, density = _prefill_times(find, 131072)
    yield "prefill, 128K: times lower time to first token", _over(dense, ours), 2.2, True
    if None not in (dense, ours, rest):
        yield "prefill, 128K: share of what Amdahl's law allows", dense / ours / amdahl(dense, rest, density), 0.9, True


def _prefill_times(find, length):
    rows = [find.row("prefill", name, length) for name in ("dense", "sample_attention", "without attention")]
    return *(row and row["median_ms"] for row in rows), rows[1] and rows[1]["density"]


def prefill_sentences(rows: list[dict]) -> list[str]:
    """What a prefill took, and what Amdahl's law allows, for each length with all three rows."""
    rows, sentences = readable(rows), []
    for length in sorted({row["length"] for row in rows if row["what"] == "prefill"}):
        dense, ours, rest, density = _prefill_times(Finder(rows), length)
        if None in (dense, ours, rest):
            continue
        limit = amdahl(dense, rest, density)
        seconds = ", ".join(
            f"{name} {value / 1e3:.3g} s" for name, value in (("dense", dense), ("sparse", ours), ("without attention", rest))
        )
        sentences.append(
            f"Prefill of {length:,.0f} tokens: {seconds}. Time to first token {dense / ours:.3g} times lower; Amdahl's law "
            f"allows {limit:.3g} with attention at {density:.1%} of its time ({dense / rest:.3g} if it were free); "
            f"{dense / ours / limit:.0%} of that is reached."
        )
    return sentences


def amdahl(dense: float, rest: float, density: float) -> float:
    """How many times faster a prefill of time `dense`, `rest` of it not attention, is with attention in `density` of its time."""
    return dense / (rest + density * (dense - rest))


def break_even(lengths, ours, rival) -> float | None:
    """The length from which on we are not slower: where the curves cross last, interpolated on logarithmic scales.

    The shortest length if we are never slower, None if we are slower at the longest.
    """
    points = sorted(zip(lengths, ours, rival, strict=True), reverse=True)
    gaps = [(length, math.log(mine / theirs)) for length, mine, theirs in points]
    if gaps[0][1] > 0:
        return None
    for (long, faster), (short, slower) in zip(gaps, gaps[1:], strict=False):
        if slower > 0:
            share = slower / (slower - faster)
            return math.exp(math.log(short) + share * math.log(long / short))
    return float(gaps[-1][0])


def _over(a, b):
    return None if a is None or b is None else a / b


def bars_table(rows: list[dict], modes=("eager", "graph")) -> list[str]:
    """Lines of text: each bar that was measured, its value in each mode, and whether every one of them meets it."""
    table: dict[str, dict[str, Reached]] = {}
    for mode in modes:
        for reached in bars(rows, mode):
            table.setdefault(reached.what, {})[mode] = reached
    if not table:
        return ["No bar was measured in this run."]
    lines = [f"{'':<76}{'eager':>10}{'graph':>10}  {'bar':<18}"]
    for what, found in table.items():
        some = next(iter(found.values()))
        values = "".join(f"{found[mode].value:>10.4g}" if mode in found else f"{'':>10}" for mode in modes)
        verdict = "met" if all(each.met for each in found.values()) else "not met"
        lines.append(f"{what:<76}{values}  {'at least' if some.at_least else 'at most'} {some.bar:<10g}{verdict}")
    return lines
