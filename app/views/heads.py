"""All heads on one board: how much is computed of each, how well it is kept, and which pattern it has."""

import numpy as np
import streamlit as st

from app import export, parts, reading, session
from app.components import head_board
from app.figures import heads as figure

MOST_BESIDE = 12
NUMBERS = {
    "Density": ("density", True, "exact", "Tiles computed of each head, as a share of its causal tiles. Less is cheaper."),
    "CRA": ("cra", True, "exact", "The worst row's recall of each head (CRA), over every row of the prompt."),
    "Rows at target": ("rows_at_target", True, "exact", "The share of all rows of each head whose recall reaches the target."),
    "Sampled CRA": (
        "sampled_cra",
        True,
        "sampled",
        "The worst recall among the sampled rows: all that the method itself can see.",
    ),
    "Output error": (
        "output_error",
        False,
        "exact",
        "How far each head's sparse output is from its dense output, relative to the dense one.",
    ),
    "Oracle density": (
        "oracle_density",
        True,
        "exact",
        "The fewest tiles (found greedily) that would bring every row to the target: the limit.",
    ),
}


def page() -> None:
    opened = session.current()
    trace = opened.trace
    shown = st.segmented_control(
        "Number", list(NUMBERS), default="Density", required=True, key="number", bind="query-params", label_visibility="collapsed"
    )
    field, share, kind, sentence = NUMBERS[shown]
    values = getattr(trace, field)
    parts.heading(
        f"{sentence} {_spread(values, share)}",
        reading.kind_of(trace, field, kind),
        lambda: export.menu(f"heads_{field}", lambda: _chart(trace, shown), opened, "heads"),
    )
    selected = session.shown_head()
    beside = trace.heads <= MOST_BESIDE
    board, picture = st.columns([1.2, 1], gap="medium") if beside else (st.container(), st.container(width=900))
    with board:
        head_board(
            figure.board(values, _text(values, share), _details(trace), selected, trace.kv_heads, shown, share),
            "head_board",
            session.choose_picked_head,
        )
        if beside:
            _lists(trace)
    with picture:
        _picture(opened, *selected)
    if not beside:
        _lists(trace)


def _picture(opened, layer, head) -> None:
    if parts.drawable(opened.trace, layer):
        parts.show_map(opened, layer, head, below=340)
        parts.go_to("map", f"Open layer {layer}, head {head} in Map, with its columns and slashes", ":material/grid_on:")


def _lists(trace) -> None:
    _patterns(trace)
    _dense_layers(trace)


def _spread(values, share) -> str:
    finite = values[np.isfinite(values)]
    if not finite.size:
        return "No layer of this trace was analysed."
    low, middle, high = (f"{value:.1%}" if share else f"{value:.3g}" for value in (finite.min(), np.median(finite), finite.max()))
    return f"Here from {low} to {high}, median {middle}."


def _text(values, share):
    return [["–" if value != value else f"{value:.0%}" if share else f"{value:.2g}" for value in row] for row in values]


def _details(trace):
    def words(layer, head):
        if layer not in trace.recorded_layers:
            return f"Layer {layer}, head {head}: no picture. {reading.visible(trace.layer_reason(layer))}"
        return (
            f"Layer {layer}, head {head} · {reading.visible(trace.label(layer, head))} · "
            f"density {trace.density[layer, head]:.1%} (oracle {trace.oracle_density[layer, head]:.1%}) · "
            f"worst row's recall {trace.cra[layer, head]:.3f} · {trace.rows_at_target[layer, head]:.1%} of rows at target · "
            f"output error {trace.output_error[layer, head]:.2g}"
        )

    return [[words(layer, head) for head in range(trace.heads)] for layer in range(trace.layers)]


def _labels(trace):
    return [[trace.label(layer, head) for head in range(trace.heads)] for layer in range(trace.layers)]


def _chart(trace, shown):
    field, share, kind, sentence = NUMBERS[shown]
    values = getattr(trace, field)
    return figure.chart(
        values, _text(values, share), _labels(trace), trace.kv_heads, f"{shown} ({kind})", share,
        f"{sentence} {_spread(values, share)}", reading.footer(trace),
    )  # fmt: skip


def _patterns(trace) -> None:
    counts: dict[str, list[str]] = {}
    for layer, row in enumerate(_labels(trace)):
        for head, label in enumerate(row):
            if label:
                counts.setdefault(reading.visible(label), []).append(f"{layer}.{head}")
    if counts:
        st.markdown("**Patterns** of the heads (layer.head), told from the tile masses of all rows (exact)")
        ordered = sorted(counts.items(), key=lambda item: -len(item[1]))
        st.dataframe(
            {
                "pattern": [label for label, _ in ordered],
                "heads": [len(where) for _, where in ordered],
                "which": [", ".join(where) for _, where in ordered],
            },
            hide_index=True,
            column_config={"which": st.column_config.TextColumn(width="large")},
        )


def _dense_layers(trace) -> None:
    dense = [(layer, trace.layer_reason(layer)) for layer in range(trace.layers) if trace.layer_reason(layer)]
    if dense:
        st.markdown(f"**{len(dense)} layers ran dense** in the sparse run:")
        st.dataframe(
            {"layer": [layer for layer, _ in dense], "reason": [reading.visible(reason) for _, reason in dense]}, hide_index=True
        )
