"""Traces as users hand them in: what was written is read, at every length and level of completeness, by every schema."""

import io
import json
import os
import shutil
import subprocess
import sys

import numpy as np
import pytest
from safetensors.numpy import load_file, save_file
from synthetic_trace import KINDS, layer_arrays, planted_weights, write_synthetic_trace
from trace_checks import assert_refused, read_everything, rehash, same

from sampleattn import trace_files
from sampleattn.config import SampleAttentionConfig
from sampleattn.summary import summarise, table
from sampleattn.trace import Trace, TraceError, TraceWriter
from sampleattn.trace_format import META, OLD_NUMBERS
from sampleattn.trace_meta import dump_meta

LAYERS, HEADS, TOKENS = 3, 4, 300


def test_what_was_written_is_read(folder, zipped):
    trace = Trace.load(folder)
    assert (trace.layers, trace.heads, trace.kv_heads, trace.length, trace.complete) == (LAYERS, HEADS, 2, TOKENS, True)
    assert trace.recorded_layers == [0, 1, 2]
    assert "".join(trace.tokens) == trace.text and len(trace.tokens) == TOKENS
    arrays = load_file(folder / "layers/000.safetensors")
    assert np.array_equal(trace.recall(0, 2), arrays["recall"][2])
    blocks = -(-TOKENS // 128)
    mask = trace.block_mask(0, 2)
    assert mask.shape == (blocks, blocks) and not np.triu(mask, 1).any()
    assert trace.density[0, 2] == pytest.approx(mask.sum() / (blocks * (blocks + 1) / 2))
    assert trace.cra[0, 2] == pytest.approx(trace.recall(0, 2).min())
    assert trace.columns(0, 2).tolist() == [0, 1]
    assert trace.overview(0, 0).shape == (TOKENS, TOKENS) and trace.overview(0, 0).dtype == np.float32
    assert trace.label(0, 0) == "sink" and trace.layer_reason(2) == "sliding-window attention" and trace.layer_reason(0) == ""
    assert trace.pinned(1, 0) and not trace.pinned(0, 0)
    assert trace.output.first_difference == 7 == trace.meta["first_difference"]
    assert same(read_everything(trace), read_everything(Trace.load(zipped)))
    assert same(read_everything(trace), read_everything(Trace.load(io.BytesIO(zipped))))


def test_a_complete_trace_opens_without_its_layers(copy):
    whole = Trace.load(copy)
    names = ("density", "cra", "sampled_cra", "output_error", "oracle_density", "rows_at_target", "columns_kept", "slashes_kept")
    numbers = [getattr(whole, name) for name in names]
    for path in (copy / "layers").iterdir():
        path.write_bytes(bytes(path.stat().st_size))
    opened = Trace.load(copy)
    assert same([getattr(opened, name) for name in names], numbers)
    with pytest.raises(TraceError, match="checksum"):
        opened.recall(0, 0)


def test_the_numbers_of_all_heads_are_those_of_the_layers(folder):
    trace = Trace.load(folder)
    for layer in range(LAYERS):
        arrays = load_file(folder / f"layers/{layer:03d}.safetensors")
        assert np.array_equal(trace.cra[layer], arrays["cra"]) and np.array_equal(trace.density[layer], arrays["density"])
        assert trace.columns_kept[layer].tolist() == [len(trace.columns(layer, head)) for head in range(HEADS)]
        assert trace.slashes_kept[layer].tolist() == [len(trace.slashes(layer, head)) for head in range(HEADS)]


@pytest.mark.parametrize("tokens", [1, 2, 127, 128, 129, 513])
def test_every_length(tmp_path, tokens):
    write_synthetic_trace(tmp_path / "t", layers=1, heads=2, tokens=tokens)
    trace = Trace.load(tmp_path / "t")
    read_everything(trace)
    assert trace.overview(0, 0).shape == (min(512, tokens),) * 2


def test_tokens_that_share_a_character_and_special_tokens(tmp_path):
    text = "a数b"
    meta = json.loads((write_synthetic_trace(tmp_path / "t", layers=1, heads=2, tokens=4).folder / META).read_bytes())
    given = {key: meta[key] for key in ("model", "settings")}
    offsets = [(0, 0), (0, 1), (1, 2), (1, 2), (1, 2), (2, 3)]
    TraceWriter(tmp_path / "u", given, range(6), offsets, text)
    assert Trace.load(tmp_path / "u").tokens == ["", "a", "数", "数", "数", "b"]


def test_reading_needs_no_torch(folder):
    code = "import sys; from sampleattn import Trace; t = Trace.load(sys.argv[1]); t.density; t.overview(0, 0); "
    code += "print([m for m in ('torch', 'transformers', 'streamlit', 'pandas') if m in sys.modules])"
    done = subprocess.run([sys.executable, "-c", code, folder], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"


def test_half_a_trace_opens_with_what_it_has(tmp_path):
    write_synthetic_trace(tmp_path / "t", layers=3, heads=2, tokens=300, stop_after=2)
    (tmp_path / "t" / "layers" / ".002.safetensors.77.tmp").write_bytes(b"left by a crash")
    trace = Trace.load(tmp_path / "t")
    assert not trace.complete and trace.recorded_layers == [0, 1] and trace.output is None
    assert np.isnan(trace.density[2]).all() and not np.isnan(trace.density[:2]).any()
    with pytest.raises(TraceError, match="Layer 2 has no picture"):
        trace.recall(2, 0)
    read_everything(trace)
    assert "not finished" in table(trace) and summarise(trace)["analysed_layers"] == 2
    os.remove(tmp_path / "t" / "layers" / "001.safetensors")
    assert Trace.load(tmp_path / "t").recorded_layers == [0]
    read_everything(Trace.load(Trace.load(tmp_path / "t").save(tmp_path / "half.zip")))


def analysed(heads=2, tokens=200):
    kinds = KINDS[:heads]
    weights = [planted_weights(kind, tokens) for kind in kinds]
    return layer_arrays(weights, kinds, SampleAttentionConfig())


def test_a_writer_that_dies_leaves_the_last_state(tmp_path, monkeypatch):
    writer = write_synthetic_trace(tmp_path / "t", layers=2, heads=2, tokens=200, stop_after=1)

    def crash(*_):
        raise KeyboardInterrupt

    monkeypatch.setattr(trace_files.os, "replace", crash)
    with pytest.raises(KeyboardInterrupt):
        writer.write_layer(1, analysed(), {"labels": ["dense", "dense"]})
    assert Trace.load(tmp_path / "t").recorded_layers == [0]
    assert not list((tmp_path / "t").rglob("*.tmp"))


def test_the_writer_refuses_what_does_not_fit(tmp_path):
    writer = write_synthetic_trace(tmp_path / "t", layers=2, heads=2, tokens=200, stop_after=1)
    arrays, info = analysed(), {"labels": ["dense", "dense"]}
    for name in ("recall", "block_mask", "cra"):
        with pytest.raises(TraceError):
            writer.write_layer(1, arrays | {name: arrays[name][:1]}, info)
    with pytest.raises(TraceError):
        writer.write_layer(1, arrays | {"recall": arrays["recall"].astype(np.float64)}, info)
    with pytest.raises(TraceError):
        writer.write_layer(1, {k: v for k, v in arrays.items() if k != "cra"}, info)
    with pytest.raises(TraceError, match="already exists"):
        write_synthetic_trace(tmp_path / "t", layers=1, tokens=10)
    writer.write_layer(1, arrays, info)
    assert Trace.load(tmp_path / "t").recorded_layers == [0, 1]


def test_save_replaces_only_when_complete(folder, tmp_path, monkeypatch):
    trace = Trace.load(folder)
    for name in ("out", "out.zip"):
        path = trace.save(tmp_path / name)
        before = read_everything(Trace.load(path))
        with monkeypatch.context() as patch:
            patch.setattr("sampleattn.trace_save.shutil.copyfileobj", lambda *_: 1 / 0)
            with pytest.raises(ZeroDivisionError):
                trace.save(path)
        assert same(before, read_everything(Trace.load(path)))
        assert same(before, read_everything(Trace.load(trace.save(path))))
    assert sorted(p.name for p in tmp_path.iterdir()) == ["out", "out.zip"]
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine" / "thesis.tex").write_text("years of work")
    with pytest.raises(TraceError, match="other things"):
        trace.save(tmp_path / "mine")
    with pytest.raises(TraceError):
        trace.save(tmp_path / "mine" / "thesis.tex")
    assert (tmp_path / "mine" / "thesis.tex").read_text() == "years of work"


def test_a_damaged_trace_is_not_saved(copy, tmp_path):
    (copy / "layers/001.safetensors").write_bytes(b"x" * (copy / "layers/001.safetensors").stat().st_size)
    with pytest.raises(TraceError, match=r"layers/001.*checksum"):
        Trace.load(copy).save(tmp_path / "new.zip")
    assert not (tmp_path / "new.zip").exists()


def test_single_heads_are_pinned_after_the_fact(copy):
    pinned = load_file(copy / "pinned/001_q0002.safetensors"), load_file(copy / "pinned/001_k0001.safetensors")
    TraceWriter.reopen(copy).write_pin(0, 3, pinned[0]["q"], pinned[0]["lse"], pinned[1]["k"])
    trace = Trace.load(copy)
    assert [trace.pinned(0, head) for head in range(HEADS)] == [False, False, False, True]
    window = (0, TOKENS), (0, TOKENS), (60, 60)
    assert np.array_equal(trace.window(0, 3, *window), Trace.load(copy).window(1, 2, *window))
    again = Trace.load(trace.save(copy.parent / "pinned.zip"))
    assert np.array_equal(again.window(0, 3, *window), trace.window(0, 3, *window))


def make_old(folder, schema):
    """Rewrite a trace as earlier versions wrote it: layers unpacked; in schema 1 with the pinned heads, and no heads file."""
    trace = Trace.load(folder)
    for layer in range(LAYERS):
        arrays = load_file(folder / f"layers/{layer:03d}.safetensors")
        reader = trace._layer(layer)
        old = {name: arrays[name] for name in (*OLD_NUMBERS, "recall", "column_mass", "slash_mass", "rows")}
        for name in ("overview", "tile_masses", "block_mask", "columns", "slashes"):
            old[name] = np.stack([getattr(reader, name)(head) for head in range(HEADS)])
            old[name] = old[name].astype(np.float16 if name in ("overview", "tile_masses") else np.uint8)
        old["block_mask"] = np.packbits(old["block_mask"], axis=-1, bitorder="little")
        if schema == 1 and trace.pinned(layer, 0):
            heads = [load_file(folder / f"pinned/{layer:03d}_q{head:04d}.safetensors") for head in range(HEADS)]
            old |= {name: np.stack([head[name] for head in heads]) for name in ("q", "lse")}
            keys = [load_file(folder / f"pinned/{layer:03d}_k{head:04d}.safetensors")["k"] for head in range(trace.kv_heads)]
            old["k"] = np.stack(keys)
        save_file(old, folder / f"layers/{layer:03d}.safetensors")
    numbers = load_file(folder / "heads.safetensors")
    save_file({name: array for name, array in numbers.items() if name != "recall_reached"}, folder / "heads.safetensors")
    files = json.loads((folder / META).read_bytes())["files"]
    if schema == 1:
        shutil.rmtree(folder / "pinned")
        (folder / "heads.safetensors").unlink()
        files = {name: file for name, file in files.items() if not name.startswith(("pinned/", "heads."))}
    meta = json.loads((folder / META).read_bytes()) | {"schema": schema, "files": files}
    del meta["level"]
    (folder / META).write_bytes(dump_meta(meta))
    for name in files:
        if name.startswith(("layers/", "heads.")):
            rehash(folder, name)


@pytest.mark.parametrize("schema", [1, 2])
def test_older_schemas_are_still_read(copy, schema):
    new = read_everything(Trace.load(copy))
    make_old(copy, schema)
    old = Trace.load(copy)
    assert old.meta["schema"] == schema and old.pinned(1, 0) and not old.pinned(0, 0)
    assert same(read_everything(old), new)
    assert same(read_everything(Trace.load(old.save(copy.parent / "old.zip"))), new)


@pytest.mark.parametrize("schema", [1, 2])
def test_heads_of_older_traces_are_pinned(copy, schema):
    pinned = load_file(copy / "pinned/001_q0002.safetensors"), load_file(copy / "pinned/001_k0001.safetensors")
    make_old(copy, schema)
    expected = Trace.load(copy).window_planes(1, 2, (7, 290), (3, 250), (40, 30))
    TraceWriter.reopen(copy).write_pin(0, 3, pinned[0]["q"], pinned[0]["lse"], pinned[1]["k"])
    again = Trace.load(copy)
    assert again.meta["schema"] == 2 and [again.pinned(0, head) for head in range(HEADS)] == [False, False, False, True]
    assert same(again.window_planes(1, 2, (7, 290), (3, 250), (40, 30)), expected)
    assert np.array_equal(again.window(0, 3, (0, 99), (0, 99), (9, 9)), again.window(1, 2, (0, 99), (0, 99), (9, 9)))


def test_a_pinned_layer_of_schema_1_without_its_keys(copy):
    make_old(copy, 1)
    path = copy / "layers/001.safetensors"
    save_file({name: array for name, array in load_file(path).items() if name != "k"}, path)
    rehash(copy, "layers/001.safetensors")
    assert_refused(copy, "'k'")
