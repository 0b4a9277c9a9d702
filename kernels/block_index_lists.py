"""From a block mask to the lists that the sparse forward walks: built on the GPU, without waiting for it."""

import torch
import triton
import triton.language as tl

from .checks import check_block_size
from .launch import Launch, layout, plan
from .primitives import real_keys
from .sizes import power_of_2


def block_index_lists(block_mask, queries, keys, key_range=None, block_size=128):
    """The kept key blocks of every query block, ascending, without tiles that no row of the block can see.

    block_mask bool [B, H, query blocks, key blocks], any strides; queries, keys: the counts Nq and Nk; key_range int32 [B, 2].
    Returns ids [B, H, query blocks, key blocks] (int16, or int32 from 32768 key blocks on), of which the first spans[..., 2] are
    written, and spans int32 [B, H, query blocks, 4]: the entries spans[..., 0] .. spans[..., 1] - 1 need no mask (every row sees
    every key), the other ones up to spans[..., 2] do; spans[..., 3] is 0 (the first of them counts for the Hopper forward).
    """
    to_lists, listed, dtype, spanned = _plan(layout(block_mask), queries, keys, key_range is not None, block_size)
    ids = torch.empty(listed, dtype=dtype, device=block_mask.device)
    spans = torch.empty(spanned, dtype=torch.int32, device=block_mask.device)
    to_lists(block_mask, ids, spans, key_range)
    return ids, spans


@plan
def _plan(mask, queries, keys, has_range, block_size):
    """The launch, and the shape and dtype of ids, and the shape of spans."""
    check_block_size(block_size)
    batch, heads, query_blocks, key_blocks = mask.shape
    to_lists = Launch(
        _lists, (query_blocks, batch * heads), (*mask.strides, heads, queries, keys, key_blocks),
        HAS_RANGE=has_range, BLOCK=block_size, CHUNK=min(1024, power_of_2(key_blocks)), num_warps=1,
    )  # fmt: skip
    return to_lists, mask.shape, torch.int16 if key_blocks < 2**15 else torch.int32, (batch, heads, query_blocks, 4)


@triton.jit(do_not_specialize=["sm_b", "sm_h", "sm_q", "heads", "Nq", "Nk", "key_blocks"])
def _lists(
    mask_ptr, ids_ptr, spans_ptr, range_ptr, sm_b, sm_h, sm_q, sm_k, heads, Nq, Nk, key_blocks,
    HAS_RANGE: tl.constexpr, BLOCK: tl.constexpr, CHUNK: tl.constexpr,
):  # fmt: skip
    block, row = tl.program_id(0), tl.program_id(1)
    batch, head = row // heads, row % heads
    out = row.to(tl.int64) * tl.num_programs(0) + block
    lo, hi = real_keys(range_ptr, batch, Nk, HAS_RANGE)
    first = block * BLOCK + Nk - Nq  # key position of the block's first query
    last = tl.minimum(first + BLOCK, Nk) - 1
    begin, end = lo // BLOCK, tl.cdiv(tl.minimum(hi, last + 1), BLOCK)  # tiles with a visible key
    full_begin = tl.cdiv(lo, BLOCK)
    full_end = tl.maximum(tl.minimum(hi, first + 1) // BLOCK, full_begin)  # tiles in which every row sees every key
    mask_ptr += batch.to(tl.int64) * sm_b + head.to(tl.int64) * sm_h + block.to(tl.int64) * sm_q
    ids_ptr += out * key_blocks
    count, before, until = 0, 0, 0
    for start in range(0, key_blocks, CHUNK):
        tiles = start + tl.arange(0, CHUNK)
        kept = tl.load(mask_ptr + tiles.to(tl.int64) * sm_k, mask=tiles < key_blocks, other=0).to(tl.int32)
        kept = tl.where((kept != 0) & (tiles >= begin) & (tiles < end), 1, 0)
        place = count + tl.cumsum(kept, 0) - 1
        tl.store(ids_ptr + place, tiles.to(ids_ptr.dtype.element_ty), mask=kept != 0)
        count += tl.sum(kept, 0)
        before += tl.sum(tl.where(tiles < full_begin, kept, 0), 0)
        until += tl.sum(tl.where(tiles < full_end, kept, 0), 0)
    tl.store(spans_ptr + out * 4, before)
    tl.store(spans_ptr + out * 4 + 1, until)
    tl.store(spans_ptr + out * 4 + 2, count)
    tl.store(spans_ptr + out * 4 + 3, 0)
