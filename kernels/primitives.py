"""Small device functions that the Triton kernels share."""

import math

import triton
import triton.language as tl

LOG2_E = math.log2(math.e)


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
