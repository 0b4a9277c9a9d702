"""Recordings of tiny models: every number against a plain float64 computation, and every way a recording can end."""

import io
import threading

import numpy as np
import pytest
import torch
from tiny_models import tiny_model
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, processors, trainers
from transformers import PreTrainedTokenizerFast

from app import recording
from app.jobs import Job
from sampleattn import SampleAttentionConfig, sample_attention, use_sample_attention
from sampleattn.hf import UnsupportedModelError
from sampleattn.maps import attention_map
from sampleattn.memory import NotEnoughMemory
from sampleattn.metrics import oracle_density, row_recall
from sampleattn.patterns import LABELS
from sampleattn.pinning import pin
from sampleattn.predictions import pieces
from sampleattn.prompt import PromptError, tokenise
from sampleattn.recorder import RecordingCancelled, RecordingError, record
from sampleattn.summary import summarise, table
from sampleattn.trace import Trace, TraceError

TEXT = "".join(f"def area_{n}(radius):\n    return {n} * radius ** 2  # größe 数\n" for n in range(60))
CONFIG = SampleAttentionConfig(cra=0.8, rows_at_target=0.9, dense_below=64, block_size=32, sample_ratio=0.25)
TOKENS = 400


@pytest.fixture(scope="module")
def tokenizer():
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    alphabet = sorted(pre_tokenizers.ByteLevel(add_prefix_space=False).pre_tokenize_str(TEXT), key=len)
    alphabet = sorted({character for piece, _ in alphabet for character in piece})
    trainer = trainers.BpeTrainer(vocab_size=127, initial_alphabet=alphabet, show_progress=False)
    tokenizer.train_from_iterator([TEXT], trainer)
    tokenizer.add_special_tokens(["<s>"])
    tokenizer.post_processor = processors.TemplateProcessing("<s> $A", special_tokens=[("<s>", tokenizer.token_to_id("<s>"))])
    return PreTrainedTokenizerFast(tokenizer_object=tokenizer)


@pytest.fixture(scope="module")
def model():
    return tiny_model("llama")


@pytest.fixture(scope="module")
def trace(model, tokenizer):
    return record(model, tokenizer, TEXT, CONFIG, max_tokens=TOKENS, pin_layers=[1], continuation=12, title="areas")


@pytest.fixture(scope="module")
def dense_calls(model, trace):
    seen = []
    with torch.no_grad(), use_sample_attention(model, None, seen.append):
        model(input_ids=torch.tensor([trace.token_ids.tolist()]))
    return seen


def test_the_trace_says_what_was_recorded(trace, model):
    meta = trace.meta
    assert trace.complete and trace.length == TOKENS and trace.recorded_layers == [0, 1]
    assert (trace.layers, trace.heads, trace.kv_heads) == (2, 4, 2)
    assert meta["settings"] == CONFIG.to_dict() and meta["prompt"]["title"] == "areas"
    assert meta["prompt"]["cut_from_characters"] == len(TEXT) > meta["prompt"]["characters"] == len(trace.text)
    assert meta["model"]["parameters"] == sum(p.numel() for p in model.parameters())
    assert meta["model"]["revision"].startswith("sha256:")
    assert {"dense_run_s", "sparse_run_s", "analysis_s", "total_s"} <= meta["timings"].keys()
    assert all(entry["ran"] == "sparse" and entry["reason"] == "" for entry in meta["layers"])
    assert all(label in LABELS for entry in meta["layers"] for label in entry["labels"])
    assert meta["machine"]["torch"] == torch.__version__ and meta["machine"]["backend"] == "torch"


def test_tokens_are_the_prompts(trace, tokenizer):
    assert trace.token_ids.tolist() == tokenizer(TEXT)["input_ids"][:TOKENS]
    assert trace.tokens[0] == "" and trace.text == TEXT[: len(trace.text)]
    shared = [n for n in range(1, TOKENS) if tuple(trace.offsets[n]) == tuple(trace.offsets[n - 1])]
    assert all(not trace.tokens[n].isascii() for n in shared)
    covered = "".join(token for n, token in enumerate(trace.tokens) if n not in shared)
    assert covered == trace.text


