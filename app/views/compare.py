"""Two heads side by side: one window, one colour scale, and what differs."""

import streamlit as st

from app import export, map_feed, parts, reading, session
from app.components import map_compare
from app.figures import head_map
from app.head_numbers import BY_NAME
from app.views import open_trace

KEY = "map_compare"
NUMBERS = ("Density", "Oracle density", "CRA", "Rows at target", "Output error", "Time")


def page() -> None:
    opened = session.current()
    other = session.second()
    layer, head = session.shown_head()
    layer_b, head_b = _choose(other, layer, head, other is not opened)
    a, b = (opened.trace, layer, head), (other.trace, layer_b, head_b)
    if all(parts.drawable(trace, at) for trace, at, _ in (a, b)):
        _heading(opened, other, a, b)
        _maps(a, b)
        _table(a, b)


def _choose(other, layer: int, head: int, another: bool) -> tuple[int, int]:
    """B's trace, layer and head; at first the next head after A's."""
    trace = other.trace
    usual = min(layer, trace.layers - 1), (head + 1) % trace.heads
    session.start_at(layer_b=usual[0], head_b=usual[1])
    with st.container(horizontal=True, vertical_alignment="center"):
        st.markdown("**A** is the layer and head above. **B** is layer", width="content")
        layer_b = _number("Layer of B", "layer_b", trace.layers, usual[0])
        st.markdown("head", width="content")
        head_b = _number("Head of B", "head_b", trace.heads, usual[1])
        whose = f"{reading.plain(reading.title(trace))}, {trace.length:,} tokens" if another else "the same trace"
        st.markdown(f"of {whose}", width="content")
        if st.button("Another trace for B", icon=":material/folder_open:"):
            open_trace.dialog(for_b=True)
        if another and st.button("The same trace", icon=":material/undo:"):
            session.close_second()
            st.rerun()
    return layer_b, head_b


def _number(name: str, key: str, count: int, usual: int) -> int:
    return st.selectbox(name, range(count), index=usual, key=key, bind="query-params", label_visibility="collapsed", width=84)


def _heading(opened, other, a, b) -> None:
    sentence = _sentence(a, b)
    with st.container(horizontal=True, vertical_alignment="center", horizontal_alignment="distribute"):
        with st.container(horizontal=True, vertical_alignment="center"):
            st.markdown(f"**{reading.plain(sentence)}**", width="content")
            parts.badge("exact")
        export.menu_of(_figures(opened, other, a, b, session.map_state(), sentence), "compare")


@st.fragment
def _maps(a, b) -> None:
    state = session.map_state()
    buffer = map_feed.comparison((a, b), (_title("A", *a), _title("B", *b)), session.asked(KEY), state, below=508)
    map_compare(buffer, KEY, lambda: session.keep_map_state(KEY))


def _title(side: str, trace, layer: int, head: int) -> str:
    return f"{side}: layer {layer}, head {head} ({reading.visible(trace.label(layer, head))})"


def _sentence(a, b) -> str:
    (density, recall), (density_b, recall_b) = (
        (f"{trace.density[layer, head]:.1%}", f"{trace.cra[layer, head]:.3f}") for trace, layer, head in (a, b)
    )
    sentence = f"A computes {density} of its tiles, worst row's recall {recall}; B {density_b}, {recall_b}."
    if a == b:
        return "A and B are the same head: choose another layer or head for B, or another trace."
    if map_feed.comparable(a, b):
        return f"{sentence} Of the tiles of either, {shared_tiles(a, b):.0%} are computed by both."
    return f"{sentence} Their prompts differ in length: windows cover the same part of each, and nothing is subtracted."


def shared_tiles(a, b) -> float:
    """Tiles that both heads compute / tiles that either does."""
    first, second = (trace.block_mask(layer, head) for trace, layer, head in (a, b))
    return float((first & second).sum() / max((first | second).sum(), 1)) if first.shape == second.shape else float("nan")


def _figures(opened, other, a, b, state, sentence) -> dict[str, tuple]:
    """The figures to export: the difference, if there is one, and both maps with one window and one colour scale."""
    names = [f"layer{layer}_head{head}" for _, layer, head in (a, b)]
    figures = {}
    if map_feed.comparable(a, b):
        figures["A − B"] = f"map_{'_minus_'.join(names)}", lambda: _chart(a, b, state, sentence), opened
    figures["A"] = f"map_a_{names[0]}", lambda: parts.map_chart(*a, map_feed.linked_states(a, b, state)[0]), opened
    figures["B"] = f"map_b_{names[1]}", lambda: parts.map_chart(*b, map_feed.linked_states(a, b, state)[1]), other
    return figures


def _chart(a, b, state, sentence):
    pools = {map_feed.pool_of(*side, state) for side in (a, b)}
    pool = pools.pop() if len(pools) == 1 else "max"
    weights, rows, cols = map_feed.difference(a, b, state["view"], pool)
    title = f"A: layer {a[1]}, head {a[2]}, minus B: layer {b[1]}, head {b[2]}. {sentence}"
    return head_map.difference(weights, rows, cols, title, f"A: {reading.footer(*a)}\nB: {reading.footer(*b)}")


def _table(a, b) -> None:
    """The numbers of both heads and their differences."""
    rows = []
    for name in NUMBERS:
        number = BY_NAME[name]
        first, second = (float(number.values(trace)[layer, head]) for trace, layer, head in (a, b))
        whose = f"{name} of the layer" if number.per_layer else name
        rows.append((whose, number.text(first), number.text(second), _signed(first - second, number.text)))
    for name, field in (("Columns kept", "columns_kept"), ("Slashes kept", "slashes_kept")):
        first, second = (int(getattr(trace, field)[layer, head]) for trace, layer, head in (a, b))
        rows.append((name, f"{first:,}", f"{second:,}", _signed(first - second, "{:,}".format)))
    st.dataframe(dict(zip(("number", "A", "B", "A − B"), zip(*rows, strict=True), strict=True)), hide_index=True, width=640)


def _signed(value: float, words) -> str:
    sign = "+" if value > 0 else "−" if value < 0 else ""
    return f"{sign}{words(abs(value))}"
