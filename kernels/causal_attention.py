"""Dense causal attention by the sparse forward's Hopper kernel, without lists: a row's keys are all keys up to its own."""

import torch

from . import hopper
from .block_sparse_attention_hopper import block_sparse_attention_hopper
from .checks import check_layouts, layouts
from .launch import plan


def causal_attention(q, k, v, scale=None):
    """Attention of each query over all keys up to its own; the twin of `sampleattn.reference.causal_attention`.

    q [B, Hq, Nq, D]; k [B, Hkv, Nk, D]; v [B, Hkv, Nk, Dv], float16 or bfloat16, D and Dv up to 256; Hq a multiple of Hkv;
    Nq <= Nk, queries right-aligned. scale defaults to D**-0.5. Returns out [B, Hq, Nq, Dv] in q's dtype, contiguous.
    Raises TypeError or ValueError before any launch, also for what it does not take.
    """
    out = if_taken(q, k, v, scale)
    if out is None:
        raise ValueError("causal_attention needs a Hopper GPU and contiguous rows whose addresses and steps 16 bytes divide")
    return out


def if_taken(q, k, v, scale=None):
    """`causal_attention`, or None for what it does not take."""
    forward, shape = _plan(*layouts(q, k, v), scale)
    if forward is None:
        return None
    out = torch.empty(shape, dtype=q.dtype, device=q.device)
    started = forward(q, k, v, out, out, None, out, out)  # out stands for the lists and the logsumexp that there are not
    return out if started else None


@plan
def _plan(q, k, v, scale):
    """The launch, or None, and the shape of the output."""
    scale = check_layouts(q, k, v, scale)
    shape = (*q.shape[:3], v.shape[3])
    on_hopper = hopper.readable(q, k, v, largest=256)
    return block_sparse_attention_hopper(q, k, v, scale, False, dense=True) if on_hopper else None, shape
