"""What is timed: calls with their operations (of causal attention once, on the computed tiles) and their bytes (each input read
once, each output written once)."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from functools import partial

import torch
from torch import Tensor

from sampleattn import backends
from sampleattn.attention import sample_attention
from sampleattn.bench import rivals
from sampleattn.bench.feeds import Feed, all_tiles
from sampleattn.bench.timing import with_memory
from sampleattn.block_mask import Grid
from sampleattn.config import SampleAttentionConfig
from sampleattn.filtering import select
from sampleattn.maps import attention_map
from sampleattn.planted import BLOCK
from sampleattn.sampling import sampled_rows

MATRIX, COPY_BYTES = 8192, 2 << 30
CPU_MATRIX, CPU_COPY_BYTES = 1024, 128 << 20
MAP_CELLS, MAP_WINDOW = 1024, 4096


@dataclass(frozen=True)
class Case:
    """One thing to time: `make()` prepares it and is a context of the call.

    density: the share of the causal tiles, None where there is none. memory: bytes above inputs and output, where making
    the case has told it.
    """

    what: str
    implementation: str
    make: Callable[[], AbstractContextManager[Callable[[], object]]]
    density: float | None = None
    operations: float | None = None
    bytes: float | None = None
    rival: bool = False
    memory: int | None = None


Cases = Iterator[tuple[Case, ...]]  # those of one tuple take turns


def forced(device: torch.device, **settings) -> SampleAttentionConfig:
    """The config that runs the method at any length: Triton on a GPU that can, torch elsewhere."""
    triton = device.type == "cuda" and not backends.triton_obstacle(device)
    return SampleAttentionConfig(dense_below=0, backend="triton" if triton else "torch", **settings)


def _call(function: Callable[[], object]):
    return partial(nullcontext, function)


# Parts: each gives cases for one feed


def roof(device: torch.device, dtype: torch.dtype) -> Cases:
    """What the machine can do: a large matrix product, and a copy of memory."""
    cuda = device.type == "cuda"
    size, count = (MATRIX, COPY_BYTES) if cuda else (CPU_MATRIX, CPU_COPY_BYTES)
    a, b = (torch.randn(size, size, device=device, dtype=torch.float32).to(dtype) for _ in range(2))
    yield (Case("matmul", "torch", _call(lambda: a @ b), None, 2.0 * size**3, 3.0 * a.nbytes),)
    source = torch.randint(-128, 127, (count // 2,), dtype=torch.int8, device=device)
    target = torch.empty_like(source)
    yield (Case("copy", "torch", _call(lambda: target.copy_(source)), None, None, float(count)),)


def _rivals(feed: Feed, names=None) -> Cases:
    for name in names or rivals.dense_names(feed.q.device):
        yield (_dense(feed, name),)


def _dense(feed, name):
    make = partial(rivals.dense, name, feed.q, feed.k, feed.v)
    return Case("dense", name, make, 1.0, on_all(feed), moved(feed), rival=True)


def forward(feed: Feed, density: float) -> Cases:
    """The sparse forward on the feed's mask, index lists included; dense rivals, and block-sparse ones on the same mask."""
    feed = _with_mask(feed)
    yield from _rivals(feed)
    yield _sparse(feed)
    for name in rivals.sparse_names(feed.q.device):
        make = partial(rivals.block_sparse, name, feed.q, feed.k, feed.v, feed.mask)
        yield (Case("sparse_forward", name, make, feed.density, on_tiles(feed.mask, feed.q.shape[-1]), moved(feed), rival=True),)


def _with_mask(feed) -> Feed:
    """A feed that has no mask gets the tiles that the method selects."""
    if feed.mask is not None:
        return feed
    _, selection = sample_attention(feed.q, feed.k, feed.v, forced(feed.q.device), return_selection=True)
    return Feed(feed.q, feed.k, feed.v, selection.block_mask, feed.source)


def _sparse(feed):
    ops = _ops(feed)
    call = _call(lambda: ops.block_sparse_attention(feed.q, feed.k, feed.v, feed.mask))
    return (Case("sparse_forward", ops.name, call, feed.density, on_tiles(feed.mask, feed.q.shape[-1]), moved(feed)),)


def everything(feed: Feed, density: float) -> Cases:
    """The sparse forward with every causal tile kept, and the dense rivals."""
    yield from _rivals(feed)
    yield _sparse(Feed(feed.q, feed.k, feed.v, all_tiles(feed), feed.source))


def stages(feed: Feed, density: float) -> Cases:
    """Stage 1 (the choice of rows included), stage 2 and the index lists: each alone, and one after the other as the method runs
    them."""
    yield from _stages(feed, forced(feed.q.device))


