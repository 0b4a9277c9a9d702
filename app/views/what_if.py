"""How low can I go on my prompt? Other settings tried on the sampled rows of the open trace, head by head, without a model."""

import numpy as np
import streamlit as st

from app import estimating, export, jobs, parts, reading, recording, session, snippets
from app.components import head_board
from app.figures import heads, interactive, palette, what_if
from sampleattn.config import SCOPES, SELECTIONS

AT_ONCE = 0.8
BESIDE = 12
LOWEST = 0.5
RUN_HELP = "Opens Use my text with this prompt and these settings filled in."
HELP = {
    "cra": "The share of its dense attention that a row shall keep. joint asks it of the sampled rows; independent and window "
    "keep this share of the sampled mass.",
    "selection": "joint: columns and slashes chosen together (ours). independent: the paper's two cumulative sums. "
    "window: a local window and columns (arXiv v1).",
    "scope": "Columns and slashes are chosen once for the head, or for each segment of the prompt.",
    "sink_blocks": "The first blocks of keys, always kept.",
    "local_blocks": "Blocks up to and with the diagonal, always kept.",
}


def page() -> None:
    session.follow_pick()
    opened = session.current()
    trace = opened.trace
    if not trace.recorded_layers or trace.length < trace.config.dense_below:
        _nothing_sampled()
        return
    config, known = _settings(trace.config), session.estimates()
    job = _job(known, config)
    if job:
        known.board(config).over.wait(AT_ONCE)
    if job and not job.wait(0.02):
        st.fragment(_while_running, run_every=0.3)(job, opened, known, config)
    else:
        _ended(job)
        _results(opened, known, config)
    _take_along(trace, config)


def _nothing_sampled() -> None:
    st.info(
        "This trace holds no sampled rows to estimate from: its prompt ran dense, or no layer was recorded. "
        "Record a longer prompt with *Use my text*.",
        icon=":material/info:",
    )


def _settings(recorded):
    places = st.columns([2.2, 1.1, 1, 0.9, 0.9], gap="medium")
    choices = {
        "selection": ("Selection", SELECTIONS),
        "scope": ("Chosen per", SCOPES),
        "sink_blocks": ("Sink blocks", sorted({*range(9), recorded.sink_blocks})),
        "local_blocks": ("Local blocks", sorted({*range(1, 17), recorded.local_blocks})),
    }
    wanted = {
        "cra": places[0].slider(
            "Target (recall of a row)", LOWEST, 1.0, max(LOWEST, recorded.cra), 0.01, help=HELP["cra"], **_kept("cra")
        )
    }
    for place, (name, (label, options)) in zip(places[1:], choices.items(), strict=True):
        first = options.index(getattr(recorded, name))
        wanted[name] = place.selectbox(label, options, first, help=HELP[name], **_kept(name))
    return estimating.changed(recorded, **wanted)


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


def _while_running(job, opened, known, config) -> None:
    session.follow_pick()
    if not job.running:
        st.rerun()
    with st.container(horizontal=True, vertical_alignment="center"):
        st.progress(job.part, f"Estimating. {job.sentence} · {job.elapsed:.0f} s", width=560)
        if st.button("Cancel", icon=":material/stop_circle:", disabled=job.cancel.is_set(), key="estimate_cancel"):
            job.cancel.set()
    _results(opened, known, config)


def _ended(job) -> None:
    """Say why a job ended before its time."""
    if job is None or job.state == "done":
        return
    if job.state == "failed":
        st.error(f"These settings can't be estimated: {reading.plain(recording.sentence(job.error))}", icon=":material/error:")
        return
    with st.container(horizontal=True, vertical_alignment="center"):
        st.caption("Stopped: what is missing below was not estimated.", width="content")
        if st.button("Go on", icon=":material/play_arrow:", key="estimate_again"):
            session.keep_estimate_job(None, None)
            st.rerun()


