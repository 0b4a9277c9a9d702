"""Compare in a real browser: two heads with one window and one scale, their difference, and the state in the address."""

import pytest
from driver import BOARD, CHROMIUM, cell_of, settle
from synthetic_trace import write_synthetic_trace

from sampleattn.trace import Trace

pytestmark = [pytest.mark.browser, pytest.mark.skipif(CHROMIUM is None, reason="no chromium on this machine")]


@pytest.fixture(scope="module")
def trace(tmp_path_factory):
    folder = tmp_path_factory.mktemp("compare")
    write_synthetic_trace(folder / "trace", layers=2, heads=4, tokens=1024)
    return Trace.load(folder / "trace")


@pytest.fixture(scope="module")
def start_trace(trace, tmp_path_factory):
    return trace.save(tmp_path_factory.mktemp("shown") / "demo.zip")


def view(name: str, **facts) -> str:
    wanted = "".join(f'[data-{key}="{value}"]' for key, value in facts.items())
    return f'.view[data-name="{name}"][data-state="ready"]{wanted}'


def facts(page, name: str) -> dict:
    return page.locator(view(name)).evaluate("element => ({...element.dataset})")


def show(page, address: str) -> None:
    page.goto(address)
    for name in ("a", "b", "difference"):
        page.locator(view(name)).wait_for()
    settle(page)


def point(page, name: str, part: tuple[float, float]) -> None:
    """Move the mouse to a part (down, right) of a map's side."""
    box = page.locator(f"{view(name)} .stage").bounding_box()
    (left, top), side = map(int, facts(page, name)["corner"].split(",")), int(facts(page, name)["side"])
    page.mouse.move(box["x"] + left + part[1] * side, box["y"] + top + part[0] * side)


def test_shift_and_a_click_on_the_board_compares(page, url):
    page.goto(f"{url}/heads?layer=1&head=1")
    page.locator(BOARD).wait_for()
    settle(page)
    page.keyboard.down("Shift")
    page.mouse.click(*cell_of(page, 0, 3))
    page.keyboard.up("Shift")
    page.wait_for_url("**/compare?*")
    page.locator(view("a", layer=1, head=1)).wait_for()
    page.locator(view("b", layer=0, head=3)).wait_for()


def test_the_maps_share_window_crosshair_and_scale(page, url, trace):
    show(page, f"{url}/compare?layer=1&head=0&layer_b=1&head_b=1")
    first, second = facts(page, "a"), facts(page, "b")
    assert first["high"] == second["high"]
    assert float(first["high"]) == pytest.approx(max(trace.overview(1, head).max() for head in (0, 1)), rel=1e-3)
    point(page, "b", (0.75, 0.25))
    page.mouse.wheel(0, -400)
    page.locator(f'{view("a")}[data-view="{facts(page, "b")["view"]}"]').wait_for()
    zoomed = facts(page, "a")["view"]
    assert zoomed != "0,0,1024" and facts(page, "difference")["view"] == zoomed == facts(page, "b")["view"]
    point(page, "difference", (0.5, 0.5))
    page.locator(f"{view('a')}[data-weight]").wait_for()
    a, b, minus = (facts(page, name) for name in ("a", "b", "difference"))
    assert a["query"] == b["query"] and a["key"] == b["key"]
    assert float(minus["weight"]) == pytest.approx(float(a["weight"]) - float(b["weight"]), abs=1e-6)


def test_pinned_heads_are_subtracted_exactly(page, url, trace):
    show(page, f"{url}/compare?layer=0&head=0&layer_b=0&head_b=1&view=600.400.32&at=610.420")
    for name in ("a", "b"):
        page.locator(f'{view(name)}[data-pooled="1"]').wait_for()
    exact = [trace.window(0, head, (610, 611), (420, 421), (1, 1))[0, 0] for head in (0, 1)]
    assert [float(facts(page, name)["weight"]) for name in ("a", "b")] == pytest.approx(exact, rel=1e-3)
    assert float(facts(page, "difference")["weight"]) == pytest.approx(exact[0] - exact[1], abs=1e-4)
    said = page.locator(f"{view('difference')} .readout").inner_text()
    assert "A − B" in said and "exact" in said


def test_the_window_is_in_the_address_and_the_keyboard_moves_all(page, url, chromium):
    show(page, f"{url}/compare?layer=1&head=0&layer_b=1&head_b=2")
    page.locator(f"{view('b')} .stage").focus()
    page.keyboard.press("+")
    page.wait_for_function("location.search.includes('view=')")
    zoomed = facts(page, "b")["view"]
    other = chromium.new_context(viewport={"width": 1280, "height": 800}).new_page()
    other.goto(page.url)
    for name in ("a", "b", "difference"):
        other.locator(f'{view(name)}[data-view="{zoomed}"]').wait_for()
    other.context.close()
    page.keyboard.press("Escape")
    page.locator(f'{view("a")}[data-view="0,0,1024"]').wait_for()


def test_another_head_of_b_keeps_the_window(page, url):
    show(page, f"{url}/compare?layer=1&head=0&layer_b=1&head_b=2&view=512.0.256")
    page.get_by_role("combobox").nth(3).click()
    page.get_by_role("option", name="3", exact=True).click()
    page.locator(view("b", layer=1, head=3, view="512,0,256")).wait_for()
    assert facts(page, "a")["view"] == "512,0,256"
    page.get_by_text("Missed mass", exact=True).click()
    page.wait_for_function("location.search.includes('missed=on')")


def test_another_trace_for_b_shows_the_same_part_of_it(page, url, chromium, tmp_path):
    write_synthetic_trace(tmp_path / "t", layers=1, heads=2, kv_heads=1, tokens=512, title="A shorter prompt")
    file = Trace.load(tmp_path / "t").save(tmp_path / "short.zip")
    show(page, f"{url}/compare?layer=1&head=0&view=512.256.256")
    page.get_by_role("button", name="Another trace for B").click()
    page.locator("input[type=file]").first.set_input_files(str(file))
    page.get_by_role("dialog").get_by_test_id("stBaseButton-primary").click()
    page.get_by_text("A shorter prompt, 512 tokens").wait_for()
    page.locator(view("b", layer=0, view="256,128,128")).wait_for()
    page.locator(view("a", layer=1, view="512,256,256")).wait_for()
    assert not page.locator('.view[data-name="difference"]').is_visible()
    settle(page)
    assert [page.get_by_label(f"{name} of B").input_value() for name in ("Layer", "Head")] == ["0", "1"]
    assert "trace_b=" in page.url
    other = chromium.new_context(viewport={"width": 1280, "height": 800}).new_page()
    other.goto(page.url)
    other.locator(view("b", layer=0, view="256,128,128")).wait_for()
    other.context.close()
    page.get_by_role("button", name="The same trace").click()
    page.locator(view("difference", view="512,256,256")).wait_for()
