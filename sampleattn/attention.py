"""SampleAttention, the whole method on one screen (MLSys 2025, arXiv 2406.15486; `joint` and `spread` are ours)."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

from sampleattn import backends, compiled, memory
from sampleattn.block_mask import Grid, key_range
from sampleattn.config import SampleAttentionConfig
from sampleattn.dense import dense_attention
from sampleattn.fastest import backend_for, dense_reason
from sampleattn.filtering import Selection, everything, select
from sampleattn.inputs import check_inputs
from sampleattn.sampling import sampled_rows

DEFAULTS = SampleAttentionConfig()


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
    Returns out [B, Hq, Nq, Dv] in q's dtype (0 in padding), and the Selection if asked for. In torch.compile it is one operator
    of the graph; with return_selection it breaks the graph.
    Raises TypeError or ValueError for inputs that don't fit and RuntimeError for a backend that can't run, before any work;
    memory.NotEnoughMemory (a MemoryError) if the GPU's memory runs out.
    """
    config = config or DEFAULTS
    if torch.compiler.is_compiling():
        if return_selection:
            return _outside_the_graph(q, k, v, config, scale, padding, True, on_stage)
        return compiled.attention(q, k, v, config, scale, padding)
    check_inputs(q, k, v, padding, scale)
    try:
        out, selection = _method(q, k, v, config, scale, padding, return_selection, on_stage)
    except torch.OutOfMemoryError as error:

        def need(nq, nk):
            return memory.estimated_bytes(*q.shape[:2], nq, nk, config, v.shape[3], q.element_size())

        raise memory.explain(error, q.device, q.shape[2], k.shape[2], need) from error
    return (out, selection) if return_selection else out


_outside_the_graph = torch.compiler.disable(sample_attention)


def _method(q, k, v, config, scale, padding, wanted, on_stage) -> tuple[Tensor, Selection | None]:
    """The output and the selection; of a dense layer the selection only where it is `wanted`."""
    real = None if padding is None else key_range(padding)
    if reason := dense_reason(config, q, k.shape[2]):
        out = dense_attention(q, k, v, scale, real)
        if not wanted:
            return out, None
        grid = Grid(q.shape[2], k.shape[2], config.block_size, q.device, real)
        return out, everything(q.shape[0], q.shape[1], grid, reason)

    grid = Grid(q.shape[2], k.shape[2], config.block_size, q.device, real)
    ops = backends.twins(backend_for(config, q, v, real is not None))
    rows = sampled_rows(grid, config, ops)
    masses, _ = ops.sampled_tile_masses(q, k, rows, scale, real, config.block_size)
    on_stage("sampling")
    selection = select(masses, rows, grid, config, ops)
    on_stage("filtering")
    out, _ = ops.block_sparse_attention(q, k, v, selection.block_mask, scale, real, config.block_size)
    on_stage("sparse_attention")
    return out, selection
