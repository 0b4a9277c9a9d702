"""The pieces that several views share: a number with its sentence, the line above a figure, the map of the head on show."""

from __future__ import annotations

import streamlit as st

from app import map_feed, reading, session
from app.components import map_canvas
from app.figures import head_map
from sampleattn.trace import TraceError

KINDS = {
    "exact": ("green", ":material/check_circle:", "Computed for every row of the prompt."),
    "reduced": (
        "blue",
        ":material/grid_on:",
        "Computed for every row, and kept of parts of the prompt: the least recall of each.",
    ),
    "sampled": ("orange", ":material/scatter_plot:", "Computed for the sampled rows only."),
    "estimated": ("gray", ":material/query_stats:", "Chosen again from the sampled rows that the trace holds; nothing was run."),
    "timed": ("violet", ":material/timer:", "Timed on this machine, after a warm-up."),
    "recorded": ("blue", ":material/history:", "Measured when it was recorded, on the machine named; not on this one now."),
}


def badge(kind: str) -> None:
    """Say whether a number is exact, sampled or recorded."""
    colour, icon, help_text = KINDS[kind]
    st.badge(kind, color=colour, icon=icon, help=help_text)


def number(value: str, label: str, kind: str, sentence: str) -> None:
    """A number in large figures, what it is, and a plain sentence of what it says."""
    figure, words = st.columns([1, 2.2], gap="small")
    figure.markdown(f"### {value}")
    with words.container(gap="xxsmall"):
        with st.container(horizontal=True, vertical_alignment="center", gap="small"):
            st.markdown(f"**{label}**", width="content")
            badge(kind)
        st.markdown(sentence)


def heading(sentence: str, kind: str, menu) -> None:
    """The line above a figure: what it shows with its numbers, their kind, and the export menu."""
    with st.container(horizontal=True, vertical_alignment="center", horizontal_alignment="distribute"):
        with st.container(horizontal=True, vertical_alignment="center"):
            st.markdown(f"**{reading.plain(sentence)}**", width="content")
            badge(kind)
        menu()


def drawable(trace, layer: int) -> bool:
    """Whether the layer was analysed; if not, say why and what to do."""
    if layer in trace.recorded_layers:
        return True
    reason = trace.layer_reason(layer) or ("it was not recorded" if trace.complete else "the recording stopped before it")
    st.info(f"Layer {layer} has no picture: {reading.plain(reason)}. Choose another layer above.", icon=":material/layers_clear:")
    return False


@st.fragment
def show_map(opened, layer: int, head: int, below: int) -> None:
    """Paint the head's whole map; `below` is the height of the rest of the page, in pixels where its font has 16."""
    state = map_feed.checked_state(None)
    buffer = map_feed.message(opened.trace, layer, head, session.asked("map_picture"), state, compact=True, below=below)
    map_canvas(buffer, "map_picture", lambda: None)


@st.fragment
def explore_map(opened, layer: int, head: int, below: int) -> None:
    """Paint the head's map to zoom into, as far as the address says; this alone runs again when the map needs more."""
    key, state = "map_canvas", session.map_state()
    buffer = map_feed.message(opened.trace, layer, head, session.asked(key), state, compact=False, below=below)
    map_canvas(buffer, key, lambda: session.keep_map_state(key))


def map_chart(trace, layer: int, head: int, state: dict[str, str]):
    """What the map shows in this state as a chart for files: exact if the head is pinned, else cut out of the overview."""
    density, cra = trace.density[layer, head], trace.cra[layer, head]
    look = map_feed.look_of(trace, layer, head, state)
    weights, missed, rows, cols = map_feed.window(trace, layer, head, state["view"], pool=look.pool)
    return head_map.chart(
        weights, missed, trace.block_mask(layer, head), trace.columns(layer, head), trace.slashes(layer, head),
        trace.config.block_size, trace.length, rows, cols, look,
        f"Layer {layer}, head {head}: {density:.1%} of the tiles computed, worst row's recall {cra:.3f} (exact)",
        reading.footer(trace, layer, head),
    )  # fmt: skip


def go_to(path: str, label: str, icon: str) -> None:
    """A link to another view that keeps layer and head."""
    st.page_link(session.pages()[path], label=label, icon=icon)


def failure(error: TraceError) -> None:
    st.error(reading.plain(str(error)), icon=":material/error:")
