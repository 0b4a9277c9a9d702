"""What the model says after the prompt, dense and sparse, and how far the predictions are apart."""

import numpy as np
import streamlit as st

from app import export, parts, reading, session
from app.components import token_line
from app.figures import interactive
from app.figures import output as figure


def page() -> None:
    opened = session.current()
    output = opened.trace.output
    if output is None:
        st.info("This recording stopped before the output was compared.", icon=":material/info:")
        return
    continuations(output)
    prompt_chart(opened)
    if len(output.continuation_kl):
        steps = np.arange(len(output.continuation_kl))
        mean, greatest = (figure.scientific(of(output.continuation_kl)) for of in (np.nanmean, np.nanmax))
        title = (
            f"Over the {len(steps)} tokens after the prompt, of the dense text for both: mean KL {mean} nats, greatest {greatest}"
        )
        texts = [f"token {step} of the dense text" for step in steps]
        _chart(opened, "continuation", steps, output.continuation_kl, None, texts, "token after the prompt", title)


def continuations(output) -> None:
    """What both runs write, side by side, the first difference marked."""
    same, count = output.first_difference, len(output.continuation_dense)
    sentence = (
        f"All {count} tokens are the same."
        if same is None
        else f"The first difference is token {same} of {count}, at the arrow ▸."
    )
    with st.container(horizontal=True, vertical_alignment="center"):
        st.markdown(f"**What the model writes next**, greedily. {sentence}", width="content")
        parts.badge("recorded")
    texts = output.continuation_dense_text, output.continuation_sparse_text
    names = "Dense attention", "SampleAttention"
    for i, column in enumerate(st.columns(2, gap="medium")):
        with column.container(border=True, height="stretch"):
            st.caption(names[i])
            token_line(texts[i], texts[1 - i], key=f"continuation_{i}")


def prompt_chart(opened) -> None:
    """How far the predictions are apart at positions of the prompt, and where the likeliest token differs."""
    output = opened.trace.output
    title = (
        f"At {len(output.positions):,} positions of the prompt: mean KL {figure.scientific(np.nanmean(output.kl))} nats, "
        f"the same likeliest token at {output.top1_equal.mean():.1%}"
    )
    texts = [f"token {at:,}, after {reading.text_before(opened.trace, at + 1, 40)}" for at in output.positions.tolist()]
    _chart(opened, "prompt", output.positions, output.kl, output.top1_equal, texts, "prompt position (token)", title)


def _chart(opened, name, positions, kl, same, texts, x, title) -> None:
    def chart():
        return figure.divergence(positions, kl, same, texts, x, title, reading.footer(opened.trace))

    parts.heading(f"{title}.", "recorded", lambda: export.menu(f"output_{name}", chart, opened, f"output_{name}"))
    st.plotly_chart(interactive.figure(chart()), key=f"chart_{name}", alt=title)
