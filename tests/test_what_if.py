"""What-if: estimates from stored tile masses are the method's own choice, and the page says what they are."""

import json
import shlex
from pathlib import Path

import numpy as np
import pytest
import torch
from streamlit.testing.v1 import AppTest
from synthetic_trace import write_synthetic_trace
from test_recorder import CONFIG, TEXT, TOKENS, model, tokenizer  # noqa: F401

from app import estimating, jobs, recording, snippets
from app.figures import interactive, static, what_if
from sampleattn import cli, trace_levels
from sampleattn.analysis import analyse
from sampleattn.attention import sample_attention
from sampleattn.block_mask import Grid
from sampleattn.config import SampleAttentionConfig
from sampleattn.estimate import choose_again, estimate, estimates, table
from sampleattn.estimate_table import KINDS, TARGETS, EstimateTable, always_kept, of_table
from sampleattn.filtering import select
from sampleattn.joint import density
from sampleattn.recorder import record
from sampleattn.sampling import sampled_rows
from sampleattn.trace import Trace, TraceError, TraceWriter

CPU = torch.device("cpu")
DEMO = Path(__file__).resolve().parents[1] / "data" / "traces" / "demo.zip"
METHODS = [dict(selection="joint"), dict(selection="joint", density=0.5), dict(selection="independent"), dict(selection="window")]


