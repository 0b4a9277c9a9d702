"""A window of attention weights, pooled to the cells of a picture in registers: no single weight is ever written."""

import torch
import triton
import triton.language as tl

from .checks import check_block_size, check_inputs
from .launch import Launch
from .primitives import LOG2_E, load_rows
from .sizes import cdiv, padded

# padded head_dim -> cells of a program (down, across), warps, pipeline stages, most registers of a thread
CONFIGS = {64: (128, 64, 8, 3, 128), 128: (128, 64, 8, 3, 128), 256: (128, 64, 8, 2, None)}
PROGRAMS = 2048  # enough that the last ones to run leave little of the GPU idle
LEAST_STEPS = 16  # matrix products of a program; with fewer, starting it costs more than it gains
LARGEST_BUFFER = 1 << 27  # bytes


def map_window(q, k, lse, rows, cols, shape, reduce, scale=None, block_mask=None, block_size=128):
    """Weights of query rows r0..r1 and keys c0..c1, pooled to `shape`; the twin of `sampleattn.maps.map_window`.

    q [B, Hq, Nq, D]; k [B, Hkv, Nk, D], any strides, D up to 256; lse fp32 [B, Hq, r1 - r0], the rows' natural logsumexp over
    all their keys; reduce "max" or "sum"; block_mask bool [B, Hq, query blocks, key blocks] or None.
    Returns planes fp32 [1 or 2, B, Hq, h, w]: the weights and, given a block_mask, the weights outside its tiles.
    Raises TypeError or ValueError before any launch. Sums are added in a fixed order.
    """
    scale = check_inputs(q, k, None, scale)
    check_block_size(block_size)
    (batch, heads, queries, head_dim), (kv_heads, keys) = q.shape, k.shape[1:3]
    (r0, r1), (c0, c1) = rows, cols
    if not isinstance(lse, torch.Tensor) or lse.dtype != torch.float32:
        raise TypeError(f"lse must be a float32 tensor, found {getattr(lse, 'dtype', type(lse).__name__)}")
    if lse.shape != (batch, heads, r1 - r0) or lse.device != q.device:
        raise ValueError(f"lse must be [{batch}, {heads}, {r1 - r0}] on {q.device}, found {list(lse.shape)} on {lse.device}")
    down, across, warps, stages, registers = CONFIGS[padded(head_dim)]
    planes = 1 if block_mask is None else 2
    parts = _parts((r1 - r0, c1 - c0), shape, planes * batch * heads, (down, across))
    height, width = shape[0] * parts[0], shape[1] * parts[1]
    out = torch.empty(planes, batch, heads, height, width, dtype=torch.float32, device=q.device)
    mask = q if block_mask is None else block_mask.contiguous().view(torch.uint8)  # q in its place is not read
    Launch(
        _pool, (cdiv(height, down) * cdiv(width, across), batch * heads),
        (*q.stride(), *k.stride(), *lse.stride(), *mask.stride()[:2], heads, heads // kv_heads,
         queries, keys - queries, r0, r1 - r0, c0, c1 - c0, height, width, mask.shape[3], scale * LOG2_E),
        SUM=reduce == "sum", MISSED=planes == 2, D=head_dim, TILE=block_size, BLOCK_D=padded(head_dim),
        DOWN=down, ACROSS=across, num_warps=warps, num_stages=stages, maxnreg=registers,
    )(q, k, lse, mask, out)  # fmt: skip
    if parts == (1, 1):
        return out
    out = out.view(planes, batch, heads, shape[0], parts[0], shape[1], parts[1])
    return out.sum((4, 6)) if reduce == "sum" else out.amax((4, 6))


def _parts(window, shape, maps, block):
    """Into how many parts each cell is cut, down and across, so that a small picture of a large window keeps the GPU busy.

    The map is computed in these parts, pooled a second time: the edges of the parts include the edges of the cells.
    """
    parts = [1, 1]
    while True:
        cells = [count * part for count, part in zip(shape, parts, strict=True)]
        cuttable = [side for side in (0, 1) if 2 * cells[side] <= window[side]]
        if not cuttable or 8 * maps * cells[0] * cells[1] > LARGEST_BUFFER:
            return tuple(parts)
        # first the side that does not fill a program, then the one along which a program's cells cover more tokens
        side = max(cuttable, key=lambda s: (cells[s] < block[s], window[s] / cells[s] * block[s]))
        programs = maps * cdiv(cells[0], block[0]) * cdiv(cells[1], block[1])
        steps = cdiv(window[0], cells[0]) * cdiv(window[1], cells[1])
        if cells[side] >= block[side] and (programs >= PROGRAMS or steps <= LEAST_STEPS):
            return tuple(parts)
        parts[side] *= 2


@triton.jit
def _add(
    acc, missed, q, k_ptrs, lse, x, last_seen, uneven, mask_ptr, mask_rows, mask_cols, scale_log2,
    SUM: tl.constexpr, MISSED: tl.constexpr, D: tl.constexpr, BLOCK_D: tl.constexpr, MASKED: tl.constexpr,
):  # fmt: skip
    """Add the weights (SUM), or take in their logarithms in base 2, of one row per cell row and one key per cell column."""
    k = tl.load(k_ptrs) if D == BLOCK_D else tl.load(k_ptrs, mask=(tl.arange(0, BLOCK_D) < D)[None, :], other=0.0)
    values = tl.dot(q, tl.trans(k), input_precision="ieee") * scale_log2 - lse[:, None]
    if MASKED:
        visible = x[None, :] <= last_seen[:, None]
        if SUM:
            visible &= uneven[None, :]
        values = tl.where(visible, values, float("-inf"))
    if SUM:
        values = tl.exp2(values)
        acc += values
    else:
        acc = tl.maximum(acc, values)
    if MISSED:
        kept = tl.load(mask_ptr + mask_rows[:, None] + mask_cols[None, :]) != 0
        if SUM:
            missed += tl.where(kept, 0.0, values)
        else:
            missed = tl.maximum(missed, tl.where(kept, float("-inf"), values))
    return acc, missed


