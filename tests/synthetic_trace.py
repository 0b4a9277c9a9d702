"""A trace made without a model: planted heads, with every number computed from their weights, so that all of it agrees."""

from __future__ import annotations

import numpy as np

from sampleattn.config import SampleAttentionConfig
from sampleattn.recall import reached_by
from sampleattn.trace import TraceWriter

KINDS = ("sink", "local", "column", "slash", "column+slash", "dense")
WORDS = ["def", "total", "=", "price", "*", "count\n", "return", "naïve", "+", "'größe'", "#", "数", "of", "items,", "any:\n"]


def tokenize(tokens: int, seed: int = 0) -> tuple[np.ndarray, np.ndarray, str]:
    """ids int [N], offsets int [N, 2] and the text of a prompt of N made-up tokens."""
    ids = np.random.default_rng(seed).integers(0, len(WORDS), tokens)
    pieces = [WORDS[i] + " " for i in ids]
    ends = np.cumsum([len(piece) for piece in pieces])
    return ids, np.stack([ends - [len(piece) for piece in pieces], ends], axis=1), "".join(pieces)


def planted_weights(kind: str, tokens: int, seed: int = 0, block: int = 128, noise: float = 0.01) -> np.ndarray:
    """Attention weights [N, N] (float32, causal, rows sum to 1) of one head with the pattern `kind` of KINDS.

    The column lies in the block of `planted_column(tokens)`, the slash on the block diagonal `planted_slash(tokens)`.
    """
    rng = np.random.default_rng(seed)
    row, col = np.arange(tokens)[:, None], np.arange(tokens)[None]
    weights = noise * rng.random((tokens, tokens), dtype=np.float32) / np.maximum(row, 1)
    if kind == "dense":
        weights += rng.random((tokens, tokens), dtype=np.float32)
    if kind == "sink":
        weights[:, 0] += 1
    if kind == "local":
        weights += np.exp(-(row - col) / 8.0, where=col <= row, out=np.zeros((tokens, tokens), np.float32))
    if "column" in kind:
        weights[:, min(planted_column(tokens, block) * block + block // 2, tokens - 1)] += 1
    if "slash" in kind:
        weights += row - col == planted_slash(tokens, block) * block
    weights = np.where(col <= row, weights, 0)
    weights[0, 0] += 1e-3
    return (weights / weights.sum(axis=1, keepdims=True)).astype(np.float32)


def planted_column(tokens: int, block: int = 128) -> int:
    return max(-(-tokens // block) // 4, 1)


def planted_slash(tokens: int, block: int = 128) -> int:
    return max(-(-tokens // block) // 3, 1)


def head_arrays(weights: np.ndarray, kind: str, config: SampleAttentionConfig, rows: np.ndarray) -> dict[str, np.ndarray]:
    """The recorded arrays of one head, without the head axis, for its weights [N, N]."""
    tokens, block = len(weights), config.block_size
    blocks = -(-tokens // block)
    starts = np.arange(0, tokens, block)
    masses = np.add.reduceat(weights, starts, axis=1)
    i, j = np.arange(blocks)[:, None], np.arange(blocks)[None]
    causal = j <= i
    columns, slashes = np.zeros((1, blocks), bool), np.zeros((1, blocks), bool)
    columns[0, :1], slashes[0, :2] = 1, 1
    if "column" in kind:
        columns[0, min(planted_column(tokens, block), blocks - 1)] = 1
    if "slash" in kind:
        slashes[0, min(planted_slash(tokens, block), blocks - 1)] = 1
    mask = columns[0][None] | slashes[0][np.clip(i - j, 0, None)] | (i >= blocks - config.last_blocks)
    mask = causal & (mask | (kind == "dense"))
    recall = np.minimum((masses * mask[np.arange(tokens) // block]).sum(axis=1), 1)
    size = min(512, tokens)
    edges = np.arange(size) * tokens // size
    tile_sums = np.add.reduceat(masses, starts, axis=0)
    reach = np.minimum.reduceat(np.cumsum(-np.sort(-masses, axis=1), axis=1), starts, axis=0) >= min(config.cra, 0.999)
    sampled = (masses[rows] * mask[rows // block]).sum(axis=1)
    return {
        "overview": np.maximum.reduceat(np.maximum.reduceat(weights, edges, axis=0), edges, axis=1).astype(np.float16),
        "recall": recall.astype(np.float32),
        "block_mask": mask,
        "columns": columns,
        "slashes": slashes,
        "column_mass": (masses.sum(axis=0) / tokens).astype(np.float32),
        "slash_mass": (np.bincount((i - j)[causal], tile_sums[causal], blocks) / tokens).astype(np.float32),
        "tile_masses": masses[rows],
        "density": np.float32(mask.sum() / causal.sum()),
        "cra": np.float32(recall.min()),
        "sampled_cra": np.float32(sampled.min() if len(rows) else 1),
        "output_error": np.float32(1 - recall.mean()),
        "oracle_density": np.float32((np.argmax(reach, axis=1) + 1).sum() / causal.sum()),
        "rows_at_target": np.float32((recall >= config.cra).mean()),
        "recall_reached": np.float32(reached_by(recall, config.rows_at_target)),
    }


def layer_arrays(weights, kinds, config: SampleAttentionConfig) -> dict[str, np.ndarray]:
    """What the analysis of a layer gives (`trace_format.ANALYSED_ARRAYS`) for heads of weights [N, N] and kinds."""
    heads = []
    for head, kind in zip(weights, kinds, strict=True):
        rows = np.unique(np.linspace(0, len(head) - 1, max(1, round(len(head) * config.sample_ratio))).astype(np.int32))
        heads.append(head_arrays(head, kind, config, rows))
    return {name: np.stack([arrays[name] for arrays in heads]) for name in heads[0]} | {"rows": rows}


def pinned_head(rng, tokens: int, dim: int, heads: int, kv_heads: int) -> tuple[dict, list[np.ndarray]]:
    """Random q [H, N, D], k [Hkv, N, D] and their lse [H, N], and the weights [N, N] of each head."""
    q = rng.standard_normal((heads, tokens, dim)).astype(np.float32) * 2
    k = rng.standard_normal((kv_heads, tokens, dim)).astype(np.float32) * 2
    scores = np.einsum("hnd,hmd->hnm", q, np.repeat(k, heads // kv_heads, axis=0)) * dim**-0.5
    scores[:, ~np.tri(tokens, dtype=bool)] = -np.inf
    lse = np.logaddexp.reduce(scores, axis=2)
    return {"q": q, "k": k, "lse": lse}, list(np.exp(scores - lse[..., None]))


def write_synthetic_trace(
    folder,
    *,
    layers: int = 4,
    heads: int = 6,
    kv_heads: int = 2,
    tokens: int = 1024,
    head_dim: int = 16,
    pin_layers: tuple = (0,),
    dense_layers: tuple = (),
    stop_after: int | None = None,
    vocabulary: int = 256,
    continuation: int = 32,
    first_difference: int | None = 7,
    title: str = "A made-up prompt",
    seed: int = 0,
    level: str = "explore",
    **settings,
) -> TraceWriter:
    """Write a trace into `folder` (new or empty) and return its writer.

    Head h of layer l has the pattern KINDS[(l + h) % len(KINDS)]; layers in pin_layers have random q and k instead, and the label
    "dense". dense_layers ran dense in the sparse run (still analysed). With stop_after=n only n layers are written and the state
    stays "recording". settings go to SampleAttentionConfig.
    """
    rng = np.random.default_rng(seed)
    config = SampleAttentionConfig(**settings)
    ids, offsets, text = tokenize(tokens, seed)
    writer = TraceWriter(
        folder,
        {
            "model": {
                "name": "synthetic",
                "revision": None,
                "layers": layers,
                "heads": heads,
                "kv_heads": kv_heads,
                "head_dim": head_dim,
                "context": 16384,
                "parameters": 1_000_000,
            },
            "settings": config.to_dict(),
            "level": level,
            "prompt": {"title": title},
            "machine": {"device": "cpu", "cpu": "made up", "torch": "2.13.0", "triton": None, "backend": "torch"},
        },
        ids,
        offsets,
        text,
    )
    for layer in range(layers if stop_after is None else stop_after):
        kinds = [KINDS[(layer + head) % len(KINDS)] for head in range(heads)]
        if layer in pin_layers:
            kinds = ["dense"] * heads
            pins, weights = pinned_head(rng, tokens, head_dim, heads, kv_heads)
        else:
            weights = (planted_weights(kind, tokens, seed + head, config.block_size) for head, kind in enumerate(kinds))
        arrays = layer_arrays(weights, kinds, config)
        ran, reason = ("dense", "sliding-window attention") if layer in dense_layers else ("sparse", "")
        seconds = {"dense": 0.01, "sampling": 0.001, "filtering": 0.001, "analysis": 0.02}
        seconds["sparse_attention"] = 0.004 * (layer + 1)
        info = {"labels": kinds, "seconds": seconds, "scale": head_dim**-0.5}
        density = arrays["density"] if ran == "sparse" else np.ones(heads)
        run = {"ran": ran, "reason": reason, "sparse_run_density": density.tolist()}
        writer.write_layer(layer, arrays, info if stop_after else info | run)
        if layer in pin_layers:
            for head in range(heads):
                q, lse, k = pins["q"][head], pins["lse"][head], pins["k"][head // (heads // kv_heads)]
                writer.write_pin(layer, head, q, lse, k)
    if stop_after is None:
        write_output(writer, rng, tokens, vocabulary, continuation, first_difference)
        writer.finish(timings={"dense_run_s": 1.5, "sparse_run_s": 0.9, "analysis_s": 3.0})
    return writer


def write_output(writer, rng, tokens, vocabulary, continuation, first_difference):
    """Made-up predictions of both runs, as a recording ends with."""
    logits = rng.standard_normal(vocabulary).astype(np.float32) * 3
    dense = rng.integers(0, len(WORDS), continuation).astype(np.int32)
    sparse = dense.copy()
    if first_difference is not None:
        sparse[first_difference:] = (dense[first_difference:] + 1) % len(WORDS)
    positions = np.unique(np.linspace(0, tokens - 1, min(1024, tokens)).astype(np.int32))
    nll = rng.gamma(2, 1, len(positions)).astype(np.float32)
    kl = rng.exponential(1e-3, len(positions)).astype(np.float32)
    arrays = {
        "logits_dense": logits,
        "logits_sparse": logits + rng.normal(0, 0.02, vocabulary).astype(np.float32),
        "continuation_dense": dense,
        "continuation_sparse": sparse,
        "continuation_kl": rng.exponential(1e-3, continuation).astype(np.float32),
        "positions": positions,
        "kl": kl,
        "top1_equal": (kl < 4e-3).astype(np.uint8),
        "nll_dense": nll,
        "nll_sparse": nll + rng.normal(0, 0.01, len(positions)).astype(np.float32),
    }
    texts = {
        "continuation_dense": [WORDS[i] + " " for i in dense],
        "continuation_sparse": [WORDS[i] + " " for i in sparse],
        "next_tokens": [{"id": int(i), "text": WORDS[i % len(WORDS)]} for i in np.argsort(-logits)[:10]],
    }
    writer.write_output(arrays, texts)
