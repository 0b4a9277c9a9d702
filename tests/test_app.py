"""The pages, run without a browser (AppTest): what they say, what they refuse, what they import."""

import os
import subprocess
import sys
import threading
import time
from pathlib import Path

import pytest
from streamlit.testing.v1 import AppTest
from synthetic_trace import write_synthetic_trace

from app import intake, jobs, recording
from app.jobs import Job
from sampleattn.config import SampleAttentionConfig
from sampleattn.trace import Trace
from sampleattn.trace_format import LEVELS
from sampleattn.trace_size import estimate_size, readable

ROOT = Path(__file__).resolve().parents[1]
MAIN = str(ROOT / "app" / "main.py")
PAGES = ("overview", "text", "heads", "map", "compare", "recall", "what_if", "speed", "output")
HOSTILE = "<img src=x onerror=alert(1)> ![p](http://tracker.example/p.png) $x$ :red[y]"


@pytest.fixture(scope="module")
def demo(tmp_path_factory):
    folder = tmp_path_factory.mktemp("demo")
    write_synthetic_trace(folder / "trace", layers=3, heads=4, tokens=640, dense_layers=(2,), title=HOSTILE, dense_below=0)
    return Trace.load(folder / "trace").save(folder / "demo.zip")


def start(monkeypatch, demo, page="overview", **query) -> AppTest:
    """The app at a page. AppTest knows no callable pages by path, so the default page is the one wanted."""
    from app import frame

    monkeypatch.setenv("SAMPLEATTN_DEMO", str(demo))
    known = frame.PAGES
    monkeypatch.setattr(frame, "PAGES", tuple(sorted(known, key=lambda entry: entry[2] != page)))
    monkeypatch.setattr(frame, "START", page)
    app = AppTest.from_file(MAIN, default_timeout=60)
    for name, value in query.items():
        app.query_params[name] = str(value)
    return app.run()


def words(app) -> str:
    kinds = (app.markdown, app.caption, app.error, app.warning, app.info, app.text)
    return "\n".join(element.value for kind in kinds for element in kind)


@pytest.mark.parametrize("page", PAGES)
def test_every_page_draws(monkeypatch, demo, page):
    app = start(monkeypatch, demo, page)
    assert not app.exception
    assert "640 tokens" in words(app)


@pytest.fixture(scope="module")
def summary(tmp_path_factory):
    folder = tmp_path_factory.mktemp("summary") / "trace"
    write_synthetic_trace(folder, layers=3, heads=4, tokens=640, level="summary", pin_layers=(), dense_below=0)
    return folder


@pytest.mark.parametrize("page", PAGES)
def test_every_page_draws_a_summary(monkeypatch, summary, page):
    app = start(monkeypatch, summary, page)
    assert not app.exception and "640 tokens" in words(app)
    expected = {
        "recall": "least recall of each of 64 parts; pin the head on Map",
        "overview": "rows ",
        "what_if": "level explore",
        "map": "64 cells a side",
    }
    assert expected.get(page, "") in words(app)


@pytest.fixture(scope="module")
def tiny(tmp_path_factory):
    folder = tmp_path_factory.mktemp("tiny") / "trace"
    write_synthetic_trace(folder, layers=1, heads=1, kv_heads=1, tokens=10, continuation=3, first_difference=None)
    return folder


@pytest.mark.parametrize("page", PAGES)
def test_every_page_draws_one_head_at_ten_tokens(monkeypatch, tiny, page):
    app = start(monkeypatch, tiny, page)
    assert not app.exception and "10 tokens · synthetic, 1 layer × 1 head · target" in words(app)


def test_the_start_screen_loads_neither_torch_nor_transformers(demo):
    code = (
        "import sys; from streamlit.testing.v1 import AppTest;"
        f"app = AppTest.from_file({MAIN!r}, default_timeout=60).run(); assert not app.exception and app.markdown;"
        "print([name for name in ('torch', 'transformers', 'matplotlib') if name in sys.modules])"
    )
    done = subprocess.run(
        [sys.executable, "-c", code],
        capture_output=True,
        text=True,
        cwd=demo.parent,
        env={**os.environ, "SAMPLEATTN_DEMO": str(demo)},
    )
    assert done.stdout.strip().endswith("[]"), done.stdout + done.stderr


def test_the_overview_says_three_numbers_and_their_kinds(monkeypatch, demo):
    app = start(monkeypatch, demo)
    said = words(app)
    for part in ("Tiles computed", "Worst row's recall", "Speed-up", "exact", "recorded"):
        assert part in said
    trace = Trace.load(demo)
    assert f"{trace.density[app.selectbox(key='layer').value, app.selectbox(key='head').value]:.1%}" in said


def test_hostile_text_is_escaped(monkeypatch, demo):
    for page in ("overview", "heads", "recall", "output"):
        said = words(start(monkeypatch, demo, page))
        assert "<img src" not in said.replace(r"\<img src", "") and "](http" not in said


