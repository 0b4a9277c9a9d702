"""The whole way in a real browser: the demo picture, a head clicked, a file exported, an own text recorded, two tabs apart."""

import re
import time

import pytest
from driver import BOARD, CHROMIUM, MAP, ROOT, cell_of, settle
from synthetic_trace import write_synthetic_trace

from sampleattn.trace import Trace

pytestmark = [pytest.mark.browser, pytest.mark.skipif(CHROMIUM is None, reason="no chromium on this machine")]
TEXT = "\n".join(f"def function_{i}(value):\n    return value * {i} + function_{i // 2}(value)\n" for i in range(64))


def facts(page) -> dict:
    return page.locator(MAP).first.evaluate("element => ({...element.dataset})")


def test_demo_picture_is_seen_and_read_with_mouse_and_keys(page, url, demo):
    trace = Trace.load(demo)
    page.goto(url)
    page.locator(MAP).wait_for()
    seen = facts(page)
    layer, head = int(seen["layer"]), int(seen["head"])
    assert int(seen["keptTiles"]) == trace.block_mask(layer, head).sum()
    for words in ("Tiles computed", "Worst row's recall", "Speed-up"):
        assert page.get_by_text(words, exact=True).is_visible()
    stage = page.locator(".stage")
    stage.focus()
    for _ in range(3):
        page.keyboard.press("Shift+ArrowDown")
    page.keyboard.press("ArrowLeft")
    seen = facts(page)
    row, column = map(int, seen["cell"].split(","))
    (first, last_key), (first_query, last) = (map(int, seen[name].split("-")) for name in ("key", "query"))
    assert float(seen["weight"]) == pytest.approx(float(trace.overview(layer, head)[row, column]))
    kept = bool(trace.block_mask(layer, head)[(first_query + last + 1) // 256, (first + last_key + 1) // 256])
    assert seen["tile"] == ("future" if first > last else "kept" if kept else "dropped")
    box = stage.bounding_box()
    page.mouse.move(box["x"] + 90, box["y"] + box["height"] * 0.6)
    assert "Query" in page.locator(".readout").inner_text()
    page.mouse.down()
    page.mouse.move(box["x"] + 90, box["y"] + box["height"] + 60, steps=3)
    page.mouse.up()
    assert "Point at a cell" in page.locator(".readout").inner_text(), "a drag out of the map pins nothing"


def test_a_head_clicked_shows_its_map_and_the_link_shows_it_again(page, url, chromium):
    page.goto(f"{url}/heads")
    page.locator(BOARD).wait_for()
    page.mouse.click(*cell_of(page, 2, 2))
    began = time.perf_counter()
    page.locator(f'{MAP}[data-layer="2"][data-head="2"]').wait_for()
    print(f"the clicked head on screen after {time.perf_counter() - began:.2f} s")
    page.get_by_role("link", name="Map", exact=True).click()
    page.get_by_text("Layer 2, head 2").first.wait_for()
    settle(page)
    page.locator(f'{MAP}[data-layer="2"][data-head="2"]').wait_for()
    page.get_by_role("combobox").nth(1).click()
    began = time.perf_counter()
    page.get_by_role("option", name="3", exact=True).click()
    page.locator(f'{MAP}[data-layer="2"][data-head="3"]').wait_for()
    print(f"another head on screen after {time.perf_counter() - began:.2f} s")
    other = chromium.new_context().new_page()
    other.goto(page.url)
    other.locator(f'{MAP}[data-layer="2"][data-head="3"]').wait_for()
    other.context.close()


def test_a_bad_trace_is_refused_and_what_was_open_stays(page, url, demo):
    page.goto(url)
    page.locator(MAP).wait_for()
    before = facts(page)
    page.get_by_role("button", name="Open a trace").click()
    page.locator("[data-testid=stFileUploaderDropzoneInput], input[type=file]").first.set_input_files(
        {"name": "bad.zip", "mimeType": "application/zip", "buffer": demo.read_bytes()[:9000]}
    )
    page.get_by_role("dialog").get_by_test_id("stBaseButton-primary").click()
    page.get_by_role("dialog").get_by_test_id("stAlert").wait_for()
    assert facts(page) == before
    page.get_by_role("button", name="Close").click()
    assert page.get_by_text("demo").first.is_visible()


def test_another_trace_starts_at_a_head_of_its_own(page, url, tmp_path):
    write_synthetic_trace(tmp_path / "t", layers=2, heads=4, tokens=640, title="Another prompt")
    page.goto(f"{url}/?layer=5&head=5")
    page.locator(f'{MAP}[data-layer="5"]').wait_for()
    page.get_by_role("button", name="Open a trace").click()
    place = page.get_by_label("or a trace folder")
    place.fill(str(tmp_path / "t"))
    place.press("Tab")
    settle(page)
    page.get_by_role("dialog").get_by_test_id("stBaseButton-primary").click()
    page.get_by_text("Another prompt").wait_for()
    page.locator(f'{MAP}[data-tokens="640"]').wait_for()
    settle(page)
    seen = facts(page)
    assert [page.get_by_role("combobox").nth(n).input_value() for n in range(2)] == [seen["layer"], seen["head"]]


def test_two_tabs_keep_their_settings_apart(chromium, url):
    tabs = [chromium.new_context().new_page() for _ in range(2)]
    for tab, layer in zip(tabs, (0, 1), strict=True):
        tab.goto(f"{url}/map?layer={layer}&colours={'log' if layer else 'linear'}")
        tab.locator(f'{MAP}[data-layer="{layer}"]').wait_for()
    tabs[0].get_by_role("combobox").nth(1).click()
    tabs[0].get_by_role("option", name="1", exact=True).click()
    tabs[0].locator(f'{MAP}[data-layer="0"][data-head="1"]').wait_for()
    tabs[1].reload()
    tabs[1].locator(MAP).wait_for()
    assert (facts(tabs[0])["layer"], facts(tabs[0])["scale"]) == ("0", "linear")
    assert (facts(tabs[1])["layer"], facts(tabs[1])["scale"]) == ("1", "log")
    for tab in tabs:
        tab.context.close()


@pytest.mark.parametrize("width, height", [(1280, 800), (2560, 1440)])
def test_nothing_is_cut_off(page, url, width, height):
    page.set_viewport_size({"width": width, "height": height})
    for name in ("", "text", "heads", "map", "compare", "recall", "what_if", "speed", "output"):
        page.goto(f"{url}/{name}")
        settle(page)
        assert page.evaluate("document.documentElement.scrollWidth") <= width, name
        assert page.get_by_test_id("stException").count() == 0, name
        if name in ("", "map"):
            page.locator(MAP).wait_for()
            settle(page)
            assert page.evaluate("document.querySelector('[data-testid=stMain]').scrollHeight") <= height, name


@pytest.mark.skipif(not (ROOT / "data" / "model" / "config.json").is_file(), reason="the bundled model is not in data/model")
def test_own_text_is_recorded_cancelled_and_shown(page, url):
    page.goto(f"{url}/text?dense_below=0&cra=0.9")
    page.get_by_label("or type or paste").fill(TEXT)
    page.keyboard.press("Control+Enter")
    page.get_by_text("tokens of a context of").wait_for()
    page.get_by_role("button", name="Run").click()
    page.get_by_role("button", name="Cancel").click()
    page.get_by_text("Cancelled").wait_for(timeout=90_000)
    page.get_by_role("button", name=re.compile("Go on|Start again")).click()
    page.get_by_role("button", name="Cancel").wait_for()
    page.get_by_role("link", name="Map").click()
    page.locator(MAP).wait_for()
    page.get_by_role("link", name="Use my text").click()
    page.get_by_text("Recorded in").wait_for(timeout=240_000)
    page.locator(MAP).wait_for()
    assert page.get_by_text("typed text").first.is_visible() and "trace=" in page.url
    page.reload()
    page.locator(MAP).wait_for()
    assert page.get_by_text("typed text").first.is_visible() and page.get_by_text("target 0.9").first.is_visible()
