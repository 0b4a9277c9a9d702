"""Start of the app, a click on another head, and whole recordings, on two CPU cores: printed tables, no tests.

    python tests/bench/app_and_recorder.py [--skip-16k]

The limits are those of the first issue. Times are wall clock on the cores that the machine has free: run it on a quiet one.
"""

from __future__ import annotations

import argparse
import os
import platform
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
sys.path.insert(0, str(ROOT / "tests" / "browser"))

from driver import MAP, app, browser, cell_of, settle  # noqa: E402

CORES = 2
CLICKS = 10


def start_to_picture() -> tuple[float, list[float]]:
    """Seconds from `streamlit run` to the demo picture, and seconds of clicks on other heads, each to its picture."""
    with tempfile.TemporaryDirectory() as elsewhere, browser() as chromium:
        page = chromium.new_page(viewport={"width": 1280, "height": 800})
        started = time.perf_counter()
        with app(Path(elsewhere)) as url:
            page.goto(url)
            page.locator(MAP).wait_for()
            start = time.perf_counter() - started
            page.goto(f"{url}/heads")
            page.locator(MAP).wait_for()
            settle(page)
            clicks = []
            for n in range(CLICKS):
                layer, head = n % 8, (n * 5 + 1) % 6
                place = cell_of(page, layer, head)
                clicked = time.perf_counter()
                page.mouse.click(*place)
                page.locator(f'{MAP}[data-layer="{layer}"][data-head="{head}"]').wait_for()
                clicks.append(time.perf_counter() - clicked)
                page.wait_for_timeout(500)
            return start, clicks


def recording(prompt: str) -> tuple[float, float]:
    """Seconds and peak gigabytes of `python -m sampleattn record` on a prompt of data/prompts."""
    with tempfile.TemporaryDirectory() as folder:
        command = [sys.executable, "-m", "sampleattn", "record", "--model", "bundled", "--device", "cpu", "--quiet", "--json"]
        command += ["--prompt-file", str(ROOT / "data" / "prompts" / prompt), "--out", f"{folder}/trace"]
        started = time.perf_counter()
        process = subprocess.Popen(command, cwd=ROOT, stdout=subprocess.DEVNULL)
        _, status, usage = os.wait4(process.pid, 0)
        if status:
            raise SystemExit(f"recording {prompt} failed with status {status}")
        return time.perf_counter() - started, usage.ru_maxrss / 1e6


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--skip-16k", action="store_true", help="leave out the recording of 16K tokens")
    args = parser.parse_args()
    os.sched_setaffinity(0, sorted(os.sched_getaffinity(0))[:CORES])
    os.environ["OMP_NUM_THREADS"] = str(CORES)
    print(f"{CORES} cores, {platform.platform()}, Python {platform.python_version()}")
    print("\n| what | measured | limit |\n|---|---|---|")
    start, clicks = start_to_picture()
    print(f"| `streamlit run` to the demo picture | {start:.1f} s | 5 s |")
    slowest = f"median {statistics.median(clicks):.2f} s, slowest {max(clicks):.2f} s of {CLICKS}"
    print(f"| click on another head to its picture | {slowest} | 0.5 s |", flush=True)
    prompts = [("passkey_4k.txt", "4K", "30 s, 3 GB")] + [("passkey_16k.txt", "16K", "240 s, 6 GB")] * (not args.skip_16k)
    for prompt, name, limit in prompts:
        seconds, gigabytes = recording(prompt)
        print(f"| whole recording, {name} tokens | {seconds:.0f} s, {gigabytes:.1f} GB | {limit} |", flush=True)


if __name__ == "__main__":
    main()
