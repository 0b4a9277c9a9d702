"""What the browser tests share: a Chromium for each file, and the demo."""

import pytest
from driver import ROOT, browser


@pytest.fixture(scope="module")
def chromium():
    with browser() as opened:
        yield opened


@pytest.fixture(scope="session")
def demo():
    """The trace of the start screen."""
    return ROOT / "data" / "traces" / "demo.zip"
