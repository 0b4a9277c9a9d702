"""Where a recording comes from, for its meta.json: the model and the machine."""

from __future__ import annotations

import hashlib
import json
import os
import platform
from pathlib import Path

import torch
import transformers

from sampleattn import backends
from sampleattn.config import SampleAttentionConfig


def describe_model(model, config, name: str | None, revision: str | None) -> dict:
    """meta.model; a local model's revision is the sha256 of its configuration."""
    source = getattr(model.config, "_name_or_path", "") or type(model).__name__
    heads = config.num_attention_heads
    head_dim = getattr(config, "qk_head_dim", None) or getattr(config, "head_dim", None) or config.hidden_size // heads
    commit = getattr(model.config, "_commit_hash", None)
    digest = hashlib.sha256(json.dumps(model.config.to_diff_dict(), sort_keys=True, default=str).encode()).hexdigest()
    return {
        "name": name or (Path(source).name if os.path.isdir(source) else source),
        "revision": revision or commit or f"sha256:{digest}",
        "layers": config.num_hidden_layers,
        "heads": heads,
        "kv_heads": getattr(config, "num_key_value_heads", None) or heads,
        "head_dim": head_dim,
        "context": getattr(config, "max_position_embeddings", None),
        "parameters": sum(parameter.numel() for parameter in model.parameters()),
    }


def describe_machine(model, config: SampleAttentionConfig) -> dict:
    """meta.machine: device, processor, versions and the backend that runs."""
    device = model.device
    try:
        import triton

        triton_version = triton.__version__
    except ImportError:
        triton_version = None
    return {
        "device": torch.cuda.get_device_name(device) if device.type == "cuda" else device.type,
        "cpu": _processor(),
        "threads": torch.get_num_threads(),
        "dtype": str(model.dtype).removeprefix("torch."),
        "python": platform.python_version(),
        "torch": torch.__version__,
        "transformers": transformers.__version__,
        "triton": triton_version,
        "backend": backends.resolve(config.backend, device, model.dtype, config.block_size),
    }


def _processor():
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
        return next(line.split(":", 1)[1].strip() for line in lines if line.startswith("model name"))
    except (OSError, StopIteration):
        return platform.processor() or platform.machine()