def _results(opened, known, config) -> None:
    rows = int(known.sampled_rows.max())
    if known.complete(config) and not rows:
        _nothing_sampled()
        return
    beside = opened.trace.heads <= BESIDE
    board, curve = st.columns([1.1, 1], gap="medium") if beside else (st.container(), st.container(width=900))
    with board:
        _board(opened, known, config, rows)
    with curve:
        _curve(opened, known, config, rows)


# The board


def _board(opened, known, config, rows) -> None:
    trace = opened.trace
    recorded = config == trace.config
    found = known.board(config)
    values = trace.density if recorded else found.density
    sentence = _recorded_sentence(trace) if recorded else _board_sentence(trace, found, config)

    def chart():
        name = "Density (exact)" if recorded else f"Density (estimated from {rows} sampled rows)"
        labels = [[trace.label(layer, head) for head in range(trace.heads)] for layer in range(trace.layers)]
        return heads.chart(
            values, _texts(values), labels, trace.kv_heads, name, (0.0, 1.0), sentence, _footer(trace, config, rows)
        )

    parts.heading(
        sentence, "exact" if recorded else "estimated", lambda: export.menu("what_if_heads", chart, opened, "what_if_heads")
    )
    means = [heads.mean_of(values, axis) for axis in (1, 0)]
    header = {
        "kv_heads": trace.kv_heads,
        "name": "Density",
        "low": 0.0,
        "high": 1.0,
        "ends": ["0%", "100%"],
        "ramp": palette.RAMP,
        "thumbnail_ramp": palette.RAMP,
        "selected": session.shown_head(),
        "text": _texts(values),
        "means": [_texts([mean])[0] for mean in means],
        "mean_values": [[None if value != value else float(value) for value in mean] for mean in means],
        "details": _details(trace, found, recorded, rows),
        "list_title": "",
        "listed": [],
        "estimated": not recorded,
        "note": f"{'' if recorded else 'Hatched: estimated. '}A click chooses a head, a double click opens its map, as recorded.",
    }
    head_board(heads.board(values, np.zeros(values.shape, bool), header, []), "head_board", session.pick_head)


def _texts(values) -> list[list[str]]:
    return [["–" if value != value else f"{value:.0%}" for value in row] for row in values]


def _recorded_sentence(trace) -> str:
    return (
        f"The recorded settings compute {np.nanmean(trace.density):.1%} of the tiles, and {np.nanmean(trace.rows_at_target):.1%} "
        f"of all rows reach the target {trace.config.cra:g}, means of all heads. Change a setting to see what it would do."
    )


def _board_sentence(trace, found, config) -> str:
    aim = f"Target {config.cra:g}, {config.selection}, per {config.scope}"
    if not found.ready:
        return f"{aim}: not estimated yet."
    missing = len(trace.recorded_layers) - len(found.ready)
    of = f"the {len(found.ready)} layers estimated so far" if missing else "all heads"
    layers = sorted(found.ready)
    mean, before = np.nanmean(found.density[layers]), np.nanmean(trace.density[layers])
    return (
        f"{aim}: about {mean:.1%} of the tiles, mean of {of}, where the recording computed {before:.1%}; "
        f"{np.nanmean(found.at_target[layers]):.1%} of the sampled rows reach the target."
    )


def _details(trace, found, recorded, rows) -> list[list[str]]:
    def words(layer, head):
        place = f"Layer {layer}, head {head}"
        if layer not in trace.recorded_layers:
            return f"{place}: no picture. {reading.visible(trace.layer_reason(layer))}"
        before = f"density {trace.density[layer, head]:.1%}, worst of all rows {trace.cra[layer, head]:.3f} (exact)"
        if recorded:
            return f"{place} · as recorded: {before}"
        if layer not in found.ready:
            return f"{place} · not estimated yet · as recorded: {before}"
        return (
            f"{place} · estimated from {rows} sampled rows: density {found.density[layer, head]:.1%}, "
            f"{found.at_target[layer, head]:.1%} of them at the target, worst {found.worst[layer, head]:.3f} · "
            f"as recorded: {before}"
        )

    return [[words(layer, head) for head in range(trace.heads)] for layer in range(trace.layers)]


