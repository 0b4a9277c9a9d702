"""Recall per row beside the target, and the rows that keep the least."""

import numpy as np
import streamlit as st

from app import export, parts, reading, session
from app.figures import interactive
from app.figures import recall as figure
from sampleattn.recall import SHARES, cell_edges

WORST = 12


def page() -> None:
    opened = session.current()
    trace = opened.trace
    layer, head = session.shown_head()
    if not parts.drawable(trace, layer):
        return
    recall, known, target = trace.recall(layer, head), trace.recall_parts(layer, head), trace.config.cra
    share = float(trace.rows_at_target[layer, head])
    least, worst = reading.least_recall(trace, layer, head)
    title = (
        f"Layer {layer}, head {head}: {share:.1%} of {trace.length:,} rows keep at least {target:g} of their attention; "
        f"the worst keeps {least:.3f} ({worst})"
    )

    def chart():
        return figure.chart(recall, target, title, reading.footer(trace, layer, head), known)

    parts.heading(f"{title}.", "exact", lambda: export.menu(f"recall_layer{layer}_head{head}", chart, opened, "recall"))
    st.plotly_chart(interactive.figure(chart()), key="recall_chart", alt=title)
    if known == trace.length:
        _worst(trace, recall, layer, head)
    else:
        _worst_parts(trace, layer, head)
    _meaning(trace)


def _worst(trace, recall, layer, head) -> None:
    order = np.argsort(recall, kind="stable")[:WORST].tolist()
    sampled = set(trace.rows(layer).tolist())
    columns = {
        "row": order,
        "recall": recall[order],
        "sampled": ["yes" if row in sampled else "no" for row in order],
        "token": [reading.excerpt(trace, row, row + 1, 24) for row in order],
        "text before it": [reading.text_before(trace, row, 48) for row in order],
    }
    pinned = trace.pinned(layer, head)
    if pinned:
        keys, weights = zip(*(reading.most_missed(trace, layer, head, row) for row in order), strict=True)
        columns |= {
            "missed most": weights,
            "at key": keys,
            "text up to that key": [reading.text_before(trace, key + 1, 48) for key in keys],
        }
    what = "the text before them, and the greatest single weight that each missed" if pinned else "the text before them"
    st.markdown(f"**The rows that keep the least** of their attention, {what} (exact)")
    st.dataframe(
        columns,
        hide_index=True,
        height="content",
        column_config={
            "row": st.column_config.NumberColumn(format="localized", width=70),
            "recall": st.column_config.NumberColumn(format="%.3f", width=65),
            "sampled": st.column_config.TextColumn(width=70),
            "token": st.column_config.TextColumn(width=90),
            "missed most": st.column_config.NumberColumn(format="%.3f", width=90),
            "at key": st.column_config.NumberColumn(format="localized", width=70),
        },
    )
    if not pinned:
        st.caption("What these rows missed is told of pinned heads: *Map* pins this one.")


def _worst_parts(trace, layer, head) -> None:
    known = trace.recall_parts(layer, head)
    edges = cell_edges(trace.length, known)
    least = trace.recall(layer, head)[edges[:-1]]
    order = np.argsort(least, kind="stable")[:WORST]
    st.markdown("**The parts of the prompt whose worst row keeps the least**, with the text they begin with")
    st.dataframe(
        {
            "rows": [reading.rows_of_part(trace, known, part).removeprefix("rows ") for part in order.tolist()],
            "least recall": least[order],
            "text": [reading.excerpt(trace, int(edges[part]), int(edges[part + 1]), 70) for part in order],
        },
        hide_index=True,
        height="content",
        column_config={
            "rows": st.column_config.TextColumn(width=140),
            "least recall": st.column_config.NumberColumn(format="%.3f", width=90),
        },
    )
    quantiles = dict(zip(SHARES, trace.recall_quantiles(layer, head).tolist(), strict=True))
    why = "The level *summary* keeps" if trace.level == "summary" else "Of a prompt this long, heads that are not pinned keep"
    st.caption(
        f"{why} the least recall of each of {known} parts; pin the head on Map to keep every row. Of all rows, half keep at "
        f"least {quantiles[0.5]:.3f}, 95% at least {quantiles[0.05]:.3f}, and 99% at least {quantiles[0.01]:.3f}."
    )


def _meaning(trace) -> None:
    config = trace.config
    aim = (
        f"columns and slashes are added until {config.rows_at_target:.0%} of the *sampled* rows keep {config.cra:g} of theirs"
        if config.selection == "joint"
        else "columns and slashes are added until they hold their share of the *sampled* attention"
    )
    st.markdown(
        "**What the target means, and what it does not.** "
        f"Recall of a row is the share of its dense attention that lies in the tiles computed. "
        f"The target is an aim, not a guarantee: {aim}. "
        "Rows that were not sampled may fall short, and the worst row often does. The numbers above are exact: every row was "
        "checked."
    )
