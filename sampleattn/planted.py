"""q, k and v with known structure, and the tiles that hold it: the inputs of the benchmark."""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from torch import Tensor

BLOCK = 128
MOST_SLASHES = 4
SHARES = {"sink": 0.2, "columns": 0.4, "slash": 0.4}  # of the planted mass of a row that sees everything
BACKGROUND = 0.02  # of all mass


@dataclass(frozen=True)
class Planted:
    """q [1, Hq, N, D], k and v [1, Hkv, N, D] in which each row's mass lies, but for a known rest, in the tiles of `mask`.

    mask bool [1, Hq, blocks, blocks]: sink, local and last blocks, and whole columns and slashes (two block diagonals each).
    mass fp32 [Hkv, N]: the expected share of a row's mass in its planted cells.
    """

    q: Tensor
    k: Tensor
    v: Tensor
    mask: Tensor
    mass: Tensor

    @property
    def density(self) -> float:
        blocks = self.mask.shape[-1]
        return float(self.mask.sum() / (self.mask.shape[1] * blocks * (blocks + 1) / 2))

    def found(self, block_mask: Tensor) -> float:
        """The share of the planted tiles that `block_mask` keeps."""
        return float((block_mask & self.mask).sum() / self.mask.sum())


def planted(length, heads, kv_heads, head_dim, density=0.1, dtype=torch.bfloat16, device="cpu", seed=0) -> Planted:
    """Inputs with a sink, columns, slashes and a local band that cover `density` of the causal tiles (or what the sink, local and
    last blocks need, if that is more).

    Feature 0 makes token 0 the sink, feature 1 the column tokens (one per column, the same for the heads of a group); the others
    are cosines and sines of random frequencies, so that q of row i, turned to i - d, meets the key of token i - d alone. Every
    row has one d: one of its head's slashes, or a nearby token.
    Raises ValueError if head_dim is too small for that many tokens.
    """
    generator = torch.Generator().manual_seed(seed)
    mask, columns, slashes = _plan(length, heads, kv_heads, density, generator)
    pairs = (head_dim - 2) // 2
    strength = _strength(pairs, length)
    rest = length * math.exp(pairs * _log_i0(strength))  # the background's sum of exponentials, at the last row
    total = rest * (1 - BACKGROUND) / BACKGROUND
    frequency = torch.rand(pairs, generator=generator, dtype=torch.float64).to(device) * math.pi
    token = torch.arange(length, device=device)

    def turned(position):
        angle = position.double()[..., None] * frequency
        return torch.cat((angle.cos(), angle.sin()), -1).mul(math.sqrt(strength))

    q = torch.zeros(1, heads, length, head_dim, dtype=dtype, device=device)
    k = torch.zeros(1, kv_heads, length, head_dim, dtype=dtype, device=device)
    mass = torch.empty(kv_heads, length, device=device)
    unit = head_dim**0.25  # on both sides: takes back the scale of 1 / sqrt(head_dim)
    sink = math.log(SHARES["sink"] * total)
    keys = turned(token)
    for g, tokens in enumerate(columns):
        tokens = tokens.to(device)
        column = math.log(SHARES["columns"] * total / max(len(tokens), 1))
        k[0, g, :, 2 : 2 + 2 * pairs] = keys * unit
        k[0, g, 0] = k[0, g, tokens] = 0
        k[0, g, 0, 0], k[0, g, tokens, 1] = math.sqrt(sink) * unit, math.sqrt(column) * unit
        planted_sum = math.exp(sink) + math.exp(strength * pairs) + math.exp(column) * (token[:, None] >= tokens).sum(-1)
        mass[g] = planted_sum / (planted_sum + rest * (token + 1) / length)
        for h in range(g * heads // kv_heads, (g + 1) * heads // kv_heads):
            distance = torch.randint(1, BLOCK // 2, (length,), generator=generator)
            chosen = torch.randint(len(slashes[h]) + 1, (length,), generator=generator)
            for s, d in enumerate(slashes[h]):
                distance[(chosen == s) & (torch.arange(length) > d)] = d
            q[0, h, :, 2 : 2 + 2 * pairs] = turned((token - distance.to(device)).clamp_min(0)) * unit
            q[0, h, :, 0], q[0, h, :, 1] = math.sqrt(sink) * unit, math.sqrt(column) * unit
    v = torch.randn(k.shape, generator=torch.Generator(device).manual_seed(seed), device=device).to(dtype)
    return Planted(q, k, v, mask.to(device)[None], mass)


def _plan(length, heads, kv_heads, density, generator):
    """The tiles [heads, blocks, blocks], the column tokens of each key head, and each head's slashes in tokens."""
    blocks, group = -(-length // BLOCK), heads // kv_heads
    i = torch.arange(blocks)
    always = ((i[:, None] - i < 2) | (i == 0) | (i[:, None] == blocks - 1)) & (i[:, None] >= i)
    mask = always.repeat(heads, 1, 1)
    budget = density * blocks * (blocks + 1) / 2
    columns, slashes = [], []
    for h in range(heads):
        taken = []
        for s in (2 + torch.randperm(max(blocks - 3, 0), generator=generator)[: 4 * MOST_SLASHES]).tolist():
            left = budget - int(mask[h].sum())
            if len(taken) < MOST_SLASHES and 2 * (blocks - s) <= left / 3:
                mask[h].diagonal(-s).fill_(True)
                mask[h].diagonal(-s - 1).fill_(True)
                taken.append(s * BLOCK + int(torch.randint(BLOCK // 4, 3 * BLOCK // 4, (1,), generator=generator)))
        slashes.append(taken)
    for g in range(kv_heads):
        mine, tokens = mask[g * group : (g + 1) * group], []
        left = budget * group - int(mine.sum())
        for j in (1 + torch.randperm(max(blocks - 2, 0), generator=generator)).tolist():
            tiles = mine[:, j:, j]
            added = tiles.numel() - int(tiles.sum())
            if 0 < added <= left:
                tiles.fill_(True)
                left -= added
                tokens.append(j * BLOCK + int(torch.randint(BLOCK, (1,), generator=generator)))
        columns.append(torch.tensor(sorted(min(t, length - 1) for t in tokens), dtype=torch.int64))
    return mask, columns, slashes


def _strength(pairs: int, length: int) -> float:
    """The weight of one frequency at which the slash's share of the mass stands against the background's."""
    wanted = math.log(SHARES["slash"] * (1 - BACKGROUND) / BACKGROUND * length)
    low, high = 0.0, 4.0
    if pairs * (high - _log_i0(high)) < wanted:
        raise ValueError(f"head_dim is too small to plant a slash among {length} tokens")
    for _ in range(50):
        middle = (low + high) / 2
        low, high = (middle, high) if pairs * (middle - _log_i0(middle)) < wanted else (low, middle)
    return high


def _log_i0(x: float) -> float:
    return math.log(float(torch.special.i0(torch.tensor(x, dtype=torch.float64))))
