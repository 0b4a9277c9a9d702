"""record: one prompt through the dense and the sparse run, analysed layer by layer into a trace, with flat memory."""

from __future__ import annotations

import os
import tempfile
import threading
import time
from collections.abc import Callable, Collection
from pathlib import Path

import numpy as np
import torch

from sampleattn import predictions
from sampleattn.analysis import analyse
from sampleattn.config import SampleAttentionConfig
from sampleattn.hf import LayerCall, decoder_of, use_sample_attention
from sampleattn.memory import NotEnoughMemory
from sampleattn.origin import describe_machine, describe_model
from sampleattn.prompt import tokenise
from sampleattn.recording_checks import RecordingError, check_pins, check_space, checked_level, size_of
from sampleattn.summary import summarise
from sampleattn.trace import Trace
from sampleattn.trace_format import pinned_query
from sampleattn.trace_size import readable
from sampleattn.trace_writer import TraceWriter

DENSE_SHARE, SPARSE_SHARE = 0.8, 0.12
STAGES = ("sampling", "filtering", "sparse_attention", "analysis", "estimates")


class RecordingCancelled(Exception):
    """The recording was cancelled; `folder` holds the partial trace (it is gone if no `out` was given)."""

    def __init__(self, folder: Path):
        super().__init__(f"cancelled; what was recorded so far is in {folder}")
        self.folder = folder


def record(
    model,
    tokenizer,
    text: str,
    config: SampleAttentionConfig | None = None,
    *,
    level: str | None = None,
    out: str | os.PathLike | None = None,
    resume: bool = False,
    title: str | None = None,
    progress: Callable[[float, str, float | None], None] | None = None,
    cancel: threading.Event | None = None,
    pin_layers: Collection[int] = (),
    pin_heads: Collection[tuple[int, int]] = (),
    continuation: int = 32,
    max_tokens: int | None = None,
    model_name: str | None = None,
    revision: str | None = None,
) -> Trace:
    """Run `text` through the model dense and with SampleAttention, and return the trace of both.

    level: how much is kept, "summary", "explore" or "pinned" (see `trace_levels`); "pinned" if heads are pinned, else "explore".
    out: the folder to write (new or empty); None writes to a temporary one that lives as long as the trace: `trace.save(path)`.
    resume: `out` holds an unfinished recording of the same; the layers it has are run through, but not analysed again.
    progress(share, text, seconds left or None) is called often. cancel: set it to stop, within a query block or a decode step;
    RecordingCancelled is raised, and the partial trace in `out` can be opened. pin_layers, pin_heads: layers, and (layer, head)
    pairs, whose q and k are kept, for windows at full resolution. continuation: greedy tokens (fewer where the model's context
    ends; no stop token ends it). max_tokens: cut the prompt there; without it a prompt longer than the context is refused.
    Raises PromptError (a ValueError), hf.UnsupportedModelError (a ValueError), RecordingError, and TraceError if `out` is in use,
    or holds nothing to resume.
    """
    config = config or SampleAttentionConfig()
    decoder = decoder_of(model).config
    ids, offsets, text, extra = tokenise(tokenizer, text, getattr(decoder, "max_position_embeddings", None), max_tokens)
    pins = {(layer, head) for layer in pin_layers for head in range(decoder.num_attention_heads)} | set(pin_heads)
    check_pins(pins, decoder.num_hidden_layers, decoder.num_attention_heads)
    level = checked_level(level, pins)
    holder = tempfile.TemporaryDirectory(prefix="sampleattn-") if out is None else None
    folder = Path(holder.name) / "trace" if holder else Path(out)
    meta = {
        "level": level,
        "model": describe_model(model, decoder, model_name, revision),
        "settings": config.to_dict(),
        "prompt": {"title": title or "", **extra},
        "machine": describe_machine(model, config),
    }
    size = size_of(meta, config, ids, text, pins, decoder.vocab_size)
    check_space(folder, size)
    writer = TraceWriter.resume(folder, meta, ids) if resume else TraceWriter(folder, meta, ids, offsets, text)
    was_training = model.training
    try:
        model.eval()
        with torch.no_grad():
            # The backend by name: "auto" would run dense where that is faster, and there would be nothing to see.
            named = config.replace(backend=meta["machine"]["backend"])
            recording = _Recording(model, tokenizer, named, writer, ids, decoder)
            recording.progress, recording.cancel, recording.pins = progress, cancel, frozenset(pins)
            recording.taken = {layer for layer in writer.analysed if recording.pinned_already(layer)}
            recording.tick(0.0, f"level {level}, about {readable(size)}")
            recording.run(continuation)
    except torch.OutOfMemoryError as error:
        known = f" ({error})" if isinstance(error, NotEnoughMemory) else ""
        raise RecordingError(
            f"The device ran out of memory at {len(ids):,} tokens{known}; "
            "cut the prompt (max_tokens, --cut) or take a larger device."
        ) from error
    finally:
        model.train(was_training)
    trace = Trace.load(folder)
    trace.holder = holder
    return trace


