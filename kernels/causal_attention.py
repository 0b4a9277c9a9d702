"""Dense causal attention by the sparse forward's Hopper kernel, without lists: a row's keys are all keys up to its own."""

import torch

from . import hopper
from .block_sparse_attention_hopper import causal_attention_hopper
from .checks import check_inputs


def takes(q, k, v):
    """Whether the kernel runs on the tensors' GPU and can read them; inputs as `causal_attention`'s."""
    return hopper.fits(q, k, v, largest=256)


def causal_attention(q, k, v, scale=None):
    """Attention of each query over all keys up to its own; the twin of `sampleattn.reference.causal_attention`.

    q [B, Hq, Nq, D]; k [B, Hkv, Nk, D]; v [B, Hkv, Nk, Dv], float16 or bfloat16, D and Dv up to 256; Hq a multiple of Hkv;
    Nq <= Nk, queries right-aligned. scale defaults to D**-0.5. Returns out [B, Hq, Nq, Dv] in q's dtype, contiguous.
    Raises TypeError or ValueError before any launch, also for what it does not take.
    """
    scale = check_inputs(q, k, v, scale)
    if not takes(q, k, v):
        raise ValueError("causal_attention needs a Hopper GPU and contiguous rows whose addresses and steps 16 bytes divide")
    out = torch.empty(*q.shape[:3], v.shape[3], dtype=q.dtype, device=q.device)
    causal_attention_hopper(q, k, v, out, scale)
    return out
