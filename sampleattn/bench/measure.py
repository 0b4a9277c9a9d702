"""Cases -> rows: a plan of feeds and parts is walked, each case timed in each mode, and its row given as soon as it is there."""

from __future__ import annotations

import datetime
import platform
from collections.abc import Callable, Iterable, Iterator
from contextlib import ExitStack
from dataclasses import dataclass
from importlib import metadata
from importlib.util import find_spec

import torch

from sampleattn.bench import cases, prefill
from sampleattn.bench.check import check
from sampleattn.bench.feeds import Feed, planted_feed, random_feed, recorded_feed
from sampleattn.bench.timing import time_calls, with_memory

Progress = Callable[[float, str], None]

GRAPH_MOST_MS = 50.0  # launching is no part of a longer call: it is not timed again as a graph


@dataclass(frozen=True)
class Part:
    """A part of the benchmark: its cases, the operators that they time, and where. Lengths and head_dim are defaults.

    densities: beside the one asked for. only_density: in place of it. feed: "planted", "recorded" or "random".
    """

    cases: Callable[[Feed, float], cases.Cases]
    operators: tuple[str, ...]
    lengths: tuple[int, ...]
    head_dim: int | None = None
    densities: tuple[float, ...] = ()
    only_density: float | None = None
    feed: str = "planted"
    on_request: bool = False


LONG = (32768, 131072)
METHOD = ("sample_attention", "sampled_tile_masses", "selected_tiles", "block_sparse_attention")
STAGES = (*METHOD[1:3], "block_index_lists")
PARTS = {
    "auto": Part(cases.auto, METHOD, tuple(1024 << i for i in range(8))),
    "method": Part(cases.method, METHOD, LONG),
    "stages": Part(cases.stages, STAGES, LONG),
    "forward": Part(cases.forward, METHOD[3:], LONG, densities=(0.25,)),
    "head_dim_64": Part(cases.forward, METHOD[3:], LONG[:1], head_dim=64),
    "everything": Part(cases.everything, METHOD[3:], LONG[:1]),
    "logsumexp": Part(cases.logsumexp, ("row_logsumexp",), LONG),
    "maps": Part(cases.maps, ("attention_map",), LONG[1:]),
    "recorded": Part(cases.recorded, METHOD + STAGES[2:], (16384,), head_dim=64, feed="recorded", on_request=True),
    "million": Part(cases.million, METHOD, (1 << 20,), only_density=0.05, feed="random", on_request=True),
}
DEFAULT = ("roof", *(name for name, part in PARTS.items() if not part.on_request))


@dataclass(frozen=True)
class Shape:
    """What is common to a run."""

    heads: int
    kv_heads: int
    head_dim: int
    dtype: torch.dtype
    device: torch.device


@dataclass(frozen=True)
class Setting:
    """What one feed is made for."""

    length: int
    head_dim: int
    density: float
    feed: str
    parts: tuple[str, ...]


def plan(names: Iterable[str], head_dim: int, density: float, lengths: Iterable[int] | None = None) -> list[Setting]:
    """The feeds that the named parts need, short ones first; `lengths` replaces those of every part but "million"."""
    wanted: dict[tuple, list[str]] = {}
    for name in PARTS:
        if name not in names:
            continue
        part = PARTS[name]
        densities = (density, *part.densities) if part.only_density is None else (part.only_density,)
        for length in part.lengths if lengths is None or name == "million" else lengths:
            for each in dict.fromkeys(densities):
                wanted.setdefault((length, part.head_dim or head_dim, each, part.feed), []).append(name)
    return [Setting(*key, tuple(parts)) for key, parts in sorted(wanted.items(), key=lambda item: item[0])]


