"""What the browser tests share: a Chromium and an app for each file, and a tab for each test."""

import pytest
from driver import ROOT, app, browser, tab


@pytest.fixture(scope="module")
def chromium():
    with browser() as opened:
        yield opened


@pytest.fixture(scope="session")
def demo():
    """The trace of the start screen."""
    return ROOT / "data" / "traces" / "demo.zip"


@pytest.fixture(scope="module")
def start_trace(demo):
    """The path of the trace that the app starts with; files that need another one have a fixture of this name."""
    return demo


@pytest.fixture(scope="module")
def url(tmp_path_factory, start_trace):
    """The app's address; its working directory is not the repository."""
    with app(tmp_path_factory.mktemp("elsewhere"), start_trace) as address:
        yield address


@pytest.fixture
def page(chromium):
    """See `driver.tab`."""
    with tab(chromium) as opened:
        yield opened
