"""What the browser's map is sent: the head and the text once, tiles equal to windows, and nothing for what is no tile."""

import json
import struct

import numpy as np
import pytest
from long_trace import write_long_trace
from synthetic_trace import write_synthetic_trace

from app import map_feed
from app.figures.head_map import Look
from sampleattn import SampleAttentionConfig
from sampleattn.trace import Trace, TraceWriter

TOKENS = 700


@pytest.fixture(scope="module")
def trace(tmp_path_factory):
    folder = tmp_path_factory.mktemp("trace")
    write_synthetic_trace(folder, layers=2, heads=4, tokens=TOKENS, pin_layers=(1,))
    return Trace.load(folder)


def unpacked(buffer: bytes) -> tuple[dict, dict[str, np.ndarray]]:
    """The header and the planes of a packed buffer."""
    (length,) = struct.unpack_from("<I", buffer)
    header = json.loads(buffer[4 : 4 + length])
    planes = {}
    for name, place in header["planes"].items():
        start = 4 + length + place["at"]
        assert start % 8 == 0
        planes[name] = np.frombuffer(buffer, place["dtype"], int(np.prod(place["shape"])), start).reshape(place["shape"])
    return header, planes


def ask(trace, layer, head, asked=None):
    return unpacked(map_feed.message(trace, layer, head, asked, map_feed.USUAL, compact=False, below=0))


def holding(trace, layer, head, tiles=()):
    header, _ = ask(trace, layer, head)
    return {"serial": 7, "holds": {"prompt": header["wanted"]["prompt"], "heads": [header["wanted"]["head"]]},
            "head": header["wanted"]["head"], "tiles": list(tiles)}  # fmt: skip


def square(planes, size) -> np.ndarray:
    """The overview [size, size] whose cells at or below the diagonal were sent."""
    cells = np.zeros((size, size), np.float32)
    cells[np.tri(size, dtype=bool)] = planes["weights"]
    return cells


def test_the_head_comes_first_then_the_text_each_once(trace):
    header, planes = ask(trace, 1, 2)
    assert "text" not in planes and header["wanted"]["length"] == TOKENS
    assert np.array_equal(square(planes, 512), trace.overview(1, 2)) and np.array_equal(planes["recall"], trace.recall(1, 2))
    mask = trace.block_mask(1, 2)
    assert np.array_equal(np.unpackbits(planes["mask"], bitorder="little")[: mask.size].reshape(mask.shape), mask)
    assert [column["block"] for column in header["head"]["columns"]] == sorted(
        trace.columns(1, 2), key=lambda column: -trace.column_mass(1, 2)[column]
    )
    asked = holding(trace, 1, 2)
    then, planes = ask(trace, 1, 2, asked | {"holds": asked["holds"] | {"prompt": ""}})
    assert "head" not in then and planes["text"].tobytes().decode() == trace.text
    again, planes = ask(trace, 1, 2, asked)
    assert "head" not in again and not planes and again["serial"] == 7
    other, planes = ask(trace, 1, 3, holding(trace, 1, 2, [[0, 0, 0]]))
    assert "text" not in planes and other["head"]["head"] == 3 and "tiles" not in other


def missed_of(planes):
    """The missed mass of the tiles, as the browser makes it of their bits."""
    weights = planes["tile_weights"]
    lost = np.unpackbits(planes["tile_lost"], bitorder="little")
    return np.where(lost.reshape(weights.shape), weights, 0)


def test_missed_mass_travels_as_bits_and_in_full_where_cells_lie_in_several_tiles(tmp_path):
    write_long_trace(tmp_path / "t", 2048, needle=(1500, 700))
    trace = Trace.load(tmp_path / "t")
    _, planes = ask(trace, 0, 0, holding(trace, 0, 0, [[0, 11, 5], [0, 11, 4]]))
    for n, (j, dropped) in enumerate(((5, True), (4, False))):
        _, missed = trace.window_planes(0, 0, (1408, 1536), (128 * j, 128 * j + 128))
        assert missed.any() == dropped and np.array_equal(missed_of(planes)[n], missed)
    weights, missed = trace.window_planes(0, 0, (0, 2048), (0, 2048), (2, 2), "sum")
    assert ((missed > 0) & (missed < weights)).any()
    sent = map_feed._missed(weights, missed)
    assert list(sent) == ["tile_missed"] and np.array_equal(sent["tile_missed"], missed)


def test_tiles_are_windows_of_the_map_and_zero_beyond_the_prompt(trace):
    places = [[0, 5, 5], [0, 3, 1], [0, 5, 0]]
    header, planes = ask(trace, 1, 2, holding(trace, 1, 2, places))
    assert header["tiles"]["places"] == places
    for n, (_, i, j) in enumerate(places):
        rows, cols = ((at * 128, min(at * 128 + 128, TOKENS)) for at in (i, j))
        weights, missed = trace.window_planes(1, 2, rows, cols)
        height, width = weights.shape
        assert np.array_equal(planes["tile_weights"][n, :height, :width], weights)
        assert np.array_equal(missed_of(planes)[n, :height, :width], missed)
        assert not planes["tile_weights"][n, height:].any() and not planes["tile_weights"][n, :, width:].any()


