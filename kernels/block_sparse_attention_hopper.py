"""The sparse forward for Hopper in Gluon: a producer warp feeds two warpgroups through TMA, so that one multiplies while the other
takes exponentials (the schedule of FlashAttention-3, arXiv 2407.08608, over lists of tiles)."""

import torch
from triton.experimental import gluon
from triton.experimental.gluon import language as gl
from triton.experimental.gluon.language.nvidia.hopper import mbarrier, tma, warpgroup_mma, warpgroup_mma_wait

from .hopper import descriptor, multiprocessors
from .primitives import LOG2_E, on_device, padded

# padded head_dim -> tiles of K and of V in flight, whether q stays in registers
CONFIGS = {64: (4, False), 128: (2, False)}
BLOCK = gl.constexpr(128)  # rows and keys of a tile
HALF = gl.constexpr(64)  # rows of a warpgroup


def block_sparse_attention_hopper(q, k, v, ids, spans, key_range, out, lse, scale):
    """Fill out [B, Hq, Nq, Dv] and lse [B, Hq, Nq]; arguments as checked by `block_sparse_attention`, the lists as
    `block_index_lists` makes them. One program per multiprocessor takes query blocks from a queue."""
    (batch, heads, queries, head_dim), (kv_heads, keys), value_dim = q.shape, k.shape[1:3], v.shape[3]
    query_blocks, key_blocks = ids.shape[2:]
    stages, in_registers = CONFIGS[max(padded(head_dim), padded(value_dim))]
    taken = torch.zeros(1, dtype=torch.int32, device=q.device)
    with on_device(q):
        _forward[(min(multiprocessors(q.device), query_blocks * batch * heads),)](
            descriptor(q, 64), descriptor(k, 128), descriptor(v, 128), ids, spans, taken, key_range, out, lse, *out.stride(),
            batch * heads, heads, heads // kv_heads, queries, keys, query_blocks, key_blocks, scale * LOG2_E,
            HAS_RANGE=key_range is not None, DV=value_dim, STAGES=stages, PINGPONG=True, Q_IN_REGISTERS=in_registers,
            num_warps=4, maxnreg=168,
        )  # fmt: skip


