"""The kernels that hand work from warp to warp, as they are or with warps that come late: what each computes, as hashes.

python tests/disturbed.py [late]

racecheck does not follow mbarriers (notes/kernels.md). "late" puts random delays before and after every wait and arrival, so
that warps meet in orders that they hardly meet in otherwise; what they compute must stay the same, bit for bit. Whether delays
show a fault is told by a small kernel that leaves a buffer before it has read it.
"""

import hashlib
import json
import sys
import types
from pathlib import Path

import torch
from triton.experimental import gluon
from triton.experimental.gluon import language as gl
from triton.experimental.gluon.language.nvidia.hopper import mbarrier

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from sampleattn import backends  # noqa: E402
from sampleattn.kernels import (  # noqa: E402
    block_sparse_attention_hopper,
    causal_attention,
    hopper,
    hopper_work,
    row_logsumexp_hopper,
    sampled_tile_masses_hopper,
)

TOKENS, TIMES, HANDED = 4500, 5, 200
# One warp in four waits, up to 4 us.
DELAY = gl.constexpr(
    "{ .reg .u32 now, chance; mov.u32 now, %clock; mov.u32 chance, %warpid; mad.lo.u32 chance, chance, 0x9E3779B1, now;"
    " mul.lo.u32 chance, chance, 0x85EBCA6B; shr.u32 now, chance, 30; shr.u32 chance, chance, 18; .reg .pred much;"
    " setp.eq.u32 much, now, 0; @much nanosleep.u32 chance; mov.b32 $0, $1; }"
)


@gluon.jit
def _late(x):
    return gl.inline_asm_elementwise(DELAY, "=r,r", [x], dtype=gl.int32, is_pure=False, pack=1)


@gluon.jit
def _wait(bar, phase):
    mbarrier.wait(bar, _late(gl.to_tensor(phase)))
    _late(gl.to_tensor(0))


@gluon.jit
def _arrive(bar, count: gl.constexpr):
    _late(gl.to_tensor(0))
    mbarrier.arrive(bar, count=count)
    _late(gl.to_tensor(0))


late_mbarrier = types.ModuleType("late_mbarrier")
late_mbarrier.__dict__.update(vars(mbarrier) | {"wait": _wait, "arrive": _arrive})


@gluon.jit
def _give(source_ptr, buffer, full, empty, count):
    for t in range(count):
        late_mbarrier.wait(empty, (t & 1) ^ 1)
        buffer.store(gl.load(source_ptr + t * 128 + gl.arange(0, 128, layout=gl.BlockedLayout([1], [32], [1], [0]))))
        late_mbarrier.arrive(full, count=1)


@gluon.jit
def _take(target_ptr, buffer, full, empty, count, LEAVES_EARLY: gl.constexpr):
    layout: gl.constexpr = gl.BlockedLayout([1], [32], [4], [0])
    for t in range(count):
        late_mbarrier.wait(full, t & 1)
        if LEAVES_EARLY:
            late_mbarrier.arrive(empty, count=1)
        gl.store(target_ptr + t * 128 + gl.arange(0, 128, layout=layout), buffer.load(layout))
        if not LEAVES_EARLY:
            late_mbarrier.arrive(empty, count=1)


@gluon.jit
def _hand_over(source_ptr, target_ptr, count, LEAVES_EARLY: gl.constexpr):
    buffer = gl.allocate_shared_memory(gl.float32, [128], gl.SwizzledSharedLayout(1, 1, 1, [0]))
    full = gl.allocate_shared_memory(gl.int64, [1], mbarrier.MBarrierLayout())
    empty = gl.allocate_shared_memory(gl.int64, [1], mbarrier.MBarrierLayout())
    mbarrier.init(full, count=1)
    mbarrier.init(empty, count=1)
    gl.warp_specialize(
        [(_take, (target_ptr, buffer, full, empty, count, LEAVES_EARLY)), (_give, (source_ptr, buffer, full, empty, count))],
        [1],
        [40],
    )


def hands_over(leaves_early: bool) -> bool:
    """Whether the small kernel hands everything over as it was."""
    source = torch.randn(HANDED, 128, device="cuda")
    target = torch.zeros_like(source)
    _hand_over[(1,)](source, target, HANDED, leaves_early, num_warps=4)
    return torch.equal(source, target)


def inputs(head_dim):
    generator = torch.Generator("cuda").manual_seed(head_dim)
    return [
        torch.randn(1, heads, TOKENS, head_dim, generator=generator, device="cuda", dtype=torch.bfloat16) for heads in (16, 4, 4)
    ]


def calls(head_dim):
    """The kernels' names and calls without arguments."""
    q, k, v = inputs(head_dim)
    kernels, blocks = backends.twins("triton"), -(-TOKENS // 128)
    mask = torch.rand(1, 16, blocks, blocks, generator=torch.Generator().manual_seed(0)) < 0.4
    mask = (mask | torch.eye(blocks, dtype=torch.bool)).cuda()
    padded = torch.tensor([[300, TOKENS]], dtype=torch.int32, device="cuda")
    rows = torch.arange(7, TOKENS, 9, device="cuda")[None]
    yield "forward", lambda: kernels.block_sparse_attention(q, k, v, mask)
    yield "forward, padded", lambda: kernels.block_sparse_attention(q, k, v, mask, key_range=padded)
    yield "dense", lambda: (causal_attention.causal_attention(q, k, v),)
    yield "row logsumexp", lambda: (kernels.row_logsumexp(q, k, key_range=padded),)
    yield "tile masses", lambda: kernels.sampled_tile_masses(q, k, rows, key_range=padded)


def bits(tensors) -> str:
    return hashlib.sha256(b"".join(x.view(torch.uint8).cpu().numpy().tobytes() for x in tensors)).hexdigest()


def main() -> None:
    if "late" in sys.argv[1:]:
        for module in (block_sparse_attention_hopper, hopper, hopper_work, row_logsumexp_hopper, sampled_tile_masses_hopper):
            module.mbarrier = late_mbarrier
    found = {
        f"{name}, head_dim {head_dim}": sorted({bits(call()) for _ in range(TIMES)})
        for head_dim in (64, 128)
        for name, call in calls(head_dim)
    }
    found["hands over"] = hands_over(leaves_early=False)
    found["leaves early"] = all(hands_over(leaves_early=True) for _ in range(TIMES))
    print(json.dumps(found))


if __name__ == "__main__":
    main()
