"""How the host starts kernels: without Triton's dispatch, which takes it longer than a short kernel takes the GPU."""

import contextlib
import os

import torch

INTERPRETED = os.environ.get("TRITON_INTERPRET") == "1"  # Triton decides when a kernel is decorated, as this line does
MOST_REMEMBERED = 4096  # compiled kernels by their arguments; a new length of prompt adds about six

_compiled = {}


def launch(kernel, grid, tensors, numbers, **settings):
    """`kernel[grid](*tensors, *numbers, **settings)` on the first tensor's GPU; the compiled kernel is looked up, not worked out.

    tensors: the kernel's first parameters, tensors, `hopper.descriptor`s or None. numbers: the following ones. settings: its
    constexprs, in order, then Triton's options. Triton compiles for what it finds out about arguments: dtypes, whether an address
    or a number is divisible by 16, whether a number is 1. The same numbers, dtypes and alignments have the same kernel.
    """
    if INTERPRETED:
        kernel[grid](*tensors, *numbers, **settings)
        return
    grid, device = (*grid, 1, 1)[:3], getattr(tensors[0], "base", tensors[0]).get_device()
    with contextlib.nullcontext() if device == torch.cuda.current_device() else torch.cuda.device(device):
        key = (id(kernel), device, numbers, *map(type, numbers), *settings.values(), *map(_fact, tensors))
        if known := _compiled.get(key):
            compiled, constexprs = known
            compiled[grid](*tensors, *numbers, *constexprs)
            return
        compiled = kernel[grid](*tensors, *numbers, **settings)
        if len(_compiled) >= MOST_REMEMBERED:
            _compiled.clear()
        _compiled[key] = compiled, [settings[name] for name in kernel.arg_names[len(tensors) + len(numbers) :]]


def _fact(x):
    """What decides for which tensor a kernel is compiled."""
    if isinstance(x, torch.Tensor):
        return x.dtype, x.data_ptr() % 16
    return x and (x.base.dtype, *x.block_shape)


def cdiv(count, size):
    """How many of a size hold the count. (Triton's own, and its next_power_of_2, take the host microseconds.)"""
    return -(-count // size)


def power_of_2(count):
    """The least power of two that is at least `count`."""
    return 1 << (count - 1).bit_length()


def padded(dim):
    """The power of two that holds `dim`, at least 64: 32 wide is wrong on Hopper (triton-lang/triton#10573, #11366)."""
    return max(64, power_of_2(dim))
