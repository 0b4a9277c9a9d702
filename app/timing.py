"""Times: the stages of a recording, and dense against sparse attention on this machine (torch is imported only when that runs)."""

from __future__ import annotations

from app.jobs import Job

STAGE_WORDS = {
    "dense_run_s": "dense run",
    "sparse_run_s": "sparse run",
}


def stages(trace) -> dict[str, float]:
    """Seconds of each stage of a recording: the runs as a whole, then the stages summed over the layers."""
    times = {STAGE_WORDS.get(name, _words(name)): float(value) for name, value in trace.meta["timings"].items()}
    for entry in trace.meta["layers"]:
        for stage, seconds in entry["seconds"].items():
            times[f"layers: {_words(stage)}"] = times.get(f"layers: {_words(stage)}", 0.0) + float(seconds)
    return {name: value for name, value in times.items() if value > 0}


def _words(name: str) -> str:
    return name.removesuffix("_s").replace("_", " ")[:60]


def work(length: int):
    """A job's work that times attention at one length and returns a table."""

    def time_it(job: Job):
        job.progress(0.0, "Loading torch")
        from sampleattn import bench

        job.progress(0.1, f"Timing {length:,} tokens")
        rows = bench.time_here(length, progress=job.progress)
        return {name: [row[name] for row in rows] for name in rows[0]}

    return time_it


def sentence(error: BaseException) -> str:
    if isinstance(error, ImportError):
        return "torch is not installed here, so nothing can be timed; install requirements.txt."
    return " ".join(str(error).split())[:300] or type(error).__name__
