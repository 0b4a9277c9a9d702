"""Stage 1: the attention mass of sampled rows in every key tile, from one pass over QK and a small normalising kernel."""

from typing import NamedTuple

import torch
import triton
import triton.language as tl

from . import hopper
from .checks import check_block_size, check_key_range, check_layouts, layouts
from .launch import Launch, layout, plan
from .primitives import LOG2_E, load_rows, load_tile, masked_scores, real_keys
from .sampled_tile_masses_hopper import tile_logsumexp_hopper
from .sizes import cdiv, padded, power_of_2

CONFIGS = {64: (8, 3), 128: (8, 2), 256: (8, 2)}  # padded head_dim -> warps, pipeline stages
ROWS = 128  # sampled rows of a program: the same ones of every head that it takes
HEADS = 8  # of a group, at most, that share a program's keys
TILES = 32  # key tiles walked by one program
NORMALISED = 16  # sampled rows normalised by one program
AT_ONCE = 1024  # of their tiles, at most, that it holds in registers


def sampled_tile_masses(q, k, rows, scale=None, key_range=None, block_size=128):
    """Softmax mass of the sampled rows in each key tile; the twin of `sampleattn.reference.sampled_tile_masses`.

    q [B, Hq, Nq, D]; k [B, Hkv, Nk, D], any strides, D up to 256; rows int64 [B or 1, R]: query indices, -1 for none.
    Returns masses fp32 [B, Hq, R, key blocks] (a row's masses add up to 1) and lse fp32 [B, Hq, R]; a row without keys gives 0
    and -inf. Raises TypeError or ValueError before any launch. Between the two kernels a tile's maximum and sum of exponentials
    travel as one number, its logsumexp in base 2, in a buffer as large as the masses.
    """
    if not isinstance(rows, torch.Tensor) or rows.dtype != torch.int64:
        raise TypeError(f"rows must be an int64 tensor, found {getattr(rows, 'dtype', type(rows).__name__)}")
    made = _plan(*layouts(q, k), layout(rows), scale, key_range is not None, block_size)
    check_key_range(key_range, q)
    masses = torch.empty(made.masses, dtype=torch.float32, device=q.device)
    lse = torch.empty(made.masses[:3], dtype=torch.float32, device=q.device)
    if made.normalise:
        partial = torch.empty(made.masses, dtype=torch.float32, device=q.device)  # as [B, Hq, key blocks, R]
        if not (made.hopper and made.hopper(q, k, rows, key_range, partial)):
            made.portable(q, k, rows, key_range, partial)
        made.normalise(rows, key_range, partial, masses, lse)
    return masses, lse


class _Plan(NamedTuple):
    """The shape of the masses; the launches of the pass over QK, on Hopper if it can run there; and the normalising one."""

    masses: tuple[int, ...]
    portable: Launch | None = None
    hopper: Launch | None = None
    normalise: Launch | None = None


