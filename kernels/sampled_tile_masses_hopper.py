"""Stage 1's pass over QK for Hopper in Gluon: the pipeline of `row_logsumexp_hopper` with gathered rows and a result per tile."""

from triton.experimental import gluon
from triton.experimental.gluon import language as gl
from triton.experimental.gluon.language.nvidia.hopper import fence_async_shared, mbarrier

from .hopper import all_warps, multiprocessors, next_scores, real_keys, send_keys
from .launch import Launch
from .primitives import LOG2_E
from .sizes import cdiv, padded

STAGES = {64: 8, 128: 4}  # padded head_dim -> tiles of keys in flight
BLOCK = gl.constexpr(128)  # keys of a tile
LANES = gl.constexpr(64)  # rows of a warpgroup, all heads together
GROUPS = gl.constexpr(4)  # warpgroups that multiply
CHUNK = gl.constexpr(16)  # row blocks among which programs divide the tiles
REGISTERS = gl.constexpr(112)  # of a thread that multiplies; at the start every thread has 96


def tile_logsumexp_hopper(q, k, count, steps, scale, has_range, shared):
    """The launch for layouts of q and k that `hopper.readable` takes; it is given q, k, rows, key_range and out [B, Hq, key
    blocks, R]. count, steps: of the rows how many, and their strides; `shared` heads to a program.

    A row block is what a program's warpgroups hold at once. The tiles that the row blocks of a chunk see, one after the other,
    are cut into equal shares, one for each program: all end at the same time, whatever the rows.
    """
    (batch, heads, queries, head_dim), (kv_heads, keys) = q.shape, k.shape[1:3]
    chunks = cdiv(count, LANES.value // shared * GROUPS.value * CHUNK.value)
    parts = batch * heads // shared * chunks
    places = multiprocessors(q.device)
    # with few parts one share to a multiprocessor; with many, rounding would leave some idle
    shares = max((1 if 4 * parts <= places else 4) * places // parts, 1)
    return Launch(
        _tile_logsumexp, (shares, batch * heads // shared, chunks),
        (*q.strides[:3], *steps, heads, heads // kv_heads, queries, keys, count, cdiv(keys, BLOCK.value), scale * LOG2_E),
        {1: BLOCK.value},
        HAS_RANGE=has_range, D=head_dim, HEADS=shared, STAGES=STAGES[padded(head_dim)], num_warps=4, maxnreg=96,
    )  # fmt: skip


@gluon.jit
def _queries(rows_ptr, sr_r, entries, count):
    """The queries of some of the sampled rows; -1: none."""
    return gl.load(rows_ptr + entries * sr_r, mask=entries < count, other=-1).to(gl.int32)


@gluon.jit
def _row_block(nth):
    """The row blocks of a chunk are spread over all rows, so that chunks are about equal."""
    return nth * gl.num_programs(2) + gl.program_id(2)


@gluon.jit
def _tile_ends(rows_ptr, sr_r, count, offset, hi, ends_smem, fulls_smem, HEADS: gl.constexpr):
    """Write for each warpgroup of each row block how many tiles its last row sees, and how many all of its rows see whole.
    Returns the number of tiles that the chunk's row blocks see."""
    ROWS: gl.constexpr = LANES // HEADS
    ACROSS: gl.constexpr = min(ROWS, 32)
    layout: gl.constexpr = gl.BlockedLayout([1, 1], [32 // ACROSS, ACROSS], [4, 1], [1, 0])
    index = gl.arange(0, CHUNK * GROUPS, layout=gl.SliceLayout(1, layout))
    first = (_row_block(index // GROUPS) * GROUPS + index % GROUPS) * ROWS
    queries = _queries(rows_ptr, sr_r, first[:, None] + gl.arange(0, ROWS, layout=gl.SliceLayout(0, layout))[None, :], count)
    latest = gl.max(gl.where(queries >= 0, queries + offset, -1), 1)
    earliest = gl.min(gl.where(queries >= 0, queries + offset, hi), 1)
    ends = gl.cdiv(gl.maximum(gl.minimum(hi, latest + 1), 0), BLOCK)
    line: gl.constexpr = gl.SwizzledSharedLayout(1, 1, 1, [0])
    ends_smem._reinterpret(gl.int32, [CHUNK * GROUPS], line).store(ends)
    fulls_smem._reinterpret(gl.int32, [CHUNK * GROUPS], line).store(gl.minimum(hi, earliest + 1) // BLOCK)
    return gl.sum(gl.max(gl.reshape(ends, [CHUNK, GROUPS]), 1), 0)


@gluon.jit
def _of_groups(smem, nth, WARPS: gl.constexpr):
    """What `_tile_ends` wrote for the four warpgroups of a row block."""
    return smem.index(nth).load(gl.BlockedLayout([GROUPS], [32], [WARPS], [0]))


@gluon.jit
def _only(values, WHO: gl.constexpr):
    return gl.sum(gl.where(gl.arange(0, GROUPS, layout=values.type.layout) == WHO, values, 0), 0)


@gluon.jit
def _share(total):
    """The program's tiles of the chunk's: from, to."""
    return total * gl.program_id(0) // gl.num_programs(0), total * (gl.program_id(0) + 1) // gl.num_programs(0)


@gluon.jit
def _produce(k_desc, batch, kv_head, total, ends_smem, ring, STAGES: gl.constexpr):
    k_smem, k_full, k_empty = ring
    first, last = _share(total)
    before = 0
    for nth in range(0, CHUNK):
        length = gl.max(_of_groups(ends_smem, nth, 1), 0)
        for tile in range(gl.maximum(first - before, 0), gl.minimum(last - before, length)):
            send_keys(k_desc, batch, kv_head, tile * BLOCK, before + tile - first, k_smem, k_full, k_empty, STAGES)
        before += length


@gluon.jit
def _log2(x):
    """The hardware's logarithm, within 2**-22; Triton's own takes some 25 instructions."""
    return gl.inline_asm_elementwise("lg2.approx.ftz.f32 $0, $1;", "=f,f", [x], dtype=gl.float32, is_pure=True, pack=1)


@gluon.jit
def _write_tiles(
    begin, end, ahead, q, positions, reals, out_ptrs, valid, count, scale_log2, ring,
    MASKED: gl.constexpr, STAGES: gl.constexpr,
):  # fmt: skip
    """Each row's logsumexp in base 2 over the tiles begin .. end - 1; tile t is step t + ahead of the program."""
    lo, hi = reals
    k_smem, k_full, k_empty = ring
    layout: gl.constexpr = positions.type.layout.parent
    zero = gl.zeros([LANES, BLOCK], gl.float32, layout)
    for tile in range(begin, end):
        scores = next_scores(q, zero, tile + ahead, k_smem, k_full, k_empty, STAGES)
        if MASKED:
            keys = tile * BLOCK + gl.arange(0, BLOCK, layout=gl.SliceLayout(0, layout))
            visible = (keys[None, :] <= positions[:, None]) & (keys[None, :] >= lo) & (keys[None, :] < hi)
            scores = gl.where(visible, scores, float("-inf"))
        top = gl.max(scores, 1) * scale_log2
        base = gl.where(top == float("-inf"), 0.0, top) if MASKED else top
        total = gl.sum(gl.exp2(scores * scale_log2 - base[:, None]), 1)
        gl.store(out_ptrs + tile.to(gl.int64) * count, base + _log2(total), mask=valid)


@gluon.jit
def _consume(given, D: gl.constexpr, HEADS: gl.constexpr, STAGES: gl.constexpr, WHO: gl.constexpr):
    """The program's share for one warpgroup's rows: ROWS of each row block, of HEADS heads."""
    tensors, strides, sizes, reals, total, spans, q_smem, ring, scale_log2 = given
    ends_smem, fulls_smem = spans
    k_smem, k_full, k_empty = ring
    q_ptr, rows_ptr, out_ptr = tensors
    sq_h, sq_n, sr_r = strides
    Nq, offset, count, tiles = sizes
    ROWS: gl.constexpr = LANES // HEADS
    BLOCK_D: gl.constexpr = q_smem.shape[2]
    layout: gl.constexpr = gl.NVMMADistributedLayout([3, 0], [4, 1], [16, BLOCK, 16])
    wide: gl.constexpr = gl.BlockedLayout([1, 8], [256 // BLOCK_D, BLOCK_D // 8], [4, 1], [1, 0])
    dims = gl.arange(0, BLOCK_D, layout=gl.SliceLayout(0, wide))
    q = q_smem.index(WHO)
    first, last = _share(total)
    before = 0
    for nth in range(0, CHUNK):
        ends = _of_groups(ends_smem, nth, 4)
        length = gl.max(ends, 0)
        begin, end = gl.maximum(first - before, 0), gl.minimum(last - before, length)
        if begin < end:
            first_row = (_row_block(nth) * GROUPS + WHO) * ROWS
            lanes = gl.arange(0, LANES, layout=gl.SliceLayout(1, wide))
            queries = _queries(rows_ptr, sr_r, first_row + lanes % ROWS, count)
            q_ptrs = q_ptr + (lanes // ROWS).to(gl.int64) * sq_h + queries.to(gl.int64) * sq_n
            inside = ((queries >= 0) & (queries < Nq))[:, None] & (dims < D)[None, :]
            q_ptrs = gl.multiple_of(q_ptrs[:, None] + dims[None, :], [16, 16])  # bytes: so that loads are 16 wide
            q.store(gl.load(q_ptrs, mask=inside, other=0.0))
            fence_async_shared()

            lanes = gl.arange(0, LANES, layout=gl.SliceLayout(1, layout))
            entries = first_row + lanes % ROWS
            queries = _queries(rows_ptr, sr_r, entries, count)
            positions = gl.where(queries >= 0, queries + offset, -1)
            out_ptrs = out_ptr + (lanes // ROWS).to(gl.int64) * tiles * count + entries
            valid = entries < count
            seen = gl.maximum(gl.minimum(_only(ends, WHO), end), begin)
            full_begin = gl.minimum(gl.maximum(gl.cdiv(reals[0], BLOCK), begin), seen)
            full_end = gl.maximum(gl.minimum(_only(_of_groups(fulls_smem, nth, 4), WHO), seen), full_begin)
            ahead = before - first  # from a tile to the program's step
            _write_tiles(begin, full_begin, ahead, q, positions, reals, out_ptrs, valid, count, scale_log2, ring, True, STAGES)
            _write_tiles(
                full_begin, full_end, ahead, q, positions, reals, out_ptrs, valid, count, scale_log2, ring, False, STAGES
            )
            _write_tiles(full_end, seen, ahead, q, positions, reals, out_ptrs, valid, count, scale_log2, ring, True, STAGES)
            for step in range(seen + ahead, end + ahead):  # tiles that only other warpgroups see
                mbarrier.wait(k_full.index(step % STAGES), step // STAGES & 1)
                mbarrier.arrive(k_empty.index(step % STAGES), count=1)
        before += length


@gluon.jit(do_not_specialize=["heads", "group", "Nq", "Nk", "count", "tiles"])
def _tile_logsumexp(
    q_ptr, k_desc, rows_ptr, range_ptr, out_ptr, sq_b, sq_h, sq_n, sr_b, sr_r,
    heads, group, Nq, Nk, count, tiles, scale_log2,
    HAS_RANGE: gl.constexpr, D: gl.constexpr, HEADS: gl.constexpr, STAGES: gl.constexpr,
):  # fmt: skip
    first_head = gl.program_id(1) * HEADS
    batch, head = first_head // heads, first_head % heads
    reals = real_keys(range_ptr, batch, Nk, HAS_RANGE)
    q_ptr += batch.to(gl.int64) * sq_b + head.to(gl.int64) * sq_h
    rows_ptr += batch.to(gl.int64) * sr_b
    out_ptr += first_head.to(gl.int64) * tiles * count

    BLOCK_D: gl.constexpr = k_desc.block_type.shape[3]
    dtype: gl.constexpr = k_desc.dtype
    layout: gl.constexpr = gl.NVMMASharedLayout.get_default_for([BLOCK, BLOCK_D], dtype)
    q_smem = gl.allocate_shared_memory(dtype, [GROUPS, LANES, BLOCK_D], layout)
    k_smem = gl.allocate_shared_memory(dtype, [STAGES, BLOCK, BLOCK_D], layout)
    k_full = gl.allocate_shared_memory(gl.int64, [STAGES, 1], mbarrier.MBarrierLayout())
    k_empty = gl.allocate_shared_memory(gl.int64, [STAGES, 1], mbarrier.MBarrierLayout())
    for i in gl.static_range(STAGES):
        mbarrier.init(k_full.index(i), count=1)
        mbarrier.init(k_empty.index(i), count=GROUPS)
    plain: gl.constexpr = gl.SwizzledSharedLayout(1, 1, 1, [0])
    ends = gl.allocate_shared_memory(gl.int32, [CHUNK, GROUPS], plain)
    fulls = gl.allocate_shared_memory(gl.int32, [CHUNK, GROUPS], plain)
    total = _tile_ends(rows_ptr, sr_r, count, Nk - Nq, reals[1], ends, fulls, HEADS)
    all_warps()  # Triton 3.6 writes what it hands to the other warps over the sum that a slower warp still reads
    ring = (k_smem, k_full, k_empty)
    given = (
        (q_ptr, rows_ptr, out_ptr), (sq_h, sq_n, sr_r), (Nq, Nk - Nq, count, tiles), reals, total, (ends, fulls), q_smem, ring,
        scale_log2,
    )  # fmt: skip
    gl.warp_specialize(
        [
            (_consume, (given, D, HEADS, STAGES, 0)),
            (_consume, (given, D, HEADS, STAGES, 1)),
            (_consume, (given, D, HEADS, STAGES, 2)),
            (_consume, (given, D, HEADS, STAGES, 3)),
            (_produce, (k_desc, batch, head // group, total, ends, ring, STAGES)),
        ],
        [4, 4, 4, 1],
        [REGISTERS, REGISTERS, REGISTERS, 24],
    )
