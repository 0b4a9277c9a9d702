"""Every window of a map equals the float64 softmax on that window, pooled."""

import pytest
import torch
from dense import dense_attention
from hypothesis import given, settings
from hypothesis import strategies as st

from sampleattn.maps import attention_map


def pooled(weights, height, width, reduce):
    rows, cols = weights.shape[-2:]
    out = torch.empty(*weights.shape[:-2], height, width, dtype=weights.dtype)
    for y in range(height):
        for x in range(width):
            cell = weights[..., y * rows // height : (y + 1) * rows // height, x * cols // width : (x + 1) * cols // width]
            out[..., y, x] = {"max": cell.amax, "mean": cell.mean, "sum": cell.sum}[reduce]((-2, -1))
    return out


@settings(max_examples=60, deadline=None)
@given(st.data())
def test_any_window_equals_the_softmax(data):
    nk = data.draw(st.integers(1, 200))
    nq = data.draw(st.integers(1, nk))
    r0 = data.draw(st.integers(0, nq - 1))
    r1 = data.draw(st.integers(r0 + 1, nq))
    c0 = data.draw(st.integers(0, nk - 1))
    c1 = data.draw(st.integers(c0 + 1, nk))
    height, width = data.draw(st.integers(1, min(r1 - r0, 9))), data.draw(st.integers(1, min(c1 - c0, 9)))
    reduce = data.draw(st.sampled_from(["max", "mean", "sum"]))
    generator = torch.Generator().manual_seed(data.draw(st.integers(0, 999)))
    q, k = 2 * torch.randn(1, 4, nq, 8, generator=generator), 2 * torch.randn(1, 2, nk, 8, generator=generator)
    _, weights = dense_attention(q, k, k)
    drawn = attention_map(q, k, (r0, r1), (c0, c1), (height, width), reduce)
    torch.testing.assert_close(drawn.double(), pooled(weights[..., r0:r1, c0:c1], height, width, reduce), rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("reduce", ["max", "mean", "sum"])
def test_many_chunks_give_the_same_map(reduce, monkeypatch):
    q, k = torch.randn(1, 2, 300, 8), torch.randn(1, 1, 300, 8)
    whole = attention_map(q, k, shape=(7, 11), reduce=reduce)
    monkeypatch.setattr("sampleattn.maps.CHUNK_BYTES", 3 * 2 * 300 * 4)
    torch.testing.assert_close(attention_map(q, k, shape=(7, 11), reduce=reduce), whole)


@pytest.mark.parametrize(
    "arguments, said",
    [
        (dict(rows=(5, 5)), "non-empty"),
        (dict(cols=(0, 31)), "inside"),
        (dict(rows=(0, 10), shape=(11, 5)), "at most"),
        (dict(shape=(0, 5)), "at least"),
        (dict(shape=(5, 5), reduce="median"), "reduce"),
    ],
)
def test_windows_that_do_not_exist_are_refused(arguments, said):
    q, k = torch.randn(1, 2, 30, 8), torch.randn(1, 1, 30, 8)
    with pytest.raises(ValueError, match=said):
        attention_map(q, k, **arguments)
