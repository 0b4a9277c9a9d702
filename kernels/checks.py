"""The checks made before a launch. They read layouts only, so they never wait for the GPU, and plans make them once."""

import math

import torch

from .launch import INTERPRETED, layout

LARGEST_HEAD_DIM = 256
DTYPES = (torch.float16, torch.float32) if INTERPRETED else (torch.float16, torch.bfloat16)


def layouts(q, k, v=None):
    """The layouts of q, k and, where it is given, v. Raises TypeError for what is no tensor."""
    tensors = (q, k) if v is None else (q, k, v)
    for name, x in zip("qkv", tensors, strict=False):
        if not isinstance(x, torch.Tensor):
            raise TypeError(f"{name} must be a torch.Tensor, found {type(x).__name__}")
    return [layout(x) for x in tensors]


def check_layouts(q, k, v=None, scale=None):
    """Check what every kernel takes; return the scale.

    The layouts of q [B, Hq, Nq, D]; k [B, Hkv, Nk, D]; v [B, Hkv, Nk, Dv] or None; float16 or bfloat16 (float32 in the
    interpreter only). Raises TypeError for a wrong dtype and ValueError for a wrong shape, device or scale.
    """
    tensors = dict(zip("qkv", filter(None, (q, k, v)), strict=False))
    for name, x in tensors.items():
        if len(x.shape) != 4:
            raise ValueError(f"{name} must have 4 dimensions (batch, heads, tokens, head_dim), found shape {tuple(x.shape)}")
    for name, x in tensors.items():
        if x.dtype != q.dtype or x.dtype not in DTYPES:
            names = " or ".join(str(dtype).removeprefix("torch.") for dtype in DTYPES)
            raise TypeError(f"q, k and v must have one dtype, {names}; found {name} in {str(x.dtype).removeprefix('torch.')}")
        if x.device != q.device:
            raise ValueError(f"q, k and v must be on one device, found q on {q.device} and {name} on {x.device}")
        if 0 in x.shape:
            raise ValueError(f"{name} must not be empty, found shape {tuple(x.shape)}")
        if x.shape[3] > LARGEST_HEAD_DIM:
            raise ValueError(f"head_dim must be at most {LARGEST_HEAD_DIM}, found {x.shape[3]} in {name}")
    (batch, heads, queries, head_dim), (kv_batch, kv_heads, keys, kv_dim) = q.shape, k.shape
    if kv_batch != batch or kv_dim != head_dim:
        expected = f"[{batch}, kv heads, keys, {head_dim}]"
        raise ValueError(f"k must be {expected} to fit q {tuple(q.shape)}, found {tuple(k.shape)}")
    if heads % kv_heads:
        raise ValueError(f"the query heads must be a multiple of the key heads, found {heads} and {kv_heads}")
    if queries > keys:
        raise ValueError(f"there must be at least as many keys as queries, found {keys} keys and {queries} queries")
    if v and v.shape[:3] != k.shape[:3]:
        raise ValueError(f"v must be {list(k.shape[:3])} x any head_dim to fit k, found {tuple(v.shape)}")
    scale = head_dim**-0.5 if scale is None else float(scale)
    if not (scale > 0 and math.isfinite(scale)):
        raise ValueError(f"scale must be a finite number above 0, found {scale}")
    if not (q.device.type == "cuda" or INTERPRETED):
        raise ValueError(f"a Triton kernel needs CUDA tensors, found {q.device}; backend='torch' runs there")
    return scale


def check_inputs(q, k, v=None, scale=None, key_range=None):
    """Check tensors as `check_layouts` does, and key_range; return the scale."""
    scale = check_layouts(*layouts(q, k, v), scale=scale)
    check_key_range(key_range, q)
    return scale


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
