"""The map of one head, from the whole triangle down to single tokens: what was kept, what was dropped, did it matter?"""

import streamlit as st

from app import export, parts, reading, session
from app.views import map_pin


def page() -> None:
    map_pin.outcome()
    opened = session.current()
    layer, head = session.shown_head()
    if parts.drawable(opened.trace, layer):
        _heading(opened, layer, head)
        parts.explore_map(opened, layer, head, below=396)


def _heading(opened, layer, head) -> None:
    trace = opened.trace
    with st.container(horizontal=True, vertical_alignment="center", horizontal_alignment="distribute"):
        with st.container(horizontal=True, vertical_alignment="center"):
            st.markdown(_sentence(trace, layer, head), width="content")
            parts.badge("exact")
        with st.container(horizontal=True, width="content"):
            if not trace.pinned(layer, head):
                map_pin.offer(opened, layer, head)
            state = session.map_state()
            export.menu(f"map_layer{layer}_head{head}", lambda: parts.map_chart(trace, layer, head, state), opened, "map")
    if trace.level == "summary" and not trace.pinned(layer, head):
        st.caption(
            f"A summary holds a small picture of each head ({len(trace.overview(layer, head))} cells a side, weights rounded); "
            "record at level explore for 512 a side, or record this head exactly."
        )


def _sentence(trace, layer, head) -> str:
    kept = reading.counted(int(trace.block_mask(layer, head).sum()), "tile")
    return (
        f"**Layer {layer}, head {head}** ({reading.plain(trace.label(layer, head))}): {kept} computed, "
        f"{trace.density[layer, head]:.1%} of the causal triangle; worst row's recall {trace.cra[layer, head]:.3f}; "
        f"output error {trace.output_error[layer, head]:.2g}."
    )
