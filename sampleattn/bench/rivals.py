"""Attention of others, for comparison: SDPA's cuDNN and flash kernels, FlexAttention, FlashAttention-4. All are optional.

Each is a context that yields the call; its preparation (a backend chosen, lists built, keys repeated) is not timed.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager, nullcontext

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.nn.attention import SDPBackend, sdpa_kernel

from sampleattn import backends
from sampleattn.planted import BLOCK

Call = Callable[[], object]


def dense_names(device: torch.device) -> tuple[str, ...]:
    """The dense rivals to try on a device."""
    return ("cudnn", "flash", "flex", "fa4") if device.type == "cuda" else ("sdpa",)


def sparse_names(device: torch.device) -> tuple[str, ...]:
    """The block-sparse rivals to try on a device."""
    return ("flex", "fa4") if device.type == "cuda" else ()


@contextmanager
def dense(name: str, q: Tensor, k: Tensor, v: Tensor) -> Iterator[Call]:
    """Causal dense attention of q [B, Hq, N, D] over k, v [B, Hkv, N, D]. Raises whatever the rival raises where it can't run."""
    if name == "flex":
        blocks = -(-q.shape[2] // BLOCK)
        yield _flex(q, k, v, torch.ones(1, 1, blocks, blocks, dtype=torch.bool, device=q.device).tril())
    elif name == "fa4":
        fa4 = _fa4(q.device)
        yield lambda: fa4.forward(q, k, v, q.shape[-1] ** -0.5)
    elif name == "cudnn":
        yield _cudnn(q, k, v)
    else:
        with sdpa_kernel(SDPBackend.FLASH_ATTENTION) if name == "flash" else nullcontext():
            yield _sdpa(q, k, v)


@contextmanager
def block_sparse(name: str, q: Tensor, k: Tensor, v: Tensor, mask: Tensor) -> Iterator[Call]:
    """Causal attention over the tiles of mask [B, Hq, blocks, blocks]."""
    if name == "flex":
        yield _flex(q, k, v, mask)
    else:
        fa4 = _fa4(q.device)
        lists = fa4.block_lists(mask, q.shape[2], k.shape[2], BLOCK)
        yield lambda: fa4.forward(q, k, v, q.shape[-1] ** -0.5, lists)


def _fa4(device):
    if obstacle := backends.fa4_obstacle(device):
        raise RuntimeError(obstacle)
    from sampleattn import fa4

    return fa4


def _cudnn(q, k, v) -> Call:
    """The operator that scaled_dot_product_attention calls once it has chosen cuDNN; without the time of choosing."""
    attention = torch._scaled_dot_product_cudnn_attention
    k, v = _grouped(lambda k, v: attention(q, k, v, None, False, 0.0, True), q, k, v)
    return lambda: attention(q, k, v, None, False, 0.0, True)[0]


def _sdpa(q, k, v) -> Call:
    k, v = _grouped(lambda k, v: F.scaled_dot_product_attention(q, k, v, is_causal=True, enable_gqa=True), q, k, v)
    return lambda: F.scaled_dot_product_attention(q, k, v, is_causal=True, enable_gqa=True)


def _grouped(call, q, k, v) -> tuple[Tensor, Tensor]:
    """k and v as the call takes them: as they are, or repeated for each query head."""
    try:
        call(k, v)
        return k, v
    except RuntimeError:
        group = q.shape[1] // k.shape[1]
        k, v = (x.repeat_interleave(group, 1) for x in (k, v))
        call(k, v)
        return k, v


def _flex(q, k, v, mask) -> Call:
    from torch.nn.attention.flex_attention import BlockMask, flex_attention

    def causal(b, h, i, j):
        return i >= j

    diagonal = torch.eye(mask.shape[-1], dtype=torch.bool, device=mask.device)
    lists = []
    for tiles in (mask & diagonal, mask & ~diagonal):
        lists += [tiles.sum(-1, dtype=torch.int32), tiles.byte().argsort(dim=-1, descending=True, stable=True).int()]
    block_mask = BlockMask.from_kv_blocks(*lists, BLOCK_SIZE=BLOCK, mask_mod=causal, seq_lengths=(q.shape[2], k.shape[2]))
    torch._dynamo.reset()  # each shape compiles anew, and after a few dynamo would give up
    compiled = torch.compile(flex_attention, dynamic=False)
    return lambda: compiled(q, k, v, block_mask=block_mask, enable_gqa=True)
