"""Stage 2 on the GPU, in one launch: from the sampled tile masses to columns, slashes and the block mask.

The programs of a group (a segment of a head of a batch row) share its sampled rows. In every round each program sums what its
rows would gain, all add their sums up on a board, and all make the same choice from the same totals. Everything that decides is
a sum of integers or a single IEEE operation, so the torch twin chooses the same, bit for bit; what the words and numbers mean
stands there (`sampleattn/joint.py`, `pieces.py`).

A round is all latency: masses are read from the L1 cache, which nothing here flushes (acquiring loads would); a word of the board
tells by itself when it is complete, so that there is neither flag nor fence; no barrier stands in the loop over rows.

Pieces are numbered columns first, then slashes from the last to the diagonal, so that both rise along a row of masses.
"""

import functools

import torch
import triton
import triton.language as tl

from .launch import INTERPRETED, Launch, layout, plan
from .primitives import real_keys
from .sizes import cdiv, power_of_2

ROUNDS = 20
LEAST_SHARE, MOST_SHARE = tl.constexpr(0.4), tl.constexpr(0.8)  # of what is missing, that a round buys
HALVED_ROUNDS, CRUMB_BITS = tl.constexpr(2), tl.constexpr(10)  # of a budget, as in `joint.py`
LARGEST = 8192  # key blocks: a million tokens
LEAST_ROWS = 16  # of a program
ORDER_BITS = tl.constexpr(11)  # of `pieces.worth_per_tile`
MASS_BITS = tl.constexpr(30)  # of the masses of a group
ARRIVED = tl.constexpr(1 << 50)  # a word of the board is a sum and, in units of this, how many programs have added to it
LACK = tl.constexpr(1 << 20)  # a word about rows is how many lack any mass and, in units of this, how much they lack


def selected_tiles(masses, rows, grid, config, segments):
    """The columns, slashes and tiles that are kept; the twin of `sampleattn.filtering.selected_tiles`.

    masses fp32 [B, H, R, key blocks], 0 above the diagonal; rows int64 [B or 1, R], -1 for none, R / `segments` for each segment;
    grid and config: read for their sizes and settings only.
    Returns bool block_mask [B, H, query blocks, key blocks], columns [B, H, segments, key blocks], slashes [B, H, segments,
    slashes]. Never waits for the GPU. Raises TypeError or ValueError before the launch.
    """
    for name, x, dtype in (("masses", masses, torch.float32), ("rows", rows, torch.int64)):
        if not isinstance(x, torch.Tensor) or x.dtype != dtype:
            raise TypeError(f"{name} must be a {dtype} tensor, found {getattr(x, 'dtype', type(x).__name__)}")
    sizes = grid.nq, grid.nk, grid.block, grid.slashes, grid.crossed, grid.window_blocks(config.window_ratio)
    choose, zeroed, worked, kept, of_columns, of_slashes = _plan(
        layout(masses), layout(rows), sizes, grid.key_range is not None, config, segments
    )
    work = (torch.zeros if zeroed else torch.empty)(worked, dtype=torch.int32, device=masses.device)
    block_mask = torch.empty(kept, dtype=torch.bool, device=masses.device)
    columns = torch.empty(of_columns, dtype=torch.bool, device=masses.device)
    slashes = torch.empty(of_slashes, dtype=torch.bool, device=masses.device)
    choose(masses.contiguous(), rows, grid.key_range, work, block_mask, columns, slashes)
    return block_mask, columns, slashes


