"""Columns and slashes as pieces to buy: what they are worth, and which are taken first.

Masses are whole numbers here, and no sum leaves int32, so the choice depends on neither the order of summation nor the machine:
the kernel `kernels/selected_tiles.py` makes the same one, bit for bit.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from sampleattn.block_mask import Grid

ORDER_SHIFT = 18  # leaves a sign, 8 bits of exponent and 5 of mantissa of a float32
LEAST_ORDER = (127 - 18) << 5  # orders count from 2**-18, less than a unit of mass for the most tiles a piece can have


@dataclass(frozen=True)
class Samples:
    """The sampled rows by segment. masses int32 [B, H, S, m, key blocks] in units of 1 / `one`; block, the query block of each
    row, and real, False for a row that is none: [B or 1, 1, S, m]."""

    masses: Tensor
    block: Tensor
    real: Tensor
    one: int

    @classmethod
    def of(cls, masses: Tensor, rows: Tensor, grid: Grid, segments: int) -> Samples:
        rows = rows.unflatten(1, (segments, -1))[:, None]
        one = unit(rows.shape[-1])
        counted = masses.unflatten(2, (segments, -1)).mul(one).add_(0.5).int()
        return cls(counted, rows.clamp_min(0) // grid.block, rows >= 0, one)

    def worth(self, gain: Tensor, grid: Grid) -> Tensor:
        """gain int32, shaped like masses, summed over the rows: [B, H, S, key blocks + slashes], columns first."""
        return torch.cat((gain.sum(-2, dtype=torch.int32), grid.by_slash(gain, self.block).sum(-2, dtype=torch.int32)), -1)


def unit(rows: int) -> int:
    """The whole number that stands for a mass of 1: all columns and all slashes of `rows` rows add up to at most 2**30."""
    return 1 << (29 - (rows - 1).bit_length())


def single(factor: float | Tensor) -> float | Tensor:
    """A factor for float32 numbers: a float64 tensor is rounded as torch rounds a Python number there."""
    return factor.float() if isinstance(factor, Tensor) else factor


def worth_per_tile(worth: Tensor, price: Tensor) -> Tensor:
    """The order of pieces, int32: float32 worth / price cut to 5 bits of mantissa; 0 for a piece of no worth."""
    ratio = worth.float() / price.clamp_min(1).float()
    return torch.where(worth > 0, (ratio.view(torch.int32) >> ORDER_SHIFT) - LEAST_ORDER, 0)


def best_first(order: Tensor, amount: Tensor, limit: Tensor, most: Tensor | None = None) -> Tensor:
    """bool: the pieces with an order above 0, from the highest on (ties by index), while those before them amount to less than
    `limit`, and none that would make it more than `most`. order and amount [..., pieces]; limit and most [..., 1]: more of them
    give as many answers."""
    index = order.sort(dim=-1, descending=True, stable=True).indices
    ordered = torch.where(order > 0, amount, 0).gather(-1, index)
    until = ordered.cumsum(-1)
    taken = (until - ordered < limit) & (order.gather(-1, index) > 0)
    if most is not None:
        taken &= until <= most
    return torch.zeros_like(taken).scatter(-1, index.expand_as(taken), taken)
