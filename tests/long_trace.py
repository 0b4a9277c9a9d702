"""A trace of any length with one pinned head whose every number is known in closed form: no N x N array is ever made.

Each key belongs to one of a few classes and is the unit vector of its class, so a row's weights depend on the key's class only,
and sums over keys are counts of classes. A single key, `needle[1]`, is alone in its class; row `needle[0]` attends to it.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import numpy as np
from synthetic_trace import tokenize, write_output

from sampleattn.config import SampleAttentionConfig
from sampleattn.estimate_table import KINDS, TARGETS
from sampleattn.recall import reached_by
from sampleattn.trace import TraceWriter

CLASSES = 16
COLUMN, NEEDLE = 14, 15


@dataclass(frozen=True)
class LongHead:
    """q [N, 16], kinds int [N] (the class of each key), lse [N]; all float64 but kinds."""

    q: np.ndarray
    kinds: np.ndarray
    lse: np.ndarray

    def weights(self, rows, cols) -> np.ndarray:
        """The exact weights [rows, cols] of some rows and columns, in float64."""
        rows, cols = np.asarray(rows), np.asarray(cols)
        weights = np.exp(self.q[rows][:, self.kinds[cols]] - self.lse[rows, None])
        return np.where(cols[None] <= rows[:, None], weights, 0)


def long_head(tokens: int, needle: tuple[int, int], seed: int = 0) -> LongHead:
    """A head with a column in a quarter of the prompt and the needle; the rest is noise over classes."""
    rng = np.random.default_rng(seed)
    kinds = rng.integers(0, COLUMN, tokens)
    kinds[tokens // 4] = COLUMN
    kinds[needle[1]] = NEEDLE
    q = rng.standard_normal((tokens, CLASSES)).astype(np.float16).astype(np.float64)
    q[:, COLUMN] = np.float16(np.log(tokens / 2))
    q[:, NEEDLE] = 0
    q[needle[0], NEEDLE] = np.float16(np.log(tokens) + 3)
    counts = np.cumsum(np.eye(CLASSES, dtype=np.int32)[kinds], axis=0)
    return LongHead(q, kinds, np.log((np.exp(q) * counts).sum(axis=1)))


def _arrays(head: LongHead, config: SampleAttentionConfig) -> dict[str, np.ndarray]:
    """The recorded arrays of the head, without the head axis. tokens must be a multiple of the block and of 512."""
    tokens, block = len(head.kinds), config.block_size
    blocks, cells = tokens // block, min(512, tokens)
    weights = np.exp(head.q - head.lse[:, None])
    one_hot = np.eye(CLASSES, dtype=np.float32)[head.kinds]
    in_tile = one_hot.reshape(blocks, block, CLASSES).sum(axis=1)
    in_diagonal = np.cumsum(one_hot.reshape(blocks, block, CLASSES), axis=1).reshape(tokens, CLASSES)
    i, j = np.arange(blocks)[:, None], np.arange(blocks)[None]
    columns, slashes = np.zeros((1, blocks), bool), np.zeros((1, blocks), bool)
    columns[0, [0, tokens // 4 // block]], slashes[0, :2] = 1, 1
    mask = (j <= i) & (columns[0][None] | (i - j < 2) | (i >= blocks - config.last_blocks))
    before = (mask & (j < i)) @ in_tile
    recall = (weights * (before[np.arange(tokens) // block] + in_diagonal)).sum(axis=1)
    by_row = weights.reshape(blocks, block, CLASSES).sum(axis=1)
    own = (weights * in_diagonal).sum(axis=1).reshape(blocks, block).sum(axis=1)
    masses = np.where(j < i, by_row @ in_tile.T, 0) + np.diag(own)
    size = tokens // cells
    most = np.log(weights).reshape(cells, size, CLASSES).max(axis=1)
    present = np.where(one_hot.reshape(cells, size, CLASSES).any(axis=1), 0.0, -np.inf)
    overview = np.zeros((cells, cells))
    for row in range(cells):
        overview[row, :row] = np.exp((most[row] + present[:row]).max(axis=1))
        here = np.arange(row * size, (row + 1) * size)
        overview[row, row] = head.weights(here, here).max()
    return {
        "overview": overview.astype(np.float16),
        "recall": np.minimum(recall, 1).astype(np.float32),
        "block_mask": mask,
        "columns": columns,
        "slashes": slashes,
        "column_mass": (masses.sum(axis=0) / tokens).astype(np.float32),
        "slash_mass": (np.bincount((i - j)[j <= i], masses[j <= i], blocks) / tokens).astype(np.float32),
        "tile_masses": np.zeros((1, blocks), np.float16),
        "density": np.float32(mask.sum() / (blocks * (blocks + 1) / 2)),
        "cra": np.float32(min(recall.min(), 1)),
        "sampled_cra": np.float32(1),
        "output_error": np.float32(0),
        "oracle_density": np.float32(0),
        "rows_at_target": np.float32((recall >= config.cra).mean()),
        "recall_reached": np.float32(reached_by(recall, config.rows_at_target)),
    }


def answers_of(heads: int) -> dict[str, np.ndarray]:
    """Answers to other settings, made up: head h of H and kind number k compute target * (h + 1) / H / (k + 1) of the tiles."""
    target = np.broadcast_to(np.array(TARGETS, np.float32), (heads, len(KINDS), len(TARGETS)))
    share = (np.arange(1, heads + 1)[:, None] / heads / np.arange(1, len(KINDS) + 1)).astype(np.float32)
    return {
        "density": target * share[..., None],
        "recall": target,
        "at_target": np.full(target.shape, 0.97, np.float32),
        "worst": target - np.float32(0.1),
        "rows": np.array([512], np.int32),
    }


def write_long_trace(
    folder: Path, tokens: int = 131072, needle: tuple[int, int] = (100_003, 30_011), layers: int = 1, heads: int = 2
) -> LongHead:
    """Write a whole trace into `folder`; head 0 of layer 0 is pinned, the others hold the same numbers without q and k."""
    config = SampleAttentionConfig()
    head = long_head(tokens, needle)
    ids, offsets, text = tokenize(tokens)
    model = {"name": "synthetic", "revision": None, "layers": layers, "heads": heads, "kv_heads": 1, "head_dim": CLASSES,
             "context": tokens, "parameters": 1}  # fmt: skip
    writer = TraceWriter(
        folder, {"model": model, "settings": config.to_dict(), "prompt": {"title": "A long prompt"}}, ids, offsets, text
    )
    arrays = {name: np.stack([array] * heads) for name, array in _arrays(head, config).items()}
    info = {"labels": ["column"] * heads, "scale": 1.0, "ran": "sparse", "sparse_run_density": arrays["density"].tolist()}
    for layer in range(layers):
        writer.write_estimates(layer, answers_of(heads))
        writer.write_layer(layer, arrays | {"rows": np.zeros(1, np.int32)}, info)
    keys = np.eye(CLASSES, dtype=np.float16)[head.kinds]
    writer.write_pin(0, 0, q=head.q.astype(np.float16), lse=head.lse.astype(np.float32), k=keys)
    write_output(writer, np.random.default_rng(0), tokens, 256, 8, None)
    writer.finish()
    return head
