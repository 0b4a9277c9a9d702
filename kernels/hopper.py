"""What the Gluon kernels for Hopper share: when they can run, how a tensor is described to the copy engine (TMA), and the steps
of a pipeline in which a producer warp streams keys to warpgroups that multiply."""

import functools

import torch
from triton.experimental import gluon
from triton.experimental.gluon import language as gl
from triton.experimental.gluon.language.nvidia.hopper import mbarrier, tma, warpgroup_mma, warpgroup_mma_wait
from triton.experimental.gluon.nvidia.hopper import TensorDescriptor

from .launch import INTERPRETED, padded


def fits(*tensors, largest=128):
    """Whether tensors [B, H, N, D <= largest], all on one device, lie on a Hopper GPU as TMA can read them: rows contiguous,
    16-byte steps."""
    if INTERPRETED or any(x.data_ptr() % 16 for x in tensors):
        return False
    return _readable(tensors[0].device, tensors[0].element_size(), largest, *[(x.shape[3], x.stride()) for x in tensors])


@functools.lru_cache(maxsize=256)
def _readable(device, size, largest, *dims_and_strides):
    return _is_hopper(device) and all(
        dim <= largest and strides[3] == 1 and all(step * size % 16 == 0 and step > 0 for step in strides[:3])
        for dim, strides in dims_and_strides
    )


@functools.cache
def _is_hopper(device):
    return device.type == "cuda" and torch.cuda.get_device_capability(device)[0] == 9


@functools.cache
def multiprocessors(device):
    return torch.cuda.get_device_properties(device).multi_processor_count


class Descriptor:
    """x [B, H, N, D] for copies of `rows` tokens of one head; what lies outside N and D is read as 0.

    It has what Triton's launcher reads of a TensorDescriptor, without the checks that each of those makes: `fits` has made them.
    """

    __slots__ = ("base", "shape", "strides", "compiled_for")
    padding, round_f32_to_tf32 = "zero", False

    def __init__(self, x, rows):
        self.base, self.shape, self.strides = x, x.shape, x.stride()
        self.compiled_for = x.dtype, rows, padded(self.shape[3])

    def get_device(self):
        return self.base.get_device()

    def for_triton(self):
        """What a kernel is compiled for."""
        dtype, rows, width = self.compiled_for
        block = [1, 1, rows, width]
        layout = gl.NVMMASharedLayout.get_default_for(block, gl.bfloat16 if dtype == torch.bfloat16 else gl.float16)
        return TensorDescriptor(self.base, list(self.shape), list(self.strides), block, layout)


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