@gluon.jit
def _work(index, all_heads, query_blocks):
    """Query block and row of heads of a piece of work: the last query blocks of all heads, kept in full, come first; then head by
    head, from the last block down, so that programs that run together read the same keys."""
    rest = query_blocks - 1
    later = gl.maximum(index - all_heads, 0)
    first = index < all_heads
    return gl.where(first, rest, rest - 1 - later % gl.maximum(rest, 1)), gl.where(first, index, later // gl.maximum(rest, 1))


@gluon.jit
def _entry(t, full_begin, full_end, masked):
    """The place in the list of the t-th tile that is computed: the tiles that need a mask first, then the others."""
    outside = gl.where(t < full_begin, t, t + full_end - full_begin)
    return gl.where(t < masked, outside, full_begin + t - masked)


@gluon.jit
def _tell(work_smem, index, count, masked, start):
    """What the warpgroups need to know of a piece of work, through shared memory."""
    layout: gl.constexpr = gl.BlockedLayout([1], [32], [1], [0])
    work_smem.index(0).store(gl.full([1], index, gl.int32, layout))
    work_smem.index(1).store(gl.full([1], count, gl.int32, layout))
    work_smem.index(2).store(gl.full([1], masked, gl.int32, layout))
    work_smem.index(3).store(gl.full([1], start, gl.int32, layout))


@gluon.jit
def _hear(work_smem, work_full, work_empty, works):
    layout: gl.constexpr = gl.BlockedLayout([1], [32], [4], [0])
    mbarrier.wait(work_full, works & 1)
    index, count = gl.max(work_smem.index(0).load(layout), 0), gl.max(work_smem.index(1).load(layout), 0)
    masked, start = gl.max(work_smem.index(2).load(layout), 0), gl.max(work_smem.index(3).load(layout), 0)
    mbarrier.arrive(work_empty, count=1)
    return index, count, masked, start


@gluon.jit
def _produce(descs, lists, sizes, buffers, bars, STAGES: gl.constexpr):
    q_desc, k_desc, v_desc = descs
    ids_ptr, spans_ptr, next_ptr, range_ptr = lists
    all_heads, heads, group, Nq, Nk, query_blocks, key_blocks = sizes
    q_smem, k_smem, v_smem, work_smem = buffers
    q_full, q_empty, k_full, k_empty, v_full, v_empty, work_full, work_empty, turns = bars
    q4: gl.constexpr = q_desc.layout
    k4: gl.constexpr = k_desc.layout
    v4: gl.constexpr = v_desc.layout
    total = all_heads * query_blocks
    count_k, count_v, works, turn = 0, 0, 0, 0
    index = gl.atomic_add(next_ptr, 1)
    while index >= 0:
        block, row = _work(index, all_heads, query_blocks)
        place = row.to(gl.int64) * query_blocks + block
        index = gl.where(index < total, index, -1)
        full_begin = gl.load(spans_ptr + place * 3, mask=index >= 0, other=0)
        full_end = gl.load(spans_ptr + place * 3 + 1, mask=index >= 0, other=0)
        count = gl.load(spans_ptr + place * 3 + 2, mask=index >= 0, other=0)
        masked = count - (full_end - full_begin)
        list_ptr = ids_ptr + place * key_blocks
        start = gl.load(list_ptr + _entry(0, full_begin, full_end, masked), mask=count > 0, other=0).to(gl.int32) * BLOCK
        mbarrier.wait(work_empty, (works & 1) ^ 1)
        works += 1
        _tell(work_smem, index, count, masked, start)
        mbarrier.arrive(work_full, count=1)
        if index >= 0:
            batch, head = row // heads, row % heads
            key_head = head // group
            for t in range(0, gl.where(count > 0, count + 1, 0)):
                before = start
                if t < count:
                    if t > 0:
                        start = gl.load(list_ptr + _entry(t, full_begin, full_end, masked)).to(gl.int32) * BLOCK
                    stage = count_k % STAGES
                    mbarrier.wait(k_empty.index(stage), (count_k // STAGES & 1) ^ 1)
                    mbarrier.expect(k_full.index(stage), k_desc.block_type.nbytes)
                    k_buffer = k_smem.index(stage)._reinterpret(k_desc.dtype, k_desc.block_type.shape, k4)
                    tma.async_copy_global_to_shared(k_desc, [batch, key_head, start, 0], k_full.index(stage), k_buffer)
                    count_k += 1
                if t == 0:
                    mbarrier.wait(q_empty, (turn & 1) ^ 1)
                    mbarrier.expect(q_full, 2 * q_desc.block_type.nbytes)
                    for half in gl.static_range(2):
                        q_buffer = q_smem.index(half)._reinterpret(q_desc.dtype, q_desc.block_type.shape, q4)
                        tma.async_copy_global_to_shared(q_desc, [batch, head, block * BLOCK + half * HALF, 0], q_full, q_buffer)
                else:
                    stage = count_v % STAGES
                    mbarrier.wait(v_empty.index(stage), (count_v // STAGES & 1) ^ 1)
                    mbarrier.expect(v_full.index(stage), v_desc.block_type.nbytes)
                    v_buffer = v_smem.index(stage)._reinterpret(v_desc.dtype, v_desc.block_type.shape, v4)
                    tma.async_copy_global_to_shared(v_desc, [batch, key_head, before, 0], v_full.index(stage), v_buffer)
                    count_v += 1
            turn += gl.where(count > 0, 1, 0)
            index = gl.atomic_add(next_ptr, 1)


@gluon.jit
def _softmax(scores, top, total, start, positions, lo, hi, scale_log2, MASKED: gl.constexpr):
    """Weights of a tile against the new running maximum, and the factor by which what came before shrinks."""
    if MASKED:
        keys = start + gl.arange(0, BLOCK, layout=gl.SliceLayout(0, scores.type.layout))
        visible = (keys[None, :] <= positions[:, None]) & (keys[None, :] >= lo) & (keys[None, :] < hi)
        scores = gl.where(visible, scores, float("-inf"))
    new_top = gl.maximum(top, gl.max(scores, 1) * scale_log2)
    base = new_top
    if MASKED:
        base = gl.where(new_top == float("-inf"), 0.0, new_top)
    weights = gl.exp2(scores * scale_log2 - base[:, None])
    decay = gl.exp2(top - base)
    total = total * decay + gl.sum(weights, 1)
    return weights, decay, new_top, total


@gluon.jit
def _scores(q, k_smem, k_full, count_k, zero, STAGES: gl.constexpr):
    stage = count_k % STAGES
    mbarrier.wait(k_full.index(stage), count_k // STAGES & 1)
    return warpgroup_mma(q, k_smem.index(stage).permute((1, 0)), zero, use_acc=False, is_async=True)


@gluon.jit
def _step(
    q, weights, acc, top, total, start, positions, lo, hi, scale_log2, count, turn, buffers, bars, zero,
    MASKED: gl.constexpr, STAGES: gl.constexpr, PINGPONG: gl.constexpr, WHO: gl.constexpr,
):  # fmt: skip
    """Scores of tile `count` while the values of the tile before are added; then its softmax."""
    q_smem, k_smem, v_smem, work_smem = buffers
    q_full, q_empty, k_full, k_empty, v_full, v_empty, work_full, work_empty, turns = bars
    if PINGPONG:
        mbarrier.wait(turns.index(WHO), (turn & 1) ^ WHO ^ 1)
    scores = _scores(q, k_smem, k_full, count, zero, STAGES)
    last = (count - 1) % STAGES
    mbarrier.wait(v_full.index(last), (count - 1) // STAGES & 1)
    p = weights.to(v_smem.dtype)
    acc = warpgroup_mma(p, v_smem.index(last), acc, is_async=True)
    if PINGPONG:
        mbarrier.arrive(turns.index(1 - WHO), count=1)
    scores = warpgroup_mma_wait(1, deps=[scores])
    mbarrier.arrive(k_empty.index(count % STAGES), count=1)
    new_weights, decay, top, total = _softmax(scores, top, total, start, positions, lo, hi, scale_log2, MASKED)
    acc, p = warpgroup_mma_wait(0, deps=[acc, p])
    mbarrier.arrive(v_empty.index(last), count=1)
    acc = acc * gl.convert_layout(decay, gl.SliceLayout(1, acc.type.layout))[:, None]
    return gl.convert_layout(new_weights, weights.type.layout), acc, top, total


@gluon.jit
def _consume(
    out, lists, sizes, buffers, bars, scale_log2,
    HAS_RANGE: gl.constexpr, DV: gl.constexpr, BLOCK_DV: gl.constexpr, STAGES: gl.constexpr, PINGPONG: gl.constexpr,
    Q_IN_REGISTERS: gl.constexpr, WHO: gl.constexpr,
):  # fmt: skip
    out_ptr, lse_ptr, so_b, so_h, so_n, so_d = out
    ids_ptr, spans_ptr, next_ptr, range_ptr = lists
    all_heads, heads, group, Nq, Nk, query_blocks, key_blocks = sizes
    q_smem, k_smem, v_smem, work_smem = buffers
    q_full, q_empty, k_full, k_empty, v_full, v_empty, work_full, work_empty, turns = bars
    score_layout: gl.constexpr = gl.NVMMADistributedLayout([3, 0], [4, 1], [16, BLOCK, 16])
    out_layout: gl.constexpr = gl.NVMMADistributedLayout([3, 0], [4, 1], [16, BLOCK_DV, 16])
    p_layout: gl.constexpr = gl.DotOperandLayout(0, out_layout, 2)
    q_layout: gl.constexpr = gl.DotOperandLayout(0, score_layout, 2)
    row_layout: gl.constexpr = gl.SliceLayout(1, score_layout)
    out_rows: gl.constexpr = gl.SliceLayout(1, out_layout)
    zero = gl.zeros([HALF, BLOCK], gl.float32, score_layout)
    dtype: gl.constexpr = v_smem.dtype
    done, turn, works = 0, 0, 0

    index, count, masked, start = _hear(work_smem, work_full, work_empty, works)
    while index >= 0:
        block, row = _work(index, all_heads, query_blocks)
        batch, head = (row // heads).to(gl.int64), (row % heads).to(gl.int64)
        lo, hi = Nk * 0, Nk
        if HAS_RANGE:
            lo = gl.maximum(gl.load(range_ptr + 2 * batch), 0)
            hi = gl.minimum(gl.load(range_ptr + 2 * batch + 1), Nk)
        first = block * BLOCK + WHO * HALF
        positions = first + gl.arange(0, HALF, layout=row_layout) + Nk - Nq
        top = gl.full([HALF], float("-inf"), gl.float32, row_layout)
        total = gl.zeros([HALF], gl.float32, row_layout)
        acc = gl.zeros([HALF, BLOCK_DV], gl.float32, out_layout)
        if count > 0:
            q = q_smem.index(WHO)
            mbarrier.wait(q_full, turn & 1)
            if Q_IN_REGISTERS:
                q = q.load(q_layout)
                mbarrier.arrive(q_empty, count=1)
            scores = _scores(q, k_smem, k_full, done, zero, STAGES)
            scores = warpgroup_mma_wait(0, deps=[scores])
            mbarrier.arrive(k_empty.index(done % STAGES), count=1)
            weights, decay, top, total = _softmax(scores, top, total, start, positions, lo, hi, scale_log2, True)
            weights = gl.convert_layout(weights, p_layout)
            for t in range(1, masked):
                place = row.to(gl.int64) * query_blocks + block
                full_begin = gl.load(spans_ptr + place * 3)
                full_end = gl.load(spans_ptr + place * 3 + 1)
                start = gl.load(ids_ptr + place * key_blocks + _entry(t, full_begin, full_end, masked)).to(gl.int32) * BLOCK
                weights, acc, top, total = _step(
                    q, weights, acc, top, total, start, positions, lo, hi, scale_log2, done + t, done + t - turn - 1, buffers, bars,
                    zero, True, STAGES,
                    PINGPONG, WHO,
                )  # fmt: skip
            for t in range(gl.maximum(masked, 1), count):
                weights, acc, top, total = _step(
                    q, weights, acc, top, total, 0, positions, lo, hi, scale_log2, done + t, done + t - turn - 1, buffers, bars,
                    zero, False, STAGES,
                    PINGPONG, WHO,
                )  # fmt: skip
            if not Q_IN_REGISTERS:
                mbarrier.arrive(q_empty, count=1)
            last = (done + count - 1) % STAGES
            mbarrier.wait(v_full.index(last), (done + count - 1) // STAGES & 1)
            acc = warpgroup_mma(weights.to(dtype), v_smem.index(last), acc, is_async=True)
            acc = warpgroup_mma_wait(0, deps=[acc])
            mbarrier.arrive(v_empty.index(last), count=1)
            done += count
            turn += 1
        rows = first + gl.arange(0, HALF, layout=row_layout)
        alive = (positions < hi) & (total > 0)
        safe = gl.where(alive, total, 1.0)
        lse = gl.where(alive, (top + gl.log2(safe)) * 0.6931471805599453, float("-inf"))
        gl.store(lse_ptr + row.to(gl.int64) * Nq + rows, lse, mask=rows < Nq)
        factor = gl.convert_layout(gl.where(alive, 1.0 / safe, 0.0), out_rows)
        acc = gl.where(gl.convert_layout(alive, out_rows)[:, None], acc * factor[:, None], 0.0)
        rows = first + gl.arange(0, HALF, layout=out_rows)
        dims = gl.arange(0, BLOCK_DV, layout=gl.SliceLayout(0, out_layout))
        out_ptrs = out_ptr + batch * so_b + head * so_h + rows.to(gl.int64)[:, None] * so_n + dims[None, :] * so_d
        gl.store(out_ptrs, acc.to(dtype), mask=(rows < Nq)[:, None] & (dims < DV)[None, :])

        works += 1
        index, count, masked, start = _hear(work_smem, work_full, work_empty, works)


@gluon.jit(do_not_specialize=["all_heads", "heads", "group", "Nq", "Nk", "query_blocks", "key_blocks"])
def _forward(
    q_desc, k_desc, v_desc, ids_ptr, spans_ptr, next_ptr, range_ptr, out_ptr, lse_ptr, so_b, so_h, so_n, so_d,
    all_heads, heads, group, Nq, Nk, query_blocks, key_blocks, scale_log2,
    HAS_RANGE: gl.constexpr, DV: gl.constexpr, STAGES: gl.constexpr, PINGPONG: gl.constexpr, Q_IN_REGISTERS: gl.constexpr,
):  # fmt: skip
    BLOCK_D: gl.constexpr = k_desc.block_type.shape[3]
    BLOCK_DV: gl.constexpr = v_desc.block_type.shape[3]
    dtype: gl.constexpr = k_desc.dtype
    wide: gl.constexpr = gl.NVMMASharedLayout.get_default_for([BLOCK, BLOCK_D], dtype)
    wide_v: gl.constexpr = gl.NVMMASharedLayout.get_default_for([BLOCK, BLOCK_DV], dtype)
    q_smem = gl.allocate_shared_memory(dtype, [2, HALF, BLOCK_D], wide)
    k_smem = gl.allocate_shared_memory(dtype, [STAGES, BLOCK, BLOCK_D], wide)
    v_smem = gl.allocate_shared_memory(dtype, [STAGES, BLOCK, BLOCK_DV], wide_v)
    work_smem = gl.allocate_shared_memory(gl.int32, [4, 1], gl.SwizzledSharedLayout(1, 1, 1, [0]))
    ring: gl.constexpr = mbarrier.MBarrierLayout()
    k_full = gl.allocate_shared_memory(gl.int64, [STAGES, 1], ring)
    k_empty = gl.allocate_shared_memory(gl.int64, [STAGES, 1], ring)
    v_full = gl.allocate_shared_memory(gl.int64, [STAGES, 1], ring)
    v_empty = gl.allocate_shared_memory(gl.int64, [STAGES, 1], ring)
    turns = gl.allocate_shared_memory(gl.int64, [2, 1], ring)
    single = gl.allocate_shared_memory(gl.int64, [4, 1], ring)
    for i in gl.static_range(STAGES):
        mbarrier.init(k_full.index(i), count=1)
        mbarrier.init(k_empty.index(i), count=2)
        mbarrier.init(v_full.index(i), count=1)
        mbarrier.init(v_empty.index(i), count=2)
    for i in gl.static_range(2):
        mbarrier.init(turns.index(i), count=1)
        mbarrier.init(single.index(i), count=1)
        mbarrier.init(single.index(2 + i), count=2)
    q_full, work_full, q_empty, work_empty = single.index(0), single.index(1), single.index(2), single.index(3)
    lists = (ids_ptr, spans_ptr, next_ptr, range_ptr)
    sizes = (all_heads, heads, group, Nq, Nk, query_blocks, key_blocks)
    buffers = (q_smem, k_smem, v_smem, work_smem)
    bars = (q_full, q_empty, k_full, k_empty, v_full, v_empty, work_full, work_empty, turns)
    out = (out_ptr, lse_ptr, so_b, so_h, so_n, so_d)
    gl.warp_specialize(
        [
            (_consume, (out, lists, sizes, buffers, bars, scale_log2, HAS_RANGE, DV, BLOCK_DV, STAGES, PINGPONG, Q_IN_REGISTERS, 0)),
            (_consume, (out, lists, sizes, buffers, bars, scale_log2, HAS_RANGE, DV, BLOCK_DV, STAGES, PINGPONG, Q_IN_REGISTERS, 1)),
            (_produce, ((q_desc, k_desc, v_desc), lists, sizes, buffers, bars, STAGES)),
        ],
        [4, 1],
        [240, 24],
    )