@plan
def _plan(masses, rows, sizes, has_range, config, segments):
    """The launch, whether its workspace must be zero, and the shapes of the workspace, the mask, the columns and the slashes."""
    nq, nk, block, slashes, crossed, window_blocks = sizes
    query_blocks, key_blocks = cdiv(nq, block), cdiv(nk, block)
    _check(masses, rows, key_blocks, segments)
    batch, heads, sampled, _ = masses.shape
    groups, count = batch * heads * segments, sampled // segments
    places = max(64, power_of_2(max(key_blocks, slashes)))
    splits = 1 if INTERPRETED else max(min(_processors(masses.device) // groups, cdiv(count, LEAST_ROWS)), 1)
    board = 2 * ROUNDS * (2 * places + 1) if splits > 1 else 0
    kind, window, alpha_slashes = config.selection, 0, config.alpha_slashes or config.cra
    if kind == "window":  # `independent` without slashes
        kind, window, alpha_slashes = "independent", window_blocks, 0.0
    shares = (
        config.cra, 1 - config.cra, config.sampling_margin, config.rows_at_target, config.density or 0,
        config.alpha_columns or config.cra, alpha_slashes,
    )  # fmt: skip
    choose = Launch(
        _select, (groups, splits),
        (rows.strides[0] if rows.shape[0] > 1 else 0, rows.strides[1], heads, segments, count, nq, nk, board,
         config.sink_blocks, max(config.local_blocks, window) + crossed, config.last_blocks,
         *map(float, shares), 1 << (29 - (count - 1).bit_length())),
        KIND="budget" if config.density else kind, HAS_RANGE=has_range, BLOCK=block, PLACES=places,
        ROWS=max(4096 // places, min(8, 8192 // places)), SHARED=splits > 1, ROUNDS=ROUNDS, DIGIT=4 if places <= 1024 else 1,
        num_warps=8 if places <= 1024 else 16, enable_fp_fusion=False, launch_cooperative_grid=splits > 1,
    )  # fmt: skip
    shapes = (batch, heads, query_blocks, key_blocks), (batch, heads, segments, key_blocks)
    return choose, splits > 1, (groups, board + 2 * places * splits), *shapes, (batch, heads, segments, slashes)


def _check(masses, rows, key_blocks, segments):
    if len(masses.shape) != 4 or masses.shape[-1] != key_blocks:
        raise ValueError(f"masses must be [B, H, R, {key_blocks}], found {list(masses.shape)}")
    of_rows = rows.shape
    if len(of_rows) != 2 or of_rows[0] not in (1, masses.shape[0]) or of_rows[1] != masses.shape[2] or not of_rows.numel():
        raise ValueError(f"rows must be [{masses.shape[0]} or 1, {masses.shape[2]}] and not empty, found {list(of_rows)}")
    if of_rows[1] % segments:
        raise ValueError(f"{of_rows[1]} rows can't be shared out evenly among {segments} segments")
    if masses.device != rows.device:
        raise ValueError(f"masses and rows must be on one device, found {masses.device} and {rows.device}")
    if not (masses.device.type == "cuda" or INTERPRETED):
        raise ValueError(f"a Triton kernel needs CUDA tensors, found {masses.device}; backend='torch' runs there")
    if key_blocks > LARGEST:
        raise ValueError(f"the kernel takes up to {LARGEST} key blocks, found {key_blocks}; backend='torch' has no limit")


@functools.cache
def _processors(device):
    """How many programs surely run at once: one on each multiprocessor."""
    return torch.cuda.get_device_properties(device).multi_processor_count


@triton.jit
def _counted(masses, seen, one):
    """Masses in units of 1 / one, as in `pieces.Samples`."""
    return tl.fma(tl.load(masses, mask=seen, other=0.0), one.to(tl.float32), 0.5).to(tl.int32)


@triton.jit
def _tile_worth(
    masses_ptr, rows_ptr, sr_r, open_ptr, start, count, target, one, key_blocks, shift,
    KIND: tl.constexpr, BLOCK: tl.constexpr, PLACES: tl.constexpr, SEEN: tl.constexpr, ROWS: tl.constexpr,
):  # fmt: skip
    """What each piece would bring to each of ROWS rows that see at most SEEN key blocks, and a word for each row about what it
    lacks: the first SEEN columns and the slashes SEEN - 1 .. 0, [ROWS, SEEN / 32, 32] each.

    In this shape a warp holds whole rows, few shuffles add a row up, and a thread's addresses in it differ by constants. Loads
    must be of single numbers for that, which the compiler chooses where it knows no better alignment."""
    high, low = 32 * tl.arange(0, SEEN // 32)[None, :, None], tl.arange(0, 32)[None, None, :]
    GREEDY: tl.constexpr = KIND == "joint" or KIND == "budget"
    entry = start + tl.num_programs(1) * tl.arange(0, ROWS)
    row = tl.load(rows_ptr + entry * sr_r, mask=entry < count, other=-1).to(tl.int32)
    slash_0 = tl.where(row >= 0, row // BLOCK + shift, -1)[:, None, None]
    turned = slash_0 - (SEEN - 1)  # place of a slash among SEEN + turned = its column, and the reverse
    masses = masses_ptr + (entry * key_blocks)[:, None, None] + low
    seen = high < tl.minimum(slash_0 + 1, key_blocks) - low
    by_column = _counted(masses + high, seen, one)
    if GREEDY:
        by_column &= tl.load(open_ptr + tl.broadcast_to(low, [ROWS, 1, 32]) + high)
        by_column &= tl.load(open_ptr + (2 * PLACES - SEEN) + low - turned + high, mask=seen)
    seen = (low + turned + high).to(tl.uint32, bitcast=True) < key_blocks.to(tl.uint32)
    by_slash = _counted(masses + turned + high, seen, one)
    if GREEDY:
        by_slash &= tl.load(open_ptr + low + turned + high, mask=seen)
    lacking = tl.zeros([ROWS], tl.int64)
    if KIND == "joint":
        need = tl.maximum(tl.sum(tl.sum(by_column, 1), 1) - one + target, 0)
        by_column = tl.minimum(by_column, need[:, None, None])
        by_slash = tl.minimum(by_slash, need[:, None, None])
        lacking += need.to(tl.int64) * LACK + (need > 0)
    return by_column, by_slash, lacking


@triton.jit
def _worth(
    masses_ptr, rows_ptr, sr_r, open_ptr, first_long, count, target, one, key_blocks, shift,
    KIND: tl.constexpr, BLOCK: tl.constexpr, PLACES: tl.constexpr, ROWS: tl.constexpr,
):  # fmt: skip
    """What each piece [2 * PLACES] would bring to the program's rows (a kept slash's is for the caller to drop), and a word about
    what these lack. The rows before first_long see at most half of PLACES."""
    split, splits = tl.program_id(1), tl.num_programs(1)
    HALF: tl.constexpr = PLACES // 2
    short_columns, short_slashes = tl.zeros([ROWS, HALF // 32, 32], tl.int32), tl.zeros([ROWS, HALF // 32, 32], tl.int32)
    lacking = tl.zeros([ROWS], tl.int64)
    start = split
    for start_short in range(split, first_long - (ROWS - 1) * splits, ROWS * splits):
        by_column, by_slash, lacks = _tile_worth(
            masses_ptr, rows_ptr, sr_r, open_ptr, start_short, count, target, one, key_blocks, shift,
            KIND, BLOCK, PLACES, HALF, ROWS,
        )  # fmt: skip
        short_columns += by_column
        short_slashes += by_slash
        lacking += lacks
        start = start_short + ROWS * splits
    none = tl.zeros([ROWS, HALF // 32, 32], tl.int32)
    to_columns = tl.reshape(tl.permute(tl.join(short_columns, none), (0, 3, 1, 2)), [ROWS, PLACES // 32, 32])
    to_slashes = tl.reshape(tl.permute(tl.join(none, short_slashes), (0, 3, 1, 2)), [ROWS, PLACES // 32, 32])
    for start_long in range(start, count, ROWS * splits):
        by_column, by_slash, lacks = _tile_worth(
            masses_ptr, rows_ptr, sr_r, open_ptr, start_long, count, target, one, key_blocks, shift,
            KIND, BLOCK, PLACES, PLACES, ROWS,
        )  # fmt: skip
        to_columns += by_column
        to_slashes += by_slash
        lacking += lacks
    worth = tl.permute(tl.sum(tl.join(to_columns, to_slashes), 0), (2, 0, 1))
    return tl.reshape(worth, [2 * PLACES]), tl.sum(lacking, 0)


@triton.jit
def _spread(note_ptr, value):
    """The value, by way of memory: a sum stands in all warps, and what follows from it would be done by each of them."""
    tl.debug_barrier()
    tl.store(note_ptr, value)
    tl.debug_barrier()
    value = tl.load(note_ptr)
    tl.debug_barrier()
    return value


@triton.jit
def _add(word_ptr, value):
    """Add the program's value to words of the board."""
    tl.atomic_add(word_ptr, value.to(tl.int64) + ARRIVED, sem="relaxed")


@triton.jit
def _total(word_ptr):
    """What all programs of the group have added to words of the board; waits for them."""
    full = tl.num_programs(1).to(tl.int64) * ARRIVED
    word = tl.inline_asm_elementwise(
        "{ .reg .pred early; WAIT: ld.relaxed.gpu.global.s64 $0, [$1]; setp.lt.s64 early, $0, $2; @early bra WAIT; }",
        "=&l,l,l", [word_ptr.to(tl.int64), full], dtype=tl.int64, is_pure=False, pack=1,
    )  # fmt: skip
    return word - full


@triton.jit
def _between(counted, lower, upper):
    """For each piece how many of the pieces lower + 1 .. upper are counted; both are at least -1."""
    until = tl.cumsum(counted.to(tl.int32), 0)
    before = tl.where(lower >= 0, tl.gather(until, tl.maximum(lower, 0), 0), 0)
    return tl.maximum(tl.where(upper >= 0, tl.gather(until, tl.maximum(upper, 0), 0), 0) - before, 0)


@triton.jit
def _worth_per_tile(worth, price):
    ratio = tl.div_rn(worth.to(tl.float32), tl.maximum(price, 1).to(tl.float32))
    return tl.where(worth > 0, (ratio.to(tl.int32, bitcast=True) >> 18) - ((127 - 18) << 5), 0)


@triton.jit
def _threshold(key, amount, limit, BITS: tl.constexpr, DIGIT: tl.constexpr):
    """The highest key, at least 1, such that the pieces from it on amount to `limit`, or 1. No sort: it is searched DIGIT of its
    BITS at a time, in such a shape that a warp adds up whole trials."""
    STEPS: tl.constexpr = (BITS + DIGIT - 1) // DIGIT
    EACH: tl.constexpr = min(16, key.shape[0] // 32)
    key = tl.reshape(key, [EACH, 1, key.shape[0] // EACH])
    amount = tl.reshape(amount, [EACH, 1, amount.shape[0] // EACH])
    digits = tl.arange(0, 1 << DIGIT).to(key.dtype)
    reached = limit.to(key.dtype) * 0
    for step in range(STEPS):
        trial = reached + (digits << DIGIT * (STEPS - 1 - step))
        above = tl.sum(tl.sum(tl.where(key >= trial[None, :, None], amount, 0), 0), 1)
        reached = tl.max(tl.where(above >= limit, trial, reached), 0)
    return tl.maximum(reached, 1)


@triton.jit
def _smallest_prefix(key, worth, which, share, BITS: tl.constexpr, DIGIT: tl.constexpr):
    """Of some pieces those with the highest keys, as few as are worth `share` of them all."""
    key, worth = tl.where(which, key, 0), tl.where(which, worth, 0)
    limit = tl.ceil(tl.sum(worth, 0).to(tl.float32) * share).to(tl.int32)
    return key >= _threshold(key, worth, limit, BITS, DIGIT)


@triton.jit
def _write_tiles(
    open_ptr, mask_ptr, begin, end, first, last, last_open, lowest, highest, key_blocks, shift,
    PLACES: tl.constexpr, ROWS: tl.constexpr, WIDTH: tl.constexpr,
):  # fmt: skip
    """The program's share of the group's query blocks begin .. end: of the real ones, first .. last, the causal tiles in a kept
    column or slash, and all causal tiles after last_open."""
    split, splits = tl.program_id(1), tl.num_programs(1)
    for start in range(begin + split * ROWS, end + 1, splits * ROWS):
        i = start + tl.arange(0, ROWS)[:, None]
        for left in range(0, key_blocks, WIDTH):
            j = left + tl.arange(0, WIDTH)[None, :]
            slash = i + shift - j
            causal = (i >= first) & (i <= last) & (slash >= 0) & (j >= lowest) & (j <= highest)
            column = tl.load(open_ptr + j, mask=causal, other=0)
            is_open = column & tl.load(open_ptr + 2 * PLACES - 1 - slash, mask=causal, other=0)
            kept = causal & ((is_open == 0) | (i > last_open))
            tl.store(mask_ptr + i * key_blocks + j, kept, mask=(i <= end) & (j < key_blocks))


@triton.jit(do_not_specialize=["sr_b", "heads", "segments", "count", "Nq", "Nk", "board", "sink", "local", "last_blocks", "one"])
def _select(
    masses_ptr, rows_ptr, range_ptr, work_ptr, mask_ptr, columns_ptr, slashes_ptr, sr_b, sr_r, heads, segments, count,
    Nq, Nk, board, sink, local, last_blocks,
    cra, rest, margin, rows_at_target, density, alpha_columns, alpha_slashes, one,
    KIND: tl.constexpr, HAS_RANGE: tl.constexpr, BLOCK: tl.constexpr, PLACES: tl.constexpr, ROWS: tl.constexpr,
    SHARED: tl.constexpr, ROUNDS: tl.constexpr, DIGIT: tl.constexpr,
):  # fmt: skip
    """One program of a group. The group's part of `work` is its board, for each round a word a piece and one about rows, and then
    each program's note of which pieces are open."""
    group, split, splits = tl.program_id(0), tl.program_id(1), tl.num_programs(1)
    segment, head = group % segments, group // segments
    lo, hi = real_keys(range_ptr, head // heads, Nk, HAS_RANGE)
    offset = Nk - Nq
    query_blocks, key_blocks, shift = tl.cdiv(Nq, BLOCK), tl.cdiv(Nk, BLOCK), tl.cdiv(offset, BLOCK)
    slash_count = query_blocks + shift
    rows_ptr += (head // heads).to(tl.int64) * sr_b + segment * count * sr_r
    masses_ptr += group.to(tl.int64) * count * key_blocks
    work_ptr += group.to(tl.int64) * (board + 2 * PLACES * splits)
    board_ptr = work_ptr.to(tl.pointer_type(tl.int64), bitcast=True)
    open_ptr = work_ptr + board + 2 * PLACES * split  # -1 is open, 0 is kept

    # The real key blocks, this segment's query blocks, the real ones of them, and those that are not always kept.
    lowest, highest = lo // BLOCK, tl.where(hi > lo, (hi - 1) // BLOCK, -1)
    begin, end = tl.cdiv(segment * query_blocks, segments), tl.cdiv((segment + 1) * query_blocks, segments) - 1
    final = tl.maximum(hi - 1 - offset, 0) // BLOCK
    first, last = tl.maximum(begin, tl.maximum(lo - offset, 0) // BLOCK), tl.minimum(end, final)
    last_open = tl.minimum(last, final - last_blocks)

    piece = tl.arange(0, 2 * PLACES)
    is_column = piece < PLACES
    at = tl.where(is_column, piece, 2 * PLACES - 1 - piece)  # the column's or the slash's number
    exists = at < tl.where(is_column, key_blocks, slash_count)
    kept = exists & tl.where(is_column, (at >= lowest) & (at < lowest + sink), at < local)
    rank = tl.where(is_column, 2 * PLACES - 1 - piece, piece - PLACES)  # of equal pieces the one of higher rank is first
    RANK_BITS: tl.constexpr = tl.constexpr((2 * PLACES).bit_length() - 1)
    real_rows, first_long = 0, count
    for start in range(0, count, 1024):
        entry = start + tl.arange(0, 1024)
        row = tl.load(rows_ptr + entry * sr_r, mask=entry < count, other=-1).to(tl.int32)
        real_rows += tl.sum((row >= 0).to(tl.int32), 0)
        first_long = tl.minimum(first_long, tl.min(tl.where(row // BLOCK + shift < PLACES // 2, count, entry), 0))
    if KIND == "joint" or KIND == "budget":
        # A column's tiles lie in the slashes low .. high, a slash's in the columns low .. high: pieces lower + 1 .. upper.
        real = (at >= lowest) & (at <= highest)
        low = tl.maximum(first + shift - at, tl.where(is_column, 0, lowest))
        high = last_open + shift - at
        high = tl.maximum(tl.where(is_column, tl.where(real, high, -1), tl.minimum(high, highest)), -1)
        lower, upper = tl.where(is_column, 2 * PLACES - 2 - high, low - 1), tl.where(is_column, 2 * PLACES - 1 - low, high)
        if KIND == "budget":
            lengths = tl.where(is_column, tl.maximum(high + 1 - low, 0), 0)
            all_tiles = tl.sum(tl.where(is_column & real, tl.maximum(last + shift - at + 1 - low, 0), 0), 0)
            budget = (all_tiles.to(tl.float32) * density).to(tl.int32) - (all_tiles - tl.sum(lengths, 0))
            target = one
        else:
            off = tl.minimum(tl.div_rn(margin, tl.sqrt_rn(tl.maximum(real_rows, 1).to(tl.float32))), 1.0)
            target = tl.minimum(((cra + rest * off) * one + 0.5).to(tl.int32), one)
            enough = real_rows.to(tl.float32) * rows_at_target
        round, going = 0, True
        while going:
            tl.store(open_ptr + piece, kept.to(tl.int32) - 1)
            tl.debug_barrier()
            worth, lacking = _worth(
                masses_ptr, rows_ptr, sr_r, open_ptr, first_long, count, target, one, key_blocks, shift, KIND, BLOCK, PLACES, ROWS
            )
            if SHARED:
                _add(board_ptr + piece, worth)
                if KIND == "joint":
                    _add(board_ptr + 2 * PLACES, lacking)
            else:
                worth = _spread(open_ptr + piece, worth)
            price = _between(exists & (kept == 0), lower, upper)
            if KIND == "budget":
                left = budget - tl.sum(tl.where(kept, tl.where(is_column, lengths, price), 0), 0)
            if SHARED:
                if KIND == "joint":
                    lacking = _total(board_ptr + 2 * PLACES)
                worth = _total(board_ptr + piece).to(tl.int32)
                board_ptr += 2 * PLACES + 1
            if KIND == "joint":
                lacking_rows, missing = (lacking % LACK).to(tl.int32), (lacking // LACK).to(tl.int32)
                more = enough - (real_rows - lacking_rows).to(tl.float32)
                share = tl.div_rn(more, tl.maximum(lacking_rows, 1).to(tl.float32))
                share = tl.minimum(tl.maximum(share, LEAST_SHARE), MOST_SHARE)
                limit = tl.where(more > 0, tl.ceil(missing.to(tl.float32) * share).to(tl.int32), 0)
            else:
                left = tl.where(left > (budget >> CRUMB_BITS), tl.maximum(left, 0), 0)
                limit = tl.where(round < HALVED_ROUNDS, (left + 1) // 2, left)
            round += 1
            going = limit > 0
            if going:
                worth = tl.where(kept, 0, worth)
                order = _worth_per_tile(worth, price)
                if KIND == "joint":
                    amount = worth
                else:
                    order = tl.where(price <= left, order, 0)
                    amount = tl.where(order > 0, price, 0)
                key = tl.where(order > 0, (order << RANK_BITS) | rank, 0)
                threshold = _threshold(key, amount, limit, ORDER_BITS + RANK_BITS, DIGIT)
                bought = key >= threshold
                if KIND == "budget":  # the last one may be too much
                    bought &= (key > threshold) | (tl.sum(tl.where(bought, amount, 0), 0) <= left)
                    going = tl.max(bought.to(tl.int32), 0) > 0
                kept |= bought
                going &= round < ROUNDS
    else:
        worth, lacking = _worth(
            masses_ptr, rows_ptr, sr_r, open_ptr, first_long, count, one, one, key_blocks, shift, KIND, BLOCK, PLACES, ROWS
        )
        if SHARED:
            _add(board_ptr + piece, worth)
            worth = _total(board_ptr + piece).to(tl.int32)
        else:
            worth = _spread(open_ptr + piece, worth)
        key = tl.where(worth > 0, (worth.to(tl.int64) << RANK_BITS) | rank, 0)
        kept |= _smallest_prefix(key, worth, is_column, alpha_columns, MASS_BITS + RANK_BITS, DIGIT)
        kept |= _smallest_prefix(key, worth, is_column == 0, alpha_slashes, MASS_BITS + RANK_BITS, DIGIT)

    if split == 0:
        tl.store(columns_ptr + group.to(tl.int64) * key_blocks + at, kept, mask=exists & is_column)
        tl.store(slashes_ptr + group.to(tl.int64) * slash_count + at, kept, mask=exists & (is_column == 0))
    tl.store(open_ptr + piece, kept.to(tl.int32) - 1)
    tl.debug_barrier()
    WIDTH: tl.constexpr = min(PLACES, 1024)
    _write_tiles(
        open_ptr, mask_ptr + head.to(tl.int64) * query_blocks * key_blocks, begin, end, first,
        tl.where(hi > tl.maximum(lo, offset), last, -1), final - last_blocks, lowest, highest, key_blocks, shift,
        PLACES, ROWS * PLACES // WIDTH, WIDTH,
    )  # fmt: skip
