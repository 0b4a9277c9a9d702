"""Recall, CRA and the oracle against the float64 softmax matrix."""

import pytest
import torch
from dense import cells, dense_attention
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays

from sampleattn.block_mask import Grid
from sampleattn.metrics import cra, oracle_density, oracle_tiles, row_recall, tile_masses


def random_inputs(nq, nk, batch=1, seed=0):
    generator = torch.Generator().manual_seed(seed)
    q = 2 * torch.randn(batch, 4, nq, 16, generator=generator)
    k = 2 * torch.randn(batch, 2, nk, 16, generator=generator)
    mask = torch.rand(batch, 4, -(-nq // 128), -(-nk // 128), generator=generator) < 0.5
    return q, k, mask


@pytest.mark.parametrize("nq, nk", [(1, 1), (127, 127), (129, 129), (300, 700), (640, 640)])
def test_row_recall_is_the_kept_share_of_the_dense_weights(nq, nk):
    q, k, mask = random_inputs(nq, nk, batch=2)
    _, weights = dense_attention(q, k, k)
    expected = (weights * cells(mask, nq, nk)).sum(-1)
    torch.testing.assert_close(row_recall(q, k, mask).double(), expected, rtol=0, atol=2e-6)


def test_row_recall_of_padding_is_one_and_of_the_rest_as_without_it():
    q, k, mask = random_inputs(500, 500, batch=2)
    padding = torch.ones(2, 500, dtype=torch.bool)
    padding[1, :200] = False
    _, weights = dense_attention(q, k, k, padding)
    recall = row_recall(q, k, mask, padding=padding)
    assert (recall[1, :, :200] == 1).all()
    expected = (weights * cells(mask, 500, 500)).sum(-1)
    torch.testing.assert_close(recall[1, :, 200:].double(), expected[1, :, 200:], rtol=0, atol=2e-6)


@pytest.mark.gpu
@pytest.mark.parametrize("nq, nk", [(129, 129), (300, 700), (1000, 1000)])
def test_row_recall_on_a_gpu_is_that_of_the_cpu(nq, nk):
    if not torch.cuda.is_available():
        pytest.skip("needs an NVIDIA GPU")
    q, k, mask = random_inputs(nq, nk, batch=2)
    q, k = q.half(), k.half()
    padding = torch.arange(nk) >= torch.tensor([[0], [40]])
    found = row_recall(q.cuda(), k.cuda(), mask.cuda(), padding=padding.cuda())
    torch.testing.assert_close(found.cpu(), row_recall(q, k, mask, padding=padding), rtol=0, atol=2e-5)


def test_cra_is_the_least_recall():
    assert cra(torch.tensor([[0.9, 0.2, 0.7]])).item() == pytest.approx(0.2)


def test_tile_masses_add_up_to_one_and_cover_all_rows():
    q, k, _ = random_inputs(300, 450)
    parts = list(tile_masses(q, k))
    assert [block for block, _, _ in parts] == [0, 1, 2]
    masses = torch.cat([m for _, m, _ in parts], 2)
    assert masses.shape == (1, 4, 300, 4)
    torch.testing.assert_close(masses.sum(-1), torch.ones(1, 4, 300))


@pytest.mark.parametrize("target", [0.5, 0.9, 0.99])
def test_the_oracle_reaches_the_target_on_every_row(target):
    q, k, _ = random_inputs(700, 700)
    grid = Grid(700, 700, 128, q.device)
    mask = torch.zeros(1, 4, 6, 6, dtype=torch.bool)
    for block, masses, _ in tile_masses(q, k):
        mask[:, :, block] = oracle_tiles(masses, target)
    assert row_recall(q, k, mask).min() >= target - 1e-5
    torch.testing.assert_close(oracle_density(q, k, target), grid.density(mask))


@settings(max_examples=60, deadline=None)
@given(arrays("float64", (3, 5), elements=st.floats(0.01, 1)), st.floats(0.2, 1.0))
def test_the_oracle_is_never_worse_than_taking_the_greatest_tiles_one_row_needs(raw, target):
    masses = torch.from_numpy(raw / raw.sum(-1, keepdims=True))
    kept = oracle_tiles(masses, target)
    assert ((masses * kept).sum(-1) >= target - 1e-5).all()
    needed = max(int((row.sort(descending=True).values.cumsum(0) < target - 1e-6).sum()) + 1 for row in masses)
    assert kept.sum() >= needed


def test_a_mask_that_does_not_fit_is_refused():
    q, k, mask = random_inputs(300, 300)
    with pytest.raises(ValueError, match="block_mask"):
        row_recall(q, k, mask[..., :-1])
    with pytest.raises(TypeError, match="bool"):
        row_recall(q, k, mask.float())
