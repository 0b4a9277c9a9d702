"""The Speed page: what rows say, what is timed here, and how the page shows it."""

import os
import threading
from pathlib import Path

import numpy as np
import pytest
from streamlit.testing.v1 import AppTest
from synthetic_trace import write_synthetic_trace

from app import benchmarks, jobs, timing
from app.figures import speed as figure
from app.figures.chart import Span
from sampleattn.trace import Trace

MAIN = str(Path(__file__).resolve().parents[1] / "app" / "main.py")


def row(what, implementation, length, median, **more):
    given = {
        "date": "2026-01-01",
        "gpu": "H100",
        "torch": "2.11",
        "dtype": "bfloat16",
        "head_dim": 128,
        "heads": 32,
        "kv_heads": 8,
    }
    given |= {"input": "planted", "mode": "eager", "p20_ms": median, "p80_ms": median}
    return given | {"what": what, "implementation": implementation, "length": length, "median_ms": median} | more


ROWS = benchmarks.readable(
    [
        row("matmul", "torch", "", 1.0, tflops=800.0, head_dim=""),
        row("copy", "torch", "", 0.5, gbytes=1.5, head_dim=""),
        *(
            each
            for length, dense, whole in ((8192, 0.9, 1.8), (32768, 14.0, 3.5), (131072, 250.0, 25.0))
            for each in (
                row("dense", "cudnn", length, dense, density=1.0, tflops=600.0, gbytes=1.0),
                row("sample_attention", "triton, density 0.1", length, whole, density=0.1),
                row("sparse_forward", "triton", length, whole / 2, density=0.1, tflops=400.0, gbytes=0.5),
                row("sparse_forward", "triton", length, whole, density=0.25, tflops=500.0, gbytes=0.5),
                row("stage_1", "triton", length, whole / 10, tflops=300.0, gbytes=0.1),
                row("selection", "density 0.1", length, whole / 10, density=0.1),
                row("sample_attention", "triton, density 0.1", length, whole / 3, density=0.1, mode="graph"),
            )
        ),
        row("dense", "flash", 131072, 430.0, density=1.0),
    ]
)


def test_compared_rows_are_call_by_call_with_the_fewest_tiles():
    shown = benchmarks.compared(ROWS, 128)
    assert all(row["mode"] == "eager" for row in shown)
    assert {row["density"] for row in shown if row["what"] == "sparse_forward"} == {0.1}
    assert benchmarks.compared(ROWS, 64) == [] and benchmarks.head_dims(ROWS) == [128]


def test_comparison_takes_the_curves_with_the_most_lengths():
    both = benchmarks.comparison(benchmarks.compared(ROWS, 128))
    assert [row["implementation"] for row in both.dense] == ["cudnn"] * 3
    assert both.speedup == 10.0 and 8192 < both.even < 32768
    assert both.even == pytest.approx(8192 * 4 ** (np.log(2) / (np.log(2) + np.log(4))))
    assert benchmarks.comparison([]) is None


def test_the_roof_and_what_is_possible_below_it():
    roof = benchmarks.roof(ROWS)
    assert (roof.rate, roof.bandwidth) == (800.0, 3.0)
    assert roof.limit(np.array([10.0, 1000.0])).tolist() == [30.0, 800.0]
    dense = next(row for row in ROWS if row["what"] == "dense" and row["length"] == 8192)
    assert benchmarks.intensity(dense) == pytest.approx(600e12 * 0.9e-3 / 1e9)
    assert benchmarks.roof(ROWS[2:]) is None


def test_lengths_against_time_shade_where_the_method_is_slower():
    shaded, *lines = figure.over_length(benchmarks.compared(ROWS, 128), "t", "f", 10_000.0).layers
    assert isinstance(shaded, Span) and (shaded.begin, shaded.end) == (8192, 10_000.0) and "9.8K" in shaded.name
    assert [line.dash for line in lines[:2]] == [False, False] and lines[0].name == "cuDNN dense"
    assert not any(
        isinstance(layer, Span) for layer in figure.over_length(benchmarks.compared(ROWS, 128), "t", "f", 8192.0).layers
    )


@pytest.fixture(scope="module")
def trace(tmp_path_factory):
    folder = tmp_path_factory.mktemp("trace")
    write_synthetic_trace(folder / "trace", layers=2, heads=4, tokens=640, pin_layers=(1,))
    return Trace.load(Trace.load(folder / "trace").save(folder / "trace.zip"))


def test_lengths_go_up_to_the_longest():
    assert (
        timing.lengths_to(2048) == [512, 1024, 2048] and timing.lengths_to(700) == [512, 700] and timing.lengths_to(300) == [300]
    )


