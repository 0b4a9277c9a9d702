"""What each level of a trace keeps, how large it is, and a recording that goes on where it stopped."""

import threading

import numpy as np
import pytest
import torch
from test_recorder import CONFIG, TEXT, model, tokenizer  # noqa: F401
from trace_checks import read_everything, same

from sampleattn import sample_attention, trace_format, trace_levels
from sampleattn.prompt import PromptError
from sampleattn.recall import SHARES, quantiles, reached_by
from sampleattn.recorder import RecordingCancelled, RecordingError, record
from sampleattn.trace import Trace, TraceError
from sampleattn.trace_levels import pooled, square, tiles_of, triangle
from sampleattn.trace_size import estimate_size, readable

TOKENS = 700


@pytest.fixture(scope="module", autouse=True)
def longer(model):  # noqa: F811
    model.config.max_position_embeddings = 2048
    yield
    model.config.max_position_embeddings = 1024


def recorded(model, tokenizer, level, **options):  # noqa: F811
    options = {"max_tokens": TOKENS, "continuation": 4} | options
    return record(model, tokenizer, TEXT, CONFIG, level=level, **options)


@pytest.fixture(scope="module")
def explore(model, tokenizer):  # noqa: F811
    return recorded(model, tokenizer, "explore")


@pytest.fixture(scope="module")
def summary(model, tokenizer):  # noqa: F811
    return recorded(model, tokenizer, "summary")


def places(trace):
    return [(layer, head) for layer in range(trace.layers) for head in range(trace.heads)]


def folder_bytes(trace):
    return sum(path.stat().st_size for path in trace._source.path.rglob("*") if path.is_file())


def test_a_summary_keeps_the_numbers_and_the_selection_whole(explore, summary):
    assert (explore.level, summary.level) == ("explore", "summary")
    numbers = "density cra sampled_cra output_error oracle_density rows_at_target recall_reached recall_of_99"
    for name in numbers.split():
        assert np.array_equal(getattr(summary, name), getattr(explore, name))
    for place in places(explore):
        assert np.array_equal(summary.block_mask(*place), explore.block_mask(*place))
        assert np.array_equal(summary.columns(*place), explore.columns(*place))
        assert np.array_equal(summary.slashes(*place), explore.slashes(*place))
        assert summary.label(*place) == explore.label(*place)
        assert np.array_equal(summary.recall_quantiles(*place), quantiles(explore.recall(*place)))
        np.testing.assert_allclose(summary.column_mass(*place), explore.column_mass(*place), rtol=1e-3, atol=1e-7)
        np.testing.assert_allclose(summary.slash_mass(*place), explore.slash_mass(*place), rtol=1e-3, atol=1e-7)
    assert summary.estimate_table is not None and len(summary.rows(0)) == 0 and summary.tile_masses(0, 0).shape[0] == 0


def test_a_summarys_pictures_are_small_and_say_so(explore, summary):
    edges = np.arange(65) * TOKENS // 64
    for place in places(explore):
        small = summary.overview(*place)
        assert small.shape == (64, 64)
        expected = np.maximum.reduceat(np.maximum.reduceat(explore.overview(*place), np.arange(64) * 8, 0), np.arange(64) * 8, 1)
        np.testing.assert_allclose(np.sqrt(small), np.sqrt(expected), atol=0.5 / 255 + 1e-6)
        least = [explore.recall(*place)[a:b].min() for a, b in zip(edges, edges[1:], strict=False)]
        assert np.array_equal(summary.recall(*place), np.repeat(least, np.diff(edges)).astype(np.float32))
    assert summary.overview_cells == 64 and explore.overview_cells == 512
    assert summary.recall_parts(0, 0) == 64 and explore.recall_parts(0, 0) == TOKENS
    kinds = {name: entry["kind"] for name, entry in summary.meta["provenance"].items()}
    assert kinds["overview"] == kinds["recall"] == "reduced" and kinds["cra"] == "exact"
    assert explore.meta["provenance"]["recall"]["kind"] == "exact"


