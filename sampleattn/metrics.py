"""How much attention mass a block mask retains: recall of every row, CRA, the greedy oracle. Exact, without an N x N matrix."""

from __future__ import annotations

from collections.abc import Iterator

import torch
from torch import Tensor

from sampleattn import backends, memory
from sampleattn.block_mask import Grid, key_range
from sampleattn.inputs import check_block_mask, check_inputs
from sampleattn.reference import sampled_tile_masses


def row_recall(
    q: Tensor, k: Tensor, block_mask: Tensor, scale: float | None = None, padding: Tensor | None = None, block_size: int = 128
) -> Tensor:
    """The exact recall of every query row: fp32 [B, Hq, Nq], the share of its dense attention mass in its kept tiles.

    q [B, Hq, Nq, D]; k [B, Hkv, Nk, D]; block_mask bool [B, Hq, query blocks, key blocks]. Rows that are padding have recall 1.
    Where the kernels run, recall is exp(logsumexp over the kept tiles - logsumexp over all keys).
    """
    check_inputs(q, k, padding=padding, scale=scale)
    check_block_mask(block_mask, q, k, block_size)
    name = backends.resolve("auto", q.device, q.dtype, block_size, q.shape[3])
    if name != "torch":
        try:
            return _recall_by_kernels(backends.twins(name), q, k, block_mask, scale, key_range(padding))
        except torch.OutOfMemoryError as error:

            def need(nq, nk):
                rows = q.shape[0] * q.shape[1] * nq
                return memory.forward_bytes(*q.shape[:2], nq, nk, q.shape[3], q.element_size(), block_size) + 16 * rows

            raise memory.explain(error, q.device, q.shape[2], k.shape[2], need) from error
    recall = q.new_ones(q.shape[:3], dtype=torch.float32)
    for block, masses, lse in tile_masses(q, k, scale, padding, block_size):
        kept = (masses * block_mask[:, :, block, None]).sum(-1)
        rows = slice(block * block_size, block * block_size + kept.shape[-1])
        recall[:, :, rows] = torch.where(lse == -torch.inf, 1.0, kept)
    return recall.clamp_max_(1.0)


def _recall_by_kernels(ops, q, k, block_mask, scale, real) -> Tensor:
    dense = ops.row_logsumexp(q, k, scale, real)
    _, kept = ops.block_sparse_attention(q, k, k, block_mask, scale, real)
    return torch.where(dense == -torch.inf, 1.0, torch.exp(kept - dense)).clamp_max_(1.0)


def cra(recall: Tensor) -> Tensor:
    """Cumulative residual attention: the least recall over a head's rows; [..., N] -> [...]."""
    return recall.amin(-1)


def tile_masses(
    q: Tensor, k: Tensor, scale: float | None = None, padding: Tensor | None = None, block_size: int = 128
) -> Iterator[tuple[int, Tensor, Tensor]]:
    """All rows, a query block at a time: (query block, masses [B, Hq, rows, key blocks], logsumexp [B, Hq, rows])."""
    real = key_range(padding)
    for start in range(0, q.shape[2], block_size):
        rows = torch.arange(start, min(start + block_size, q.shape[2]), device=q.device)[None]
        yield start // block_size, *sampled_tile_masses(q, k, rows, scale, real, block_size)


def oracle_tiles(masses: Tensor, target: float) -> Tensor:
    """The greedy oracle for one query block: bool [..., key blocks], the tiles that give every row at least `target` of its mass.

    masses [..., rows, key blocks]. Each pick is the tile with the most still-missing mass over the rows that are short.
    """
    kept = torch.zeros_like(masses[..., 0, :], dtype=torch.bool)
    need = masses.sum(-1).clamp_max(target) - 1e-6
    for pick in range(masses.shape[-1]):
        short = (need > 0).any(-1, keepdim=True)
        # On a GPU the host waits for the answer, so it asks seldom: blocks that are done pick nothing more.
        if pick % (16 if masses.is_cuda else 1) == 0 and not short.any():
            break
        gain = torch.minimum(masses, need.clamp_min(0)[..., None]).sum(-2).masked_fill_(kept, -1)
        best = gain.argmax(-1, keepdim=True)
        kept.scatter_(-1, best, kept.gather(-1, best) | short)
        need = need - masses.gather(-1, best[..., None, :].expand(*need.shape, 1))[..., 0]
    return kept


def oracle_density(
    q: Tensor, k: Tensor, target: float, scale: float | None = None, padding: Tensor | None = None, block_size: int = 128
) -> Tensor:
    """The density that the greedy oracle needs so that every row's recall is at least `target`: fp32 [B, Hq]."""
    check_inputs(q, k, padding=padding)
    grid = Grid(q.shape[2], k.shape[2], block_size, q.device, key_range(padding))
    mask = torch.zeros(*q.shape[:2], grid.query_blocks, grid.key_blocks, dtype=torch.bool, device=q.device)
    for block, masses, _ in tile_masses(q, k, scale, padding, block_size):
        mask[:, :, block] = oracle_tiles(masses, target)
    return grid.density(mask)
