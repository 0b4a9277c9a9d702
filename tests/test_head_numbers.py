"""The numbers on the board of heads: where they come from, which heads hold, the order of the list, and the search."""

import numpy as np
import pytest
from synthetic_trace import write_synthetic_trace

from app import head_numbers
from app.head_numbers import BY_NAME, NUMBERS, ORDERS
from sampleattn.summary import column_share, sparse_seconds
from sampleattn.trace import Trace


@pytest.fixture(scope="module")
def trace(tmp_path_factory):
    folder = tmp_path_factory.mktemp("trace")
    write_synthetic_trace(folder, layers=3, heads=6, tokens=1024, pin_layers=(), stop_after=2)
    return Trace.load(folder)


def test_every_number_is_of_every_head_and_unknown_where_not_recorded(trace):
    for number in NUMBERS:
        values = number.values(trace)
        assert values.shape == (3, 6) and np.isfinite(values[:2]).all() and np.isnan(values[2]).all(), number.name
        low, high = number.range(values)
        assert low <= np.nanmin(values) and np.nanmax(values) <= high


def test_99_in_100_rows_reach_the_recall_shown_and_no_more(trace):
    shown = BY_NAME["Recall of 99% of rows"].values(trace)
    for layer, head in np.ndindex(2, 6):
        recall = trace.recall(layer, head)
        assert (recall >= shown[layer, head]).mean() >= 0.99
        assert shown[layer, head] == recall.max() or (recall > shown[layer, head]).mean() < 0.99


def test_the_share_in_columns_tells_columns_from_slashes(trace):
    """Head h of layer 0 has the pattern KINDS[h]: 2 a column, 3 a slash."""
    share = column_share(trace)
    assert share[0, 2] > 0.6 and share[0, 3] < 0.4
    columns = trace.column_mass(0, 2)[trace.columns(0, 2)].sum()
    slashes = trace.slash_mass(0, 2)[trace.slashes(0, 2)].sum()
    assert share[0, 2] == pytest.approx(columns / (columns + slashes))


def test_seconds_are_those_of_the_sparse_stages(trace):
    assert sparse_seconds(trace)[:2] == pytest.approx([0.006, 0.01])


def test_heads_hold_on_the_side_that_is_not_hard():
    values = np.array([[0.1, 0.5, np.nan]])
    assert BY_NAME["CRA"].holding(values, 0.5).tolist() == [[False, True, False]]
    assert BY_NAME["Density"].holding(values, 0.1).tolist() == [[True, False, False]]
    assert not BY_NAME["Columns or slashes"].holding(values, 0).any()


def test_the_list_begins_with_the_hardest():
    values = np.array([[0.3, 0.9], [np.nan, 0.5]])
    assert head_numbers.ordered(BY_NAME["CRA"], values, values, "Hardest") == [(0, 0), (1, 1), (0, 1)]
    assert head_numbers.ordered(BY_NAME["Density"], values, values, "Hardest") == [(0, 1), (1, 1), (0, 0)]
    assert head_numbers.ordered(BY_NAME["Density"], values, values, "Easiest") == [(0, 0), (1, 1), (0, 1)]
    assert head_numbers.ordered(BY_NAME["Density"], values, values, ORDERS[2]) == [(0, 0), (0, 1), (1, 1)]


def test_of_a_number_per_layer_the_densest_head_is_listed():
    seconds, density = np.array([[1.0, 1.0], [2.0, 2.0]]), np.array([[0.1, 0.2], [0.4, 0.3]])
    assert head_numbers.ordered(BY_NAME["Time"], seconds, density, "Hardest") == [(1, 0), (0, 1)]


@pytest.mark.parametrize(
    "wanted, found",
    [
        ("", 18),
        ("layer 1", 6),
        ("1.4", 1),
        ("layer 1 head 4", 1),
        ("Slash", 4),
        ("slash, layer 0", 2),
        ("nothing", 0),
        ("7.7", 0),
    ],
)
def test_the_search_finds_patterns_and_places(trace, wanted, found):
    assert head_numbers.matching(trace, wanted).sum() == found


def test_numbers_in_words():
    assert BY_NAME["Density"].text(0.12345) == "12.3%" and BY_NAME["CRA"].text(0.12345) == "0.123"
    assert BY_NAME["Output error"].text(0.01234) == "0.0123"
    assert BY_NAME["Time"].text(0.0123) == "12.3 ms" and BY_NAME["Time"].text(2.5) == "2.5 s"
    assert all(number.short(float("nan")) == "–" for number in NUMBERS)
