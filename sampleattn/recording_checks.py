"""What a recording is asked for, checked before anything runs: its level, the heads to pin, the room that it takes. No torch."""

from __future__ import annotations

import shutil
from pathlib import Path

from sampleattn.config import SampleAttentionConfig
from sampleattn.prompt import PromptError
from sampleattn.trace_format import LEVELS
from sampleattn.trace_size import estimate_size, readable


class RecordingError(RuntimeError):
    """The recording can't go on; the message says why and what to do."""


def checked_level(level: str | None, pins) -> str:
    """The level to record at. Raises PromptError if there is none of this name, or it does not fit the heads to pin."""
    if level is None:
        return "pinned" if pins else "explore"
    if level not in LEVELS:
        raise PromptError(f"level must be one of {', '.join(LEVELS)}, not {level!r}.")
    if (level == "pinned") != bool(pins):
        advice = "say which heads (pin_heads, --pin-heads)" if level == "pinned" else "take level pinned, or pin no heads"
        raise PromptError(f"Level {level} keeps {'q and k of chosen heads' if level == 'pinned' else 'no q and k'}; {advice}.")
    return level


def size_of(meta: dict, config: SampleAttentionConfig, ids, text: str, pins, vocabulary: int) -> int:
    """About the bytes of the trace that is asked for."""
    model = meta["model"]
    return estimate_size(
        meta["level"],
        *(model[name] for name in ("layers", "heads", "kv_heads", "head_dim")),
        len(ids),
        pins,
        config=config,
        vocabulary=vocabulary,
        text_bytes=len(text.encode()),
        pin_bytes=4 if meta["machine"]["dtype"] == "float32" else 2,
    )


def check_space(folder: Path, size: int) -> None:
    """Raises RecordingError unless the disk has room for what will be written."""
    place = next(parent for parent in (folder.absolute(), *folder.absolute().parents) if parent.exists())
    free = shutil.disk_usage(place).free
    if free < size:
        raise RecordingError(
            f"The trace needs about {readable(size)} and {place} has {readable(free)} free; "
            "free some, choose another place, or record at level summary."
        )


def check_pins(pins, layers: int, heads: int) -> None:
    """Raises PromptError unless every (layer, head) exists."""
    for layer, head in sorted(pins):
        if not (0 <= layer < layers and 0 <= head < heads):
            raise PromptError(
                f"Layer {layer}, head {head} can't be pinned: the layers are 0 to {layers - 1}, the heads 0 to {heads - 1}."
            )
