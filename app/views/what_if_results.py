"""What the settings of What-if lead to: the board of all heads, the curve of targets, and how good an estimate is."""

import numpy as np
import streamlit as st

from app import estimating, export, parts, reading, session
from app.components import target_board
from app.figures import heads, interactive, palette, what_if
from sampleattn.estimate_table import COARSE_ERROR

BESIDE = 12


def show(opened, known, config) -> None:
    """The board, and beside it or below the curve."""
    if known.complete(config) and not known.board(config).rows:
        nothing_sampled()
        return
    beside = opened.trace.heads <= BESIDE
    board, curve = st.columns([1.1, 1], gap="medium") if beside else (st.container(), st.container())
    with board:
        _board(opened, known, config)
    with curve:
        _curve(opened, known, config)


def nothing_sampled() -> None:
    st.info(
        "This trace holds no sampled rows to estimate from: its prompt ran dense, or no layer was recorded. "
        "Record a longer prompt with *Use my text*.",
        icon=":material/info:",
    )


# The board


def _board(opened, known, config) -> None:
    trace, found = opened.trace, known.board(config)
    recorded = config == trace.config
    values = trace.density if recorded else found.density
    sentence = _recorded_sentence(trace) if recorded else _board_sentence(trace, found, config)

    def chart():
        name = "Density (exact)" if recorded else f"Density (estimated from {found.rows} sampled rows)"
        labels = [[trace.label(layer, head) for head in range(trace.heads)] for layer in range(trace.layers)]
        return heads.chart(
            values, _texts(values), labels, trace.kv_heads, name, (0.0, 1.0), sentence, _footer(trace, config, found.rows)
        )

    parts.heading(
        sentence, "exact" if recorded else "estimated", lambda: export.menu("what_if_heads", chart, opened, "what_if_heads")
    )
    targets, steps = known.steps(config)
    as_recorded = estimating.with_target(config, trace.config.cra) == trace.config
    means = [heads.mean_of(values, axis) for axis in (1, 0)]
    coarse = found.coarse and not recorded and not found.refined.all()
    hatched = "" if recorded else f"Hatched: estimated{'; crossed: coarse' if coarse else ''}. "
    header = {
        "kv_heads": trace.kv_heads,
        "name": f"Density at target {config.cra:g}",
        "low": 0.0,
        "high": 1.0,
        "ends": ["0%", "100%"],
        "ramp": palette.RAMP,
        "thumbnail_ramp": palette.RAMP,
        "selected": session.shown_head(),
        "text": _texts(values),
        "means": [_texts([mean])[0] for mean in means],
        "mean_values": [[None if value != value else float(value) for value in mean] for mean in means],
        "details": _details(trace, found, recorded),
        "targets": targets,
        "at": targets.index(config.cra),
        "exact": targets.index(trace.config.cra) if as_recorded else -1,
        "estimated": not recorded,
        "coarse": (~found.refined).tolist() if coarse else None,
        "note": f"{hatched}A click chooses a head, a double click opens its map, as recorded.",
    }
    target_board(heads.target_board(values, steps, header), "head_board", session.pick_head, session.pick_target)


def _texts(values) -> list[list[str]]:
    return [["–" if value != value else f"{value:.0%}" for value in row] for row in values]


def _recorded_sentence(trace) -> str:
    return (
        f"The recorded settings compute {np.nanmean(trace.density):.1%} of the tiles, and {np.nanmean(trace.rows_at_target):.1%} "
        f"of all rows reach the target {trace.config.cra:g}, means of all heads. Change a setting to see what it would do."
    )


def _board_sentence(trace, found, config) -> str:
    aim = f"Target {config.cra:g}, {config.selection}, per {config.scope}"
    known = np.isfinite(found.density)
    if not known.any():
        return f"{aim}: not estimated yet."
    layers = trace.recorded_layers
    left = int((~found.refined[layers]).sum())
    of = "all heads"
    if left:
        of = f"all heads, coarse for {left:,} of them" if found.coarse else f"the {known.sum():,} heads estimated so far"
    return (
        f"{aim}: about {found.density[known].mean():.1%} of the tiles, mean of {of}, where the recording computed "
        f"{trace.density[known].mean():.1%}; {found.at_target[known].mean():.1%} of the sampled rows reach the target."
    )


