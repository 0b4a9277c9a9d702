"""Where the time goes: in this recording, on an H100 as recorded, and on this machine when asked."""

import streamlit as st

from app import benchmarks, export, jobs, parts, reading, session, timing
from app.figures import interactive
from app.figures import speed as figure


def page() -> None:
    opened = session.current()
    _recording(opened)
    _gpu(opened)
    _here()


def _recording(opened) -> None:
    trace = opened.trace
    times = timing.stages(trace)
    machine = trace.meta["machine"]
    where = ", ".join(reading.visible(str(machine[name])) for name in ("device", "cpu", "backend") if machine.get(name))
    versions = ", ".join(
        f"{name} {reading.visible(str(machine[name]))}" for name in ("torch", "transformers", "triton") if machine.get(name)
    )
    if not times:
        st.info("This recording holds no timings.", icon=":material/timer_off:")
        return
    slowest = max(times, key=times.get)
    title = f"This recording, {trace.length:,} tokens: {slowest} took longest, {figure.seconds(times[slowest])}"

    def chart():
        return figure.stages(times, title, f"{reading.footer(trace)}\n{where}; {versions}; one run, no warm-up")

    parts.heading(f"{title}.", "recorded", lambda: export.menu("recording_stages", chart, opened, "stages"))
    st.caption(
        f"Measured once while recording, on {where} ({versions}). One run without warm-up: for where the time goes, not for a comparison."
    )
    st.plotly_chart(interactive.figure(chart()), key="stages", alt=title)


def _gpu(opened) -> None:
    rows = benchmarks.load()
    if not rows:
        st.info("There are no recorded GPU figures here: data/benchmarks.csv is missing.", icon=":material/table_rows:")
        return
    whole = [row for row in rows if row["what"] in ("dense", "sparse_forward", "sample_attention")]
    dims = sorted({int(row["head_dim"]) for row in whole if row["head_dim"] == row["head_dim"]}, reverse=True)
    if dims:
        dim = dims[0]
        if len(dims) > 1:
            dim = st.segmented_control("Head dimension", dims, default=dim, required=True, key="head_dim", bind="query-params")
        whole = [row for row in whole if row["head_dim"] == dim]
        origin = _origin(whole)
        best = benchmarks.headline(rows)
        title = (
            f"Attention of one layer on {whole[0]['gpu']}: {best.speedup:.1f} × at most recorded length"
            if best
            else f"Attention of one layer on {whole[0]['gpu']}"
        )

        def chart():
            return figure.over_length(whole, title, f"SampleAttention explorer · {origin}")

        parts.heading(f"{title}.", "recorded", lambda: export.menu("recorded_gpu", chart, opened, "gpu"))
        st.caption(f"Recorded: {reading.plain(origin)}. {reading.plain(best.sentence) if best else ''}")
        st.plotly_chart(interactive.figure(chart()), key="gpu", alt=title)
    with st.expander("All recorded figures"):
        st.dataframe(
            {name: [row[name] for row in rows] for name in (*benchmarks.TEXT[4:], *benchmarks.NUMBERS, *benchmarks.TEXT[:4])},
            hide_index=True,
        )


def _origin(rows) -> str:
    def all_of(name):
        return ", ".join(sorted({str(row[name]) for row in rows if row[name]}))

    return f"{all_of('gpu')}, {all_of('date')}, torch {all_of('torch')}, triton {all_of('triton')}, {all_of('dtype')}, median of repeated runs"


def _here() -> None:
    st.markdown("**This machine, now.** Dense and SampleAttention on planted inputs, median and spread after warm-up.")
    left, right = st.columns([1, 3], vertical_alignment="bottom")
    length = left.selectbox("Tokens", (1024, 2048, 4096, 8192), index=1, key="time_length", bind="query-params")
    job = session.timing_job()
    if right.button("Time it here", icon=":material/timer:", disabled=bool(job and job.running)):
        session.keep_timing_job(jobs.Job(timing.work(length), session.still_here()))
    _timing()


@st.fragment(run_every=1.0)
def _timing() -> None:
    job = session.timing_job()
    if job is None:
        return
    if job.running:
        st.progress(job.part, f"{job.sentence} · {job.elapsed:.0f} s")
    elif job.state == "done":
        st.dataframe(job.result, hide_index=True)
    else:
        st.error(reading.plain(timing.sentence(job.error)), icon=":material/timer_off:")
