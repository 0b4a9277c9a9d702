"""Exact causal attention over all keys, by the fastest kernel for it: ours on Hopper, else cuDNN's, else SDPA's choice."""

from __future__ import annotations

from functools import cache

import torch
import torch.nn.functional as F
from torch import Tensor

from sampleattn import backends, fastest
from sampleattn.block_mask import Grid


def dense_attention(q: Tensor, k: Tensor, v: Tensor, scale: float | None = None, key_range: Tensor | None = None) -> Tensor:
    """Causal attention over all keys: out [B, Hq, Nq, Dv] in q's dtype, 0 in padding.

    q [B, Hq, Nq, D]; k [B, Hkv, Nk, D]; v [B, Hkv, Nk, Dv]; Nq <= Nk, queries right-aligned; key_range int32 [B, 2] or None.
    Padding, and Nq < Nk where our dense kernel does not run, are what SDPA's causal kernels don't know: there it is our
    block-sparse forward with every tile kept.
    """
    if key_range is None:
        if (out := _ours(q, k, v, scale)) is not None:
            return out
        if q.shape[2] == k.shape[2]:
            return causal_attention(q, k, v, scale)
    grid = Grid(q.shape[2], k.shape[2], backends.KERNEL_BLOCK, q.device, key_range)
    ops = backends.twins(backends.resolve("auto", q.device, q.dtype))
    every_tile = grid.causal.expand(q.shape[0], q.shape[1], -1, -1)
    return ops.block_sparse_attention(q, k, v, every_tile, scale, key_range)[0]


def causal_attention(q: Tensor, k: Tensor, v: Tensor, scale: float | None = None, dropout: float = 0.0) -> Tensor:
    """`dense_attention` for Nq = Nk without padding: the kernel that is the fastest here, cuDNN's, or SDPA's own choice.

    cuDNN's operator is called by name: SDPA would choose flash (half as fast on an H100), and the context that changes its choice
    takes the host 30 microseconds, as long as 1,024 tokens take the GPU. Neither is asked for gradients or dropout.
    """
    if not dropout and (out := _ours(q, k, v, scale)) is not None:
        return out
    shared = q.shape[1] != k.shape[1]
    if q.is_cuda and not (dropout or torch.compiler.is_compiling() or _learns(q, k, v)):
        parameters = torch.backends.cuda.SDPAParams(q, k, v, None, 0.0, True, shared)
        if torch.backends.cuda.can_use_cudnn_attention(parameters):
            return torch._scaled_dot_product_cudnn_attention(q, k, v, None, False, 0.0, True, scale=scale)[0]
    if shared and not k.shape[-1] == v.shape[-1] <= 256:  # SDPA's fast kernels read shared keys only then
        k, v, shared = *(x.repeat_interleave(q.shape[1] // k.shape[1], 1) for x in (k, v)), False
    return F.scaled_dot_product_attention(q, k, v, is_causal=True, dropout_p=dropout, scale=scale, enable_gqa=shared)


def _learns(*tensors):
    return torch.is_grad_enabled() and any(x.requires_grad for x in tensors)


def _ours(q, k, v, scale) -> Tensor | None:
    """The output of our dense kernel where it takes the inputs and is the fastest."""
    if not q.is_cuda or torch.compiler.is_compiling() or _learns(q, k, v) or (scale is not None and scale <= 0):
        return None
    if_taken = _our_kernel(q.device, q.dtype, q.shape[3], v.shape[3])
    return if_taken and if_taken(q, k, v, scale)


@cache
def _our_kernel(device, dtype, head_dim, value_dim):
    if backends.resolve("auto", device, dtype, head_dim=max(head_dim, value_dim)) != "triton":
        return None
    from sampleattn.kernels.causal_attention import if_taken

    return if_taken if fastest.measured(device, max(head_dim, value_dim)).dense == "triton" else None
