"""The start screen: a finished picture, three numbers, and where to go from here."""

import streamlit as st

from app import benchmarks, export, map_feed, parts, reading, session
from app.components import snippet
from app.views import open_trace

READING = (
    "Each line of the picture is a token that asks (a query), from the first at the top to the last; each point on it is an "
    "earlier token that it looks at (a key), the brighter the more. A bright upright is a *column*, a bright slant a *slash*. "
    "Tiles inside blue borders are computed; what is striped in orange is skipped."
)
COMMAND = """python -m sampleattn record --model meta-llama/Llama-3.2-1B \\
    --prompt-file prompt.txt --out my_trace.zip \\
    --device cuda --cra 0.95"""


def page() -> None:
    opened = session.current()
    trace = opened.trace
    layer, head = session.shown_head()
    if not parts.drawable(trace, layer):
        _actions(opened)
        return
    picture, words = st.columns([1.2, 1], gap="large")
    with picture:
        parts.heading(
            f"Layer {layer}, head {head}: {trace.density[layer, head]:.1%} of its tiles are computed.",
            "exact",
            lambda: export.menu(
                f"map_layer{layer}_head{head}", lambda: parts.map_chart(trace, layer, head, map_feed.USUAL), opened, "overview"
            ),
        )
        parts.show_map(opened, layer, head, below=344)
    with words, st.container(key="start"):
        _numbers(trace, layer, head)
        _actions(opened)
        st.caption(READING)


def _numbers(trace, layer, head) -> None:
    columns = reading.counted(len(trace.columns(layer, head)), "column")
    slashes = reading.counted(len(trace.slashes(layer, head)), "slash")
    parts.number(
        f"{trace.density[layer, head]:.1%}",
        "Tiles computed",
        "exact",
        f"This head needs {columns}, {slashes} and the blocks always kept. Over all heads it is {_mean(trace.density):.1%}, "
        f"where about {_mean(trace.oracle_density):.1%} is the least for the target {trace.config.cra:g}.",
    )
    least, row = reading.least_recall(trace, layer, head)
    parts.number(
        f"{least:.3f}",
        "Worst row's recall",
        "exact",
        f"The least is in {row}; {trace.rows_at_target[layer, head]:.1%} of the {trace.length:,} rows keep at least "
        f"{trace.config.cra:g} of their attention.",
    )
    record = benchmarks.of_recording(trace) or benchmarks.headline(benchmarks.newest(benchmarks.load()))
    if record is None:
        sentence = "No time is recorded yet: run python -m sampleattn bench on a GPU, and it writes data/benchmarks.csv."
        parts.number("–", "Speed-up", "recorded", sentence)
        return
    parts.number(f"{record.speedup:.1f} ×", "Speed-up", "recorded", reading.plain(record.sentence))


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
            st.markdown("On the machine with the GPU, in this repository; then open the file here.")
            snippet(COMMAND, "record_command")
        if not opened.demo and st.button("Back to the demo", icon=":material/undo:"):
            session.open_demo()
            st.rerun()
