"""All heads on one board: which are dear, which break, and where the time goes."""

from collections import Counter

import numpy as np
import streamlit as st

from app import export, head_numbers, parts, reading, session
from app.components import head_board
from app.figures import heads as figure
from app.figures import palette
from app.head_numbers import NUMBERS, ORDERS, HeadNumber

LISTED = 10


def page() -> None:
    opened = session.current()
    trace = opened.trace
    number = head_numbers.BY_NAME[
        st.segmented_control(
            "Number", list(head_numbers.BY_NAME), default=NUMBERS[0].name, required=True, key="number", bind="query-params",
            label_visibility="collapsed",
        )
    ]  # fmt: skip
    values = session.made_once(number.field, number.values)
    threshold, order, wanted = _controls(trace, number, values)
    holding = number.holding(values, threshold)
    sentence = _sentence(trace, number, values, holding, threshold)
    parts.heading(
        sentence,
        reading.kind_of(trace, number.field, number.kind),
        lambda: export.menu(f"heads_{number.field}", lambda: _chart(trace, number, values, sentence), opened, "heads"),
    )
    found = head_numbers.matching(trace, wanted)
    places = [place for place in head_numbers.ordered(number, values, trace.density, order) if found[place]]
    board, picture = st.columns([1.55, 1], gap="medium")
    with picture:
        _picture(opened)
    with board:
        _board(opened, number, values, holding | ~found, places, order, bool(wanted))
    _patterns(trace)
    _dense_layers(trace)


@st.fragment(key=session.PICTURE)
def _picture(opened) -> None:
    layer, head = session.shown_head()
    if parts.drawable(opened.trace, layer):
        parts.show_map(opened, layer, head, below=504)
        parts.go_to("map", f"Open layer {layer}, head {head} in Map, with its columns and slashes", ":material/grid_on:")


def _controls(trace, number: HeadNumber, values):
    """The threshold from which a head holds, the order of the list, and what is searched."""
    low, high = number.range(values)
    slider, order, search = st.columns([1.3, 1, 1], gap="medium", vertical_alignment="bottom")
    with slider:
        if number.hard:
            threshold = st.slider(
                f"{number.name}: grey out heads with {number.side}", low, high, min(max(float(number.holds(trace)), low), high),
                (high - low) / 100, key=f"holds_{number.field}", bind="query-params",
                format="percent" if number.form == head_numbers.SHARE else "%.3g",
            )  # fmt: skip
        else:
            threshold = 0.0
            st.caption("Neither way is harder, so nothing is greyed out.")
    with order:
        chosen = st.segmented_control("List", ORDERS, format_func=_names(number).get, default=ORDERS[0],
                                      required=True, key="order", bind="query-params")  # fmt: skip
    with search:
        wanted = st.text_input("Find heads", key="find", bind="query-params", placeholder="slash, layer 3, 3.5", max_chars=80)
    return threshold, chosen, wanted


def _names(number: HeadNumber) -> dict[str, str]:
    """The orders of the list in words."""
    return dict(zip(ORDERS, ORDERS if number.hard else ("Most columns", "Most slashes", ORDERS[2]), strict=True))


def _sentence(trace, number: HeadNumber, values, holding, threshold) -> str:
    known = np.isfinite(values)
    if not known.any():
        return f"{number.sentence} This trace does not hold it for any layer."
    low, middle, high = (number.text(value) for value in (np.nanmin(values), np.nanmedian(values), np.nanmax(values)))
    sentence = f"{number.sentence} Here from {low} to {high}, median {middle}"
    count, all_heads = int((holding & known).sum()), int(known.sum())
    if not count:
        return f"{sentence}."
    return f"{sentence}; {count:,} of {all_heads:,} heads have {number.side} {number.text(threshold)}."


