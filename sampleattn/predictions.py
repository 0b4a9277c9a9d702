"""What a run predicts: logits at prompt positions and a greedy continuation; and how the predictions of two runs differ."""

from __future__ import annotations

import copy
import inspect
from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

LOGIT_BYTES = 512 << 20
CHUNK_BYTES = 64 << 20
MOST_POSITIONS = 1024
TOP = 10


@dataclass
class Prefill:
    """logits [P + 1, V]: at the prompt positions asked for, and the next token's; cache: the model's past_key_values."""

    logits: Tensor
    cache: object


def prompt_positions(tokens: int, vocabulary: int) -> np.ndarray:
    """Up to 1,024 evenly spread positions that have a next token; fewer where the logits would exceed 512 MB. int32 [P]"""
    count = max(min(MOST_POSITIONS, tokens - 1, LOGIT_BYTES // (4 * vocabulary)), 1)
    return np.unique(np.linspace(0, tokens - 2, count).round().astype(np.int32))


def prefill(model, ids: Tensor, positions: np.ndarray) -> Prefill:
    """Run the prompt ids [1, N] and keep the logits of `positions` and of the last token."""
    keep = torch.tensor([*positions.tolist(), ids.shape[1] - 1], device=ids.device)
    if "logits_to_keep" in inspect.signature(model.forward).parameters:
        out = model(input_ids=ids, use_cache=True, logits_to_keep=keep)
        logits = out.logits[0]
    else:
        out = model(input_ids=ids, use_cache=True)
        logits = out.logits[0, keep]
    return Prefill(logits, out.past_key_values)


def greedy(model, start: Prefill, steps: int, tick: Callable[[], None]) -> tuple[Tensor, Tensor]:
    """The likeliest tokens one after the other: ids [T], and the logits [T, V] they were taken from. Changes the cache."""
    return _decode(model, start.logits[-1], start.cache, steps, tick)


def follow(model, start: Prefill, dense: Tensor, tick: Callable[[], None]) -> tuple[Tensor, Tensor]:
    """The run's own greedy tokens [T], and its logits [T, V] when it is fed the tokens `dense` [T]. Changes the cache."""
    rows, row = [], start.logits[-1]
    own, branch = [], None
    for step in range(len(dense)):
        tick()
        rows.append(row.float().cpu())
        if branch is None:
            own.append(int(row.argmax()))
            if own[-1] != int(dense[step]):
                branch = copy.deepcopy(start.cache)
        if step + 1 < len(dense):
            row = _next(model, int(dense[step]), start.cache)
    if branch is not None and len(own) < len(dense):
        row = _next(model, own[-1], branch)
        own += _decode(model, row, branch, len(dense) - len(own), tick)[0].tolist()
    return torch.tensor(own), torch.stack(rows)


def _decode(model, row, cache, steps, tick):
    ids, rows = [], []
    for step in range(steps):
        tick()
        rows.append(row.float().cpu())
        ids.append(int(row.argmax()))
        if step + 1 < steps:
            row = _next(model, ids[-1], cache)
    return torch.tensor(ids), torch.stack(rows)


def _next(model, token, cache):
    return model(input_ids=torch.tensor([[token]], device=model.device), past_key_values=cache, use_cache=True).logits[0, -1]


def divergence(dense: Tensor, sparse: Tensor) -> Tensor:
    """KL(dense || sparse) in nats of each row of logits [R, V]: float32 [R] on the CPU; a chunk of rows at a time."""
    step = max(CHUNK_BYTES // (8 * dense.shape[-1]), 1)
    parts = []
    for a, b in zip(dense.split(step), sparse.split(step), strict=True):
        a, b = a.double().log_softmax(-1), b.to(a.device).double().log_softmax(-1)
        parts.append((a.exp() * (a - b)).nan_to_num_(0.0).sum(-1).clamp_min_(0).float().cpu())
    return torch.cat(parts)


def surprise(logits: Tensor, targets: Tensor) -> Tensor:
    """-log p(target) in nats of each row of logits [R, V]: float32 [R] on the CPU."""
    step = max(CHUNK_BYTES // (8 * logits.shape[-1]), 1)
    parts = [
        torch.nn.functional.cross_entropy(a.float(), b.to(a.device), reduction="none").cpu()
        for a, b in zip(logits.split(step), targets.split(step), strict=True)
    ]
    return torch.cat(parts)


def pieces(tokenizer, before: list[int], ids: list[int]) -> list[str]:
    """The text that each of `ids` adds after the tokens `before`; bytes of an unfinished character wait for its last token."""
    before = before[-8:]
    done, texts = decode(tokenizer, before), []
    for n in range(1, len(ids) + 1):
        text = decode(tokenizer, before + ids[:n])
        whole = text if n == len(ids) else text.rstrip("\ufffd")
        texts.append(whole[len(done) :])
        done = whole if len(whole) > len(done) else done
    return texts


def likeliest(tokenizer, *rows: Tensor) -> list[dict]:
    """The 10 likeliest tokens of each of the logits [V], as {"id", "text"}, each once, the likeliest first."""
    tops = [row.topk(min(TOP, len(row))).indices.tolist() for row in rows]
    ids = dict.fromkeys(i for pair in zip(*tops, strict=True) for i in pair)
    return [{"id": i, "text": decode(tokenizer, [i])} for i in ids]


def decode(tokenizer, ids: list[int]) -> str:
    return tokenizer.decode(ids, skip_special_tokens=False, clean_up_tokenization_spaces=False)
