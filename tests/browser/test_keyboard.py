"""Without a mouse: the Tab key reaches every button, link and field of a page, and what has the focus is seen."""

import pytest
from driver import CHROMIUM, settle
from synthetic_trace import write_synthetic_trace

pytestmark = [pytest.mark.browser, pytest.mark.skipif(CHROMIUM is None, reason="no chromium on this machine")]
PAGES = ("", "heads", "map", "compare", "recall", "output")
MOST = 120
# The element that has the focus, also within a component; whether it was met before; whether it or its parent has a ring.
FOCUS = """() => {
    let element = document.activeElement;
    while (element?.shadowRoot?.activeElement) element = element.shadowRoot.activeElement;
    window.met ??= new Set();
    const again = window.met.has(element);
    window.met.add(element);
    const ringed = (at) => ["outlineStyle", "boxShadow"].some((name) => getComputedStyle(at)[name] !== "none");
    return {again, page: element === document.body, control: element.matches("a, button"),
            seen: [element, element.parentElement].some((at) => at && ringed(at)), text: element.outerHTML.slice(0, 120)};
}"""
# Buttons and links on the page that were not met; one of a group (radio) stands for all of it, its others are for the arrow keys.
LEFT = """() => {
    const left = [], walk = (root) => root.querySelectorAll("*").forEach((element) => {
        if (element.shadowRoot) walk(element.shadowRoot);
        if (element.tabIndex < 0 || !element.matches("a[href], button:not([role=radio]), select, input")) return;
        const {width, height} = element.getBoundingClientRect();
        const shown = width > 1 && height > 1 && element.checkVisibility({checkVisibilityCSS: true, checkOpacity: true});
        if (shown && !element.disabled && !window.met.has(element)) left.push(element.outerHTML.slice(0, 120));
    });
    walk(document);
    return left;
}"""


@pytest.fixture(scope="module")
def start_trace(tmp_path_factory):
    folder = tmp_path_factory.mktemp("trace") / "trace"
    write_synthetic_trace(folder, layers=2, heads=4, tokens=640)
    return folder


@pytest.mark.parametrize("path", PAGES)
def test_tab_reaches_everything_and_the_focus_is_seen(page, url, path):
    page.goto(f"{url}/{path}")
    settle(page)
    page.wait_for_timeout(500)
    for _ in range(MOST):
        page.keyboard.press("Tab")
        found = page.evaluate(FOCUS)
        if found["again"] and not found["page"]:
            break
        assert found["seen"] or not found["control"], found["text"]
    assert page.evaluate(LEFT) == []


def test_a_command_is_copied_without_a_mouse(page, url):
    page.context.grant_permissions(["clipboard-read", "clipboard-write"])
    page.goto(url)
    settle(page)
    page.get_by_role("button", name="How to record on a GPU").focus()
    page.keyboard.press("Enter")
    page.get_by_role("button", name="Copy").focus()
    page.keyboard.press("Enter")
    page.get_by_role("button", name="Copied").wait_for()
    assert page.evaluate("navigator.clipboard.readText()").startswith("python -m sampleattn record --model")
