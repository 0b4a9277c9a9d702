"""FlashAttention-4's forward (flash-attn-4, CuTe DSL) as a backend: optional, NVIDIA Hopper only (requirements-fa4.txt).

Imported only where `backends.fa4_obstacle` finds none, because it loads flash_attn.cute, which takes seconds.
"""

from __future__ import annotations

import cutlass.cute as cute
import torch
from flash_attn.cute import flash_attn_func
from flash_attn.cute.block_sparsity import BlockSparseTensorsTorch
from torch import Tensor

from sampleattn.backends import fa4_misfit
from sampleattn.inputs import check_block_mask
from sampleattn.kernels.block_index_lists import block_index_lists
from sampleattn.kernels.checks import check_inputs


@cute.jit
def _up_to_the_diagonal(batch, head, query, key, lengths, tensors):
    """FA4's mask of one cell, for the tiles that the diagonal crosses; queries are right-aligned to the keys."""
    return key <= query + (lengths.seqlen_k - lengths.seqlen_q)


def block_sparse_attention(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    block_mask: Tensor,
    scale: float | None = None,
    key_range: Tensor | None = None,
    block_size: int = 128,
) -> tuple[Tensor, Tensor]:
    """Causal attention over the tiles of `block_mask` only; the twin of `sampleattn.reference.block_sparse_attention`.

    q [B, Hq, Nq, D]; k [B, Hkv, Nk, D]; v [B, Hkv, Nk, Dv], fp16 or bf16; Nq <= Nk, queries right-aligned. block_mask bool
    [B, Hq, query blocks, key blocks]; its tiles above the diagonal are ignored.
    Returns out [B, Hq, Nq, Dv] in q's dtype and the natural-log logsumexp fp32 [B, Hq, Nq]; a row without keys gives 0 and -inf.
    Raises TypeError or ValueError before any launch; ValueError for what FA4 can't do (`backends.fa4_misfit`): padding, blocks
    other than 128, head dimensions.
    """
    scale = check_inputs(q, k, v, scale, key_range)
    check_block_mask(block_mask, q, k, block_size)
    if misfit := fa4_misfit(q.dtype, q.shape[-1], v.shape[-1], block_size, key_range is not None):
        raise ValueError(f"backend='fa4' can't run: {misfit}")
    return forward(q, k, v, scale, block_lists(block_mask, q.shape[2], k.shape[2], block_size))


def dense_attention(q: Tensor, k: Tensor, v: Tensor, scale: float | None = None) -> Tensor:
    """Causal attention over all keys: out [B, Hq, Nq, Dv]. Inputs and errors as `block_sparse_attention`'s; head_dim to 256."""
    return forward(q, k, v, check_inputs(q, k, v, scale))[0]


def forward(
    q: Tensor, k: Tensor, v: Tensor, scale: float, lists: BlockSparseTensorsTorch | None = None
) -> tuple[Tensor, Tensor | None]:
    """FA4's causal forward over the tiles of `lists`, or over all: out [B, Hq, Nq, Dv]; with lists the logsumexp, else None."""
    options = {"causal": True}
    if lists is not None:
        options = {"mask_mod": _up_to_the_diagonal, "block_sparse_tensors": lists, "return_lse": True}
    with torch.no_grad(), torch.cuda.device(q.device):
        out, lse = flash_attn_func(*(x.transpose(1, 2) for x in (q, k, v)), softmax_scale=scale, **options)[:2]
    return out.transpose(1, 2), None if lists is None else lse


def block_lists(block_mask: Tensor, queries: int, keys: int, block_size: int = 128) -> BlockSparseTensorsTorch:
    """The lists of the tiles that the diagonal crosses (at most two per query block) and of the full ones, without waiting.

    FA4 walks each list from its end and checks the end of the keys in the first tile it takes only: lists must be ascending.
    """
    ids, spans = block_index_lists(block_mask, queries, keys, None, block_size)
    full, kept = spans[..., 1].contiguous(), spans[..., 2]  # without padding the full tiles come first
    crossed = full[..., None].long() + torch.arange(min(2, ids.shape[-1]), device=ids.device)
    crossed_ids = ids.gather(-1, crossed.clamp_max_(ids.shape[-1] - 1)).int()
    return BlockSparseTensorsTorch(kept - full, crossed_ids, full, ids.int(), block_size=(block_size, block_size))
