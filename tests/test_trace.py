"""Traces as users and attackers hand them in: what is read is right, or one TraceError says what to do."""

import io
import json
import os
import shutil
import subprocess
import sys
import zipfile

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from long_trace import write_long_trace
from safetensors.numpy import load_file, save_file
from synthetic_trace import KINDS, layer_arrays, planted_weights, write_synthetic_trace

from sampleattn import trace_files
from sampleattn.config import SampleAttentionConfig
from sampleattn.summary import summarise, table
from sampleattn.trace import Trace, TraceError, TraceWriter
from sampleattn.trace_format import LAYER_ARRAYS, META, OLD_NUMBERS
from sampleattn.trace_meta import dump_meta
from sampleattn.windows import attention_window

LAYERS, HEADS, TOKENS = 3, 4, 300


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    path = tmp_path_factory.mktemp("trace") / "trace"
    write_synthetic_trace(path, layers=LAYERS, heads=HEADS, tokens=TOKENS, pin_layers=(1,), dense_layers=(2,))
    return path


@pytest.fixture(scope="module")
def zipped(folder, tmp_path_factory):
    return Trace.load(folder).save(tmp_path_factory.mktemp("zip") / "trace.zip").read_bytes()


@pytest.fixture
def copy(folder, tmp_path):
    return shutil.copytree(folder, tmp_path / "copy")


