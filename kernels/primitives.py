"""What the kernels share: the checks made before a launch, and small device functions."""

import contextlib
import math
import os

import torch
import triton
import triton.language as tl

INTERPRETED = os.environ.get("TRITON_INTERPRET") == "1"  # Triton decides when a kernel is decorated, as this line does
LOG2_E = math.log2(math.e)
LARGEST_HEAD_DIM = 256


def check_inputs(q, k, v=None, scale=None, key_range=None):
    """Check what every kernel takes; return the scale. Reads shapes, dtypes and devices only, so it never waits for the GPU.

    q [B, Hq, Nq, D]; k [B, Hkv, Nk, D]; v [B, Hkv, Nk, Dv] or None; float16 or bfloat16 (float32 in the interpreter only).
    Raises TypeError for a wrong type or dtype and ValueError for a wrong shape, device or scale.
    """
    tensors = {"q": q, "k": k} | ({} if v is None else {"v": v})
    for name, x in tensors.items():
        if not isinstance(x, torch.Tensor):
            raise TypeError(f"{name} must be a torch.Tensor, found {type(x).__name__}")
        if x.dim() != 4:
            raise ValueError(f"{name} must have 4 dimensions (batch, heads, tokens, head_dim), found shape {tuple(x.shape)}")
    allowed = (torch.float16, torch.float32) if INTERPRETED else (torch.float16, torch.bfloat16)
    for name, x in tensors.items():
        if x.dtype != q.dtype or x.dtype not in allowed:
            names = " or ".join(str(dtype).removeprefix("torch.") for dtype in allowed)
            raise TypeError(f"q, k and v must have one dtype, {names}; found {name} in {str(x.dtype).removeprefix('torch.')}")
        if x.device != q.device:
            raise ValueError(f"q, k and v must be on one device, found q on {q.device} and {name} on {x.device}")
        if 0 in x.shape:
            raise ValueError(f"{name} must not be empty, found shape {tuple(x.shape)}")
        if x.shape[-1] > LARGEST_HEAD_DIM:
            raise ValueError(f"head_dim must be at most {LARGEST_HEAD_DIM}, found {x.shape[-1]} in {name}")
    batch, heads, queries, head_dim = q.shape
    if k.shape[0] != batch or k.shape[3] != head_dim:
        raise ValueError(f"k must be [{batch}, kv heads, keys, {head_dim}] to fit q {tuple(q.shape)}, found {tuple(k.shape)}")
    if heads % k.shape[1]:
        raise ValueError(f"the query heads must be a multiple of the key heads, found {heads} and {k.shape[1]}")
    if queries > k.shape[2]:
        raise ValueError(f"there must be at least as many keys as queries, found {k.shape[2]} keys and {queries} queries")
    if v is not None and v.shape[:3] != k.shape[:3]:
        raise ValueError(f"v must be {list(k.shape[:3])} x any head_dim to fit k, found {tuple(v.shape)}")
    check_key_range(key_range, q)
    scale = head_dim**-0.5 if scale is None else float(scale)
    if not (scale > 0 and math.isfinite(scale)):
        raise ValueError(f"scale must be a finite number above 0, found {scale}")
    if not (q.is_cuda or INTERPRETED):
        raise ValueError(f"a Triton kernel needs CUDA tensors, found {q.device}; backend='torch' runs there")
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


def padded(dim):
    """The power of two that holds `dim`, at least 64: 32 wide is wrong on Hopper (triton-lang/triton#10573, #11366)."""
    return max(64, triton.next_power_of_2(dim))


def on_device(tensor):
    """A context in which launches go to the tensor's GPU."""
    return torch.cuda.device(tensor.device) if tensor.is_cuda else contextlib.nullcontext()


@triton.jit
def real_keys(range_ptr, batch, Nk, HAS_RANGE: tl.constexpr):
    """The first and one-past-last real key of a batch row."""
    lo, hi = Nk * 0, Nk
    if HAS_RANGE:
        lo = tl.maximum(tl.load(range_ptr + 2 * batch), 0)
        hi = tl.minimum(tl.load(range_ptr + 2 * batch + 1), Nk)
    return lo, hi


@triton.jit
def load_rows(ptr, rows, stride_n, stride_d, count, DIM: tl.constexpr, BLOCK_D: tl.constexpr):
    """Load the tokens `rows` of one head as [rows, BLOCK_D]; rows outside 0..count-1 and the padding of head_dim are 0."""
    dims = tl.arange(0, BLOCK_D)
    valid = ((rows >= 0) & (rows < count))[:, None] & (dims < DIM)[None, :]
    return tl.load(ptr + rows.to(tl.int64)[:, None] * stride_n + dims[None, :] * stride_d, mask=valid, other=0.0)


@triton.jit
def load_tile(
    ptr, start, stride_n, stride_d, lo, hi, DIM: tl.constexpr, BLOCK_N: tl.constexpr, BLOCK_D: tl.constexpr, MASKED: tl.constexpr
):  # fmt: skip
    """Load the tokens from `start` on of one head as [BLOCK_N, BLOCK_D]. MASKED: tokens outside lo .. hi - 1 are 0."""
    tokens, dims = tl.arange(0, BLOCK_N), tl.arange(0, BLOCK_D)
    ptrs = ptr + tl.cast(start, tl.int64) * stride_n + tokens[:, None] * stride_n + dims[None, :] * stride_d
    if MASKED:
        valid = ((start + tokens >= lo) & (start + tokens < hi))[:, None] & (dims < DIM)[None, :]
        return tl.load(ptrs, mask=valid, other=0.0)
    elif DIM != BLOCK_D:
        return tl.load(ptrs, mask=(dims < DIM)[None, :], other=0.0)
    else:
        return tl.load(ptrs)


@triton.jit
def masked_scores(scores, positions, start, lo, hi, BLOCK_N: tl.constexpr):
    """-inf where a key of the tile lies after the row's position or outside the real keys lo .. hi - 1."""
    keys = start + tl.arange(0, BLOCK_N)
    visible = (keys[None, :] <= positions[:, None]) & ((keys >= lo) & (keys < hi))[None, :]
    return tl.where(visible, scores, float("-inf"))
