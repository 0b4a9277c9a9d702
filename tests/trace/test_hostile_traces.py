"""Traces as attackers and accidents hand them in: what is read is right, or one TraceError says what to do."""

import io
import json
import shutil
import zipfile
from copy import copy as shallow_copy

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from safetensors.numpy import load_file, save_file
from trace_checks import assert_refused, read_everything, rehash, rewrite, same

from sampleattn import trace_files, trace_format, trace_layer
from sampleattn.trace import Trace, TraceError
from sampleattn.trace_format import LAYER_ARRAYS, MAX_BLOCKS, META
from sampleattn.trace_meta import dump_meta

TOKENS = 300


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


@pytest.mark.parametrize("word", [2**63, -(10**30), 10**400])
def test_numbers_in_meta_beyond_64_bits(copy, word):
    rewrite(copy, timings={"dense_run_s": word})
    assert_refused(copy, "meta.json")


def test_an_unknown_kind_of_number(copy):
    rewrite(copy, provenance={"density": {"kind": "guessed", "run": "dense"}})
    assert_refused(copy, "provenance")


def test_a_prompt_of_too_many_blocks(copy):
    """The mask of a head would take blocks * blocks bytes, however little its columns and slashes take."""
    meta = json.loads((copy / META).read_bytes())
    tokens = MAX_BLOCKS + 1
    rewrite(copy, level="summary", prompt=meta["prompt"] | {"tokens": tokens}, settings=meta["settings"] | {"block_size": 1})
    assert_refused(copy, f"{tokens:,} blocks")


def test_sizes_that_meta_does_not_fix_are_bounded(copy, monkeypatch):
    monkeypatch.setitem(trace_format.MOST, "V", 100)
    assert_refused(copy, "output.safetensors", "more than 100")
    monkeypatch.setitem(trace_format.MOST, "characters", 100)
    assert_refused(copy, "tokens.safetensors", "more than 100")


def test_more_sampled_rows_than_are_recorded(copy, monkeypatch):
    monkeypatch.setattr(trace_layer, "SAMPLED", 2)
    assert_refused(copy, "more than 2 sampled rows")


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


def test_a_zip_whose_files_overlap(zipped, monkeypatch):
    """Many names for the same packed bytes: each file is packed moderately, all of them together are not."""
    monkeypatch.setattr(trace_files, "SMALL_ZIP_BYTES", 0)
    size = 1 << 20
    buffer = io.BytesIO(zip_with(zipped, [("layers/900.safetensors", np.random.default_rng(0).bytes(size // 8) + bytes(size))]))
    Trace.load(buffer)
    with zipfile.ZipFile(buffer, "a") as archive:
        first = archive.getinfo("layers/900.safetensors")
        for layer in range(100):
            twin = shallow_copy(first)
            twin.filename = f"layers/{layer + 700}.safetensors"
            archive.filelist.append(twin)
        archive.writestr("layers/901.safetensors", b"")
    assert_refused(buffer.getvalue(), "unpacks to")


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
