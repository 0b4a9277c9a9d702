"""The sparse forward for Hopper in Gluon: a producer warp feeds two warpgroups through TMA; while one takes exponentials, the
tensor cores multiply for the other (the schedule of FlashAttention-3, arXiv 2407.08608, over lists of tiles).

A step without a mask takes its weights against a maximum that may be old: it looks for none, exchanges nothing between threads
and rescales nothing. Weights lose nothing by being large, as long as they do not overflow. Only where a sum of them exceeds 256
is the step done again with its own maximum. (FlashAttention-4 rescales as rarely, but looks for the maximum in every step.)"""

from typing import NamedTuple

from triton.experimental import gluon
from triton.experimental.gluon import language as gl
from triton.experimental.gluon.language.nvidia.hopper import fence_async_shared, mbarrier, tma, warpgroup_mma, warpgroup_mma_wait

from .hopper import multiprocessors, real_keys
from .hopper_softmax import declare_too_large, masked_scores, shrink, softmax, thread_sums, too_large
from .hopper_work import BLOCK, first_key, hear, list_of, masked_first_key, next_work, query_block_of, spans_of, tell
from .launch import Launch
from .primitives import LOG2_E
from .sizes import cdiv, padded

HALF = gl.constexpr(64)  # rows of a warpgroup
CACHED = 24 << 20  # bytes of keys and values that heads side by side share the cache with


class Config(NamedTuple):
    """keys: keys of a step. stages: steps in flight. overlap: a warpgroup multiplies one step while it takes the exponentials of
    another, and the two warpgroups take turns; without it, two programs share a multiprocessor. registers: of a thread at the
    start, and of one that multiplies (the producer keeps 24)."""

    keys: int
    stages: int
    overlap: bool
    registers: tuple[int, int]


CONFIGS = {  # by the larger padded head_dim
    64: Config(64, 5, False, (80, 104)),
    128: Config(128, 3, True, (168, 240)),
    256: Config(64, 2, True, (168, 240)),
}


