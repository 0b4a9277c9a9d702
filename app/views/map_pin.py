"""Pin the head on show: its prompt runs through the model again, and the map then goes down to single tokens."""

import streamlit as st

from app import jobs, reading, recording, session, snippets
from app.components import snippet
from app.views import which_model


def offer(opened, layer: int, head: int) -> None:
    """What pinning does, with which model, and the button; or how far it is."""
    job = session.pin_job()
    if job and job.running:
        _progress()
        return
    with st.popover("Record this head exactly", icon=":material/push_pin:", width="content"):
        st.markdown(
            "This head was recorded without its queries and keys, so the map ends at the cells of the overview. This runs the "
            "prompt through the model again, as far as this layer, and adds them: "
            f"{_megabytes(opened.trace):,.0f} MB where the model runs in float32, half of it else."
        )
        name = opened.trace.meta["model"]["name"]
        if name != "bundled":
            name = which_model.ask(opened.trace, "pin_model")
        if st.button("Run", type="primary", icon=":material/play_arrow:", disabled=not name, key="pin_run"):
            work = recording.pin_work(opened.trace, name, layer, head)
            session.keep_pin_job(jobs.Job(work, session.still_here()))
            st.rerun()
        st.caption("Or on the machine with the GPU, and open the trace anew:")
        snippet(snippets.pin_command(name, layer, head), "pin_command")


def _megabytes(trace) -> float:
    """What the q and k of one head take in float32."""
    return 2 * 4 * trace.length * trace.meta["model"]["head_dim"] / 1e6


def outcome() -> None:
    """Open the trace with the pinned head, or say why there is none. To be called before the page is drawn."""
    job = session.pin_job()
    if job is None or job.running:
        return
    session.keep_pin_job(None)
    if job.state == "done":
        session.open_trace(job.result, keep_view=True)
        session.say(f"Pinned in {job.elapsed:.0f} s: zoom in as far as single tokens.")
        st.rerun()
    elif job.state == "cancelled":
        st.info("Cancelled. The head stays as it was.", icon=":material/stop_circle:")
    else:
        st.error(reading.plain(recording.sentence(job.error)), icon=":material/error:")


@st.fragment(run_every=0.5)
def _progress() -> None:
    job = session.pin_job()
    if not job.running:
        st.rerun()
    with st.container(horizontal=True, vertical_alignment="center", width="content"):
        st.caption(f"{reading.plain(job.sentence)}, {job.part:.0%}, {job.elapsed:.0f} s", width="content")
        if st.button("Cancel", icon=":material/stop_circle:", disabled=job.cancel.is_set(), key="pin_cancel"):
            job.cancel.set()
