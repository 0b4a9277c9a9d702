"""Times: the stages of a recording, and dense against sparse attention on this machine, with torch imported only then."""

from __future__ import annotations

from app.jobs import Job
from app.reading import visible

ATTENTION = {
    "dense_attention": "dense attention",
    "sparse_run_attention": "attention in the sparse run",
}
WHAT = {
    "dense": "dense attention",
    "stage_1": "stage 1: sampled tile masses",
    "selection": "stage 2: choice of tiles",
    "sparse_forward": "sparse attention",
    "sample_attention": "the whole method",
    "row_logsumexp": "logsumexp of every row",
}
COLUMNS = {
    "what": "what",
    "implementation": "implementation",
    "density": "share of tiles",
    "median_ms": "median (ms)",
    "p20_ms": "20th percentile (ms)",
    "p80_ms": "80th percentile (ms)",
}


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


def work(length: int):
    """A job's work that times attention at one length and returns a table."""

    def time_it(job: Job):
        job.progress(0.0, "Loading torch")
        import torch

        from sampleattn.bench.measure import Shape, measure

        cuda = torch.cuda.is_available()
        size = (32, 8, 128, torch.bfloat16) if cuda else (4, 2, 64, torch.float32)
        shape, density = Shape(*size, torch.device("cuda" if cuda else "cpu")), 0.1 if cuda else 0.25
        parts = ("method", "stages", "forward", "logsumexp")
        rows = list(measure(parts, shape, density, [length], progress=job.progress))
        table = {title: [row[name] for row in rows] for name, title in COLUMNS.items()}
        return table | {"what": [WHAT.get(what, what) for what in table["what"]]}

    return time_it


def sentence(error: BaseException | None) -> str:
    """Why there are no times."""
    if error is None:
        return "The timing was stopped."
    if isinstance(error, ImportError):
        return f"{error.name or 'torch'} is not installed here, so nothing can be timed; install requirements.txt."
    return " ".join(str(error).split())[:300] or type(error).__name__
