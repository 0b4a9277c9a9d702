"""Flash attention over the kept tiles only, with each row's logsumexp."""

import torch
import triton
import triton.language as tl

from . import hopper
from .block_index_lists import block_index_lists
from .block_sparse_attention_hopper import block_sparse_attention_hopper
from .checks import check_block_size, check_key_range, check_layouts, layouts
from .launch import Launch, plan
from .primitives import LOG2_E, load_rows, load_tile, masked_scores, real_keys
from .sizes import cdiv, padded

# larger padded head_dim -> keys per step, warps, pipeline stages (notes/kernels.md says how they were chosen)
CONFIGS = {64: (64, 4, 3), 128: (128, 8, 3), 256: (64, 8, 2)}


def block_sparse_attention(q, k, v, block_mask, scale=None, key_range=None, block_size=128):
    """Causal attention that computes the tiles of `block_mask` only; the twin of `sampleattn.reference.block_sparse_attention`.

    q [B, Hq, Nq, D]; k [B, Hkv, Nk, D]; v [B, Hkv, Nk, Dv], any strides, D and Dv up to 256; Hq a multiple of Hkv; Nq <= Nk,
    queries right-aligned. block_mask bool [B, Hq, query blocks, key blocks]; its tiles above the diagonal are ignored.
    scale defaults to D**-0.5. key_range int32 [B, 2]: first and one-past-last real key.
    Returns out [B, Hq, Nq, Dv] in q's dtype and the natural-log logsumexp fp32 [B, Hq, Nq]; a row without keys gives 0 and -inf.
    Raises TypeError or ValueError before any launch.
    """
    if not isinstance(block_mask, torch.Tensor) or block_mask.dtype != torch.bool:
        raise TypeError(f"block_mask must be a bool tensor, found {getattr(block_mask, 'dtype', type(block_mask).__name__)}")
    of_mask = block_mask.shape, block_mask.device
    portable, hopper_only, shape = _plan(*layouts(q, k, v), *of_mask, scale, key_range is not None, block_size)
    check_key_range(key_range, q)
    ids, spans = block_index_lists(block_mask, shape[2], k.shape[2], key_range, block_size)
    out = torch.empty(shape, dtype=q.dtype, device=q.device)
    lse = torch.empty(shape[:3], dtype=torch.float32, device=q.device)
    if not (hopper_only and hopper_only(q, k, v, ids, spans, key_range, out, lse)):
        portable(q, k, v, ids, spans, key_range, out, lse)
    return out, lse


@plan
def _plan(q, k, v, mask_shape, mask_device, scale, has_range, block_size):
    """The launch anywhere, the one on Hopper or None, and the shape of the output."""
    scale = check_layouts(q, k, v, scale)
    check_block_size(block_size)
    (batch, heads, queries, head_dim), (kv_heads, keys), value_dim = q.shape, k.shape[1:3], v.shape[3]
    shape = (batch, heads, queries, value_dim)
    expected = (batch, heads, cdiv(queries, block_size), cdiv(keys, block_size))
    if mask_shape != expected or mask_device != q.device:
        found = f"{list(mask_shape)} on {mask_device}"
        raise ValueError(f"block_mask must be {list(expected)} on {q.device}, found {found}")
    step, warps, stages = CONFIGS[max(padded(head_dim), padded(value_dim))]
    out = torch.empty(shape, device="meta").stride()
    portable = Launch(
        _forward, (expected[2] * batch * heads,),
        (*q.strides, *k.strides, *v.strides, *out, batch * heads, heads, heads // kv_heads, queries, keys,
         expected[2], expected[3], scale * LOG2_E),
        HAS_RANGE=has_range, D=head_dim, DV=value_dim, BLOCK=block_size, BLOCK_N=min(step, block_size),
        BLOCK_D=padded(head_dim), BLOCK_DV=padded(value_dim), num_warps=warps, num_stages=stages,
    )  # fmt: skip
    on_hopper = block_size == 128 and hopper.readable(q, k, v, largest=256)
    return portable, block_sparse_attention_hopper(q, k, v, scale, has_range) if on_hopper else None, shape


@triton.jit
def _tile(
    acc, total, top, q, k_ptr, v_ptr, start, sk_n, sk_d, sv_n, sv_d, positions, lo, hi, scale_log2,
    D: tl.constexpr, DV: tl.constexpr, BLOCK_N: tl.constexpr, BLOCK_D: tl.constexpr, BLOCK_DV: tl.constexpr, MASKED: tl.constexpr,
):  # fmt: skip
    """One step of the online softmax in base 2: acc, total and top (the running maximum) with the keys from `start` on added."""
    k = load_tile(k_ptr, start, sk_n, sk_d, lo, hi, D, BLOCK_N, BLOCK_D, MASKED)
    scores = tl.dot(q, tl.trans(k), input_precision="ieee")
    if MASKED:
        scores = masked_scores(scores, positions, start, lo, hi, BLOCK_N)
    new_top = tl.maximum(top, tl.max(scores, 1) * scale_log2)
    base = tl.where(new_top == float("-inf"), 0.0, new_top) if MASKED else new_top
    weights = tl.exp2(scores * scale_log2 - base[:, None])
    decay = tl.exp2(top - base)
    total = total * decay + tl.sum(weights, 1)
    v = load_tile(v_ptr, start, sv_n, sv_d, lo, hi, DV, BLOCK_N, BLOCK_DV, MASKED)
    acc = tl.dot(weights.to(v.dtype), v, acc * decay[:, None], input_precision="ieee")
    return acc, total, new_top


