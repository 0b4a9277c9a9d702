"""What the model says after the prompt, dense and sparse, and how far the predictions are apart."""

import numpy as np
import streamlit as st

from app import export, parts, reading, session
from app.figures import interactive
from app.figures import output as figure


def page() -> None:
    opened = session.current()
    trace = opened.trace
    output = trace.output
    if output is None:
        st.info("This recording stopped before the output was compared.", icon=":material/info:")
        return
    _continuations(output)
    title = (
        f"At {len(output.positions):,} positions of the prompt: mean KL {np.nanmean(output.kl):.2g} nats, "
        f"the same likeliest token at {output.top1_equal.mean():.1%}"
    )
    _chart(opened, "prompt", output.positions, output.kl, "prompt position (token)", title)
    if len(output.continuation_kl):
        steps = np.arange(len(output.continuation_kl))
        title = (
            f"Over the {len(steps)} tokens after the prompt (both runs read the dense text): mean KL {np.nanmean(output.continuation_kl):.2g} nats, "
            f"greatest {np.nanmax(output.continuation_kl):.2g}"
        )
        _chart(opened, "continuation", steps, output.continuation_kl, "token after the prompt", title)


def _continuations(output) -> None:
    same = output.first_difference
    count = len(output.continuation_dense)
    sentence = (
        f"All {count} tokens are the same."
        if same is None
        else f"The first difference is token {same} of {count}; it is underlined."
    )
    with st.container(horizontal=True, vertical_alignment="center"):
        st.markdown(f"**What the model writes next**, greedily. {sentence}", width="content")
        parts.badge("recorded")
    for column, name, pieces in zip(
        st.columns(2, gap="medium"),
        ("Dense attention", "SampleAttention"),
        (output.continuation_dense_text, output.continuation_sparse_text),
        strict=True,
    ):
        with column.container(border=True, height="stretch"):
            st.caption(name)
            st.markdown(_marked(pieces, same))


def _marked(pieces, first) -> str:
    words = [reading.plain(piece) for piece in pieces]
    if first is None or first >= len(words):
        return "".join(words) or "(nothing)"
    return f"{''.join(words[:first])} :orange-background[:material/arrow_right:**{words[first] or '(end)'}**] {''.join(words[first + 1 :])}"


def _chart(opened, name, positions, kl, x, title) -> None:
    def chart():
        return figure.divergence(positions, kl, x, title, reading.footer(opened.trace))

    with st.container(horizontal=True, vertical_alignment="center", horizontal_alignment="distribute"):
        st.markdown(f"**{title}.**", width="content")
        parts.badge("recorded")
        export.menu(f"output_{name}", chart, opened, f"output_{name}")
    st.plotly_chart(interactive.figure(chart()), key=f"chart_{name}", alt=title)