def block_sparse_attention_hopper(q, k, v, scale, has_range, dense=False):
    """The launch for layouts of q, k, v that `hopper.readable` takes.

    It is given q, k, v, ids and spans as `block_index_lists` makes them, key_range, out [B, Hq, Nq, Dv] and lse [B, Hq, Nq], both
    contiguous; the programs that fit on the GPU at once take query blocks from a queue. dense: all keys, no key_range; lists and
    lse are not looked at, and the programs share out the query blocks beforehand.
    """
    (batch, heads, queries, head_dim), (kv_heads, keys), value_dim = q.shape, k.shape[1:3], v.shape[3]
    query_blocks, config = cdiv(queries, BLOCK.value), CONFIGS[max(padded(head_dim), padded(value_dim))]
    programs = min((1 if config.overlap else 2) * multiprocessors(q.device), query_blocks * batch * heads)
    together = max(CACHED // (keys * (head_dim + value_dim) * k.dtype.itemsize), 1) * heads // kv_heads
    return Launch(
        _forward, (programs,),
        (batch * heads, heads, heads // kv_heads, queries, keys, query_blocks, cdiv(keys, BLOCK.value), together, scale * LOG2_E),
        {0: HALF.value, 1: config.keys, 2: config.keys},
        HAS_RANGE=has_range, DENSE=dense, DV=value_dim, STAGES=config.stages, OVERLAP=config.overlap,
        REGISTERS=config.registers[1], num_warps=4, maxnreg=config.registers[0],
    )  # fmt: skip


@gluon.jit
def _produce(descs, lists, sizes, buffers, bars, STAGES: gl.constexpr, OVERLAP: gl.constexpr, DENSE: gl.constexpr):
    """Take work until there is none. A stage holds the keys of a step, and the values of the same step or, with OVERLAP, of the
    one before: what is used together, so that one barrier each tells that a stage is full or empty."""
    q_desc, k_desc, v_desc = descs
    all_heads, heads, group, Nq, Nk, query_blocks, key_blocks, together = sizes
    q_smem, k_smem, v_smem, work_smem = buffers
    q_full, q_empty, full, empty, work_full, work_empty = bars
    KEYS: gl.constexpr = k_desc.block_type.shape[2]
    LAG: gl.constexpr = 1 if OVERLAP else 0
    done, works, queries = 0, 0, 0
    index = next_work(lists, sizes, works, DENSE)
    going = True
    while going:
        going = index >= 0
        block, row = query_block_of(gl.maximum(index, 0), sizes, DENSE)
        full_begin, full_end, count, masked = spans_of(lists, sizes, block, row, DENSE)
        list_ptr = list_of(lists, sizes, block, row, DENSE)
        start = count * 0
        if count > 0:
            start = first_key(list_ptr, 0, full_begin, full_end, masked, KEYS, DENSE)
        mbarrier.wait(work_empty, (works & 1) ^ 1)
        works += 1
        tell(work_smem, index, count, masked, start)
        mbarrier.arrive(work_full, count=1)
        if going:
            batch, head = row // heads, row % heads
            steps = count * (BLOCK // KEYS)
            before = start
            for step in range(0, gl.where(count > 0, steps + LAG, 0)):
                if (step > 0) & (step < steps):
                    start = first_key(list_ptr, step, full_begin, full_end, masked, KEYS, DENSE)
                stage = done % STAGES
                mbarrier.wait(empty.index(stage), (done // STAGES & 1) ^ 1)
                keys_too, values_too = step < steps, step >= LAG
                _expect(full.index(stage), k_desc.block_type.nbytes, v_desc.block_type.nbytes, keys_too, values_too)
                k_buffer = k_smem.index(stage)._reinterpret(k_desc.dtype, k_desc.block_type.shape, k_desc.layout)
                v_buffer = v_smem.index(stage)._reinterpret(v_desc.dtype, v_desc.block_type.shape, v_desc.layout)
                bar = full.index(stage)
                tma.async_copy_global_to_shared(k_desc, [batch, head // group, start, 0], bar, k_buffer, pred=keys_too)
                if step == 0:
                    mbarrier.wait(q_empty, (queries & 1) ^ 1)
                    queries += 1
                    mbarrier.expect(q_full, 2 * q_desc.block_type.nbytes)
                    for half in gl.static_range(2):
                        q_buffer = q_smem.index(half)._reinterpret(q_desc.dtype, q_desc.block_type.shape, q_desc.layout)
                        tma.async_copy_global_to_shared(q_desc, [batch, head, block * BLOCK + half * HALF, 0], q_full, q_buffer)
                values = before if OVERLAP else start
                tma.async_copy_global_to_shared(v_desc, [batch, head // group, values, 0], bar, v_buffer, pred=values_too)
                before = start
                done += 1
            index = next_work(lists, sizes, works, DENSE)


@gluon.jit
def _expect(bar, K_BYTES: gl.constexpr, V_BYTES: gl.constexpr, keys_too, values_too):
    """A stage is full once its keys, its values or both have come."""
    mbarrier.expect(bar, K_BYTES + V_BYTES, pred=keys_too & values_too)
    mbarrier.expect(bar, K_BYTES, pred=keys_too & (values_too == 0))
    mbarrier.expect(bar, V_BYTES, pred=values_too & (keys_too == 0))


@gluon.jit
def _rounded(weights, acc, dtype: gl.constexpr):
    """Weights as the left side of the product that acc takes."""
    return gl.convert_layout(weights, gl.DotOperandLayout(0, acc.type.layout, 2)).to(dtype)


@gluon.jit
def _here(p):
    """p, rounded here: LLVM would round it after the next branch, and it would take twice the registers until then."""
    return gl.inline_asm_elementwise("mov.b32 $0, $1;", "=r,r", [p], dtype=p.dtype, is_pure=False, pack=2)


@gluon.jit
def _clear_padding(values, start, lo, hi, WHO: gl.constexpr):
    """Set the values of padding to 0 in a stage: their weights are 0, and 0 times what they may hold must not be NaN. Each
    warpgroup does its half, then the two meet."""
    KEYS: gl.constexpr = values.shape[0]
    layout: gl.constexpr = gl.BlockedLayout([1, 8], [4, 8], [4, 1], [1, 0])
    if (start < lo) | (start + KEYS > hi):
        for part in gl.static_range(WHO * (KEYS // 64), (WHO + 1) * (KEYS // 64)):
            piece = values.slice(part * 32, 32)
            tokens = start + part * 32 + gl.arange(0, 32, layout=gl.SliceLayout(1, layout))
            inside = (tokens >= lo) & (tokens < hi)
            loaded = piece.load(layout)
            piece.store(gl.where(inside[:, None], loaded, gl.zeros_like(loaded)))
        fence_async_shared()
        _pass_barrier("bar.sync 12, 256;")


@gluon.jit
def _multiply_keys(q, keys, zero):
    return warpgroup_mma_wait(0, deps=[warpgroup_mma(q, keys.permute((1, 0)), zero, use_acc=False, is_async=True)])


@gluon.jit
def _step(
    q, acc, top, total, start, ahead, lo, hi, scale_log2, done, buffers, bars, zero,
    MASKED: gl.constexpr, HAS_RANGE: gl.constexpr, STAGES: gl.constexpr, WHO: gl.constexpr,
):  # fmt: skip
    """Keys, softmax and values of a step, one after the other."""
    q_smem, k_smem, v_smem, work_smem = buffers
    q_full, q_empty, full, empty, work_full, work_empty = bars
    stage = done % STAGES
    mbarrier.wait(full.index(stage), done // STAGES & 1)
    scores = _multiply_keys(q, k_smem.index(stage), zero)
    if MASKED:
        scores = masked_scores(scores, ahead - start, lo - start, hi - start, HAS_RANGE)
        weights, decay, top, total = softmax(scores, top, total, scale_log2)
        acc = shrink(acc, decay)
        p = _rounded(weights, acc, v_smem.dtype)
        if HAS_RANGE:
            _clear_padding(v_smem.index(stage), start, lo, hi, WHO)
    else:
        weights = gl.exp2(scores * scale_log2 - top[:, None])
        sums = thread_sums(weights)
        p = _here(_rounded(weights, acc, v_smem.dtype))
        if too_large(sums, WHO, True) != 0:
            scores = _multiply_keys(q, k_smem.index(stage), zero)
            weights, decay, top, total = softmax(scores, top, total, scale_log2)
            acc = shrink(acc, decay)
            p = _rounded(weights, acc, v_smem.dtype)
        else:
            total += sums
    acc = warpgroup_mma_wait(0, deps=[warpgroup_mma(p, v_smem.index(stage), acc, is_async=True)])
    mbarrier.arrive(empty.index(stage), count=1)
    return acc, top, total


@gluon.jit
def _pass_barrier(ASM: gl.constexpr):
    """Hardware barriers 8 to 12, which Triton does not use, cost less than an mbarrier; the softmax has 10 and 11."""
    thread = gl.arange(0, 128, layout=gl.BlockedLayout([1], [32], [4], [0]))
    gl.inline_asm_elementwise(ASM + " mov.b32 $0, $1;", "=r,r", [thread], dtype=gl.int32, is_pure=False, pack=1)


@gluon.jit
def _wait_for_turn(WHO: gl.constexpr):
    """The two warpgroups multiply in turns."""
    _pass_barrier("bar.sync 8, 256;" if WHO == 0 else "bar.sync 9, 256;")


@gluon.jit
def _give_turn(WHO: gl.constexpr):
    _pass_barrier("bar.arrive 8, 256;" if WHO == 0 else "bar.arrive 9, 256;")


@gluon.jit
def _overlapped_step(
    q, weights, acc, top, total, start, before, ahead, lo, hi, scale_log2, done, buffers, bars, zero,
    MASKED: gl.constexpr, HAS_RANGE: gl.constexpr, STAGES: gl.constexpr, WHO: gl.constexpr,
):  # fmt: skip
    """Keys of this step and values of the one before; meanwhile the softmax of this step, as soon as it can."""
    q_smem, k_smem, v_smem, work_smem = buffers
    q_full, q_empty, full, empty, work_full, work_empty = bars
    stage, coming = done % STAGES, done + 1
    if MASKED and HAS_RANGE:
        _clear_padding(v_smem.index(stage), before, lo, hi, WHO)
    _wait_for_turn(WHO)
    scores = warpgroup_mma(q, k_smem.index(stage).permute((1, 0)), zero, use_acc=False, is_async=True)
    p = weights.to(v_smem.dtype)
    acc = warpgroup_mma(p, v_smem.index(stage), acc, is_async=True)
    _give_turn(1 - WHO)
    scores = warpgroup_mma_wait(1, deps=[scores])
    if MASKED:
        scores = masked_scores(scores, ahead - start, lo - start, hi - start, HAS_RANGE)
        new_weights, decay, top, total = softmax(scores, top, total, scale_log2)
    else:
        new_weights = gl.exp2(scores * scale_log2 - top[:, None])
        sums = thread_sums(new_weights)
    # Waiting for the next stage here and not later keeps ptxas from moving the wait for the values above the softmax.
    mbarrier.wait(full.index(coming % STAGES), coming // STAGES & 1)
    acc, p = warpgroup_mma_wait(0, deps=[acc, p])
    if MASKED:
        acc = shrink(acc, decay)
    elif too_large(sums, WHO, True) != 0:
        scores = _multiply_keys(q, k_smem.index(stage), zero)
        new_weights, decay, top, total = softmax(scores, top, total, scale_log2)
        acc = shrink(acc, decay)
    else:
        total += sums
    mbarrier.arrive(empty.index(stage), count=1)
    return gl.convert_layout(new_weights, weights.type.layout), acc, top, total


@gluon.constexpr_function
def _store_layout(width):
    """[64, width] with 8 bytes of a row to a thread; pairs of threads that share a row exchange what they have, by shuffles."""
    rest = [[0, 1 << bit] for bit in range(4, width.bit_length() - 1)]
    lanes = [[0, 4], [0, 8], [1, 0], [2, 0], [4, 0]]
    return gl.DistributedLinearLayout([[0, 1], [0, 2], *rest, [8, 0]], lanes, [[16, 0], [32, 0]], [], [64, width])


@gluon.jit
def _consume(
    out, lists, sizes, buffers, bars, scale_log2,
    HAS_RANGE: gl.constexpr, DENSE: gl.constexpr, DV: gl.constexpr, STAGES: gl.constexpr, OVERLAP: gl.constexpr,
    WHO: gl.constexpr,
):  # fmt: skip
    """Attention of 64 rows of each query block; WHO tells which half."""
    out_ptr, lse_ptr = out
    ids_ptr, spans_ptr, range_ptr = lists
    all_heads, heads, group, Nq, Nk, query_blocks, key_blocks, together = sizes
    q_smem, k_smem, v_smem, work_smem = buffers
    q_full, q_empty, full, empty, work_full, work_empty = bars
    KEYS: gl.constexpr = k_smem.shape[1]
    BLOCK_DV: gl.constexpr = v_smem.shape[2]
    dtype: gl.constexpr = v_smem.dtype
    score_layout: gl.constexpr = gl.NVMMADistributedLayout([3, 0], [4, 1], [16, KEYS, 16])
    out_layout: gl.constexpr = gl.NVMMADistributedLayout([3, 0], [4, 1], [16, BLOCK_DV, 16])
    row_layout: gl.constexpr = gl.SliceLayout(1, score_layout)
    out_rows: gl.constexpr = gl.SliceLayout(1, out_layout)
    store_layout: gl.constexpr = _store_layout(BLOCK_DV)
    zero = gl.zeros([HALF, KEYS], gl.float32, score_layout)
    done, queries, works = 0, 0, 0
    declare_too_large(WHO)
    if OVERLAP and WHO == 1:
        _give_turn(0)
    index, count, masked, start = hear(work_smem, work_full, work_empty, works)
    while index >= 0:
        block, row = query_block_of(index, sizes, DENSE)
        lo, hi = real_keys(range_ptr, row // heads, Nk, HAS_RANGE)
        first = block * BLOCK + WHO * HALF
        ahead = first + Nk - Nq
        top = gl.full([HALF], float("-inf"), gl.float32, row_layout)
        total = thread_sums(zero)
        acc = gl.zeros([HALF, BLOCK_DV], gl.float32, out_layout)
        if count > 0:
            steps, masked_steps = count * (BLOCK // KEYS), masked * (BLOCK // KEYS)
            q = q_smem.index(WHO)
            mbarrier.wait(q_full, queries & 1)
            queries += 1
            if OVERLAP:
                stage = done % STAGES
                mbarrier.wait(full.index(stage), done // STAGES & 1)
                scores = _multiply_keys(q, k_smem.index(stage), zero)
                mbarrier.arrive(empty.index(stage), count=1)
                scores = masked_scores(scores, ahead - start, lo - start, hi - start, HAS_RANGE)
                weights, decay, top, total = softmax(scores, top, total, scale_log2)
                weights = gl.convert_layout(weights, gl.DotOperandLayout(0, out_layout, 2))
                mbarrier.wait(full.index((done + 1) % STAGES), (done + 1) // STAGES & 1)
                unmasked = gl.maximum(masked_steps, 1)
                if HAS_RANGE:  # the values of the last step with a mask are used in the step after it
                    unmasked = gl.minimum(unmasked + 1, steps)
                for step in range(1, unmasked):
                    before = start
                    start = masked_first_key(lists, sizes, block, row, step, KEYS, DENSE)
                    weights, acc, top, total = _overlapped_step(
                        q, weights, acc, top, total, start, before, ahead, lo, hi, scale_log2, done + step, buffers, bars,
                        zero, True, HAS_RANGE, STAGES, WHO,
                    )  # fmt: skip
                for step in range(unmasked, steps):
                    weights, acc, top, total = _overlapped_step(
                        q, weights, acc, top, total, 0, 0, ahead, lo, hi, scale_log2, done + step, buffers, bars,
                        zero, False, HAS_RANGE, STAGES, WHO,
                    )  # fmt: skip
                done += steps
                stage = done % STAGES
                if HAS_RANGE:  # noqa: SIM102  a constexpr and a value do not mix in one condition
                    if unmasked == steps:
                        _clear_padding(v_smem.index(stage), start, lo, hi, WHO)
                acc = warpgroup_mma(weights.to(dtype), v_smem.index(stage), acc, is_async=True)
                acc = warpgroup_mma_wait(0, deps=[acc])
                mbarrier.arrive(empty.index(stage), count=1)
                done += 1
            else:
                for step in range(0, masked_steps):
                    if step > 0:
                        start = masked_first_key(lists, sizes, block, row, step, KEYS, DENSE)
                    if start >= ahead + HALF:  # keys that no row of this warpgroup sees
                        stage = (done + step) % STAGES
                        mbarrier.wait(full.index(stage), (done + step) // STAGES & 1)
                        if HAS_RANGE:
                            _clear_padding(v_smem.index(stage), start, lo, hi, WHO)
                        mbarrier.arrive(empty.index(stage), count=1)
                    else:
                        acc, top, total = _step(
                            q, acc, top, total, start, ahead, lo, hi, scale_log2, done + step, buffers, bars, zero,
                            True, HAS_RANGE, STAGES, WHO,
                        )  # fmt: skip
                for step in range(masked_steps, steps):
                    acc, top, total = _step(
                        q, acc, top, total, 0, ahead, lo, hi, scale_log2, done + step, buffers, bars, zero,
                        False, HAS_RANGE, STAGES, WHO,
                    )  # fmt: skip
                done += steps
            mbarrier.arrive(q_empty, count=1)
        rows = first + gl.arange(0, HALF, layout=row_layout)
        total = gl.convert_layout(gl.sum(total, 1), row_layout)
        alive = (rows + Nk - Nq < hi) & (total > 0)
        safe = gl.where(alive, total, 1.0)
        if not DENSE:
            lse = gl.where(alive, (top + gl.log2(safe)) * 0.6931471805599453, float("-inf"))
            gl.store(lse_ptr + row.to(gl.int64) * Nq + rows, lse, mask=rows < Nq)
        factor = gl.convert_layout(gl.where(alive, 1.0 / safe, 0.0), out_rows)
        acc = gl.where(gl.convert_layout(alive, out_rows)[:, None], acc * factor[:, None], 0.0)
        rows = first + gl.arange(0, HALF, layout=gl.SliceLayout(1, store_layout))
        dims = gl.arange(0, BLOCK_DV, layout=gl.SliceLayout(0, store_layout))
        inside = (rows < Nq)[:, None]
        if DV != BLOCK_DV:
            inside = inside & (dims < DV)[None, :]
        head_ptr = out_ptr + row.to(gl.int64) * Nq * DV
        if DV % 8 == 0:  # a partition does not know how its arguments are aligned, and would store 2 bytes at a time
            head_ptr = gl.multiple_of(head_ptr, 16)
        out_ptrs = head_ptr + rows.to(gl.int64)[:, None] * DV + dims[None, :]
        gl.store(out_ptrs, gl.convert_layout(acc.to(dtype), store_layout), mask=inside)
        works += 1
        index, count, masked, start = hear(work_smem, work_full, work_empty, works)


@gluon.jit(do_not_specialize=["all_heads", "heads", "group", "Nq", "Nk", "query_blocks", "key_blocks", "together"])
def _forward(
    q_desc, k_desc, v_desc, ids_ptr, spans_ptr, range_ptr, out_ptr, lse_ptr,
    all_heads, heads, group, Nq, Nk, query_blocks, key_blocks, together, scale_log2,
    HAS_RANGE: gl.constexpr, DENSE: gl.constexpr, DV: gl.constexpr, STAGES: gl.constexpr, OVERLAP: gl.constexpr,
    REGISTERS: gl.constexpr,
):  # fmt: skip
    KEYS: gl.constexpr = k_desc.block_type.shape[2]
    BLOCK_D: gl.constexpr = k_desc.block_type.shape[3]
    BLOCK_DV: gl.constexpr = v_desc.block_type.shape[3]
    dtype: gl.constexpr = k_desc.dtype
    k_layout: gl.constexpr = gl.NVMMASharedLayout.get_default_for([KEYS, BLOCK_D], dtype)
    v_layout: gl.constexpr = gl.NVMMASharedLayout.get_default_for([KEYS, BLOCK_DV], dtype)
    q_smem = gl.allocate_shared_memory(dtype, [2, HALF, BLOCK_D], k_layout)
    k_smem = gl.allocate_shared_memory(dtype, [STAGES, KEYS, BLOCK_D], k_layout)
    v_smem = gl.allocate_shared_memory(dtype, [STAGES, KEYS, BLOCK_DV], v_layout)
    work_smem = gl.allocate_shared_memory(gl.int32, [4, 1], gl.SwizzledSharedLayout(1, 1, 1, [0]))
    ring: gl.constexpr = mbarrier.MBarrierLayout()
    full = gl.allocate_shared_memory(gl.int64, [STAGES, 1], ring)
    empty = gl.allocate_shared_memory(gl.int64, [STAGES, 1], ring)
    single = gl.allocate_shared_memory(gl.int64, [4, 1], ring)
    for i in gl.static_range(STAGES):
        mbarrier.init(full.index(i), count=1)
        mbarrier.init(empty.index(i), count=2)
    for i in gl.static_range(2):
        mbarrier.init(single.index(i), count=1)
        mbarrier.init(single.index(2 + i), count=2)
    q_full, work_full, q_empty, work_empty = single.index(0), single.index(1), single.index(2), single.index(3)
    lists = (ids_ptr, spans_ptr, range_ptr)
    sizes = (all_heads, heads, group, Nq, Nk, query_blocks, key_blocks, together)
    buffers = (q_smem, k_smem, v_smem, work_smem)
    bars = (q_full, q_empty, full, empty, work_full, work_empty)
    out = (out_ptr, lse_ptr)
    gl.warp_specialize(
        [
            (_consume, (out, lists, sizes, buffers, bars, scale_log2, HAS_RANGE, DENSE, DV, STAGES, OVERLAP, 0)),
            (_consume, (out, lists, sizes, buffers, bars, scale_log2, HAS_RANGE, DENSE, DV, STAGES, OVERLAP, 1)),
            (_produce, ((q_desc, k_desc, v_desc), lists, sizes, buffers, bars, STAGES, OVERLAP, DENSE)),
        ],
        [4, 1],
        [REGISTERS, 24],
    )
