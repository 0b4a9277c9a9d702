"""The command line as a user and a script see it: what it prints, where, and its exit codes."""

import io
import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
from synthetic_trace import write_synthetic_trace
from test_recorder import TEXT, tokenizer  # noqa: F401
from tiny_models import tiny_model

from sampleattn import Trace, cli
from sampleattn.trace_format import META
from sampleattn.trace_meta import dump_meta

ROOT = Path(__file__).resolve().parent.parent


@pytest.fixture(scope="module")
def model_folder(tokenizer, tmp_path_factory):  # noqa: F811
    folder = tmp_path_factory.mktemp("model") / "tiny"
    tiny_model("llama").save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return folder


@pytest.fixture
def prompt(tmp_path):
    path = tmp_path / "areas.py"
    path.write_text(TEXT, encoding="utf-8")
    return path


def run(*args, **options):
    command = [sys.executable, "-m", "sampleattn", *map(str, args)]
    environment = os.environ | {"OMP_NUM_THREADS": "2", "HF_HUB_OFFLINE": "1"}
    return subprocess.run(command, cwd=ROOT, capture_output=True, text=True, env=environment, timeout=300, **options)


def failure(capsys, *args):
    """The one line on stderr of a command that fails."""
    assert cli.main([str(arg) for arg in args]) == 1
    out, err = capsys.readouterr()
    last = err.strip().splitlines()[-1]
    assert out == "" and "Traceback" not in err and last.startswith("error: ")
    return last


def test_record_from_start_to_end(model_folder, prompt, tmp_path):
    out = tmp_path / "trace.zip"
    settings = ("--cra", "0.8", "--dense-below", "64", "--block-size", "32", "--selection", "independent", "--pin-layers", "0,1")
    done = run("record", "--model", model_folder, "--prompt-file", prompt, "--out", out, "--cut", "300", *settings)
    assert done.returncode == 0, done.stderr
    assert "CRA target 0.8" in done.stdout and "continuation" in done.stdout and str(out) in done.stdout
    assert "dense run: layer 1" in done.stderr and "left" in done.stderr
    trace = Trace.load(out)
    assert trace.complete and trace.length == 300 and trace.pinned(0, 0) and trace.pinned(1, 0)
    assert (trace.config.cra, trace.config.selection, trace.config.block_size) == (0.8, "independent", 32)
    assert trace.meta["prompt"]["title"] == "areas.py" and trace.meta["model"]["name"] == "tiny"
    assert sorted(path.name for path in tmp_path.iterdir()) == ["areas.py", "trace.zip"]
    shown = run("show", out)
    assert shown.returncode == 0 and shown.stdout.strip() in done.stdout


def test_json_and_standard_input(model_folder, tmp_path, capsys, monkeypatch):
    monkeypatch.setattr("sys.stdin", io.TextIOWrapper(io.BytesIO(TEXT.encode())))
    args = ["record", "--model", str(model_folder), "--prompt-file", "-", "--out", str(tmp_path / "t"), "--cut", "200"]
    assert cli.main([*args, "--json", "--quiet", "--continuation", "3"]) == 0
    out, err = capsys.readouterr()
    report = json.loads(out)
    assert err == "" and report["complete"] and report["summary"]["continuation"] == 3
    assert [row["layer"] for row in report["layers"]] == [0, 1] and report["prompt"]["tokens"] == 200
    assert Trace.load(tmp_path / "t").complete


def test_errors_are_one_line(model_folder, prompt, tmp_path, capsys):
    base = ("record", "--prompt-file", prompt, "--quiet", "--out", tmp_path / "t")
    known = ("--model", model_folder)
    assert "--cut 1024" in failure(capsys, *base[:2], _file(tmp_path, (TEXT * 3).encode()), *base[3:], *known)
    assert "empty" in failure(capsys, *base[:2], _file(tmp_path, b"  \n"), *base[3:], *known)
    assert "binary" in failure(capsys, *base[:2], _file(tmp_path, b"\x7fELF\0\0"), *base[3:], *known)
    assert "UTF-8" in failure(capsys, *base[:2], _file(tmp_path, b"caf\xe9"), *base[3:], *known)
    assert f"{tmp_path / 'missing'}: No such file" in failure(capsys, *base[:2], tmp_path / "missing", *base[3:], *known)
    assert "config.json" in failure(capsys, *base, "--model", tmp_path)
    assert "layers are 0 to 1" in failure(capsys, *base, *known, "--cut", "100", "--pin-layers", "5")
    assert "device" in failure(capsys, *base, *known, "--device", "abacus")
    assert "does not exist" in failure(capsys, "show", tmp_path / "nothing")
    assert not (tmp_path / "t").exists() and not (tmp_path / "t.partial").exists()


