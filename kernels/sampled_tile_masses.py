"""Stage 1: the attention mass of sampled rows in every key tile, from one pass over QK and a small normalising kernel."""

import torch
import triton
import triton.language as tl

from .primitives import LOG2_E, check_block_size, check_inputs, load_rows, load_tile, masked_scores, on_device, padded, real_keys

CONFIGS = {64: (8, 3), 128: (8, 2), 256: (8, 2)}  # padded head_dim -> warps, pipeline stages
ROWS = 128  # sampled rows gathered by one program
TILES = 32  # key tiles walked by one program


def sampled_tile_masses(q, k, rows, scale=None, key_range=None, block_size=128):
    """Softmax mass of the sampled rows in each key tile; the twin of `sampleattn.reference.sampled_tile_masses`.

    q [B, Hq, Nq, D]; k [B, Hkv, Nk, D], any strides, D up to 256; rows int64 [B or 1, R]: query indices, -1 for none.
    Returns masses fp32 [B, Hq, R, key blocks] (a row's masses add up to 1) and lse fp32 [B, Hq, R]; a row without keys gives 0
    and -inf. Raises TypeError or ValueError before any launch. Beside the results nothing is allocated: a tile's maximum and sum
    of exponentials travel as one number, its logsumexp in base 2, in the place where its mass will stand.
    """
    scale = check_inputs(q, k, None, scale, key_range)
    check_block_size(block_size)
    (batch, heads, queries, head_dim), (kv_heads, keys) = q.shape, k.shape[1:3]
    if not isinstance(rows, torch.Tensor) or rows.dtype != torch.int64:
        raise TypeError(f"rows must be an int64 tensor, found {getattr(rows, 'dtype', type(rows).__name__)}")
    if rows.dim() != 2 or rows.shape[0] not in (1, batch) or rows.device != q.device:
        found = f"{list(rows.shape)} on {rows.device}"
        raise ValueError(f"rows must be [{batch} or 1, sampled rows] on {q.device}, found {found}")
    rows = rows.expand(batch, -1)
    count, tiles = rows.shape[1], triton.cdiv(keys, block_size)
    masses = torch.empty(batch, heads, count, tiles, dtype=torch.float32, device=q.device)
    lse = torch.empty(batch, heads, count, dtype=torch.float32, device=q.device)
    if count == 0:
        return masses, lse
    warps, stages = CONFIGS[padded(head_dim)]
    with on_device(q):
        _tile_logsumexp[(triton.cdiv(count, ROWS) * triton.cdiv(tiles, TILES), batch * heads)](
            q, k, rows, key_range, masses, *q.stride(), *k.stride(), *rows.stride(),
            heads, heads // kv_heads, queries, keys, count, tiles, scale * LOG2_E,
            HAS_RANGE=key_range is not None, D=head_dim, BLOCK=block_size, BLOCK_D=padded(head_dim),
            ROWS=min(ROWS, padded(count)), TILES=TILES, num_warps=warps, num_stages=stages,
        )  # fmt: skip
        _normalise[(count, batch * heads)](
            rows, key_range, masses, lse, *rows.stride(), heads, queries, keys, count, tiles,
            HAS_RANGE=key_range is not None, BLOCK=block_size, CHUNK=min(1024, triton.next_power_of_2(tiles)), num_warps=4,
        )  # fmt: skip
    return masses, lse


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
    tl.store(out_ptrs + tile, value, mask=valid)


