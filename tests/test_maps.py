"""Every window of a map equals the float64 softmax on that window, pooled."""

import pytest
import torch
from dense import cells, dense_attention, pooled
from hypothesis import given, settings
from hypothesis import strategies as st

from sampleattn.maps import attention_map
from sampleattn.reference import row_logsumexp


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
    mask = torch.rand(1, 4, -(-nq // 16), -(-nk // 16), generator=generator) < 0.5
    _, weights = dense_attention(q, k, k)
    window = *_, shape = (r0, r1), (c0, c1), (height, width)
    drawn, missed = attention_map(q, k, *window, reduce, block_mask=mask, block_size=16)
    expected = pooled(weights[..., r0:r1, c0:c1], *shape, reduce)
    torch.testing.assert_close(drawn.double(), expected, rtol=1e-5, atol=1e-6)
    dropped = (weights * ~cells(mask, nq, nk, 16))[..., r0:r1, c0:c1]
    torch.testing.assert_close(missed.double(), pooled(dropped, *shape, reduce), rtol=1e-5, atol=1e-6)


def test_what_is_kept_and_what_is_missed_add_up_to_the_weights():
    q, k = torch.randn(1, 2, 300, 8), torch.randn(1, 1, 400, 8)
    mask = torch.rand(1, 2, 3, 4) < 0.5
    weights, missed = attention_map(q, k, (10, 290), (30, 391), (9, 10), "sum", block_mask=mask)
    _, kept = attention_map(q, k, (10, 290), (30, 391), (9, 10), "sum", block_mask=~mask)
    torch.testing.assert_close(kept + missed, weights)
    _, nothing = attention_map(q, k, block_mask=torch.ones_like(mask), shape=(9, 10))
    assert (nothing == 0).all()


@pytest.mark.parametrize("reduce", ["max", "mean", "sum"])
def test_a_window_of_the_map_is_the_map_of_the_window(reduce):
    q, k = torch.randn(1, 2, 256, 8), torch.randn(1, 1, 256, 8)
    whole = attention_map(q, k, shape=(32, 64), reduce=reduce)
    window = attention_map(q, k, (64, 192), (128, 256), (16, 32), reduce)
    torch.testing.assert_close(window, whole[..., 8:24, 32:64])


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float32, torch.float64])
def test_a_given_logsumexp_is_the_one_that_is_computed(dtype):
    q, k = torch.randn(2, 4, 100, 8).to(dtype), torch.randn(2, 2, 150, 8).to(dtype)
    lse = row_logsumexp(q, k)
    window = dict(rows=(20, 90), cols=(5, 140), shape=(7, 5))
    expected = attention_map(q, k, **window)
    assert expected.dtype == torch.float32
    torch.testing.assert_close(attention_map(q, k, **window, lse=lse), expected)
    torch.testing.assert_close(attention_map(q, k, **window, lse=lse[..., 20:90]), expected)


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
        (dict(shape=(5, 5), lse=torch.zeros(1, 2, 31)), "lse"),
        (dict(shape=(5, 5), block_mask=torch.ones(1, 2, 2, 1, dtype=torch.bool)), "block_mask"),
        (dict(shape=(5, 5), backend="cuda"), "backend"),
    ],
)
def test_windows_that_do_not_exist_are_refused(arguments, said):
    q, k = torch.randn(1, 2, 30, 8), torch.randn(1, 1, 30, 8)
    with pytest.raises(ValueError, match=said):
        attention_map(q, k, **arguments)
