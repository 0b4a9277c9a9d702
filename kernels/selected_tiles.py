"""Stage 2 on the GPU: from the sampled tile masses to columns, slashes and the block mask.

The programs of a head share its sampled rows. In every round each program sums what its rows would gain, all meet at one barrier,
and all make the same choice from the same totals. Everything that decides is an int32 sum or a single IEEE operation, so the
torch twin chooses the same, bit for bit; what the words and numbers mean stands there (`sampleattn/joint.py`, `pieces.py`).
"""

import functools

import torch
import triton
import triton.language as tl

from .primitives import INTERPRETED, on_device, real_keys

ROUNDS = 20
CELLS = 4096  # rows x pieces that a program holds at a time
EACH = 16  # of them to a thread
LARGEST = 8192  # key blocks: a million tokens


def selected_tiles(masses, rows, grid, config, segments):
    """The columns, slashes and tiles that are kept; the twin of `sampleattn.filtering.selected_tiles`.

    masses fp32 [B, H, R, key blocks], 0 above the diagonal; rows int64 [B or 1, R], -1 for none, R / `segments` for each segment;
    grid and config: read for their sizes and settings only.
    Returns bool block_mask [B, H, query blocks, key blocks], columns [B, H, segments, key blocks], slashes [B, H, segments,
    slashes]. Never waits for the GPU. Raises TypeError or ValueError before the launch.
    """
    _check(masses, rows, grid, segments)
    (batch, heads, sampled, key_blocks), device = masses.shape, masses.device
    groups, count = batch * heads * segments, sampled // segments
    pieces = max(32, triton.next_power_of_2(max(key_blocks, grid.slashes)))
    held = min(max(CELLS // pieces, 1), triton.next_power_of_2(max(count, 1)))
    warps = min(max(held * pieces // (32 * EACH), 4), 16)
    splits = 1 if INTERPRETED else max(min(16 // warps * _processors(device) // groups, triton.cdiv(count, held)), 1)
    board = 3 * (2 * pieces + 2) + 1 if splits > 1 else 0
    work = torch.zeros(groups, board + 2 * count, dtype=torch.int32, device=device)
    block_mask = torch.empty(batch, heads, grid.query_blocks, key_blocks, dtype=torch.bool, device=device)
    open_pieces = torch.empty(groups, 2 * pieces, dtype=torch.int32, device=device)
    columns = torch.empty(batch, heads, segments, key_blocks, dtype=torch.bool, device=device)
    slashes = torch.empty(batch, heads, segments, grid.slashes, dtype=torch.bool, device=device)
    window = grid.window_blocks(config.window_ratio) if config.selection == "window" else 0
    with on_device(masses):
        _select[(groups, splits)](
            masses.contiguous(), rows, grid.key_range, work, open_pieces, columns.view(torch.uint8),
            slashes.view(torch.uint8), *rows.expand(batch, -1).stride(), heads, segments, count, grid.nq, grid.nk,
            grid.query_blocks, key_blocks, grid.slashes, grid.shift, board, config.sink_blocks,
            max(config.local_blocks, window) + grid.crossed, config.last_blocks,
            config.cra, 1 - config.cra, float(config.sampling_margin), config.rows_at_target,
            float(config.density or 0), config.alpha_columns or config.cra, config.alpha_slashes or config.cra,
            1 << (29 - (count - 1).bit_length()),
            KIND="budget" if config.density else config.selection, HAS_RANGE=grid.key_range is not None, BLOCK=grid.block,
            PIECES=pieces, ROWS=held, SHARED=splits > 1, ROUNDS=ROUNDS, DIGIT=3 if pieces <= 1024 else 1,
            num_warps=warps, maxnreg=128, enable_fp_fusion=False, launch_cooperative_grid=splits > 1,
        )  # fmt: skip
        width = min(pieces, 1024)
        _tiles[(triton.cdiv(grid.query_blocks, 4096 // width), batch * heads)](
            columns.view(torch.uint8), slashes.view(torch.uint8), grid.key_range, block_mask.view(torch.uint8), heads, segments,
            grid.nq, grid.nk, grid.query_blocks, key_blocks, grid.slashes, grid.shift, config.last_blocks,
            HAS_RANGE=grid.key_range is not None, BLOCK=grid.block, ROWS=4096 // width, WIDTH=width,
        )  # fmt: skip
    return block_mask, columns, slashes


def _check(masses, rows, grid, segments):
    for name, x, dtype in (("masses", masses, torch.float32), ("rows", rows, torch.int64)):
        if not isinstance(x, torch.Tensor) or x.dtype != dtype:
            raise TypeError(f"{name} must be a {dtype} tensor, found {getattr(x, 'dtype', type(x).__name__)}")
    if masses.dim() != 4 or masses.shape[-1] != grid.key_blocks:
        raise ValueError(f"masses must be [B, H, R, {grid.key_blocks}], found {list(masses.shape)}")
    if rows.dim() != 2 or rows.shape[0] not in (1, masses.shape[0]) or rows.shape[1] != masses.shape[2] or not rows.numel():
        raise ValueError(f"rows must be [{masses.shape[0]} or 1, {masses.shape[2]}] and not empty, found {list(rows.shape)}")
    if rows.shape[1] % segments:
        raise ValueError(f"{rows.shape[1]} rows can't be shared out evenly among {segments} segments")
    if masses.device != rows.device:
        raise ValueError(f"masses and rows must be on one device, found {masses.device} and {rows.device}")
    if not (masses.is_cuda or INTERPRETED):
        raise ValueError(f"a Triton kernel needs CUDA tensors, found {masses.device}; backend='torch' runs there")
    if grid.key_blocks > LARGEST:
        raise ValueError(f"the kernel takes up to {LARGEST} key blocks, found {grid.key_blocks}; backend='torch' has no limit")


@functools.cache
def _processors(device):
    """How many multiprocessors there are. 16 warps of 128 registers to a thread surely run at once on each."""
    return torch.cuda.get_device_properties(device).multi_processor_count


@triton.jit
def _counted(masses, seen, one):
    """Masses in units of 1 / one, as in `pieces.Samples`."""
    return tl.fma(tl.load(masses, mask=seen, other=0.0), one.to(tl.float32), 0.5).to(tl.int32)


@triton.jit
def _worth(
    masses_ptr, rows_ptr, sr_r, list_ptr, listed, next_ptr, open_ptr, target, one, key_blocks, shift,
    KIND: tl.constexpr, BLOCK: tl.constexpr, PIECES: tl.constexpr, ROWS: tl.constexpr,
):  # fmt: skip
    """What each column and each slash [PIECES] would bring to the program's rows (a kept slash's is for the caller to drop), how
    much these lack, and how many lack any. The first `listed` rows of the list are looked at; those that lack any are the next.

    A tile of masses is [ROWS, PIECES / 32, 32]: a warp then holds whole rows, few shuffles add a row up, and a thread's
    addresses in it differ by constants."""
    splits = tl.num_programs(1)
    HIGH: tl.constexpr = PIECES // 32
    high, low = 32 * tl.arange(0, HIGH)[None, :, None], tl.arange(0, 32)[None, None, :]  # place: high + low
    ALL: tl.constexpr = KIND == "independent" or KIND == "window"
    to_columns, to_slashes = tl.zeros([ROWS, HIGH, 32], tl.int32), tl.zeros([ROWS, HIGH, 32], tl.int32)
    lacking, short = 0, 0
    for start in range(0, listed, ROWS):
        place = start + tl.arange(0, ROWS)
        entry = tl.load(list_ptr + place * splits, mask=place < listed, other=0)
        row = tl.load(rows_ptr + entry * sr_r, mask=place < listed, other=-1).to(tl.int32)
        real, slash_0 = (row >= 0)[:, None, None], (row // BLOCK + shift)[:, None, None]
        turned = slash_0 - (PIECES - 1)  # place of a slash + turned = its column, and the reverse
        masses = masses_ptr + (entry * key_blocks)[:, None, None] + low
        seen = high < tl.where(real, tl.minimum(slash_0 + 1, key_blocks), 0) - low
        by_column = _counted(masses + high, seen, one)
        if not ALL:
            by_column &= tl.load(open_ptr + tl.broadcast_to(low, [ROWS, 1, 32]) + high, mask=seen, other=0)
            by_column &= tl.load(open_ptr + PIECES + low - turned + high, mask=seen, other=0)
        seen = (high >= -turned - low) & (high < tl.where(real, key_blocks - turned, 0) - low)
        by_slash = _counted(masses + turned + high, seen, one)
        if not ALL:
            by_slash &= tl.load(open_ptr + low + turned + high, mask=seen, other=0)
        if KIND == "joint":
            need = tl.maximum(tl.sum(tl.sum(by_column, 1), 1) - one + target, 0)
            by_column = tl.minimum(by_column, need[:, None, None])
            by_slash = tl.minimum(by_slash, need[:, None, None])
            lacks = (need > 0).to(tl.int32)
            tl.store(next_ptr + (short + tl.cumsum(lacks, 0) - 1) * splits, entry, mask=need > 0)
            lacking += tl.sum(need, 0)
            short += tl.sum(lacks, 0)
        to_columns += by_column
        to_slashes += by_slash
    return tl.reshape(tl.sum(to_columns, 0), [PIECES]), tl.reshape(tl.sum(to_slashes, 0), [PIECES]), lacking, short


@triton.jit
def _hand_in(to_columns, to_slashes, lacking, short, board_ptr, round, PIECES: tl.constexpr):
    """Add a program's sums to its group's. The board has three places for sums, all 0 at first: while one is added up, the next
    is cleared, and the one before may still be read."""
    p, two = tl.arange(0, PIECES), tl.arange(0, 2)
    SIZE: tl.constexpr = 2 * PIECES + 2
    here, after = board_ptr + round % 3 * SIZE, board_ptr + (round + 1) % 3 * SIZE
    tl.atomic_add(here + p, to_columns, mask=to_columns > 0, sem="relaxed")
    tl.atomic_add(here + PIECES + p, to_slashes, mask=to_slashes > 0, sem="relaxed")
    tl.atomic_add(here + 2 * PIECES + two, tl.where(two == 0, lacking, short), sem="relaxed")
    if tl.program_id(1) == 0:
        tl.store(after + p, tl.zeros([PIECES], tl.int32))
        tl.store(after + PIECES + p, tl.zeros([PIECES], tl.int32))
        tl.store(after + 2 * PIECES + two, tl.zeros([2], tl.int32))
    tl.debug_barrier()
    tl.atomic_add(board_ptr + 3 * SIZE, 1, sem="release")


@triton.jit
def _totals(board_ptr, round, PIECES: tl.constexpr):
    """The sums over all programs of the group, which wait for each other here."""
    p = tl.arange(0, PIECES)
    SIZE: tl.constexpr = 2 * PIECES + 2
    here = board_ptr + round % 3 * SIZE
    while tl.atomic_add(board_ptr + 3 * SIZE, 0, sem="acquire") < (round + 1) * tl.num_programs(1):
        pass
    tl.debug_barrier()
    to_columns = tl.load(here + p, cache_modifier=".cg")
    to_slashes = tl.load(here + PIECES + p, cache_modifier=".cg")
    lacking = tl.load(here + 2 * PIECES, cache_modifier=".cg")
    short = tl.load(here + 2 * PIECES + 1, cache_modifier=".cg")
    return to_columns, to_slashes, lacking, short


@triton.jit
def _between(until, low, high, PIECES: tl.constexpr):
    """Differences of the running totals `until`: the sum over low..high, both included, 0 for an empty range."""
    before = tl.where(low > 0, tl.gather(until, tl.minimum(tl.maximum(low - 1, 0), PIECES - 1), 0), 0)
    upto = tl.where(high >= 0, tl.gather(until, tl.minimum(tl.maximum(high, 0), PIECES - 1), 0), 0)
    return tl.maximum(upto - before, 0)


@triton.jit
def _worth_per_tile(worth, price):
    ratio = tl.div_rn(worth.to(tl.float32), tl.maximum(price, 1).to(tl.float32))
    return tl.where(worth > 0, (ratio.to(tl.int32, bitcast=True) >> 18) - ((127 - 18) << 5), 0)


@triton.jit
def _best_first(order, amount, more_order, more_amount, limit, most, BITS: tl.constexpr, DIGIT: tl.constexpr):
    """Which of two lists' pieces are bought, highest order first (ties: the first list, then the second from its end), while
    those before them amount to less than `limit`, and none that would make it more than `most`. No sort: the order at which the
    limit is reached is searched, DIGIT of its BITS at a time."""
    reached = 0
    digits = tl.arange(0, 1 << DIGIT)
    for step in tl.static_range(BITS // DIGIT):
        trial = reached + (digits << (BITS - (step + 1) * DIGIT))
        above = tl.where(order[None, :] >= trial[:, None], amount[None, :], 0)
        above += tl.where(more_order[None, :] >= trial[:, None], more_amount[None, :], 0)
        reached = tl.max(tl.where((tl.sum(above, 1) >= limit) | (digits == 0), trial, 0), 0)
    above = tl.sum(tl.where(order > reached, amount, 0) + tl.where(more_order > reached, more_amount, 0), 0)
    tied, more_tied = (order == reached) & (reached > 0), (more_order == reached) & (reached > 0)
    ties = tl.where(tied, amount, 0)
    until = above + tl.cumsum(ties, 0)
    more_until = above + tl.sum(ties, 0) + tl.cumsum(tl.where(more_tied, more_amount, 0), 0, reverse=True)
    bought = (order > reached) | (tied & (until - amount < limit) & (until <= most))
    more_bought = (more_order > reached) | (more_tied & (more_until - more_amount < limit) & (more_until <= most))
    return bought.to(tl.int32), more_bought.to(tl.int32)


@triton.jit
def _share(total, share):
    """The least whole number that is `share` of the total or more."""
    return tl.ceil(total.to(tl.float32) * share).to(tl.int32)


@triton.jit(
    do_not_specialize=[
        "sr_b", "heads", "segments", "count", "Nq", "Nk", "query_blocks", "key_blocks", "slash_count", "shift", "board", "sink",
        "local", "last_blocks", "one",
    ],
    do_not_specialize_on_alignment=["open_ptr"],  # or its loads of 16 bytes would be everyone's layout
)  # fmt: skip
def _select(
    masses_ptr, rows_ptr, range_ptr, work_ptr, open_ptr, columns_ptr, slashes_ptr, sr_b, sr_r, heads, segments, count,
    Nq, Nk, query_blocks, key_blocks, slash_count, shift, board, sink, local, last_blocks,
    cra, rest, margin, rows_at_target, density, alpha_columns, alpha_slashes, one,
    KIND: tl.constexpr, HAS_RANGE: tl.constexpr, BLOCK: tl.constexpr, PIECES: tl.constexpr, ROWS: tl.constexpr,
    SHARED: tl.constexpr, ROUNDS: tl.constexpr, DIGIT: tl.constexpr,
):  # fmt: skip
    """One program of a group (a segment of a head of a batch row). Slashes stand in falling order, PIECES - 1 first, so that both
    the columns' and the slashes' places rise along a row of masses."""
    group, split = tl.program_id(0), tl.program_id(1)
    segment, head = group % segments, group // segments
    lo, hi = real_keys(range_ptr, head // heads, Nk, HAS_RANGE)
    p = tl.arange(0, PIECES)
    s = PIECES - 1 - p
    rows_ptr += (head // heads).to(tl.int64) * sr_b + segment * count * sr_r
    masses_ptr += group.to(tl.int64) * count * key_blocks
    columns_ptr += group.to(tl.int64) * key_blocks
    slashes_ptr += group.to(tl.int64) * slash_count
    work_ptr += group.to(tl.int64) * (board + 2 * count)
    open_ptr += group.to(tl.int64) * 2 * PIECES

    # The real key blocks, this segment's query blocks, the real ones of them, and those that are not always kept.
    lowest, highest = lo // BLOCK, tl.where(hi > lo, (hi - 1) // BLOCK, -1)
    begin, end = tl.cdiv(segment * query_blocks, segments), tl.cdiv((segment + 1) * query_blocks, segments) - 1
    final = tl.maximum(hi - 1 - (Nk - Nq), 0) // BLOCK
    first, last = tl.maximum(begin, tl.maximum(lo - (Nk - Nq), 0) // BLOCK), tl.minimum(end, final)
    last_open = tl.minimum(last, final - last_blocks)

    columns = ((p >= lowest) & (p < lowest + sink) & (p < key_blocks)).to(tl.int32)
    slashes = ((s < local) & (s < slash_count)).to(tl.int32)
    splits = tl.num_programs(1)
    list_ptr, listed = work_ptr + board + split, tl.cdiv(count - split, splits)
    real_rows = 0
    for start in range(0, count, 1024):
        entries = start + tl.arange(0, 1024)
        row = tl.load(rows_ptr + entries * sr_r, mask=entries < count, other=-1)
        real_rows += tl.sum((row >= 0).to(tl.int32), 0)
        tl.store(work_ptr + board + entries, entries, mask=(entries < count) & (entries % splits == split))
    if KIND == "joint" or KIND == "budget":
        real = (p >= lowest) & (p <= highest)
        low = tl.maximum(first + shift - p, 0)  # the slashes of a column's tiles
        high = tl.where(real, last_open + shift - p, -1)
        lengths = tl.maximum(high + 1 - low, 0)
        from_column, to_column = tl.maximum(first + shift - s, lowest), tl.minimum(last_open + shift - s, highest)
        if KIND == "budget":
            all_tiles = tl.sum(tl.maximum(tl.where(real, last + shift - p, -1) + 1 - low, 0), 0)
            budget = (all_tiles.to(tl.float32) * density).to(tl.int32) - (all_tiles - tl.sum(lengths, 0))
            target, enough = one, 0.0
        else:
            off = tl.minimum(tl.div_rn(margin, tl.sqrt_rn(tl.maximum(real_rows, 1).to(tl.float32))), 1.0)
            target = tl.minimum(((cra + rest * off) * one + 0.5).to(tl.int32), one)
            enough = real_rows.to(tl.float32) * rows_at_target
        round, going, at = 0, True, 0
        while going:
            tl.store(open_ptr + p, columns - 1)  # -1 is open, 0 kept; every program of the group writes the same
            tl.store(open_ptr + PIECES + p, slashes - 1)
            tl.debug_barrier()
            to_columns, to_slashes, lacking, short = _worth(
                masses_ptr, rows_ptr, sr_r, list_ptr + at, listed, list_ptr + count - at, open_ptr, target,
                one, key_blocks, shift, KIND, BLOCK, PIECES, ROWS,
            )  # fmt: skip
            if KIND == "joint":
                listed, at = short, count - at
            to_slashes = tl.where(slashes == 0, to_slashes, 0)
            if SHARED:
                _hand_in(to_columns, to_slashes, lacking, short, work_ptr, round, PIECES)
            clear = tl.cumsum(((s < slash_count) & (slashes == 0)).to(tl.int32), 0)
            column_price = _between(clear, PIECES - 1 - high, PIECES - 1 - low, PIECES)
            clear = tl.cumsum(((p < key_blocks) & (columns == 0)).to(tl.int32), 0)
            slash_price = _between(clear, from_column, to_column, PIECES)
            if KIND == "budget":
                left = budget - tl.sum(columns * lengths + slashes * slash_price, 0)
            if SHARED:
                to_columns, to_slashes, lacking, short = _totals(work_ptr, round, PIECES)
            if KIND == "joint":
                limit = tl.where((real_rows - short).to(tl.float32) < enough, (lacking + 1) // 2, 0)
            else:
                limit = tl.maximum(left + 1, 0) // 2
            round += 1
            going = False
            if limit > 0:
                column_order = _worth_per_tile(to_columns, column_price)
                slash_order = _worth_per_tile(to_slashes, slash_price)
                if KIND == "joint":
                    more_columns, more_slashes = _best_first(
                        column_order, to_columns, slash_order, to_slashes, limit, 2**31 - 1, 12, DIGIT
                    )  # fmt: skip
                else:
                    column_order = tl.where(column_price <= left, column_order, 0)
                    slash_order = tl.where(slash_price <= left, slash_order, 0)
                    more_columns, more_slashes = _best_first(
                        column_order, column_price, slash_order, slash_price, limit, left, 12, DIGIT
                    )  # fmt: skip
                columns |= more_columns
                slashes |= more_slashes
                going = (tl.max(more_columns | more_slashes, 0) > 0) & (round < ROUNDS)
    else:
        tl.debug_barrier()
        to_columns, to_slashes, lacking, short = _worth(
            masses_ptr, rows_ptr, sr_r, list_ptr, listed, list_ptr, open_ptr, one, one, key_blocks, shift,
            KIND, BLOCK, PIECES, ROWS,
        )  # fmt: skip
        if SHARED:
            _hand_in(to_columns, to_slashes, lacking, short, work_ptr, 0, PIECES)
            to_columns, to_slashes, lacking, short = _totals(work_ptr, 0, PIECES)
        none = tl.zeros([PIECES], tl.int32)
        limit = _share(tl.sum(to_columns, 0), alpha_columns)
        columns |= _best_first(to_columns, to_columns, none, none, limit, 2**31 - 1, 30, DIGIT)[0]
        if KIND == "independent":
            limit = _share(tl.sum(to_slashes, 0), alpha_slashes)
            slashes |= _best_first(none, none, to_slashes, to_slashes, limit, 2**31 - 1, 30, DIGIT)[1]
    if split == 0:
        tl.store(columns_ptr + p, columns.to(tl.uint8), mask=p < key_blocks)
        tl.store(slashes_ptr + s, slashes.to(tl.uint8), mask=s < slash_count)


@triton.jit(do_not_specialize=["heads", "segments", "Nq", "Nk", "query_blocks", "slash_count", "shift", "last_blocks"])
def _tiles(
    columns_ptr, slashes_ptr, range_ptr, mask_ptr, heads, segments, Nq, Nk, query_blocks, key_blocks, slash_count, shift,
    last_blocks,
    HAS_RANGE: tl.constexpr, BLOCK: tl.constexpr, ROWS: tl.constexpr, WIDTH: tl.constexpr,
):  # fmt: skip
    """The causal tiles of ROWS query blocks of one head in a kept column or slash, or in the last real query blocks."""
    i, head = tl.program_id(0) * ROWS + tl.arange(0, ROWS), tl.program_id(1)
    lo, hi = real_keys(range_ptr, head // heads, Nk, HAS_RANGE)
    first, last = tl.maximum(lo - (Nk - Nq), 0) // BLOCK, tl.maximum(hi - 1 - (Nk - Nq), 0) // BLOCK
    real = (i >= first) & (i <= last) & (hi > lo) & (hi > Nk - Nq)
    group = head.to(tl.int64) * segments + i * segments // query_blocks
    columns_ptr += (group * key_blocks)[:, None]
    slashes_ptr += (group * slash_count)[:, None]
    mask_ptr += (head.to(tl.int64) * query_blocks + i)[:, None] * key_blocks
    for start in range(0, key_blocks, WIDTH):
        j = start + tl.arange(0, WIDTH)
        slash = (i + shift)[:, None] - j[None, :]
        inside = (i < query_blocks)[:, None] & (j < key_blocks)[None, :]
        causal = inside & real[:, None] & (slash >= 0) & ((j >= lo // BLOCK) & (j * BLOCK < hi))[None, :]
        column = tl.load(columns_ptr + j[None, :], mask=causal, other=0)
        kept = (column | tl.load(slashes_ptr + slash, mask=causal, other=0)) != 0
        kept = causal & (kept | (i > last - last_blocks)[:, None])
        tl.store(mask_ptr + j[None, :], kept.to(tl.uint8), mask=inside)
