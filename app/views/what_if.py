"""How low can I go on my prompt? Other settings tried on the sampled rows of the open trace, head by head, without a model."""

import time

import streamlit as st

from app import estimating, jobs, reading, recording, session
from app.views import what_if_results, what_if_run
from sampleattn.config import SCOPES, SELECTIONS
from sampleattn.estimate_table import TARGETS

AT_ONCE, AT_ONCE_COARSE = 0.8, 0.1
LOWEST = TARGETS[0]
HELP = {
    "selection": "joint: columns and slashes chosen together (ours). independent: the paper's two cumulative sums. "
    "window: a local window and columns (arXiv v1).",
    "scope": "Columns and slashes are chosen once for the head, or for each segment of the prompt.",
    "segments": "Equal parts of the prompt, if each chooses for itself.",
    "sink_blocks": "The first blocks of keys, always kept.",
    "local_blocks": "Blocks up to and with the diagonal, always kept.",
}


def page() -> None:
    what_if_run.outcome()
    opened = session.current()
    if not opened.trace.recorded_layers or opened.trace.length < opened.trace.config.dense_below:
        what_if_results.nothing_sampled()
        return
    if opened.trace.level == "summary":
        st.caption(
            "A summary holds no sampled attention: targets, selections and scopes are answered as far as they were when it was "
            "recorded, other settings coarsely or not at all. Record at level explore to try any."
        )
    _explore(opened)
    what_if_run.recorded_output(opened)


@st.fragment
def _explore(opened) -> None:
    """The settings and all that follows them; only this runs again when one of them is changed."""
    config, known = _settings(opened.trace), session.estimates()
    job = _job(known, config)
    if job:
        _wait(job, known, config)
    if job and job.running and not known.all_done(config):
        st.fragment(_while_running, run_every=0.4)(job, opened, known, config)
    else:
        _ended(job)
        what_if_results.show(opened, known, config)
    what_if_run.take_along(opened, config)


def _settings(trace):
    recorded = trace.config
    places = st.columns([1.1, 1, 0.8, 0.8, 0.8], gap="medium")
    wanted = {"cra": session.what_if_target(LOWEST)}
    choices = {
        "selection": ("Selection", SELECTIONS),
        "scope": ("Chosen per", SCOPES),
        "sink_blocks": ("Sink blocks", sorted({*range(9), recorded.sink_blocks})),
        "local_blocks": ("Local blocks", sorted({*range(1, 17), recorded.local_blocks})),
    }
    for place, (name, (label, options)) in zip(places, choices.items(), strict=False):
        first = options.index(getattr(recorded, name))
        wanted[name] = place.selectbox(label, options, first, help=HELP[name], **_kept(name))
    wanted["segments"] = _segments(places[4], trace, wanted["scope"])
    return estimating.changed(recorded, **wanted)


def _segments(place, trace, scope) -> int | None:
    """The number of segments, where each of them chooses; a head that chooses once keeps what was recorded."""
    recorded = trace.config.segments
    blocks = -(-trace.length // trace.config.block_size)
    counts = {2**power for power in range(blocks.bit_length()) if 2**power <= blocks} | {recorded or 1}
    options = ["auto", *map(str, sorted(counts))]
    chosen = place.selectbox(
        "Segments", options, options.index(str(recorded or "auto")), help=HELP["segments"], disabled=scope == "head",
        **_kept("segments"),
    )  # fmt: skip
    if scope == "head":
        return recorded
    return None if chosen == "auto" else int(chosen)


def _kept(name) -> dict:
    """A widget's key, in the address, and kept while other pages are looked at."""
    return dict(key=session.WHAT_IF[name], bind="query-params", persist_state="session")


def _job(known, config):
    """The job that estimates these settings, started if there is something to do; what other settings began is stopped."""
    wish, job = session.estimate_job()
    if wish == (known, config):
        return job
    if job:
        job.cancel.set()
    job = None if known.all_done(config) else jobs.Job(known.work(config), session.still_here())
    session.keep_estimate_job((known, config), job)
    return job


def _wait(job, known, config) -> None:
    """Give a short job the time to be done before anything is drawn; less of it where there is a coarse answer to draw."""
    until = time.monotonic() + (AT_ONCE_COARSE if known.board(config).coarse else AT_ONCE)
    while job.running and not known.complete(config) and time.monotonic() < until:
        job.wait(0.01)


def _while_running(job, opened, known, config) -> None:
    if session.what_if_target(LOWEST) != config.cra or known.all_done(config) or not job.running:
        st.rerun()
    with st.container(horizontal=True, vertical_alignment="center"):
        st.progress(job.part, f"Estimating. {job.sentence} · {job.elapsed:.0f} s", width=560)
        if st.button("Cancel", icon=":material/stop_circle:", disabled=job.cancel.is_set(), key="estimate_cancel"):
            job.cancel.set()
    what_if_results.show(opened, known, config)


def _ended(job) -> None:
    """Say why a job ended before its time."""
    if job is None or job.state in ("running", "done"):
        return
    if job.state == "failed":
        st.error(f"These settings can't be estimated: {reading.plain(recording.sentence(job.error))}", icon=":material/error:")
        return
    with st.container(horizontal=True, vertical_alignment="center"):
        st.caption("Stopped: what is missing or coarse below was not estimated.", width="content")
        if st.button("Go on", icon=":material/play_arrow:", key="estimate_again"):
            session.keep_estimate_job(None, None)
            st.rerun()
