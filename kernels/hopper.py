"""What the Gluon kernels for Hopper share: when they can run, and the steps of a pipeline in which a producer warp streams keys
through the copy engine (TMA) to warpgroups that multiply."""

import functools

import torch
from triton.experimental import gluon
from triton.experimental.gluon import language as gl
from triton.experimental.gluon.language.nvidia.hopper import mbarrier, tma, warpgroup_mma, warpgroup_mma_wait

from .launch import INTERPRETED

# The warps of a warpgroup wait for each other (Triton 3.7 renamed it).
all_warps = gl.barrier if hasattr(gl, "barrier") else gl.thread_barrier


def readable(*layouts, largest=128):
    """Whether the tensors [B, H, N, D <= largest] of the layouts lie on a Hopper GPU as TMA can read them, if 16 divides their
    addresses: rows contiguous, 16-byte steps."""
    return (
        not INTERPRETED and is_hopper(layouts[0].device) and all(_contiguous_rows(x) and x.shape[3] <= largest for x in layouts)
    )


def _contiguous_rows(x):
    return x.strides[3] == 1 and all(step * x.dtype.itemsize % 16 == 0 and step > 0 for step in x.strides[:3])


@functools.cache
def is_hopper(device):
    return device.type == "cuda" and torch.cuda.get_device_capability(device)[0] == 9


@functools.cache
def multiprocessors(device):
    return torch.cuda.get_device_properties(device).multi_processor_count


@gluon.jit
def real_keys(range_ptr, batch, Nk, HAS_RANGE: gl.constexpr):
    """The first and one-past-last real key of a batch row."""
    lo, hi = Nk * 0, Nk
    if HAS_RANGE:
        lo = gl.maximum(gl.load(range_ptr + 2 * batch), 0)
        hi = gl.minimum(gl.load(range_ptr + 2 * batch + 1), Nk)
    return lo, hi


@gluon.jit
def send_keys(k_desc, batch, kv_head, start, step, k_smem, k_full, k_empty, STAGES: gl.constexpr):
    """Copy the keys from `start` on into the stage of the step, as soon as all warpgroups have left it."""
    stage = step % STAGES
    mbarrier.wait(k_empty.index(stage), (step // STAGES & 1) ^ 1)
    mbarrier.expect(k_full.index(stage), k_desc.block_type.nbytes)
    k_buffer = k_smem.index(stage)._reinterpret(k_desc.dtype, k_desc.block_type.shape, k_desc.layout)
    tma.async_copy_global_to_shared(k_desc, [batch, kv_head, start, 0], k_full.index(stage), k_buffer)


@gluon.jit
def next_scores(q, zero, step, k_smem, k_full, k_empty, STAGES: gl.constexpr):
    """q times the keys of the step, in fp32; leaves their stage."""
    mbarrier.wait(k_full.index(step % STAGES), step // STAGES & 1)
    scores = warpgroup_mma(q, k_smem.index(step % STAGES).permute((1, 0)), zero, use_acc=False, is_async=True)
    scores = warpgroup_mma_wait(0, deps=[scores])
    mbarrier.arrive(k_empty.index(step % STAGES), count=1)
    return scores