class _Recording:
    """The two runs over one prompt, and what has been learnt so far. taken: the layers that need no analysis any more."""

    progress = cancel = None
    pins = taken = frozenset()

    def __init__(self, model, tokenizer, config, writer, ids, decoder):
        self.model, self.tokenizer, self.config, self.writer = model, tokenizer, config, writer
        self.ids, self.layers = ids, decoder.num_hidden_layers
        self.started = time.perf_counter()
        self.input = torch.tensor([ids.tolist()], device=model.device)
        self.positions = predictions.prompt_positions(len(ids), decoder.vocab_size)
        self.timings = {}
        self.observing_s = 0.0
        self.attention_s = {"dense": 0.0, "sparse": 0.0}
        self.sparse_layers = {}

    def run(self, continuation):
        context = self.writer.meta["model"]["context"]
        steps = max(min(continuation, continuation if context is None else context - len(self.ids) + 1), 1)
        with use_sample_attention(self.model, None, self._see_dense) as run:
            dense = self._prefill("dense")
            self._fill_layers(run.layers)
            self.tick(DENSE_SHARE, "dense run: continuation")
            tokens, dense_logits = self._timed("dense_continuation_s", predictions.greedy, dense, steps)
        dense.cache = None
        dense.logits = dense.logits.cpu()
        with use_sample_attention(self.model, self.config, self._see_sparse) as run:
            sparse = self._prefill("sparse")
            for layer, report in run.layers.items():
                entry = self.sparse_layers.setdefault(layer, {"seconds": {}, "sparse_run_density": []})
                entry |= {"ran": report.ran, "reason": report.reason}
            self.writer.write_sparse_run(self.sparse_layers)
            self.tick(DENSE_SHARE + SPARSE_SHARE, "sparse run: continuation")
            own, sparse_logits = self._timed("sparse_continuation_s", predictions.follow, sparse, tokens)
        sparse.cache = None
        self.tick(0.98, "comparing both runs")
        self._write_output(dense.logits, sparse.logits.cpu(), tokens, own, dense_logits, sparse_logits)
        self.timings |= self._stage_seconds() | {"total_s": time.perf_counter() - self.started, "resumed_layers": len(self.taken)}
        self.writer.finish(timings=self.timings, summary=summarise(Trace.load(self.writer.folder)))
        self.tick(1.0, "done")

    def _prefill(self, name):
        self.tick(0.0 if name == "dense" else DENSE_SHARE + 0.02, f"{name} run")
        self.observing_s = 0.0
        start = time.perf_counter()
        result = predictions.prefill(self.model, self.input, self.positions)
        _wait(self.model.device)
        whole = time.perf_counter() - start
        self.timings[f"{name}_run_s"] = whole - self.observing_s
        self.timings[f"{name}_attention_s"] = self.attention_s[name]
        return result

    def _timed(self, name, decode, *args):
        start = time.perf_counter()
        result = decode(self.model, *args, self._check)
        self.timings[name] = time.perf_counter() - start
        return result

    def _see_dense(self, call: LayerCall):
        start = time.perf_counter()
        self.attention_s["dense"] += call.seconds
        if call.layer in self.taken:
            self.tick(self._dense_share(call.layer, 1.0), f"layer {call.layer}: recorded before")
            return
        reason, seconds = call.reason, {"dense_attention": call.seconds}
        model = self.writer.meta["model"]
        expected = (1, model["heads"], len(self.ids), model["kv_heads"])
        if call.eligible and (*call.query.shape[:3], call.key.shape[1]) != expected:
            reason = f"has {call.query.shape[1]} heads and {call.key.shape[1]} key heads, unlike the model"
        if reason:
            self.tick(self._dense_share(call.layer, 1.0), f"layer {call.layer}: {reason}")
            self.writer.write_layer(call.layer, None, {"reason": reason, "seconds": seconds})
        else:
            self._analyse(call, seconds)
        self._check()
        self.observing_s += time.perf_counter() - start

    def _analyse(self, call, seconds):
        fits = call.query.shape[-1] == self.writer.meta["model"]["head_dim"]
        arrays, labels, stages, pins, answers = analyse(
            call.query,
            call.key,
            call.value,
            call.output,
            self.config,
            call.scale,
            pin=sorted(head for layer, head in self.pins if layer == call.layer and fits),
            tick=lambda share: self.tick(self._dense_share(call.layer, share), f"dense run: layer {call.layer}"),
        )
        for head, pin in pins.items():
            self.writer.write_pin(call.layer, head, **pin, recall=arrays["recall"][head])
        if answers:
            self.writer.write_estimates(call.layer, answers)
        self.writer.write_layer(call.layer, arrays, {"labels": labels, "seconds": seconds | stages, "scale": call.scale})

    def pinned_already(self, layer):
        files = self.writer.meta["files"]
        return all(pinned_query(layer, head) in files for pinned, head in self.pins if pinned == layer)

    def _stage_seconds(self):
        """The seconds of each stage over all layers, those recorded before among them."""
        spent = [entry["seconds"] for entry in self.writer.meta["layers"]]
        return {f"{stage}_s": sum(seconds.get(stage, 0.0) for seconds in spent) for stage in STAGES}

    def _dense_share(self, layer, share):
        return DENSE_SHARE * (layer + share) / self.layers

    def _see_sparse(self, call: LayerCall):
        self.attention_s["sparse"] += call.seconds
        density = call.selection.density[0].tolist() if call.selection is not None else [1.0] * call.query.shape[1]
        fits = call.eligible and len(density) == self.writer.meta["model"]["heads"]
        seconds = {"sparse_run_attention": call.seconds}
        self.sparse_layers[call.layer] = {"seconds": seconds, "sparse_run_density": density if fits else []}
        share = DENSE_SHARE + 0.02 + (SPARSE_SHARE - 0.02) * (call.layer + 1) / self.layers
        self.tick(share, f"sparse run: layer {call.layer}")

    def _fill_layers(self, seen):
        for layer in range(self.layers):
            if layer not in seen:
                self.writer.write_layer(layer, None, {"ran": "dense", "reason": "no attention that can be observed"})

    def _write_output(self, dense, sparse, tokens, own, dense_logits, sparse_logits):
        """dense, sparse: logits [P + 1, V]; tokens, own: the continuations; *_logits [T, V] along the dense continuation."""
        targets = torch.from_numpy(self.ids[self.positions + 1].astype(np.int64))
        arrays = {
            "logits_dense": dense[-1].float(),
            "logits_sparse": sparse[-1].float(),
            "continuation_dense": tokens.int(),
            "continuation_sparse": own.int(),
            "continuation_kl": predictions.divergence(dense_logits, sparse_logits),
            "kl": predictions.divergence(dense[:-1], sparse[:-1]),
            "top1_equal": (dense[:-1].argmax(-1) == sparse[:-1].argmax(-1)).to(torch.uint8),
            "nll_dense": predictions.surprise(dense[:-1], targets),
            "nll_sparse": predictions.surprise(sparse[:-1], targets),
        }
        before = self.ids.tolist()
        texts = {
            "continuation_dense": predictions.pieces(self.tokenizer, before, tokens.tolist()),
            "continuation_sparse": predictions.pieces(self.tokenizer, before, own.tolist()),
            "next_tokens": predictions.likeliest(self.tokenizer, dense[-1].float(), sparse[-1].float()),
        }
        self.writer.write_output({name: array.numpy() for name, array in arrays.items()} | {"positions": self.positions}, texts)

    def _check(self):
        if self.cancel is not None and self.cancel.is_set():
            raise RecordingCancelled(self.writer.folder)

    def tick(self, share, text):
        self._check()
        if self.progress is not None:
            elapsed = time.perf_counter() - self.started
            done = share - DENSE_SHARE * len(self.taken) / self.layers  # what was recorded before took no time now
            self.progress(share, text, elapsed * (1 - share) / done if done >= DENSE_SHARE / self.layers else None)


def _wait(device):
    if device.type == "cuda":
        torch.cuda.synchronize(device)
