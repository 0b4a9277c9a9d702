"""Figures are drawn from arrays alone: what they hold, and that hostile text stays text."""

import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from app import benchmarks
from app.figures import head_map, heads, interactive, output, recall, speed
from app.figures.chart import Heat, Line, Marks, Outline, Tint
from app.figures.palette import MISSED_RAMP
from app.figures.static import picture

ROOT = Path(__file__).resolve().parents[1]
HOSTILE = '<script>alert(1)</script> <a href="x">y</a> $\\frac{1}{2}$'
LOOK = head_map.Look()
WEIGHTS = np.tril(np.full((8, 8), 0.25, np.float32))
MASK = np.array([[1, 0, 0, 0], [1, 1, 0, 0], [1, 0, 1, 0], [1, 1, 1, 1]], bool)
MISSED = np.where(np.repeat(np.repeat(MASK, 2, 0), 2, 1), 0, WEIGHTS)


def a_map(look=LOOK):
    window = (0, 500), (0, 500)
    return head_map.chart(WEIGHTS, MISSED, MASK, [0], [0, 1], 128, 500, *window, look, HOSTILE, f"{HOSTILE}\nsettings")


def charts():
    values = np.array([[0.1, np.nan, 0.3, 0.4], [0.5, 0.6, 0.7, 0.8]])
    text = [[f"{value:.1f}" for value in row] for row in values]
    times = {"length": 8192.0, "head_dim": 64.0, "density": 0.1, "median_ms": 2.0, "p20_ms": 1.0, "p80_ms": 3.0}
    times |= {"tflops": 5.0, "gbytes": 0.5}
    rows = [{"what": what, "implementation": HOSTILE, **times} for what in ("dense", "sparse_forward")]
    return {
        "map": a_map(),
        "map without overlay": a_map(replace(LOOK, overlay=False)),
        "map with missed mass": a_map(replace(LOOK, missed=True)),
        "difference": head_map.difference(WEIGHTS - WEIGHTS.T, (0, 500), (0, 500), HOSTILE, HOSTILE),
        "heads": heads.chart(values, text, [[HOSTILE] * 4] * 2, 2, "density", (0, 1), HOSTILE, HOSTILE),
        "recall": recall.chart(np.linspace(0.5, 1, 3000, dtype=np.float32), 0.95, HOSTILE, HOSTILE),
        "stages": speed.stages({HOSTILE: 1.5, "b": 0.002}, HOSTILE, HOSTILE),
        "by layer": speed.by_layer({"dense": [0.1, 0.2], "sparse": [0.2, np.nan]}, HOSTILE, HOSTILE),
        "over length": speed.over_length(rows, HOSTILE, HOSTILE, slower_until=9000.0),
        "roofline": speed.roofline(rows, benchmarks.Roof(10.0, 0.5), benchmarks.intensity, HOSTILE, HOSTILE),
        "divergence": output.divergence(
            np.arange(5),
            np.array([0, 1e-3, 0.1, np.nan, 1]),
            np.array([True, True, False, True, False]),
            [HOSTILE] * 5,
            "x",
            HOSTILE,
            HOSTILE,
        ),
    }


CHARTS = charts()


@pytest.mark.parametrize("name", CHARTS)
def test_every_chart_can_be_drawn_both_ways_and_keeps_text_as_text(name):
    fig = interactive.figure(CHARTS[name], standalone=True)
    assert fig.data
    assert "<script" not in fig.layout.title.text and "<a " not in fig.layout.title.text
    assert all("<script" not in str(trace.name) + str(trace.y) for trace in fig.data)
    assert any("&lt;script&gt;" in note.text for note in fig.layout.annotations)
    svg = picture(CHARTS[name], "svg").decode()
    assert svg.startswith("<?xml") and "<script>" not in svg and "frac{1}{2}" in svg


@pytest.mark.parametrize("kind, signature", [("png", b"\x89PNG"), ("pdf", b"%PDF"), ("svg", b"<?xml")])
def test_static_files_are_what_they_say(kind, signature):
    assert picture(replace(a_map(), title="t", footer="f"), kind).startswith(signature)


def test_html_needs_no_network():
    page = interactive.html(a_map()).decode()
    assert "Plotly.newPlot" in page and 'src="http' not in page and "<script src" not in page


def test_a_map_has_weights_dropped_tiles_border_and_marks():
    kinds = [type(layer) for layer in a_map().layers]
    assert kinds == [Heat, Tint, Outline, Marks, Marks]
    assert [type(layer) for layer in a_map(replace(LOOK, overlay=False)).layers] == [Heat, Marks, Marks]
    heat, tint = a_map().layers[:2]
    assert np.isnan(heat.values[0, 1]) and heat.values[1, 0] == 0.25
    assert tint.mask.sum() == 4 and tint.mask[4:6, 3:5].all()


def test_marks_stand_at_the_edges_of_the_window_in_the_page_too():
    chart = head_map.chart(WEIGHTS, MISSED, MASK, [2], [1], 128, 500, (256, 400), (200, 344), LOOK, "t", "f")
    columns, slashes = interactive.figure(chart).data[-2:]
    assert columns.name == "columns" and 256 <= columns.y[0] <= 400 and 200 <= columns.x[0] <= 344
    assert slashes.name == "slashes" and 200 <= slashes.x[0] <= 344 and 256 <= slashes.y[0] <= 400