def measure(
    names: Iterable[str],
    shape: Shape,
    density: float = 0.1,
    lengths: Iterable[int] | None = None,
    rivals: bool = True,
    seconds: float = 0.3,
    progress: Progress = lambda fraction, text: None,
    feed: Feed | None = None,
) -> Iterator[dict]:
    """Rows (dicts of report.COLUMNS) of the named parts, as they are measured. `progress(fraction, text)` comes before each case.

    feed: takes the place of the planted inputs, cut to each length. A rival that can't run is left out, with a note to
    `progress`. A part that fails, or that times an operator which fails its check, gives no rows; once the others are through,
    RuntimeError says which and why.
    """
    names, settings = tuple(names), plan(names, shape.head_dim, density, lengths)
    run = _Run(shape, rivals, seconds, progress)
    if "roof" in names:
        yield from run.rows(cases.roof(shape.device, shape.dtype), {"input": "random"}, 0.0)
    operators: dict[int, set[str]] = {shape.head_dim: set(METHOD)} if "prefill" in names else {}
    for setting in settings:
        operators.setdefault(setting.head_dim, set()).update(*(PARTS[part].operators for part in setting.parts))
    run.wrong = _wrong(operators, shape, progress)
    for n, setting in enumerate(settings):
        progress(n / len(settings), f"{setting.length:,} tokens, head_dim {setting.head_dim}, density {setting.density:g}")
        fed = feed.cut(setting.length) if feed else _fed(setting, shape)
        facts = {"length": fed.length, "head_dim": fed.q.shape[-1], "heads": fed.q.shape[1], "kv_heads": fed.k.shape[1]}
        for name in setting.parts:
            part = PARTS[name]
            yield from run.part(
                name, part.operators, part.cases(fed, setting.density), facts | {"input": fed.source}, n / len(settings)
            )
        del fed
    if "prefill" in names:
        model = prefill.llama(shape)
        for length in lengths or prefill.LENGTHS:
            facts = {"length": length, "head_dim": shape.head_dim, "heads": shape.heads, "kv_heads": shape.kv_heads}
            groups = prefill.cases_of(model, length, density)
            yield from run.part("prefill", METHOD, groups, facts | {"input": "random"}, 1.0, least=3)
        del model
    progress(1.0, "done")
    if run.failures:
        raise RuntimeError("\n".join(run.failures))


def _wrong(operators: dict[int, set[str]], shape, progress) -> dict[tuple[int, str], str]:
    """(head_dim, operator) -> what is wrong with it, of those that are to be timed at each head_dim."""
    wrong = {}
    for dim, names in sorted(operators.items()):
        progress(0.0, f"checking at head_dim {dim}: {', '.join(sorted(names))}")
        found = check(sorted(names), cases.forced(shape.device), shape.device, shape.dtype, dim)
        wrong |= {(dim, operator): sentence for operator, sentence in found.items()}
    return wrong


def _fed(setting, shape) -> Feed:
    if setting.feed == "random":
        return random_feed(setting.length, shape.heads, shape.kv_heads, setting.head_dim, shape.dtype, shape.device)
    if setting.feed == "recorded":
        return recorded_feed(setting.length, shape.dtype, shape.device)
    size = (setting.length, shape.heads, shape.kv_heads, setting.head_dim)
    return planted_feed(*size, setting.density, shape.dtype, shape.device)