def test_cells_of_a_level_start_at_its_multiples(tmp_path):
    write_synthetic_trace(tmp_path / "t", layers=1, heads=2, tokens=1300, pin_layers=(0,))
    trace = Trace.load(tmp_path / "t")
    assert map_feed.coarsest_level(trace) == 1
    header, planes = ask(trace, 0, 1, holding(trace, 0, 1, [[1, 5, 4]]))
    full = trace.window(0, 1, (0, 1300), (0, 1300), (1300, 1300))
    for row in (1280, 1298):
        for col in (1024, 1200):
            cell = planes["tile_weights"][0, row // 2 - 640, col // 2 - 512]
            assert cell == pytest.approx(full[row : row + 2, col : col + 2].max(), rel=1e-5)


@pytest.mark.parametrize(
    "tiles",
    [
        None,
        "0",
        [[0, 0]],
        [[0, 0, 0.5]],
        [[-1, 0, 0]],
        [[9, 0, 0]],
        [[0, 99, 0]],
        [[0, 0, 1]],
        [[0, 1, -1]],
        [[True, 0, 0]],
        [{}],
    ],
)
def test_what_is_no_tile_is_not_computed(trace, tiles):
    asked = holding(trace, 1, 2) | {"tiles": tiles}
    assert "tiles" not in ask(trace, 1, 2, asked)[0]


def test_heads_that_are_not_pinned_have_no_tiles(trace):
    assert "tiles" not in ask(trace, 0, 2, holding(trace, 0, 2, [[0, 0, 0]]))[0]


def test_answers_come_in_time_but_never_empty(trace, monkeypatch):
    monkeypatch.setattr(map_feed, "SECONDS", 0)
    monkeypatch.setattr(map_feed, "WORKERS", 1)
    header, planes = ask(trace, 1, 2, holding(trace, 1, 2, [[0, 0, 0], [0, 1, 0]]))
    assert header["tiles"]["places"] == [[0, 0, 0]] and planes["tile_weights"].shape == (1, 128, 128)


def test_a_head_pinned_meanwhile_is_sent_anew(tmp_path):
    write_synthetic_trace(tmp_path / "t", layers=1, heads=2, tokens=300, pin_layers=())
    before = Trace.load(tmp_path / "t")
    asked = holding(before, 0, 0)
    rng = np.random.default_rng(0)
    q, k = rng.standard_normal((2, 300, 16)).astype(np.float32)
    TraceWriter.reopen(tmp_path / "t").write_pin(0, 0, q, np.full(300, 9, np.float32), k)
    header, planes = ask(Trace.load(tmp_path / "t"), 0, 0, asked)
    assert header["head"]["pinned"] and "text" not in planes


def test_offsets_are_counted_as_javascript_does(tmp_path):
    text = "a😀b数c"
    meta = {"model": {"name": "m", "revision": None, "layers": 1, "heads": 1, "kv_heads": 1, "head_dim": 4, "context": None,
                      "parameters": 1}, "settings": SampleAttentionConfig().to_dict()}  # fmt: skip
    TraceWriter(tmp_path / "t", meta, range(5), [(i, i + 1) for i in range(5)], text)
    planes = map_feed._text(Trace.load(tmp_path / "t"))
    units = text.encode("utf-16-le")
    pieces = [units[2 * a : 2 * b].decode("utf-16-le") for a, b in zip(planes["begins"], planes["ends"], strict=True)]
    assert pieces == list(text)


def test_hostile_states_become_the_usual_one():
    bad = {"view": "1.2", "at": "<b>", "colours": "red", "weights": 1, "kept": None, "lock": "NaN" * 9, "more": "x"}
    assert map_feed.checked_state(bad) == map_feed.USUAL
    good = map_feed.USUAL | {"view": "10.20.300", "at": "5.6", "missed": "on", "lock": "0.5"}
    assert map_feed.checked_state(good) == good


def test_the_window_on_show_is_exported(trace):
    weights, missed, rows, cols = map_feed.window(trace, 1, 2, "600.10.64")
    assert (rows, cols) == ((600, 664), (10, 74))
    for plane, exact in zip((weights, missed), trace.window_planes(1, 2, rows, cols, (64, 64)), strict=True):
        assert np.array_equal(plane, exact)
    weights, missed, rows, cols = map_feed.window(trace, 0, 2, "600.10.64")
    assert missed.shape == weights.shape and rows[1] - rows[0] < 70
    assert rows[0] <= 600 and rows[1] >= 664 and cols[0] <= 10 and cols[1] >= 74
    assert weights.max() <= trace.overview(0, 2).max()
    assert map_feed.window(trace, 1, 2, "99999.99999.99999")[2] == (0, TOKENS)
    weights, missed, *_ = map_feed.window(trace, 1, 2, "")
    assert np.array_equal(weights, trace.overview(1, 2)) and np.array_equal(missed, trace.overview_missed(1, 2))


def test_an_export_looks_as_the_switches_say(trace):
    state = map_feed.USUAL | {"missed": "on", "weights": "off", "kept": "off", "sink": "hide", "lock": "0.5", "colours": "linear"}
    block = trace.config.block_size
    assert map_feed.look_of(trace, 1, 2, state) == Look("max", False, False, True, False, trace.config.sink_blocks * block, 0.5)
    assert map_feed.look_of(trace, 1, 2, map_feed.USUAL) == Look()
    assert map_feed.look_of(trace, 1, 2, map_feed.USUAL | {"lock": "1e999"}).high is None


def test_a_comparison_holds_the_messages_of_both(trace):
    a, b = (trace, 1, 2), (trace, 0, 3)
    header, planes = unpacked(map_feed.comparison((a, b), ("A", "B"), None, map_feed.USUAL, below=0))
    assert header["difference"] and header["titles"] == ["A", "B"]
    for name, (_, layer, head) in (("a", a), ("b", b)):
        part, own = unpacked(planes[name].tobytes())
        assert (part["head"]["layer"], part["head"]["head"]) == (layer, head)
        assert np.array_equal(square(own, 512), trace.overview(layer, head))
    asked = {"a": holding(trace, 1, 2, [[0, 1, 0]]), "b": "hostile"}
    _, planes = unpacked(map_feed.comparison((a, b), ("A", "B"), asked, map_feed.USUAL, below=0))
    part, own = unpacked(planes["a"].tobytes())
    assert part["tiles"]["places"] == [[0, 1, 0]] and "text" not in own


def test_a_difference_is_exact_only_if_both_heads_are_pinned(trace):
    weights, rows, cols = map_feed.difference((trace, 1, 2), (trace, 1, 3), "600.10.64")
    exact = [trace.window(1, head, (600, 664), (10, 74), (64, 64)) for head in (2, 3)]
    assert (rows, cols) == ((600, 664), (10, 74)) and np.array_equal(weights, exact[0] - exact[1])
    weights, rows, cols = map_feed.difference((trace, 1, 2), (trace, 0, 3), "600.10.64")
    assert weights.shape[0] < 64 and rows[0] <= 600 and rows[1] >= 664


def test_maps_of_other_lengths_are_not_subtracted_but_seen_side_by_side(trace, tmp_path):
    write_synthetic_trace(tmp_path / "t", layers=1, heads=2, tokens=TOKENS // 2)
    a, b = (trace, 0, 0), (Trace.load(tmp_path / "t"), 0, 0)
    assert not map_feed.comparable(a, b)
    first, second = map_feed.linked_states(a, b, map_feed.USUAL | {"view": "400.200.100"})
    assert (first["view"], second["view"]) == ("400.200.100", "200.100.50")
    highest = max(float(side.overview(0, 0).max()) for side, *_ in (a, b))
    assert first["lock"] == second["lock"] and float(first["lock"]) == pytest.approx(highest, rel=1e-3)
    assert map_feed.linked_states(a, b, map_feed.USUAL)[1]["view"] == ""


@pytest.mark.parametrize("pool", ["mean", "sum"])
def test_tiles_are_pooled_as_asked(tmp_path, pool):
    write_synthetic_trace(tmp_path / "t", layers=1, heads=2, tokens=1300, pin_layers=(0,))
    trace = Trace.load(tmp_path / "t")
    header, _ = ask(trace, 0, 1)
    assert header["head"]["coarsest"] == {"max": 1, "mean": 3, "sum": 3}
    header, planes = ask(trace, 0, 1, holding(trace, 0, 1, [[3, 0, 0]]) | {"pool": pool})
    assert header["tiles"]["pool"] == pool
    full = trace.window(0, 1, (0, 1300), (0, 1300), (1300, 1300))[640:648, 96:104]
    assert planes["tile_weights"][0, 80, 12] == pytest.approx(getattr(full, pool)(), rel=1e-4)
    assert "tiles" not in ask(trace, 0, 1, holding(trace, 0, 1, [[0, 0, 0]]) | {"pool": "median"})[0]


def test_an_export_is_pooled_as_the_map_is(trace):
    state = map_feed.USUAL | {"pool": "sum"}
    assert map_feed.pool_of(trace, 1, 2, state) == "sum" and map_feed.pool_of(trace, 0, 2, state) == "max"
    weights, _, rows, cols = map_feed.window(trace, 1, 2, "", pool="sum")
    assert (rows, cols) == ((0, TOKENS), (0, TOKENS)) and weights.sum() == pytest.approx(TOKENS, rel=1e-3)