def test_layer_and_head_come_from_the_link_and_wrong_ones_are_ignored(monkeypatch, demo):
    app = start(monkeypatch, demo, "map", layer=1, head=2)
    assert (app.selectbox(key="layer").value, app.selectbox(key="head").value) == (1, 2)
    assert "Layer 1, head 2" in words(app)
    app = start(monkeypatch, demo, "map", layer=77, head="x")
    assert not app.exception and app.selectbox(key="layer").value in range(3)


def test_a_link_to_a_trace_that_is_gone_says_so(monkeypatch, demo):
    app = start(monkeypatch, demo, trace="../../etc/passwd")
    assert "not open on this machine" in words(app) and not app.exception


def test_a_folder_is_opened_where_it_lies_and_its_link_opens_it_again(tmp_path):
    write_synthetic_trace(tmp_path / "mine", layers=1, heads=2, tokens=200)
    shown = "st.text(session.current().path); st.text(session.current().key)"
    first = AppTest.from_string(
        f"import streamlit as st; from app import session; session.open_path({str(tmp_path / 'mine')!r}); {shown}"
    ).run()
    assert not first.exception and first.text[0].value == str(tmp_path / "mine")
    again = AppTest.from_string(f"import streamlit as st; from app import session; {shown}")
    again.query_params["trace"] = first.text[1].value
    assert [text.value for text in again.run().text] == [text.value for text in first.text]


def test_without_a_demo_the_text_page_still_works(monkeypatch, tmp_path):
    app = start(monkeypatch, tmp_path / "none.zip")
    assert "is not there" in words(app) and not app.exception
    app = start(monkeypatch, tmp_path / "none.zip", "text")
    assert not app.exception and app.text_area(key="typed_text")


def test_dense_layers_and_unfinished_traces_are_told(monkeypatch, tmp_path, demo):
    assert "1 layers ran dense" in words(start(monkeypatch, demo, "heads")).replace("1 layer ran", "1 layers ran")
    write_synthetic_trace(tmp_path / "half", layers=3, heads=4, tokens=300, stop_after=1)
    app = start(monkeypatch, tmp_path / "half", "map", layer=2)
    assert "recording stopped" in words(app) and "has no picture" in words(app) and not app.exception
    assert "stopped before the output" in words(start(monkeypatch, tmp_path / "half", "output"))


def test_settings_come_from_the_link_and_go_into_the_config(monkeypatch, demo):
    made = []
    monkeypatch.setattr(
        recording, "Recording", lambda model, text, title, config, *_: made.append((model, text, config)) or (lambda job: None)
    )
    monkeypatch.setattr(intake, "check_model", lambda choice, name: None)
    monkeypatch.setattr(intake, "count", lambda text, model: intake.Count(300, 1000, ()))
    app = start(monkeypatch, demo, "text", cra=0.8, selection="independent", sink_blocks=2)
    app.text_area(key="typed_text").set_value("some text").run()
    next(button for button in app.button if button.label == "Run").click().run()
    (model, text, config), *more = made
    assert (model, text, config.cra, config.selection, config.sink_blocks) == (
        "bundled",
        "some text",
        0.8,
        "independent",
        2,
    ) and not more


@pytest.mark.parametrize(
    "text, counted, part",
    [
        ("", None, "no text yet"),
        ("  \n", None, "no text yet"),
        ("a", intake.Count(1, 100, (1,)), "One token"),
        ("abc", intake.Count(3, 2, (1, 2, 3)), "1 more than"),
    ],
)
def test_texts_that_cannot_run_say_why(monkeypatch, demo, text, counted, part):
    monkeypatch.setattr(intake, "check_model", lambda choice, name: None)
    monkeypatch.setattr(intake, "count", lambda text, model: counted)
    app = start(monkeypatch, demo, "text")
    app.text_area(key="typed_text").set_value(text).run()
    assert part in words(app)
    assert next(button for button in app.button if button.label == "Run").disabled


def test_a_long_text_is_cut_only_when_asked(monkeypatch, demo):
    made = []
    monkeypatch.setattr(recording, "Recording", lambda model, text, *_: made.append(text) or (lambda job: None))
    monkeypatch.setattr(intake, "check_model", lambda choice, name: None)
    monkeypatch.setattr(intake, "count", lambda text, model: intake.Count(3, 2, (1, 2, 3)))
    app = start(monkeypatch, demo, "text")
    app.text_area(key="typed_text").set_value("abc").run()
    app.checkbox(key="cut_text").check().run()
    next(button for button in app.button if button.label == "Run").click().run()
    assert made == ["ab"]


@pytest.mark.parametrize(
    "choice, name, part", [("folder", "", "path"), ("folder", "/no/such", "no folder"), ("hub", " ", "hub id")]
)
def test_models_that_cannot_be_are_told(choice, name, part):
    with pytest.raises(intake.IntakeError, match=part):
        intake.check_model(choice, name)


def test_a_folder_that_is_no_model_is_told(tmp_path):
    with pytest.raises(intake.IntakeError, match="config.json"):
        intake.check_model("folder", str(tmp_path))


