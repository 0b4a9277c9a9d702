"""The widgets of the method's settings, kept in the URL, and the config they make."""

from __future__ import annotations

from dataclasses import fields

import streamlit as st

from sampleattn.config import SAMPLINGS, SCOPES, SELECTIONS, SampleAttentionConfig

DEFAULTS = {field.name: field.default for field in fields(SampleAttentionConfig)}
SELECTION_HELP = (
    "joint: columns and slashes chosen together at the least tiles (ours). independent: the paper's two cumulative sums (MLSys 2025). "
    "window: a local window and columns (arXiv v1)."
)
SAMPLING_HELP = "spread: rows evenly over the prompt. tail: the last rows of each segment (the paper)."


def settings() -> SampleAttentionConfig | None:
    """Draw the settings; returns the config, or None after saying what is wrong with them."""
    values = {}
    left, right = st.columns(2, gap="medium")
    values["selection"] = left.selectbox(
        "Selection",
        SELECTIONS,
        index=SELECTIONS.index(DEFAULTS["selection"]),
        key="selection",
        bind="query-params",
        help=SELECTION_HELP,
    )
    values["cra"] = right.slider(
        "Target (recall of a row)", 0.5, 1.0, DEFAULTS["cra"], 0.01, key="cra", bind="query-params",
        help="The share of its dense attention that a row shall keep. An aim for the sampled rows, no guarantee for the worst row.",
    )  # fmt: skip
    if values["selection"] == "joint":
        values["rows_at_target"] = left.slider(
            "Sampled rows that must reach it",
            0.5,
            1.0,
            DEFAULTS["rows_at_target"],
            0.01,
            key="rows_at_target",
            bind="query-params",
        )
    values["sampling"] = right.segmented_control(
        "Sampled rows lie", SAMPLINGS, default=DEFAULTS["sampling"], required=True, key="sampling", bind="query-params",
        help=SAMPLING_HELP,
    )  # fmt: skip
    with st.expander("More settings"):
        values |= _more(values["selection"])
    try:
        return SampleAttentionConfig(**values)
    except ValueError as error:
        st.error(f"These settings don't fit together: {error}.", icon=":material/error:")
        return None


def _more(selection) -> dict:
    one, two, three = st.columns(3, gap="medium")
    values = {
        "sample_ratio": one.number_input("Rows sampled (share)", 0.001, 1.0, DEFAULTS["sample_ratio"], 0.005, format="%.4f", key="sample_ratio", bind="query-params"),
        "scope": two.segmented_control("Choose per", SCOPES, default=DEFAULTS["scope"], required=True, key="scope", bind="query-params"),
        "segments": three.number_input("Segments (empty: automatic)", 1, 4096, DEFAULTS["segments"], key="segments", bind="query-params"),
        "sink_blocks": one.number_input("Sink blocks", 0, 64, DEFAULTS["sink_blocks"], key="sink_blocks", bind="query-params"),
        "local_blocks": two.number_input("Local blocks", 1, 64, DEFAULTS["local_blocks"], key="local_blocks", bind="query-params"),
        "last_blocks": three.number_input("Last query blocks", 0, 64, DEFAULTS["last_blocks"], key="last_blocks", bind="query-params"),
        "dense_below": one.number_input("Dense below (tokens)", 0, 1 << 20, DEFAULTS["dense_below"], 128, key="dense_below", bind="query-params"),
    }  # fmt: skip
    if selection != "joint":
        values["alpha_columns"] = two.number_input(
            "Columns' share of mass",
            0.01,
            1.0,
            DEFAULTS["alpha_columns"],
            0.01,
            key="alpha_columns",
            bind="query-params",
            placeholder="the target",
        )
    if selection == "independent":
        values["alpha_slashes"] = three.number_input(
            "Slashes' share of mass",
            0.01,
            1.0,
            DEFAULTS["alpha_slashes"],
            0.01,
            key="alpha_slashes",
            bind="query-params",
            placeholder="the target",
        )
    if selection == "window":
        values["window_ratio"] = three.number_input(
            "Window (share of the prompt)",
            0.001,
            1.0,
            DEFAULTS["window_ratio"],
            0.01,
            format="%.3f",
            key="window_ratio",
            bind="query-params",
        )
    return values
