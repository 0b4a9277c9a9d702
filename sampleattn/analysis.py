"""Everything a trace says of one layer, from its q, k, v, in one pass over the query blocks and without an N x N array."""

from __future__ import annotations

import time
from collections.abc import Callable, Collection

import numpy as np
import torch
from torch import Tensor

from sampleattn.attention import sample_attention
from sampleattn.config import SampleAttentionConfig
from sampleattn.estimate import table
from sampleattn.filtering import Selection
from sampleattn.metrics import oracle_tiles
from sampleattn.patterns import label_heads, slash_sums
from sampleattn.recall import at_target, reached_by
from sampleattn.reference import logits
from sampleattn.trace_format import OVERVIEW

CHUNK_BYTES = 256 << 20
MOST_ROWS = 512


def analyse(
    query: Tensor,
    key: Tensor,
    value: Tensor,
    output: Tensor,
    config: SampleAttentionConfig,
    scale: float,
    pin: Collection[int] = (),
    tick: Callable[[float], None] = lambda share: None,
) -> tuple[dict[str, np.ndarray], list[str], dict[str, float], dict[int, dict[str, np.ndarray]], dict[str, np.ndarray]]:
    """The arrays of a layer's file (see `trace_format.LAYER_ARRAYS`), the heads' labels, the seconds of each stage, the pins,
    and the answers to other settings (`trace_format.ESTIMATE_ARRAYS`; none of a layer that ran dense).

    query, output [1, H, N, D]; key, value [1, Hkv, N, D] of a plain causal prefill; output is the dense attention's.
    pin: the heads whose q, lse and k are kept, as `TraceWriter.write_pin` takes them. tick is called with the share done, and may
    raise to stop.
    """
    clock = _Clock(query.device)

    def stage_done(stage):
        clock.lap(stage)
        tick(0.0)

    sparse, selection = sample_attention(query, key, value, config, scale, return_selection=True, on_stage=stage_done)
    error = _relative_error(sparse[0], output[0])
    del sparse
    one_pass = _OnePass(query[0], key[0], selection, config, scale)
    one_pass.run(tick)
    arrays = one_pass.arrays() | _selected(selection) | {"output_error": _numpy(error)}
    pins = {head: pinned(query, key, one_pass.lse, head) for head in pin}
    clock.lap("analysis")
    answers = {} if selection.dense else table(selection, config, lambda: tick(1.0))
    clock.lap("estimates")
    return arrays, label_heads(one_pass.mean_tiles()), clock.seconds, pins, answers


def pinned(query: Tensor, key: Tensor, lse: Tensor, head: int) -> dict[str, np.ndarray]:
    """What pinning a head keeps: q, k [N, D] (float32 if the model ran in it, else float16) and lse [N]. lse [H, N]"""
    kept = torch.float32 if query.dtype in (torch.float32, torch.float64) else torch.float16
    kv_head = head // (query.shape[1] // key.shape[1])
    return {"q": _numpy(query[0, head].to(kept)), "lse": _numpy(lse[head]), "k": _numpy(key[0, kv_head].to(kept))}


class _Clock:
    """Seconds of stages that follow each other on a device."""

    def __init__(self, device):
        self.device, self.seconds = device, {}
        self.last = self._now()

    def lap(self, stage: str) -> None:
        now = self._now()
        self.seconds[stage] = now - self.last
        self.last = now

    def _now(self):
        if self.device.type == "cuda":
            torch.cuda.synchronize(self.device)
        return time.perf_counter()


