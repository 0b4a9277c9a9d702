"""What the Gluon kernels for Hopper share: when they can run, and how a tensor is described to the copy engine (TMA)."""

import functools

import torch
from triton.experimental.gluon import language as gl
from triton.experimental.gluon.nvidia.hopper import TensorDescriptor

from .primitives import INTERPRETED, padded


def fits(*tensors, largest=128):
    """Whether the tensors [B, H, N, D <= largest] lie on a Hopper GPU as TMA can read them: rows contiguous, 16-byte steps."""
    return not INTERPRETED and all(
        x.shape[3] <= largest
        and x.stride(3) == 1
        and x.data_ptr() % 16 == 0
        and all(step * x.element_size() % 16 == 0 and step > 0 for step in x.stride()[:3])
        and _is_hopper(x.device)
        for x in tensors
    )


@functools.cache
def _is_hopper(device):
    return device.type == "cuda" and torch.cuda.get_device_capability(device)[0] == 9


@functools.cache
def multiprocessors(device):
    return torch.cuda.get_device_properties(device).multi_processor_count


def descriptor(x, rows):
    """x [B, H, N, D] for copies of `rows` tokens of one head; what lies outside N and D is read as 0."""
    shape = [1, 1, rows, padded(x.shape[3])]
    layout = gl.NVMMASharedLayout.get_default_for(shape, gl.bfloat16 if x.dtype == torch.bfloat16 else gl.float16)
    return TensorDescriptor(x, list(x.shape), list(x.stride()), shape, layout)
