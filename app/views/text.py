"""Record the user's own text: text in, model and settings chosen, progress, and the result opens."""

import streamlit as st

from app import controls, intake, jobs, reading, recording, session
from app.views import text_level

UPLOAD = (
    f"A text file of at most {intake.MAX_MEGABYTES} MB: .txt, .md, .py, .json, .csv, .log or any other text "
    "(a larger one turns red and is not read: cut it first)"
)
MODELS = ("bundled", "folder", "hub")


def page() -> None:
    running = bool(session.job() and session.job().running)
    if running:
        _progress()
    else:
        _outcome()
    writing, choosing = st.columns([1.25, 1], gap="medium")
    with writing:
        st.markdown("#### Your text")
        text, title = _text()
    with choosing:
        st.markdown("#### Model and settings")
        choice, name = _model()
        config = controls.settings()
    with writing:
        counted = _count(text, choice, name)
        prompt = _prompt(text, counted, choice, name)
    with choosing:
        kept = text_level.choose(counted, prompt or "", config) if config is not None else None
    ready = prompt is not None and kept is not None and not running
    if writing.button("Run", type="primary", icon=":material/play_arrow:", disabled=not ready):
        _start(recording.Recording(name, prompt, title, config, *kept))


def _text() -> tuple[str | None, str]:
    """The text (None for a file that was refused, and said why) and its title."""
    upload = st.file_uploader(UPLOAD, key="text_upload", max_upload_size=intake.MAX_MEGABYTES)
    if upload is None:
        typed = st.text_area(
            "or type or paste",
            height=230,
            key="typed_text",
            persist_state="session",
            placeholder="At least some hundred tokens make a picture worth looking at.",
        )
        return typed, "typed text"
    data = upload.getvalue()
    try:
        text = intake.read_text(data)
    except intake.NotUtf8 as error:
        st.error(reading.plain(str(error)), icon=":material/error:")
        if not st.checkbox("Replace what can't be read by �", key="replace_bytes"):
            return None, upload.name
        text = intake.read_text(data, replace=True)
    except intake.IntakeError as error:
        st.error(reading.plain(str(error)), icon=":material/error:")
        return None, upload.name
    with st.container(border=True, height=230):
        st.text(text[:4000] + ("\n…" if len(text) > 4000 else ""))
    return text, upload.name


def _model() -> tuple[str, str]:
    choice = st.segmented_control("Model", MODELS, default="bundled", required=True, key="model", bind="query-params")
    if choice == "bundled":
        return choice, "bundled"
    label, example = (
        ("Folder on the machine that runs this page", "/data/Qwen3-0.6B") if choice == "folder" else ("Hub id", "Qwen/Qwen3-0.6B")
    )
    return choice, st.text_input(label, key=f"model_{choice}", placeholder=example, bind="query-params").strip()


def _count(text: str | None, choice: str, name: str) -> intake.Count | None:
    """The text's tokens; None if the model's tokenizer is not here, or there is no text."""
    return intake.count(text, name) if text and choice != "hub" else None


def _prompt(text: str | None, counted: intake.Count | None, choice: str, name: str) -> str | None:
    """Say how long the text is for the model; returns the prompt to run, or None after saying why there is none."""
    if text is None:
        return None
    try:
        intake.check_text(text)
        intake.check_model(choice, name)
    except intake.IntakeError as error:
        st.caption(reading.plain(str(error)))
        return None
    if counted is None:
        st.caption(f"{len(text):,} characters. Tokens are counted when the model is loaded.")
        return text
    if counted.tokens < 2:
        st.warning("One token has nothing to attend to; give a longer text.", icon=":material/short_text:")
        return None
    context = f" of a context of {counted.context:,}" if counted.context else ""
    st.caption(f"{len(text):,} characters, {counted.tokens:,} tokens{context}.")
    if counted.context and counted.tokens > counted.context:
        st.warning(
            f"The text has {counted.tokens:,} tokens, {counted.tokens - counted.context:,} more than the model's context "
            f"of {counted.context:,}.",
            icon=":material/content_cut:",
        )
        if not st.checkbox(f"Use only the first {counted.context:,} tokens", key="cut_text"):
            return None
        return intake.cut(text, counted, counted.context)
    return text


def _start(work: recording.Recording) -> None:
    session.keep_job(jobs.Job(work, session.still_here()))
    st.rerun()


@st.fragment(run_every=0.5)
def _progress() -> None:
    job = session.job()
    if not job.running:
        st.rerun()
    with st.container(border=True):
        st.progress(job.part, f"**Recording your text.** {reading.plain(job.sentence)} · {job.elapsed:.0f} s")
        with st.container(horizontal=True, vertical_alignment="center"):
            if st.button("Cancel", icon=":material/stop_circle:", disabled=job.cancel.is_set()):
                job.cancel.set()
            st.caption(
                "Stopping: the layer being computed is finished first."
                if job.cancel.is_set()
                else "The other pages stay usable. Closing this tab stops the work."
            )


def _outcome() -> None:
    """Say how the last recording ended; a trace that is done opens, and one that was cancelled can go on."""
    job = session.job()
    if job is None:
        return
    if job.state == "cancelled":
        _cancelled(job.work)
        return
    session.keep_job(None)
    if job.state == "done":
        session.keep_model_place(job.result.meta["model"]["name"], job.work.model)
        session.open_trace(job.result)
        session.say(f"Recorded in {job.elapsed:.0f} s. All pages now show your text.")
        session.go_to("overview")
    else:
        st.error(reading.plain(recording.sentence(job.error)), icon=":material/error:")
        st.caption("What was open stays open.")


def _cancelled(work: recording.Recording) -> None:
    done, layers = work.progress
    with st.container(border=True, horizontal=True, vertical_alignment="center"):
        st.markdown(
            f"**Cancelled.** {done} of {layers} layers recorded; *Go on* analyses the others."
            if done
            else "**Cancelled** before a layer was recorded.",
            width="content",
        )
        if st.button("Go on" if done else "Start again", icon=":material/resume:"):
            _start(work)
        if st.button("Throw away", icon=":material/delete:"):
            session.keep_job(None)
            st.rerun()
