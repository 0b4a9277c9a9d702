"""Exact attention for every layer that does not run sparse: any mask, grouped heads, soft-capping, sinks."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

from sampleattn.dense import causal_attention
from sampleattn.hf_mask import CausalMask

SCORES_AT_ONCE = {"cpu": 2**24, "cuda": 2**27}


def dense_attention(
    query: Tensor,
    key: Tensor,
    value: Tensor,
    mask: Tensor | None,
    scale: float,
    softcap: float | None = None,
    sinks: Tensor | None = None,
    dropout: float = 0.0,
) -> Tensor:
    """Exact attention [B, Hq, Nq, Dv] with grouped heads; never builds Nq x Nk for a CausalMask.

    mask: a CausalMask, bool (True is visible) or additive [B or 1, 1 or Hq, Nq, Nk], or None (every key is visible).
    softcap: scores become softcap * tanh(scores / softcap). sinks: [Hq], one more logit per head that takes mass only.
    Rows that see no key give 0.
    """
    plain = softcap is None and sinks is None
    lower = isinstance(mask, CausalMask)
    if plain and lower and mask.window is None and mask.offset == 0 and mask.spans is not None:
        if not mask.padded:
            return causal_attention(query, key, value, scale, dropout)
        output = query.new_zeros(*query.shape[:3], value.shape[-1])
        for b, (first, last) in enumerate(mask.spans):
            if last > first:
                q, k, v = (x[b : b + 1, :, first:last] for x in (query, key, value))
                output[b : b + 1, :, first:last] = causal_attention(q, k, v, scale, dropout)
        return output

    rows, keys = query.shape[2], key.shape[2]
    window = mask.window if lower else None
    width = keys if window is None else min(keys, window)
    step = max(1, SCORES_AT_ONCE.get(query.device.type, 2**24) // (query.shape[0] * query.shape[1] * width))
    if window is not None:
        step = min(step, window)
    output = []
    for first in range(0, rows, step):
        last = min(first + step, rows)
        if lower:
            seen = (0 if window is None else max(0, mask.offset + first - window + 1), mask.offset + last)
            visible = mask.part((first, last), seen)
        else:
            seen, visible = (0, keys), None if mask is None else mask[:, :, first:last]
        q, k, v = query[:, :, first:last], key[:, :, seen[0] : seen[1]], value[:, :, seen[0] : seen[1]]
        output.append(_masked(q, k, v, visible, scale, softcap, sinks, dropout))
    return torch.cat(output, 2)


def _masked(query, key, value, visible, scale, softcap, sinks, dropout):
    """Attention of a few rows under an explicit mask; the query heads of a group are folded into the rows of their key head."""
    batch, heads, rows, _ = query.shape
    kv_heads = key.shape[1]
    groups = heads // kv_heads
    folded = query.reshape(batch, kv_heads, groups * rows, -1)
    mask = visible
    if mask is not None:
        shared = mask.shape[1] == 1
        mask = mask.repeat(1, 1, groups, 1) if shared else mask.reshape(mask.shape[0], kv_heads, groups * rows, -1)
    if softcap is None and sinks is None:
        output = F.scaled_dot_product_attention(folded, key, value, attn_mask=mask, dropout_p=dropout, scale=scale)
    else:
        scores = (folded @ key.transpose(-1, -2)).float() * scale
        if softcap is not None:
            scores = softcap * torch.tanh(scores / softcap)
        if mask is not None:
            scores = scores.masked_fill(~mask, -torch.inf) if mask.dtype == torch.bool else scores + mask
        if sinks is not None:
            sink = sinks.float().view(1, kv_heads, groups, 1).expand(batch, -1, -1, rows).reshape(batch, kv_heads, -1, 1)
            scores = torch.cat([scores, sink], -1)
        weights = F.dropout(scores.softmax(-1)[..., : key.shape[2]], dropout, training=dropout > 0)
        output = weights.to(value.dtype) @ value
    if mask is not None and mask.dtype == torch.bool:
        output = output.masked_fill(~mask.any(-1, keepdim=True), 0.0)
    return output.reshape(batch, heads, rows, -1)
