import argparse
import csv
from pathlib import Path

import pytest
import torch

from sampleattn.bench import bars, check, command, measure, readme, report, timing
from sampleattn.bench.cases import forced, on_tiles
from sampleattn.bench.feeds import feed_of
from sampleattn.bench.measure import PARTS, Shape, plan
from sampleattn.bench.rows import COLUMNS

CPU = torch.device("cpu")
SHAPE = Shape(heads=4, kv_heads=2, head_dim=64, dtype=torch.float32, device=CPU)


def rows_of(*parts, **options):
    return list(measure.measure(parts, SHAPE, 0.3, [256], seconds=0.001, **options))


def test_times_are_ordered_and_calls_take_turns():
    order = []
    first, second = timing.time_calls([lambda: order.append(1), lambda: order.append(2)], CPU, seconds=0.001, least=5, most=9)
    assert 0 <= first.p20 <= first.median <= first.p80 and second.median >= 0
    assert order[:2] == [1, 2] and order.count(1) == order.count(2) and order[-4:] == [1, 2, 1, 2]


@pytest.mark.parametrize(
    "part, expected",
    [
        ("roof", [("matmul", "torch"), ("copy", "torch")]),
        ("auto", [("dense", "sdpa"), ("sample_attention", "auto, density 0.3"), ("sample_attention", "torch, density 0.3")]),
        ("method", [("dense", "sdpa"), ("sample_attention", "torch, joint"), ("sample_attention", "torch, density 0.3")]),
        ("stages", [("stage_1", "torch"), ("selection", "joint")]),
        ("forward", [("dense", "sdpa"), ("sparse_forward", "torch")]),
        ("everything", [("dense", "sdpa"), ("sparse_forward", "torch")]),
        ("logsumexp", [("dense", "sdpa"), ("row_logsumexp", "torch")]),
        ("maps", [("map_whole", "256 x 256"), ("map_window", "256 x 256")]),
    ],
)
def test_each_part_gives_its_rows(part, expected):
    rows = rows_of(part)
    assert [(row["what"], row["implementation"]) for row in rows] == expected
    assert all(set(row) == set(COLUMNS) and row["mode"] == "eager" for row in rows)
    assert all(0 < row["p20_ms"] <= row["median_ms"] <= row["p80_ms"] for row in rows)


def test_recorded_inputs_come_from_the_bundled_model():
    rows = rows_of("recorded")
    assert {(row["input"], row["heads"], row["kv_heads"], row["head_dim"], row["length"]) for row in rows} == {
        ("recorded", 6, 2, 64, 256)
    }


def test_a_prefill_is_timed_dense_sparse_and_without_attention(monkeypatch):
    small = {"layers": 2, "intermediate": 96, "vocabulary": 128}
    monkeypatch.setattr(measure.prefill, "llama", lambda shape, make=measure.prefill.llama: make(shape, **small))
    rows = rows_of("prefill")
    assert [(row["what"], row["implementation"]) for row in rows] == [
        ("prefill", "dense, sdpa"),
        ("prefill", "sample_attention, density 0.3"),
        ("prefill", "without attention"),
    ]
    assert 0 < rows[1]["density"] <= 1 and rows[2]["median_ms"] < rows[1]["median_ms"]


def test_without_attention_the_model_gives_other_logits_and_comes_back():
    model = measure.prefill.llama(SHAPE, layers=2, intermediate=96, vocabulary=128)
    dense, sparse, none = next(measure.prefill.cases_of(model, 300, 0.9))
    results = []
    for case in (dense, sparse, none, dense):
        with case.make() as call:
            results.append(call())
    assert results[0].shape == (1, 1, 128) and torch.equal(results[0], results[3])
    assert torch.allclose(results[0], results[1], atol=0.05) and not torch.allclose(results[0], results[2], atol=0.05)
    assert model.config._attn_implementation == "sdpa"


def test_a_given_feed_takes_the_place_of_the_planted_one_and_is_cut():
    feed = feed_of(torch.randn(4, 300, 16), torch.randn(2, 300, 16))
    rows = rows_of("method", feed=feed)
    assert {(row["input"], row["length"], row["head_dim"]) for row in rows} == {("recorded", 256, 16)}


def test_nothing_is_timed_twice_and_rivals_can_be_left_out():
    rows = rows_of("auto", "method", "logsumexp", rivals=False)
    keys = [(row["what"], row["implementation"]) for row in rows]
    assert len(keys) == len(set(keys)) and not any(row["what"] == "dense" for row in rows)


def test_progress_rises_to_the_end():
    said = []
    rows_of("method", "stages", progress=lambda *step: said.append(step))
    fractions = [fraction for fraction, _ in said]
    assert fractions == sorted(fractions) and fractions[-1] == 1.0


