"""How the host starts kernels: without Triton's dispatch, which takes it longer than a short kernel takes the GPU."""

import contextlib
import os

import torch

INTERPRETED = os.environ.get("TRITON_INTERPRET") == "1"  # Triton decides when a kernel is decorated, as this line does
MOST_REMEMBERED = 4096  # compiled kernels by their arguments; a new length of prompt adds about six

_compiled = {}


def launch(kernel, grid, *args, **settings):
    """`kernel[grid](*args, **settings)` on the GPU of args[0], with the compiled kernel looked up, not worked out anew.

    args: the kernel's parameters up to its first constexpr: tensors, `hopper.descriptor`s, numbers or None. settings: its
    constexprs, in order, then Triton's options. Triton compiles for what it finds out about arguments: types, whether an address
    or a number is divisible by 16, whether a number is 1. The same numbers, dtypes and alignments have the same kernel.
    """
    if INTERPRETED:
        kernel[grid](*args, **settings)
        return
    grid, device = (*grid, 1, 1)[:3], _tensor(args[0]).get_device()
    with contextlib.nullcontext() if device == torch.cuda.current_device() else torch.cuda.device(device):
        key = (id(kernel), device, *map(_fact, args), *settings.values())
        if known := _compiled.get(key):
            compiled, constexprs = known
            compiled[grid](*args, *constexprs)
            return
        compiled = kernel[grid](*args, **settings)
        if len(_compiled) >= MOST_REMEMBERED:
            _compiled.clear()
        _compiled[key] = compiled, [settings[name] for name in kernel.arg_names[len(args) :]]


def _tensor(x):
    return x if isinstance(x, torch.Tensor) else x.base


def _fact(x):
    """What decides for which argument a kernel is compiled."""
    if isinstance(x, torch.Tensor):
        return x.dtype, x.data_ptr() % 16
    if x is None or isinstance(x, int | float):
        return type(x), x
    return x.base.dtype, *x.block_shape


def cdiv(count, size):
    """How many of a size hold the count. (Triton's own, and its next_power_of_2, take the host microseconds.)"""
    return -(-count // size)


def power_of_2(count):
    """The least power of two that is at least `count`."""
    return 1 << (count - 1).bit_length()


def padded(dim):
    """The power of two that holds `dim`, at least 64: 32 wide is wrong on Hopper (triton-lang/triton#10573, #11366)."""
    return max(64, power_of_2(dim))