@pytest.mark.parametrize("layer", [0, 1])
def test_the_layers_numbers_are_exact(trace, dense_calls, layer):
    call = dense_calls[layer]
    q, k, v = (x.double() for x in (call.query, call.key, call.value))
    scores = q @ k.repeat_interleave(2, 1).transpose(-1, -2) * call.scale
    weights = scores.masked_fill(~torch.ones(TOKENS, TOKENS).tril().bool(), -torch.inf).softmax(-1)[0]
    out, selection = sample_attention(call.query, call.key, call.value, CONFIG, scale=call.scale, return_selection=True)
    mask = selection.block_mask[0]
    cells = mask.repeat_interleave(32, 1).repeat_interleave(32, 2)[:, :TOKENS, :TOKENS]
    recall = (weights * cells).sum(-1)
    padded = torch.nn.functional.pad(weights, (0, -TOKENS % 32, 0, -TOKENS % 32))
    tiles = padded.unflatten(-1, (-1, 32)).sum(-1).unflatten(1, (-1, 32)).sum(2)
    overview = attention_map(q, k, shape=(TOKENS, TOKENS), scale=call.scale)[0]
    error = (out[0].double() - weights @ v[0].repeat_interleave(2, 0)).flatten(1).norm(dim=1)
    error = error / (weights @ v[0].repeat_interleave(2, 0)).flatten(1).norm(dim=1)
    for head in range(4):
        assert np.array_equal(trace.block_mask(layer, head), mask[head].numpy())
        np.testing.assert_allclose(trace.recall(layer, head), recall[head], atol=2e-6)
        np.testing.assert_allclose(trace.overview(layer, head), overview[head], atol=1e-3)
        np.testing.assert_allclose(trace.column_mass(layer, head), tiles[head].sum(0) / TOKENS, atol=1e-6)
        slashes = [tiles[head].diagonal(-n).sum() / TOKENS for n in range(len(tiles[head]))]
        np.testing.assert_allclose(trace.slash_mass(layer, head), slashes, atol=1e-6)
        assert trace.columns(layer, head).tolist() == selection.columns[0, head].any(0).nonzero()[:, 0].tolist()
        assert trace.slashes(layer, head).tolist() == selection.slashes[0, head].any(0).nonzero()[:, 0].tolist()
        np.testing.assert_allclose(trace.tile_masses(layer, head), selection.tile_masses[0, head], atol=1e-3)
    np.testing.assert_allclose(trace.cra[layer], recall.amin(-1), atol=2e-6)
    np.testing.assert_allclose(trace.rows_at_target[layer], (recall >= 0.8).double().mean(-1), atol=1.1 / TOKENS)
    np.testing.assert_allclose(trace.output_error[layer], error, atol=1e-5)
    np.testing.assert_allclose(trace.density[layer], selection.density[0])
    np.testing.assert_allclose(trace.sampled_cra[layer], selection.sampled_cra[0])
    expected = oracle_density(call.query, call.key, 0.8, call.scale, block_size=32)[0]
    np.testing.assert_allclose(trace.oracle_density[layer], expected, atol=1e-6)
    expected = row_recall(call.query, call.key, mask[None], call.scale, block_size=32)[0]
    np.testing.assert_allclose(trace.recall(layer, 0), expected[0], atol=1e-5)


@pytest.mark.parametrize(("tokens", "block"), [(700, 32), (1100, 128), (600, 512)])
def test_the_overview_is_the_pooled_map(tokenizer, tokens, block):
    seen = []
    model = tiny_model("llama")
    model.config.max_position_embeddings = 2048
    trace = record(model, tokenizer, TEXT, CONFIG.replace(block_size=block), max_tokens=tokens, continuation=1)
    with torch.no_grad(), use_sample_attention(model, None, seen.append):
        model(input_ids=torch.tensor([trace.token_ids.tolist()]))
    expected = attention_map(seen[0].query, seen[0].key, shape=(512, 512), scale=seen[0].scale)[0]
    for head in range(trace.heads):
        np.testing.assert_allclose(trace.overview(0, head), expected[head], atol=1e-3)