def test_missed_mass_takes_the_place_of_the_weights_it_is_of():
    weights, missed = a_map(replace(LOOK, missed=True)).layers[:2]
    assert missed.ramp == MISSED_RAMP and (missed.low, missed.high) == (weights.low, weights.high)
    assert np.array_equal(np.isfinite(missed.values), MISSED > 0)
    assert (np.isfinite(weights.values) != (MISSED > 0))[WEIGHTS > 0].all()
    alone = a_map(replace(LOOK, missed=True, weights=False)).layers
    assert isinstance(alone[0], Heat) and alone[0].ramp == MISSED_RAMP and not isinstance(alone[1], Heat)


def test_a_hidden_sink_is_left_out_and_a_locked_range_stays():
    heat = a_map(replace(LOOK, first_key=128, high=0.75)).layers[0]
    assert np.isnan(heat.values[:, :3]).all() and np.isfinite(heat.values[4, 3]) and heat.high == 0.75


def test_a_window_of_a_map_holds_what_lies_in_it():
    window = (256, 400), (200, 344)
    look = replace(LOOK, log=False)
    chart = head_map.chart(WEIGHTS, MISSED, MASK, [0, 2], [0, 1, 3], 128, 500, *window, look, "t", "f")
    heat, tint, outline, columns, slashes = chart.layers
    assert (heat.y, heat.x) == window and np.isnan(heat.values[0, -1]) and heat.values[-1, 0] == 0.25
    assert tint.mask[0, 0] and not tint.mask[-1].any()
    assert [256, 256, 344, 256] in outline.pieces.tolist() and [256, 256, 256, 384] in outline.pieces.tolist()
    assert (outline.pieces[:, ::2] >= 200).all() and (outline.pieces[:, 1::2] <= 400).all()
    assert columns.at.tolist() == [320] and slashes.at.tolist() == [264, 392]


def test_a_difference_reaches_as_far_on_both_sides():
    values = np.zeros((4, 4), np.float32)
    values[2, 1], values[0, 3] = -0.5, 0.9
    (heat,) = head_map.difference(values * np.tri(4, dtype=np.float32), (0, 512), (0, 512), "t", "f").layers
    assert (heat.low, heat.high) == (-0.5, 0.5) and np.isnan(heat.values[0, 3]) and heat.values[2, 1] == -0.5


def test_border_runs_between_kept_and_dropped_within_the_prompt():
    pieces = head_map.border(np.array([[True]]), 128, 100).tolist()
    assert sorted(pieces) == sorted([[0, 0, 100, 0], [0, 100, 100, 100], [0, 0, 0, 100], [100, 0, 100, 100]])
    region = np.array([[True, False], [True, True]])
    inner = [piece for piece in head_map.border(region, 10, 20).tolist() if piece in ([10, 0, 10, 10], [10, 10, 20, 10])]
    assert len(inner) == 2


def test_heads_keep_an_empty_column_between_groups():
    chart = CHARTS["heads"]
    (heat,) = chart.layers
    assert heat.values.shape == (2, 5) and np.isnan(heat.values[:, 2]).all()
    assert chart.x_ticks == ((0.0, "0"), (1.0, "1"), (3.0, "2"), (4.0, "3"))
    assert chart.values["mean_of_layer"].tolist() == pytest.approx([0.8 / 3, 0.65])
    assert chart.values["mean_of_head"].tolist() == pytest.approx([0.3, 0.6, 0.5, 0.6])


def test_means_leave_out_what_is_not_known():
    means = heads.mean_of(np.array([[1, np.nan, 2], [np.nan] * 3]), 1)
    assert means[0] == 1.5 and np.isnan(means[1])


def test_a_thumbnail_shows_the_greatest_weight_of_each_cell():
    overview = np.zeros((200, 200), np.float32)
    overview[150, 100], overview[30, 10] = 0.5, 1e-9
    small = heads.thumbnail(overview)
    assert small.shape == (64, 64) and small[150 * 64 // 200, 100 * 64 // 200] == 255 and (small > 0).sum() == 1
    assert heads.thumbnail(overview[:20, :20]).shape == (20, 20)


def test_recall_shows_the_least_of_each_group_of_rows():
    values = np.ones(5000, np.float32)
    values[4321] = 0.1
    least = recall.chart(values, 0.9, "t", "f").layers[0]
    assert isinstance(least, Line) and len(least.y) == recall.POINTS and least.y.min() == np.float32(0.1)
    short = recall.chart(values[:10], 0.9, "t", "f")
    assert len(short.layers) == 2 and len(short.layers[0].y) == 10


def test_what_falls_below_the_target_is_marked_from_the_target_down():
    values = np.ones(100, np.float32)
    values[[20, 70]] = 0.5, 0.8
    below = next(layer for layer in recall.chart(values, 0.9, "t", "f").layers if "below" in layer.name)
    assert below.name == "below the target (2 of 100)"
    assert below.x[~np.isnan(below.x)].tolist() == [20, 20, 70, 70]
    np.testing.assert_allclose(below.y[~np.isnan(below.y)], [0.9, 0.5, 0.9, 0.8], rtol=1e-6)


def test_small_divergences_are_written_as_powers_and_the_smallest_are_drawn_at_the_last_tick():
    assert [output.scientific(value) for value in (0.0, 0.0067, 3.8e-5, -2e-12)] == ["0", "0.0067", "3.8 × 10⁻⁵", "-2.0 × 10⁻¹²"]
    chart = CHARTS["divergence"]
    assert chart.y_ticks[0] == (output.LEAST, "≤ 10⁻⁹") and chart.y_ticks[-1] == (1.0, "10⁰")


def test_figures_load_neither_streamlit_nor_torch_nor_matplotlib():
    code = (
        "import sys; from app.figures import head_map, heads, interactive, output, recall, speed;"
        "print([name for name in ('streamlit', 'torch', 'matplotlib') if name in sys.modules])"
    )
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"
