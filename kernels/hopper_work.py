"""What the sparse forward for Hopper computes next: query blocks, their lists of tiles, where each step begins, and how the
producer tells the warpgroups. Of lists as `block_index_lists` makes them; DENSE: of all keys, without lists."""

from triton.experimental import gluon
from triton.experimental.gluon import language as gl
from triton.experimental.gluon.language.nvidia.hopper import mbarrier

BLOCK = gl.constexpr(128)  # rows and keys of a tile


@gluon.jit
def query_block_of(index, sizes, DENSE: gl.constexpr):
    """Query block and row of heads of a piece of work. Of lists, the last query blocks of all heads, kept in full, come first;
    then head by head, from the last block down, so that programs that run together read the same keys. DENSE: as many heads side
    by side as leave their keys in the cache, from the last block down."""
    all_heads, heads, group, Nq, Nk, query_blocks, key_blocks, together = sizes
    if DENSE:
        part = index // (together * query_blocks)
        index -= part * together * query_blocks
        width = gl.maximum(gl.minimum(all_heads - part * together, together), 1)
        return query_blocks - 1 - index // width, part * together + index % width
    else:
        rest = query_blocks - 1
        later = gl.maximum(index - all_heads, 0)
        first = index < all_heads
        return gl.where(first, rest, rest - 1 - later % gl.maximum(rest, 1)), gl.where(first, index, later // gl.maximum(rest, 1))


@gluon.jit
def next_work(lists, sizes, works, DENSE: gl.constexpr):
    """The program's next piece of work, or -1. DENSE: every second time the programs take theirs in reverse order, so that all
    have about as much to do. Else the first ones that are left: the last program to find none sets the queue back."""
    ids_ptr, spans_ptr, range_ptr = lists
    total, programs = sizes[0] * sizes[5], gl.num_programs(0)
    if DENSE:
        place = gl.where(works & 1 == 1, programs - 1 - gl.program_id(0), gl.program_id(0))
        index = works * programs + place
    else:
        index = gl.atomic_add(spans_ptr + 3, 1)
        if index == total + programs - 1:
            gl.store(spans_ptr + 3, 0)
    return gl.where(index < total, index, -1)


@gluon.jit
def first_key(list_ptr, step, full_begin, full_end, masked, KEYS: gl.constexpr, DENSE: gl.constexpr):
    """The first key of a step: the tiles that need a mask come first, then the others, each in BLOCK // KEYS steps."""
    STEPS: gl.constexpr = BLOCK // KEYS
    tile = step // STEPS
    outside = gl.where(tile < full_begin, tile, tile + full_end - full_begin)
    tile = gl.where(tile < masked, outside, full_begin + tile - masked)
    if not DENSE:
        tile = gl.load(list_ptr + tile).to(gl.int32)
    return tile * BLOCK + step % STEPS * KEYS


@gluon.jit
def list_of(lists, sizes, block, row, DENSE: gl.constexpr):
    ids_ptr, spans_ptr, range_ptr = lists
    if not DENSE:
        ids_ptr += (row.to(gl.int64) * sizes[5] + block) * sizes[6]
    return ids_ptr


@gluon.jit
def spans_of(lists, sizes, block, row, DENSE: gl.constexpr):
    """Of a query block's tiles: the first and one-past-last that need no mask, all of them, and those that need one."""
    ids_ptr, spans_ptr, range_ptr = lists
    all_heads, heads, group, Nq, Nk, query_blocks, key_blocks, together = sizes
    if DENSE:
        first = block * BLOCK + Nk - Nq
        full_begin, full_end = first * 0, (first + 1) // BLOCK
        count = gl.cdiv(gl.minimum(first + BLOCK, Nk), BLOCK)
    else:
        place = (row.to(gl.int64) * query_blocks + block) * 4
        full_begin, full_end = gl.load(spans_ptr + place), gl.load(spans_ptr + place + 1)
        count = gl.load(spans_ptr + place + 2)
    return full_begin, full_end, count, count - (full_end - full_begin)


@gluon.jit
def masked_first_key(lists, sizes, block, row, step, KEYS: gl.constexpr, DENSE: gl.constexpr):
    full_begin, full_end, count, masked = spans_of(lists, sizes, block, row, DENSE)
    return first_key(list_of(lists, sizes, block, row, DENSE), step, full_begin, full_end, masked, KEYS, DENSE)


@gluon.jit
def tell(work_smem, index, count, masked, start):
    """What the warpgroups need to know of a piece of work, through shared memory."""
    layout: gl.constexpr = gl.BlockedLayout([1], [32], [1], [0])
    work_smem.index(0).store(gl.full([1], index, gl.int32, layout))
    work_smem.index(1).store(gl.full([1], count, gl.int32, layout))
    work_smem.index(2).store(gl.full([1], masked, gl.int32, layout))
    work_smem.index(3).store(gl.full([1], start, gl.int32, layout))


@gluon.jit
def hear(work_smem, work_full, work_empty, works):
    layout: gl.constexpr = gl.BlockedLayout([1], [32], [4], [0])
    mbarrier.wait(work_full, works & 1)
    index, count = gl.max(work_smem.index(0).load(layout), 0), gl.max(work_smem.index(1).load(layout), 0)
    masked, start = gl.max(work_smem.index(2).load(layout), 0), gl.max(work_smem.index(3).load(layout), 0)
    mbarrier.arrive(work_empty, count=1)
    return index, count, masked, start
