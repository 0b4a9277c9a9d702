"""The row logsumexp for Hopper in Gluon: a producer warp streams the keys, and two warpgroups each take exponentials of one tile
while the tensor cores multiply the next (the overlap inside a warpgroup of FlashAttention-3, arXiv 2407.08608)."""

import torch
import triton
from triton.experimental import gluon
from triton.experimental.gluon import language as gl
from triton.experimental.gluon.language.nvidia.hopper import mbarrier, tma, warpgroup_mma, warpgroup_mma_wait

from .hopper import descriptor
from .primitives import LOG2_E, on_device, padded

# padded head_dim -> tiles of keys in flight, warpgroups, whether each overlaps, registers
CONFIGS = {64: (8, 2, True, (168, 240)), 128: (4, 2, True, (168, 240))}
BLOCK = gl.constexpr(128)  # keys of a step
HALF = gl.constexpr(64)  # rows of a warpgroup


def row_logsumexp_hopper(q, k, key_range, lse, scale):
    """Fill lse [B, Hq, Nq]; arguments as checked by `row_logsumexp`."""
    (batch, heads, queries, head_dim), (kv_heads, keys) = q.shape, k.shape[1:3]
    with on_device(q):
        stages, groups, overlap, registers = CONFIGS[padded(head_dim)]
        _logsumexp[(triton.cdiv(queries, 64 * groups), batch * heads)](
            descriptor(q, 64), descriptor(k, 128), key_range, lse, heads, heads // kv_heads, queries, keys, scale * LOG2_E,
            HAS_RANGE=key_range is not None, STAGES=stages, GROUPS=groups, OVERLAP=overlap, REGISTERS=registers[1],
            num_warps=4, maxnreg=registers[0],
        )  # fmt: skip


@gluon.jit
def _place():
    return gl.num_programs(0) - 1 - gl.program_id(0), gl.program_id(1)


