"""What users, links and files may hand to the app: one sentence says what is wrong, and nobody sees another one's trace."""

import json
import shlex
import shutil

import pytest
from streamlit.testing.v1 import AppTest
from synthetic_trace import write_synthetic_trace

from app import intake, snippets
from sampleattn.config import SampleAttentionConfig
from sampleattn.text import printable

NO_PLACES = ("~nobody/here", "a\0b", "x" * 5000, "/dev/zero", "http://example.org/trace.zip")


@pytest.mark.parametrize("place", NO_PLACES)
def test_places_that_are_no_trace_are_refused_in_one_sentence(place):
    app = AppTest.from_string(
        "import streamlit as st\nfrom app import session\nfrom sampleattn.trace import TraceError\n"
        f"try:\n    session.open_path({place!r})\nexcept TraceError as error:\n    st.text(error)"
    ).run()
    assert not app.exception and app.text[0].value.endswith(".") and "\n" not in app.text[0].value


@pytest.mark.parametrize("place", NO_PLACES)
def test_places_that_are_no_model_are_refused_in_one_sentence(place):
    assert intake.count("some text", place) is None
    with pytest.raises(intake.IntakeError, match="no folder"):
        intake.check_model("folder", place)


SIZES = {"num_hidden_layers": 2, "num_attention_heads": 4, "hidden_size": 64, "vocab_size": 100}


@pytest.mark.parametrize(
    "odd",
    [
        {"num_key_value_heads": "2"},
        {"num_key_value_heads": 3},
        {"num_key_value_heads": 8},
        {"num_key_value_heads": -1},
        {"head_dim": "16"},
        {"head_dim": 10**9},
        {"num_hidden_layers": 10**30},
        {"num_hidden_layers": True},
        {"vocab_size": None},
    ],
    ids=str,
)
def test_a_model_of_an_odd_shape_has_tokens_but_no_shape(tmp_path, odd):
    shutil.copy(intake.BUNDLED / "tokenizer.json", tmp_path)
    (tmp_path / "config.json").write_text(json.dumps(SIZES | odd))
    counted = intake.count("some text", str(tmp_path))
    assert counted.tokens > 0 and counted.shape is None


def test_a_models_shape_is_read_from_its_config(tmp_path):
    shutil.copy(intake.BUNDLED / "tokenizer.json", tmp_path)
    (tmp_path / "config.json").write_text(json.dumps(SIZES))
    assert intake.count("some text", str(tmp_path)).shape == intake.Shape(2, 4, 4, 16, 100)


@pytest.mark.parametrize("text", ["3", "3.", "3.1.2", "-1.0", "²·1", "9" * 5000 + ".1", "3.1; 4.0", "١.٢"])
def test_heads_that_are_not_named_as_layer_and_head(text):
    with pytest.raises(intake.IntakeError, match="Name the heads"):
        intake.pairs(text)


@pytest.mark.parametrize("name", ["x; rm -rf ~", "$(id)", "`id`", "a'b\"c", "\x1b[201~\nid\n", "a\rb", ""])
def test_a_models_name_is_one_word_of_a_copied_command(name):
    for line in (snippets.command(SampleAttentionConfig(), name), snippets.pin_command(name, 3, 1)):
        words = shlex.split(line)
        assert words[words.index("--model") + 1] == printable(name)
        assert line.replace("\\\n", "").isprintable()


def test_two_recordings_that_end_at_once_open_in_their_own_tabs(tmp_path):
    for name, tokens in (("mine", 200), ("theirs", 300)):
        write_synthetic_trace(tmp_path / name, layers=1, heads=2, tokens=tokens)
    app = AppTest.from_string(f"""
import streamlit as st
from app import session
from sampleattn.trace import Trace

class Overtaken(Trace):
    def save(self, path):
        saved = super().save(path)
        session.open_trace(Trace.load({str(tmp_path / "theirs")!r}))
        return saved

session.open_trace(Overtaken.load({str(tmp_path / "mine")!r}))
st.text(session.current().trace.length)
""").run()
    assert not app.exception and app.text[0].value == "200"
