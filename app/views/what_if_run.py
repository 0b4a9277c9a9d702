"""What to do with the settings of What-if: run them exactly, see what the model writes, take them along."""

import streamlit as st

from app import jobs, reading, recording, session, snippets
from app.components import snippet
from app.views import output

LOWEST_SHARE = 0.5


def take_along(opened, config) -> None:
    """Run exactly; the settings as a file and as code."""
    trace = opened.trace
    model, why_not = trace.meta["model"]["name"], _cannot_run(trace, config)
    st.markdown("**Use these settings**")
    if running():
        _progress()
    with st.container(horizontal=True, vertical_alignment="center"):
        help_text = (
            "Records the prompt again with these settings; what is exact then replaces the estimates."
            if model == "bundled"
            else "Opens Use my text with this prompt and these settings filled in."
        )
        if st.button(
            "Run exactly", icon=":material/play_arrow:", type="primary", help=help_text, disabled=bool(why_not) or running()
        ):
            _run(trace, config, model)
        st.download_button("config.json", config.to_json(), "config.json", icon=":material/download:", on_click="ignore")
        if why_not:
            st.caption(why_not)
    tabs = st.tabs(["Python", "Command line", "JSON"])
    for tab, text in zip(tabs, (snippets.python(config), snippets.command(config, model), config.to_json()), strict=True):
        with tab:
            snippet(text, f"config_{tabs.index(tab)}")


def running() -> bool:
    """Whether this tab runs settings exactly now."""
    job = session.exact_job()
    return job is not None and job.running


def _run(trace, config, model) -> None:
    if model != "bundled":
        session.go_to_text(trace.text, **_address(config, model))
        return
    title = trace.meta["prompt"]["title"] or "prompt"
    level = "summary" if trace.level == "summary" else "explore"
    work = recording.Recording(model, trace.text, title, config, level)
    session.keep_exact_job(jobs.Job(work, session.still_here()))
    st.rerun()


def _cannot_run(trace, config) -> str:
    if not trace.text.strip():
        return "This trace does not hold the prompt's text, so run the command below to replace the estimates."
    if config.density is not None or config.block_size != 128 or config.rows_at_target < LOWEST_SHARE:
        return "*Use my text* does not offer these settings, so run the command below to replace the estimates."
    if config == trace.config:
        return "These settings are the recorded ones, so nothing is estimated."
    return ""


def _address(config, model) -> dict[str, str]:
    """The settings and the model as "Use my text" reads them from its address."""
    settings = {name: str(value) for name, value in snippets.unusual(config).items() if name != "backend"}
    return {"model": "hub", "model_hub": model} | settings


@st.fragment(run_every=0.5)
def _progress() -> None:
    job = session.exact_job()
    if not job.running:
        st.rerun()
    with st.container(horizontal=True, vertical_alignment="center", border=True):
        st.progress(job.part, f"**Running exactly.** {reading.plain(job.sentence)} · {job.elapsed:.0f} s")
        if st.button("Cancel", icon=":material/stop_circle:", disabled=job.cancel.is_set(), key="exact_cancel"):
            job.cancel.set()


def outcome() -> None:
    """Say how an exact run ended; its trace opens, and its numbers replace the estimates."""
    job = session.exact_job()
    if job is None or job.running:
        return
    session.keep_exact_job(None)
    if job.state == "done":
        session.open_trace(job.result, keep_view=True)
        session.say(f"Run exactly in {job.elapsed:.0f} s: what is shown of these settings is recorded now, not estimated.")
        st.rerun()
    if job.state == "failed":
        st.error(reading.plain(recording.sentence(job.error)), icon=":material/error:")
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
