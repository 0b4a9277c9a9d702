"""The work of a recording, run in a job's thread. torch and transformers are imported here, and only when it runs."""

from __future__ import annotations

import tempfile
from pathlib import Path

from app.jobs import Cancelled, Job
from sampleattn.config import SampleAttentionConfig

LOADING = 0.05


def work(model: str, text: str, title: str, config: SampleAttentionConfig):
    """A job's work that records `text` with the model ("bundled", a folder or a hub id) and returns the trace."""

    def record_it(job: Job):
        job.progress(0.0, "Loading torch")
        import torch

        from sampleattn.models import load_model
        from sampleattn.recorder import RecordingCancelled, record

        job.progress(0.02, f"Loading the model {model}")
        device = "cuda" if torch.cuda.is_available() else "cpu"
        loaded, tokenizer, info = load_model(model, device=device)

        def progress(share, sentence, left):
            rest = "" if left is None else f", about {left:.0f} s left"
            job.progress(LOADING + (1 - LOADING) * share, f"{sentence[0].upper()}{sentence[1:]}{rest}")

        try:
            return record(
                loaded,
                tokenizer,
                text,
                config,
                title=title,
                progress=progress,
                cancel=job.cancel,
                model_name=info["name"],
                revision=info["revision"] or None,
            )
        except RecordingCancelled:
            raise Cancelled from None

    return record_it


def pin_work(trace, model: str, layer: int, head: int):
    """A job's work that pins a head in a copy of the trace, with the model that was recorded, and returns the copy."""

    def pin_it(job: Job):
        job.progress(0.0, "Loading torch")
        import torch

        from sampleattn.models import load_model
        from sampleattn.pinning import pin

        job.progress(0.05, f"Loading the model {model}")
        loaded, _, _ = load_model(model, device="cuda" if torch.cuda.is_available() else "cpu")
        holder = tempfile.TemporaryDirectory(prefix="sampleattn-")
        copy = trace.save(Path(holder.name) / "trace")
        pinned = pin(copy, loaded, [(layer, head)], tick=lambda part: job.progress(0.1 + 0.9 * part, f"Layers up to {layer}"))
        pinned.holder = holder
        return pinned

    return pin_it


def sentence(error: BaseException) -> str:
    """What went wrong, in one sentence for the page."""
    if isinstance(error, MemoryError):
        return "There was not enough memory for this model and prompt; take a shorter text or a smaller model."
    if isinstance(error, ImportError):
        return f"{error.name or 'A package'} is not installed here; install requirements.txt to record."
    return " ".join(str(error).split())[:400] or f"The recording failed ({type(error).__name__}); try another text or model."