@plan
def _plan(q, k, rows, scale, has_range, block_size):
    scale = check_layouts(q, k, scale=scale)
    check_block_size(block_size)
    (batch, heads, queries, head_dim), (kv_heads, keys) = q.shape, k.shape[1:3]
    if len(rows.shape) != 2 or rows.shape[0] not in (1, batch) or rows.device != q.device:
        found = f"{list(rows.shape)} on {rows.device}"
        raise ValueError(f"rows must be [{batch} or 1, sampled rows] on {q.device}, found {found}")
    count, tiles = rows.shape[1], cdiv(keys, block_size)
    masses = (batch, heads, count, tiles)
    if count == 0:
        return _Plan(masses)
    steps = (rows.strides[0] if rows.shape[0] > 1 else 0, rows.strides[1])
    group = heads // kv_heads
    shared = min(group & -group, HEADS)  # the largest power of 2 that divides the group
    warps, stages = CONFIGS[padded(head_dim)]
    portable = Launch(
        _tile_logsumexp, (cdiv(count, ROWS // shared) * cdiv(tiles, TILES), batch * heads // shared),
        (*q.strides, *k.strides, *steps, heads, group, queries, keys, count, tiles, TILES, scale * LOG2_E),
        HAS_RANGE=has_range, D=head_dim, BLOCK=block_size, BLOCK_D=padded(head_dim),
        ROWS=ROWS // shared, HEADS=shared, num_warps=warps, num_stages=stages,
    )  # fmt: skip
    on_hopper = block_size == 128 and hopper.readable(q, k)
    normalise = Launch(
        _normalise, (cdiv(count, NORMALISED), batch * heads), (*steps, heads, queries, keys, count, tiles),
        HAS_RANGE=has_range, BLOCK=block_size, ROWS=NORMALISED, WHOLE=tiles <= AT_ONCE,
        TILES=min(power_of_2(tiles), AT_ONCE if tiles <= AT_ONCE else 128), num_warps=8 if 256 < tiles <= AT_ONCE else 4,
    )  # fmt: skip
    return _Plan(
        masses, portable, tile_logsumexp_hopper(q, k, count, steps, scale, has_range, shared) if on_hopper else None, normalise
    )


@triton.jit
def _write_tile(
    tile, out_ptrs, valid, q, k_ptr, sk_n, sk_d, positions, lo, hi, scale_log2,
    D: tl.constexpr, BLOCK: tl.constexpr, BLOCK_D: tl.constexpr, MASKED: tl.constexpr,
):  # fmt: skip
    k = load_tile(k_ptr, tile * BLOCK, sk_n, sk_d, lo, hi, D, BLOCK, BLOCK_D, MASKED)
    scores = tl.dot(q, tl.trans(k), input_precision="ieee")
    if MASKED:
        scores = masked_scores(scores, positions, tile * BLOCK, lo, hi, BLOCK)
    top = tl.max(scores, 1) * scale_log2
    base = tl.where(top == float("-inf"), 0.0, top) if MASKED else top
    total = tl.sum(tl.exp2(scores * scale_log2 - base[:, None]), 1)
    if MASKED:
        value = tl.where(total > 0, base + tl.log2(tl.where(total > 0, total, 1.0)), float("-inf"))
    else:
        value = base + tl.log2(total)
    tl.store(out_ptrs, value, mask=valid)


@triton.jit(do_not_specialize=["heads", "group", "Nq", "Nk", "count", "tiles", "walked"])
def _tile_logsumexp(
    q_ptr, k_ptr, rows_ptr, range_ptr, out_ptr, sq_b, sq_h, sq_n, sq_d, sk_b, sk_h, sk_n, sk_d, sr_b, sr_r, heads, group, Nq, Nk,
    count, tiles, walked, scale_log2, HAS_RANGE: tl.constexpr, D: tl.constexpr, BLOCK: tl.constexpr, BLOCK_D: tl.constexpr,
    ROWS: tl.constexpr, HEADS: tl.constexpr,
):  # fmt: skip
    """ROWS gathered rows of HEADS heads of a group against at most `walked` key tiles: each row's logsumexp per tile, up to the
    last diagonal. Rows of several heads side by side share the keys and span less of the prompt, so fewer tiles need a mask."""
    splits = tl.cdiv(tiles, walked)
    part = tl.program_id(0)
    first_head = tl.program_id(1) * HEADS
    batch = (first_head // heads).to(tl.int64)
    lo, hi = real_keys(range_ptr, batch, Nk, HAS_RANGE)
    lanes = tl.arange(0, ROWS * HEADS)
    head = first_head % heads + lanes // ROWS
    entries = part // splits * ROWS + lanes % ROWS
    valid = entries < count
    rows = tl.load(rows_ptr + batch * sr_b + entries * sr_r, mask=valid, other=-1).to(tl.int32)
    positions = tl.where(rows >= 0, rows + Nk - Nq, -1)
    begin = part % splits * walked
    end = tl.minimum(tl.minimum(begin + walked, tiles), tl.max(positions, 0) // BLOCK + 1)  # no row sees a tile from `end` on
    if begin < end:
        k_ptr += batch * sk_b + (first_head % heads // group).to(tl.int64) * sk_h
        q_ptrs = (q_ptr + batch * sq_b + head.to(tl.int64) * sq_h)[:, None]
        q = load_rows(q_ptrs, rows, sq_n, sq_d, Nq, D, BLOCK_D)
        out_ptrs = out_ptr + (first_head + lanes // ROWS).to(tl.int64) * tiles * count + entries
        earliest = tl.min(tl.where(rows >= 0, positions, Nk), 0)
        full_begin = tl.minimum(tl.maximum(tl.cdiv(lo, BLOCK), begin), end)
        full_end = tl.maximum(tl.minimum(tl.minimum(hi, earliest + 1) // BLOCK, end), full_begin)
        for tile in range(full_begin, full_end):
            _write_tile(
                tile, out_ptrs + tl.cast(tile, tl.int64) * count, valid, q, k_ptr, sk_n, sk_d, positions, lo, hi, scale_log2,
                D, BLOCK, BLOCK_D, False,
            )  # fmt: skip
        skipped = full_end - full_begin
        for t in range(begin, end - skipped):
            tile = t + tl.where(t >= full_begin, skipped, 0)
            _write_tile(
                tile, out_ptrs + tl.cast(tile, tl.int64) * count, valid, q, k_ptr, sk_n, sk_d, positions, lo, hi, scale_log2,
                D, BLOCK, BLOCK_D, True,
            )  # fmt: skip


@triton.jit(do_not_specialize=["sr_b", "heads", "Nq", "Nk", "count", "tiles"])
def _normalise(
    rows_ptr, range_ptr, partial_ptr, masses_ptr, lse_ptr, sr_b, sr_r, heads, Nq, Nk, count, tiles,
    HAS_RANGE: tl.constexpr, BLOCK: tl.constexpr, ROWS: tl.constexpr, WHOLE: tl.constexpr, TILES: tl.constexpr,
):  # fmt: skip
    """ROWS sampled rows of one head: their tiles' logsumexp [tiles, rows] -> masses [rows, tiles] and the rows' logsumexp.
    WHOLE: all tiles at once, read once; else TILES at a time, read twice."""
    entries = tl.program_id(0) * ROWS + tl.arange(0, ROWS)
    row = tl.program_id(1)
    batch = (row // heads).to(tl.int64)
    lo, hi = real_keys(range_ptr, batch, Nk, HAS_RANGE)
    valid = entries < count
    queries = tl.load(rows_ptr + batch * sr_b + entries * sr_r, mask=valid, other=-1).to(tl.int32)
    positions = tl.where(queries >= 0, queries + Nk - Nq, -1)
    seen = tl.where((positions >= lo) & (positions < hi), positions // BLOCK + 1, 0)  # the tiles that hold a logsumexp
    partial_ptrs = partial_ptr + row.to(tl.int64) * tiles * count + entries[None, :]
    masses_ptrs = masses_ptr + (row.to(tl.int64) * count + entries)[None, :] * tiles
    if WHOLE:
        offsets = tl.arange(0, TILES)[:, None]
        values = tl.load(partial_ptrs + offsets.to(tl.int64) * count, mask=offsets < seen[None, :], other=float("-inf"))
        top = tl.max(values, 0)
        total = tl.sum(tl.exp2(values - tl.where(top == float("-inf"), 0.0, top)[None, :]), 0)
    else:
        top = tl.full([ROWS], float("-inf"), tl.float32)
        total = tl.zeros([ROWS], tl.float32)
        for start in range(0, tl.max(seen, 0), TILES):
            offsets = start + tl.arange(0, TILES)[:, None]
            values = tl.load(partial_ptrs + offsets.to(tl.int64) * count, mask=offsets < seen[None, :], other=float("-inf"))
            new_top = tl.maximum(top, tl.max(values, 0))
            base = tl.where(new_top == float("-inf"), 0.0, new_top)
            total = total * tl.exp2(top - base) + tl.sum(tl.exp2(values - base[None, :]), 0)
            top = new_top
    lse = tl.where(total > 0, top + tl.log2(tl.where(total > 0, total, 1.0)), float("-inf"))
    base = tl.where(total > 0, lse, 0.0)
    if WHOLE:
        tl.store(masses_ptrs + offsets, tl.exp2(values - base[None, :]), mask=(offsets < tiles) & valid[None, :])
    else:
        for start in range(0, tiles, TILES):
            offsets = start + tl.arange(0, TILES)[:, None]
            values = tl.load(partial_ptrs + offsets.to(tl.int64) * count, mask=offsets < seen[None, :], other=float("-inf"))
            tl.store(masses_ptrs + offsets, tl.exp2(values - base[None, :]), mask=(offsets < tiles) & valid[None, :])
    tl.store(lse_ptr + row.to(tl.int64) * count + entries, lse * 0.6931471805599453, mask=valid)
