"""Times: the stages of a recording, and dense against sparse attention on this machine, with torch imported only then."""

from __future__ import annotations

from dataclasses import dataclass

from app import benchmarks
from app.jobs import Cancelled, Job
from app.reading import visible

ATTENTION = {
    "dense_attention": "dense attention",
    "sparse_run_attention": "attention in the sparse run",
}
SHORTEST = 512


@dataclass(frozen=True)
class Wish:
    """What is to be timed: lengths up to `longest`, on planted inputs, or on the heads of `layer` that the trace has pinned."""

    longest: int
    layer: int | None = None


def stages(trace) -> dict[str, float]:
    """Seconds of each stage of a recording that was timed as a whole."""
    return {_words(name): float(value) for name, value in trace.meta["timings"].items() if value > 0 and name != "total_s"}


def attention_by_layer(trace) -> dict[str, list[float]]:
    """Seconds of each layer's attention in the dense and in the sparse run, where both were timed."""
    seconds = [entry["seconds"] for entry in trace.meta["layers"]]
    return {
        words: [each.get(name, float("nan")) for each in seconds]
        for name, words in ATTENTION.items()
        if any(name in each for each in seconds)
    }


def _words(name: str) -> str:
    return visible(name.removesuffix("_s").replace("_", " "))[:60]


def pinned_layers(trace) -> list[int]:
    """The layers of which a head's q and k were kept."""
    return [layer for layer in trace.recorded_layers if any(trace.pinned(layer, head) for head in range(trace.heads))]


def lengths_to(longest: int) -> list[int]:
    """Powers of two from 512 on, and the longest itself."""
    shorter = [SHORTEST << i for i in range(20) if SHORTEST << i < longest]
    return [*shorter, longest]


def work(wish: Wish, trace):
    """A job's work that times the method, its stages and its rivals, and returns rows as `benchmarks.readable` gives them.

    A job that is cancelled returns the rows it has; Cancelled if there are none.
    """

    def time_it(job: Job):
        job.progress(0.0, "Loading torch")
        import torch

        from sampleattn.bench.measure import Shape, measure

        cuda = torch.cuda.is_available()
        device, dtype = torch.device("cuda" if cuda else "cpu"), torch.bfloat16 if cuda else torch.float32
        shape, density = Shape(*((32, 8, 128) if cuda else (4, 2, 64)), dtype, device), 0.1 if cuda else 0.25
        feed = None
        if wish.layer is not None:
            feed = _recorded(trace, wish.layer, device, dtype)
            shape = Shape(feed.q.shape[1], feed.k.shape[1], feed.q.shape[-1], dtype, device)
        parts = ("roof", "auto", "method", "stages", "forward", "logsumexp")
        rows = []
        try:
            for row in measure(parts, shape, density, lengths_to(wish.longest), progress=job.progress, feed=feed):
                rows.append(row)
        except Cancelled:
            if not rows:
                raise
        return benchmarks.readable(rows)

    return time_it


def _recorded(trace, layer, device, dtype):
    """The pinned heads of a layer, each with the keys it reads."""
    import numpy as np
    import torch

    from sampleattn.bench.feeds import feed_of

    heads = [head for head in range(trace.heads) if trace.pinned(layer, head)]
    pairs = zip(*(trace.queries_and_keys(layer, head)[:2] for head in heads), strict=True)
    return feed_of(*(torch.from_numpy(np.stack(each).astype(np.float32)).to(device, dtype) for each in pairs))


def sentence(error: BaseException | None) -> str:
    """Why there are no times."""
    if error is None or isinstance(error, Cancelled):
        return "The timing was stopped."
    if isinstance(error, ImportError):
        return f"{error.name or 'torch'} is not installed here, so nothing can be timed; install requirements.txt."
    return " ".join(str(error).split())[:300] or type(error).__name__