def test_long_prompts_keep_recall_in_parts_and_all_of_it_for_pinned_heads(model, tokenizer, explore, monkeypatch):  # noqa: F811
    for name, value in (("FULL_TOKENS", 600), ("OVERVIEW", 128), ("FEWER_SAMPLED", 5)):
        for module in (trace_format, trace_levels):
            if hasattr(module, name):
                monkeypatch.setattr(module, name, value)
    long = recorded(model, tokenizer, "pinned", pin_heads=[(1, 2)])
    assert long.level == "pinned" and long.recall_parts(1, 2) == TOKENS and long.recall_parts(0, 0) == 128
    np.testing.assert_allclose(long.recall(1, 2), explore.recall(1, 2), atol=1e-6)
    edges = np.arange(128) * TOKENS // 128
    for place in places(long):
        if place != (1, 2):
            parts = np.minimum.reduceat(explore.recall(*place), edges)
            np.testing.assert_allclose(long.recall(*place)[edges], parts, atol=1e-6)
    assert len(long.rows(0)) == 5 and set(long.rows(0)) <= set(explore.rows(0))
    order = [explore.rows(0).tolist().index(row) for row in long.rows(0)]
    assert np.array_equal(long.tile_masses(0, 3), explore.tile_masses(0, 3)[order])
    np.testing.assert_allclose(long.cra, explore.cra, atol=1e-6)
    np.testing.assert_allclose(long.recall_reached, explore.recall_reached, atol=1e-6)


@pytest.mark.parametrize("selection", ["joint", "independent", "window"])
@pytest.mark.parametrize("scope", ["head", "segment"])
@pytest.mark.parametrize("cra", [0.8, 1.0])
def test_tiles_are_made_again_from_columns_and_slashes(selection, scope, cra):
    config = CONFIG.replace(selection=selection, scope=scope, cra=cra, last_blocks=2)
    q, k, v = (torch.randn(1, heads, 999, 16, generator=torch.Generator().manual_seed(heads)) for heads in (4, 2, 2))
    _, selection = sample_attention(q, k, v, config, return_selection=True)
    for head in range(4):
        found = tiles_of(selection.columns[0, head].numpy(), selection.slashes[0, head].numpy(), 2)
        assert np.array_equal(found, selection.block_mask[0, head].numpy())


def test_triangles_are_packed_and_unpacked():
    values = np.arange(1, 2 * 25 + 1).reshape(2, 5, 5) * np.tri(5, dtype=int)
    assert np.array_equal(square(triangle(values)[1], 5), values[1]) and triangle(values).shape == (2, 15)
    assert np.array_equal(
        pooled(values, 2)[0], [[values[0, :2, :2].max(), 0], [values[0, 2:, :2].max(), values[0, 2:, 2:].max()]]
    )


def test_recall_in_a_few_numbers():
    recall = np.random.default_rng(0).random((3, 1000)).astype(np.float32)
    found = quantiles(recall)
    assert found.shape == (3, len(SHARES)) and np.array_equal(found[:, 0], recall.min(1))
    for share, value in zip(SHARES, found[1], strict=True):  # 1,000 rows: all but 10 of them reach what 99% reach, and no more
        wanted = max(1, round(1000 * (1 - share)))
        assert (recall[1] >= value).sum() == wanted, share
    reached = reached_by(recall, 0.9)
    assert ((recall >= reached[:, None]).mean(1) >= 0.9).all() and ((recall > reached[:, None]).mean(1) < 0.9).all()


@pytest.mark.parametrize("tokens", [300, 1500])
@pytest.mark.parametrize("level, pins", [("summary", ()), ("explore", ()), ("pinned", ((0, 1), (1, 2), (1, 3)))])
def test_the_size_is_known_before(model, tokenizer, tokens, level, pins):  # noqa: F811
    trace = recorded(model, tokenizer, level, pin_heads=pins, max_tokens=tokens)
    shape = (trace.meta["model"][name] for name in ("layers", "heads", "kv_heads", "head_dim"))
    given = {"config": CONFIG, "vocabulary": model.config.vocab_size, "text_bytes": len(trace.text.encode()), "pin_bytes": 4}
    assert estimate_size(level, *shape, tokens, pins, **given) == pytest.approx(folder_bytes(trace), rel=0.15)


def test_a_summary_of_a_large_model_is_small():
    assert estimate_size("summary", 32, 32, 8, 128, 131072, vocabulary=128_256) < 20e6
    assert [readable(size) for size in (999, 54_321, 1.26e6, 54.6e6, 2e9)] == ["1 KB", "54 KB", "1.3 MB", "55 MB", "2.0 GB"]


