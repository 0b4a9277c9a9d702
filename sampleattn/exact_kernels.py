"""Exact numbers of all rows of a layer by the kernels: what `exact.exact_by_torch` gives, at the cost of a dense prefill."""

from __future__ import annotations

from collections.abc import Callable
from types import SimpleNamespace

import torch
from torch import Tensor

from sampleattn import trace_format
from sampleattn.config import SampleAttentionConfig
from sampleattn.exact import Exact, oracle_blocks
from sampleattn.metrics import oracle_tiles

CHUNK_BYTES = 512 << 20


def exact_by_kernels(
    ops: SimpleNamespace,
    query: Tensor,
    key: Tensor,
    block_mask: Tensor,
    config: SampleAttentionConfig,
    scale: float,
    tick: Callable[[float], None] = lambda share: None,
) -> Exact:
    """ops: the twins to use (`backends.twins`). query [1, H, N, D]; key [1, Hkv, N, D]; block_mask bool [1, H, blocks, blocks].
    tick is called with the share done."""
    tokens, block = query.shape[2], config.block_size
    cells = min(trace_format.OVERVIEW, tokens)
    lse = ops.row_logsumexp(query, key, scale)
    tick(0.2)
    recall = _recall(ops, query, key, lse, block_mask, scale, block)
    tick(0.3)
    whole = (0, tokens)
    overview = ops.map_window(query, key, lse, whole, whole, (cells, cells), "max", scale)[0, 0]
    tick(0.5)
    tiles = _tiles(ops, query, key, lse, scale, block)
    tick(0.7)
    oracle = _oracle(ops, query, key, config, scale)
    tick(1.0)
    return Exact(lse[0], recall[0], tiles, overview, oracle, block)


def _recall(ops, query, key, lse, mask, scale, block) -> Tensor:
    """fp32 [1, H, N]; exactly 1 in query blocks that keep every tile."""
    _, kept = ops.block_sparse_attention(query, key, key, mask, scale, None, block)
    above = torch.ones(mask.shape[-2:], dtype=torch.bool, device=mask.device).triu(1)
    whole = (mask | above).all(-1).repeat_interleave(block, -1)[..., : lse.shape[-1]]
    return torch.exp(kept - lse).clamp_max_(1).masked_fill_(whole, 1)


def _tiles(ops, query, key, lse, scale, block) -> Tensor:
    """Each tile's mass, summed over its rows: fp32 [H, blocks, blocks]. A last block that is not whole is a window of its own."""
    heads, tokens = query.shape[1:3]
    blocks, whole = -(-tokens // block), tokens // block
    tiles = query.new_zeros(heads, blocks, blocks, dtype=torch.float32)
    spans = [((0, whole * block), slice(0, whole))] if whole else []
    if whole < blocks:
        spans.append(((whole * block, tokens), slice(whole, blocks)))
    for rows, i in spans:
        for cols, j in spans[: spans.index((rows, i)) + 1]:
            shape = i.stop - i.start, j.stop - j.start
            tiles[:, i, j] = ops.map_window(query, key, lse[..., slice(*rows)], rows, cols, shape, "sum", scale)[0, 0]
    return tiles


def _oracle(ops, query, key, config, scale) -> Tensor:
    """The oracle's tiles in the blocks it looks at, as a share of their causal tiles: fp32 [H]."""
    heads, tokens = query.shape[1:3]
    block = config.block_size
    looked_at = torch.from_numpy(oracle_blocks(tokens, block)).to(query.device)
    rows = looked_at[:, None] * block + torch.arange(block, device=query.device)
    rows = rows.masked_fill(rows >= tokens, -1)
    together = max(CHUNK_BYTES // (4 * heads * block * -(-tokens // block)), 1)
    kept = torch.zeros(heads, device=query.device)
    for part in rows.split(together):
        masses, _ = ops.sampled_tile_masses(query, key, part.reshape(1, -1), scale, None, block)
        kept += oracle_tiles(masses[0].unflatten(1, (-1, block)), config.cra).sum((1, 2))
    return kept / (looked_at + 1).sum()
