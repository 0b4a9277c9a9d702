"""A made-up trace of 32 x 32 heads at 128K tokens: how fast it opens, its pictures, the server's memory. A table, no tests.

python tests/bench/large_trace.py [--layers 32] [--heads 32]
"""

from __future__ import annotations

import argparse
import statistics
import sys
import tempfile
import time
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
sys.path[:0] = [str(ROOT), str(ROOT / "tests"), str(ROOT / "tests" / "browser")]

from driver import app, browser, cell_of, settle, wait_for_map  # noqa: E402
from long_trace import write_long_trace  # noqa: E402

from sampleattn.trace import Trace  # noqa: E402

TIMES = 20


def opening(folder: Path) -> float:
    """Seconds until the trace is open and the numbers of all heads are read."""
    started = time.perf_counter()
    _ = Trace.load(folder).density
    return time.perf_counter() - started


def clicks(folder: Path, layers: int, heads: int) -> tuple[float, list[float], float]:
    """Seconds to a new tab's first picture, seconds from clicks on heads of the board to their pictures, server's megabytes."""
    with tempfile.TemporaryDirectory() as elsewhere, app(Path(elsewhere), folder) as url, browser() as chromium:
        warm = chromium.new_page()
        warm.goto(f"{url}/recall")
        settle(warm)
        page = chromium.new_page(viewport={"width": 1280, "height": 800})
        started = time.perf_counter()
        page.goto(url)
        wait_for_map(page)
        first = time.perf_counter() - started
        page.goto(f"{url}/heads")
        settle(page)
        seconds = []
        for n in range(TIMES):
            layer, head = (5 * n + 1) % layers, (7 * n + 1) % heads
            place = cell_of(page, layer, head)
            clicked = time.perf_counter()
            page.mouse.click(*place)
            wait_for_map(page, layer=layer, head=head)
            seconds.append(time.perf_counter() - clicked)
            page.wait_for_timeout(300)
        return first, seconds, _megabytes(url)


def _megabytes(url: str) -> float:
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


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--layers", type=int, default=32)
    parser.add_argument("--heads", type=int, default=32)
    args = parser.parse_args()
    with tempfile.TemporaryDirectory() as place:
        folder = Path(place) / "trace"
        write_long_trace(folder, layers=args.layers, heads=args.heads)
        size = sum(path.stat().st_size for path in folder.rglob("*") if path.is_file()) / 1e9
        print(
            f"{args.layers} x {args.heads} heads at 131,072 tokens, {size:.1f} GB\n\n| what | measured | limit |\n|---|---|---|"
        )
        seconds = [opening(folder) for _ in range(TIMES)]
        print(f"| open it, numbers of all heads read | median {statistics.median(seconds):.2f} s of {TIMES} | 1 s |")
        first, seconds, megabytes = clicks(folder, args.layers, args.heads)
        print(f"| a new tab to its first picture | {first:.2f} s | 1.0 s |")
        print(f"| click on a head to its picture | median {statistics.median(seconds):.2f} s of {TIMES} | 0.25 s |")
        print(f"| memory of the server | {megabytes:.0f} MB | 1,024 MB |")


if __name__ == "__main__":
    main()
