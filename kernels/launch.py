"""How the host starts kernels. It takes a host longer to find out what to launch than a short kernel takes the GPU: so what the
tensors' layouts decide is worked out once (`plan`), and started without Triton's dispatch (`Launch`, `triton_launcher`)."""

import functools
import os
from typing import NamedTuple

import torch

from .triton_launcher import starter, tile_descriptor

INTERPRETED = os.environ.get("TRITON_INTERPRET") == "1"  # Triton decides when a kernel is decorated, as this line does

plan = functools.lru_cache(maxsize=256)  # of a function of layouts and settings: layer after layer asks the same


class Layout(NamedTuple):
    """What a plan knows of a tensor."""

    shape: torch.Size
    strides: tuple[int, ...]
    dtype: torch.dtype
    device: torch.device


def layout(x):
    return tuple.__new__(Layout, (x.shape, x.stride(), x.dtype, x.device))  # half the time of Layout(...)


class Launch:
    """`kernel[grid](*tensors, *numbers, **settings)` for tensors of one layout each, which a plan knows: the rest is fixed.

    numbers: the kernel's parameters after the tensors. settings: its constexprs, in order, then Triton's options. tiles: for
    tensors [B, H, N, D] that the copy engine (TMA) reads, by their place, the tokens of one copy.
    A call gives the tensors, or None for one that there is not, on the GPU of the first. It returns whether the kernel was
    started: it is not if 16 does not divide the address of a tensor that TMA shall read.
    """

    def __init__(self, kernel, grid, numbers, tiles=None, **settings):
        self.kernel, self.grid = kernel, (*grid, 1, 1)[:3]
        self.numbers, self.tiles, self.settings = numbers, tiles or {}, settings
        self.starts = {}  # Triton compiles for whether 16 divides an address

    def __call__(self, *tensors):
        if INTERPRETED:
            self.kernel[self.grid](*tensors, *self.numbers, **self.settings)
            return True
        device = tensors[0].get_device()
        if device != torch._C._cuda_getDevice():
            with torch.cuda.device(device):
                return self(*tensors)
        addresses = [None if x is None else x.data_ptr() for x in tensors]
        key = tuple([address and address % 16 for address in addresses])
        if start := self.starts.get(key):
            start(torch._C._cuda_getCurrentRawStream(device), addresses, tensors)
            return True
        if any(key[place] for place in self.tiles):
            return False
        self.starts[key] = self._compile_and_start(tensors)
        return True

    def _compile_and_start(self, tensors):
        given = [tile_descriptor(x, self.tiles[i]) if i in self.tiles else x for i, x in enumerate(tensors)]
        compiled = self.kernel[self.grid](*given, *self.numbers, **self.settings)
        names = self.kernel.arg_names[len(tensors) + len(self.numbers) :]
        return starter(compiled, self.grid, (*self.numbers, *[self.settings[name] for name in names]), self.tiles, tensors)
