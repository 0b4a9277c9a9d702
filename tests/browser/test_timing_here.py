"""Timing on this machine in a real browser: progress and Cancel, other pages meanwhile, and the result that stays."""

import re

import pytest
from driver import CHROMIUM, settle, tab
from playwright.sync_api import expect
from synthetic_trace import write_synthetic_trace

from sampleattn.trace import Trace

pytestmark = [pytest.mark.browser, pytest.mark.skipif(CHROMIUM is None, reason="no chromium on this machine")]


@pytest.fixture(scope="module")
def start_trace(tmp_path_factory):
    folder = tmp_path_factory.mktemp("speed")
    write_synthetic_trace(folder / "trace", layers=2, heads=4, tokens=640)
    return Trace.load(folder / "trace").save(folder / "demo.zip")


@pytest.fixture(scope="module")
def page(chromium, url):
    """One tab for all tests of this file, which follow each other."""
    with tab(chromium) as page:
        page.set_default_timeout(60_000)
        page.goto(f"{url}/speed?time_length=1024")
        settle(page)
        yield page


def test_a_timing_shows_progress_lets_other_pages_be_seen_and_stays(page):
    page.get_by_role("button", name="Time it here").click()
    expect(page.get_by_test_id("stProgress")).to_be_visible()
    page.get_by_role("link", name="Recall").click()
    expect(page.get_by_text(re.compile("layer 0|Layer 0|row", re.I)).first).to_be_visible()
    page.get_by_role("link", name="Speed").click()
    expect(page.get_by_text("Timed here")).to_be_visible(timeout=180_000)
    expect(page.get_by_text(re.compile("than PyTorch SDPA dense at 1K tokens")).first).to_be_visible()
    page.get_by_role("link", name="Recall").click()
    page.get_by_role("link", name="Speed").click()
    expect(page.get_by_text("Timed here")).to_be_visible()
    page.get_by_text("Recorded on a GPU").click()
    expect(page.get_by_text(re.compile("than cuDNN dense at")).first).to_be_visible()


def test_charts_have_their_sentence_as_alternative_text(page):
    settle(page)
    charts = page.get_by_test_id("stPlotlyChart").all()
    labels = [chart.get_attribute("aria-label") for chart in charts]
    assert len(labels) >= 3 and all(page.get_by_text(label).count() for label in labels)


def test_a_timing_can_be_cancelled(page):
    page.get_by_role("button", name="Time it here").click()
    page.get_by_role("button", name="Cancel").click()
    expect(page.get_by_test_id("stProgress")).to_have_count(0, timeout=60_000)