@gluon.jit
def _span(range_ptr, batch, block, Nq, Nk, HAS_RANGE: gl.constexpr, ROWS: gl.constexpr):
    """The real keys lo .. hi - 1, and which steps of keys the block sees: all begin .. end - 1, unmasked full_begin .. full_end - 1."""
    lo, hi = Nk * 0, Nk
    if HAS_RANGE:
        lo = gl.maximum(gl.load(range_ptr + 2 * batch), 0)
        hi = gl.minimum(gl.load(range_ptr + 2 * batch + 1), Nk)
    first = block * ROWS + Nk - Nq
    begin, end = lo // BLOCK, gl.cdiv(gl.minimum(hi, first + ROWS), BLOCK)
    full_begin = gl.cdiv(lo, BLOCK)
    full_end = gl.maximum(gl.minimum(hi, first + 1) // BLOCK, full_begin)
    end = gl.maximum(end, begin)
    full_begin = gl.minimum(full_begin, end)
    return lo, hi, begin, end, full_begin, gl.minimum(gl.maximum(full_end, full_begin), end)


@gluon.jit
def _key_tile(t, begin, full_begin, full_end, masked):
    """The t-th step: those that need a mask first."""
    outside = begin + t
    outside = gl.where(outside < full_begin, outside, outside + full_end - full_begin)
    return gl.where(t < masked, outside, full_begin + t - masked)


@gluon.jit
def _produce(descs, range_ptr, sizes, q_smem, k_smem, q_full, k_full, k_empty, HAS_RANGE: gl.constexpr, STAGES: gl.constexpr):
    q_desc, k_desc = descs
    heads, group, Nq, Nk = sizes
    block, row = _place()
    batch, head = row // heads, row % heads
    lo, hi, begin, end, full_begin, full_end = _span(range_ptr, batch, block, Nq, Nk, HAS_RANGE, q_smem.shape[0] * HALF)
    masked = end - begin - (full_end - full_begin)
    GROUPS: gl.constexpr = q_smem.shape[0]
    mbarrier.expect(q_full, GROUPS * q_desc.block_type.nbytes)
    for part in gl.static_range(GROUPS):
        q_buffer = q_smem.index(part)._reinterpret(q_desc.dtype, q_desc.block_type.shape, q_desc.layout)
        tma.async_copy_global_to_shared(q_desc, [batch, head, (block * GROUPS + part) * HALF, 0], q_full, q_buffer)
    for t in range(0, end - begin):
        stage = t % STAGES
        mbarrier.wait(k_empty.index(stage), (t // STAGES & 1) ^ 1)
        mbarrier.expect(k_full.index(stage), k_desc.block_type.nbytes)
        k_buffer = k_smem.index(stage)._reinterpret(k_desc.dtype, k_desc.block_type.shape, k_desc.layout)
        start = _key_tile(t, begin, full_begin, full_end, masked) * BLOCK
        tma.async_copy_global_to_shared(k_desc, [batch, head // group, start, 0], k_full.index(stage), k_buffer)


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
def _add(scores, top, total, scale_log2):
    new_top = gl.maximum(top, gl.max(scores, 1) * scale_log2)
    base = gl.where(new_top == float("-inf"), 0.0, new_top)
    return new_top, total * gl.exp2(top - base) + gl.sum(gl.exp2(scores * scale_log2 - base[:, None]), 1)


@gluon.jit
def _consume(
    lse_ptr, range_ptr, sizes, q_smem, k_smem, q_full, k_full, k_empty, scale_log2,
    HAS_RANGE: gl.constexpr, STAGES: gl.constexpr, OVERLAP: gl.constexpr, WHO: gl.constexpr,
):  # fmt: skip
    heads, group, Nq, Nk = sizes
    layout: gl.constexpr = gl.NVMMADistributedLayout([3, 0], [4, 1], [16, BLOCK, 16])
    rows_layout: gl.constexpr = gl.SliceLayout(1, layout)
    block, row = _place()
    lo, hi, begin, end, full_begin, full_end = _span(range_ptr, row // heads, block, Nq, Nk, HAS_RANGE, q_smem.shape[0] * HALF)
    masked = end - begin - (full_end - full_begin)
    rows = (block * q_smem.shape[0] + WHO) * HALF + gl.arange(0, HALF, layout=rows_layout)
    positions = rows + Nk - Nq
    top = gl.full([HALF], float("-inf"), gl.float32, rows_layout)
    total = gl.zeros([HALF], gl.float32, rows_layout)
    zero = gl.zeros([HALF, BLOCK], gl.float32, layout)
    mbarrier.wait(q_full, 0)
    q = q_smem.index(WHO)
    if OVERLAP and q_smem.shape[0] == 2:
        q = q.load(gl.DotOperandLayout(0, layout, 2))
    for t in range(0, masked):
        scores = _now(_scores(q, k_smem, k_full, t, zero, STAGES), k_empty, t, STAGES)
        keys = _key_tile(t, begin, full_begin, full_end, masked) * BLOCK + gl.arange(0, BLOCK, layout=gl.SliceLayout(0, layout))
        visible = (keys[None, :] <= positions[:, None]) & (keys[None, :] >= lo) & (keys[None, :] < hi)
        top, total = _add(gl.where(visible, scores, float("-inf")), top, total, scale_log2)
    count = end - begin
    if not OVERLAP:
        for t in range(masked, count):
            scores = _now(_scores(q, k_smem, k_full, t, zero, STAGES), k_empty, t, STAGES)
            top, total = _add(scores, top, total, scale_log2)
    elif masked < count:
        even = _now(_scores(q, k_smem, k_full, masked, zero, STAGES), k_empty, masked, STAGES)
        pairs = (count - masked - 1) // 2
        for pair in range(0, pairs):
            t = masked + 2 * pair
            coming = _scores(q, k_smem, k_full, t + 1, zero, STAGES)
            top, total = _add(even, top, total, scale_log2)
            odd = _now(coming, k_empty, t + 1, STAGES)
            coming = _scores(q, k_smem, k_full, t + 2, zero, STAGES)
            top, total = _add(odd, top, total, scale_log2)
            even = _now(coming, k_empty, t + 2, STAGES)
        top, total = _add(even, top, total, scale_log2)
        if masked + 2 * pairs + 1 < count:
            last = _now(_scores(q, k_smem, k_full, count - 1, zero, STAGES), k_empty, count - 1, STAGES)
            top, total = _add(last, top, total, scale_log2)
    alive = (positions < hi) & (total > 0)
    lse = gl.where(alive, (top + gl.log2(gl.where(alive, total, 1.0))) * 0.6931471805599453, float("-inf"))
    gl.store(lse_ptr + row.to(gl.int64) * Nq + rows, lse, mask=rows < Nq)


@gluon.jit(do_not_specialize=["heads", "group", "Nq", "Nk"])
def _logsumexp(
    q_desc, k_desc, range_ptr, lse_ptr, heads, group, Nq, Nk, scale_log2, HAS_RANGE: gl.constexpr,
    STAGES: gl.constexpr, GROUPS: gl.constexpr, OVERLAP: gl.constexpr, REGISTERS: gl.constexpr,
):  # fmt: skip
    BLOCK_D: gl.constexpr = k_desc.block_type.shape[3]
    dtype: gl.constexpr = k_desc.dtype
    layout: gl.constexpr = gl.NVMMASharedLayout.get_default_for([BLOCK, BLOCK_D], dtype)
    q_smem = gl.allocate_shared_memory(dtype, [GROUPS, HALF, BLOCK_D], layout)
    k_smem = gl.allocate_shared_memory(dtype, [STAGES, BLOCK, BLOCK_D], layout)
    ring: gl.constexpr = mbarrier.MBarrierLayout()
    k_full = gl.allocate_shared_memory(gl.int64, [STAGES, 1], ring)
    k_empty = gl.allocate_shared_memory(gl.int64, [STAGES, 1], ring)
    q_full = gl.allocate_shared_memory(gl.int64, [1], ring)
    mbarrier.init(q_full, count=1)
    for i in gl.static_range(STAGES):
        mbarrier.init(k_full.index(i), count=1)
        mbarrier.init(k_empty.index(i), count=GROUPS)
    sizes = (heads, group, Nq, Nk)
    if GROUPS == 2:
        gl.warp_specialize(
            [
                (_consume, (lse_ptr, range_ptr, sizes, q_smem, k_smem, q_full, k_full, k_empty, scale_log2, HAS_RANGE, STAGES, OVERLAP, 0)),
                (_consume, (lse_ptr, range_ptr, sizes, q_smem, k_smem, q_full, k_full, k_empty, scale_log2, HAS_RANGE, STAGES, OVERLAP, 1)),
                (_produce, ((q_desc, k_desc), range_ptr, sizes, q_smem, k_smem, q_full, k_full, k_empty, HAS_RANGE, STAGES)),
            ],
            [4, 1],
            [REGISTERS, 24],
        )
    elif GROUPS == 3:
        gl.warp_specialize(
            [
                (_consume, (lse_ptr, range_ptr, sizes, q_smem, k_smem, q_full, k_full, k_empty, scale_log2, HAS_RANGE, STAGES, OVERLAP, 0)),
                (_consume, (lse_ptr, range_ptr, sizes, q_smem, k_smem, q_full, k_full, k_empty, scale_log2, HAS_RANGE, STAGES, OVERLAP, 1)),
                (_consume, (lse_ptr, range_ptr, sizes, q_smem, k_smem, q_full, k_full, k_empty, scale_log2, HAS_RANGE, STAGES, OVERLAP, 2)),
                (_produce, ((q_desc, k_desc), range_ptr, sizes, q_smem, k_smem, q_full, k_full, k_empty, HAS_RANGE, STAGES)),
            ],
            [4, 4, 1],
            [REGISTERS, REGISTERS, 24],
        )
    else:
        gl.warp_specialize(
            [
                (_consume, (lse_ptr, range_ptr, sizes, q_smem, k_smem, q_full, k_full, k_empty, scale_log2, HAS_RANGE, STAGES, OVERLAP, 0)),
                (_consume, (lse_ptr, range_ptr, sizes, q_smem, k_smem, q_full, k_full, k_empty, scale_log2, HAS_RANGE, STAGES, OVERLAP, 1)),
                (_consume, (lse_ptr, range_ptr, sizes, q_smem, k_smem, q_full, k_full, k_empty, scale_log2, HAS_RANGE, STAGES, OVERLAP, 2)),
                (_consume, (lse_ptr, range_ptr, sizes, q_smem, k_smem, q_full, k_full, k_empty, scale_log2, HAS_RANGE, STAGES, OVERLAP, 3)),
                (_produce, ((q_desc, k_desc), range_ptr, sizes, q_smem, k_smem, q_full, k_full, k_empty, HAS_RANGE, STAGES)),
            ],
            [4, 4, 4, 1],
            [REGISTERS, REGISTERS, REGISTERS, 24],
        )
