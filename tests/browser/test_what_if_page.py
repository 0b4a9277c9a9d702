"""The what-if page in a real browser: a setting changed by keyboard, the board that follows, its files, the exact run."""

import io
import statistics
import time

import numpy as np
import pytest
from driver import CHROMIUM, MAP, settle, wait_for_target

from sampleattn.trace import Trace

pytestmark = [pytest.mark.browser, pytest.mark.skipif(CHROMIUM is None, reason="no chromium on this machine")]
BOARD = ".root[data-state=ready][data-name^=Density]"


@pytest.fixture
def page(page, url):
    """The page at the target 0.85, as its link opens it."""
    page.goto(f"{url}/what_if?if_cra=0.85")
    page.get_by_text("Target 0.85, joint, per head: about").and_(page.get_by_text("mean of all heads")).wait_for()
    page.locator(BOARD).wait_for()
    settle(page)
    return page


def press(page, key: str, target: str) -> tuple[float, float]:
    """Press a key on the slider; the seconds until the board shows this target, and until the page's sentence is about it."""
    slider = page.get_by_role("slider")
    slider.focus()
    began = time.perf_counter()
    page.keyboard.press(key)
    wait_for_target(page, target)
    drawn = time.perf_counter() - began
    page.get_by_text(f"Target {target}, joint, per head: about").and_(page.get_by_text("mean of all heads")).wait_for()
    return drawn, time.perf_counter() - began


def test_the_board_follows_the_slider(page, url, demo):
    trace = Trace.load(demo)
    page.goto(f"{url}/what_if")
    page.get_by_text("How good is the estimate?").wait_for()
    page.locator(BOARD).wait_for()
    assert page.get_by_text(f"The recorded settings compute {np.nanmean(trace.density):.1%} of the tiles").is_visible()
    assert page.get_by_text("Hatched: estimated").count() == 0
    times = []
    for step in range(1, 11):
        times.append(press(page, "ArrowLeft", f"{(95 - step) / 100:g}"))
        settle(page)
    for name, seconds in zip(("board", "page"), zip(*times, strict=True), strict=True):
        print(f"from a key to the {name}: median {statistics.median(seconds):.2f} s, most {max(seconds):.2f} s of 10")
    page.get_by_text("Hatched: estimated").wait_for()
    settle(page)
    assert "if_cra=0.85" in page.url
    assert page.get_by_role("slider").get_attribute("aria-valuetext") == "0.85"


def test_a_fast_drag_ends_where_the_slider_is_left(page):
    slider = page.get_by_role("slider")
    slider.focus()
    for _ in range(10):
        page.keyboard.press("ArrowRight")
    for _ in range(10):
        page.keyboard.press("ArrowLeft")
    page.get_by_text("Target 0.85, joint, per head: about").wait_for()
    settle(page)
    assert slider.get_attribute("aria-valuetext") == "0.85" and "if_cra=0.85" in page.url


def test_the_files_hold_the_numbers_on_screen(page):
    page.get_by_text("What targets cost and keep").wait_for()
    for button, name in ((0, "values"), (1, "density")):
        page.get_by_role("button", name="Export").nth(button).click()
        with page.expect_download() as download:
            page.get_by_role("button", name="NPZ", exact=True).click()
        data = np.load(io.BytesIO(download.value.path().read_bytes()))
        assert np.isfinite(data[name]).all() and "estimated from 512 sampled rows" in str(data["origin"])
        page.keyboard.press("Escape")


def test_settings_outlive_a_look_at_another_page(page):
    page.get_by_role("link", name="Recall", exact=True).click()
    page.get_by_text("rows keep at least").first.wait_for()
    page.get_by_role("link", name="What-if", exact=True).click()
    page.get_by_text("Target 0.85, joint, per head: about").wait_for()


def test_a_double_click_opens_the_map_of_the_head(page):
    cells = page.locator(BOARD).locator(".scroll canvas")
    cells.dblclick(position={"x": 250, "y": 200})
    page.wait_for_url("**/map?*")
    page.locator(MAP).wait_for()
    page.get_by_role("link", name="What-if", exact=True).click()
    page.get_by_text("Target 0.85, joint, per head: about").wait_for()


def test_a_click_chooses_a_head_for_the_other_pages(page):
    page.locator(BOARD).locator(".scroll canvas").click(position={"x": 100, "y": 60})
    page.wait_for_url("**layer=0**")
    page.get_by_text("Target 0.85, joint, per head: about").wait_for()


def test_a_pick_is_kept_when_another_page_is_opened_at_once(page):
    link = page.get_by_role("link", name="Map", exact=True).bounding_box()
    page.locator(BOARD).locator(".scroll canvas").click(position={"x": 100, "y": 60})
    page.wait_for_timeout(50)
    page.mouse.click(link["x"] + link["width"] / 2, link["y"] + link["height"] / 2)
    page.wait_for_url("**/map?*")
    page.locator(f'{MAP}[data-layer="0"][data-head="0"]').wait_for()
    settle(page)
    page.locator(f'{MAP}[data-layer="0"][data-head="0"]').wait_for()


def test_the_kind_of_a_number_stands_beside_its_sentence(page):
    page.get_by_text("What targets cost and keep").wait_for()
    settle(page)
    for n, menu in enumerate(page.get_by_role("button", name="Export").all()[:2]):
        badge, button = page.locator(".stMarkdownBadge:visible").nth(n).bounding_box(), menu.bounding_box()
        assert badge["height"] < 30 and badge["x"] + badge["width"] < button["x"]
        assert button["y"] < badge["y"] + badge["height"] / 2 < button["y"] + button["height"]


def test_what_the_model_writes_is_below(page):
    page.get_by_text("What the model writes next").wait_for()
    page.get_by_text("the same likeliest token at").wait_for()


def test_run_exactly_runs_here_and_can_be_cancelled(page):
    page.get_by_role("button", name="Run exactly").click()
    page.get_by_text("Running exactly.").wait_for()
    page.get_by_role("button", name="Cancel").click()
    page.get_by_text("Stopping: the layer being computed is finished first.").wait_for()
    page.get_by_text("Cancelled. What was open stays open.").wait_for(timeout=180_000)
    page.get_by_text("Target 0.85, joint, per head: about").wait_for()
