"""Which implementation runs: torch (anywhere), the Triton kernels (NVIDIA GPUs), or Triton with FlashAttention-4's forward.

Never silently changed: only "auto" chooses.
"""

from __future__ import annotations

import os
from functools import cache
from importlib.util import find_spec
from types import SimpleNamespace

import torch

LEAST_CAPABILITY = (8, 0)  # bfloat16 matrix units
FA4_CAPABILITY = (9, 0)  # on Blackwell its query blocks are 256 rows, on Ampere it has no block lists
KERNEL_BLOCK = 128
KERNEL_BLOCKS = (16, 32, 64, 128)
KERNEL_DTYPES = (torch.float16, torch.bfloat16)
LARGEST_HEAD_DIM = 256


def resolve(
    backend: str,
    device: torch.device | str,
    dtype: torch.dtype = torch.bfloat16,
    block_size: int = KERNEL_BLOCK,
    head_dim: int = 128,
) -> str:
    """What runs, "torch", "triton" or "fa4", for a backend of the config and the inputs; head_dim is the larger of D and Dv.

    "auto" takes Triton for float16 and bfloat16 in blocks of 128 and head dimensions up to 256 on an NVIDIA GPU of compute
    capability 8.0 or higher where Triton is installed, else torch.
    Raises RuntimeError if "triton" or "fa4" is asked for and can't run, ValueError for an unknown backend.
    """
    device = torch.device(device)
    if backend == "torch":
        return "torch"
    if backend == "auto":
        # The interpreter is for tests: "auto" never takes it.
        fits = device.type == "cuda" and dtype in KERNEL_DTYPES and block_size == KERNEL_BLOCK and head_dim <= LARGEST_HEAD_DIM
        return "triton" if fits and not triton_obstacle(device) else "torch"
    if backend not in ("triton", "fa4"):
        raise ValueError(f"backend must be auto, torch, triton or fa4, not {backend!r}")
    if obstacle := (triton_obstacle if backend == "triton" else fa4_obstacle)(device):
        raise RuntimeError(f"backend={backend!r} can't run: {obstacle}")
    return backend


@cache
def triton_obstacle(device: torch.device) -> str:
    """Why Triton kernels can't run on the device; empty if they can."""
    if find_spec("triton") is None:
        return "Triton is not installed (pip install triton)"
    if device.type != "cuda":
        interpreted = device.type == "cpu" and _interpreted()
        return "" if interpreted else f"the tensors are on {device.type}, and Triton needs an NVIDIA GPU"
    if not torch.cuda.is_available() or torch.version.cuda is None:
        return "this PyTorch sees no NVIDIA GPU"
    capability = torch.cuda.get_device_capability(device)
    if capability < LEAST_CAPABILITY:
        return f"the GPU has compute capability {_dotted(capability)}, and the kernels need {_dotted(LEAST_CAPABILITY)}"
    return ""


@cache
def fa4_obstacle(device: torch.device) -> str:
    """Why FlashAttention-4's forward can't run on the device; empty if it can."""
    try:
        found = find_spec("flash_attn.cute")
    except ModuleNotFoundError:
        found = None
    if found is None:
        return "FlashAttention-4 is not installed (pip install -r requirements-fa4.txt)"
    if device.type != "cuda":
        return f"the tensors are on {device.type}, and FlashAttention-4 needs an NVIDIA GPU"
    if obstacle := triton_obstacle(device):
        return obstacle
    capability = torch.cuda.get_device_capability(device)
    if capability != FA4_CAPABILITY:
        return f"the GPU has compute capability {_dotted(capability)}; FlashAttention-4 takes blocks of 128 on 9.0 only"
    return ""


def triton_misfit(dtype: torch.dtype, head_dim: int, value_dim: int, block_size: int) -> str:
    """Which of the inputs the Triton kernels can't take; empty if they take them."""
    dtypes = (torch.float16, torch.float32) if _interpreted() else KERNEL_DTYPES
    if dtype not in dtypes:
        return f"the kernels take {' and '.join(map(_name, dtypes))}, not {_name(dtype)}"
    if block_size not in KERNEL_BLOCKS:
        return f"the kernels take blocks of {', '.join(map(str, KERNEL_BLOCKS))}, not {block_size}"
    if max(head_dim, value_dim) > LARGEST_HEAD_DIM:
        return f"the kernels take head dimensions up to {LARGEST_HEAD_DIM}, not {head_dim} and {value_dim}"
    return ""


def fa4_misfit(dtype: torch.dtype, head_dim: int, value_dim: int, block_size: int, padded: bool) -> str:
    """Which of the inputs FlashAttention-4's block lists can't take on Hopper; empty if it takes them."""
    if dtype not in KERNEL_DTYPES:
        return f"FlashAttention-4 takes float16 and bfloat16, not {_name(dtype)}"
    if block_size != KERNEL_BLOCK:
        return f"FlashAttention-4 takes blocks of {KERNEL_BLOCK}, not {block_size}"
    if head_dim % 8 or value_dim % 8 or head_dim > 192 or value_dim > 128:
        return f"FlashAttention-4 takes multiples of 8, head_dim to 192 and value dim to 128, not {head_dim} and {value_dim}"
    if padded:
        return "FlashAttention-4's block lists know no padding"
    return ""


def _interpreted() -> bool:
    return os.environ.get("TRITON_INTERPRET") == "1"


def _name(dtype: torch.dtype) -> str:
    return str(dtype).removeprefix("torch.")


def _dotted(capability: tuple[int, int]) -> str:
    return ".".join(map(str, capability))


@cache
def twins(name: str) -> SimpleNamespace:
    """What a resolved backend runs, by the names of ARCHITECTURE.md (Twins)."""
    if name == "torch":
        from sampleattn.filtering import selected_tiles
        from sampleattn.maps import map_window
        from sampleattn.reference import block_sparse_attention, row_logsumexp, sampled_tile_masses
        from sampleattn.sampling import rows_of_segments
    elif name in ("triton", "fa4"):
        from sampleattn.kernels.block_sparse_attention import block_sparse_attention
        from sampleattn.kernels.map_window import map_window
        from sampleattn.kernels.row_logsumexp import row_logsumexp
        from sampleattn.kernels.rows_of_segments import rows_of_segments
        from sampleattn.kernels.sampled_tile_masses import sampled_tile_masses
        from sampleattn.kernels.selected_tiles import selected_tiles
    else:
        raise ValueError(f"twins are 'torch', 'triton' or 'fa4', not {name!r}")
    if name == "fa4":
        from sampleattn.fa4 import block_sparse_attention
    return SimpleNamespace(
        name=name,
        rows_of_segments=rows_of_segments,
        sampled_tile_masses=sampled_tile_masses,
        selected_tiles=selected_tiles,
        block_sparse_attention=block_sparse_attention,
        row_logsumexp=row_logsumexp,
        map_window=map_window,
    )
