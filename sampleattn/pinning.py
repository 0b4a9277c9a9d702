"""pin: keep q, k and logsumexp of single heads of a recorded trace, by running its prompt through the model again."""

from __future__ import annotations

import tempfile
from collections.abc import Callable, Collection
from pathlib import Path

import numpy as np
import torch

from sampleattn import backends
from sampleattn.analysis import pinned
from sampleattn.hf import LayerCall, decoder_of, use_sample_attention
from sampleattn.metrics import row_recall
from sampleattn.recording_checks import RecordingError, check_pins
from sampleattn.trace import Trace
from sampleattn.trace_writer import TraceWriter
from sampleattn.windows import attention_window

TOLERANCE = 0.02


class _Enough(Exception):
    """The last layer that is wanted was seen."""


def pin(
    place,
    model,
    heads: Collection[tuple[int, int]],
    half: bool = False,
    tick: Callable[[float], None] = lambda share: None,
) -> Trace:
    """Pin the (layer, head) pairs in the trace at `place` (a folder or a .zip, changed in place) and return it.

    The model must be the one that was recorded: where the new q and k do not give the recorded overview (last row of cells, to
    2% of the largest weight), RecordingError is raised and the trace stays as it was. half: keep float16 also of a model that
    runs in float32; weights are then exact for the rounded q and k. tick(share done) is called after each layer, and may raise.
    Raises PromptError for heads that the model does not have, TraceError for a place that is no trace.
    """
    place, trace, decoder = Path(place), Trace.load(place), decoder_of(model).config
    check_pins(heads, trace.layers, trace.heads)
    if (decoder.num_hidden_layers, decoder.num_attention_heads) != (trace.layers, trace.heads):
        raise RecordingError("The model has other layers or heads than the trace; give the model that was recorded.")
    with tempfile.TemporaryDirectory(prefix="sampleattn-") as temporary:
        found = _run(model, trace, set(heads), half, tick)
        folder = trace.save(Path(temporary) / "trace") if place.is_file() else place
        writer = TraceWriter.reopen(folder)
        for (layer, head), arrays in found.items():
            writer.write_pin(layer, head, **arrays)
        if place.is_file():
            Trace.load(folder).save(place)
    return Trace.load(place)


def _run(model, trace, heads, half, tick):
    """(layer, head) -> what `TraceWriter.write_pin` takes, from one dense prefill as far as the last layer wanted."""
    found, last = {}, max(layer for layer, _ in heads)
    row_logsumexp = backends.twins(backends.resolve("auto", model.device)).row_logsumexp

    def see(call: LayerCall):
        wanted = sorted(head for layer, head in heads if layer == call.layer)
        if wanted and not call.eligible:
            raise RecordingError(f"Layer {call.layer} can't be pinned: {call.reason}.")
        if wanted:
            query, key = (tensor.half() if half else tensor for tensor in (call.query, call.key))
            lse = row_logsumexp(query.float() if half else query, key.float() if half else key, call.scale)[0]
            for head in wanted:
                found[call.layer, head] = pinned(query, key, lse, head) | {"recall": _recall(trace, call, head)}
                _compare(trace, call, head, found[call.layer, head])
        tick((call.layer + 1) / (last + 1))
        if call.layer == last:
            raise _Enough

    tokens = torch.tensor([trace.token_ids.tolist()], device=model.device)
    try:
        with torch.no_grad(), use_sample_attention(model, None, see):
            model(input_ids=tokens, use_cache=False, logits_to_keep=1)
    except _Enough:
        pass
    return found


def _recall(trace, call, head):
    """The recall of every row of a head under the recorded block mask: float32 [N]."""
    mask = torch.from_numpy(trace.block_mask(call.layer, head)).to(call.query.device)[None, None]
    query, key = call.query[:, head, None], call.key[:, head // (trace.heads // trace.kv_heads), None]
    return row_recall(query, key, mask, call.scale, block_size=trace.config.block_size)[0, 0].cpu().numpy()


def _compare(trace, call, head, arrays):
    overview, tokens = trace.overview(call.layer, head), trace.length
    cells = len(overview)
    first = (cells - 1) * tokens // cells
    rows, cols = (first, tokens), (0, tokens)
    q, lse = arrays["q"][first:], arrays["lse"][first:]
    seen, _ = attention_window(q, arrays["k"], lse, call.scale, rows, cols, (1, cells))
    if not np.allclose(seen[0], overview[-1], rtol=TOLERANCE, atol=TOLERANCE * float(overview[-1].max())):
        raise RecordingError(
            f"Layer {call.layer}, head {head}: this model's weights are not the recorded ones; give the model, device and dtype "
            "that were recorded."
        )
