"""All screenshots of docs/screenshots by one command: `python tests/browser/screenshots.py [folder]`.

With a trace, `python tests/browser/screenshots.py FOLDER TRACE [PREFIX]`, the four pictures of RECORDING of that one.
"""

import io
import sys
import tempfile
from pathlib import Path
from urllib.parse import parse_qs, urlsplit

sys.path.insert(0, str(Path(__file__).resolve().parent))

from driver import MAP, ROOT, app, browser, settle  # noqa: E402
from PIL import Image  # noqa: E402

PAGES = ("overview", "text", "heads", "map", "compare", "recall", "what_if", "speed", "output")
CHARTS = ("recall", "what_if", "speed")
ZOOMED = {
    "what_if": "what_if?if_cra=0.9",
    "heads": "heads?number=CRA&holds_cra=0.8",
    "compare": "compare?layer=3&head=4&layer_b=5&head_b=5",
    "map_missed": "map?missed=on&view=12600.11200.2048",
    "map_tokens": "map?view=11988.11976.32&at=12000.11990",
}
SHOTS = (
    *((page, scheme, (1280, 800)) for page in PAGES for scheme in ("light", "dark")),
    ("map_missed", "light", (1280, 800)),
    ("map_tokens", "dark", (1280, 800)),
    *((page, scheme, (2560, 1440)) for page in ("overview", "map") for scheme in ("light", "dark")),
)


RECORDING = {
    "overview": "?layer=4&head=0",
    "heads": "heads?layer=4&head=0",
    "map": "map?layer=4&head=0&view=98304.90112.8192",
    "map_tokens": "map?layer=4&head=0&view=100000.99900.48&at=100020.99912",
}


def take(folder: Path, shots=SHOTS, places=ZOOMED, trace: Path | None = None, prefix: str = "") -> None:
    """Write every shot as a PNG of few colours, so that it stays small."""
    folder.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory() as elsewhere, app(Path(elsewhere)) as url, browser() as chromium:
        opened = _opened(chromium, url, trace) if trace else ""
        for page_name, scheme, (width, height) in shots:
            context = chromium.new_context(viewport={"width": width, "height": height}, color_scheme=scheme)
            page = context.new_page()
            place = places.get(page_name, "" if page_name == "overview" else page_name)
            page.goto(f"{url}/{place}{('&' if '?' in place else '?') + opened if opened else ''}")
            if page_name in ("overview", "map"):
                page.locator(MAP).wait_for()
                box = page.locator(".stage").bounding_box()
                page.mouse.move(box["x"] + 0.4 * box["width"], box["y"] + 0.62 * box["height"])
            if page_name == "what_if":
                page.get_by_text("How good is the estimate?").wait_for()
            if page_name in CHARTS:
                page.locator(".js-plotly-plot .scatterlayer").first.wait_for()
            settle(page)
            page.wait_for_timeout(600)
            picture = (
                Image.open(io.BytesIO(page.screenshot()))
                .convert("RGB")
                .quantize(256, Image.Quantize.MAXCOVERAGE, kmeans=1, dither=Image.Dither.NONE)
            )
            file = folder / f"{prefix}{page_name}_{scheme}_{width}.png"
            picture.save(file, optimize=True)
            print(f"{file} {file.stat().st_size // 1000} kB")
            context.close()


def _opened(chromium, url: str, trace: Path) -> str:
    """Open the trace in the page's dialog; the part of the address that names it."""
    page = chromium.new_page()
    page.goto(url)
    page.locator(MAP).wait_for()
    page.get_by_role("button", name="Open a trace").click()
    page.get_by_label("or a trace folder").fill(str(trace))
    page.keyboard.press("Enter")
    page.get_by_role("dialog").get_by_role("button", name="Open", exact=True).click()
    page.get_by_role("dialog").wait_for(state="detached")
    settle(page)
    key = parse_qs(urlsplit(page.url).query)["trace"][0]
    page.close()
    return f"trace={key}"


if __name__ == "__main__":
    folder = Path(sys.argv[1]).resolve() if sys.argv[1:] else ROOT / "docs" / "screenshots"
    if sys.argv[2:]:
        shots = [(name, "light", (1280, 800)) for name in RECORDING]
        take(folder, shots, RECORDING, Path(sys.argv[2]).resolve(), "".join(sys.argv[3:4]))
    else:
        take(folder)
