"""How much GPU memory the method needs, and the one error that says so when there is too little."""

from __future__ import annotations

import traceback
from collections.abc import Callable

import torch

from sampleattn.block_mask import Grid
from sampleattn.config import SampleAttentionConfig
from sampleattn.sampling import sampled_rows


class NotEnoughMemory(MemoryError, torch.OutOfMemoryError):
    """The GPU's memory ran out: `length` tokens need about `need` bytes, `free` bytes are free, `fits` tokens would do."""

    def __init__(self, length: int, need: int, free: int, fits: int):
        found = f"about {_readable(need)} are needed besides the inputs, {_readable(free)} are free"
        super().__init__(f"out of GPU memory at {length:,} tokens: {found}; about {fits:,} tokens would fit")
        self.length, self.need, self.free, self.fits = length, need, free, fits


def estimated_bytes(
    batch: int, heads: int, nq: int, nk: int, config: SampleAttentionConfig, value_dim: int = 128, itemsize: int = 2
) -> int:
    """What `sample_attention` allocates at its peak with the kernels, beside q, k and v; heads are the query heads.

    The most that is there at once: in stage 1 the sampled tile masses twice, or in the end the masses, the block mask and the
    forward's output and lists. itemsize: bytes of an element of q.
    """
    grid = Grid(nq, nk, config.block_size, torch.device("meta"))
    masses = 4 * batch * heads * sampled_rows(grid, config).shape[1] * (grid.key_blocks + 1)
    mask = batch * heads * grid.query_blocks * grid.key_blocks
    lists = 4 * mask if config.backend == "fa4" else 0
    return max(2 * masses, masses + mask + lists + forward_bytes(batch, heads, nq, nk, value_dim, itemsize, config.block_size))


def forward_bytes(batch: int, heads: int, nq: int, nk: int, value_dim: int, itemsize: int, block_size: int = 128) -> int:
    """What the block-sparse forward allocates beside q, k, v and the block mask: output, logsumexp and index lists."""
    query_blocks, key_blocks = -(-nq // block_size), -(-nk // block_size)
    lists = query_blocks * (3 * 4 + key_blocks * (2 if key_blocks < 2**15 else 4))
    return batch * heads * (nq * (value_dim * itemsize + 4) + lists)


def explain(
    error: torch.OutOfMemoryError, device: torch.device, nq: int, nk: int, need: Callable[[int, int], int]
) -> NotEnoughMemory:
    """The error to raise in place of PyTorch's. need(nq, nk): bytes; the lengths that would fit keep the share of queries."""
    traceback.clear_frames(error.__traceback__)  # what the failed call has allocated is free again
    free = free_bytes(device)
    fits, too_long = 0, nk
    while too_long - fits > 1:
        length = (fits + too_long) // 2
        fits, too_long = (length, too_long) if need(max(nq * length // nk, 1), length) <= free else (fits, length)
    return NotEnoughMemory(nk, need(nq, nk), free, fits)


def free_bytes(device: torch.device) -> int:
    """GPU memory that PyTorch can still hand out: the device's own and what its allocator keeps in reserve."""
    reserve = torch.cuda.memory_reserved(device) - torch.cuda.memory_allocated(device)
    return torch.cuda.mem_get_info(device)[0] + reserve


def _readable(size: int) -> str:
    return f"{size / 2**30:.1f} GiB" if size >= 2**30 else f"{size / 2**20:.0f} MiB"
