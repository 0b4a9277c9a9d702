"""The inputs that are timed: planted structure, a recorded layer of the bundled model, or random values."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from sampleattn.planted import BLOCK, planted

PROMPT = "held_out_16k.txt"


@dataclass(frozen=True)
class Feed:
    """q [1, Hq, N, D]; k, v [1, Hkv, N, D]; mask bool [1, Hq, blocks, blocks] or None: the tiles of the sparse forward.

    source: "planted", "recorded" or "random", as the rows say it.
    """

    q: Tensor
    k: Tensor
    v: Tensor
    mask: Tensor | None
    source: str

    @property
    def length(self) -> int:
        return self.q.shape[2]

    @property
    def density(self) -> float | None:
        """The share of the causal tiles that the mask has."""
        if self.mask is None:
            return None
        blocks = self.mask.shape[-1]
        return float(self.mask.sum() / (self.mask.shape[1] * blocks * (blocks + 1) / 2))

    def cut(self, length: int) -> Feed:
        """The first `length` tokens, without a mask."""
        return Feed(*(x[:, :, :length].contiguous() for x in (self.q, self.k, self.v)), None, self.source)


def planted_feed(length, heads, kv_heads, head_dim, density, dtype, device) -> Feed:
    x = planted(length, heads, kv_heads, head_dim, density, dtype, device)
    return Feed(x.q, x.k, x.v, x.mask, "planted")


def random_feed(length, heads, kv_heads, head_dim, dtype, device) -> Feed:
    """Normal q, k and v: for lengths at which planting would take minutes, with the number of tiles imposed."""
    generator = torch.Generator(device).manual_seed(0)
    q, k, v = (
        torch.randn(1, each, length, head_dim, generator=generator, dtype=dtype, device=device)
        for each in (heads, kv_heads, kv_heads)
    )
    return Feed(q, k, v, None, "random")


def feed_of(q: Tensor, k: Tensor) -> Feed:
    """Recorded q [H, N, D] and k [Hkv, N, D], with normal values: what they are makes no difference to the time."""
    v = torch.randn(k.shape, generator=torch.Generator(k.device).manual_seed(0), device=k.device).to(k.dtype)
    return Feed(q[None], k[None], v[None], None, "recorded")


def recorded_feed(length: int, dtype, device, layer: int = 4) -> Feed:
    """q, k and v of one layer of the bundled model over `length` tokens of held-out text, repeated as often as it takes."""
    from sampleattn.hf import use_sample_attention
    from sampleattn.models import BUNDLED, BUNDLED_FOLDER, load_model

    model, tokenizer, _ = load_model(BUNDLED, device, dtype)
    ids = tokenizer((BUNDLED_FOLDER.parent / "prompts" / PROMPT).read_text(encoding="utf-8")).input_ids
    ids = (ids * -(-length // len(ids)))[:length]
    seen = []

    def observe(call):
        if call.layer == layer:
            seen.extend((call.query, call.key, call.value))
            raise _Seen

    with torch.no_grad(), use_sample_attention(model, None, observe):
        try:
            model(torch.tensor([ids], device=device), use_cache=False, logits_to_keep=1)
        except _Seen:
            q, k, v = seen
    return Feed(q.contiguous(), k.contiguous(), v.contiguous(), None, "recorded")


class _Seen(Exception):
    """Ends the forward once the layer was seen."""


def all_tiles(feed: Feed) -> Tensor:
    """The mask [1, Hq, blocks, blocks] that keeps every causal tile."""
    blocks = -(-feed.length // BLOCK)
    return torch.ones(blocks, blocks, dtype=torch.bool, device=feed.q.device).tril().expand(1, feed.q.shape[1], -1, -1)
