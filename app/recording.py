"""The work of a recording, run in a job's thread. torch and transformers are imported here, and only when it runs."""

from __future__ import annotations

import tempfile
from pathlib import Path

from app.jobs import Cancelled, Job
from sampleattn.config import SampleAttentionConfig


def work(model: str, text: str, title: str, config: SampleAttentionConfig):
    """A job's work that records `text` with the model and returns the trace."""

    def record_it(job: Job):
        job.progress(0.0, "Loading torch and the model")
        from sampleattn.models import load_model
        from sampleattn.recorder import record

        loaded, tokenizer, _ = load_model(model)
        job.progress(0.02, "Counting tokens")
        with tempfile.TemporaryDirectory(prefix="sampleattention-") as folder:
            trace = record(
                loaded,
                tokenizer,
                text,
                config,
                progress=job.progress,
                cancel=job.cancel,
                out=Path(folder) / "trace.zip",
                title=title,
            )
        if job.cancel.is_set():
            raise Cancelled
        return trace

    return record_it


def sentence(error: BaseException) -> str:
    """What went wrong, in one sentence for the page."""
    if isinstance(error, MemoryError) or "out of memory" in str(error).lower():
        return "There was not enough memory for this model and prompt; take a shorter text or a smaller model."
    words = " ".join(str(error).split())
    return words[:400] if words else f"The recording failed ({type(error).__name__})."