@triton.jit(do_not_specialize=["all_heads", "heads", "group", "Nq", "Nk", "query_blocks", "key_blocks"])
def _forward(
    q_ptr, k_ptr, v_ptr, ids_ptr, spans_ptr, range_ptr, out_ptr, lse_ptr,
    sq_b, sq_h, sq_n, sq_d, sk_b, sk_h, sk_n, sk_d, sv_b, sv_h, sv_n, sv_d, so_b, so_h, so_n, so_d,
    all_heads, heads, group, Nq, Nk, query_blocks, key_blocks, scale_log2,
    HAS_RANGE: tl.constexpr, D: tl.constexpr, DV: tl.constexpr, BLOCK: tl.constexpr, BLOCK_N: tl.constexpr,
    BLOCK_D: tl.constexpr, BLOCK_DV: tl.constexpr,
):  # fmt: skip
    """One query block of one head. The last query blocks of all heads, kept in full, start first; then head by head, from the
    last block down, so that programs that run together read the same keys."""
    program = tl.program_id(0)
    if program < all_heads:
        block, row = query_blocks - 1, program
    else:
        rest = query_blocks - 1
        block, row = rest - 1 - (program - all_heads) % rest, (program - all_heads) // rest
    batch, head = (row // heads).to(tl.int64), (row % heads).to(tl.int64)
    lo, hi = real_keys(range_ptr, batch, Nk, HAS_RANGE)
    q_ptr += batch * sq_b + head * sq_h
    k_ptr += batch * sk_b + head // group * sk_h
    v_ptr += batch * sv_b + head // group * sv_h
    place = row.to(tl.int64) * query_blocks + block
    ids_ptr += place * key_blocks
    full_begin, full_end = tl.load(spans_ptr + place * 4), tl.load(spans_ptr + place * 4 + 1)
    count = tl.load(spans_ptr + place * 4 + 2)

    rows = block * BLOCK + tl.arange(0, BLOCK)
    positions = rows + Nk - Nq
    q = load_rows(q_ptr, rows, sq_n, sq_d, Nq, D, BLOCK_D)
    acc = tl.zeros([BLOCK, BLOCK_DV], tl.float32)
    total = tl.zeros([BLOCK], tl.float32)
    top = tl.full([BLOCK], float("-inf"), tl.float32)
    STEPS: tl.constexpr = BLOCK // BLOCK_N
    for t in range(full_begin * STEPS, full_end * STEPS):
        start = tl.load(ids_ptr + t // STEPS).to(tl.int32) * BLOCK + t % STEPS * BLOCK_N
        acc, total, top = _tile(
            acc, total, top, q, k_ptr, v_ptr, start, sk_n, sk_d, sv_n, sv_d, positions, lo, hi, scale_log2,
            D, DV, BLOCK_N, BLOCK_D, BLOCK_DV, False,
        )  # fmt: skip
    skipped = full_end - full_begin  # the tiles before and after the full ones: ends of the real keys, and the diagonal
    for t in tl.range(0, (count - skipped) * STEPS, num_stages=1):
        entry = t // STEPS
        entry += tl.where(entry >= full_begin, skipped, 0)
        start = tl.load(ids_ptr + entry).to(tl.int32) * BLOCK + t % STEPS * BLOCK_N
        acc, total, top = _tile(
            acc, total, top, q, k_ptr, v_ptr, start, sk_n, sk_d, sv_n, sv_d, positions, lo, hi, scale_log2,
            D, DV, BLOCK_N, BLOCK_D, BLOCK_DV, True,
        )  # fmt: skip

    alive = (positions < hi) & (total > 0)  # a query that is padding itself, or sees no kept key, gives 0 and -inf
    out = tl.where(alive[:, None], acc / tl.where(alive, total, 1.0)[:, None], 0.0)
    lse = tl.where(alive, (top + tl.log2(tl.where(alive, total, 1.0))) * 0.6931471805599453, float("-inf"))
    dims = tl.arange(0, BLOCK_DV)
    out_ptrs = out_ptr + batch * so_b + head * so_h + rows.to(tl.int64)[:, None] * so_n + dims[None, :] * so_d
    tl.store(out_ptrs, out.to(out_ptr.dtype.element_ty), mask=(rows < Nq)[:, None] & (dims < DV)[None, :])
    tl.store(lse_ptr + row.to(tl.int64) * Nq + rows, lse, mask=rows < Nq)
