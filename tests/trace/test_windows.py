"""Exact windows of a map: beside a float64 softmax, at 128K tokens, and beside the overview."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from long_trace import write_long_trace
from safetensors.numpy import load_file
from synthetic_trace import write_synthetic_trace

from sampleattn.trace import Trace, TraceError
from sampleattn.windows import attention_window

TOKENS = 300


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