class _OnePass:
    """Exact weights, a query block and some heads at a time, reduced at once to what is kept of them."""

    def __init__(self, query, key, selection, config, scale):
        self.query, self.key, self.scale, self.config = query, key, scale, config
        self.mask = selection.block_mask[0]
        heads, tokens = query.shape[:2]
        self.heads, self.tokens, self.block = heads, tokens, config.block_size
        self.blocks = self.mask.shape[-1]
        self.cells = min(OVERVIEW, tokens)
        device = query.device
        self.lse = torch.empty(heads, tokens, device=device)
        self.recall = torch.empty(heads, tokens, device=device)
        self.tiles = torch.zeros(heads, self.blocks, self.blocks, device=device)
        self.oracle = torch.zeros(heads, device=device)
        self.overview = torch.zeros(heads, self.cells, self.cells, device=device)
        self.edges = [cell * tokens // self.cells for cell in range(self.cells + 1)]

    def run(self, tick):
        group = self.heads // self.key.shape[0]
        for i in range(self.blocks):
            begin, end = i * self.block, min((i + 1) * self.block, self.tokens)
            together = max(CHUNK_BYTES // (4 * (end - begin) * end * group), 1) * group
            for first in range(0, self.heads, together):
                self._block(i, begin, end, slice(first, min(first + together, self.heads)), group)
            tick((end / self.tokens) ** 2)

    def _block(self, i, begin, end, heads, group):
        keys = self.key[heads.start // group : heads.stop // group, :end].float()
        weights = logits(self.query[None, heads, begin:end].float(), keys[None], self.scale)[0]
        above = torch.ones(end - begin, end - begin, dtype=torch.bool, device=weights.device).triu_(1)
        weights[..., begin:end].masked_fill_(above, -torch.inf)
        top = weights.amax(-1, keepdim=True)
        total = weights.sub_(top).exp_().sum(-1, keepdim=True)
        weights.mul_(1 / total)
        self.lse[heads, begin:end] = (top + total.log())[..., 0]
        masses = weights.new_zeros(*weights.shape[:2], self.blocks)
        masses[..., : end // self.block] = weights[..., : end // self.block * self.block].unflatten(-1, (-1, self.block)).sum(-1)
        if end % self.block:
            masses[..., end // self.block] = weights[..., end // self.block * self.block :].sum(-1)
        self.recall[heads, begin:end] = (masses * self.mask[heads, i, None]).sum(-1).clamp_max_(1)
        self.tiles[heads, i] = masses.sum(1)
        self.oracle[heads] += oracle_tiles(masses[..., : i + 1], self.config.cra).sum(-1)
        self._draw(weights, begin, end, heads)

    def _draw(self, weights, begin, end, heads):
        """Into the overview: the largest weight of each cell. Rows are pooled first, which leaves little to pool along keys."""
        first, last = (begin + 1) * self.cells - 1, end * self.cells - 1
        first, last = first // self.tokens, last // self.tokens
        cuts = [max(self.edges[cell], begin) - begin for cell in range(first, last + 1)] + [end - begin]
        rows = torch.stack([weights[:, a:b].amax(1) for a, b in zip(cuts, cuts[1:], strict=False)], 1)
        picture = self.overview[heads, first : last + 1]
        filled = _pool_max(rows, self.edges, last + 1)
        picture[..., : last + 1] = torch.maximum(picture[..., : last + 1], filled)

    def mean_tiles(self) -> np.ndarray:
        """The mean mass of each tile over its block's rows, [H, blocks, blocks]."""
        rows = torch.full((self.blocks, 1), self.block, device=self.tiles.device)
        rows[-1] = self.tokens - (self.blocks - 1) * self.block
        return _numpy(self.tiles / rows)

    def arrays(self) -> dict[str, np.ndarray]:
        tiles, recall = _numpy(self.tiles), _numpy(self.recall)
        return {
            "overview": _numpy(self.overview.half()),
            "recall": recall,
            "column_mass": tiles.sum(1) / self.tokens,
            "slash_mass": (slash_sums(tiles) / self.tokens).astype(np.float32),
            "cra": recall.min(-1),
            "rows_at_target": at_target(recall, self.config.cra),
            "recall_reached": reached_by(recall, self.config.rows_at_target),
            "oracle_density": _numpy(self.oracle / (self.blocks * (self.blocks + 1) / 2)),
        }


def _pool_max(rows: Tensor, edges: list[int], cells: int) -> Tensor:
    """The maximum of non-negative rows [..., keys] within the first `cells` of the edges: [..., cells]."""
    starts = torch.tensor(edges[:cells], device=rows.device)
    sizes = torch.tensor(edges[1 : cells + 1], device=rows.device) - starts
    widest = max(b - a for a, b in zip(edges, edges[1:], strict=False))
    within = torch.arange(widest, device=rows.device)
    picked = rows[..., (starts[:, None] + within).clamp_max(rows.shape[-1] - 1)]
    return picked.masked_fill_(within >= sizes[:, None], 0).amax(-1)


def _selected(selection: Selection) -> dict[str, np.ndarray]:
    """The selection as a trace holds it; of more than 512 sampled rows, 512 evenly spread ones."""
    kept = torch.nonzero(selection.rows[0] >= 0)[:, 0]
    if len(kept) > MOST_ROWS:
        kept = kept[torch.linspace(0, len(kept) - 1, MOST_ROWS, device=kept.device).round().long()]
    return {
        "block_mask": _numpy(selection.block_mask[0]),
        "columns": _numpy(selection.columns[0]),
        "slashes": _numpy(selection.slashes[0]),
        "rows": _numpy(selection.rows[0, kept].int()),
        "tile_masses": _numpy(selection.tile_masses[0][:, kept].half()),
        "density": _numpy(selection.density[0].float()),
        "sampled_cra": _numpy(selection.sampled_cra[0].float()),
    }


def _relative_error(sparse: Tensor, dense: Tensor) -> Tensor:
    """|sparse - dense| / |dense| of each head: [H, N, D] -> [H]."""
    dense = dense.float()
    return (sparse.float() - dense).flatten(1).norm(dim=-1) / dense.flatten(1).norm(dim=-1).clamp_min(1e-30)


def _numpy(tensor: Tensor) -> np.ndarray:
    return tensor.detach().cpu().numpy()