def test_pinned_heads_are_timed(trace):
    assert timing.pinned_layers(trace) == [1]
    q, k, _ = trace.queries_and_keys(1, 3)
    assert q.shape == k.shape and len(q) == trace.length
    job = jobs.Job(timing.work(timing.Wish(300, 1), trace))
    assert job.wait(60) and job.state == "done", job.error
    shapes = {
        (row["input"], row["length"], row["heads"], row["kv_heads"]) for row in job.result if row["what"] not in benchmarks.ROOF
    }
    assert shapes == {("recorded", 300, 4, 4)}
    assert {"dense", "sample_attention", "stage_1", "selection", "sparse_forward", "row_logsumexp"} < {
        row["what"] for row in job.result
    }


def test_a_cancelled_timing_keeps_what_it_has(trace):
    far = threading.Event()

    class Watched(jobs.Job):
        def progress(self, part, sentence):
            if sentence.startswith("256 tokens: sample attention"):
                far.set()
                self.cancel.set()
            super().progress(part, sentence)

    job = Watched(timing.work(timing.Wish(256), trace))
    assert job.wait(60) and far.is_set() and job.state == "done"
    assert {"matmul", "dense"} >= {row["what"] for row in job.result} - {"copy"} and job.result


def words(app) -> str:
    said = "\n".join(element.value for kind in (app.markdown, app.caption, app.info, app.error) for element in kind)
    return said.replace("\\", "")


def start(monkeypatch, trace, rows) -> AppTest:
    from app import frame

    known = frame.PAGES
    monkeypatch.setenv("SAMPLEATTN_DEMO", os.fspath(trace))
    monkeypatch.setattr(frame, "PAGES", tuple(sorted(known, key=lambda entry: entry[2] != "speed")))
    monkeypatch.setattr(frame, "START", "speed")
    monkeypatch.setattr(benchmarks, "load", lambda: rows)
    return AppTest.from_file(MAIN, default_timeout=60).run()


def test_the_page_says_what_the_rows_say(monkeypatch, trace, tmp_path):
    app = start(monkeypatch, trace.save(tmp_path / "t.zip"), ROWS)
    said = words(app)
    assert not app.exception
    assert "SampleAttention: 10.0 times faster than cuDNN dense at 128K tokens, slower below 13K" in said
    assert "Choosing the tiles adds 40% at 128K tokens" in said
    assert "Sparse attention: 400 TFLOP/s, 50% of the roof" in said
    assert "H100, 2026-01-01, torch 2.11" in said


def test_figures_of_two_gpus_are_never_held_beside_each_other(monkeypatch, trace, tmp_path):
    """The GPU that was measured last is shown first, the other one can be chosen."""
    faster = [dict(row, gpu="H200", median_ms=row["median_ms"] / (2 if row["what"] == "sample_attention" else 1)) for row in ROWS]
    assert list(benchmarks.by_gpu(ROWS + faster)) == ["H200", "H100"] and benchmarks.newest(ROWS + faster) == faster
    app = start(monkeypatch, trace.save(tmp_path / "t.zip"), ROWS + faster)
    said = words(app)
    assert "20.0 times faster than cuDNN dense" in said and "H200, 2026-01-01" in said and "H100" not in said
    next(choice for choice in app.get("button_group") if choice.key == "gpu").set_value("H100").run()
    said = words(app)
    assert "10.0 times faster than cuDNN dense" in said and "H100, 2026-01-01" in said and "H200" not in said


def test_the_page_without_figures_says_so(monkeypatch, trace, tmp_path):
    app = start(monkeypatch, trace.save(tmp_path / "t.zip"), [])
    assert not app.exception and "data/benchmarks.csv has none" in words(app)


def test_what_was_timed_here_is_shown_and_stays(monkeypatch, trace, tmp_path):
    app = start(monkeypatch, trace.save(tmp_path / "t.zip"), ROWS[:2])
    here = [dict(row, gpu="this one", median_ms=row["median_ms"] * (2 if row["what"] == "dense" else 1)) for row in ROWS]
    wishes = []
    monkeypatch.setattr(timing, "work", lambda wish, trace: wishes.append(wish) or (lambda job: here))
    app.selectbox(key="time_length").set_value(1024).run()
    next(button for button in app.button if button.label == "Time it here").click().run()
    app.run()
    assert wishes == [timing.Wish(1024, None)]
    assert "20.0 times faster than cuDNN dense" in words(app) and "this one" in words(app)
    app.run()
    assert "20.0 times faster" in words(app)


def test_a_timing_that_fails_says_why(monkeypatch, trace, tmp_path):
    app = start(monkeypatch, trace.save(tmp_path / "t.zip"), ROWS)
    monkeypatch.setattr(timing, "work", lambda wish, trace: lambda job: 1 / 0)
    next(button for button in app.button if button.label == "Time it here").click().run()
    app.run()
    assert "division by zero" in words(app)
