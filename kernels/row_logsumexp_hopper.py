"""The row logsumexp for Hopper in Gluon: a producer warp streams the keys through TMA to four warpgroups; while one takes
exponentials, the tensor cores multiply for another.

A step takes its exponentials against the maximum of earlier steps: it looks for none, exchanges nothing between threads and
rescales nothing. A sum loses nothing by being large, as long as it does not overflow. Only where a thread's sum exceeds 256, or
there is no maximum yet, does the warp take the step again with its own."""

from triton.experimental import gluon
from triton.experimental.gluon import language as gl
from triton.experimental.gluon.language.nvidia.hopper import mbarrier, tma

from .hopper import next_scores, real_keys, send_keys
from .hopper_softmax import declare_too_large, shrink, thread_sums, too_large
from .launch import Launch
from .primitives import LOG2_E
from .sizes import cdiv, padded

STAGES = {64: 8, 128: 4}  # padded head_dim -> steps of keys in flight
KEYS = gl.constexpr(128)  # keys of a step
ROWS = gl.constexpr(64)  # rows of a warpgroup
GROUPS = gl.constexpr(4)  # warpgroups that multiply
REGISTERS = gl.constexpr(112)  # of a thread of theirs; at the start every thread has 96


def row_logsumexp_hopper(q, k, scale, has_range):
    """The launch for layouts of q and k that `hopper.readable` takes; it is given q, k, key_range and lse [B, Hq, Nq]."""
    (batch, heads, queries, head_dim), (kv_heads, keys) = q.shape, k.shape[1:3]
    return Launch(
        _logsumexp, (cdiv(queries, ROWS.value * GROUPS.value), batch * heads),
        (heads, heads // kv_heads, queries, keys, scale * LOG2_E), {0: ROWS.value, 1: KEYS.value},
        HAS_RANGE=has_range, STAGES=STAGES[padded(head_dim)], num_warps=4, maxnreg=96,
    )  # fmt: skip


@gluon.jit
def _place():
    return gl.num_programs(0) - 1 - gl.program_id(0), gl.program_id(1)


@gluon.jit
def _span(range_ptr, batch, block, Nq, Nk, HAS_RANGE: gl.constexpr):
    """Real keys lo .. hi - 1; steps that the block sees, begin .. end - 1; those without a mask, full_begin .. full_end - 1."""
    lo, hi = real_keys(range_ptr, batch, Nk, HAS_RANGE)
    first = block * GROUPS * ROWS + Nk - Nq
    begin, end = lo // KEYS, gl.cdiv(gl.minimum(hi, first + GROUPS * ROWS), KEYS)
    full_begin = gl.cdiv(lo, KEYS)
    full_end = gl.maximum(gl.minimum(hi, first + 1) // KEYS, full_begin)
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
    lo, hi, begin, end, full_begin, full_end = _span(range_ptr, batch, block, Nq, Nk, HAS_RANGE)
    masked = end - begin - (full_end - full_begin)
    mbarrier.expect(q_full, GROUPS * q_desc.block_type.nbytes)
    for part in gl.static_range(GROUPS):
        q_buffer = q_smem.index(part)._reinterpret(q_desc.dtype, q_desc.block_type.shape, q_desc.layout)
        tma.async_copy_global_to_shared(q_desc, [batch, head, (block * GROUPS + part) * ROWS, 0], q_full, q_buffer)
    for t in range(0, end - begin):
        start = _key_tile(t, begin, full_begin, full_end, masked) * KEYS
        send_keys(k_desc, batch, head // group, start, t, k_smem, k_full, k_empty, STAGES)


@gluon.jit
def _add(scores, top, total, scale_log2, WHO: gl.constexpr):
    """The step's exponentials, against the maximum so far or a new one, added to each thread's total [rows, 4]."""
    sums = thread_sums(gl.exp2(scores * scale_log2 - top[:, None]))
    if too_large(sums, WHO, False) != 0:
        new_top = gl.maximum(top, gl.max(scores, 1) * scale_log2)
        base = gl.where(new_top == float("-inf"), 0.0, new_top)
        total = shrink(total, gl.exp2(top - base))
        total += thread_sums(gl.exp2(scores * scale_log2 - base[:, None]))
        top = new_top
    else:
        total += sums
    return top, total


@gluon.jit
def _consume(
    lse_ptr, range_ptr, sizes, q_smem, k_smem, q_full, k_full, k_empty, scale_log2,
    HAS_RANGE: gl.constexpr, STAGES: gl.constexpr, WHO: gl.constexpr,
):  # fmt: skip
    heads, group, Nq, Nk = sizes
    layout: gl.constexpr = gl.NVMMADistributedLayout([3, 0], [4, 1], [16, KEYS, 16])
    rows_layout: gl.constexpr = gl.SliceLayout(1, layout)
    block, row = _place()
    lo, hi, begin, end, full_begin, full_end = _span(range_ptr, row // heads, block, Nq, Nk, HAS_RANGE)
    masked = end - begin - (full_end - full_begin)
    rows = (block * GROUPS + WHO) * ROWS + gl.arange(0, ROWS, layout=rows_layout)
    positions = rows + Nk - Nq
    top = gl.full([ROWS], float("-inf"), gl.float32, rows_layout)
    zero = gl.zeros([ROWS, KEYS], gl.float32, layout)
    total = thread_sums(zero)
    declare_too_large(WHO)
    mbarrier.wait(q_full, 0)
    q = q_smem.index(WHO)
    for t in range(0, masked):
        scores = next_scores(q, zero, t, k_smem, k_full, k_empty, STAGES)
        keys = _key_tile(t, begin, full_begin, full_end, masked) * KEYS + gl.arange(0, KEYS, layout=gl.SliceLayout(0, layout))
        visible = (keys[None, :] <= positions[:, None]) & (keys[None, :] >= lo) & (keys[None, :] < hi)
        top, total = _add(gl.where(visible, scores, float("-inf")), top, total, scale_log2, WHO)
    count = end - begin
    for t in range(masked, count):
        scores = next_scores(q, zero, t, k_smem, k_full, k_empty, STAGES)
        top, total = _add(scores, top, total, scale_log2, WHO)
    total = gl.convert_layout(gl.sum(total, 1), rows_layout)
    alive = (positions < hi) & (total > 0)
    lse = gl.where(alive, (top + gl.log2(gl.where(alive, total, 1.0))) * 0.6931471805599453, float("-inf"))
    gl.store(lse_ptr + row.to(gl.int64) * Nq + rows, lse, mask=rows < Nq)


@gluon.jit(do_not_specialize=["heads", "group", "Nq", "Nk"])
def _logsumexp(
    q_desc, k_desc, range_ptr, lse_ptr, heads, group, Nq, Nk, scale_log2, HAS_RANGE: gl.constexpr,
    STAGES: gl.constexpr,
):  # fmt: skip
    WIDTH: gl.constexpr = k_desc.block_type.shape[3]
    dtype: gl.constexpr = k_desc.dtype
    layout: gl.constexpr = gl.NVMMASharedLayout.get_default_for([KEYS, WIDTH], dtype)
    q_smem = gl.allocate_shared_memory(dtype, [GROUPS, ROWS, WIDTH], layout)
    k_smem = gl.allocate_shared_memory(dtype, [STAGES, KEYS, WIDTH], layout)
    ring: gl.constexpr = mbarrier.MBarrierLayout()
    k_full = gl.allocate_shared_memory(gl.int64, [STAGES, 1], ring)
    k_empty = gl.allocate_shared_memory(gl.int64, [STAGES, 1], ring)
    q_full = gl.allocate_shared_memory(gl.int64, [1], ring)
    mbarrier.init(q_full, count=1)
    for i in gl.static_range(STAGES):
        mbarrier.init(k_full.index(i), count=1)
        mbarrier.init(k_empty.index(i), count=GROUPS)
    sizes = (heads, group, Nq, Nk)
    gl.warp_specialize(
        [
            (_consume, (lse_ptr, range_ptr, sizes, q_smem, k_smem, q_full, k_full, k_empty, scale_log2, HAS_RANGE, STAGES, 0)),
            (_consume, (lse_ptr, range_ptr, sizes, q_smem, k_smem, q_full, k_full, k_empty, scale_log2, HAS_RANGE, STAGES, 1)),
            (_consume, (lse_ptr, range_ptr, sizes, q_smem, k_smem, q_full, k_full, k_empty, scale_log2, HAS_RANGE, STAGES, 2)),
            (_consume, (lse_ptr, range_ptr, sizes, q_smem, k_smem, q_full, k_full, k_empty, scale_log2, HAS_RANGE, STAGES, 3)),
            (_produce, ((q_desc, k_desc), range_ptr, sizes, q_smem, k_smem, q_full, k_full, k_empty, HAS_RANGE, STAGES)),
        ],
        [4, 4, 4, 1],
        [REGISTERS, REGISTERS, REGISTERS, 24],
    )
