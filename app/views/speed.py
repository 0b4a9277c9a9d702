"""Where the time goes: in this recording, on an H100 as recorded, and on this machine when asked."""

import numpy as np
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
    times, layers = timing.stages(trace), timing.attention_by_layer(trace)
    if not times:
        st.info("This recording holds no timings.", icon=":material/timer_off:")
        return
    machine = {name: reading.visible(str(value)) for name, value in trace.meta["machine"].items() if value}
    where = ", ".join(machine[name] for name in ("device", "cpu", "backend") if name in machine)
    versions = ", ".join(f"{name} {machine[name]}" for name in ("torch", "transformers", "triton") if name in machine)
    origin = f"{where}; {versions}; one run, no warm-up"
    slowest = max(times, key=times.get)
    title = f"This recording of {trace.length:,} tokens: most time went into {slowest}, {figure.seconds(times[slowest])}"

    def stages():
        return figure.stages(times, title, f"{reading.footer(trace)}\n{origin}")

    def by_layer():
        return figure.by_layer(layers, _compared(layers), f"{reading.footer(trace)}\n{origin}")

    parts.heading(f"{title}.", "recorded", lambda: export.menu("recording_stages", stages, opened, "stages"))
    st.caption(f"Measured while recording, on {reading.plain(origin)}: it shows where the time goes, and is no comparison.")
    st.plotly_chart(interactive.figure(stages()), key="stages", alt=title)
    if len(layers) == 2:
        parts.heading(f"{_compared(layers)}.", "recorded", lambda: export.menu("recording_layers", by_layer, opened, "layers"))
        st.plotly_chart(interactive.figure(by_layer()), key="layers", alt=_compared(layers))


def _compared(layers) -> str:
    totals = ", ".join(f"{name} {figure.seconds(float(np.nansum(values)))}" for name, values in layers.items())
    return f"Attention of all layers in this recording: {totals}"


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
        _gpu_chart([row for row in whole if row["head_dim"] == dim], benchmarks.headline(rows, dim), opened)
    with st.expander("All recorded figures"):
        columns = (*benchmarks.TEXT[4:], *benchmarks.NUMBERS, *benchmarks.TEXT[:4])
        st.dataframe({name: [row[name] for row in rows] for name in columns}, hide_index=True)


def _gpu_chart(rows, best, opened) -> None:
    origin = _origin(rows)
    title = f"Attention of one layer on {rows[0]['gpu']}"
    if best:
        title += f": the whole method takes {1 / best.speedup:.2g} of dense attention's time at the longest recorded prompt"

    def chart():
        return figure.over_length(rows, title, f"SampleAttention explorer · {origin}")

    parts.heading(f"{title}.", "recorded", lambda: export.menu("recorded_gpu", chart, opened, "gpu"))
    st.caption(f"Recorded on {reading.plain(origin)}. {reading.plain(best.sentence) if best else ''}")
    st.plotly_chart(interactive.figure(chart()), key="gpu", alt=title)


def _origin(rows) -> str:
    def all_of(name):
        return ", ".join(sorted({str(row[name]) for row in rows if row[name]}))

    return f"{all_of('gpu')}, {all_of('date')}, torch {all_of('torch')}, triton {all_of('triton')}, {all_of('dtype')}, medians"


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
