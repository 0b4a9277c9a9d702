"""The map of one head: weights, kept tiles, and the columns and slashes with their share of the mass and their text."""

import streamlit as st

from app import export, parts, reading, session


def page() -> None:
    opened = session.current()
    trace = opened.trace
    layer, head = session.shown_head()
    if not parts.drawable(trace, layer):
        return
    picture, words = st.columns([1.35, 1], gap="medium")
    with words:
        with st.container(horizontal=True, vertical_alignment="center"):
            scale, overlay = _controls()
            export.menu(
                f"map_layer{layer}_head{head}", lambda: parts.map_chart(trace, layer, head, scale, overlay), opened, "map"
            )
        _columns(trace, layer, head)
        _slashes(trace, layer, head)
    with picture:
        st.markdown(_sentence(trace, layer, head))
        parts.show_map(opened, layer, head, scale, overlay, below=300)


def _controls():
    scale = st.segmented_control(
        "Colours",
        ["log", "linear"],
        default="log",
        required=True,
        key="colours",
        bind="query-params",
        label_visibility="collapsed",
    )
    return scale, st.toggle("Kept and dropped tiles", value=True, key="kept", bind="query-params")


def _sentence(trace, layer, head) -> str:
    kept = int(trace.block_mask(layer, head).sum())
    return (
        f"**Layer {layer}, head {head}** ({reading.plain(trace.label(layer, head))}): {kept:,} tiles computed, "
        f"{trace.density[layer, head]:.1%} of the causal triangle; worst row's recall {trace.cra[layer, head]:.3f} (exact); "
        f"output error {trace.output_error[layer, head]:.2g}."
    )


def _columns(trace, layer, head) -> None:
    block, mass = trace.config.block_size, trace.column_mass(layer, head)
    chosen = sorted(trace.columns(layer, head), key=lambda column: -mass[column])
    st.markdown(_kept(len(chosen), "column"))
    if chosen:
        st.dataframe(
            {
                "block": chosen,
                "mass": [float(mass[column]) * 100 for column in chosen],
                "tokens": [f"{column * block:,} to {min((column + 1) * block, trace.length) - 1:,}" for column in chosen],
                "text": [reading.excerpt(trace, int(column) * block, (int(column) + 1) * block, 90) for column in chosen],
            },
            hide_index=True,
            height="auto" if len(chosen) < 7 else 260,
            column_config={
                "block": st.column_config.NumberColumn(width=55),
                "mass": st.column_config.NumberColumn(format="%.1f %%", width=70),
                "tokens": st.column_config.TextColumn(width=110),
                "text": st.column_config.TextColumn(width="medium"),
            },
        )


def _slashes(trace, layer, head) -> None:
    block, mass = trace.config.block_size, trace.slash_mass(layer, head)
    chosen = sorted(trace.slashes(layer, head), key=lambda slash: -mass[slash])
    st.markdown(_kept(len(chosen), "slash"))
    if chosen:
        st.dataframe(
            {
                "slash": chosen,
                "mass": [float(mass[slash]) * 100 for slash in chosen],
                "looks back": [_distance(int(slash), block) for slash in chosen],
            },
            hide_index=True,
            height="auto" if len(chosen) < 7 else 260,
            column_config={
                "slash": st.column_config.NumberColumn(width=55),
                "mass": st.column_config.NumberColumn(format="%.1f %%", width=70),
            },
        )


def _kept(count: int, piece: str) -> str:
    if not count:
        return f"**No {piece} kept** beside the blocks that are always computed."
    return f"**{reading.counted(count, piece)} kept**, by share of all rows' attention (exact)"


def _distance(slash: int, block: int) -> str:
    return f"{max(0, (slash - 1) * block + 1):,} to {(slash + 1) * block - 1:,} tokens"
