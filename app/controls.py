"""The widgets of the method's settings, kept in the URL, and the config they make."""

from __future__ import annotations

from dataclasses import fields
from functools import partial

import streamlit as st

from sampleattn.config import SAMPLINGS, SCOPES, SELECTIONS, SampleAttentionConfig

DEFAULTS = {field.name: field.default for field in fields(SampleAttentionConfig)}
HELP = {
    "selection": "joint: columns and slashes chosen together at the least tiles (ours). independent: the paper's two cumulative "
    "sums (MLSys 2025). window: a local window and columns (arXiv v1).",
    "cra": "The share of its dense attention that a row shall keep: an aim for the sampled rows, no guarantee for the worst row.",
    "sampling": "spread: rows evenly over the prompt. tail: the last rows of each segment (the paper).",
    "segments": "Equal parts of the prompt; the length decides if empty.",
    "alpha_columns": "The share of the sampled mass that columns keep; the target if empty.",
    "alpha_slashes": "The share of the sampled mass that slashes keep; the target if empty.",
    "sampling_margin": "More than the target is asked of the sampled rows, because the choice fits them better than the others: "
    "(1 - target) x margin / sqrt(sampled rows) more.",
    "dense_below": "Shorter prompts run dense: choosing tiles would not pay.",
}


def settings() -> SampleAttentionConfig | None:
    """Draw the settings; returns the config, or None after saying what is wrong with them."""
    left, right = st.columns(2, gap="medium")
    values = {"selection": _choice(left.selectbox, "selection", "Selection", SELECTIONS)}
    values["cra"] = _share(right, "cra", "Target (recall of a row)")
    if values["selection"] == "joint":
        values["rows_at_target"] = _share(left, "rows_at_target", "Sampled rows that must reach it")
    values["sampling"] = _choice(right.selectbox, "sampling", "Where rows are sampled", SAMPLINGS)
    with st.expander("More settings"):
        values |= _more(values["selection"])
    try:
        return SampleAttentionConfig(**values)
    except ValueError as error:
        st.error(f"These settings don't fit together: {error}.", icon=":material/error:")
        return None


def _more(selection) -> dict:
    one, two, three = st.columns(3, gap="medium")
    share = partial(_number, least=0.001, most=1.0, step=0.01)
    values = {
        "sample_ratio": share(one, "sample_ratio", "Share of rows sampled"),
        "scope": _choice(two.selectbox, "scope", "Chosen per", SCOPES),
        "segments": _number(three, "segments", "Segments", 1, 4096),
        "sink_blocks": _number(one, "sink_blocks", "Sink blocks", 0, 64),
        "local_blocks": _number(two, "local_blocks", "Local blocks", 1, 64),
        "last_blocks": _number(three, "last_blocks", "Last query blocks", 0, 64),
        "dense_below": _number(one, "dense_below", "Dense below (tokens)", 0, 1 << 20),
    }
    values["max_sampled_rows"] = _number(two, "max_sampled_rows", "Most rows sampled", 1, 1 << 20)
    if selection == "joint":
        values["sampling_margin"] = _number(three, "sampling_margin", "Sampling margin", 0.0, 100.0, 0.5)
    else:
        values["alpha_columns"] = share(two, "alpha_columns", "Columns' share")
    if selection == "independent":
        values["alpha_slashes"] = share(three, "alpha_slashes", "Slashes' share")
    if selection == "window":
        values["window_ratio"] = share(three, "window_ratio", "Window (share of the prompt)")
    return values


def _choice(widget, name, label, options):
    return widget(label, options, index=options.index(DEFAULTS[name]), key=name, bind="query-params", help=HELP.get(name))


def _share(place, name, label) -> float:
    return place.slider(label, 0.5, 1.0, DEFAULTS[name], 0.01, key=name, bind="query-params", help=HELP.get(name))


def _number(place, name, label, least, most, step=None):
    form = "%.3g" if isinstance(least, float) else None
    return place.number_input(
        label, least, most, DEFAULTS[name], step, form, name, bind="query-params", help=HELP.get(name), placeholder="auto"
    )