def test_windows_of_a_pinned_layer(trace, dense_calls):
    call = dense_calls[1]
    expected = attention_map(call.query, call.key, (100, 333), (20, 300), (40, 50), "mean", call.scale)[0]
    for head in range(4):
        found = trace.window(1, head, (100, 333), (20, 300), (40, 50), "mean")
        np.testing.assert_allclose(found, expected[head], atol=1e-6)
        assert trace.pinned(1, head) and not trace.pinned(0, head)


def test_heads_are_pinned_after_the_fact(trace, model, tmp_path):
    place = trace.save(tmp_path / "t.zip")
    before = Trace.load(place)
    shares = []
    again = pin(place, model, [(0, 2), (1, 1)], tick=shares.append)
    assert again.pinned(0, 2) and not again.pinned(0, 1) and shares == [0.5, 1.0]
    window = (0, trace.length), (0, trace.length), (trace.length, trace.length)
    np.testing.assert_allclose(again.window(0, 2, *window).sum(axis=1), 1, atol=1e-5)
    np.testing.assert_allclose(again.window(1, 1, *window), before.window(1, 1, *window), atol=1e-6)
    rounded = pin(trace.save(tmp_path / "half"), model, [(0, 2)], half=True)
    np.testing.assert_allclose(rounded.window(0, 2, *window).sum(axis=1), 1, atol=1e-5)
    np.testing.assert_allclose(rounded.window(0, 2, *window), again.window(0, 2, *window), atol=2e-3)
    with pytest.raises(PromptError, match="layers are 0 to 1"):
        pin(place, model, [(2, 0)])


def test_the_app_pins_a_head_in_a_copy(trace, model, monkeypatch):
    monkeypatch.setattr("sampleattn.models.load_model", lambda *_, **__: (model, None, {}))
    job = Job(recording.pin_work(trace, "tiny", 0, 3))
    assert job.wait(60) and job.state == "done", job.error
    assert job.result.pinned(0, 3) and job.result.pinned(1, 0) and not trace.pinned(0, 3)
    job = Job(recording.pin_work(trace, "tiny", 0, 9))
    assert job.wait(60) and job.state == "failed" and "heads 0 to 3" in recording.sentence(job.error)


def test_another_model_can_not_pin(trace, tmp_path):
    place = trace.save(tmp_path / "t.zip")
    before = place.read_bytes()
    other = tiny_model("llama")
    with torch.no_grad():
        for weights in other.parameters():
            weights.mul_(1.5)
    with pytest.raises(RecordingError, match="not the recorded ones"):
        pin(place, other, [(1, 0)])
    assert place.read_bytes() == before


def test_predictions_are_those_of_the_runs(trace, model):
    output = trace.output
    ids = torch.tensor([trace.token_ids.tolist()])
    with torch.no_grad():
        with use_sample_attention(model, None):
            dense = model(input_ids=ids).logits[0]
            generated = model.generate(ids, max_new_tokens=12, min_new_tokens=12, do_sample=False)[0, TOKENS:]
        with use_sample_attention(model, CONFIG):
            sparse = model(input_ids=ids).logits[0]
            own = model.generate(ids, max_new_tokens=12, min_new_tokens=12, do_sample=False)[0, TOKENS:]
            forced = model(input_ids=ids, use_cache=True)
            rows = [forced.logits[0, -1]]
            for token in generated[:-1]:
                step = model(input_ids=token.view(1, 1), past_key_values=forced.past_key_values, use_cache=True)
                rows.append(step.logits[0, -1])
    np.testing.assert_allclose(output.logits_dense, dense[-1], atol=1e-4)
    np.testing.assert_allclose(output.logits_sparse, sparse[-1], atol=1e-4)
    assert output.continuation_dense.tolist() == generated.tolist()
    assert output.continuation_sparse.tolist() == own.tolist()
    assert output.positions.tolist() == list(range(TOKENS - 1))
    a, b = dense[:-1].log_softmax(-1), sparse[:-1].log_softmax(-1)
    np.testing.assert_allclose(output.kl, (a.exp() * (a - b)).sum(-1), atol=1e-5)
    targets = ids[0, 1:, None]
    np.testing.assert_allclose(output.nll_dense, -a.gather(1, targets)[:, 0], atol=1e-4)
    np.testing.assert_allclose(output.nll_sparse, -b.gather(1, targets)[:, 0], atol=1e-4)
    assert output.top1_equal.tolist() == (a.argmax(-1) == b.argmax(-1)).tolist()
    with torch.no_grad(), use_sample_attention(model, None):
        along = model(input_ids=torch.cat([ids[0], generated[:-1]])[None]).logits[0, TOKENS - 1 :].log_softmax(-1)
    rows = torch.stack(rows).log_softmax(-1)
    np.testing.assert_allclose(output.continuation_kl, (along.exp() * (along - rows)).sum(-1), atol=1e-4)
    assert len(output.continuation_dense_text) == 12 and output.next_tokens[0]["id"] == int(dense[-1].argmax())