def test_the_default_plan_covers_every_bar():
    settings = plan(PARTS, 128, 0.1)
    at = {(setting.length, setting.head_dim, setting.density): setting.parts for setting in settings}
    assert set(at[131072, 128, 0.1]) == {"auto", "method", "stages", "forward", "logsumexp", "maps"}
    assert at[131072, 128, 0.25] == at[32768, 128, 0.25] == ("forward",) and at[32768, 64, 0.1] == ("head_dim_64",)
    assert "everything" in at[32768, 128, 0.1] and at[1 << 20, 128, 0.05] == ("million",)
    assert all("auto" in at[1024 << i, 128, 0.1] for i in range(8))


def test_causal_operations_are_counted_once():
    mask = torch.ones(1, 2, 4, 4, dtype=torch.bool).tril()
    assert on_tiles(mask, 64) == 4 * 2 * 64 * 512**2 / 2


def test_every_operator_passes_its_check():
    names = [name for name in check.OPERATORS if name != "block_index_lists"]
    assert check.check(names, forced(CPU), CPU, torch.float32, 64) == {}


def test_no_speed_on_a_red_check(monkeypatch, tmp_path, capsys):
    ops = check.backends.twins("torch")
    wrong = type(ops)(**vars(ops) | {"row_logsumexp": lambda q, k: ops.row_logsumexp(q, k) + 1})
    monkeypatch.setattr(check.backends, "twins", lambda name: wrong)
    assert bench(tmp_path / "out.csv", "--only", "logsumexp,stages") == 1
    assert "row_logsumexp is off by 1 from its reference" in capsys.readouterr().err
    assert {row["what"] for row in written(tmp_path / "out.csv")} == {"stage_1", "selection"}


def bench(path, *more):
    parser = argparse.ArgumentParser()
    command.add_arguments(parser)
    size = ["--lengths", "256", "--heads", "2", "--kv-heads", "1", "--head-dim", "64", "--density", "0.5", "--device", "cpu"]
    return command.run(parser.parse_args(["--out", str(path), *size, "--seconds", "0.001", *more]))


def written(path):
    with open(path, newline="", encoding="utf-8") as file:
        return list(csv.DictReader(file))


def test_the_command_appends_to_the_file(tmp_path, capsys):
    path = tmp_path / "new" / "out.csv"
    assert bench(path, "--only", "method") == 0 and bench(path, "--only", "method", "--no-rivals") == 0
    rows = written(path)
    assert tuple(rows[0]) == COLUMNS and len(rows) == 3 + 2
    assert {row["length"] for row in rows} == {"256"} and rows[0]["torch"] == torch.__version__
    out = capsys.readouterr().out
    assert "sample_attention" in out and "Of the tiles planted" in out


def test_rows_of_an_older_file_are_kept(tmp_path):
    path = tmp_path / "old.csv"
    path.write_text("date,what,median_ms\n2026-01-01,dense,2.5\n", encoding="utf-8")
    report.append(path, [{"what": "copy", "median_ms": 1.0}])
    old, new = written(path)
    assert (old["what"], old["median_ms"], old["mode"]) == ("dense", "2.5", "") and new["what"] == "copy"


@pytest.mark.parametrize(
    "arguments, said",
    [
        (("--density", "2"), "density above 0 and at most 1"),
        (("--only", "method,nonsense"), "knows no nonsense"),
        (("--lengths", "0"), "lengths must be positive"),
        (("--lengths", "1k"), "invalid literal"),
        (("--kv-heads", "0"), "lengths must be positive, sizes too"),
        pytest.param(
            ("--device", "cuda"),
            "no such device",
            marks=pytest.mark.skipif(torch.cuda.is_available(), reason="this machine has the device"),
        ),
    ],
)
def test_the_command_names_a_wrong_argument(tmp_path, capsys, arguments, said):
    assert bench(tmp_path / "out.csv", *arguments) == 1
    assert said in capsys.readouterr().err
    assert not (tmp_path / "out.csv").exists()


# Bars


def row(what, implementation, length, median, mode="eager", **more):
    given = {"head_dim": 128, "density": "", "input": "planted", "tflops": "", "memory_mb": ""} | more
    return {"what": what, "implementation": implementation, "length": length, "median_ms": median, "mode": mode} | given