# The curve


def _curve(opened, known, config, rows) -> None:
    trace, share = opened.trace, config.rows_at_target
    points = [_point(wanted.cra, known.board(wanted)) for wanted in estimating.curve(config) if known.complete(wanted)]
    shown = points[0] if known.complete(config) and config != trace.config else None
    layers = trace.recorded_layers
    recorded = None
    if not np.isnan(known.recorded_recall[layers]).any():
        recorded = what_if.of_heads(trace.config.cra, trace.density[layers], known.recorded_recall[layers])
    title = _curve_sentence(points, share, config)

    def chart():
        return what_if.chart(points, shown, recorded, share, rows, title, _footer(trace, config, rows))

    parts.heading(title, "estimated", lambda: export.menu("what_if_curve", chart, opened, "what_if_curve"))
    if points or recorded:
        st.plotly_chart(interactive.figure(chart()), key="what_if_curve", alt=title)
    _how_good(trace, known)


def _point(target, found) -> what_if.Point:
    known = np.isfinite(found.density)
    return what_if.of_heads(target, found.density[known], found.recall[known])


def _curve_sentence(points, share, config) -> str:
    if not points:
        return "The curve of targets is not estimated yet."
    steps = ", ".join(f"{point.target:g} takes {point.density:.0%}" for point in sorted(points, key=lambda point: point.target))
    return f"What targets cost and keep: {steps} of the tiles ({config.selection}, per {config.scope})."


def _how_good(trace, known) -> None:
    """How far the estimate is from the recording, where both are known."""
    if not known.complete(trace.config) or np.isnan(known.recorded_recall[trace.recorded_layers]).any():
        return
    found = known.board(trace.config)
    apart = np.abs(found.density - trace.density)
    st.caption(
        f"How good is the estimate? At the recorded settings it says {np.nanmean(found.density):.1%} of the tiles, where "
        f"{np.nanmean(trace.density):.1%} were computed; the head furthest apart differs by {100 * np.nanmax(apart):.1f} points. "
        f"There {trace.config.rows_at_target:.0%} of the sampled rows keep at least {np.nanmean(found.recall):.3f}, and of all "
        f"rows {np.nanmean(known.recorded_recall):.3f} (exact), means of the heads."
    )


def _footer(trace, config, rows) -> str:
    return f"{reading.footer(trace)}\nestimated from {rows} sampled rows: {reading.settings_line(config)}"


# What to do with it


def _take_along(trace, config) -> None:
    st.markdown("**Use these settings**")
    model, why_not = trace.meta["model"]["name"], _cannot_run(trace, config)
    with st.container(horizontal=True, vertical_alignment="center"):
        if st.button("Run exactly", icon=":material/play_arrow:", type="primary", help=RUN_HELP, disabled=bool(why_not)):
            session.go_to_text(trace.text, **_address(config, model))
        st.download_button("config.json", config.to_json(), "config.json", icon=":material/download:", on_click="ignore")
        if why_not:
            st.caption(why_not)
    tabs = st.tabs(["Python", "Command line", "JSON"])
    tabs[0].code(snippets.python(config), language="python")
    tabs[1].code(snippets.command(config, model), language="bash")
    tabs[2].code(config.to_json(), language="json")


def _cannot_run(trace, config) -> str:
    if not trace.text.strip():
        return "This trace does not hold the prompt's text, so run the command below to replace the estimates."
    if config.density is not None or config.block_size != 128 or config.rows_at_target < LOWEST:
        return "*Use my text* does not offer these settings, so run the command below to replace the estimates."
    return ""


def _address(config, model) -> dict[str, str]:
    """The settings and the model as "Use my text" reads them from its address."""
    named = {"model": "bundled"} if model == "bundled" else {"model": "hub", "model_hub": model}
    return named | {name: str(value) for name, value in snippets.unusual(config).items() if name != "backend"}
