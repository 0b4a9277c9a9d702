"""What `backend="auto"` takes on a GPU: the faster of dense attention and the method, and the fastest forward for its tiles.

The density is known on the GPU only, after the selection, and asking for it would make the host wait: length alone decides.
"""

from __future__ import annotations

from functools import cache
from typing import NamedTuple

import torch
from torch import Tensor

from sampleattn import backends
from sampleattn.config import SampleAttentionConfig


class Measured(NamedTuple):
    """break_even: keys from which on the whole method at 10% density beats dense attention, also where the host is slow.

    forwards: the block-sparse forwards, the fastest first; the first that can run is taken.
    dense: what is faster for dense causal attention, "triton" (on Hopper) or "cudnn".
    """

    break_even: int
    forwards: tuple[str, ...]
    dense: str = "cudnn"


# Compute capability -> largest head_dim -> what was measured, by `python -m sampleattn bench` (parts auto and forward; bf16, B=1,
# 32 query and 8 key heads). Change the rows when it says otherwise, and the date with them.
MEASURED_ON = "an H100 and an H200, 2026-11-24 and 29"
TABLE = {
    (9, 0): {
        64: Measured(8192, ("triton",), "triton"),
        128: Measured(8192, ("triton",), "triton"),
        256: Measured(65536, ("triton",), "triton"),
    }
}


@cache
def break_even(device: torch.device, dtype: torch.dtype, block_size: int, head_dim: int) -> int:
    """From how many keys on "auto" runs the method on a CUDA device; 0 where no kernel takes the inputs."""
    runs = backends.resolve("auto", device, dtype, block_size, head_dim)
    return measured(device, head_dim).break_even if runs == "triton" else 0


@cache
def measured(device: torch.device, head_dim: int) -> Measured:
    """The row of the table for a CUDA device; GPUs that nobody has measured get the one of compute capability 9.0."""
    rows = TABLE.get(torch.cuda.get_device_capability(device), TABLE[9, 0])
    return rows[min((dim for dim in rows if dim >= head_dim), default=max(rows))]


def dense_reason(config: SampleAttentionConfig, q: Tensor, keys: int) -> str:
    """Why a call with q [B, Hq, Nq, D] and this many keys runs dense; empty if the method runs.

    `dense_below` is the user's; the measured break-even counts for backend="auto" only, where the kernels would run.
    """
    if keys < config.dense_below:
        return f"{keys} tokens are fewer than dense_below = {config.dense_below}"
    if config.backend == "auto" and q.is_cuda:
        least = break_even(q.device, q.dtype, config.block_size, q.shape[-1])
        if keys < least:
            return f"dense is faster below {least} tokens (measured on {MEASURED_ON})"
    return ""


def backend_for(config: SampleAttentionConfig, q: Tensor, v: Tensor, padded: bool) -> str:
    """The name for `backends.twins`: the config's backend, or for "auto" the fastest that takes q and v [B, H, N, D].

    Raises, for a backend that is asked for by name, RuntimeError if it can't run here and ValueError if it can't take the inputs.
    """
    head_dim, value_dim = q.shape[-1], v.shape[-1]
    name = backends.resolve(config.backend, q.device, q.dtype, config.block_size, max(head_dim, value_dim))
    inputs = (q.dtype, head_dim, value_dim, config.block_size)
    if config.backend == "auto" and name == "triton":
        for forward in measured(q.device, head_dim).forwards:
            if forward == "triton" or not (backends.fa4_obstacle(q.device) or backends.fa4_misfit(*inputs, padded)):
                return forward
    misfit = ""
    if name == "triton":
        misfit = backends.triton_misfit(*inputs)
    elif name == "fa4":
        misfit = backends.fa4_misfit(*inputs, padded)
    if misfit:
        raise ValueError(f"backend={name!r} can't run: {misfit}")
    return name