def _file(folder, data):
    path = folder / "input"
    path.write_bytes(data)
    return path


def test_an_existing_trace_is_replaced_only_by_force(model_folder, prompt, tmp_path, capsys):
    write_synthetic_trace(tmp_path / "t", layers=1, heads=2, tokens=50)
    base = ("record", "--prompt-file", prompt, "--quiet", "--model", model_folder, "--cut", "100", "--out", tmp_path / "t")
    assert "--force" in failure(capsys, *base)
    assert Trace.load(tmp_path / "t").meta["model"]["name"] == "synthetic"
    assert cli.main([str(arg) for arg in (*base, "--force")]) == 0
    assert Trace.load(tmp_path / "t").meta["model"]["name"] == "tiny"


def test_what_another_recording_to_the_same_name_left_is_not_touched(model_folder, prompt, tmp_path):
    write_synthetic_trace(tmp_path / "t.partial", layers=1, heads=2, tokens=50)
    arguments = ("record", "--prompt-file", prompt, "--quiet", "--model", model_folder, "--cut", "100", "--out", tmp_path / "t")
    assert cli.main([str(arg) for arg in arguments]) == 0
    assert Trace.load(tmp_path / "t").meta["model"]["name"] == "tiny"
    assert Trace.load(tmp_path / "t.partial").meta["model"]["name"] == "synthetic"
    assert sorted(path.name for path in tmp_path.iterdir() if path.name.startswith("t")) == ["t", "t.partial"]


@pytest.mark.parametrize(
    "args",
    [
        (),
        ("record",),
        ("dance",),
        ("record", "--model", "m", "--prompt-file", "p", "--out", "o", "--cra", "2"),
        ("record", "--model", "m", "--prompt-file", "p", "--out", "o", "--selection", "none"),
        ("record", "--model", "m", "--prompt-file", "p", "--out", "o", "--pin-layers", "a"),
        ("record", "--model", "m", "--prompt-file", "p", "--out", "o", "--cut", "0"),
    ],
)
def test_usage_errors_exit_with_2(args, capsys):
    with pytest.raises(SystemExit) as caught:
        cli.main(list(args))
    assert caught.value.code == 2 and "usage" in capsys.readouterr().err


def test_show_a_partial_trace_and_no_torch(tmp_path):
    write_synthetic_trace(tmp_path / "t", layers=3, heads=2, tokens=100, stop_after=1)
    code = "import sys; from sampleattn import cli; cli.main(['show', sys.argv[1]]); "
    code += "print([m for m in ('torch', 'transformers') if m in sys.modules])"
    done = subprocess.run([sys.executable, "-c", code, tmp_path / "t"], cwd=ROOT, capture_output=True, text=True, check=True)
    assert "not finished" in done.stdout and done.stdout.endswith("[]\n")
    assert json.loads(run("show", tmp_path / "t", "--json").stdout)["summary"]["analysed_layers"] == 1


def test_a_traces_text_cannot_steer_the_terminal(tmp_path, capsys):
    steer = "\x1b]0;title\x07\x1b[2J\r\n"
    writer = write_synthetic_trace(tmp_path / "t", layers=2, heads=2, tokens=200)
    writer.write_sparse_run({1: {"reason": steer}})
    writer.update(model=writer.meta["model"] | {"name": steer})
    assert cli.main(["show", str(tmp_path / "t")]) == 0
    assert capsys.readouterr().out.replace("\n", "").isprintable()
    meta = json.loads((tmp_path / "t" / META).read_bytes()) | {"settings": {steer * 9999: 1}}
    (tmp_path / "t" / META).write_bytes(dump_meta(meta))
    said = failure(capsys, "show", tmp_path / "t")
    assert "unknown setting" in said and said.isprintable() and len(said) < 300