def test_everything_kept_changes_nothing(model, tokenizer):
    trace = record(model, tokenizer, TEXT, CONFIG.replace(cra=1.0), max_tokens=300, continuation=8)
    assert trace.output.first_difference is None and trace.output.kl.max() < 1e-6
    assert trace.output.top1_equal.all() and trace.cra.min() > 0.9999 and trace.rows_at_target.min() == 1
    assert trace.density.min() == 1 and trace.output_error.max() < 1e-4
    assert "equal for all 8 tokens" in table(trace)


def test_short_prompts_run_dense_and_are_still_drawn(model, tokenizer):
    trace = record(model, tokenizer, "x = 1", SampleAttentionConfig(), continuation=2)
    assert trace.complete and all("dense_below" in trace.layer_reason(layer) for layer in range(2))
    assert trace.recorded_layers == [0, 1] and trace.cra.min() == pytest.approx(1) and trace.density.min() == 1
    assert len(trace.rows(0)) == 0 and trace.label(0, 0) == "short"
    assert summarise(trace)["sparse_layers"] == 0 and "dense_below" in table(trace)


def test_layers_that_are_not_plain_causal_are_named(tokenizer):
    trace = record(tiny_model("gemma3_text"), tokenizer, TEXT, CONFIG, max_tokens=200, continuation=4)
    assert trace.complete and trace.recorded_layers == [1]
    assert "sliding window" in trace.layer_reason(0) and trace.label(0, 0) == ""
    assert np.isnan(trace.density[0]).all() and not np.isnan(trace.density[1]).any()
    with pytest.raises(TraceError, match="sliding window"):
        trace.overview(0, 0)
    nothing = record(tiny_model("gpt_oss"), tokenizer, TEXT, CONFIG, max_tokens=200, continuation=4)
    assert nothing.complete and nothing.recorded_layers == [] and summarise(nothing)["density"] is None
    assert "attention sinks" in table(nothing)


@pytest.mark.parametrize("family", ["gpt2", "mixtral"])
def test_other_families(tokenizer, family):
    trace = record(tiny_model(family), tokenizer, TEXT, CONFIG, max_tokens=150, continuation=3)
    assert trace.complete and trace.recorded_layers == [0, 1]


def test_a_model_without_attention_is_refused(tokenizer):
    with pytest.raises((UnsupportedModelError, PromptError)):
        record(torch.nn.Linear(2, 2), tokenizer, TEXT)


@pytest.mark.parametrize(
    ("text", "options", "words"),
    [
        ("", {}, ["empty"]),
        (" \n\t", {}, ["empty"]),
        (b"bytes", {}, ["must be text"]),
        (TEXT * 3, {}, ["tokens", "1,024", "max_tokens=1024", "--cut 1024"]),
        (TEXT * 2000, {}, ["characters", "1,024", "--cut 1024"]),
        (TEXT, {"max_tokens": 1}, ["at least 2"]),
        ("\ud800 lone", {}, ["Unicode"]),
        (TEXT, {"max_tokens": 100, "pin_layers": [7]}, ["layers are 0 to 1"]),
        (TEXT, {"max_tokens": 100, "pin_heads": [(1, 9)]}, ["heads 0 to 3"]),
    ],
)
def test_prompts_that_are_refused(model, tokenizer, tmp_path, text, options, words):
    with pytest.raises(ValueError) as caught:
        record(model, tokenizer, text, CONFIG, out=tmp_path / "t", **options)
    assert isinstance(caught.value, PromptError) and all(word in str(caught.value) for word in words)
    assert not (tmp_path / "t").exists()


