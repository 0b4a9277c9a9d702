"""sample_attention under torch.compile: one operator, so that a model around it stays one graph.

The graph sees shapes only. The operator runs what eager calls run: the method is not traced, and not fused with its neighbours.
"""

from __future__ import annotations

import dataclasses

import torch
from torch import Tensor

from sampleattn.config import SampleAttentionConfig

SETTINGS = tuple(field.name for field in dataclasses.fields(SampleAttentionConfig))
_TYPES = {"float": "float", "int": "int", "str": "str", "float | None": "float?", "int | None": "int?"}
_ARGUMENTS = ", ".join(f"{_TYPES[field.type]} {field.name}" for field in dataclasses.fields(SampleAttentionConfig))


def attention(
    q: Tensor, k: Tensor, v: Tensor, config: SampleAttentionConfig, scale: float | None, padding: Tensor | None
) -> Tensor:
    """`sampleattn.sample_attention` as an operator of the graph: out [B, Hq, Nq, Dv], contiguous."""
    # An operator takes no objects. Settings read one by one are guarded: a graph never runs with the settings of another one.
    return _operator(q, k, v, padding, scale, *[getattr(config, name) for name in SETTINGS])


@torch.library.custom_op(
    "sampleattn::sample_attention",
    mutates_args=(),
    schema=f"(Tensor q, Tensor k, Tensor v, Tensor? padding, float? scale, {_ARGUMENTS}) -> Tensor",
)
def _operator(q, k, v, padding, scale, *settings):
    from sampleattn.attention import sample_attention

    config = SampleAttentionConfig(**dict(zip(SETTINGS, settings, strict=True)))
    return sample_attention(q, k, v, config, scale, padding).contiguous()


@_operator.register_fake
def _(q, k, v, padding, scale, *settings):
    return q.new_empty(*q.shape[:3], v.shape[3])
