"""The one place that knows how Triton starts a compiled kernel: the C function below its launcher, whose arguments differ between
versions, and the descriptors of tensors that the copy engine (TMA) reads."""

import inspect
from types import SimpleNamespace

import torch
import triton
from triton.experimental.gluon import language as gl
from triton.experimental.gluon.nvidia.hopper import TensorDescriptor

from .sizes import padded

MOST_DESCRIBED = 64  # addresses of a tensor whose descriptors are kept


def tile_descriptor(x, tokens):
    """x [B, H, N, D] for copies of `tokens` tokens of one head; what lies outside N and D is read as 0."""
    block = [1, 1, tokens, padded(x.shape[3])]
    layout = gl.NVMMASharedLayout.get_default_for(block, gl.bfloat16 if x.dtype == torch.bfloat16 else gl.float16)
    return TensorDescriptor(x, list(x.shape), list(x.stride()), block, layout)


def starter(compiled, grid, rest, tiles, tensors):
    """f(stream, addresses, tensors) that starts a compiled kernel with tensors of the layout of those given here.

    rest: what follows the tensors. tiles: {place: tokens} of those that TMA reads. For a version that is not known here, and for
    a kernel that needs scratch memory, it is Triton's own launcher.
    """
    run, packed = compiled.run, compiled.packed_metadata
    known = not (run.global_scratch_size or run.profile_scratch_size)
    fixed = (compiled.function, run.launch_cooperative_grid, run.launch_pdl)
    launch = inspect.getclosurevars(run.launch).nonlocals["launcher"] if tiles and known else run.launch
    expand = _expander(compiled, tiles, tensors) if known else None
    if known and triton.__version__.startswith("3.6."):
        fixed += (None, None, packed, None, None, None)  # two scratch buffers; the launch's metadata and two hooks

        def start(stream, addresses, tensors):
            launch(*grid, stream, *fixed, *expand(addresses), *rest)

    elif known and triton.__version__.startswith("3.7."):
        fixed += (packed, None, None, None, None, None, run.arg_annotations, run.kernel_signature)

        def start(stream, addresses, tensors):
            launch(*grid, stream, *fixed, (*expand(addresses), *rest))

    else:

        def start(stream, addresses, tensors):
            given = [tile_descriptor(x, tiles[i]) if i in tiles else x for i, x in enumerate(tensors)]
            compiled[grid](*given, *rest, stream=stream)

    return start


def _expander(compiled, tiles, tensors):
    """addresses -> the C function's arguments: in place of a TMA tensor's address its descriptor, sizes and strides."""
    if not tiles:
        return lambda addresses: addresses
    from triton.backends.nvidia.driver import make_tensordesc_arg

    metas = dict(zip(sorted(tiles), compiled.metadata.tensordesc_meta, strict=True))
    layouts = {place: {"shape": list(tensors[place].shape), "strides": list(tensors[place].stride())} for place in tiles}
    kept = {place: {} for place in tiles}

    def describe(place, address):
        x = SimpleNamespace(
            base=SimpleNamespace(data_ptr=lambda: address), padding="zero", round_f32_to_tf32=False, **layouts[place]
        )
        if len(kept[place]) >= MOST_DESCRIBED:
            kept[place].clear()
        kept[place][address] = described = make_tensordesc_arg(x, metas[place])
        return described

    def expand(addresses):
        arguments = []
        for place, address in enumerate(addresses):
            if place in kept:
                arguments += kept[place].get(address) or describe(place, address)
            else:
                arguments.append(address)
        return arguments

    return expand
