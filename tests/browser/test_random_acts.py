"""What no one would think of: random clicks, keys, drags and turns of the wheel on all pages, Back and Forward between them."""

import random

import pytest
from driver import CHROMIUM, settle
from playwright.sync_api import Error

pytestmark = [pytest.mark.browser, pytest.mark.skipif(CHROMIUM is None, reason="no chromium on this machine")]
PAGES = ("Start", "Use my text", "Heads", "Map", "Compare", "Recall", "What-if", "Speed", "Output")
KEYS = ("Tab", "Enter", "Space", "Escape", "+", "-", "ArrowLeft", "ArrowRight", "Home", "End")
CANVAS, BUTTON, CHOICE = ".root[data-state=ready] canvas", "button:visible", "[data-testid=stSelectbox]:visible"


class Hand:
    """Does one thing after the other, chosen by a seed. Each returns whether there was something to do it to."""

    def __init__(self, page, seed: int):
        self.page, self.random = page, random.Random(seed)

    def any_of(self, selector: str):
        found = self.page.locator(selector)
        count = found.count()
        return found.nth(self.random.randrange(count)) if count else None

    def spot(self, selector: str):
        box = found.bounding_box() if (found := self.any_of(selector)) else None
        return box and (box["x"] + self.random.random() * box["width"], box["y"] + self.random.random() * box["height"])

    def open_page(self):
        self.page.get_by_role("link", name=self.random.choice(PAGES), exact=True).first.click()

    def press_a_button(self):
        if button := self.any_of(BUTTON):
            button.click(force=True)
            self.page.keyboard.press("Escape")

    def choose(self):
        if choice := self.any_of(CHOICE):
            choice.click()
            self.page.keyboard.press(self.random.choice(("ArrowDown", "ArrowUp")))
            self.page.keyboard.press("Enter")

    def click(self):
        if spot := self.spot(CANVAS):
            self.random.choice((self.page.mouse.click, self.page.mouse.dblclick))(*spot)

    def drag(self):
        if (start := self.spot(CANVAS)) and (end := self.spot(CANVAS)):
            self.page.mouse.move(*start)
            self.page.mouse.down()
            self.page.mouse.move(end[0] + self.random.choice((0, 300)), end[1], steps=3)
            self.page.mouse.up()

    def turn_the_wheel(self):
        if spot := self.spot(CANVAS):
            self.page.mouse.move(*spot)
            for _ in range(self.random.randrange(1, 5)):
                self.page.mouse.wheel(0, self.random.choice((-120, 120)))

    def press_a_key(self):
        self.page.keyboard.press(self.random.choice(KEYS))

    def go_through_the_history(self):
        self.random.choice((self.page.go_back, self.page.go_forward))()

    def act(self) -> str:
        acts = (
            self.open_page, self.open_page, self.press_a_button, self.choose, self.click, self.click, self.drag,
            self.turn_the_wheel, self.press_a_key, self.go_through_the_history,
        )  # fmt: skip
        act = self.random.choice(acts)
        act()
        return act.__name__


@pytest.fixture
def page(chromium):
    """A tab; at its end nothing may have gone wrong in our scripts. (Streamlit loads its own late, in vain if a page is left.)"""
    page, wrong = chromium.new_page(viewport={"width": 1366, "height": 700}), []
    page.on("pageerror", lambda error: wrong.append(error.stack or str(error)))
    page.set_default_timeout(2000)
    yield page
    page.context.close()
    assert [error for error in wrong if "sampleattention" in error] == [], wrong


@pytest.mark.parametrize("seed", [1, 2])
def test_random_acts_break_nothing(page, url, seed):
    """No error in the map's and the board's scripts, no exception on any page, and at the end it still answers."""
    hand, done = Hand(page, seed), []
    page.goto(url, timeout=30_000)
    settle(page)
    for _ in range(80):
        try:
            done.append(hand.act())
        except Error as missed:  # covered by a dialog, or gone meanwhile
            done.append(f"missed: {missed}")
        if "127.0.0.1" not in page.url:  # back beyond the first page
            page.goto(url, timeout=30_000)
        page.wait_for_timeout(hand.random.choice((0, 50, 150, 600)))
        assert page.get_by_test_id("stException").count() == 0, done[-5:]
    assert sum(name.startswith("missed") for name in done) < 40, done
    page.goto(f"{url}/map", timeout=30_000)
    page.locator(".stage").wait_for(timeout=30_000)