def masses_of(grid, rows, heads=3, seed=0):
    """fp32 [1, H, R, key blocks] that float16 holds exactly; nothing where a row is none or a tile above the diagonal."""
    x = torch.rand(1, heads, rows.shape[1], grid.key_blocks, generator=torch.Generator().manual_seed(seed)) ** 12
    x *= ((grid.slash_of_rows(rows.clamp_min(0) // grid.block) >= 0) & (rows >= 0)[..., None])[:, None]
    return (x / x.sum(-1, keepdim=True).clamp_min(1e-9)).half().float()


@pytest.mark.parametrize("tokens, sampling", [(1000, "spread"), (4097, "spread"), (4200, "tail"), (130, "tail")])
@pytest.mark.parametrize("scope", ["head", "segment"])
@pytest.mark.parametrize("kind", METHODS)
def test_the_choice_from_stored_masses_is_the_methods_own(kind, scope, tokens, sampling):
    config = SampleAttentionConfig(scope=scope, sampling=sampling, sample_ratio=0.1, **kind)
    grid = Grid(tokens, tokens, 128, CPU)
    rows = sampled_rows(grid, config)
    masses = masses_of(grid, rows)
    made = select(masses, rows, grid, config)
    stored = rows[0] >= 0
    again = choose_again(masses[0, :, stored], rows[0, stored], tokens, config)
    assert torch.equal(again.columns, made.columns) and torch.equal(again.slashes, made.slashes)
    assert torch.equal(density(again.columns, again.slashes, grid, config), made.density)


@pytest.fixture(scope="module")
def layer():
    """q, k, v [1, 4, 3000, 32] of heads with few strong keys and a strong distance, so that selections are sparse."""
    rng = torch.Generator().manual_seed(1)
    q, k, v = (torch.randn(1, 4, 3000, 32, generator=rng) for _ in range(3))
    k[:, :, ::701] += 3 * q.mean(2, keepdim=True) + 2
    q += 1.5
    q[:, :2, 900:] += 1.5 * k[:, :2, :-900]
    return q, k, v


@pytest.mark.parametrize("settings", [dict(), dict(scope="segment"), dict(selection="independent")])
def test_at_the_recorded_settings_the_estimate_is_what_was_recorded(layer, settings):
    """Masses are stored as float16, so 1 in 100 tiles may differ."""
    q, k, v = layer
    config = SampleAttentionConfig(**settings)
    arrays, *_ = analyse(q, k, v, v, config, 32**-0.5)
    recorded = arrays["block_mask"]
    assert 0.1 < arrays["density"].mean() < 0.95
    rows = torch.from_numpy(arrays["rows"].astype(np.int64))
    again = choose_again(torch.from_numpy(arrays["tile_masses"]).float(), rows, 3000, config)
    found = estimate(again, config)
    mask = again.grid.tiles(again.columns, again.slashes) | again.grid.last_rows(config)
    assert (mask[0].numpy() != recorded).sum() <= 0.01 * recorded.sum()
    assert np.abs(found.density - arrays["density"]).max() < 0.02
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


def test_segments_without_a_stored_row_are_told():
    rows = torch.tensor([100, 200, 300])
    with pytest.raises(ValueError, match="choose per head"):
        choose_again(torch.ones(1, 3, 16), rows, 2048, SampleAttentionConfig(scope="segment", segments=8))


# The answers that are recorded


def test_the_table_holds_what_the_method_computes_at_each_setting(layer):
    """The very same numbers: both choose from the same masses, before these are rounded."""
    q, k, v = layer
    config = SampleAttentionConfig(sample_ratio=0.05, alpha_columns=0.5)
    *_, answers = analyse(q, k, v, v, config, 32**-0.5)
    found = EstimateTable(*(answers[name][None] for name in ("density", "recall", "at_target", "worst")), 150, config)
    assert answers["rows"] == (sampled_rows(Grid(3000, 3000, 128, CPU), config) >= 0).sum()
    for kind, target in [(kind, target) for kind in KINDS for target in (0.5, 0.83, 0.99, 1.0)]:
        wanted = of_table(config, *kind, target)
        _, selection = sample_attention(q, k, v, wanted, 32**-0.5, return_selection=True)
        expected, answer = estimate(selection, wanted), found.answers(wanted)
        for name in ("density", "recall", "at_target", "worst"):
            assert np.array_equal(answer[name][0], getattr(expected, name)), (kind, target, name)
    assert found.answers(config) is None and found.answers(config.replace(alpha_columns=None, cra=0.905)) is None


def test_a_coarse_answer_lies_between_targets_and_counts_what_is_always_kept(layer):
    q, k, v = layer
    config = SampleAttentionConfig(sample_ratio=0.1)
    *_, answers = analyse(q, k, v, v, config, 32**-0.5)
    found = EstimateTable(*(answers[name] for name in ("density", "recall", "at_target", "worst")), 300, config)
    low, between, high = (found.coarse(config.replace(cra=target), 3000)["density"] for target in (0.8, 0.805, 0.81))
    assert between == pytest.approx((low + high) / 2, abs=1e-6)
    grid = Grid(3000, 3000, 128, CPU)
    for sinks, local in ((0, 1), (1, 2), (3, 5), (40, 2)):
        other = config.replace(sink_blocks=sinks, local_blocks=local)
        kept = grid.tiles(grid.sink_columns(other), grid.local_slashes(local)) | grid.last_rows(other)
        assert always_kept(3000, other) == pytest.approx(float(grid.density(kept)), abs=1e-6)
        rough = found.coarse(other, 3000)["density"]
        _, selection = sample_attention(q, k, v, other, 32**-0.5, return_selection=True)
        assert np.abs(rough - selection.density[0].numpy()).max() < 0.12
        assert (rough >= always_kept(3000, other) - 1e-6).all() and (rough <= 1).all()


@pytest.mark.parametrize("selection", ["joint", "independent", "window"])
def test_a_coarse_answer_follows_the_number_of_segments(layer, selection):
    """From one segment, the choice per head, to the recorded number; of joint also beyond it, where few rows are left."""
    q, k, v = layer
    config = SampleAttentionConfig(sample_ratio=0.1, cra=0.8, segments=6, selection=selection, scope="segment")
    *_, answers = analyse(q, k, v, v, config, 32**-0.5)
    found = EstimateTable(*(answers[name] for name in ("density", "recall", "at_target", "worst")), 300, config)
    for segments, most in ((1, 0.06), (3, 0.12), (6, 0), (12, 0.12 if selection == "joint" else 1)):
        other = config.replace(segments=segments)
        _, selected = sample_attention(q, k, v, other, 32**-0.5, return_selection=True)
        apart = np.abs(found.coarse(other, 3000)["density"] - selected.density[0].numpy())
        assert apart.max() <= most, segments


def test_a_recording_at_other_settings_computes_what_was_estimated(model, tokenizer):  # noqa: F811
    first = record(model, tokenizer, TEXT, CONFIG, max_tokens=TOKENS, continuation=1)
    assert first.estimate_table.rows == 100
    for other in (CONFIG.replace(cra=0.7), CONFIG.replace(cra=0.9, selection="independent", scope="segment")):
        exact, answers = (
            record(model, tokenizer, TEXT, other, max_tokens=TOKENS, continuation=1),
            first.estimate_table.answers(other),
        )
        assert np.array_equal(answers["density"], exact.density.astype(np.float32))
        assert answers["worst"] == pytest.approx(exact.sampled_cra, abs=1e-5)


@pytest.mark.parametrize("selection, scope", [("independent", "head"), ("independent", "segment"), ("window", "segment")])
def test_fewer_stored_rows_tell_what_changes(monkeypatch, selection, scope):
    """As beyond 16,384 tokens: of the demo's 512 sampled rows 128 are stored. Each head's answer from all of them, moved by what
    the 128 say, is within 0.03 of the choice from all; the choice from the 128 alone is further off."""
    whole, fewer = (Trace.load(DEMO) for _ in range(2))
    kept = trace_levels.spread(512, 128)
    monkeypatch.setattr(fewer, "rows", lambda layer: whole.rows(layer)[kept])
    monkeypatch.setattr(fewer, "tile_masses", lambda layer, head: whole.tile_masses(layer, head)[kept])
    config = whole.config.replace(cra=0.8, selection=selection, scope=scope, local_blocks=8)
    expected, moved = densities(whole, config), densities(fewer, config)
    assert np.abs(moved - expected).max() < 0.03
    fewer.estimate_table = None
    assert np.abs(densities(fewer, config) - expected).mean() > 1.5 * np.abs(moved - expected).mean()


def densities(trace, config, layer=2):
    return np.concatenate([part.density for _, part in estimates(trace, layer, config)])


# A trace and its estimates


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    place = tmp_path_factory.mktemp("what_if") / "trace"
    write_synthetic_trace(place, layers=3, heads=4, tokens=1500, pin_layers=(), sample_ratio=0.1)
    return place


@pytest.fixture(scope="module")
def trace(folder):
    return Trace.load(folder)


@pytest.fixture(scope="module")
def answered(trace, tmp_path_factory):
    """The trace with recorded answers, which are those that its stored masses give."""
    place = trace.save(tmp_path_factory.mktemp("answered") / "trace")
    writer = TraceWriter.reopen(place)
    for layer in range(trace.layers):
        masses = torch.from_numpy(np.stack([trace.tile_masses(layer, head) for head in range(trace.heads)]))
        chosen = choose_again(masses, torch.from_numpy(trace.rows(layer).astype(np.int64)), trace.length, trace.config)
        writer.write_estimates(layer, table(chosen, trace.config))
    writer.update()
    return place


def test_recorded_answers_need_no_work(answered, trace):
    known = estimating.Estimates(Trace.load(answered))
    assert known.all_done(trace.config) and known.complete(trace.config.replace(cra=0.61, selection="window"))
    other = trace.config.replace(cra=0.7, scope="segment")
    assert known.board(other).rows == len(trace.rows(0)) and not known.board(other).coarse
    worked = done(estimating.Estimates(trace), other)
    assert known.board(other).density == pytest.approx(worked.density, abs=0.02)
    targets, steps = known.steps(other)
    assert targets == list(TARGETS) and np.array_equal(steps[targets.index(0.7)], known.board(other).density)
    assert len(known.curve(other)) > len(estimating.Estimates(trace).curve(other))


def test_a_coarse_board_is_refined_head_by_head(answered, trace):
    known, other = estimating.Estimates(Trace.load(answered)), trace.config.replace(sink_blocks=4)
    board = known.board(other)
    assert board.coarse and np.isfinite(board.density).all() and not known.complete(other) and not known.all_done(other)
    assert np.isfinite(known.steps(other)[1]).all()
    refined = done(known, other)
    assert refined is board and board.refined.all() and known.all_done(other)
    expected = np.concatenate([part.density for _, part in estimates(trace, 1, other)])
    assert np.array_equal(board.density[1].astype(np.float32), expected)


def test_a_joint_choice_from_fewer_rows_than_were_sampled_is_not_made(answered, monkeypatch):
    fewer = Trace.load(answered)
    kept = len(fewer.rows(0)) // 4
    monkeypatch.setattr(fewer, "rows", lambda layer: np.arange(kept))
    known, other = estimating.Estimates(fewer), fewer.config.replace(sink_blocks=4)
    assert known.all_done(other) and known.board(other).coarse and not known.board(other).refined.any()
    assert not known.all_done(other.replace(selection="independent"))


def test_estimates_that_are_no_shares_are_refused(answered, tmp_path):
    place = Trace.load(answered).save(tmp_path / "bad")
    writer = TraceWriter.reopen(place)
    shape = (4, len(KINDS), len(TARGETS))
    wrong = dict.fromkeys(("density", "recall", "at_target", "worst"), np.full(shape, np.nan, np.float32))
    writer.write_estimates(1, wrong | {"rows": np.array([9], np.int32)})
    writer.update()
    with pytest.raises(TraceError, match="Layer 1 holds estimates that are no shares"):
        _ = Trace.load(place).estimate_table
    with pytest.raises(TraceError, match="shape"):
        writer.write_estimates(1, {name: array[:, :1] for name, array in wrong.items()} | {"rows": np.array([9], np.int32)})


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
    assert found.rows == len(trace.rows(0)) and not found.coarse
    again = np.concatenate([part.density for _, part in estimates(trace, 2, low)])
    assert np.array_equal(again, found.density[2].astype(np.float32))


def test_a_cancelled_job_leaves_what_is_done(trace):
    known = estimating.Estimates(trace)
    job = jobs.Job(known.work(trace.config))
    job.cancel.set()
    assert job.wait(60) and job.state == "cancelled" and not known.all_done(trace.config)
    assert done(known, trace.config).refined.all()


def test_shares_fixed_for_other_settings_fall_away():
    recorded = SampleAttentionConfig(selection="independent", alpha_columns=0.9, alpha_slashes=0.8)
    assert estimating.changed(recorded, cra=0.95, selection="independent", sink_blocks=2).alpha_columns == 0.9
    assert estimating.changed(recorded, cra=0.9, selection="independent").alpha_columns is None
    fixed = SampleAttentionConfig(density=0.1)
    assert estimating.changed(fixed, cra=0.95, selection="window").density is None
    targets = [config.cra for config in estimating.curve(SampleAttentionConfig(cra=0.7), (0.9, 0.7, 0.95))]
    assert targets == [0.7, 0.9, 0.95]


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


def snippets_of(app) -> list[str]:
    """The texts to take along that a page shows."""
    parts = [element.proto for element in app.get("bidi_component")]
    return [json.loads(part.json) for part in parts if part.component_name == "sampleattention_snippet"]


def test_other_settings_are_estimates_and_say_so(monkeypatch, folder, trace):
    app = start(monkeypatch, folder, if_cra=0.7, if_scope="segment")
    expected = done(estimating.Estimates(trace), trace.config.replace(cra=0.7, scope="segment"))
    assert f"Target 0.7, joint, per segment: about {expected.density.mean():.1%} of the tiles" in words(app)
    assert "estimated" in words(app)
    app.session_state["if_cra"] = 0.8
    app.run()
    assert "Target 0.8, joint, per segment: about" in words(settled(app))
    codes = snippets_of(app)
    assert "cra=0.8" in codes[0] and "--scope segment" in codes[1] and json.loads(codes[2])["cra"] == 0.8


def test_a_summary_trace_gives_coarse_answers_and_says_so(monkeypatch, answered, tmp_path):
    write_synthetic_trace(tmp_path / "small", layers=3, heads=4, tokens=1500, pin_layers=(), sample_ratio=0.1, level="summary")
    writer, table = TraceWriter.reopen(tmp_path / "small"), Trace.load(answered).estimate_table
    for layer in range(3):
        arrays = {name: getattr(table, name)[layer] for name in ("density", "recall", "at_target", "worst")}
        writer.write_estimates(layer, arrays | {"rows": np.array([table.rows], np.int32)})
    writer.update()
    app = start(monkeypatch, tmp_path / "small", if_cra=0.7)
    assert "Target 0.7, joint, per head: about" in words(app) and "coarse for" not in words(app)
    app.selectbox(key="if_sink_blocks").set_value(4).run()
    assert "mean of all heads, coarse for 12 of them" in words(app) and "per head; coarse)" in words(app)


def press(app, label: str):
    next(button for button in app.button if button.label == label).click().run()


def test_run_exactly_loads_the_traces_model_only_when_run_is_pressed(monkeypatch, folder, trace):
    started = []
    monkeypatch.setattr(recording.Recording, "__call__", lambda work, job: started.append(work) or job.cancel.wait(60))
    app = start(monkeypatch, folder, if_cra=0.8)
    place = app.text_input(key="exact_model")
    assert place.value == "synthetic" and not started
    press(app, "Run")
    press(app, "Cancel")
    (work,) = started
    assert (work.model, work.text, work.heads) == ("synthetic", trace.text, (trace.layers, trace.heads))
    assert work.config.cra == 0.8 and work.revision == trace.meta["model"]["revision"]


def test_run_exactly_takes_the_model_from_where_the_user_says(monkeypatch, folder):
    monkeypatch.setattr(recording.Recording, "__call__", lambda work, job: _fails(work))
    app = start(monkeypatch, folder, if_cra=0.8)
    app.text_input(key="exact_model").set_value("/data/elsewhere").run()
    press(app, "Run")
    while app.session_state["exact_job"]:
        app.run()
    assert "/data/elsewhere None is not here" in words(app) and "What was open stays open." in words(app)


def _fails(work):
    raise ValueError(f"{work.model} {work.revision} is not here")


def test_a_model_of_other_heads_than_the_trace_is_not_run():
    wrong = recording.Recording("bundled", TEXT, "title", CONFIG, heads=(2, 2))
    job = jobs.Job(wrong)
    job.wait(60)
    assert job.state == "failed" and "give the model that was recorded" in recording.sentence(job.error)


def test_a_trace_without_sampled_rows_says_what_to_do(monkeypatch, tmp_path):
    write_synthetic_trace(tmp_path / "short", layers=1, heads=1, kv_heads=1, tokens=10, pin_layers=())
    assert "holds no sampled rows" in words(start(monkeypatch, tmp_path / "short"))


def test_settings_that_cannot_be_estimated_say_why(monkeypatch, tmp_path):
    write_synthetic_trace(tmp_path / "few", layers=1, heads=2, tokens=1500, pin_layers=(), sample_ratio=0.002, segments=12)
    app = start(monkeypatch, tmp_path / "few", if_scope="segment")
    assert "can't be estimated" in words(app) and "choose per head" in words(app)


def test_settings_that_use_my_text_lacks_can_be_run_exactly(monkeypatch, tmp_path):
    write_synthetic_trace(tmp_path / "fixed", layers=1, heads=2, tokens=1500, pin_layers=(), sample_ratio=0.1, density=0.9)
    app = start(monkeypatch, tmp_path / "fixed", if_sink_blocks=4)
    assert not app.button(key="exact_run").disabled and "--density 0.9" in snippets_of(app)[1]
