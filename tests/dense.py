"""The textbook answer, written without the library: dense float64 softmax attention with the whole matrix."""

import torch


def dense_attention(q, k, v, padding=None, scale=None):
    """out [B, Hq, Nq, Dv] and weights [B, Hq, Nq, Nk] in float64; rows of padding are 0."""
    q, k, v = q.double(), k.double(), v.double()
    group = q.shape[1] // k.shape[1]
    nq, nk = q.shape[2], k.shape[2]
    logits = q @ k.repeat_interleave(group, 1).mT * (q.shape[-1] ** -0.5 if scale is None else scale)
    visible = (torch.arange(nk) <= torch.arange(nq)[:, None] + nk - nq).expand(q.shape[0], 1, -1, -1)
    if padding is not None:
        visible = visible & padding[:, None, None] & padding[:, None, nk - nq :, None]
    weights = torch.softmax(logits.masked_fill(~visible, -torch.inf), -1).nan_to_num(0)
    return weights @ v.repeat_interleave(group, 1), weights


def cells(block_mask, nq, nk, block=128):
    """A block mask [..., qb, kb] as a mask of cells [..., Nq, Nk]."""
    return block_mask.repeat_interleave(block, -2)[..., :nq, :].repeat_interleave(block, -1)[..., :nk]


def pooled(weights, height, width, reduce):
    """weights [..., rows, columns] -> [..., height, width]: max, mean or sum over each cell of a picture."""
    for axis, cells in ((-2, height), (-1, width)):
        edges = [cell * weights.shape[axis] // cells for cell in range(cells + 1)]
        parts = weights.split([end - begin for begin, end in zip(edges, edges[1:], strict=False)], axis)
        weights = torch.stack([{"max": x.amax, "mean": x.mean, "sum": x.sum}[reduce](axis) for x in parts], axis)
    return weights


def planted(n, columns=(), slashes=(), heads=2, kv_heads=1, strength=120.0, batch=1, seed=0, dtype=torch.float32):
    """q, k, v whose attention goes to the token `columns` and to the distances `slashes`, in equal parts, and hardly
    elsewhere. Plant column 0, a sink, so that every row has a target.

    Each column is a direction that all queries share; distances use a rotary-like code of the position.
    """
    generator = torch.Generator().manual_seed(seed)
    code = torch.randn(n, 64, generator=generator)
    code = code / code.norm(dim=-1, keepdim=True)
    wanted = torch.zeros(n, 64)
    for distance in slashes:
        wanted[distance:] += code[: n - distance] if distance else code
    k = torch.cat((code, torch.zeros(n, 8)), -1)
    q = torch.cat((wanted, torch.zeros(n, 8)), -1)
    for c in columns:
        k[c] = 0
        k[c, 64] = 1
    q[:, 64] = 1
    q, k = q * strength, k
    q = q.expand(batch, heads, -1, -1) + 0.01 * torch.randn(batch, heads, n, 72, generator=generator)
    k = k.expand(batch, kv_heads, -1, -1) + 0.01 * torch.randn(batch, kv_heads, n, 72, generator=generator)
    v = torch.randn(batch, kv_heads, n, 32, generator=generator)
    return q.to(dtype).contiguous(), k.to(dtype).contiguous(), v.to(dtype)
