"""What-if: estimates from stored tile masses are the method's own choice, and the page says what they are."""

import json
import shlex
from pathlib import Path

import numpy as np
import pytest
import torch
from streamlit.testing.v1 import AppTest
from synthetic_trace import write_synthetic_trace

from app import estimating, jobs, snippets
from app.figures import interactive, static, what_if
from sampleattn import cli
from sampleattn.analysis import analyse
from sampleattn.block_mask import Grid
from sampleattn.config import SampleAttentionConfig
from sampleattn.estimate import choose_again, estimate, estimates, reached_by, recorded_recall
from sampleattn.filtering import select
from sampleattn.sampling import sampled_rows
from sampleattn.trace import Trace

CPU = torch.device("cpu")
KINDS = [dict(selection="joint"), dict(selection="joint", density=0.5), dict(selection="independent"), dict(selection="window")]


def masses_of(grid, rows, heads=3, seed=0):
    """fp32 [1, H, R, key blocks] that float16 holds exactly; nothing where a row is none or a tile above the diagonal."""
    x = torch.rand(1, heads, rows.shape[1], grid.key_blocks, generator=torch.Generator().manual_seed(seed)) ** 12
    x *= ((grid.slash_of_rows(rows.clamp_min(0) // grid.block) >= 0) & (rows >= 0)[..., None])[:, None]
    return (x / x.sum(-1, keepdim=True).clamp_min(1e-9)).half().float()


@pytest.mark.parametrize("tokens, sampling", [(1000, "spread"), (4097, "spread"), (4200, "tail"), (130, "tail")])
@pytest.mark.parametrize("scope", ["head", "segment"])
@pytest.mark.parametrize("kind", KINDS)
def test_the_choice_from_stored_masses_is_the_methods_own(kind, scope, tokens, sampling):
    config = SampleAttentionConfig(scope=scope, sampling=sampling, sample_ratio=0.1, **kind)
    grid = Grid(tokens, tokens, 128, CPU)
    rows = sampled_rows(grid, config)
    masses = masses_of(grid, rows)
    made = select(masses, rows, grid, config)
    stored = rows[0] >= 0
    again = choose_again(masses[0, :, stored], rows[0, stored], tokens, config)
    assert torch.equal(again.block_mask, made.block_mask)
    assert torch.equal(again.columns, made.columns) and torch.equal(again.slashes, made.slashes)


@pytest.fixture(scope="module")
def layer():
    """q, k, v [1, 4, 3000, 32] of heads with few strong keys and a strong distance, so that selections are sparse."""
    rng = torch.Generator().manual_seed(1)
    q, k, v = (torch.randn(1, 4, 3000, 32, generator=rng) for _ in range(3))
    k[:, :, ::701] += 3 * q.mean(2, keepdim=True) + 2
    q += 1.5
    q[:, :2, 900:] += 1.5 * k[:, :2, :-900]
    return q, k, v


@pytest.mark.parametrize("settings, stored", [
    (dict(), 96), (dict(scope="segment"), 96), (dict(selection="independent"), 96),
    (dict(sample_ratio=0.5, max_sampled_rows=1024), 512),
])  # fmt: skip
def test_at_the_recorded_settings_the_estimate_is_what_was_recorded(layer, settings, stored):
    """Masses are stored as float16, so 1 in 100 tiles may differ; of 1,024 rows 512 are stored, so 1 in 20 may."""
    q, k, v = layer
    config = SampleAttentionConfig(**settings)
    arrays, *_ = analyse(q, k, v, v, config, 32**-0.5)
    recorded = np.unpackbits(arrays["block_mask"], axis=-1, count=24, bitorder="little").astype(bool)
    assert len(arrays["rows"]) == stored and 0.1 < arrays["density"].mean() < 0.95
    rows = torch.from_numpy(arrays["rows"].astype(np.int64))
    again = choose_again(torch.from_numpy(arrays["tile_masses"]).float(), rows, 3000, config)
    found = estimate(again, config)
    assert (again.block_mask[0].numpy() != recorded).sum() <= (0.01 if stored < 512 else 0.05) * recorded.sum()
    assert np.abs(found.density - arrays["density"]).max() < 0.02
    if stored < 512:
        assert found.worst == pytest.approx(arrays["sampled_cra"], abs=0.02)


def test_the_numbers_of_an_estimate_are_those_of_its_rows():
    config = SampleAttentionConfig(selection="independent", rows_at_target=0.75)
    grid = Grid(2000, 2000, 128, CPU)
    rows = sampled_rows(grid, config)
    masses = masses_of(grid, rows, heads=2)
    selection = select(masses, rows, grid, config)
    found = estimate(selection, config)
    for head in range(2):
        mask = selection.block_mask[0, head].numpy()
        recall = np.array([1 - masses[0, head, n].numpy()[~mask[row // 128]].sum() for n, row in enumerate(rows[0].tolist())])
        assert found.worst[head] == pytest.approx(recall.min(), abs=1e-5)
        assert found.at_target[head] == pytest.approx((recall >= config.cra).mean(), abs=1.5 / len(recall))
        assert (recall >= found.recall[head] - 1e-5).mean() >= 0.75 > (recall > found.recall[head] + 1e-5).mean()
        assert found.density[head] == pytest.approx(mask.sum() / (16 * 17 / 2))


def test_reached_by_counts_rows():
    recall = np.array([0.1, 0.9, 0.5, 0.7])
    assert [reached_by(recall, share) for share in (1, 0.75, 0.5, 0.25, 0.01)] == [0.1, 0.5, 0.7, 0.9, 0.9]


def test_segments_without_a_stored_row_are_told():
    rows = torch.tensor([100, 200, 300])
    with pytest.raises(ValueError, match="choose per head"):
        choose_again(torch.ones(1, 3, 16), rows, 2048, SampleAttentionConfig(scope="segment", segments=8))


# A trace and its estimates


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    place = tmp_path_factory.mktemp("what_if") / "trace"
    write_synthetic_trace(place, layers=3, heads=4, tokens=1500, pin_layers=(), sample_ratio=0.1)
    return place


@pytest.fixture(scope="module")
def trace(folder):
    return Trace.load(folder)


def done(known, config):
    job = jobs.Job(known.work(config))
    assert job.wait(60) and job.state == "done", job.error
    return known.board(config)


def test_a_lower_target_takes_fewer_tiles_and_keeps_less(trace):
    known = estimating.Estimates(trace)
    low = estimating.changed(trace.config, cra=0.6, selection="joint")
    found = done(known, low)
    assert known.all_done(low) and known.complete(trace.config)
    assert found.density.shape == (3, 4) and (found.density <= known.board(trace.config).density + 1e-6).all()
    assert found.density.mean() < known.board(trace.config).density.mean()
    assert (known.sampled_rows == len(trace.rows(0))).all()
    assert known.recorded_recall[1] == pytest.approx(recorded_recall(trace, 1))
    again = np.concatenate([part.density for _, part in estimates(trace, 2, low)])
    assert np.array_equal(again, found.density[2].astype(np.float32))


def test_a_cancelled_job_leaves_what_is_done(trace):
    known = estimating.Estimates(trace)
    job = jobs.Job(known.work(trace.config))
    job.cancel.set()
    assert job.wait(60) and job.state == "cancelled" and not known.all_done(trace.config)
    assert done(known, trace.config).ready == {0, 1, 2}


def test_shares_fixed_for_other_settings_fall_away():
    recorded = SampleAttentionConfig(selection="independent", alpha_columns=0.9, alpha_slashes=0.8)
    assert estimating.changed(recorded, cra=0.95, selection="independent", sink_blocks=2).alpha_columns == 0.9
    assert estimating.changed(recorded, cra=0.9, selection="independent").alpha_columns is None
    fixed = SampleAttentionConfig(density=0.1)
    assert estimating.changed(fixed, cra=0.95, selection="window").density is None
    assert [config.cra for config in estimating.curve(SampleAttentionConfig(cra=0.7))] == [0.7, 0.8, 0.9, 0.95, 0.99]


# Taking settings along


@pytest.mark.parametrize("config", [
    SampleAttentionConfig(), SampleAttentionConfig(cra=0.87, selection="window", scope="segment", sink_blocks=3, segments=4),
])  # fmt: skip
def test_python_command_and_json_all_make_the_config(config):
    scope = {}
    exec(snippets.python(config).split("with ")[0], scope)
    assert scope["config"] == config
    line = snippets.command(config, "my models/one").replace("\\\n", " ")
    args = cli._parser(with_bench=False).parse_args(shlex.split(line)[3:])
    assert args.model == "my models/one"
    assert SampleAttentionConfig(**{name: getattr(args, name) for name in config.to_dict()}) == config
    assert SampleAttentionConfig.from_dict(json.loads(config.to_json())) == config


def test_the_curve_is_drawn_with_what_was_recorded():
    points = [what_if.Point(0.9, 0.4, 0.92, 0.9), what_if.Point(0.8, 0.2, 0.85, 0.8)]
    chart = what_if.chart(points, points[0], what_if.Point(0.95, 0.5, 0.95, 0.7), 0.97, 512, "title", "footer")
    assert chart.values["target"].tolist() == [0.8, 0.9] and chart.values["density"].tolist() == [0.2, 0.4]
    assert chart.y_range[0] < 0.7
    names = [trace.name for trace in interactive.figure(chart).data]
    assert any("512 sampled rows" in name for name in names) and any("recorded" in name for name in names)
    assert static.picture(chart, "svg").startswith(b"<?xml")


# The page


MAIN = str(Path(__file__).resolve().parents[1] / "app" / "main.py")


def start(monkeypatch, folder, **query):
    """The app at this page, all estimated."""
    from app import frame

    monkeypatch.setenv("SAMPLEATTN_DEMO", str(folder))
    monkeypatch.setattr(frame, "PAGES", tuple(sorted(frame.PAGES, key=lambda entry: entry[2] != "what_if")))
    monkeypatch.setattr(frame, "START", "what_if")
    app = AppTest.from_file(MAIN, default_timeout=60)
    for name, value in query.items():
        app.query_params[name] = str(value)
    return settled(app.run())


def settled(app):
    for _ in range(100):
        assert not app.exception
        if "Estimating." not in words(app) and not any(button.key == "estimate_cancel" for button in app.button):
            break
        app.run()
    return app


def words(app) -> str:
    kinds = (app.markdown, app.caption, app.error, app.info)
    return "\n".join(element.value.replace("\\", "") for kind in kinds for element in kind)


def test_the_recorded_settings_are_shown_as_exact(monkeypatch, folder, trace):
    said = words(start(monkeypatch, folder))
    assert f"The recorded settings compute {trace.density.mean():.1%} of the tiles" in said
    assert "How good is the estimate?" in said


def test_other_settings_are_estimates_and_say_so(monkeypatch, folder, trace):
    app = start(monkeypatch, folder, if_cra=0.7, if_scope="segment")
    expected = done(estimating.Estimates(trace), trace.config.replace(cra=0.7, scope="segment"))
    assert f"Target 0.7, joint, per segment: about {expected.density.mean():.1%} of the tiles" in words(app)
    assert "estimated" in words(app)
    app.slider(key="if_cra").set_value(0.8).run()
    assert "Target 0.8, joint, per segment: about" in words(settled(app))
    codes = [element.value for element in app.code]
    assert "cra=0.8" in codes[0] and "--scope segment" in codes[1] and json.loads(codes[2])["cra"] == 0.8


def test_run_exactly_opens_use_my_text_with_these_settings_and_the_text(monkeypatch, folder, trace):
    sent = []
    from app import session

    monkeypatch.setattr(session, "go_to_text", lambda text, **query: sent.append((text, query)))
    app = start(monkeypatch, folder, if_cra=0.8)
    next(button for button in app.button if button.label == "Run exactly").click().run()
    (text, query), *more = sent
    assert text == trace.text and not more
    assert query == {"model": "hub", "model_hub": "synthetic", "cra": "0.8", "sample_ratio": "0.1"}


def test_a_trace_without_sampled_rows_says_what_to_do(monkeypatch, tmp_path):
    write_synthetic_trace(tmp_path / "short", layers=1, heads=1, kv_heads=1, tokens=10, pin_layers=())
    assert "holds no sampled rows" in words(start(monkeypatch, tmp_path / "short"))


def test_settings_that_cannot_be_estimated_say_why(monkeypatch, tmp_path):
    write_synthetic_trace(tmp_path / "few", layers=1, heads=2, tokens=1500, pin_layers=(), sample_ratio=0.002, segments=12)
    app = start(monkeypatch, tmp_path / "few", if_scope="segment")
    assert "can't be estimated" in words(app) and "choose per head" in words(app)


def test_settings_that_use_my_text_lacks_are_left_to_the_command(monkeypatch, tmp_path):
    write_synthetic_trace(tmp_path / "fixed", layers=1, heads=2, tokens=1500, pin_layers=(), sample_ratio=0.1, density=0.9)
    app = start(monkeypatch, tmp_path / "fixed")
    assert next(button for button in app.button if button.label == "Run exactly").disabled
    assert "does not offer these settings" in words(app) and "--density 0.9" in app.code[1].value
