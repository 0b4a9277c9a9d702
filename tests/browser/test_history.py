"""The browser's Back button: one press undoes one act, on a page and between pages."""

import pytest
from driver import BOARD, CHROMIUM, MAP, cell_of, settle, wait_for_map
from synthetic_trace import write_synthetic_trace

pytestmark = [pytest.mark.browser, pytest.mark.skipif(CHROMIUM is None, reason="no chromium on this machine")]


@pytest.fixture(scope="module")
def start_trace(tmp_path_factory):
    folder = tmp_path_factory.mktemp("trace") / "trace"
    write_synthetic_trace(folder, layers=4, heads=6, tokens=1024)
    return folder


def entries(page) -> int:
    """Entries of the tab's history, after all answers to the last act have come."""
    settle(page)
    page.wait_for_timeout(400)
    return page.evaluate("history.length")


def test_one_press_leads_from_map_back_to_the_head_on_the_board(page, url):
    page.goto(f"{url}/heads")
    page.locator(BOARD).wait_for()
    before = entries(page)
    page.mouse.click(*cell_of(page, 1, 2))
    wait_for_map(page, layer=1, head=2)
    assert entries(page) == before + 1
    page.keyboard.press("Enter")
    page.wait_for_function("location.pathname === '/map'")
    wait_for_map(page, layer=1, head=2)
    assert entries(page) == before + 2
    page.go_back()
    page.locator(BOARD).wait_for()
    wait_for_map(page, layer=1, head=2)
    page.go_back()
    page.locator(f"{BOARD}:not([data-selected='1,2'])").wait_for()
    assert page.evaluate("location.pathname") == "/heads"


def test_back_and_forward_go_through_the_heads_picked(page, url):
    page.goto(f"{url}/heads?layer=0&head=1")
    page.locator(BOARD).wait_for()
    before, places = entries(page), ((0, 1), (1, 2), (3, 5))
    for n, (layer, head) in enumerate(places[1:], 1):
        page.mouse.click(*cell_of(page, layer, head))
        wait_for_map(page, layer=layer, head=head)
        assert entries(page) == before + n
    for go, (layer, head) in ((page.go_back, places[1]), (page.go_back, places[0]), (page.go_forward, places[1])):
        go()
        page.locator(f'{BOARD}[data-selected="{layer},{head}"]').wait_for()
        wait_for_map(page, layer=layer, head=head)
        settle(page)
        assert [page.get_by_role("combobox").nth(n).input_value() for n in range(2)] == [str(layer), str(head)]
    assert page.evaluate("history.length") == before + 2


def test_a_head_is_kept_while_a_page_without_heads_is_shown(page, url):
    page.goto(f"{url}/map?layer=1&head=2")
    wait_for_map(page, layer=1, head=2)
    page.get_by_role("link", name="Output").click()
    page.get_by_role("heading", name="Does the model still say the same?").wait_for()
    settle(page)
    assert page.get_by_role("combobox").count() == 0
    page.get_by_role("link", name="Map").click()
    wait_for_map(page, layer=1, head=2)


def test_a_turn_of_the_wheel_a_walk_with_the_keys_and_a_double_click_are_one_act_each(page, url):
    page.goto(f"{url}/map?layer=0&head=0")
    page.locator(MAP).wait_for()
    before = entries(page)
    box = page.locator(".stage").bounding_box()
    x, y = box["x"] + 200, box["y"] + 400
    page.mouse.move(x, y)
    for _ in range(4):
        page.mouse.wheel(0, -100)
        page.wait_for_timeout(200)
    assert entries(page) == before + 1
    view = page.locator(MAP).get_attribute("data-view")
    page.mouse.click(x, y)
    assert entries(page) == before + 2
    for key in ("ArrowLeft", "ArrowUp", "ArrowLeft"):
        page.keyboard.press(key)
        page.wait_for_timeout(700)
    assert entries(page) == before + 3
    page.mouse.dblclick(x, y)
    page.wait_for_function("!location.search.includes('view=')")
    assert entries(page) == before + 4
    page.go_back()
    wait_for_map(page, view=view)
    page.wait_for_function("location.search.includes('at=')")
    for _ in range(2):
        page.go_back()
    page.wait_for_function("!location.search.includes('at=')")
    assert page.locator(MAP).get_attribute("data-view") == view
    page.go_back()
    wait_for_map(page, view="0,0,1024")
