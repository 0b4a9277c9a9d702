"""What to do with the settings of What-if: run them exactly, see what the model writes, take them along."""

import streamlit as st

from app import jobs, reading, recording, session, snippets
from app.components import snippet
from app.views import output, which_model


def take_along(opened, config) -> None:
    """Run exactly; the settings as a file and as code."""
    trace, why_not = opened.trace, _cannot_run(opened.trace, config)
    st.markdown("**Use these settings**")
    if running():
        _progress()
    with st.container(horizontal=True, vertical_alignment="center"):
        _offer(trace, config, disabled=bool(why_not) or running())
        st.download_button("config.json", config.to_json(), "config.json", icon=":material/download:", on_click="ignore")
        if why_not:
            st.caption(why_not)
    tabs = st.tabs(["Python", "Command line", "JSON"])
    for tab, text in zip(
        tabs, (snippets.python(config), snippets.command(config, trace.meta["model"]["name"]), config.to_json()), strict=True
    ):
        with tab:
            snippet(text, f"config_{tabs.index(tab)}")


def running() -> bool:
    """Whether this tab runs settings exactly now."""
    job = session.exact_job()
    return job is not None and job.running


def _offer(trace, config, disabled: bool) -> None:
    """The button that runs the settings. A model that a trace names is loaded only after the user has seen where from."""
    look = {"icon": ":material/play_arrow:", "type": "primary", "disabled": disabled}
    does = "Records the prompt again with these settings; what is exact then replaces the estimates."
    if trace.meta["model"]["name"] == "bundled":
        if st.button("Run exactly", help=does, **look):
            _run(trace, config, "bundled")
        return
    with st.popover("Run exactly", width="content", **look):
        st.markdown(f"{does} It needs the model that was recorded. Nothing is loaded before you press *Run*.")
        place = which_model.ask(trace, "exact_model")
        if st.button("Run", icon=":material/play_arrow:", type="primary", disabled=not place, key="exact_run"):
            _run(trace, config, place)
        st.caption("If it is not here: run the command below on the machine that has it, and open the trace that it writes.")


def _run(trace, config, model) -> None:
    title, recorded = trace.meta["prompt"]["title"] or "prompt", trace.meta["model"]
    level = "summary" if trace.level == "summary" else "explore"
    revision = recorded["revision"] if model == recorded["name"] else None
    work = recording.Recording(model, trace.text, title, config, level, revision=revision, heads=(trace.layers, trace.heads))
    session.keep_exact_job(jobs.Job(work, session.still_here()))
    st.rerun()


def _cannot_run(trace, config) -> str:
    if not trace.text.strip():
        return "This trace does not hold the prompt's text, so run the command below to replace the estimates."
    if config == trace.config:
        return "These settings are the recorded ones, so nothing is estimated."
    return ""


@st.fragment(run_every=0.5)
def _progress() -> None:
    job = session.exact_job()
    if not job.running:
        st.rerun()
    with st.container(horizontal=True, vertical_alignment="center", border=True):
        st.progress(job.part, f"**Running exactly.** {reading.plain(job.sentence)} · {job.elapsed:.0f} s")
        if st.button("Cancel", icon=":material/stop_circle:", disabled=job.cancel.is_set(), key="exact_cancel"):
            job.cancel.set()
        if job.cancel.is_set():
            st.caption("Stopping: the layer being computed is finished first.", width="content")


def outcome() -> None:
    """Say how an exact run ended; its trace opens, and its numbers replace the estimates."""
    job = session.exact_job()
    if job is None or job.running:
        return
    session.keep_exact_job(None)
    if job.state == "done":
        session.keep_model_place(job.result.meta["model"]["name"], job.work.model)
        session.open_trace(job.result, keep_view=True)
        session.say(f"Run exactly in {job.elapsed:.0f} s: what is shown of these settings is recorded now, not estimated.")
        st.rerun()
    if job.state == "failed":
        st.error(reading.plain(recording.sentence(job.error)), icon=":material/error:")
        st.caption("What was open stays open. Another place of the model can be given below, at *Run exactly*.")
    else:
        st.info("Cancelled. What was open stays open.", icon=":material/stop_circle:")


def recorded_output(opened) -> None:
    """What the recorded settings do to the model's output."""
    trace = opened.trace
    if trace.output is None:
        return
    st.divider()
    st.caption(
        f"The output as recorded: {reading.settings_line(trace.config)}. *Run exactly* replaces it by that of the settings above."
    )
    output.continuations(trace.output)
    output.prompt_chart(opened)
