"""A config to take along: as Python, as a command line, as JSON."""

from __future__ import annotations

import shlex
from dataclasses import fields

from sampleattn.config import SampleAttentionConfig


def unusual(config: SampleAttentionConfig) -> dict:
    """The settings that differ from the defaults."""
    return {field.name: getattr(config, field.name) for field in fields(config) if getattr(config, field.name) != field.default}


def python(config: SampleAttentionConfig) -> str:
    settings = ", ".join(f"{name}={value!r}" for name, value in unusual(config).items())
    return (
        "from sampleattn import SampleAttentionConfig, use_sample_attention\n\n"
        f"config = SampleAttentionConfig({settings})\n"
        "with use_sample_attention(model, config):\n"
        "    output = model.generate(**inputs)"
    )


def command(config: SampleAttentionConfig, model: str) -> str:
    """The command that records a prompt with the config."""
    settings = [f"--{name.replace('_', '-')} {value}" for name, value in unusual(config).items()]
    parts = [f"python -m sampleattn record --model {shlex.quote(model)}", "--prompt-file prompt.txt --out trace.zip", *settings]
    return " \\\n    ".join(parts)
