"""From which length on the method pays, where its time goes, and how near it is to the machine's limits."""

import numpy as np
import streamlit as st

from app import benchmarks, export, jobs, parts, reading, session, timing
from app.figures import interactive
from app.figures import speed as figure
from sampleattn.bench.rows import is_rival, label, tokens

RECORDED, HERE = "Recorded on a GPU", "Timed here"
LONGEST = (1024, 2048, 4096, 8192, 16384, 32768, 65536, 131072)
WHOLE = ("dense", "sample_attention", "sparse_forward")
STAGES = ("sparse_forward", "stage_1", "selection", "index_lists", "row_logsumexp")
COUNTED = ("dense", "sparse_forward", "stage_1", "row_logsumexp")


def page() -> None:
    opened = session.current()
    here = session.timing_job()
    here = here.result if here is not None and here.state == "done" else None
    source = RECORDED
    if here:
        source = st.segmented_control(
            "Figures", (RECORDED, HERE), default=HERE, required=True, key="figures", bind="query-params"
        )
    choices = st.container(horizontal=True, gap="medium")
    with choices:
        rows = here if source == HERE else _recorded()
    _figures(rows, "timed" if source == HERE else "recorded", opened, choices)
    _here(opened)
    _recording(opened)


def _recorded() -> list[dict]:
    """The recorded rows of one GPU: the one measured last, or the one chosen."""
    found = benchmarks.by_gpu(benchmarks.load())
    if len(found) < 2:
        return next(iter(found.values()), [])
    name = st.segmented_control("GPU", list(found), default=next(iter(found)), required=True, key="gpu", bind="query-params")
    return found[name]


# Figures of one source


def _figures(rows, kind, opened, choices) -> None:
    dims = benchmarks.head_dims(rows)
    if not dims:
        why = "data/benchmarks.csv has none" if kind == "recorded" else "the timing was stopped before"
        st.info(f"No figures of dense attention beside SampleAttention: {why}.", icon=":material/table_rows:")
        return
    dim = dims[0]
    if len(dims) > 1:
        dim = choices.segmented_control("Head dimension", dims, default=dim, required=True, key="head_dim", bind="query-params")
    shown = benchmarks.compared(rows, dim)
    _against_dense(shown, kind, opened)
    left, right = st.columns(2, gap="medium")
    with left:
        _stages(shown, kind, opened)
    with right:
        _roofline(shown, benchmarks.roof(rows), kind, opened)
    _table([row for row in rows if row["head_dim"] == dim])


def _draw(name, sentence, kind, chart, opened) -> None:
    parts.heading(sentence, kind, lambda: export.menu(name, chart, opened, name))
    st.plotly_chart(interactive.figure(chart()), key=name, alt=sentence)


def _against_dense(rows, kind, opened) -> None:
    both = benchmarks.comparison(rows)
    if both is None:
        return
    ours, dense = both.ours[-1], both.dense[-1]
    rival = label("dense", dense["implementation"])
    sentence = f"SampleAttention: {_times(both.speedup)} than {rival} at {tokens(ours['length'])} tokens{_even(both)}"
    curves = [row for row in rows if row["what"] in WHOLE and (row["what"] != "sparse_forward" or not is_rival(row))]
    until = ours["length"] if both.even is None else both.even

    def chart():
        return figure.over_length(curves, sentence, _footer(rows), until)

    _draw("over_length", sentence, kind, chart, opened)
    st.caption(
        f"One layer's attention at {ours['length']:,.0f} tokens and {ours['density']:.0%} of the tiles: {ours['median_ms']:.3g} "
        f"ms for the whole method, {dense['median_ms']:.3g} ms for {rival}{_faster(rows, dense)}. Solid: attention of others; "
        "dashed: ours. "
        f"{reading.plain(_origin(rows))}."
    )


def _faster(rows, dense) -> str:
    """The fastest dense attention at the same length, where it is another one."""
    there = [row for row in rows if row["what"] == "dense" and row["length"] == dense["length"]]
    best = min(there, key=lambda row: row["median_ms"])
    return "" if best is dense else f", {best['median_ms']:.3g} ms for {label('dense', best['implementation'])}"


def _times(speedup) -> str:
    return f"{speedup:.1f} times faster" if speedup >= 1 else f"{1 / speedup:.1f} times slower"


def _even(both) -> str:
    shortest = both.ours[0]["length"]
    if both.even is None:
        return ""
    if both.even <= shortest:
        return f", and faster from {tokens(shortest)} on" if len(both.ours) > 1 else ""
    return f", slower below {tokens(both.even)}"


def _stages(rows, kind, opened) -> None:
    curves = [row for row in rows if row["what"] in STAGES and not is_rival(row)]
    longest = max((row["length"] for row in curves if row["what"] == "sparse_forward"), default=None)
    at = {row["what"]: row["median_ms"] for row in curves if row["length"] == longest}
    choosing = sum(at.get(what, 0.0) for what in STAGES[1:4])
    if not choosing:
        return
    alone = at["sparse_forward"]
    sentence = f"Choosing the tiles adds {choosing / alone:.0%} at {tokens(longest)} tokens"
    _draw("stages_over_length", sentence, kind, lambda: figure.over_length(curves, sentence, _footer(rows)), opened)
    st.caption(f"At {longest:,.0f} tokens: {choosing:.3g} ms beside {alone:.3g} ms of attention over the chosen tiles.")


