"""How the host starts kernels: without Triton's dispatch, which takes it longer than a short kernel takes the GPU."""

import contextlib
import os

import torch
import triton

INTERPRETED = os.environ.get("TRITON_INTERPRET") == "1"  # Triton decides when a kernel is decorated, as this line does
MOST_REMEMBERED = 4096  # compiled kernels by their arguments; a new length of prompt adds about six

_compiled = {}


def launch(kernel, grid, tensors, numbers, **settings):
    """`kernel[grid](*tensors, *numbers, **settings)` on the first tensor's GPU; the compiled kernel is looked up, not worked out.

    tensors: the kernel's first parameters, tensors, `hopper.Descriptor`s or None. numbers: the following ones. settings: its
    constexprs, in order, then Triton's options. Triton compiles for what it finds out about arguments: dtypes, whether an address
    or a number is divisible by 16, whether a number is 1. The same numbers, dtypes and alignments have the same kernel.
    """
    if INTERPRETED:
        kernel[grid](*tensors, *numbers, **settings)
        return
    grid, device = (*grid, 1, 1)[:3], tensors[0].get_device()
    facts, given = [], []
    for x in tensors:
        if isinstance(x, torch.Tensor):
            address = x.data_ptr()
            facts.append((x.dtype, address % 16))
            given.append(address)
        else:
            facts.append(x and x.compiled_for)
            given.append(x)
    key = (id(kernel), device, numbers, *map(type, numbers), *settings.values(), *facts)
    with contextlib.nullcontext() if device == torch.cuda.current_device() else torch.cuda.device(device):
        if known := _compiled.get(key):
            start, constexprs = known
            start(grid, torch._C._cuda_getCurrentRawStream(device), (*given, *numbers, *constexprs))
            return
        tensors = [x if x is None or isinstance(x, torch.Tensor) else x.for_triton() for x in tensors]
        compiled = kernel[grid](*tensors, *numbers, **settings)
        if len(_compiled) >= MOST_REMEMBERED:
            _compiled.clear()
        _compiled[key] = _starter(compiled), [settings[name] for name in kernel.arg_names[len(tensors) + len(numbers) :]]


def _starter(compiled):
    """What starts a compiled kernel: f(grid, stream, arguments), addresses in place of tensors.

    It is the C function below Triton's launcher, whose arguments differ between versions; of a version that is not known here,
    or for a kernel that needs scratch memory, it is the launcher.
    """
    run, function, fixed = compiled.run, compiled.function, compiled.packed_metadata
    if run.global_scratch_size or run.profile_scratch_size:
        return lambda grid, stream, arguments: compiled[grid](*arguments, stream=stream)
    start, cooperative, overlaps = run.launch, run.launch_cooperative_grid, run.launch_pdl
    if triton.__version__.startswith("3.6."):
        hooks = (None, None, fixed, None, None, None)
        return lambda grid, stream, arguments: start(*grid, stream, function, cooperative, overlaps, *hooks, *arguments)
    if triton.__version__.startswith("3.7."):
        hooks = (fixed, None, None, None, None, None, run.arg_annotations, run.kernel_signature)
        return lambda grid, stream, arguments: start(*grid, stream, function, cooperative, overlaps, *hooks, arguments)
    return lambda grid, stream, arguments: compiled[grid](*arguments, stream=stream)


def cdiv(count, size):
    """How many of a size hold the count. (Triton's own, and its next_power_of_2, take the host microseconds.)"""
    return -(-count // size)


def power_of_2(count):
    """The least power of two that is at least `count`."""
    return 1 << (count - 1).bit_length()


def padded(dim):
    """The power of two that holds `dim`, at least 64: 32 wide is wrong on Hopper (triton-lang/triton#10573, #11366)."""
    return max(64, power_of_2(dim))