@pytest.mark.parametrize(
    ("level", "options", "words"),
    [
        ("all", {}, "one of summary, explore, pinned"),
        ("pinned", {}, "say which heads"),
        ("explore", {"pin_heads": [(0, 0)]}, "take level pinned"),
    ],
)
def test_levels_that_are_refused(model, tokenizer, tmp_path, level, options, words):  # noqa: F811
    with pytest.raises(PromptError, match=words):
        recorded(model, tokenizer, level, out=tmp_path / "t", **options)
    assert not (tmp_path / "t").exists()


def test_a_full_disk_is_seen_before(model, tokenizer, tmp_path, monkeypatch):  # noqa: F811
    monkeypatch.setattr("sampleattn.recording_checks.shutil.disk_usage", lambda _: type("Usage", (), {"free": 10_000}))
    with pytest.raises(RecordingError, match=r"needs about .* 10 KB free"):
        recorded(model, tokenizer, "explore", out=tmp_path / "t")
    assert not (tmp_path / "t").exists()


def stopped(model, tokenizer, folder, at, **options):  # noqa: F811
    cancel = threading.Event()

    def progress(share, text, left):
        if at in text:
            cancel.set()

    with pytest.raises(RecordingCancelled):
        recorded(model, tokenizer, options.pop("level", None), out=folder, cancel=cancel, progress=progress, **options)


@pytest.mark.parametrize("at", ["dense run: layer 1", "sparse run: layer 0"])
@pytest.mark.parametrize("level, pins", [("summary", ()), ("pinned", ((0, 1), (1, 2)))])
def test_a_stopped_recording_goes_on(model, tokenizer, tmp_path, monkeypatch, at, level, pins):  # noqa: F811
    stopped(model, tokenizer, tmp_path / "t", at, level=level, pin_heads=pins)
    done = Trace.load(tmp_path / "t").recorded_layers
    analysed = []
    real = record.__globals__["analyse"]
    monkeypatch.setitem(record.__globals__, "analyse", lambda *args, **more: analysed.append(1) or real(*args, **more))
    again = recorded(model, tokenizer, level, pin_heads=pins, out=tmp_path / "t", resume=True)
    assert len(analysed) == 2 - len(done) and again.meta["timings"]["resumed_layers"] == len(done) >= 1
    whole = recorded(model, tokenizer, level, pin_heads=pins)
    assert again.complete and same(read_everything(again), read_everything(whole))
    assert [entry["labels"] for entry in again.meta["layers"]] == [entry["labels"] for entry in whole.meta["layers"]]
    assert again.meta["files"].keys() == whole.meta["files"].keys()
    assert again.meta["timings"]["analysis_s"] == pytest.approx(sum(e["seconds"]["analysis"] for e in again.meta["layers"]))


def test_layers_that_were_damaged_are_recorded_again(model, tokenizer, tmp_path):  # noqa: F811
    stopped(model, tokenizer, tmp_path / "t", "sparse run")
    (tmp_path / "t/layers/000.safetensors").write_bytes(b"half a fi")
    (tmp_path / "t/estimates/001.safetensors").unlink()
    again = recorded(model, tokenizer, None, out=tmp_path / "t", resume=True)
    assert again.complete and again.meta["timings"]["resumed_layers"] == 0
    assert same(read_everything(again), read_everything(recorded(model, tokenizer, None)))


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"level": "summary"}, "another level"),
        ({"max_tokens": 600}, "another prompt"),
        ({"revision": "v2"}, "another model"),
        ({"config": CONFIG.replace(cra=0.7)}, "another settings"),
    ],
)
def test_another_recording_does_not_go_on(model, tokenizer, tmp_path, options, words):  # noqa: F811
    stopped(model, tokenizer, tmp_path / "t", "dense run: layer 1")
    before = {path: path.read_bytes() for path in (tmp_path / "t").rglob("*") if path.is_file()}
    config = options.pop("config", CONFIG)
    given = {"level": "explore", "max_tokens": TOKENS} | options
    with pytest.raises(TraceError, match=words):
        record(model, tokenizer, TEXT, config, out=tmp_path / "t", resume=True, **given)
    assert before == {path: path.read_bytes() for path in (tmp_path / "t").rglob("*") if path.is_file()}


def test_nothing_to_go_on_with(model, tokenizer, tmp_path):  # noqa: F811
    with pytest.raises(TraceError, match="no meta.json"):
        recorded(model, tokenizer, "explore", out=tmp_path / "t", resume=True)
    recorded(model, tokenizer, "explore", out=tmp_path / "t")
    with pytest.raises(TraceError, match="complete"):
        recorded(model, tokenizer, "explore", out=tmp_path / "t", resume=True)
