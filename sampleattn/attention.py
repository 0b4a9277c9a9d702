"""SampleAttention, the whole method on one screen (MLSys 2025, arXiv 2406.15486; `joint` and `spread` are ours)."""

from __future__ import annotations

from collections.abc import Callable

from torch import Tensor

from sampleattn import backends
from sampleattn.block_mask import Grid, key_range
from sampleattn.config import SampleAttentionConfig
from sampleattn.filtering import Selection, everything, select
from sampleattn.inputs import check_inputs
from sampleattn.reference import dense_attention
from sampleattn.sampling import sampled_rows


def sample_attention(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    config: SampleAttentionConfig | None = None,
    scale: float | None = None,
    padding: Tensor | None = None,
    return_selection: bool = False,
    on_stage: Callable[[str], None] = lambda stage: None,
) -> Tensor | tuple[Tensor, Selection]:
    """Causal attention over the tiles that the sampled rows ask for.

    q [B, Hq, Nq, D]; k [B, Hkv, Nk, D]; v [B, Hkv, Nk, Dv]; Hq a multiple of Hkv, Nq <= Nk, queries right-aligned to the keys.
    scale: factor of q.k, D**-0.5 by default. padding: bool [B, Nk], True for real tokens, contiguous in each batch row.
    on_stage: called with "sampling", "filtering" and "sparse_attention" as each is done (queued, on a GPU), for timing.
    Returns out [B, Hq, Nq, Dv] in q's dtype (0 in padding), and the Selection if asked for.
    Raises TypeError or ValueError for inputs that don't fit, before any work.
    """
    config = config or SampleAttentionConfig()
    check_inputs(q, k, v, padding)
    real = key_range(padding)
    grid = Grid(q.shape[2], k.shape[2], config.block_size, q.device, real)
    if grid.nk < config.dense_below:
        out = dense_attention(q, k, v, scale, real)
        reason = f"{grid.nk} tokens are fewer than dense_below = {config.dense_below}"
        return (out, everything(q.shape[0], q.shape[1], grid, reason)) if return_selection else out

    ops = backends.twins(backends.resolve(config.backend, q.device, q.dtype, config.block_size))
    rows = sampled_rows(grid, config)
    masses, _ = ops.sampled_tile_masses(q, k, rows, scale, real, config.block_size)
    on_stage("sampling")
    selection = select(masses, rows, grid, config)
    on_stage("filtering")
    out, _ = ops.block_sparse_attention(q, k, v, selection.block_mask, scale, real, config.block_size)
    on_stage("sparse_attention")
    return (out, selection) if return_selection else out