def _details(trace, found, recorded) -> list[list[str]]:
    def words(layer, head):
        place = f"Layer {layer}, head {head}"
        if layer not in trace.recorded_layers:
            return f"{place}: no picture. {reading.visible(trace.layer_reason(layer))}"
        before = f"density {trace.density[layer, head]:.1%}, worst of all rows {trace.cra[layer, head]:.3f} (exact)"
        if recorded:
            return f"{place} · as recorded: {before}"
        density = found.density[layer, head]
        if density != density:
            return f"{place} · not estimated yet · as recorded: {before}"
        if not found.refined[layer, head]:
            return f"{place} · coarse: density about {density:.0%} · as recorded: {before}"
        return (
            f"{place} · estimated from {found.rows} sampled rows: density {density:.1%}, "
            f"{found.at_target[layer, head]:.1%} of them at the target, worst {found.worst[layer, head]:.3f} · "
            f"as recorded: {before}"
        )

    return [[words(layer, head) for head in range(trace.heads)] for layer in range(trace.layers)]


# The curve


def _curve(opened, known, config) -> None:
    trace, share, found = opened.trace, config.rows_at_target, known.board(config)
    layers = trace.recorded_layers
    boards = [(wanted.cra, known.board(wanted)) for wanted in known.curve(config)]
    points = [_point(target, board) for target, board in boards if np.isfinite(board.density[layers]).all()]
    shown = points[0] if points and config != trace.config and points[0].target == config.cra else None
    recorded = what_if.of_heads(trace.config.cra, trace.density[layers], trace.recall_reached[layers])
    title = _curve_sentence(points, config, any(board.coarse and not board.refined[layers].all() for _, board in boards))

    def chart():
        return what_if.chart(points, shown, recorded, share, found.rows, title, _footer(trace, config, found.rows))

    parts.heading(title, "estimated", lambda: export.menu("what_if_curve", chart, opened, "what_if_curve"))
    st.plotly_chart(interactive.figure(chart()), key="what_if_curve", alt=title)
    _how_coarse(found, config)
    _how_good(trace, known)


def _point(target, found) -> what_if.Point:
    known = np.isfinite(found.density)
    return what_if.of_heads(target, found.density[known], found.recall[known])


def _curve_sentence(points, config, coarse) -> str:
    if not points:
        return "The curve of targets is not estimated yet."
    named = sorted((point for point in points if point.target in (*estimating.CURVE, config.cra)), key=lambda point: point.target)
    steps = ", ".join(f"{point.target:g} takes {point.density:.0%}" for point in named)
    return (
        f"What targets cost and keep: {steps} of the tiles ({config.selection}, per {config.scope}"
        f"{'; coarse' if coarse else ''})."
    )


def _how_coarse(found, config) -> None:
    """How far coarse answers are from the others: of the heads where both are known, else of the bundled model."""
    if not found.coarse or found.refined.all():
        return
    moved = 100 * np.abs(found.moved[np.isfinite(found.moved)])
    if moved.size:
        error = (
            f"where {reading.counted(moved.size, 'head')} were estimated since, theirs were {np.median(moved):.1f} points of "
            f"density off (median; {moved.max():.1f} at most)"
        )
    else:
        middle, most = COARSE_ERROR[config.selection]
        error = f"of the bundled model's heads they were up to {middle} points of density off (median; single heads up to {most})"
    st.caption(f"How good is a coarse answer? It lies between answers that were recorded; {error}.")


def _how_good(trace, known) -> None:
    """How far the estimate is from the recording, where both are known."""
    if not known.complete(trace.config):
        return
    found = known.board(trace.config)
    apart = np.nanmax(np.abs(found.density - trace.density))
    tiles = (
        "as were computed"
        if apart < 5e-4
        else f"where {np.nanmean(trace.density):.1%} were computed; the head furthest apart differs by {100 * apart:.1f} points"
    )
    st.caption(
        f"How good is the estimate? At the recorded settings it says {np.nanmean(found.density):.1%} of the tiles, {tiles}. "
        f"There {trace.config.rows_at_target:.0%} of the sampled rows keep at least {np.nanmean(found.recall):.3f}, and of all "
        f"rows {np.nanmean(trace.recall_reached):.3f} (exact), means of the heads."
    )


def _footer(trace, config, rows) -> str:
    return f"{reading.footer(trace)}\nestimated from {rows} sampled rows: {reading.settings_line(config)}"
