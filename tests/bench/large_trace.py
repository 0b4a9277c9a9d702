"""A made-up trace of 32 x 32 heads at 128K tokens, pinned until it holds 6 GB: how long each step of its use takes, as a table.

python tests/bench/large_trace.py [--layers 32] [--heads 32] [--gigabytes 6] [--times 20] [--trace FOLDER to use, or to make]
"""

from __future__ import annotations

import argparse
import statistics
import sys
import tempfile
import time
from pathlib import Path

import numpy as np

ROOT = Path(__file__).resolve().parents[2]
sys.path[:0] = [str(ROOT), str(ROOT / "tests"), str(ROOT / "tests" / "browser")]

from driver import BOARD, app, browser, cell_of, settle, wait_for_map, wait_for_target, wheel  # noqa: E402
from long_trace import CLASSES, write_long_trace  # noqa: E402

from sampleattn.trace import Trace, TraceWriter  # noqa: E402

TOKENS = 131072
SCREEN = {"width": 1280, "height": 800}
SAID = """(parts) => {
    const said = [...document.querySelectorAll("[data-testid=stMarkdown] strong")].map((element) => element.textContent);
    return parts.every((part) => said.some((sentence) => sentence.includes(part)));
}"""


def gigabytes(folder: Path) -> float:
    return sum(path.stat().st_size for path in folder.rglob("*") if path.is_file()) / 1e9


def pin_until(folder: Path, least: float, layers: int, heads: int) -> None:
    """Pin heads from layer 1 on, of random queries and keys, until the trace holds `least` gigabytes. The last head is left."""
    q, k = np.random.default_rng(0).standard_normal((2, TOKENS, CLASSES), np.float32)
    lse, writer = np.full(TOKENS, 12, np.float32), TraceWriter.reopen(folder)
    missing = least * 1e9 - gigabytes(folder) * 1e9
    for layer, head in [(layer, head) for layer in range(1, layers) for head in range(heads)][:-1]:
        if missing <= 0:
            break
        writer.write_pin(layer, head, q, lse, k)
        missing -= q.nbytes + lse.nbytes


def opening(folder: Path) -> float:
    """Seconds until the trace is open and the numbers of all heads are read."""
    started = time.perf_counter()
    _ = Trace.load(folder).density
    return time.perf_counter() - started


def new_tab(context, url: str) -> float:
    """Seconds from a new tab to its first picture."""
    page, started = context.new_page(), time.perf_counter()
    page.goto(url, wait_until="commit")
    wait_for_map(page, tokens=TOKENS)
    seconds = time.perf_counter() - started
    page.close()
    return seconds


def first_visit(chromium, url: str) -> float:
    """The same in a browser that has never seen the app: nothing of it is in its cache."""
    context = chromium.new_context(viewport=SCREEN)
    seconds = new_tab(context, url)
    context.close()
    return seconds


def chosen(page, url: str, folder: Path) -> float:
    """Seconds from *Open* in the dialog, while another trace is on screen, to the first picture."""
    page.goto(url)
    wait_for_map(page)
    settle(page)
    page.get_by_role("button", name="Open a trace").click()
    place = page.get_by_label("or a trace folder")
    place.fill(str(folder))
    place.press("Tab")
    settle(page)
    started = time.perf_counter()
    page.get_by_role("dialog").get_by_test_id("stBaseButton-primary").click()
    wait_for_map(page, tokens=TOKENS)
    return time.perf_counter() - started


def head_click(page, layer: int, head: int) -> float:
    """Seconds from a click on the board to that head's picture."""
    place, started = cell_of(page, layer, head), time.perf_counter()
    page.mouse.click(*place)
    wait_for_map(page, layer=layer, head=head)
    seconds = time.perf_counter() - started
    page.wait_for_timeout(300)
    return seconds


def zoomed(page, n: int, size: int) -> float:
    """Seconds from a zoom until the window of `size` tokens is exact; n, 0 to 19: the place, of which no tile is known before."""
    page.locator(".stage").focus()
    page.keyboard.press("g")
    page.keyboard.type(f"{60_000 + 3400 * n} {5_000 + 12_500 * (n % 4)}")
    steps = [lambda: page.keyboard.press("Enter")] + [lambda: page.keyboard.press("Escape")] * (1 + (size > 512))
    for step in steps:
        before, started = page.locator(".root[data-view]").get_attribute("data-view"), time.perf_counter()
        step()
        wait_for_map(page, other_than=before)
        seconds = time.perf_counter() - started
    return seconds


