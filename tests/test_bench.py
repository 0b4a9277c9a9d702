import argparse
import csv

import pytest
import torch

from sampleattn import SampleAttentionConfig, bench
from sampleattn.planted import SHARES, planted

SIZE = {"heads": 4, "kv_heads": 2, "head_dim": 64, "density": 0.3, "dtype": torch.float32, "device": "cpu"}


def tile_masses(x):
    """The exact mass [Hq, N, blocks] of planted inputs, densely."""
    group, length = x.q.shape[1] // x.k.shape[1], x.q.shape[2]
    scores = x.q[0] @ x.k[0].repeat_interleave(group, 0).mT * x.q.shape[-1] ** -0.5
    scores = scores.masked_fill(~torch.ones(length, length, dtype=torch.bool).tril(), -torch.inf)
    return torch.nn.functional.pad(scores.softmax(-1), (0, -length % 128)).unflatten(-1, (-1, 128)).sum(-1)


@pytest.mark.parametrize(("length", "head_dim"), [(4096, 64), (3500, 128)])
def test_the_planted_mass_is_where_it_should_be(length, head_dim):
    x = planted(length, **SIZE | {"head_dim": head_dim})
    recall = (tile_masses(x) * x.mask[0].repeat_interleave(128, 1)[:, :length]).sum(-1)
    expected = x.mass.repeat_interleave(2, 0)
    assert recall.mean() == pytest.approx(float(expected.mean()), abs=0.01)
    assert recall.quantile(0.02) > 0.95
    assert x.density == pytest.approx(0.3, abs=0.03)


def test_planted_pieces_carry_their_shares():
    """Of the last rows' mass: the sink token, the column tokens (those of the rows that see them all) and one slash token."""
    x = planted(4096, **SIZE)
    rows, keys = x.q[0, 0, -200:], x.k[0, 0]
    future = torch.arange(4096) > torch.arange(3896, 4096)[:, None]
    weights = (rows @ keys.T * rows.shape[-1] ** -0.5).masked_fill(future, -torch.inf).softmax(-1)
    sink, columns = keys[:, 0] > 0, keys[:, 1] > 0
    assert sink.sum() == 1 and columns.sum() > 1
    assert weights[:, sink].sum(-1).mean() == pytest.approx(SHARES["sink"], abs=0.02)
    assert weights[:, columns].sum(-1).mean() == pytest.approx(SHARES["columns"], abs=0.02)
    assert weights[:, ~(sink | columns)].amax(-1).median() == pytest.approx(SHARES["slash"], abs=0.02)


def test_what_was_planted_is_detected():
    line = bench.detection(4096, 4, 2, 64, 0.25, torch.float32, "cpu")
    x = planted(4096, 4, 2, 64, 0.25, torch.float32)
    from sampleattn import sample_attention

    _, selection = sample_attention(x.q, x.k, x.v, SampleAttentionConfig(dense_below=0), return_selection=True)
    assert x.found(selection.block_mask) > 0.95, line
    assert float(selection.density.mean()) < 1.2 * x.density, line


def test_planting_is_repeatable_and_says_what_does_not_fit():
    a, b = planted(700, **SIZE), planted(700, **SIZE)
    assert torch.equal(a.q, b.q) and torch.equal(a.v, b.v) and torch.equal(a.mask, b.mask)
    with pytest.raises(ValueError, match="head_dim is too small"):
        planted(4096, **SIZE | {"head_dim": 8})


@pytest.mark.parametrize("length", [1, 127, 129, 300])
def test_short_planted_inputs(length):
    x = planted(length, **SIZE)
    assert x.q.isfinite().all() and x.k.isfinite().all() and x.mask.shape[-1] == -(-length // 128)


def test_time_call_counts_calls_and_orders_percentiles():
    calls = []
    median, p20, p80 = bench.time_call(lambda: calls.append(1), "cpu", seconds=0.001, least=5, most=9)
    assert 7 <= len(calls) <= 11 and 0 <= p20 <= median <= p80


def test_measure_gives_rows_and_progress():
    said = []
    rows = bench.measure([512], **SIZE, progress=lambda fraction, text: said.append((fraction, text)), seconds=0.01)
    assert [(row["what"], row["implementation"]) for row in rows] == [
        ("dense", "sdpa"),
        ("sparse_forward", "torch"),
        ("stage_1", "torch"),
        ("selection", "joint"),
        ("sample_attention", "torch, joint"),
        ("row_logsumexp", "torch"),
    ]
    assert all(tuple(row) == bench.COLUMNS for row in rows)
    assert all(0 < row["p20_ms"] <= row["median_ms"] <= row["p80_ms"] for row in rows)
    fractions = [fraction for fraction, _ in said]
    assert fractions == sorted(fractions) and fractions[-1] == 1.0


def test_measure_can_be_cancelled():
    said = []
    rows = bench.measure([512], **SIZE, progress=lambda *step: said.append(step), cancelled=lambda: len(said) > 2, seconds=0.01)
    assert 0 < len(rows) < 4


def test_causal_operations_are_counted_once():
    mask = torch.ones(1, 2, 4, 4, dtype=torch.bool).tril()
    assert bench._on_tiles(mask, 64) == 4 * 2 * 64 * 512**2 / 2


def test_no_speed_on_a_red_check(monkeypatch, tmp_path, capsys):
    ops = bench.backends.twins("torch")
    wrong = type(ops)(**vars(ops) | {"row_logsumexp": lambda q, k: ops.row_logsumexp(q, k) + 1})
    monkeypatch.setattr(bench.backends, "twins", lambda name: wrong)
    assert command(tmp_path / "out.csv") == 1
    assert "row_logsumexp is off by 1 from float64" in capsys.readouterr().err
    assert not (tmp_path / "out.csv").exists()


def command(path, *more):
    parser = argparse.ArgumentParser()
    bench.add_arguments(parser)
    size = ["--lengths", "256", "--heads", "2", "--kv-heads", "1", "--head-dim", "64", "--density", "0.5", "--device", "cpu"]
    return bench.run(parser.parse_args(["--out", str(path), *size, *more]))


def test_the_command_appends_to_the_file(tmp_path, capsys):
    path = tmp_path / "new" / "out.csv"
    assert command(path) == 0 and command(path, "--no-rivals") == 0
    with open(path, newline="", encoding="utf-8") as file:
        rows = list(csv.DictReader(file))
    assert tuple(rows[0]) == bench.COLUMNS and len(rows) == 6 + 5
    assert {row["length"] for row in rows} == {"256"} and rows[0]["torch"] == torch.__version__
    out = capsys.readouterr().out
    assert "sample_attention" in out and "Of the tiles planted" in out


def test_the_command_names_a_wrong_argument(tmp_path, capsys):
    assert command(tmp_path / "out.csv", "--density", "2") == 1
    assert "density above 0 and at most 1" in capsys.readouterr().err