SHAPE = intake.Shape(8, 6, 2, 64, 8192)


def test_each_level_has_its_size_and_pinned_heads_are_checked(monkeypatch, demo):
    made = []
    monkeypatch.setattr(recording, "Recording", lambda *given: made.append(given[4:]) or (lambda job: None))
    monkeypatch.setattr(intake, "check_model", lambda choice, name: None)
    monkeypatch.setattr(intake, "count", lambda text, model: intake.Count(4000, 16384, (), SHAPE))
    app = start(monkeypatch, demo, "text", level="pinned")
    app.text_area(key="typed_text").set_value("some text").run()
    sizes = [estimate_size(level, 8, 6, 2, 64, 4000, ((0, 0),) if level == "pinned" else (), vocabulary=8192, text_bytes=9,
                           pin_bytes=4) for level in LEVELS]  # fmt: skip
    options = app.segmented_control(key="level").options
    assert options == [f"{level} · {readable(size)}" for level, size in zip(LEVELS, sizes, strict=True)]
    assert f"*pinned*, about {readable(sizes[2])} on disk" in words(app)
    for wrong, part in (("3", "Name the heads"), ("9.0", "layers are 0 to 7"), ("", "Name the heads")):
        app.text_input(key="pins").set_value(wrong).run()
        assert part in words(app) and next(button for button in app.button if button.label == "Run").disabled
    app.text_input(key="pins").set_value("3.1, 2.5,3.1").run()
    next(button for button in app.button if button.label == "Run").click().run()
    assert made == [("pinned", ((2, 5), (3, 1)))]


def test_a_cancelled_recording_goes_on(monkeypatch, demo, tmp_path):
    work = recording.Recording("bundled", "some text", "title", SampleAttentionConfig())
    write_synthetic_trace(work.folder, layers=3, heads=2, tokens=100, stop_after=2)
    starts = []

    def stop(self, job):
        starts.append(self)
        job.cancel.set()

    monkeypatch.setattr(recording.Recording, "__call__", stop)
    monkeypatch.setattr(intake, "check_model", lambda choice, name: None)
    job = Job(work)
    assert job.wait(5) and job.state == "cancelled"
    app = start(monkeypatch, demo, "text")
    app.session_state["job"] = job
    app.run()
    assert "2 of 3 layers recorded" in words(app)
    next(button for button in app.button if button.label == "Go on").click().run()
    assert starts == [work, work]
    next(button for button in app.button if button.label == "Throw away").click().run()
    assert "Cancelled" not in words(app) and not app.exception


@pytest.mark.parametrize(
    "data, part",
    [(b"", "empty"), (b"PK\x03\x04rest", "zip"), (b"a\0b", "binary"), (bytes(range(32)) * 40, "binary"), (b"%PDF-1.7", "PDF")],
)
def test_files_that_are_no_text_are_refused(data, part):
    with pytest.raises(intake.IntakeError, match=part):
        intake.read_text(data)


def test_invalid_utf8_is_refused_or_replaced_when_asked():
    with pytest.raises(intake.NotUtf8, match="byte 3 of 5"):
        intake.read_text(b"abc\xffd")
    assert intake.read_text(b"abc\xffd", replace=True) == "abc\ufffdd"
    assert intake.read_text("\ufeffä".encode()) == "ä" and intake.read_text("ä".encode("utf-16")) == "ä"


def test_jobs_report_progress_end_and_failure():
    def work(job):
        job.progress(0.5, "half")
        return 7

    job = jobs.Job(work)
    assert job.wait(5) and (job.state, job.result, job.part, job.sentence) == ("done", 7, 0.5, "half")
    job = jobs.Job(lambda job: 1 / 0)
    assert job.wait(5) and job.state == "failed" and "division" in recording.sentence(job.error)


def test_a_job_stops_when_cancelled_or_when_nobody_looks(monkeypatch):
    def endless(job):
        while True:
            job.progress(0.1, "on")
            time.sleep(0.01)

    job = jobs.Job(endless)
    job.cancel.set()
    assert job.wait(5) and job.state == "cancelled"
    monkeypatch.setattr(jobs, "PATIENCE", 0.1)
    gone = threading.Event()
    job = jobs.Job(endless, alive=lambda: not gone.is_set())
    assert not job.wait(1.5)
    gone.set()
    assert job.wait(5) and job.state == "cancelled"


def test_two_sessions_do_not_disturb_each_other(monkeypatch, demo):
    first, second = start(monkeypatch, demo, "map"), start(monkeypatch, demo, "map")
    first.selectbox(key="layer").set_value(0).run()
    second.selectbox(key="layer").set_value(2).run()
    first.run()
    assert (first.selectbox(key="layer").value, second.selectbox(key="layer").value) == (0, 2)


def test_only_session_has_cache_and_state():
    for file in (ROOT / "app").rglob("*.py"):
        source = file.read_text(encoding="utf-8")
        assert file.name == "session.py" or not any(
            name in source for name in ("st.cache_", "st.session_state", "unsafe_allow_html")
        ), file
