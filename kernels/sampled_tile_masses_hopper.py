"""Stage 1's pass over QK for Hopper in Gluon: the pipeline of `row_logsumexp_hopper` with gathered rows and a result per tile."""

import triton
from triton.experimental import gluon
from triton.experimental.gluon import language as gl
from triton.experimental.gluon.language.nvidia.hopper import mbarrier, tma, warpgroup_mma, warpgroup_mma_wait

from .hopper import descriptor
from .primitives import LOG2_E, padded

STAGES = {64: 8, 128: 4}  # padded head_dim -> tiles of keys in flight
TILES = 64  # key tiles walked by one program
LANES = gl.constexpr(128)  # rows of a program, all heads together
HALF = gl.constexpr(64)  # rows of a warpgroup
BLOCK = gl.constexpr(128)  # keys of a tile


def tile_logsumexp_hopper(q, k, rows, key_range, out, scale, shared):
    """Fill out [B, Hq, key blocks, R]; arguments as checked by `sampled_tile_masses`, `shared` heads to a program."""
    (batch, heads, queries, head_dim), (kv_heads, keys), (tiles, count) = q.shape, k.shape[1:3], out.shape[2:]
    _tile_logsumexp[(triton.cdiv(count, 128 // shared) * triton.cdiv(tiles, TILES), batch * heads // shared)](
        q, descriptor(k, 128), rows, key_range, out, *q.stride(), *rows.stride(), heads, heads // kv_heads, queries, keys, count,
        tiles, TILES, scale * LOG2_E, HAS_RANGE=key_range is not None, D=head_dim, BLOCK_D=padded(head_dim), HEADS=shared,
        STAGES=STAGES[padded(head_dim)], num_warps=4, maxnreg=168,
    )  # fmt: skip


@gluon.jit
def _entries(lanes, count, first_row, rows_ptr, sr_r, offset, ROWS: gl.constexpr):
    """Which sampled row each lane has, its query (-1: none) and its key position."""
    entries = first_row + lanes % ROWS
    queries = gl.load(rows_ptr + entries * sr_r, mask=entries < count, other=-1).to(gl.int32)
    return entries, queries, gl.where(queries >= 0, queries + offset, -1)


@gluon.jit
def _key_tile(t, begin, full_begin, full_end, masked):
    """The t-th tile: those that need a mask first."""
    outside = begin + t
    outside = gl.where(outside < full_begin, outside, outside + full_end - full_begin)
    return gl.where(t < masked, outside, full_begin + t - masked)


@gluon.jit
def _scores(q, k_smem, k_full, t, zero, STAGES: gl.constexpr):
    mbarrier.wait(k_full.index(t % STAGES), t // STAGES & 1)
    return warpgroup_mma(q, k_smem.index(t % STAGES).permute((1, 0)), zero, use_acc=False, is_async=True)


@gluon.jit
def _now(scores, k_empty, t, STAGES: gl.constexpr):
    scores = warpgroup_mma_wait(0, deps=[scores])
    mbarrier.arrive(k_empty.index(t % STAGES), count=1)
    return scores


@gluon.jit
def _produce(k_desc, batch, kv_head, span, ring, STAGES: gl.constexpr):
    k_smem, k_full, k_empty = ring
    begin, end, full_begin, full_end = span
    masked = end - begin - (full_end - full_begin)
    for t in range(0, end - begin):
        stage = t % STAGES
        mbarrier.wait(k_empty.index(stage), (t // STAGES & 1) ^ 1)
        mbarrier.expect(k_full.index(stage), k_desc.block_type.nbytes)
        k_buffer = k_smem.index(stage)._reinterpret(k_desc.dtype, k_desc.block_type.shape, k_desc.layout)
        start = _key_tile(t, begin, full_begin, full_end, masked) * BLOCK
        tma.async_copy_global_to_shared(k_desc, [batch, kv_head, start, 0], k_full.index(stage), k_buffer)


@gluon.jit
def _write(scores, out_ptrs, valid, scale_log2, MASKED: gl.constexpr):
    top = gl.max(scores, 1) * scale_log2
    base = gl.where(top == float("-inf"), 0.0, top) if MASKED else top
    total = gl.sum(gl.exp2(scores * scale_log2 - base[:, None]), 1)
    value = base + gl.log2(gl.where(total > 0, total, 1.0) if MASKED else total)
    gl.store(out_ptrs, gl.where(total > 0, value, float("-inf")) if MASKED else value, mask=valid)


@gluon.jit
def _consume(
    tensors, strides, sizes, span, reals, ring, scale_log2,
    D: gl.constexpr, BLOCK_D: gl.constexpr, ROWS: gl.constexpr, STAGES: gl.constexpr, WHO: gl.constexpr,
):  # fmt: skip
    q_ptr, rows_ptr, out_ptr = tensors
    k_smem, k_full, k_empty = ring
    sq_h, sq_n, sq_d, sr_r = strides
    Nq, offset, count, tiles, first_row = sizes
    begin, end, full_begin, full_end = span
    lo, hi = reals
    masked = end - begin - (full_end - full_begin)
    layout: gl.constexpr = gl.NVMMADistributedLayout([3, 0], [4, 1], [16, BLOCK, 16])
    wide: gl.constexpr = gl.BlockedLayout([1, 8], [256 // BLOCK_D, BLOCK_D // 8], [4, 1], [1, 0])

    lanes = WHO * HALF + gl.arange(0, HALF, layout=gl.SliceLayout(1, wide))
    entries, queries, positions = _entries(lanes, count, first_row, rows_ptr, sr_r, offset, ROWS)
    dims = gl.arange(0, BLOCK_D, layout=gl.SliceLayout(0, wide))
    q_ptrs = q_ptr + (lanes // ROWS).to(gl.int64) * sq_h + queries.to(gl.int64) * sq_n
    inside = ((queries >= 0) & (queries < Nq))[:, None] & (dims < D)[None, :]
    q = gl.load(q_ptrs[:, None] + (dims * sq_d)[None, :], mask=inside, other=0.0)
    q = gl.convert_layout(q, gl.DotOperandLayout(0, layout, 2))

    lanes = WHO * HALF + gl.arange(0, HALF, layout=gl.SliceLayout(1, layout))
    entries, queries, positions = _entries(lanes, count, first_row, rows_ptr, sr_r, offset, ROWS)
    out_ptrs = out_ptr + (lanes // ROWS).to(gl.int64) * tiles * count + entries
    valid = entries < count
    zero = gl.zeros([HALF, BLOCK], gl.float32, layout)
    for t in range(0, masked):
        scores = _now(_scores(q, k_smem, k_full, t, zero, STAGES), k_empty, t, STAGES)
        tile = _key_tile(t, begin, full_begin, full_end, masked)
        keys = tile * BLOCK + gl.arange(0, BLOCK, layout=gl.SliceLayout(0, layout))
        visible = (keys[None, :] <= positions[:, None]) & (keys[None, :] >= lo) & (keys[None, :] < hi)
        _write(gl.where(visible, scores, float("-inf")), out_ptrs + tile.to(gl.int64) * count, valid, scale_log2, True)
    full = end - begin - masked
    if full > 0:
        out_ptrs += full_begin.to(gl.int64) * count  # from here on of the tile at hand
        even = _now(_scores(q, k_smem, k_full, masked, zero, STAGES), k_empty, masked, STAGES)
        pairs = (full - 1) // 2
        for pair in range(0, pairs):
            t = masked + 2 * pair
            coming = _scores(q, k_smem, k_full, t + 1, zero, STAGES)
            _write(even, out_ptrs, valid, scale_log2, False)
            odd = _now(coming, k_empty, t + 1, STAGES)
            coming = _scores(q, k_smem, k_full, t + 2, zero, STAGES)
            _write(odd, out_ptrs + count, valid, scale_log2, False)
            even = _now(coming, k_empty, t + 2, STAGES)
            out_ptrs += 2 * count
        _write(even, out_ptrs, valid, scale_log2, False)
        if 2 * pairs + 1 < full:
            t = end - begin - 1
            last = _now(_scores(q, k_smem, k_full, t, zero, STAGES), k_empty, t, STAGES)
            _write(last, out_ptrs + count, valid, scale_log2, False)


@gluon.jit(do_not_specialize=["heads", "group", "Nq", "Nk", "count", "tiles", "walked"])
def _tile_logsumexp(
    q_ptr, k_desc, rows_ptr, range_ptr, out_ptr, sq_b, sq_h, sq_n, sq_d, sr_b, sr_r,
    heads, group, Nq, Nk, count, tiles, walked, scale_log2,
    HAS_RANGE: gl.constexpr, D: gl.constexpr, BLOCK_D: gl.constexpr, HEADS: gl.constexpr, STAGES: gl.constexpr,
):  # fmt: skip
    ROWS: gl.constexpr = LANES // HEADS
    splits = gl.cdiv(tiles, walked)
    part, first_head = gl.program_id(0), gl.program_id(1) * HEADS
    batch, head = first_head // heads, first_head % heads
    lo, hi = Nk * 0, Nk
    if HAS_RANGE:
        lo = gl.maximum(gl.load(range_ptr + 2 * batch), 0)
        hi = gl.minimum(gl.load(range_ptr + 2 * batch + 1), Nk)
    q_ptr += batch.to(gl.int64) * sq_b + head.to(gl.int64) * sq_h
    rows_ptr += batch.to(gl.int64) * sr_b
    out_ptr += first_head.to(gl.int64) * tiles * count
    first_row = part // splits * ROWS
    line: gl.constexpr = gl.BlockedLayout([1], [32], [4], [0])
    entries, queries, positions = _entries(gl.arange(0, LANES, layout=line), count, first_row, rows_ptr, sr_r, Nk - Nq, ROWS)
    earliest, latest = gl.min(gl.where(queries >= 0, positions, Nk), 0), gl.max(positions, 0)
    begin = part % splits * walked
    end = gl.minimum(gl.minimum(begin + walked, tiles), latest // BLOCK + 1)  # no row sees a tile from `end` on
    end = gl.where(latest < 0, begin, gl.maximum(begin, end))
    full_begin = gl.minimum(gl.maximum(gl.cdiv(lo, BLOCK), begin), end)
    full_end = gl.maximum(gl.minimum(gl.minimum(hi, earliest + 1) // BLOCK, end), full_begin)

    dtype: gl.constexpr = k_desc.dtype
    k_layout: gl.constexpr = gl.NVMMASharedLayout.get_default_for([BLOCK, BLOCK_D], dtype)
    k_smem = gl.allocate_shared_memory(dtype, [STAGES, BLOCK, BLOCK_D], k_layout)
    k_full = gl.allocate_shared_memory(gl.int64, [STAGES, 1], mbarrier.MBarrierLayout())
    k_empty = gl.allocate_shared_memory(gl.int64, [STAGES, 1], mbarrier.MBarrierLayout())
    for i in gl.static_range(STAGES):
        mbarrier.init(k_full.index(i), count=1)
        mbarrier.init(k_empty.index(i), count=2)
    strides, sizes = (sq_h, sq_n, sq_d, sr_r), (Nq, Nk - Nq, count, tiles, first_row)
    span, reals = (begin, end, full_begin, full_end), (lo, hi)
    ring = (k_smem, k_full, k_empty)
    tensors = (q_ptr, rows_ptr, out_ptr)
    gl.warp_specialize(
        [
            (_consume, (tensors, strides, sizes, span, reals, ring, scale_log2, D, BLOCK_D, ROWS, STAGES, 0)),
            (_consume, (tensors, strides, sizes, span, reals, ring, scale_log2, D, BLOCK_D, ROWS, STAGES, 1)),
            (_produce, (k_desc, batch, head // group, span, ring, STAGES)),
        ],
        [4, 1],
        [240, 24],
    )
