"""Checks of what callers pass: one sentence that says what was expected and what was found, before any work."""

from __future__ import annotations

import torch
from torch import Tensor

DTYPES = (torch.float16, torch.bfloat16, torch.float32, torch.float64)


def check_inputs(q: Tensor, k: Tensor, v: Tensor | None = None, padding: Tensor | None = None) -> None:
    """Raises TypeError or ValueError unless q [B, Hq, Nq, D], k [B, Hkv, Nk, D], v [B, Hkv, Nk, Dv], padding [B, Nk] fit."""
    tensors = {"q": q, "k": k} | ({} if v is None else {"v": v})
    for name, x in tensors.items():
        if not isinstance(x, Tensor):
            raise TypeError(f"{name} must be a torch.Tensor, not {type(x).__name__}")
        if x.dtype not in DTYPES:
            raise TypeError(f"{name} must be float16, bfloat16, float32 or float64, not {x.dtype}")
        if x.ndim != 4 or 0 in x.shape:
            raise ValueError(f"{name} must have four non-empty dimensions [batch, heads, tokens, head_dim], not {tuple(x.shape)}")
        if x.dtype != q.dtype or x.device != q.device:
            raise ValueError(f"{name} must be {q.dtype} on {q.device} like q, not {x.dtype} on {x.device}")
    if k.shape[0] != q.shape[0] or k.shape[3] != q.shape[3]:
        raise ValueError(f"k must have q's batch and head_dim ({q.shape[0]}, {q.shape[3]}), not ({k.shape[0]}, {k.shape[3]})")
    if q.shape[1] % k.shape[1]:
        raise ValueError(f"the query heads ({q.shape[1]}) must be a multiple of the key heads ({k.shape[1]})")
    if q.shape[2] > k.shape[2]:
        raise ValueError(f"there are more queries ({q.shape[2]}) than keys ({k.shape[2]}); queries are right-aligned to the keys")
    if v is not None and v.shape[:3] != k.shape[:3]:
        raise ValueError(f"v must have k's batch, heads and tokens {tuple(k.shape[:3])}, not {tuple(v.shape[:3])}")
    if padding is not None:
        check_padding(padding, q.shape[0], k.shape[2])


def check_padding(padding: Tensor, batch: int, nk: int) -> None:
    """Raises ValueError unless padding is [B, Nk] and, checked on a CPU only (a GPU would have to wait), contiguous."""
    if not isinstance(padding, Tensor) or tuple(padding.shape) != (batch, nk):
        found = tuple(padding.shape) if isinstance(padding, Tensor) else type(padding).__name__
        raise ValueError(f"padding must be a tensor of shape ({batch}, {nk}), True for real tokens, not {found}")
    if padding.device.type == "cpu":
        real = (padding != 0).to(torch.int8)
        starts = (real[:, 1:] > real[:, :-1]).sum(-1) + real[:, 0]
        if (starts > 1).any():
            raise ValueError("padding must leave each batch row's real tokens in one contiguous run (left or right padding)")


def check_block_mask(mask: Tensor, q: Tensor, k: Tensor, block_size: int) -> None:
    """Raises TypeError or ValueError unless mask is bool [B, Hq, query blocks, key blocks]."""
    expected = (*q.shape[:2], -(-q.shape[2] // block_size), -(-k.shape[2] // block_size))
    if not isinstance(mask, Tensor) or mask.dtype != torch.bool:
        raise TypeError(f"block_mask must be a bool tensor, not {getattr(mask, 'dtype', type(mask).__name__)}")
    if tuple(mask.shape) != expected:
        raise ValueError(f"block_mask must be [batch, heads, query blocks, key blocks] = {expected}, not {tuple(mask.shape)}")