def _stages(feed, config):
    ops, q, k = _ops(feed), feed.q, feed.k
    heads, length, head_dim = q.shape[1:]

    def grid():
        return Grid(length, length, BLOCK, q.device)

    rows = sampled_rows(grid(), config, ops)
    masses, lse = ops.sampled_tile_masses(q, k, rows)
    read = rows.numel() * heads * head_dim * q.element_size() + k.nbytes
    call = _call(lambda: ops.sampled_tile_masses(q, k, sampled_rows(grid(), config, ops)))
    operations = 2 * heads * head_dim * float((rows + 1).sum())
    yield (Case("stage_1", ops.name, call, None, operations, float(read + masses.nbytes + lse.nbytes)),)
    selection = select(masses, rows, grid(), config, ops)
    mask, share = selection.block_mask, float(selection.density.mean())
    call = _call(lambda: select(masses, rows, grid(), config, ops))
    yield (Case("selection", choice(config), call, share, None, float(masses.nbytes + mask.numel())),)
    if ops.name == "triton":
        from sampleattn.kernels.block_index_lists import block_index_lists

        ids, spans = block_index_lists(mask, length, length)
        listed = mask.numel() + float(mask.sum()) * ids.element_size() + spans.nbytes
        yield (Case("index_lists", ops.name, _call(lambda: block_index_lists(mask, length, length)), share, None, listed),)

        def choose():
            rows = sampled_rows(grid(), config, ops)
            masses, _ = ops.sampled_tile_masses(q, k, rows)
            return block_index_lists(select(masses, rows, grid(), config, ops).block_mask, length, length)

        yield (Case("choosing", choice(config), _call(choose), share, operations, float(read + listed)),)


def method(feed: Feed, density: float) -> Cases:
    """The whole of sample_attention, as its target asks and with `density` imposed, and SDPA's dense attention."""
    config = forced(feed.q.device)
    yield from _rivals(feed, ("cudnn", "flash") if feed.q.is_cuda else None)
    yield from _methods(feed, config, config.replace(density=density))


def recorded(feed: Feed, density: float) -> Cases:
    """The method and its stages as the target asks, and SDPA's dense attention."""
    config = forced(feed.q.device)
    yield from _rivals(feed, ("cudnn", "flash") if feed.q.is_cuda else None)
    yield from _methods(feed, config)
    yield from _stages(feed, config)
    yield _sparse(_with_mask(feed))


def million(feed: Feed, density: float) -> Cases:
    """The method with `density` imposed, alone."""
    yield from _methods(feed, forced(feed.q.device, density=density))


def _methods(feed, *configs):
    for config in configs:
        yield (_method(feed, config, _named(feed, config)),)


def _method(feed, config, name):
    q, k, v = feed.q, feed.k, feed.v
    memory, (_, selection) = with_memory(lambda: sample_attention(q, k, v, config, return_selection=True), q.device)
    share = 1.0 if selection.dense else float(selection.density.mean())
    work = on_all(feed) if selection.dense else on_tiles(selection.block_mask, q.shape[-1])
    del selection
    call = _call(lambda: sample_attention(q, k, v, config))
    return Case("sample_attention", name, call, share, work, moved(feed), memory=memory)


def auto(feed: Feed, density: float) -> Cases:
    """`backend="auto"` as users get it, dense attention, and the method whatever the length, in turns."""
    config = forced(feed.q.device, density=density)
    open_choice = config.replace(backend="auto", dense_below=SampleAttentionConfig().dense_below)
    first = rivals.dense_names(feed.q.device)[0]
    ours = _method(feed, open_choice, f"auto, {choice(config)}"), _method(feed, config, _named(feed, config))
    yield (_dense(feed, first), *ours)


def logsumexp(feed: Feed, density: float) -> Cases:
    """The logsumexp of every row, and cuDNN's dense attention."""
    yield from _rivals(feed, rivals.dense_names(feed.q.device)[:1])
    ops, q, k = _ops(feed), feed.q, feed.k
    moved_once = float(q.nbytes + k.nbytes + 4 * q.shape[1] * q.shape[2])
    yield (Case("row_logsumexp", ops.name, _call(lambda: ops.row_logsumexp(q, k)), 1.0, on_all(feed) / 2, moved_once),)


def maps(feed: Feed, density: float) -> Cases:
    """One head's whole triangle and a window at its end, from q, k and the row logsumexp."""
    q, k, length = feed.q[:, :1], feed.k[:, :1], feed.length
    lse = _ops(feed).row_logsumexp(q, k)
    cells, window = min(MAP_CELLS, length), min(MAP_WINDOW, length)
    for what, side in (("map_whole", length), ("map_window", window)):
        span = (length - side, length)
        shape = (min(cells, side),) * 2
        call = _call(lambda span=span, shape=shape: attention_map(q, k, span, span, shape, "max", lse=lse))
        read = 2 * side * q.shape[-1] * q.element_size() + 4 * side + 4 * shape[0] * shape[1]
        yield (Case(what, f"{shape[0]} x {shape[1]}", call, 1.0, q.shape[-1] * side**2, read),)


def _ops(feed):
    return backends.twins(forced(feed.q.device).backend)


def choice(config: SampleAttentionConfig) -> str:
    """How a row calls the choice of tiles: "joint", or "density 0.1" where it is imposed."""
    return config.selection if config.density is None else f"density {config.density:g}"


def _named(feed, config):
    return f"{_ops(feed).name}, {choice(config)}"


# Work


def on_tiles(mask: Tensor, head_dim: int) -> float:
    """Operations of QK and PV over the tiles of a causal mask; a diagonal tile counts half."""
    tiles = float(mask.sum()) - float(mask.diagonal(dim1=-2, dim2=-1).sum()) / 2
    return 4 * head_dim * BLOCK**2 * tiles


def on_all(feed: Feed) -> float:
    """Operations of dense causal attention."""
    heads, length, head_dim = feed.q.shape[1:]
    return 4 * heads * head_dim * length**2 / 2


def moved(feed: Feed) -> float:
    """Bytes of q, k, v and of the output, each once."""
    return float(2 * feed.q.nbytes + feed.k.nbytes + feed.v.nbytes)
