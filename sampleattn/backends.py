"""Which implementation runs: the torch twins (anywhere) or the Triton kernels (NVIDIA GPUs). Never silently changed."""

from __future__ import annotations

import os
from functools import cache
from importlib.util import find_spec
from types import SimpleNamespace

import torch

LEAST_CAPABILITY = (8, 0)  # bfloat16 matrix units
KERNEL_BLOCK = 128


def resolve(
    backend: str, device: torch.device | str, dtype: torch.dtype = torch.bfloat16, block_size: int = KERNEL_BLOCK
) -> str:
    """What runs, "torch" or "triton", for a backend of the config and the device, dtype and block size of the inputs.

    "auto" takes Triton for float16 and bfloat16 in blocks of 128 on an NVIDIA GPU of compute capability 8.0 or higher where
    Triton is installed, else torch.
    Raises RuntimeError if "triton" is asked for and can't run, ValueError for an unknown backend.
    """
    if backend not in ("auto", "torch", "triton"):
        raise ValueError(f"backend must be auto, torch or triton, not {backend!r}")
    if backend == "torch":
        return "torch"
    obstacle = triton_obstacle(torch.device(device))
    if backend == "auto":
        # The interpreter is for tests: "auto" never takes it.
        fits = dtype in (torch.float16, torch.bfloat16) and block_size == KERNEL_BLOCK
        return "triton" if fits and not obstacle and torch.device(device).type == "cuda" else "torch"
    if obstacle:
        raise RuntimeError(f"backend='triton' can't run: {obstacle}")
    return "triton"


def triton_obstacle(device: torch.device) -> str:
    """Why Triton kernels can't run on the device; empty if they can."""
    if find_spec("triton") is None:
        return "Triton is not installed (pip install triton)"
    if device.type != "cuda":
        interpreted = device.type == "cpu" and os.environ.get("TRITON_INTERPRET") == "1"
        return "" if interpreted else f"the tensors are on {device.type}, and Triton needs an NVIDIA GPU"
    if not torch.cuda.is_available() or torch.version.cuda is None:
        return "this PyTorch sees no NVIDIA GPU"
    capability = torch.cuda.get_device_capability(device)
    if capability < LEAST_CAPABILITY:
        found, least = ".".join(map(str, capability)), ".".join(map(str, LEAST_CAPABILITY))
        return f"the GPU has compute capability {found}, and the kernels need {least}"
    return ""


@cache
def twins(name: str) -> SimpleNamespace:
    """The three functions of a resolved backend: sampled_tile_masses, block_sparse_attention, row_logsumexp."""
    if name == "torch":
        from sampleattn.reference import block_sparse_attention, row_logsumexp, sampled_tile_masses
    elif name == "triton":
        from sampleattn.kernels.block_sparse_attention import block_sparse_attention
        from sampleattn.kernels.row_logsumexp import row_logsumexp
        from sampleattn.kernels.sampled_tile_masses import sampled_tile_masses
    else:
        raise ValueError(f"twins are 'torch' or 'triton', not {name!r}")
    return SimpleNamespace(
        name=name,
        sampled_tile_masses=sampled_tile_masses,
        block_sparse_attention=block_sparse_attention,
        row_logsumexp=row_logsumexp,
    )
