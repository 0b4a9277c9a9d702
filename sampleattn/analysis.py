"""Everything a trace says of one layer, from its q, k, v, and without an N x N array."""

from __future__ import annotations

import time
from collections.abc import Callable, Collection

import numpy as np
import torch
from torch import Tensor

from sampleattn import backends
from sampleattn.attention import sample_attention
from sampleattn.config import SampleAttentionConfig
from sampleattn.estimate import table
from sampleattn.exact import Exact, exact_by_torch, rows_of_blocks
from sampleattn.exact_kernels import exact_by_kernels
from sampleattn.filtering import Selection
from sampleattn.patterns import label_heads, slash_sums
from sampleattn.recall import at_target, reached_by


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
    """What a trace keeps its part of (`trace_format.ANALYSED_ARRAYS`), the heads' labels, the seconds of each stage, the pins,
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
    given = query, key, selection.block_mask, config, scale, tick
    backend = backends.resolve(config.backend, query.device, query.dtype, config.block_size, query.shape[-1])
    found = exact_by_torch(*given) if backend == "torch" else exact_by_kernels(backends.twins("triton"), *given)
    mean_tiles = found.mean_tiles()
    arrays = _of_all_rows(found, mean_tiles, config) | _selected(selection) | {"output_error": _numpy(error)}
    pins = {head: pinned(query, key, found.lse, head) for head in pin}
    labels = label_heads(mean_tiles)
    clock.lap("analysis")
    answers = {} if selection.dense else table(selection, config, lambda: tick(1.0))
    clock.lap("estimates")
    return arrays, labels, clock.seconds, pins, answers


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


def _of_all_rows(exact: Exact, mean_tiles: np.ndarray, config: SampleAttentionConfig) -> dict[str, np.ndarray]:
    recall, tokens = _numpy(exact.recall), exact.recall.shape[-1]
    sums = mean_tiles * rows_of_blocks(tokens, config.block_size)[:, None]
    return {
        "overview": _numpy(exact.overview.half()),
        "recall": recall,
        "column_mass": (sums.sum(1) / tokens).astype(np.float32),
        "slash_mass": (slash_sums(sums) / tokens).astype(np.float32),
        "cra": recall.min(-1),
        "rows_at_target": at_target(recall, config.cra),
        "recall_reached": reached_by(recall, config.rows_at_target),
        "oracle_density": _numpy(exact.oracle_density),
    }


def _selected(selection: Selection) -> dict[str, np.ndarray]:
    kept = torch.nonzero(selection.rows[0] >= 0)[:, 0]
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