def test_one_token_is_refused(model, tokenizer):
    bare = PreTrainedTokenizerFast(tokenizer_object=Tokenizer.from_str(tokenizer.backend_tokenizer.to_str()))
    bare.backend_tokenizer.post_processor = processors.ByteLevel(trim_offsets=False)
    assert len(bare("(")["input_ids"]) == 1
    with pytest.raises(PromptError, match="at least 2 tokens"):
        record(model, bare, "(")


def test_cutting_a_huge_text_is_quick(tokenizer):
    ids, offsets, text, extra = tokenise(tokenizer, TEXT * 5000, 1024, 100)
    assert len(ids) == 100 and text == TEXT[: offsets[-1, 1]] and extra["cut_from_characters"] == len(TEXT) * 5000


def test_the_context_bounds_the_continuation(tokenizer, model):
    trace = record(model, tokenizer, TEXT, CONFIG, max_tokens=1020, continuation=32)
    assert len(trace.output.continuation_dense) == 5


@pytest.mark.parametrize("stop_at", ["layer 1", "sparse run: layer 0", "continuation"])
def test_cancel_keeps_what_there_is(model, tokenizer, tmp_path, stop_at):
    cancel, shares = threading.Event(), []

    def progress(share, text, left):
        shares.append(share)
        assert left is None or left >= 0
        if stop_at in text:
            cancel.set()

    with pytest.raises(RecordingCancelled) as caught:
        record(model, tokenizer, TEXT, CONFIG, max_tokens=300, out=tmp_path / "t", cancel=cancel, progress=progress)
    assert caught.value.folder == tmp_path / "t" and shares == sorted(shares)
    partial = Trace.load(tmp_path / "t")
    assert not partial.complete and partial.output is None and 0 in partial.recorded_layers
    assert partial.recall(0, 0).shape == (300,)
    assert model.config._attn_implementation == "eager"


def test_progress_reaches_the_end(model, tokenizer):
    seen = []
    record(model, tokenizer, TEXT, CONFIG, max_tokens=200, continuation=2, progress=lambda *step: seen.append(step))
    shares = [share for share, _, _ in seen]
    assert shares == sorted(shares) and shares[0] == 0 and shares[-1] == 1
    assert any("layer 1" in text for _, text, _ in seen)


def test_the_trace_outlives_its_temporary_folder_only_when_saved(model, tokenizer, tmp_path):
    trace = record(model, tokenizer, TEXT, CONFIG, max_tokens=200, continuation=2)
    path = trace.save(tmp_path / "kept.zip")
    assert Trace.load(io.BytesIO(path.read_bytes())).complete
    with pytest.raises(TraceError, match="already exists"):
        record(model, tokenizer, TEXT, CONFIG, max_tokens=200, out=path)


def test_pieces_join_to_the_text(tokenizer):
    ids = tokenizer("größe 数 = 1", add_special_tokens=False)["input_ids"]
    texts = pieces(tokenizer, ids[:2], ids[2:])
    assert len(texts) == len(ids) - 2 and "".join(texts) == tokenizer.decode(ids)[len(tokenizer.decode(ids[:2])) :]
    assert not any("\ufffd" in text for text in texts)


def test_too_little_memory_is_explained(model, tokenizer, monkeypatch):
    def no_memory(*_, **__):
        raise NotEnoughMemory(1000, 3 << 30, 1 << 30, 400)

    monkeypatch.setattr("sampleattn.analysis.sample_attention", no_memory)
    with pytest.raises(RecordingError, match=r"ran out of memory at \d+ tokens \(.*about 400 tokens would fit\); cut the prompt"):
        record(model, tokenizer, TEXT, CONFIG, max_tokens=TOKENS)
