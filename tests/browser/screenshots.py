"""All screenshots of docs/screenshots by one command: `python tests/browser/screenshots.py [folder] [demo trace]`."""

import io
import sys
import tempfile
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parent))

from driver import MAP, ROOT, app, browser, settle  # noqa: E402
from PIL import Image  # noqa: E402

PAGES = ("overview", "text", "heads", "map", "compare", "recall", "what_if", "speed", "output")
ZOOMED = {
    "what_if": "what_if?if_cra=0.9",
    "heads": "heads?number=CRA&holds_cra=0.8",
    "compare": "compare?layer=3&head=4&layer_b=5&head_b=5",
    "map_missed": "map?missed=on&view=12600.11200.2048",
    "map_tokens": "map?view=11988.11976.32&at=12000.11990",
}
SHOTS = (
    *((page, "light", (1280, 800)) for page in PAGES),
    *((page, "dark", (1280, 800)) for page in ("overview", "heads", "map", "compare")),
    ("map_missed", "light", (1280, 800)),
    ("map_tokens", "dark", (1280, 800)),
    *((page, scheme, (2560, 1440)) for page in ("overview", "map") for scheme in ("light", "dark")),
)


def take(folder: Path, demo: Path | None, shots=SHOTS) -> None:
    """Write every shot as a PNG of few colours, so that it stays small."""
    folder.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory() as elsewhere, app(Path(elsewhere), demo) as url, browser() as chromium:
        for page_name, scheme, (width, height) in shots:
            context = chromium.new_context(viewport={"width": width, "height": height}, color_scheme=scheme)
            page = context.new_page()
            page.goto(f"{url}/{'' if page_name == 'overview' else ZOOMED.get(page_name, page_name)}")
            if page_name in ("overview", "map"):
                page.locator(MAP).wait_for()
                box = page.locator(".stage").bounding_box()
                page.mouse.move(box["x"] + 0.4 * box["width"], box["y"] + 0.62 * box["height"])
            if page_name == "what_if":
                page.get_by_text("How good is the estimate?").wait_for()
                page.locator(".js-plotly-plot .scatterlayer").first.wait_for()
            settle(page)
            page.wait_for_timeout(600)
            picture = (
                Image.open(io.BytesIO(page.screenshot()))
                .convert("RGB")
                .quantize(256, Image.Quantize.MAXCOVERAGE, kmeans=1, dither=Image.Dither.NONE)
            )
            file = folder / f"{page_name}_{scheme}_{width}.png"
            picture.save(file, optimize=True)
            print(f"{file} {file.stat().st_size // 1000} kB")
            context.close()


if __name__ == "__main__":
    places = [Path(place).resolve() for place in sys.argv[1:3]]
    take(places[0] if places else ROOT / "docs" / "screenshots", places[1] if len(places) > 1 else None)
