"""How much of a recording is kept, with the size of each choice, and which heads are pinned."""

import streamlit as st

from app import intake, reading
from sampleattn.config import SampleAttentionConfig
from sampleattn.trace_format import LEVELS
from sampleattn.trace_size import estimate_size, readable

KEPT = {
    "summary": "the numbers of all heads, what is kept of them, and a small picture of each.",
    "explore": "what a summary holds, larger pictures, and what *What-if* reads.",
    "pinned": "what explore holds, and q and k of the heads you name: their maps zoom to single tokens.",
}


def choose(counted: intake.Count | None, prompt: str, config: SampleAttentionConfig) -> tuple[str, tuple] | None:
    """Draw the choice; returns the level and the heads to pin, or None after saying what is missing."""
    sizes = _sizes(counted, prompt, config)
    level = st.segmented_control(
        "How much is kept",
        LEVELS,
        default="explore",
        required=True,
        key="level",
        bind="query-params",
        format_func=lambda level: f"{level} · {readable(sizes[level])}" if level in sizes else level,
    )
    pins = ()
    if level == "pinned":
        named = st.text_input("Heads to pin, as layer.head", "0.0", key="pins", bind="query-params")
        try:
            pins = intake.pairs(named)
            intake.check_pins(pins, counted.shape if counted else None)
        except intake.IntakeError as error:
            st.caption(reading.plain(str(error)))
            return None
        sizes = _sizes(counted, prompt, config, pins)
    size = f"about {readable(sizes[level])} on disk" if sizes else "its size is said once the model is loaded"
    st.caption(f"*{level}*, {size}: {KEPT[level]}")
    return level, pins


def _sizes(counted, prompt, config, pins=((0, 0),)) -> dict[str, int]:
    """level -> bytes, of a model that runs in float32; {} while the model's shape is not known."""
    if counted is None or counted.shape is None or counted.tokens < 2:
        return {}
    shape, tokens = counted.shape, min(counted.tokens, counted.context or counted.tokens)
    given = dict(config=config, vocabulary=shape.vocabulary, text_bytes=len(prompt.encode()), pin_bytes=4)
    sizes = shape.layers, shape.heads, shape.kv_heads, shape.head_dim
    return {level: estimate_size(level, *sizes, tokens, pins if level == "pinned" else (), **given) for level in LEVELS}
