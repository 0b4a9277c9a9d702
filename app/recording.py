"""The work of a recording, run in a job's thread. torch and transformers are imported here, and only when it runs."""

from __future__ import annotations

import tempfile
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path

from app.jobs import Cancelled, Job
from sampleattn.config import SampleAttentionConfig
from sampleattn.trace import Trace, TraceError

LOADING = 0.05


@dataclass(frozen=True)
class Recording:
    """A job's work that records a text with a model ("bundled", a folder or a hub id) and returns the trace.

    Where it was cancelled, the same Recording as the work of another job goes on. revision: of a hub id. heads: (layers, heads)
    that the model must have.
    """

    model: str
    text: str
    title: str
    config: SampleAttentionConfig
    level: str = "explore"
    pins: tuple[tuple[int, int], ...] = ()
    revision: str | None = None
    heads: tuple[int, int] | None = None
    holder: tempfile.TemporaryDirectory = field(default_factory=partial(tempfile.TemporaryDirectory, prefix="sampleattn-"))

    @property
    def folder(self) -> Path:
        """Where the trace grows; it is gone with this value."""
        return Path(self.holder.name) / "trace"

    @property
    def progress(self) -> tuple[int, int]:
        """How many layers are recorded, and how many there are; (0, 0) before the recording began."""
        try:
            trace = Trace.load(self.folder)
        except TraceError:
            return 0, 0
        return len(trace.recorded_layers), trace.layers

    def __call__(self, job: Job) -> Trace:
        job.progress(0.0, "Loading torch")
        import torch

        from sampleattn.models import load_model
        from sampleattn.recorder import RecordingCancelled, record
        from sampleattn.recording_checks import RecordingError

        job.progress(0.02, f"Loading the model {self.model}")
        device = "cuda" if torch.cuda.is_available() else "cpu"
        loaded, tokenizer, info = load_model(self.model, device=device, revision=self.revision)
        if self.heads not in (None, (info["layers"], info["heads"])):
            raise RecordingError("The model has other layers or heads than the trace; give the model that was recorded.")

        def progress(share, sentence, left):
            rest = "" if left is None else f", about {left:.0f} s left"
            job.progress(LOADING + (1 - LOADING) * share, f"{sentence[0].upper()}{sentence[1:]}{rest}")

        try:
            trace = record(
                loaded,
                tokenizer,
                self.text,
                self.config,
                level=self.level,
                pin_heads=self.pins,
                out=self.folder,
                resume=self.progress != (0, 0),
                title=self.title,
                progress=progress,
                cancel=job.cancel,
                model_name=info["name"],
                revision=info["revision"] or None,
            )
        except RecordingCancelled:
            raise Cancelled from None
        trace.holder = self.holder
        return trace


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