def read_everything(trace):
    """Every array that a view may ask for."""
    names = ("density", "cra", "sampled_cra", "output_error", "oracle_density", "rows_at_target", "recall_reached",
             "recall_of_99", "sparse_run_density")  # fmt: skip
    values = [trace.token_ids, trace.offsets, np.array(trace.tokens), *(getattr(trace, name) for name in names)]
    values += [trace.columns_kept, trace.slashes_kept]
    for layer in trace.recorded_layers:
        values.append(trace.rows(layer))
        for head in range(trace.heads):
            for name in ("overview", "recall", "block_mask", "columns", "slashes", "column_mass", "slash_mass", "tile_masses",
                         "recall_quantiles"):  # fmt: skip
                values.append(getattr(trace, name)(layer, head))
            if trace.pinned(layer, head):
                values.append(trace.window(layer, head, (0, trace.length), (0, trace.length // 2 + 1), (16, 16)))
    output = trace.output
    if output is not None:
        values += [output.logits_dense, output.kl, output.top1_equal, output.continuation_sparse]
    return values


def same(a, b):
    return all(np.array_equal(x, y, equal_nan=np.issubdtype(x.dtype, np.floating)) for x, y in zip(a, b, strict=True))


def rewrite(folder, **changes):
    """meta.json with some fields changed and a fresh checksum: what an attacker, not an accident, would write."""
    meta = json.loads((folder / META).read_bytes())
    meta.update(changes)
    (folder / META).write_bytes(dump_meta(meta))


def rehash(folder, name):
    import hashlib

    data = (folder / name).read_bytes()
    files = json.loads((folder / META).read_bytes())["files"]
    rewrite(folder, files=files | {name: {"bytes": len(data), "sha256": hashlib.sha256(data).hexdigest()}})


def assert_refused(place, *words):
    with pytest.raises(TraceError) as caught:
        read_everything(Trace.load(place))
    message = str(caught.value)
    assert "\n" not in message and message.endswith(".") and len(message) < 400
    for word in words:
        assert word in message
    return message


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


def test_things_that_are_no_trace(tmp_path):
    (tmp_path / "empty").mkdir()
    (tmp_path / "text").write_text("hello")
    (tmp_path / "list.zip").write_bytes(b"PK\x05\x06" + bytes(18))
    assert_refused(tmp_path / "missing", "does not exist")
    assert_refused(tmp_path / "empty", "no meta.json")
    assert_refused(tmp_path / "text")
    assert_refused(tmp_path / "list.zip")
    assert_refused(b"")
    assert_refused(b"PK\x03\x04 and nothing more")
    assert_refused("a\0b")


def test_newer_and_older_schemas(copy):
    rewrite(copy, schema=4)
    assert "update this program" in assert_refused(copy, "schema 4")
    rewrite(copy, schema=0)
    assert_refused(copy, "record it again")
    rewrite(copy, schema="1")
    assert_refused(copy, "no schema number")


@pytest.mark.parametrize(
    "data",
    [b"", b"[]", b"{" * 99_999, b'{"schema": NaN}', b'{"schema": 1e999}', b"\xff", b'{"a":' * 9999 + b"1", b"9" * 9999],
)
def test_meta_that_is_no_meta(copy, data):
    (copy / META).write_bytes(data)
    assert_refused(copy)


def test_meta_that_is_too_large(copy, monkeypatch):
    monkeypatch.setattr(trace_files, "MAX_META_BYTES", 100)
    assert_refused(copy, "too much")


@pytest.mark.parametrize("word", [None, True, -1, 0, 10**12, 1.5, "x", [], {}, [[]], {"a": {}}, "../x"])
def test_wrong_values_in_meta(copy, word):
    meta = json.loads((copy / META).read_bytes())
    honest = read_everything(Trace.load(copy))
    paths = [(key,) for key in meta if key not in ("checksum",)]
    paths += [(part, key) for part in ("model", "prompt", "settings", "timings", "machine", "files") for key in meta[part]]
    for path in paths:
        altered = json.loads(json.dumps(meta))
        place = altered
        for key in path[:-1]:
            place = place[key]
        place[path[-1]] = word
        (copy / META).write_bytes(dump_meta(altered))
        try:
            assert len(read_everything(Trace.load(copy))) <= len(honest), path
        except TraceError as error:
            assert "\n" not in str(error)


@pytest.mark.parametrize("key", ["layer", "ran", "reason", "file", "labels", "seconds", "scale", "sparse_run_density"])
@pytest.mark.parametrize("word", [None, True, -1, 99, "x", [None], {"a": "b"}])
def test_wrong_values_in_a_layer_entry(copy, key, word):
    layers = json.loads((copy / META).read_bytes())["layers"]
    layers[1][key] = word
    rewrite(copy, layers=layers)
    try:
        read_everything(Trace.load(copy))
    except TraceError as error:
        assert "\n" not in str(error)


@pytest.mark.parametrize("offsets", [[[0, 1], [5, 4]], [[3, 4], [0, 1]], [[-1, 1], [1, 2]], [[0, 1], [1, 10**9]]])
def test_offsets_out_of_order_or_range(copy, offsets):
    arrays = load_file(copy / "tokens.safetensors")
    arrays["offsets"][:2] = offsets
    arrays["offsets"][2:] = np.maximum(arrays["offsets"][2:], 0)
    save_file(arrays, copy / "tokens.safetensors")
    rehash(copy, "tokens.safetensors")
    assert_refused(copy, "offsets")


def test_text_that_is_no_utf8(copy):
    arrays = load_file(copy / "tokens.safetensors")
    arrays["text"] = arrays["text"].copy()
    arrays["text"][3] = 255
    save_file(arrays, copy / "tokens.safetensors")
    rehash(copy, "tokens.safetensors")
    assert_refused(copy, "tokens.safetensors")


@pytest.mark.parametrize("name", sorted(LAYER_ARRAYS))
def test_layers_with_wrong_dtypes_and_shapes(copy, name):
    path = copy / "layers/000.safetensors"
    arrays = load_file(path)
    wrong = [arrays[name].astype(np.float64), np.zeros((10**4, 10), arrays[name].dtype), arrays[name].ravel()[:0]]
    for array in wrong:
        save_file(arrays | {name: np.ascontiguousarray(array)}, path)
        rehash(copy, "layers/000.safetensors")
        assert_refused(copy, "layers/000")
    save_file({key: array for key, array in arrays.items() if key != name}, path)
    rehash(copy, "layers/000.safetensors")
    assert_refused(copy, name)


def test_sampled_rows_beyond_the_prompt(copy):
    arrays = load_file(copy / "layers/000.safetensors")
    arrays["rows"][-1] = TOKENS
    save_file(arrays, copy / "layers/000.safetensors")
    rehash(copy, "layers/000.safetensors")
    assert_refused(copy, "rows")


@pytest.mark.parametrize("name", ["overview", "recall", "column_mass", "slash_mass", "tile_masses"])
def test_numbers_that_are_not_finite(copy, name):
    arrays = load_file(copy / "layers/000.safetensors")
    for value in (np.nan, np.inf):
        arrays[name].flat[-1] = value
        save_file(arrays, copy / "layers/000.safetensors")
        rehash(copy, "layers/000.safetensors")
        assert_refused(copy, name, "finite")


def headers():
    huge = [2**62, 2**62]
    yield {"recall": {"dtype": "F32", "shape": huge, "data_offsets": [0, 8]}}
    yield {"recall": {"dtype": "F32", "shape": [2], "data_offsets": [-8, 0]}}
    yield {"recall": {"dtype": "F32", "shape": [2], "data_offsets": [0, 10**12]}}
    yield {"recall": {"dtype": "F32", "shape": [True], "data_offsets": [0, 4]}}
    yield {"recall": {"dtype": ["F32"], "shape": [2], "data_offsets": [0, 8]}}
    yield {"recall": {"dtype": "BF16", "shape": [4], "data_offsets": [0, 8]}}
    yield {"recall": {"dtype": "F32", "shape": "22", "data_offsets": [0, 8]}}
    yield {"recall": {"dtype": "F32", "shape": [2], "data_offsets": [0]}}
    yield {"recall": [1, 2]}
    yield dict.fromkeys("ab", {"dtype": "F32", "shape": [2], "data_offsets": [0, 8]})


@pytest.mark.parametrize("header", list(headers()), ids=str)
def test_hostile_headers(copy, header):
    data = json.dumps(header).encode()
    (copy / "layers/000.safetensors").write_bytes(len(data).to_bytes(8, "little") + data + bytes(8))
    rehash(copy, "layers/000.safetensors")
    assert_refused(copy, "layers/000")


@pytest.mark.parametrize("length", [0, 1, 2**40, 2**64 - 1])
def test_hostile_header_lengths(copy, length):
    (copy / "layers/000.safetensors").write_bytes(length.to_bytes(8, "little") + b"{}" * 20)
    rehash(copy, "layers/000.safetensors")
    assert_refused(copy, "layers/000")


def zip_with(zipped, extra):
    buffer = io.BytesIO(zipped)
    with zipfile.ZipFile(buffer, "a", zipfile.ZIP_DEFLATED) as archive:
        for name, data in extra:
            archive.writestr(name, data)
    return buffer.getvalue()


@pytest.mark.filterwarnings("ignore:Duplicate name")
@pytest.mark.parametrize(
    "name",
    [
        "../evil",
        "/etc/passwd",
        "layers/../../evil",
        "..\\evil",
        "x.py",
        "layers/1.safetensors",
        "pinned/001_v0000.safetensors",
        "meta.json",
        "a" * 60000,
    ],
)
def test_zips_with_names_that_are_no_trace_files(zipped, name):
    assert_refused(zip_with(zipped, [(name, b"x")]), "The zip holds")


def test_zip_bombs(zipped, monkeypatch):
    bomb = zip_with(zipped, [("layers/900.safetensors", bytes(80 << 20))])
    monkeypatch.setattr(trace_files, "MAX_ZIP_RATIO", 10)
    assert_refused(bomb, "unpacks to")
    monkeypatch.setattr(trace_files, "MAX_ZIP_BYTES", 1 << 20)
    assert_refused(zipped, "unpacks to")


def test_a_zip_that_lies_about_its_sizes(zipped):
    buffer = io.BytesIO(zipped)
    sizes = {info.filename: info.file_size for info in zipfile.ZipFile(buffer).infolist()}
    for size in set(sizes.values()) - {sizes[META]}:
        for lie in (size // 2, size * 2, 2**32 - 2):
            assert_refused(zipped.replace(size.to_bytes(4, "little"), lie.to_bytes(4, "little")))


def test_unusual_compression_is_refused(folder):
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w", zipfile.ZIP_BZIP2) as archive:
        archive.write(folder / META, META)
    assert_refused(buffer.getvalue(), "unusual")


slow = settings(max_examples=60, deadline=None, suppress_health_check=list(HealthCheck))


@slow
@given(data=st.data())
def test_flipped_bytes_in_a_zip(zipped, data):
    altered = bytearray(zipped)
    for _ in range(data.draw(st.integers(1, 3))):
        altered[data.draw(st.integers(0, len(zipped) - 1))] ^= 1 << data.draw(st.integers(0, 7))
    try:
        values = read_everything(Trace.load(bytes(altered)))
    except TraceError:
        return
    assert same(values, read_everything(Trace.load(zipped)))


@slow
@given(length=st.integers(0, 10**9))
def test_truncated_zips(zipped, length):
    assert_refused(zipped[: length % len(zipped)])


@slow
@given(data=st.data())
def test_flipped_bytes_and_cuts_in_a_folder(folder, tmp_path_factory, data):
    copy = shutil.copytree(folder, tmp_path_factory.mktemp("flip") / "t")
    files = sorted(path for path in copy.rglob("*") if path.is_file())
    path = data.draw(st.sampled_from(files))
    content = bytearray(path.read_bytes())
    at = data.draw(st.integers(0, len(content) - 1))
    if data.draw(st.booleans()):
        content = content[:at]
    else:
        content[at] ^= 1 << data.draw(st.integers(0, 7))
    path.write_bytes(content)
    try:
        values = read_everything(Trace.load(copy))
    except TraceError:
        values = None
    shutil.rmtree(copy.parent)
    if values is not None:
        assert same(values, read_everything(Trace.load(folder)))


def reference_window(q, k, scale, rows, cols, shape, reduce, kept=None):
    """A float64 softmax over the whole map, cut and pooled cell by cell; `kept` [N, N] leaves cells out."""
    q, k = q.astype(np.float64), k.astype(np.float64)
    scores = np.where(np.tri(len(q), dtype=bool), q @ k.T * scale, -np.inf)
    weights = np.exp(scores - scores.max(axis=1, keepdims=True))
    weights /= weights.sum(axis=1, keepdims=True)
    part = (weights if kept is None else weights * kept)[slice(*rows), slice(*cols)]
    (n, m), (h, w) = part.shape, shape
    cells = [[part[y * n // h : (y + 1) * n // h, x * m // w : (x + 1) * m // w] for x in range(w)] for y in range(h)]
    return np.array([[getattr(np, reduce)(cell) for cell in row] for row in cells])


@settings(max_examples=80, deadline=None)
@given(data=st.data())
def test_windows_equal_float64_softmax_and_their_planes_add_up(data):
    n = data.draw(st.integers(1, 90))
    rng = np.random.default_rng(data.draw(st.integers(0, 999)))
    q, k = (rng.standard_normal((n, 8)).astype(data.draw(st.sampled_from([np.float32, np.float16]))) * 3 for _ in range(2))
    scale = data.draw(st.sampled_from([8**-0.5, 1.0]))
    scores = np.where(np.tri(n, dtype=bool), q.astype(np.float64) @ k.astype(np.float64).T * scale, -np.inf)
    lse = np.logaddexp.reduce(scores, axis=1).astype(np.float32)
    r0, c0 = data.draw(st.integers(0, n - 1)), data.draw(st.integers(0, n - 1))
    r1, c1 = data.draw(st.integers(r0 + 1, n)), data.draw(st.integers(c0 + 1, n))
    shape = data.draw(st.integers(1, r1 - r0)), data.draw(st.integers(1, c1 - c0))
    reduce, block = data.draw(st.sampled_from(["max", "mean", "sum"])), data.draw(st.sampled_from([1, 4, 16, 128]))
    blocks = -(-n // block)
    mask = rng.random((blocks, blocks)) < 0.5
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("sampleattn.windows.CHUNK_CELLS", data.draw(st.sampled_from([1, 99, 1 << 20])))
        window = q[r0:r1], k[c0:c1], lse[r0:r1], scale, (r0, r1), (c0, c1), shape, reduce
        weights, missed = attention_window(*window, mask, block)
    kept = np.repeat(np.repeat(mask, block, axis=0), block, axis=1)[:n, :n]
    expected = reference_window(q, k, scale, (r0, r1), (c0, c1), shape, reduce)
    outside = reference_window(q, k, scale, (r0, r1), (c0, c1), shape, reduce, ~kept)
    inside = reference_window(q, k, scale, (r0, r1), (c0, c1), shape, reduce, kept)
    close = {"atol": 2e-5, "rtol": 2e-4}
    np.testing.assert_allclose(weights, expected, **close)
    np.testing.assert_allclose(missed, outside, **close)
    np.testing.assert_allclose(np.maximum(inside, missed) if reduce == "max" else inside + missed, weights, **close)
    assert not attention_window(*window)[1].any()


def test_windows_of_a_trace(folder):
    trace = Trace.load(folder)
    q = load_file(folder / "pinned/001_q0003.safetensors")["q"]
    k = load_file(folder / "pinned/001_k0001.safetensors")["k"]
    window = (100, 280), (50, 250), (30, 30), "mean"
    kept = np.repeat(np.repeat(trace.block_mask(1, 3), 128, axis=0), 128, axis=1)[:TOKENS, :TOKENS]
    weights, missed = trace.window_planes(1, 3, *window)
    np.testing.assert_allclose(weights, reference_window(q, k, 0.25, *window), atol=1e-6)
    np.testing.assert_allclose(missed, reference_window(q, k, 0.25, *window, ~kept), atol=1e-6)
    assert np.array_equal(trace.window(1, 3, *window), weights)
    assert trace.window(1, 0, (0, 10), (0, 10), (99, 99)).shape == (10, 10)
    with pytest.raises(TraceError, match="without its q and k"):
        trace.window(0, 0, (0, 10), (0, 10), (5, 5))
    for bad in ((5, 5), (0, TOKENS + 1), (-1, 3)):
        with pytest.raises(ValueError, match="does not lie"):
            trace.window(1, 0, bad, (0, 10), (5, 5))


def test_the_overview_is_the_window_of_the_whole_triangle(folder):
    trace = Trace.load(folder)
    whole = (0, TOKENS)
    np.testing.assert_allclose(trace.window(1, 2, whole, whole, (512, 512)), trace.overview(1, 2), atol=1e-3)


def test_what_the_overview_surely_misses(folder):
    trace = Trace.load(folder)
    kept = np.repeat(np.repeat(trace.block_mask(0, 1), 128, axis=0), 128, axis=1)[:TOKENS, :TOKENS]
    assert np.array_equal(trace.overview_missed(0, 1), np.where(kept, 0, trace.overview(0, 1)))


def test_the_overview_misses_only_cells_without_any_kept_tile(tmp_path):
    write_synthetic_trace(tmp_path / "t", layers=1, heads=2, tokens=1500, pin_layers=())
    trace = Trace.load(tmp_path / "t")
    kept = np.repeat(np.repeat(trace.block_mask(0, 1), 128, axis=0), 128, axis=1)[:1500, :1500]
    edges = np.arange(512) * 1500 // 512
    touched = np.logical_or.reduceat(np.logical_or.reduceat(kept, edges, axis=0), edges, axis=1)
    assert np.array_equal(trace.overview_missed(0, 1), np.where(touched, 0, trace.overview(0, 1)))


def test_single_heads_are_pinned_after_the_fact(copy):
    pinned = load_file(copy / "pinned/001_q0002.safetensors"), load_file(copy / "pinned/001_k0001.safetensors")
    TraceWriter.reopen(copy).write_pin(0, 3, pinned[0]["q"], pinned[0]["lse"], pinned[1]["k"])
    trace = Trace.load(copy)
    assert [trace.pinned(0, head) for head in range(HEADS)] == [False, False, False, True]
    window = (0, TOKENS), (0, TOKENS), (60, 60)
    assert np.array_equal(trace.window(0, 3, *window), Trace.load(copy).window(1, 2, *window))
    again = Trace.load(trace.save(copy.parent / "pinned.zip"))
    assert np.array_equal(again.window(0, 3, *window), trace.window(0, 3, *window))


@pytest.mark.parametrize("name, key", [("pinned/001_q0000", "q"), ("pinned/001_q0000", "lse"), ("pinned/001_k0000", "k")])
def test_pinned_heads_with_wrong_dtypes_and_shapes(copy, name, key):
    path = copy / f"{name}.safetensors"
    arrays = load_file(path)
    for array in (arrays[key].astype(np.float64), arrays[key][:-1], arrays[key][None], arrays[key].astype(np.int32)):
        save_file(arrays | {key: np.ascontiguousarray(array)}, path)
        rehash(copy, f"{name}.safetensors")
        assert_refused(copy, name)
    save_file(arrays | {"more": arrays[key]}, path)
    rehash(copy, f"{name}.safetensors")
    assert_refused(copy, "unknown array")


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


def test_windows_of_a_long_prompt(tmp_path):
    """Closed forms at 128K tokens: cells of every zoom level, the overview, and the one planted cell."""
    needle = 100_003, 30_011
    head = write_long_trace(tmp_path / "t", 131072, needle)
    trace = Trace.load(tmp_path / "t")
    assert trace.window(0, 0, (needle[0], needle[0] + 1), (needle[1], needle[1] + 1), (1, 1)) == pytest.approx(
        head.weights([needle[0]], [needle[1]]), rel=1e-4
    )
    overview = trace.overview(0, 0)
    for level in range(9):
        size = 2**level
        row, column = (position // size * size for position in needle)
        cells = 3 if size < 64 else 1
        rows, cols = (row, row + cells * size), (column, column + cells * size)
        found, missed = trace.window_planes(0, 0, rows, cols, (cells, cells))
        exact = head.weights(np.arange(*rows), np.arange(*cols)).reshape(cells, size, cells, size).max(axis=(1, 3))
        np.testing.assert_allclose(found, exact, rtol=1e-3)
        assert np.array_equal(found, missed)
    assert overview[needle[0] // 256, needle[1] // 256] == pytest.approx(found[0, 0], rel=1e-3)
    rows, cols = (120_000, 120_512), (119_900, 120_412)
    np.testing.assert_allclose(
        trace.window(0, 0, rows, cols, (512, 512)), head.weights(np.arange(*rows), np.arange(*cols)), rtol=1e-3, atol=1e-9
    )