def _roofline(rows, roof, kind, opened) -> None:
    counted = [row for row in rows if row["what"] in COUNTED and benchmarks.intensity(row) > 0]
    ours = [row for row in counted if row["what"] == "sparse_forward" and not is_rival(row)]
    if roof is None or not ours:
        st.caption("No roofline: these figures were recorded without the rate and the bandwidth of the machine.")
        return
    best = max(ours, key=lambda row: row["tflops"])
    possible, reached = float(roof.limit(benchmarks.intensity(best))), best["tflops"]
    sentence = f"Sparse attention: {figure.rate(reached)}, {reached / possible:.0%} of the roof"

    def chart():
        return figure.roofline(counted, roof, benchmarks.intensity, sentence, _footer(rows))

    _draw("roofline", sentence, kind, chart, opened)
    st.caption(
        f"The roof is what this machine reached in the same run: {figure.rate(roof.rate)} in a large matrix product, "
        f"{roof.bandwidth * 1e3:,.0f} GB/s in a copy. A kernel may pass it by some percent: the clock changes with the "
        "load. Causal operations and bytes are counted once."
    )


def _table(rows) -> None:
    with st.expander("Medians and spread", icon=":material/table_rows:"):
        columns = {
            "what": [label(row["what"], row["implementation"]) for row in rows],
            "tokens": [row["length"] for row in rows],
            "share of tiles": [row["density"] for row in rows],
            "median (ms)": [row["median_ms"] for row in rows],
            "20th percentile": [row["p20_ms"] for row in rows],
            "80th percentile": [row["p80_ms"] for row in rows],
            "TFLOP/s": [row["tflops"] for row in rows],
            "memory above inputs (MiB)": [row["memory_mb"] for row in rows],
            "input": [row["input"] for row in rows],
            "timed as": [row["mode"] for row in rows],
            "date": [row["date"] for row in rows],
            "machine": [row["gpu"] for row in rows],
        }
        told = {name: values for name, values in columns.items() if any(value == value and value != "" for value in values)}
        st.dataframe(told, hide_index=True)
        st.caption("eager: call by call, the host's launches included. graph: replayed as a CUDA graph, from cold caches.")


def _origin(rows) -> str:
    def all_of(name):
        return ", ".join(sorted({part for row in rows if row[name] for part in str(row[name]).split(", ")}))

    libraries = f", {all_of('libraries')}" if all_of("libraries") else ""
    heads = " and ".join(sorted({f"{row['heads']:.0f} query and {row['kv_heads']:.0f} key heads" for row in rows}))
    return (
        f"{all_of('gpu')}, {all_of('date')}, torch {all_of('torch')}, triton {all_of('triton') or 'none'}{libraries}; "
        f"{all_of('dtype')}, {heads}, {all_of('input') or 'planted'} inputs; medians"
    )


def _footer(rows) -> str:
    return f"SampleAttention explorer · {_origin(rows)}"


# On this machine


def _here(opened) -> None:
    st.markdown("**This machine.** Dense attention, the method and its stages, as medians after a warm-up, at growing lengths.")
    layers = timing.pinned_layers(opened.trace)
    with st.container(horizontal=True, vertical_alignment="bottom"):
        longest = st.selectbox("Up to (tokens)", LONGEST, index=2, key="time_length", bind="query-params", width=160)
        sources = ["planted", *layers]
        source = st.selectbox("Inputs", sources, format_func=_source, key="time_input", width=260, help=INPUTS_HELP)
        job = session.timing_job()
        running = bool(job and job.running)
        if st.button("Time it here", icon=":material/timer:", disabled=running):
            layer = None if source == "planted" else source
            wish = timing.Wish(longest if layer is None else min(longest, opened.trace.length), layer)
            session.keep_timing_job(jobs.Job(timing.work(wish, opened.trace), session.still_here()))
            st.rerun()
        if running and st.button("Cancel", icon=":material/cancel:"):
            job.cancel.set()
    if running:
        _progress()
    elif job is not None and job.state != "done":
        tell = st.error if job.state == "failed" else st.info
        tell(reading.plain(timing.sentence(job.error)), icon=":material/timer_off:")


INPUTS_HELP = (
    "Planted: structure of known mass, on a GPU in the size of a large model's layer. Recorded: q and k of the heads that the "
    "open trace has pinned; v is drawn at random, which does not change the time."
)


def _source(source) -> str:
    return "planted structure" if source == "planted" else f"recorded, layer {source}"


@st.fragment(run_every=1.0)
def _progress() -> None:
    job = session.timing_job()
    if not job.running:
        st.rerun()
    st.progress(job.part, f"{job.sentence} · {job.elapsed:.0f} s")


# This recording


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

    _draw("recording_stages", f"{title}.", "recorded", stages, opened)
    st.caption(f"Measured while recording, on {reading.plain(origin)}: it shows where the time goes, and is no comparison.")
    if len(layers) == 2:
        _draw("recording_layers", f"{_compared(layers)}.", "recorded", by_layer, opened)


def _compared(layers) -> str:
    totals = ", ".join(f"{name} {figure.seconds(float(np.nansum(values)))}" for name, values in layers.items())
    return f"Attention of all layers in this recording: {totals}"
