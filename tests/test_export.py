"""What the Export menu writes can be read again, and says where it came from."""

import csv
import io
import json

import numpy as np
import pytest
from synthetic_trace import write_synthetic_trace

from app import benchmarks, export, reading
from sampleattn import SampleAttentionConfig
from sampleattn.bench.rows import COLUMNS
from sampleattn.trace import Trace


@pytest.fixture(scope="module")
def trace(tmp_path_factory):
    folder = tmp_path_factory.mktemp("trace")
    write_synthetic_trace(folder, layers=2, heads=4, tokens=512, title="<b>a</b> `title`", cra=0.9)
    return Trace.load(folder)


def test_npz_holds_the_values_and_the_footer(trace):
    values = {"recall": trace.recall(1, 2), "names": np.array(["a", "b"])}
    data = np.load(io.BytesIO(export.npz(values, reading.footer(trace, 1, 2))), allow_pickle=False)
    assert np.array_equal(data["recall"], trace.recall(1, 2)) and data["names"].tolist() == ["a", "b"]
    assert "layer 1, head 2" in str(data["origin"])


def test_csv_of_columns_and_of_a_matrix():
    columns = export.table({"row": np.arange(3), "name": np.array(["a", "=1+1", "c,d"])}, "made by\nus").decode().splitlines()
    assert columns[:2] == ["# made by", "# us"]
    assert list(csv.reader(columns[2:])) == [["row", "name"], ["0", "a"], ["1", "'=1+1"], ["2", "c,d"]]
    matrix = export.table({"weights": np.array([[0, 0.5], [0.25, 0]]), "kept": np.array([True])}, "f").decode().splitlines()
    assert list(csv.reader(matrix[1:])) == [
        ["name", "row", "column", "value"],
        ["weights", "0", "1", "0.5"],
        ["weights", "1", "0", "0.25"],
        ["kept", "0", "0", "True"],
    ]


def test_config_and_trace_come_back(trace, tmp_path):
    assert SampleAttentionConfig.from_dict(json.loads(export.config_json(trace))) == trace.config
    path = trace.save(tmp_path / "t.zip")
    for place in (path, trace.save(tmp_path / "folder")):
        assert Trace.load(export.whole_trace(place)).meta["prompt"] == trace.meta["prompt"]


def test_footer_names_model_prompt_place_and_settings(trace):
    footer = reading.footer(trace, 1, 2)
    for part in ("synthetic", trace.meta["prompt"]["sha256"][:16], "layer 1, head 2", "target 0.9", "block 128", "joint"):
        assert part in footer


def test_text_is_escaped_and_made_visible(trace):
    assert reading.plain("a*b_[x](y) <i> $z$ :red[q]\n") == r"a\*b\_\[x\]\(y\) \<i\> \$z\$ \:red\[q\]⏎"
    assert reading.visible("a\x00\u202eb\tc") == "a□□b⇥c"
    assert reading.excerpt(trace, 10, 10_000, 20).endswith("…")


def test_what_a_row_missed_most_is_its_greatest_weight_in_a_dropped_tile():
    trace = Trace.load(reading.ROOT / "data" / "traces" / "demo.zip")
    row = int(trace.recall(3, 4).argmin())
    weights = trace.window(3, 4, (row, row + 1), (0, trace.length), (1, trace.length))[0]
    dropped = ~trace.block_mask(3, 4)[row // 128].repeat(128)[: trace.length]
    key, weight = reading.most_missed(trace, 3, 4, row)
    assert dropped[key] and weight == weights[dropped].max() == weights[key] > 0
    assert trace.recall(3, 4)[row] + weights[dropped].sum() == pytest.approx(1, abs=2e-3)


def test_headline_takes_the_longest_length_that_has_both(tmp_path):
    path = tmp_path / "b.csv"
    names = COLUMNS
    rows = [
        {"what": "dense", "implementation": "flash", "length": 8192, "median_ms": 9},
        {"what": "dense", "implementation": "cudnn", "length": 8192, "median_ms": 6},
        {"what": "sample_attention", "implementation": "triton", "length": 8192, "median_ms": 3, "density": 0.1},
        {"what": "sparse_forward", "implementation": "triton", "length": 8192, "median_ms": 1, "density": 0.1},
        {"what": "sample_attention", "implementation": "triton", "length": 99999, "median_ms": 3, "density": 0.1},
        {"what": "dense", "implementation": "cudnn", "length": "?", "median_ms": ""},
    ]
    with open(path, "w", newline="") as file:
        writer = csv.DictWriter(file, names, restval="")
        writer.writeheader()
        writer.writerows({"gpu": "H100", "head_dim": 128, "heads": 32, **row} for row in rows)
    loaded = benchmarks.load(path)
    assert len(loaded) == 5
    best = benchmarks.headline(loaded)
    assert best.speedup == 2
    assert all(part in best.sentence for part in ("8,192 tokens", "3 ms in place of 6 ms", "cuDNN"))
    assert benchmarks.headline(loaded, 64) is None and benchmarks.load(tmp_path / "none.csv") == []


def test_the_telling_head_keeps_columns_and_slashes(trace):
    layer, head = reading.telling_head(trace)
    assert len(trace.columns(layer, head)) and len(trace.slashes(layer, head))


def test_a_trace_of_a_gpu_has_a_speed_up_of_its_own(trace, tmp_path):
    assert benchmarks.of_recording(trace) is None
    on_a_gpu = Trace.load(trace.save(tmp_path / "t"))
    on_a_gpu.meta["machine"]["device"] = "NVIDIA H100"
    for layer, (dense, sparse) in zip(on_a_gpu.meta["layers"], [(0.02, 0.005), (0.04, 0.015)], strict=True):
        layer["seconds"] |= {"dense_attention": dense, "sparse_run_attention": sparse}
    own = benchmarks.of_recording(on_a_gpu)
    assert own.speedup == pytest.approx(3) and "10 ms" in own.sentence and "30 ms" in own.sentence and "H100" in own.sentence
    on_a_gpu.meta["layers"][0]["ran"] = "dense"
    assert benchmarks.of_recording(on_a_gpu).speedup == pytest.approx(0.04 / 0.015)