def test_help_names_every_setting(capsys):
    for args in (["--help"], ["record", "--help"], ["bench", "--help"]):
        with pytest.raises(SystemExit) as caught:
            cli.main(args)
        assert caught.value.code == 0
    out = capsys.readouterr().out
    settings = cli.SampleAttentionConfig().to_dict()
    assert all(f"--{name.replace('_', '-')}" in out for name in settings)
    assert cli.meanings().keys() == settings.keys() and "recall that rows shall keep" in " ".join(out.split())


@pytest.mark.skipif(os.name == "nt", reason="POSIX signals")
def test_ctrl_c_keeps_the_partial_trace_and_says_so(model_folder, prompt, tmp_path):
    command = [sys.executable, "-m", "sampleattn", "record", "--model", model_folder, "--prompt-file", prompt]
    command += ["--out", tmp_path / "t.zip", "--cut", "900", "--continuation", "100000", "--dense-below", "64"]
    environment = os.environ | {"OMP_NUM_THREADS": "2"}
    pipes = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE, "text": True}
    pipes["preexec_fn"] = lambda: signal.signal(signal.SIGINT, signal.SIG_DFL)  # background jobs are started deaf to Ctrl-C
    process = subprocess.Popen(list(map(str, command)), cwd=ROOT, env=environment, **pipes)
    for line in process.stderr:
        if "dense run: layer 1" in line:
            break
    deadline = time.monotonic() + 60
    while not (tmp_path / "t.zip.partial/layers/000.safetensors").exists() and time.monotonic() < deadline:
        time.sleep(0.01)
    process.send_signal(signal.SIGINT)
    out, err = process.communicate(timeout=60)
    assert process.returncode == 130 and out == "" and "Traceback" not in err
    assert "t.zip.partial" in err and "--resume" in err and not (tmp_path / "t.zip").exists()
    partial = Trace.load(tmp_path / "t.zip.partial")
    assert not partial.complete and 0 in partial.recorded_layers
    base = ["record", "--model", model_folder, "--prompt-file", prompt, "--cut", "900", "--dense-below", "64", "--quiet"]
    assert cli.main([str(arg) for arg in (*base, "--out", tmp_path / "t.zip", "--continuation", "3", "--resume")]) == 0
    whole = Trace.load(tmp_path / "t.zip")
    assert whole.complete and whole.meta["timings"]["resumed_layers"] == len(partial.recorded_layers)
    assert not (tmp_path / "t.zip.partial").exists()


def test_levels_and_what_can_not_go_on(model_folder, prompt, tmp_path, capsys):
    base = ("record", "--prompt-file", prompt, "--model", model_folder, "--cut", "200", "--continuation", "2")
    assert cli.main([str(arg) for arg in (*base, "--out", tmp_path / "small.zip", "--level", "summary")]) == 0
    assert "level summary, about" in capsys.readouterr().err and Trace.load(tmp_path / "small.zip").level == "summary"
    assert cli.main([str(arg) for arg in (*base, "--out", tmp_path / "t", "--pin-heads", "1.2", "--quiet")]) == 0
    capsys.readouterr()
    assert Trace.load(tmp_path / "t").level == "pinned"
    assert "say which heads" in failure(capsys, *base, "--out", tmp_path / "u", "--level", "pinned", "--quiet")
    assert "no stopped recording" in failure(capsys, *base, "--out", tmp_path / "u", "--resume", "--quiet")
    write_synthetic_trace(tmp_path / "u.partial", layers=3, heads=2, tokens=100, pin_layers=(), stop_after=1)
    assert "has another model" in failure(capsys, *base, "--out", tmp_path / "u", "--resume", "--quiet")
    assert Trace.load(tmp_path / "u.partial").recorded_layers == [0]