@triton.jit
def _floor_ratio(a, b):
    """floor(a / b) of whole numbers, |a| < 2**50, b < 2**25, by float64: a division of 64-bit integers is a long subroutine."""
    return tl.floor((a.to(tl.float64) + 0.5) * (1.0 / b.to(tl.float64))).to(tl.int32)


@triton.jit
def _edge(cell, length, cells):
    return _floor_ratio(cell.to(tl.int64) * length, cells)


@triton.jit(do_not_specialize=["heads", "group", "Nq", "offset", "r0", "rows", "c0", "cols", "height", "width", "tiles"])
def _pool(
    q_ptr, k_ptr, lse_ptr, mask_ptr, out_ptr, sq_b, sq_h, sq_n, sq_d, sk_b, sk_h, sk_n, sk_d, sl_b, sl_h, sl_n,
    sm_b, sm_h, heads, group, Nq, offset, r0, rows, c0, cols, height, width, tiles, scale_log2,
    SUM: tl.constexpr, MISSED: tl.constexpr, D: tl.constexpr, TILE: tl.constexpr, BLOCK_D: tl.constexpr,
    DOWN: tl.constexpr, ACROSS: tl.constexpr,
):  # fmt: skip
    """DOWN x ACROSS cells of one head. Each step gathers one row of every cell row and one key of every cell column, so that all
    weights of a cell meet in one register."""
    block, row = tl.program_id(0), tl.program_id(1)
    batch, head = (row // heads).to(tl.int64), (row % heads).to(tl.int64)
    blocks = tl.cdiv(width, ACROSS)
    q_ptr += batch * sq_b + head * sq_h
    k_ptr += batch * sk_b + head // group * sk_h
    lse_ptr += batch * sl_b + head * sl_h
    if MISSED:
        mask_ptr += batch * sm_b + head * sm_h
    y = block // blocks * DOWN + tl.arange(0, DOWN)
    x = block % blocks * ACROSS + tl.arange(0, ACROSS)
    top, left = tl.minimum(y, height - 1), tl.minimum(x, width - 1)  # cells outside the picture repeat its last ones
    y0, x0 = _edge(top, rows, height), _edge(left, cols, width)
    tall, wide = _edge(top + 1, rows, height) - y0, _edge(left + 1, cols, width) - x0
    first_key, last_key = c0 + tl.min(x0, 0), c0 + tl.max(x0 + wide, 0) - 1
    narrowest, widest = cols // width, tl.cdiv(cols, width)
    k_ptrs = k_ptr + (c0 + x0).to(tl.int64)[:, None] * sk_n + tl.arange(0, BLOCK_D)[None, :] * sk_d

    empty = 0.0 if SUM else float("-inf")
    acc = tl.full([DOWN, ACROSS], empty, tl.float32)
    missed = tl.full([DOWN, ACROSS] if MISSED else [1, 1], empty, tl.float32)
    for a in range(0, tl.max(tall, 0)):
        queries = r0 + y0 + tl.minimum(a, tall - 1)
        positions = queries + offset
        # an infinite logsumexp leaves no weight to a row that its cell does not have
        lse = tl.load(lse_ptr + (queries - r0).to(tl.int64) * sl_n, mask=a < tall, other=float("inf")) * 1.4426950408889634
        q = load_rows(q_ptr, queries, sq_n, sq_d, Nq, D, BLOCK_D)
        mask_rows = queries // TILE * tiles
        steps = tl.where(first_key <= tl.max(positions, 0), widest, 0)
        unmasked = tl.where(last_key <= tl.min(positions, 0), narrowest, 0)
        for b in range(0, unmasked):
            acc, missed = _add(
                acc, missed, q, k_ptrs + (b * tl.cast(sk_n, tl.int64)), lse, x, positions, x, mask_ptr, mask_rows,
                (c0 + x0 + b) // TILE, scale_log2, SUM, MISSED, D, BLOCK_D, False,
            )  # fmt: skip
        for b in range(unmasked, steps):
            # the last cell column whose key is not after the row: floor(x * cols / width) <= position - c0 - b
            last_seen = _floor_ratio((positions - c0 - b + 1).to(tl.int64) * width - 1, cols)
            # some cells have one key more than the narrowest; with b in it, the rest is not kept in registers over the loop
            rest = (x * (cols % width) + b * width) % width
            uneven = (b < narrowest) | (rest >= width - cols % width)
            nth = tl.minimum(b, wide - 1)
            acc, missed = _add(
                acc, missed, q, k_ptrs + (nth.to(tl.int64) * sk_n)[:, None], lse, x, last_seen, uneven, mask_ptr, mask_rows,
                (c0 + x0 + nth) // TILE, scale_log2, SUM, MISSED, D, BLOCK_D, True,
            )  # fmt: skip
    if not SUM:
        acc, missed = tl.exp2(acc), tl.exp2(missed)
    drawn = (y < height)[:, None] & (x < width)[None, :]
    place = (row.to(tl.int64) * height + y)[:, None] * width + x[None, :]
    tl.store(out_ptr + place, acc, mask=drawn)
    if MISSED:
        tl.store(out_ptr + tl.num_programs(1).to(tl.int64) * height * width + place, missed, mask=drawn)