def test_bars_are_ratios_of_the_rows_of_one_mode():
    rows = [
        row("sparse_forward", "triton", 32768, 2.0, density=0.0999),
        row("sparse_forward", "fa4", 32768, 1.8, density=0.0999),
        row("sparse_forward", "flex", 32768, 3.0, density=0.0999),
        row("sparse_forward", "triton", 32768, 1.0, density=0.0999, mode="graph"),
        row("stage_1", "triton", 32768, 0.2),
        row("selection", "density 0.1", 32768, 0.1, density=0.1),
        row("index_lists", "triton", 32768, 0.16, density=0.1),
        row("choosing", "joint", 32768, 0.36, density=0.1),
        row("dense", "cudnn", 32768, 14.0, density=1.0, tflops=600.0),
        row("sparse_forward", "triton", 32768, 14.5, density=1.0, tflops=579.0),
        row("sample_attention", "triton, density 0.1", 32768, 2.5, memory_mb=600.0),
    ]
    reached = {found.what: found for found in bars.bars(rows)}
    values = {what: (round(found.value, 3), found.met) for what, found in reached.items()}
    assert values == {
        "sparse forward at 10%, 32K: rate over fa4's": (0.9, False),
        "sparse forward at 10%, 32K: rate over flex's": (1.5, True),
        "sparse forward with everything kept, 32K: rate over cuDNN dense": (0.965, True),
        "stage 1, stage 2, index lists in a row, 32K: share of the forward at 10%": (0.18, True),
        "sample_attention, 10% imposed, 32K: times faster than cudnn dense": (5.6, False),
        "break-even of sample_attention with cuDNN dense, tokens": (32768, False),
    }
    assert [found.what for found in bars.bars(rows, "graph")] == []


def test_a_bar_counts_as_met_if_every_mode_meets_it():
    rows = [
        row("dense", "cudnn", 1024, 1.0),
        row("sample_attention", "auto, density 0.1", 1024, 1.5),
        row("dense", "cudnn", 1024, 1.0, "graph"),
        row("sample_attention", "auto, density 0.1", 1024, 1.02, "graph"),
    ]
    (line,) = bars.bars_table(rows)[1:]
    assert "1.5" in line and "1.02" in line and line.endswith("not met")
    assert bars.bars_table([]) == ["No bar was measured in this run."]


def test_break_even_is_where_the_curves_cross_last():
    lengths = [1024, 2048, 4096, 8192]
    assert bars.break_even(lengths, [2, 2, 2, 2], [1, 1, 4, 4]) == pytest.approx(2048 * 2**0.5)
    assert bars.break_even(lengths, [1, 3, 1, 1], [2, 2, 2, 2]) > 2048
    assert bars.break_even(lengths, [1, 1, 1, 1], [2, 2, 2, 2]) == 1024
    assert bars.break_even(lengths, [1, 1, 1, 3], [2, 2, 2, 2]) is None


def test_prefill_is_held_against_what_amdahls_law_allows():
    rows = [
        row("prefill", "dense, cudnn", 131072, 10_000.0, density=1.0),
        row("prefill", "sample_attention, density 0.1", 131072, 5_000.0, density=0.1),
        row("prefill", "without attention", 131072, 4_000.0, density=0.0),
    ]
    ratio, share = bars.bars(rows)
    assert ratio.value == 2.0 and not ratio.met
    assert share.value == pytest.approx(2.0 / (10 / 4.6)) and share.met
    (sentence,) = bars.prefill_sentences(rows)
    assert (
        "dense 10 s, sparse 5 s, without attention 4 s" in sentence
        and "allows 2.17" in sentence
        and "2.5 if it were free" in sentence
    )


# README


def test_the_table_of_the_readme_is_made_of_rows(tmp_path):
    rows = [
        row("dense", "cudnn", 32768, 14.0, density=1.0),
        row("sparse_forward", "triton", 32768, 5.0, density=0.25),
        row("sparse_forward", "triton", 32768, 2.0, density=0.1),
        row("sample_attention", "triton, density 0.1", 32768, 2.5, density=0.1),
    ]
    path = tmp_path / "README.md"
    path.write_text(f"# Title\n{readme.BEGIN}\nold\n{readme.END}\nrest\n", encoding="utf-8")
    readme.write(path, rows)
    text = path.read_text(encoding="utf-8")
    assert text.startswith("# Title\n") and text.endswith("rest\n") and "old" not in text
    assert "| cuDNN dense | 14 |" in text and "| sparse attention | 2 (7×) |" in text
    assert "| whole method, 10% of the tiles | 2.5 (5.6×) |" in text and "pays from 32K tokens on" in text
    path.write_text("# Title\n", encoding="utf-8")
    with pytest.raises(ValueError, match="to write the table between"):
        readme.write(path, rows)


def test_the_readme_shows_what_the_recorded_file_holds():
    root = Path(__file__).resolve().parents[1]
    lines = readme.table(report.read(root / "data" / "benchmarks.csv"))
    assert "\n".join(lines) in (root / "README.md").read_text(encoding="utf-8")
