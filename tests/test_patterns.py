"""Planted columns and slashes are found at their exact block, and nothing else; labels follow the rules in the docstring."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from synthetic_trace import KINDS, planted_column, planted_slash, planted_weights

from sampleattn.patterns import LABELS, find_patterns, label_head, label_heads, slash_sums

BLOCKS = 24


def planted(columns, slashes, noise, seed, blocks=BLOCKS, strengths=(1.0,)):
    """Tile masses [blocks, blocks] with rows that sum to 1: pieces of the given strengths, and noise of that total."""
    rng = np.random.default_rng(seed)
    i, j = np.indices((blocks, blocks))
    tiles = noise * rng.uniform(0.5, 1.5, (blocks, blocks)) / (i + 1)
    for n, piece in enumerate([j == c for c in columns] + [i - j == s for s in slashes]):
        tiles += piece * strengths[n % len(strengths)] * rng.uniform(0.7, 1.3, (blocks, blocks))
    tiles *= j <= i
    return tiles / tiles.sum(axis=1, keepdims=True)


pieces = st.lists(st.integers(0, BLOCKS - 8), max_size=3, unique=True)


@settings(max_examples=150, deadline=None)
@given(pieces, pieces, st.floats(0.05, 1.0), st.integers(0, 2**31), st.lists(st.floats(0.5, 2.0), min_size=1, max_size=6))
def test_planted_pieces_are_found_and_nothing_else(columns, slashes, noise, seed, strengths):
    found = find_patterns(planted(columns, slashes, noise, seed, strengths=strengths))
    assert found.columns == tuple(sorted(columns))
    assert found.slashes == tuple(sorted(slashes))


@given(st.integers(0, 2**31), st.integers(1, 40))
@settings(max_examples=50, deadline=None)
def test_noise_has_no_pattern(seed, blocks):
    found = find_patterns(planted([], [], 1.0, seed, blocks))
    assert found.columns == found.slashes == ()


def test_masses_count_each_tile_once():
    found = find_patterns(planted([3], [5], 0.01, 0))
    assert 0.95 < found.column_mass + found.slash_mass <= 1 + 1e-9
    assert min(found.column_mass, found.slash_mass) > 0.3


@pytest.mark.parametrize("kind", KINDS)
def test_labels_of_planted_weights(kind):
    tokens, block = 1024, 64
    weights = planted_weights(kind, tokens, seed=1, block=block)
    starts = np.arange(0, tokens, block)
    tiles = np.add.reduceat(np.add.reduceat(weights, starts, axis=0), starts, axis=1) / block
    found = find_patterns(tiles)
    assert label_head(tiles) == kind
    assert (planted_column(tokens, block) in found.columns) == ("column" in kind)
    assert (planted_slash(tokens, block) in found.slashes) == ("slash" in kind)


@given(st.integers(1, 12), st.integers(0, 99))
@settings(max_examples=40, deadline=None)
def test_any_size_gets_a_known_label(blocks, seed):
    labels = label_heads(np.stack([planted([], [], 1.0, seed, blocks), planted([0], [0], 0.1, seed, blocks)]))
    assert set(labels) <= set(LABELS)
    assert blocks >= 8 or set(labels) == {"short"}


def test_sink_and_local_share():
    assert label_head(planted([0], [0], 0.1, 0)) in ("sink", "local", "sink+local")
    assert label_head(planted([0], [], 0.1, 0)) == "sink"
    assert label_head(planted([], [0, 1], 0.1, 0)) == "local"
    assert label_head(planted([], [], 1.0, 0)) == "dense"


def test_a_wide_local_window_is_local():
    assert label_head(planted([], [0, 1, 2, 3, 4], 0.1, 0)) == "local"
    assert label_head(planted([], [0, 1, 2, 9], 0.1, 0)) == "slash"


def test_slash_sums():
    tiles = np.arange(18.0).reshape(2, 3, 3)
    assert slash_sums(tiles)[0].tolist() == [0 + 4 + 8, 3 + 7, 6]
    assert slash_sums(tiles).shape == (2, 3)