class _Run:
    """Times groups of cases in each mode, and what was timed before not again."""

    def __init__(self, shape, rivals, seconds, progress):
        self.device, self.rivals, self.seconds, self.progress = shape.device, rivals, seconds, progress
        self.common = machine(shape.device) | {"dtype": str(shape.dtype).removeprefix("torch.")}
        self.seen, self.wrong, self.failures = set(), {}, []

    def part(self, name, operators, groups: cases.Cases, facts: dict, fraction: float, least: int = 5) -> Iterator[dict]:
        """The rows of a part; none of one that fails, or that times an operator which is wrong."""
        red = [sentence for (dim, operator), sentence in self.wrong.items() if dim == facts["head_dim"] and operator in operators]
        try:
            if red:
                raise RuntimeError(f"{red[0]}, so no speed is reported")
            yield from self.rows(groups, facts, fraction, least)
        except (RuntimeError, ValueError, TypeError, MemoryError) as error:
            self.failures.append(f"{name} at {facts['length']:,} tokens failed: {_line(error)}")
            self.progress(fraction, self.failures[-1])

    def rows(self, groups: cases.Cases, facts: dict, fraction: float, least: int = 5) -> Iterator[dict]:
        for group in groups:
            with ExitStack() as stack:
                ready = [one for case in group if (one := self._ready(case, facts, fraction, stack))]
                if not ready:
                    continue
                slowest = 0.0
                for mode in ("eager", "graph") if self.device.type == "cuda" else ("eager",):
                    if mode == "graph" and slowest > GRAPH_MOST_MS:
                        break
                    try:
                        times = time_calls([call for _, call, _ in ready], self.device, mode, self.seconds, least)
                    except RuntimeError as error:
                        if mode == "eager":
                            raise
                        self.progress(fraction, f"no graph of {ready[-1][0].what}, {ready[-1][0].implementation}: {_line(error)}")
                        break
                    slowest = max(each.median for each in times)
                    for (case, _, memory), each in zip(ready, times, strict=True):
                        yield self._row(case, each, mode, facts, memory)

    def _ready(self, case, facts, fraction, stack):
        """(case, call, memory) once it has run; None if it is not wanted, was timed before, or is a rival that can't run."""
        density = None if case.density is None else round(case.density, 2)
        key = (case.what, case.implementation, density, *facts.values())
        if key in self.seen or (case.rival and not self.rivals):
            return None
        self.seen.add(key)
        place = f"{facts['length']:,} tokens: " if "length" in facts else ""
        self.progress(fraction, f"{place}{case.what.replace('_', ' ')}, {case.implementation}")
        try:
            call = stack.enter_context(case.make())
            memory, _ = with_memory(call, self.device)
        except Exception as error:  # of a rival that is not built in, or not for this card
            if not case.rival:
                raise
            self.progress(fraction, f"{case.implementation} left out: {_line(error)}")
            return None
        return case, call, memory if case.memory is None else case.memory

    def _row(self, case, times, mode, facts, memory) -> dict:
        return {
            **dict.fromkeys(("length", "head_dim", "heads", "kv_heads"), ""),
            **self.common,
            **facts,
            "what": case.what,
            "implementation": case.implementation,
            "density": _rounded(case.density),
            "mode": mode,
            "median_ms": _rounded(times.median),
            "p20_ms": _rounded(times.p20),
            "p80_ms": _rounded(times.p80),
            "tflops": _rounded(case.operations and case.operations / times.median / 1e9),
            "gbytes": _rounded(case.bytes and case.bytes / 1e9),
            "memory_mb": _rounded(None if memory is None else memory / 2**20),
        }


def _rounded(value):
    """Four digits, or nothing."""
    return "" if value is None else float(f"{value:.4g}")


def _line(error) -> str:
    return (str(error).strip().splitlines() or [type(error).__name__])[0][:200]


def machine(device) -> dict:
    """date, gpu, torch, triton, libraries: what a row says of where it was measured."""
    cuda = torch.device(device).type == "cuda"
    libraries = [f"cudnn {torch.backends.cudnn.version()}"] if cuda else []
    if find_spec("flash_attn"):
        libraries.append(f"flash-attn-4 {_version('flash-attn-4')}")
    return {
        "date": datetime.date.today().isoformat(),
        "gpu": torch.cuda.get_device_name(device) if cuda else f"CPU {platform.machine()}",
        "torch": torch.__version__,
        "triton": _version("triton"),
        "libraries": ", ".join(libraries),
    }


def _version(package) -> str:
    try:
        return metadata.version(package)
    except metadata.PackageNotFoundError:
        return ""
