"""Which rows are sampled, and the grid of tiles."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from sampleattn import SampleAttentionConfig
from sampleattn.block_mask import Grid, key_range
from sampleattn.joint import _count_clear, tiles_added
from sampleattn.sampling import sampled_rows

CPU = torch.device("cpu")


@settings(max_examples=200, deadline=None)
@given(
    st.integers(1, 5000),
    st.integers(0, 300),
    st.sampled_from(["spread", "tail"]),
    st.floats(0.001, 1),
    st.one_of(st.none(), st.integers(1, 60)),
)
def test_rows_exist_ascend_and_do_not_repeat(nq, more_keys, sampling, ratio, segments):
    config = SampleAttentionConfig(sampling=sampling, sample_ratio=ratio, segments=segments)
    grid = Grid(nq, nq + more_keys, 128, CPU)
    rows = sampled_rows(grid, config)
    taken = rows[rows >= 0]
    assert len(taken) > 0 and taken.max() < nq
    assert (taken.diff() > 0).all()
    assert len(taken) <= config.max_sampled_rows + 2 * config.segment_count(grid.nq)
    assert rows.shape[1] % config.segment_count(grid.nq) == 0


def test_spread_rows_are_evenly_far_apart():
    rows = sampled_rows(Grid(16_384, 16_384, 128, CPU), SampleAttentionConfig(sample_ratio=1 / 32, segments=1))[0]
    assert len(rows) == 512 and (rows.diff() == 32).all()


def test_tail_rows_are_the_last_of_their_segments():
    config = SampleAttentionConfig(sampling="tail", sample_ratio=1 / 8)
    rows = sampled_rows(Grid(4096, 4096, 128, CPU), config)[0].view(4, 128)
    assert rows[:, 0].tolist() == [896, 1920, 2944, 3968] and rows[:, -1].tolist() == [1023, 2047, 3071, 4095]


def test_padding_is_not_sampled():
    padding = torch.ones(2, 1000, dtype=torch.bool)
    padding[0, :400] = False
    padding[1, 700:] = False
    rows = sampled_rows(Grid(1000, 1000, 128, CPU, key_range(padding)), SampleAttentionConfig())
    assert rows[0].max() >= 900 and rows[0][rows[0] >= 0].min() >= 400
    assert rows[1].max() < 700


@pytest.mark.parametrize("padding", [[0, 0, 1, 1, 1], [1, 1, 1, 0, 0], [1, 1, 1, 1, 1], [0, 0, 0, 0, 0]])
def test_key_range(padding):
    start, end = key_range(torch.tensor([padding]))[0].tolist()
    assert [int(start <= i < end) for i in range(5)] == padding


@settings(max_examples=100, deadline=None)
@given(st.integers(1, 60), st.integers(0, 30), st.integers(1, 8), st.data())
def test_causal_tiles_are_those_with_a_visible_cell(nq, more, block, data):
    nk = nq + more
    start = data.draw(st.integers(0, nk - 1))
    end = data.draw(st.integers(start + 1, nk))
    padding = torch.zeros(1, nk, dtype=torch.bool)
    padding[0, start:end] = True
    grid = Grid(nq, nk, block, CPU, key_range(padding))
    position, key = torch.arange(nq)[:, None] + more, torch.arange(nk)
    visible = (key <= position) & (key >= start) & (key < end) & (position >= start) & (position < end)
    for i in range(grid.query_blocks):
        for j in range(grid.key_blocks):
            tile = visible[i * block : (i + 1) * block, j * block : (j + 1) * block]
            assert grid.causal[0, 0, i, j] == tile.any()


@settings(max_examples=60, deadline=None)
@given(st.integers(1, 12), st.integers(0, 9), st.integers(1, 4), st.integers(0, 3), st.integers(0, 999))
def test_the_price_of_a_piece_is_the_number_of_tiles_it_adds(query_blocks, more, segments, last_blocks, seed):
    block, config = 4, SampleAttentionConfig(last_blocks=last_blocks)
    grid = Grid(query_blocks * block, query_blocks * block + more, block, CPU)
    segments = min(segments, query_blocks)
    generator = torch.Generator().manual_seed(seed)
    columns = torch.rand(1, 1, segments, grid.key_blocks, generator=generator) < 0.3
    slashes = torch.rand(1, 1, segments, grid.slashes, generator=generator) < 0.3
    last = grid.last_rows(config)
    before = (grid.tiles(columns, slashes) | last).sum()
    column_price, slash_price = tiles_added(columns, slashes, grid, config)
    for pieces, price in ((columns, column_price), (slashes, slash_price)):
        for s in range(segments):
            for p in range(pieces.shape[-1]):
                if not pieces[0, 0, s, p]:
                    more_pieces = pieces.clone()
                    more_pieces[0, 0, s, p] = True
                    both = (more_pieces, slashes) if pieces is columns else (columns, more_pieces)
                    assert (grid.tiles(*both) | last).sum() - before == price[0, 0, s, p]


def test_count_clear_of_an_empty_range_is_zero():
    kept = torch.tensor([[[[True, False, False]]]])
    assert _count_clear(kept, torch.tensor([2, 0]), torch.tensor([1, 2])).tolist() == [[[[0, 2]]]]