@st.fragment
def _board(opened, number: HeadNumber, values, dimmed, places, order, searched) -> None:
    trace, (low, high) = opened.trace, number.range(values)
    listed = places[:LISTED]
    means = [[number.short(value) for value in figure.mean_of(values, axis)] for axis in (1, 0)]
    header = {
        "kv_heads": trace.kv_heads,
        "name": number.name,
        "low": low,
        "high": high,
        "ends": [number.short(low), number.short(high)],
        "ramp": palette.RAMP if number.hard else palette.DIFFERENCE_RAMP,
        "thumbnail_ramp": palette.RAMP,
        "selected": session.shown_head(),
        "picks": session.picks(),  # else a board equal to the last one sent would go on framing what was picked since
        "text": [[number.short(value) for value in row] for row in values],
        "means": means,
        "mean_values": [[None if value != value else float(value) for value in figure.mean_of(values, axis)] for axis in (1, 0)],
        "details": session.made_once(f"details {number.field}", lambda trace: _details(trace, number, values)),
        "list_title": _list_title(number, order, len(places), len(listed), searched),
        "listed": [{"place": place, "text": _entry(trace, number, values, *place)} for place in listed],
    }
    buffer = figure.board(values, dimmed, header, [session.thumbnail(*place) for place in listed])
    head_board(buffer, "head_board", lambda: session.pick_head(session.PICTURE, session.SELECTORS))


def _list_title(number: HeadNumber, order, count, listed, searched) -> str:
    if not count:
        return "No head is found. Search for a pattern, as slash, or for a place, as layer 3 or 3.5." if searched else ""
    pieces = ("layer, its densest head", "layers, the densest head of each") if number.per_layer else ("head", "heads")
    which = f"{count:,} {pieces[count > 1]}{' found' if searched else ''}"
    way = _names(number)[order].lower() + (" first" if order != ORDERS[2] else "")
    return f"{which if listed == count else f'The first {listed} of {which}'}, {way}: {number.name}"


def _entry(trace, number: HeadNumber, values, layer, head) -> list[str]:
    """Two lines of the list: where and what, and the numbers."""
    label, own = reading.visible(trace.label(layer, head)), number.text(values[layer, head])
    return [f"Layer {layer}, head {head} · {label} · {own}", " · ".join(_others(trace, number, layer, head)[:2])]


def _others(trace, number: HeadNumber, layer, head) -> list[str]:
    """What else there is to say of a head beside the number on the board."""
    others = {
        "density": f"density {trace.density[layer, head]:.1%} (oracle {trace.oracle_density[layer, head]:.1%})",
        "cra": f"CRA {trace.cra[layer, head]:.3f}",
        "rows_at_target": f"{trace.rows_at_target[layer, head]:.1%} of rows at target",
        "output_error": f"output error {trace.output_error[layer, head]:.2g}",
    }
    return [words for field, words in others.items() if field != number.field]


def _details(trace, number: HeadNumber, values) -> list[list[str]]:
    """What is read out when a head is pointed at."""

    def words(layer, head):
        if layer not in recorded:
            return f"Layer {layer}, head {head}: no picture. {reading.visible(trace.layer_reason(layer))}"
        own = f"{number.name} {number.text(values[layer, head])}"
        label = reading.visible(trace.label(layer, head))
        return " · ".join([f"Layer {layer}, head {head}", label, own, *_others(trace, number, layer, head)])

    recorded = set(trace.recorded_layers)
    return [[words(layer, head) for head in range(trace.heads)] for layer in range(trace.layers)]


def _labels(trace):
    return [[trace.label(layer, head) for head in range(trace.heads)] for layer in range(trace.layers)]


def _chart(trace, number: HeadNumber, values, sentence):
    text = [[number.short(value) for value in row] for row in values]
    return figure.chart(
        values, text, _labels(trace), trace.kv_heads, f"{number.name} ({number.kind})", number.range(values), sentence,
        reading.footer(trace),
    )  # fmt: skip


def _patterns(trace) -> None:
    """How many heads have each pattern."""
    counts = Counter(reading.visible(label) for row in _labels(trace) for label in row if label)
    if counts:
        found = ", ".join(f"{reading.plain(label)} {count:,}" for label, count in counts.most_common())
        st.markdown(
            f"**Patterns** of the heads, told from the tile masses of all rows (exact): {found}. "
            "Write one into *Find heads* to see which they are."
        )


def _dense_layers(trace) -> None:
    dense = [(layer, trace.layer_reason(layer)) for layer in range(trace.layers) if trace.layer_reason(layer)]
    if dense:
        st.markdown(f"**{len(dense)} layers ran dense** in the sparse run:")
        st.dataframe(
            {"layer": [layer for layer, _ in dense], "reason": [reading.visible(reason) for _, reason in dense]}, hide_index=True
        )
