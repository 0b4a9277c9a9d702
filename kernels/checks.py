"""The checks made before a launch. They read shapes, dtypes and devices only, so they never wait for the GPU."""

import functools
import math

import torch

from .launch import INTERPRETED

LARGEST_HEAD_DIM = 256
DTYPES = (torch.float16, torch.float32) if INTERPRETED else (torch.float16, torch.bfloat16)


def check_inputs(q, k, v=None, scale=None, key_range=None):
    """Check what every kernel takes; return the scale.

    q [B, Hq, Nq, D]; k [B, Hkv, Nk, D]; v [B, Hkv, Nk, Dv] or None; float16 or bfloat16 (float32 in the interpreter only).
    Raises TypeError for a wrong type or dtype and ValueError for a wrong shape, device or scale.
    """
    tensors = (q, k) if v is None else (q, k, v)
    for name, x in zip("qkv", tensors, strict=False):
        if not isinstance(x, torch.Tensor):
            raise TypeError(f"{name} must be a torch.Tensor, found {type(x).__name__}")
    _check_shapes(*[(x.shape, x.dtype, x.device) for x in tensors])
    check_key_range(key_range, q)
    scale = q.shape[3] ** -0.5 if scale is None else float(scale)
    if not (scale > 0 and math.isfinite(scale)):
        raise ValueError(f"scale must be a finite number above 0, found {scale}")
    if not (q.is_cuda or INTERPRETED):
        raise ValueError(f"a Triton kernel needs CUDA tensors, found {q.device}; backend='torch' runs there")
    return scale


@functools.lru_cache(maxsize=256)  # layer after layer asks the same
def _check_shapes(q, k, v=None):
    """The same for (shape, dtype, device) of each."""
    tensors = dict(zip("qkv", filter(None, (q, k, v)), strict=False))
    for name, (shape, _, _) in tensors.items():
        if len(shape) != 4:
            raise ValueError(f"{name} must have 4 dimensions (batch, heads, tokens, head_dim), found shape {tuple(shape)}")
    for name, (shape, dtype, device) in tensors.items():
        if dtype != q[1] or dtype not in DTYPES:
            names = " or ".join(str(dtype).removeprefix("torch.") for dtype in DTYPES)
            raise TypeError(f"q, k and v must have one dtype, {names}; found {name} in {str(dtype).removeprefix('torch.')}")
        if device != q[2]:
            raise ValueError(f"q, k and v must be on one device, found q on {q[2]} and {name} on {device}")
        if 0 in shape:
            raise ValueError(f"{name} must not be empty, found shape {tuple(shape)}")
        if shape[3] > LARGEST_HEAD_DIM:
            raise ValueError(f"head_dim must be at most {LARGEST_HEAD_DIM}, found {shape[3]} in {name}")
    (batch, heads, queries, head_dim), (kv_batch, kv_heads, keys, kv_dim) = q[0], k[0]
    if kv_batch != batch or kv_dim != head_dim:
        expected = f"[{batch}, kv heads, keys, {head_dim}]"
        raise ValueError(f"k must be {expected} to fit q {tuple(q[0])}, found {tuple(k[0])}")
    if heads % kv_heads:
        raise ValueError(f"the query heads must be a multiple of the key heads, found {heads} and {kv_heads}")
    if queries > keys:
        raise ValueError(f"there must be at least as many keys as queries, found {keys} keys and {queries} queries")
    if v and v[0][:3] != k[0][:3]:
        raise ValueError(f"v must be {list(k[0][:3])} x any head_dim to fit k, found {tuple(v[0])}")


def check_key_range(key_range, q):
    if key_range is None:
        return
    if not isinstance(key_range, torch.Tensor) or key_range.dtype != torch.int32:
        found = getattr(key_range, "dtype", type(key_range).__name__)
        raise TypeError(f"key_range must be an int32 tensor or None, found {found}")
    if key_range.shape != (q.shape[0], 2) or key_range.device != q.device:
        found = f"{list(key_range.shape)} on {key_range.device}"
        raise ValueError(f"key_range must be [{q.shape[0]}, 2] on {q.device}, found {found}")


def check_block_size(block_size):
    if block_size not in (16, 32, 64, 128):
        raise ValueError(f"block_size must be 16, 32, 64 or 128 (128 is the fast one), found {block_size!r}")
