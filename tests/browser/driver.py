"""The real `streamlit run app/main.py` in a process of its own, and a headless Chromium to look at it."""

import contextlib
import os
import shutil
import signal
import socket
import subprocess
import sys
import time
import urllib.request
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
CHROMIUM = shutil.which("chromium") or shutil.which("chromium-browser") or shutil.which("google-chrome")
MAP = ".root[data-state=ready][data-cells]"
LOCAL = ("http://127.0.0.1", "file:", "data:", "blob:")
BOARD = ".root[data-state=ready][data-dimmed]"


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return probe.getsockname()[1]


@contextlib.contextmanager
def app(cwd: Path, demo: Path | None = None, **variables: str):
    """The app's address. Its environment is clean (no PYTHONPATH) but for `variables`, its working directory another one."""
    port = free_port()
    environment = {name: os.environ[name] for name in ("PATH", "LANG", "TMPDIR") if name in os.environ}
    environment |= {"HOME": str(cwd), "HF_HUB_OFFLINE": "1"} | ({"SAMPLEATTN_DEMO": str(demo)} if demo else {}) | variables
    command = [
        sys.executable,
        "-m",
        "streamlit",
        "run",
        str(ROOT / "app" / "main.py"),
        "--server.port",
        str(port),
        "--server.headless",
        "true",
    ]
    with open(cwd / "streamlit.log", "wb") as log:
        process = subprocess.Popen(
            command, cwd=cwd, env=environment, stdout=log, stderr=subprocess.STDOUT, start_new_session=True
        )
    try:
        url = f"http://127.0.0.1:{port}"
        _wait_for(f"{url}/_stcore/health", process, cwd)
        yield url
    finally:
        os.killpg(process.pid, signal.SIGTERM)
        try:
            process.wait(5)
        except subprocess.TimeoutExpired:
            os.killpg(process.pid, signal.SIGKILL)
            process.wait()


def _wait_for(url, process, cwd):
    for _ in range(600):
        with contextlib.suppress(OSError), urllib.request.urlopen(url) as answer:
            if answer.status == 200:
                return
        if process.poll() is not None:
            break
        time.sleep(0.05)
    raise RuntimeError(f"the app did not start: {(cwd / 'streamlit.log').read_text()[-2000:]}")


@contextlib.contextmanager
def browser():
    """A headless Chromium."""
    from playwright.sync_api import sync_playwright

    with sync_playwright() as playwright:
        opened = playwright.chromium.launch(executable_path=CHROMIUM, args=["--no-sandbox"])
        try:
            yield opened
        finally:
            opened.close()


@contextlib.contextmanager
def tab(chromium):
    """A tab of 1280 x 800 pixels. At its end nothing may have gone wrong in it: no error in the page's scripts, no exception on
    the page, no request to another machine."""
    context = chromium.new_context(viewport={"width": 1280, "height": 800})
    page, wrong = context.new_page(), []
    page.set_default_timeout(30_000)
    page.on("pageerror", lambda error: wrong.append(error.stack or str(error)))
    page.on("request", lambda request: wrong.append(request.url) if not request.url.startswith(LOCAL) else None)
    yield page
    assert wrong == [], wrong
    assert page.get_by_test_id("stException").count() == 0
    context.close()


def settle(page) -> None:
    """Wait until the script has run and nothing is left to draw."""
    page.wait_for_function(
        "document.querySelector('[data-testid=stApp]')?.dataset.testScriptState === 'notRunning'", timeout=60_000
    )
    page.wait_for_timeout(400)


def cell_of(page, layer: int, head: int) -> tuple[float, float]:
    """The page's pixel in the middle of a head's cell on the board."""
    return tuple(
        page.locator(BOARD).evaluate(
            """(host, [layer, head]) => {
                const box = host.querySelector("canvas").getBoundingClientRect(), pair = (text) => text.split(",").map(Number);
                const { corner, cell, group, gap } = host.dataset, [x, y] = pair(corner), [wide, high] = pair(cell);
                return [box.x + x + (head + 0.5) * wide + Math.floor(head / group) * gap, box.y + y + (layer + 0.5) * high];
            }""",
            [layer, head],
        )
    )


def wait_for_map(page, other_than: str = "", **facts) -> None:
    """Wait, frame by frame, until a map is ready whose data attributes are `facts` and whose view is not `other_than`."""
    page.wait_for_function(
        """([wanted, otherThan]) => [...document.querySelectorAll("*")].some(({shadowRoot}) => {
            const data = shadowRoot?.querySelector(".root[data-cells][data-state=ready]")?.dataset;
            return data && data.view !== otherThan && Object.entries(wanted).every(([name, value]) => data[name] === value);
        })""",
        arg=[{name: str(value) for name, value in facts.items()}, other_than],
    )


def wheel(page, turned: float) -> float:
    """Turn the wheel over the map; seconds until the frame after it is drawn."""
    return page.evaluate(
        """turned => new Promise(resolve => {
            const isMap = ({shadowRoot}) => shadowRoot?.querySelector(".root[data-cells]");
            const stage = [...document.querySelectorAll("*")].find(isMap).shadowRoot.querySelector(".stage");
            const {x, y} = stage.getBoundingClientRect(), start = performance.now();
            stage.dispatchEvent(new WheelEvent("wheel", {deltaY: turned, clientX: x + 300, clientY: y + 300, cancelable: true}));
            requestAnimationFrame(() => requestAnimationFrame(() => resolve((performance.now() - start) / 1000)));
        })""",
        turned,
    )


def wait_for_target(page, target: str) -> None:
    """Wait, frame by frame, until the board of What-if shows a target."""
    page.wait_for_function(
        """(name) => [...document.querySelectorAll("*")].some(({shadowRoot}) =>
            shadowRoot?.querySelector(".root[data-state=ready]")?.dataset.name === name)""",
        arg=f"Density at target {target}",
    )
