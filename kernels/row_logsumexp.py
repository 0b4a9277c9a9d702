"""Each row's logsumexp over all its keys: a pass over QK only, the base of exact recall."""

import torch
import triton
import triton.language as tl

from . import hopper
from .checks import check_key_range, check_layouts, layouts
from .launch import Launch, plan
from .primitives import LOG2_E, load_rows, load_tile, masked_scores, real_keys
from .row_logsumexp_hopper import row_logsumexp_hopper
from .sizes import cdiv, padded

# padded head_dim -> keys per step, warps, pipeline stages; the rows per program are ROWS
CONFIGS = {64: (128, 8, 2), 128: (128, 8, 2), 256: (64, 8, 2)}
ROWS = 128


def row_logsumexp(q, k, scale=None, key_range=None):
    """log(sum(exp(scale * q.k))) over each row's visible keys; the twin of `sampleattn.reference.row_logsumexp`.

    q [B, Hq, Nq, D]; k [B, Hkv, Nk, D], any strides, D up to 256; Nq <= Nk, queries right-aligned. key_range int32 [B, 2].
    Returns fp32 [B, Hq, Nq], -inf for a row without keys. Raises TypeError or ValueError before any launch.
    """
    portable, hopper_only = _plan(*layouts(q, k), scale, key_range is not None)
    check_key_range(key_range, q)
    lse = torch.empty(q.shape[:3], dtype=torch.float32, device=q.device)
    if not (hopper_only and hopper_only(q, k, key_range, lse)):
        portable(q, k, key_range, lse)
    return lse


@plan
def _plan(q, k, scale, has_range):
    """The launch anywhere, and the one on Hopper or None."""
    scale = check_layouts(q, k, scale=scale)
    (batch, heads, queries, head_dim), (kv_heads, keys) = q.shape, k.shape[1:3]
    step, warps, stages = CONFIGS[padded(head_dim)]
    portable = Launch(
        _logsumexp, (cdiv(queries, ROWS), batch * heads),
        (*q.strides, *k.strides, heads, heads // kv_heads, queries, keys, scale * LOG2_E),
        HAS_RANGE=has_range, D=head_dim, BLOCK=ROWS, BLOCK_N=step, BLOCK_D=padded(head_dim), num_warps=warps, num_stages=stages,
    )  # fmt: skip
    return portable, row_logsumexp_hopper(q, k, scale, has_range) if hopper.readable(q, k) else None


@triton.jit
def _add_tile(
    total, top, q, k_ptr, start, sk_n, sk_d, positions, lo, hi, scale_log2,
    D: tl.constexpr, BLOCK_N: tl.constexpr, BLOCK_D: tl.constexpr, MASKED: tl.constexpr,
):  # fmt: skip
    scores = tl.dot(q, tl.trans(load_tile(k_ptr, start, sk_n, sk_d, lo, hi, D, BLOCK_N, BLOCK_D, MASKED)), input_precision="ieee")
    if MASKED:
        scores = masked_scores(scores, positions, start, lo, hi, BLOCK_N)
    new_top = tl.maximum(top, tl.max(scores, 1) * scale_log2)
    base = tl.where(new_top == float("-inf"), 0.0, new_top) if MASKED else new_top
    return total * tl.exp2(top - base) + tl.sum(tl.exp2(scores * scale_log2 - base[:, None]), 1), new_top


@triton.jit(do_not_specialize=["heads", "group", "Nq", "Nk"])
def _logsumexp(
    q_ptr, k_ptr, range_ptr, lse_ptr, sq_b, sq_h, sq_n, sq_d, sk_b, sk_h, sk_n, sk_d, heads, group, Nq, Nk, scale_log2,
    HAS_RANGE: tl.constexpr, D: tl.constexpr, BLOCK: tl.constexpr, BLOCK_N: tl.constexpr, BLOCK_D: tl.constexpr,
):  # fmt: skip
    block, row = tl.num_programs(0) - 1 - tl.program_id(0), tl.program_id(1)
    batch, head = (row // heads).to(tl.int64), (row % heads).to(tl.int64)
    lo, hi = real_keys(range_ptr, batch, Nk, HAS_RANGE)
    q_ptr += batch * sq_b + head * sq_h
    k_ptr += batch * sk_b + head // group * sk_h
    rows = block * BLOCK + tl.arange(0, BLOCK)
    positions = rows + Nk - Nq
    q = load_rows(q_ptr, rows, sq_n, sq_d, Nq, D, BLOCK_D)
    total = tl.zeros([BLOCK], tl.float32)
    top = tl.full([BLOCK], float("-inf"), tl.float32)

    first = block * BLOCK + Nk - Nq
    begin, end = lo // BLOCK_N, tl.cdiv(tl.minimum(hi, first + BLOCK), BLOCK_N)  # steps with a visible key
    full_begin = tl.cdiv(lo, BLOCK_N)
    full_end = tl.maximum(tl.minimum(hi, first + 1) // BLOCK_N, full_begin)  # steps in which every row sees every key
    for t in range(full_begin, full_end):
        start = t * BLOCK_N
        total, top = _add_tile(total, top, q, k_ptr, start, sk_n, sk_d, positions, lo, hi, scale_log2, D, BLOCK_N, BLOCK_D, False)
    skipped = full_end - full_begin
    for t in tl.range(begin, end - skipped, num_stages=1):
        start = (t + tl.where(t >= full_begin, skipped, 0)) * BLOCK_N
        total, top = _add_tile(total, top, q, k_ptr, start, sk_n, sk_d, positions, lo, hi, scale_log2, D, BLOCK_N, BLOCK_D, True)
    alive = (positions < hi) & (total > 0)
    lse = tl.where(alive, (top + tl.log2(tl.where(alive, total, 1.0))) * 0.6931471805599453, float("-inf"))
    tl.store(lse_ptr + row.to(tl.int64) * Nq + rows, lse, mask=rows < Nq)
