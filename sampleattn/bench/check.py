"""Every operator that is timed is first held against float64, or against its torch twin, on the same device: no speed is reported
of one that is wrong."""

from __future__ import annotations

from collections.abc import Callable

import torch
import torch.nn.functional as F

from sampleattn import backends
from sampleattn.attention import sample_attention
from sampleattn.block_mask import Grid
from sampleattn.config import SampleAttentionConfig
from sampleattn.maps import attention_map
from sampleattn.planted import BLOCK

LENGTH = 600
HEADS, KV_HEADS = 4, 2


def check(operators, config: SampleAttentionConfig, device, dtype, head_dim: int) -> dict[str, str]:
    """What is wrong with operators (names of OPERATORS): a sentence for each that is.

    config: names the backend, and the settings of the whole method.
    """
    reference = _Reference(config, device, dtype, head_dim)
    wrong = {}
    for name in operators:
        try:
            for found, truth, allowed in OPERATORS[name](reference):
                error = float((found.double() - truth.double()).abs().max())
                if not error <= allowed:
                    wrong[name] = f"{name} is off by {error:.3g} from its reference (allowed {allowed:.3g})"
        except Exception as error:  # a kernel that does not compile, say
            wrong[name] = f"{name} fails: {type(error).__name__}: {' '.join(str(error).split())[:300]}"
    return wrong


class _Reference:
    """Random inputs and their attention in float64."""

    def __init__(self, config, device, dtype, head_dim):
        generator = torch.Generator().manual_seed(7)
        shapes = ((heads, LENGTH, head_dim) for heads in (HEADS, KV_HEADS, KV_HEADS))
        self.q, self.k, self.v = (torch.randn(1, *shape, generator=generator).to(device, dtype) for shape in shapes)
        blocks = -(-LENGTH // BLOCK)
        random = torch.rand(1, HEADS, blocks, blocks, generator=generator) < 0.5
        self.mask = random.logical_or(torch.eye(blocks, dtype=torch.bool)).tril().to(device)
        logits = self.q.double() @ self._repeated(self.k).mT * head_dim**-0.5
        future = torch.ones(LENGTH, LENGTH, dtype=torch.bool, device=device).triu(1)
        self.logits = logits.masked_fill(future, -torch.inf)
        self.weights = self.logits.softmax(-1)
        self.config = config
        self.ops = backends.twins(backends.resolve(config.backend, self.q.device, dtype))
        self.rounding = max(4 * torch.finfo(dtype).eps, 1e-5)

    def _repeated(self, x):
        return x.double().repeat_interleave(HEADS // KV_HEADS, 1)

    def attention(self, mask):
        cells = mask.repeat_interleave(BLOCK, 2).repeat_interleave(BLOCK, 3)[:, :, :LENGTH, :LENGTH]
        return self.logits.masked_fill(~cells, -torch.inf).softmax(-1) @ self._repeated(self.v)


def _sparse_forward(x):
    yield x.ops.block_sparse_attention(x.q, x.k, x.v, x.mask)[0], x.attention(x.mask), x.rounding


def _row_logsumexp(x):
    yield x.ops.row_logsumexp(x.q, x.k), x.logits.logsumexp(-1), 1e-4


def _sampled_tile_masses(x):
    rows = torch.arange(0, LENGTH, 3, device=x.q.device)[None]
    masses = F.pad(x.weights[:, :, ::3], (0, -LENGTH % BLOCK)).unflatten(-1, (-1, BLOCK)).sum(-1)
    yield x.ops.sampled_tile_masses(x.q, x.k, rows)[0], masses, 1e-4


def _selected_tiles(x):
    """Bit for bit the torch twin's choice, from the same masses: of a target, and of a fixed density."""
    length, rows = 64 * BLOCK, torch.arange(0, 64 * BLOCK, 64, device=x.q.device)[None]
    grid, generator = Grid(length, length, BLOCK, x.q.device), torch.Generator().manual_seed(8)
    scores = 3 * torch.randn(1, HEADS, rows.shape[1], grid.key_blocks, generator=generator).to(x.q.device)
    masses = scores.masked_fill(rows[0, :, None] // BLOCK < torch.arange(grid.key_blocks, device=x.q.device), -torch.inf).softmax(
        -1
    )
    for config in (x.config, x.config.replace(density=0.3)):
        chosen = (
            twin(masses, rows, grid, config, 1)[0] for twin in (x.ops.selected_tiles, backends.twins("torch").selected_tiles)
        )
        yield *(mask.int() for mask in chosen), 0


def _index_lists(x):
    if x.ops.name == "torch":
        return
    from sampleattn.kernels.block_index_lists import block_index_lists

    ids, spans = block_index_lists(x.mask, LENGTH, LENGTH)
    listed = torch.arange(ids.shape[-1], device=ids.device) < spans[..., 2:3]
    found = torch.zeros_like(x.mask, dtype=torch.int32).scatter_add_(-1, ids.long() * listed, listed.int())
    yield found, x.mask.int(), 0


def _sample_attention(x):
    out, selection = sample_attention(x.q, x.k, x.v, x.config, return_selection=True)
    yield out, x.attention(selection.block_mask & Grid(LENGTH, LENGTH, BLOCK, x.q.device).causal), x.rounding


def _attention_map(x):
    for reduce, pool in (("max", torch.amax), ("sum", torch.sum)):
        found = attention_map(x.q, x.k, shape=(LENGTH // 4, LENGTH // 4), reduce=reduce)
        cells = x.weights.unflatten(-1, (-1, 4)).unflatten(-3, (-1, 4))
        yield found, pool(cells, (-3, -1)), 1e-3


OPERATORS: dict[str, Callable] = {
    "block_sparse_attention": _sparse_forward,
    "row_logsumexp": _row_logsumexp,
    "sampled_tile_masses": _sampled_tile_masses,
    "selected_tiles": _selected_tiles,
    "block_index_lists": _index_lists,
    "sample_attention": _sample_attention,
    "attention_map": _attention_map,
}
