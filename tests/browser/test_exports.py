"""The files of every screen's Export menus in a real browser: each opens again and holds what the screen shows."""

import csv
import io
import json
import re
import zlib
from xml.etree import ElementTree

import numpy as np
import pytest
from driver import CHROMIUM, MAP, app, settle
from PIL import Image
from synthetic_trace import write_synthetic_trace

from sampleattn.trace import Trace

pytestmark = [pytest.mark.browser, pytest.mark.skipif(CHROMIUM is None, reason="no chromium on this machine")]
FILES = ("PNG", "SVG", "PDF", "HTML", "NPZ", "CSV", "Config", "Trace")
LAYER, HEAD = 3, 4
# Of each menu: the page, the place of its Export button, and from the trace and the file's values what must be equal.
MENUS = {
    "overview": ("", 0, lambda trace, data: [(data["weights"], trace.overview(LAYER, HEAD))]),
    "heads": ("heads?number=CRA", 0, lambda trace, data: [(data["values"], trace.cra)]),
    "map": ("map?view=12000.11000.512&missed=on", 0, lambda trace, data: _window(trace, data)),
    "compare": ("compare?layer_b=5&head_b=5", 0, lambda trace, data: [
        (data["difference"], trace.overview(LAYER, HEAD) - trace.overview(5, 5))]),
    "recall": ("recall", 0, lambda trace, data: [(data["recall"], trace.recall(LAYER, HEAD))]),
    "speed, lengths": ("speed", 0, lambda trace, data: [(data["median_ms"] > 0, np.ones(len(data["length"]), bool))]),
    "speed, stages": ("speed", 3, lambda trace, data: [(data["seconds"][0], trace.meta["timings"]["dense_run_s"])]),
    "output, prompt": ("output", 0, lambda trace, data: [
        (data["kl"], trace.output.kl), (data["top1_equal"], trace.output.top1_equal)]),
    "output, continuation": ("output", 1, lambda trace, data: [(data["kl"], trace.output.continuation_kl)]),
}  # fmt: skip


@pytest.fixture(scope="module")
def url(tmp_path_factory, demo):
    """The app without a GPU: its windows are numpy's, as those of the test, and so equal to the last bit."""
    with app(tmp_path_factory.mktemp("elsewhere"), demo, CUDA_VISIBLE_DEVICES="") as address:
        yield address


def _window(trace, data):
    planes = trace.window_planes(LAYER, HEAD, (12000, 12512), (11000, 11512), (512, 512))
    return list(zip((data["weights"], data["missed"]), planes, strict=True))


def exported(page, button: int, folder) -> dict:
    """The files of an Export menu, by their label."""
    page.get_by_role("button", name="Export").nth(button).click()
    files = {}
    for label in FILES:
        with page.expect_download() as download:
            page.get_by_role("button", name=label, exact=True).click()
        files[label] = folder / download.value.suggested_filename
        download.value.save_as(files[label])
    return files


def test_compare_exports_both_maps_where_nothing_is_subtracted(page, url, tmp_path):
    write_synthetic_trace(tmp_path / "t", layers=2, heads=4, tokens=640, title="Another prompt")
    page.goto(f"{url}/compare?layer={LAYER}&head={HEAD}")
    page.get_by_role("button", name="Another trace for B").click()
    place = page.get_by_label("or a trace folder")
    place.fill(str(tmp_path / "t"))
    place.press("Tab")
    settle(page)
    page.get_by_role("dialog").get_by_test_id("stBaseButton-primary").click()
    page.get_by_text("of Another prompt, 640 tokens").wait_for()
    settle(page)
    page.get_by_role("button", name="Export").click()
    page.get_by_role("radio", name="B").click()
    settle(page)
    with page.expect_download() as download:
        page.get_by_role("button", name="NPZ", exact=True).click()
    other = Trace.load(tmp_path / "t")
    data = np.load(io.BytesIO(download.value.path().read_bytes()))
    assert download.value.suggested_filename == "map_b_layer1_head1.npz"
    np.testing.assert_array_equal(data["weights"], other.overview(1, 1))


def pdf_objects(data: bytes) -> list[bytes]:
    """The objects of a PDF file, each found where its cross-reference table says; streams are unpacked."""
    start = int(re.search(rb"startxref\s+(\d+)\s+%%EOF\s*$", data)[1])
    assert data.startswith(b"%PDF-") and data[start:].startswith(b"xref")
    places = [int(place) for place in re.findall(rb"(\d{10}) \d{5} n", data[start:])]
    objects = [data[place : data.index(b"endobj", place)] for place in places]
    assert places and all(re.match(rb"\d+ 0 obj", found) for found in objects)
    for found in objects:
        stream = re.search(rb"/FlateDecode.*?stream\r?\n(.*)\r?\nendstream", found, re.DOTALL)
        assert stream is None or zlib.decompress(stream[1])
    return objects


@pytest.mark.parametrize("name", MENUS)
def test_every_file_of_a_menu_opens_and_holds_what_is_shown(page, url, demo, tmp_path, name):
    path, button, pairs = MENUS[name]
    page.goto(f"{url}/{path}{'&' if '?' in path else '?'}layer={LAYER}&head={HEAD}")
    if path.split("?")[0] in ("", "map"):
        page.locator(MAP).wait_for()
    page.get_by_role("button", name="Export").nth(button).wait_for()
    settle(page)
    files, trace = exported(page, button, tmp_path), Trace.load(demo)
    origin = trace.meta["prompt"]["sha256"][:16] if not name.startswith("speed, lengths") else "NVIDIA"

    with Image.open(files["PNG"]) as picture:
        picture.load()
        assert picture.width > 800 and len(picture.convert("RGB").getcolors(1 << 24)) > 8
    assert ElementTree.parse(files["SVG"]).getroot().tag.endswith("svg") and origin in files["SVG"].read_text()
    assert any(b"/Type /Page" in found for found in pdf_objects(files["PDF"].read_bytes()))
    data = np.load(io.BytesIO(files["NPZ"].read_bytes()))
    assert origin in str(data["origin"])
    for held, known in pairs(trace, data):
        np.testing.assert_array_equal(held, known)
    rows = list(csv.reader(line for line in files["CSV"].read_text().splitlines() if not line.startswith("#")))
    assert len(rows) > 1 and all(len(row) == len(rows[0]) for row in rows)
    assert json.loads(files["Config"].read_text()) == trace.meta["settings"]
    assert Trace.load(files["Trace"]).meta["files"] == trace.meta["files"]
    page.context.set_offline(True)
    page.goto(f"file://{files['HTML']}")
    page.locator(".plot-container").first.wait_for()
    assert origin in page.content()
