"""What both runs of a trace predict. Numpy only."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from sampleattn.trace_files import ArrayFile
from sampleattn.trace_format import OUTPUT_ARRAYS


@dataclass(frozen=True)
class TraceOutput:
    """What the dense and the sparse run predict.

    logits_dense, logits_sparse: float [V] of the next token. continuation_*: int [T] greedy tokens; *_text: their pieces of text.
    continuation_kl: float [T], KL(dense || sparse) in nats, both runs fed the dense continuation.
    positions: int [P], prompt positions; there kl, top1_equal (bool), nll_dense, nll_sparse (nats, of the prompt's next token).
    next_tokens: [{"id", "text"}], the likeliest next tokens of either run.
    first_difference: index into the continuations, None if they are equal.
    """

    logits_dense: np.ndarray
    logits_sparse: np.ndarray
    continuation_dense: np.ndarray
    continuation_sparse: np.ndarray
    continuation_kl: np.ndarray
    positions: np.ndarray
    kl: np.ndarray
    top1_equal: np.ndarray
    nll_dense: np.ndarray
    nll_sparse: np.ndarray
    continuation_dense_text: list[str]
    continuation_sparse_text: list[str]
    next_tokens: list[dict]
    first_difference: int | None


def read_output(file: ArrayFile, texts: dict) -> TraceOutput:
    """The output of a trace: its file, and meta's texts."""
    arrays = {name: file.read(name) for name in OUTPUT_ARRAYS}
    arrays["top1_equal"] = arrays["top1_equal"].astype(bool)
    differs = np.flatnonzero(arrays["continuation_dense"] != arrays["continuation_sparse"])
    return TraceOutput(
        **arrays,
        continuation_dense_text=texts.get("continuation_dense", []),
        continuation_sparse_text=texts.get("continuation_sparse", []),
        next_tokens=texts.get("next_tokens", []),
        first_difference=int(differs[0]) if differs.size else None,
    )
