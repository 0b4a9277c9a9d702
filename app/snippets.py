"""Code to take along: a config as Python and as a command, the command that pins a head."""

from __future__ import annotations

import shlex
from dataclasses import fields

from sampleattn.config import SampleAttentionConfig
from sampleattn.text import printable


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
    parts = [f"python -m sampleattn record --model {_quoted(model)}", "--prompt-file prompt.txt --out trace.zip", *settings]
    return " \\\n    ".join(parts)


def pin_command(model: str, layer: int, head: int) -> str:
    """The command that adds a head's queries and keys to a trace."""
    return f"python -m sampleattn pin TRACE \\\n    --model {_quoted(model)} --heads {layer}.{head}"


def _quoted(name: str) -> str:
    """A name out of a trace or a link as one word of a shell; control characters could end the paste and run what follows."""
    return shlex.quote(printable(name))