@triton.jit(do_not_specialize=["heads", "group", "Nq", "Nk", "count", "tiles"])
def _tile_logsumexp(
    q_ptr, k_ptr, rows_ptr, range_ptr, out_ptr, sq_b, sq_h, sq_n, sq_d, sk_b, sk_h, sk_n, sk_d, sr_b, sr_r, heads, group, Nq, Nk,
    count, tiles, scale_log2, HAS_RANGE: tl.constexpr, D: tl.constexpr, BLOCK: tl.constexpr, BLOCK_D: tl.constexpr,
    ROWS: tl.constexpr, TILES: tl.constexpr,
):  # fmt: skip
    """ROWS gathered rows of one head against up to TILES key tiles: each row's logsumexp per tile, up to the last diagonal."""
    splits = tl.cdiv(tiles, TILES)
    part, row = tl.program_id(0), tl.program_id(1)
    batch, head = (row // heads).to(tl.int64), (row % heads).to(tl.int64)
    lo, hi = real_keys(range_ptr, batch, Nk, HAS_RANGE)
    entries = part // splits * ROWS + tl.arange(0, ROWS)
    rows = tl.load(rows_ptr + batch * sr_b + entries * sr_r, mask=entries < count, other=-1).to(tl.int32)
    positions = tl.where(rows >= 0, rows + Nk - Nq, -1)
    begin = part % splits * TILES
    end = tl.minimum(tl.minimum(begin + TILES, tiles), tl.max(positions, 0) // BLOCK + 1)  # no row sees a tile from `end` on
    if begin < end:
        k_ptr += batch * sk_b + head // group * sk_h
        q = load_rows(q_ptr + batch * sq_b + head * sq_h, rows, sq_n, sq_d, Nq, D, BLOCK_D)
        out_ptrs = out_ptr + (row.to(tl.int64) * count + entries) * tiles
        valid = entries < count
        earliest = tl.min(tl.where(rows >= 0, positions, Nk), 0)
        full_begin = tl.minimum(tl.maximum(tl.cdiv(lo, BLOCK), begin), end)
        full_end = tl.maximum(tl.minimum(tl.minimum(hi, earliest + 1) // BLOCK, end), full_begin)
        for tile in range(full_begin, full_end):
            _write_tile(tile, out_ptrs, valid, q, k_ptr, sk_n, sk_d, positions, lo, hi, scale_log2, D, BLOCK, BLOCK_D, False)
        skipped = full_end - full_begin
        for t in tl.range(begin, end - skipped, num_stages=1):
            tile = t + tl.where(t >= full_begin, skipped, 0)
            _write_tile(tile, out_ptrs, valid, q, k_ptr, sk_n, sk_d, positions, lo, hi, scale_log2, D, BLOCK, BLOCK_D, True)


@triton.jit(do_not_specialize=["sr_b", "heads", "Nq", "Nk", "count", "tiles"])
def _normalise(
    rows_ptr, range_ptr, masses_ptr, lse_ptr, sr_b, sr_r, heads, Nq, Nk, count, tiles,
    HAS_RANGE: tl.constexpr, BLOCK: tl.constexpr, CHUNK: tl.constexpr,
):  # fmt: skip
    """One sampled row of one head: its tiles' logsumexp -> masses, in place, and the row's logsumexp."""
    entry, row = tl.program_id(0), tl.program_id(1)
    batch = (row // heads).to(tl.int64)
    lo, hi = real_keys(range_ptr, batch, Nk, HAS_RANGE)
    query = tl.load(rows_ptr + batch * sr_b + entry * sr_r).to(tl.int32)
    position = tl.where(query >= 0, query + Nk - Nq, -1)
    seen = tl.where((position >= lo) & (position < hi), position // BLOCK + 1, 0)  # the tiles that hold a logsumexp
    place = row.to(tl.int64) * count + entry
    masses_ptr += place * tiles
    top, total = float("-inf"), 0.0
    for start in range(0, seen, CHUNK):
        offsets = start + tl.arange(0, CHUNK)
        values = tl.load(masses_ptr + offsets, mask=offsets < seen, other=float("-inf"))
        new_top = tl.maximum(top, tl.max(values, 0))
        base = tl.where(new_top == float("-inf"), 0.0, new_top)
        total = total * tl.exp2(top - base) + tl.sum(tl.exp2(values - base), 0)
        top = new_top
    lse = tl.where(total > 0, top + tl.log2(tl.where(total > 0, total, 1.0)), float("-inf"))
    base = tl.where(total > 0, lse, 0.0)
    for start in range(0, tiles, CHUNK):
        offsets = start + tl.arange(0, CHUNK)
        values = tl.load(masses_ptr + offsets, mask=offsets < seen, other=float("-inf"))
        tl.store(masses_ptr + offsets, tl.exp2(values - base), mask=offsets < tiles)
    tl.store(lse_ptr + place, lse * 0.6931471805599453)