def what_if_moves(page, url: str, times: int) -> tuple[list[float], list[float]]:
    """Seconds from a key on the slider of What-if until the board shows the target, and until the sentences above it and the
    curve are about it as well."""
    page.goto(f"{url}/what_if")
    page.get_by_role("slider").wait_for()
    settle(page)
    drawn, said = [], []
    for n in range(times):
        target = f"{0.94 - n / 100:g}"
        page.get_by_role("slider").focus()
        started = time.perf_counter()
        page.keyboard.press("ArrowLeft")
        wait_for_target(page, target)
        drawn.append(time.perf_counter() - started)
        page.wait_for_function(SAID, arg=[f"Target {target}, ", f"{target} takes "])
        said.append(time.perf_counter() - started)
        settle(page)
    return drawn, said


def megabytes(url: str) -> float:
    """Resident memory of the server that listens at the address."""
    port = f"--server.port\0{url.rsplit(':', 1)[1]}\0"
    for process in Path("/proc").glob("[0-9]*"):
        try:
            if port in (process / "cmdline").read_text():
                lines = (process / "status").read_text().splitlines()
                return int(next(line for line in lines if line.startswith("VmRSS")).split()[1]) / 1024
        except OSError:
            continue
    return float("nan")


def row(what: str, seconds: list[float], limit: str) -> None:
    middle, most = statistics.median(seconds), max(seconds)
    print(f"| {what} | {middle:.2f} s (slowest {most:.2f}) of {len(seconds)} | {limit} |", flush=True)


def in_the_browser(folder: Path, layers: int, heads: int, times: int) -> None:
    """The rows that are measured in Chromium, on one server."""
    with tempfile.TemporaryDirectory() as elsewhere, browser() as chromium:
        with app(Path(elsewhere), folder) as url:
            context = chromium.new_context(viewport=SCREEN)
            page = context.new_page()
            new_tab(context, url)
            row("a new tab to its first picture", [new_tab(context, url) for _ in range(times)], "1.0 s")
            visits = [first_visit(chromium, url) for _ in range(times)]
            row("the same, nothing of the app in the browser's cache", visits, "1.0 s")
            page.goto(f"{url}/heads")
            page.locator(BOARD).wait_for()
            settle(page)
            clicks = [head_click(page, (5 * n + 1) % layers, (7 * n + 1) % heads) for n in range(times)]
            row("click on a head to its picture", clicks, "0.25 s")
            page.goto(f"{url}/map?layer={layers - 1}&head={heads - 1}")
            wait_for_map(page, layer=layers - 1)
            settle(page)
            row("zoom or pan, head that is not pinned", [wheel(page, 100 if n % 2 else -100) for n in range(times)], "0.1 s")
            page.goto(f"{url}/map?layer=0&head=0")
            wait_for_map(page, head=0)
            settle(page)
            for size, limit in ((512, "0.3 s"), (8192, "1.2 s")):
                name = f"pinned head: window of {size:,} x {size:,} tokens, exact"
                row(name, [zoomed(page, n, size) for n in range(times)], limit)
            board, sentences = what_if_moves(page, url, times)
            row("what-if: slider to redrawn board", board, "0.3 s")
            row("what-if: slider to the sentences and the curve's", sentences, "0.3 s")
            print(f"| memory of the server | {megabytes(url):.0f} MB | 1,024 MB |", flush=True)
        with app(Path(elsewhere)) as url:
            row("opened in the dialog, to the first picture", [chosen(page, url, folder) for _ in range(times)], "1.0 s")


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--layers", type=int, default=32)
    parser.add_argument("--heads", type=int, default=32)
    parser.add_argument("--gigabytes", type=float, default=6)
    parser.add_argument("--times", type=int, default=20)
    parser.add_argument("--trace", type=Path)
    args = parser.parse_args()
    with tempfile.TemporaryDirectory() as place:
        folder = args.trace or Path(place) / "trace"
        if not folder.exists():
            write_long_trace(folder, TOKENS, layers=args.layers, heads=args.heads)
            pin_until(folder, args.gigabytes, args.layers, args.heads)
        print(f"{args.layers} x {args.heads} heads at {TOKENS:,} tokens, {gigabytes(folder):.1f} GB\n")
        print("| what | measured | limit |\n|---|---|---|")
        row("open it, numbers of all heads read", [opening(folder) for _ in range(args.times)], "1 s")
        in_the_browser(folder, args.layers, args.heads, args.times)


if __name__ == "__main__":
    main()
