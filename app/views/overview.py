"""The start screen: a finished picture, three numbers, and where to go from here."""

import streamlit as st

from app import benchmarks, export, map_feed, parts, reading, session
from app.views import open_trace

READING = (
    "How to read the picture: each line is a token that asks (query), from the first at the top to the last; each point in it is "
    "an earlier token it looks at (key). Bright is much attention. A bright upright is a column, a bright slant a slash. "
    "Blue borders are the tiles that SampleAttention computes; the hatched orange rest is skipped."
)
COMMAND = """python -m sampleattn record --model meta-llama/Llama-3.2-1B --prompt-file prompt.txt \\
    --out my_trace.zip --device cuda --cra 0.95"""


def page() -> None:
    opened = session.current()
    trace = opened.trace
    layer, head = session.shown_head()
    if not parts.drawable(trace, layer):
        _actions(opened)
        return
    picture, words = st.columns([1.25, 1], gap="medium")
    with picture:
        with st.container(horizontal=True, vertical_alignment="center", horizontal_alignment="distribute"):
            st.markdown(
                f"**What layer {layer}, head {head} attends to, and which tiles SampleAttention computes**", width="content"
            )
            export.menu(
                f"map_layer{layer}_head{head}", lambda: parts.map_chart(trace, layer, head, map_feed.USUAL), opened, "overview"
            )
        parts.show_map(opened, layer, head, below=290)
    with words:
        _numbers(trace, layer, head)
        _actions(opened)
        st.caption(READING)


def _numbers(trace, layer, head) -> None:
    columns = reading.counted(len(trace.columns(layer, head)), "column")
    slashes = reading.counted(len(trace.slashes(layer, head)), "slash")
    parts.number(
        "Tiles computed",
        f"{trace.density[layer, head]:.1%}",
        "exact",
        f"Of this head's causal tiles: {columns}, {slashes} and the blocks always kept. Over all recorded heads "
        f"{_mean(trace.density):.1%}; "
        f"about the least that any choice of blocks needs for this target: {_mean(trace.oracle_density):.1%}.",
    )
    recall = trace.recall(layer, head)
    worst = int(recall.argmin())
    parts.number(
        "Worst row's recall",
        f"{recall[worst]:.3f}",
        "exact",
        f"Row {worst:,} of {trace.length:,} keeps the least of its attention, "
        f"at “{reading.plain(reading.excerpt(trace, worst, worst + 1, 24))}”. "
        f"{trace.rows_at_target[layer, head]:.1%} of this head's rows reach the target {trace.config.cra:g}.",
    )
    record = benchmarks.headline(benchmarks.load())
    if record is None:
        parts.number(
            "Speed-up", "–", "recorded", "There is no data/benchmarks.csv with dense and sparse attention at one length yet."
        )
        return
    parts.number("Speed-up", f"{record.speedup:.1f} ×", "recorded", reading.plain(record.sentence))


def _mean(values) -> float:
    recorded = values[values == values]
    return float(recorded.mean()) if recorded.size else float("nan")


def _actions(opened) -> None:
    with st.container(horizontal=True, vertical_alignment="center"):
        if st.button("Use my text", icon=":material/edit_note:", type="primary"):
            session.go_to("text")
        if st.button("Open a trace", icon=":material/folder_open:"):
            open_trace.dialog()
        with st.popover("How to record on a GPU", icon=":material/memory:"):
            st.markdown("On the machine with the GPU, from this repository; then open the file here.")
            st.code(COMMAND, language="bash")
        if not opened.demo and st.button("Back to the demo", icon=":material/undo:"):
            session.open_demo()
            st.rerun()
