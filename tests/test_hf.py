"""The model adapter against each family's own eager attention, on tiny randomly initialised models."""

import logging
import threading

import pytest
import torch
from tiny_models import FAMILIES, LIMITED, SIZES, VOCABULARY, WINDOW, tiny_model, tokens
from transformers import (
    AutoConfig,
    AutoModel,
    AutoModelForCausalLM,
    AutoModelForImageTextToText,
    CompileConfig,
    DynamicCache,
    StaticCache,
)
from transformers.masking_utils import causal_mask_function, sdpa_mask, sliding_window_causal_mask_function

from sampleattn import SampleAttentionConfig, use_sample_attention
from sampleattn.hf import NAME, UnsupportedModelError
from sampleattn.hf_dense import dense_attention
from sampleattn.hf_mask import CausalMask, mask_for_sample_attention

LENGTH = 330
EVERYTHING = SampleAttentionConfig(cra=1.0, dense_below=64)
LITTLE = SampleAttentionConfig(cra=0.3, selection="independent", dense_below=64, block_size=32, local_blocks=1)
SETTINGS = {"dense": None, "everything": EVERYTHING}
GENERATE = {"max_new_tokens": 6, "do_sample": False, "return_dict_in_generate": True, "output_logits": True}

pytestmark = pytest.mark.filterwarnings("ignore::FutureWarning")


@pytest.fixture(autouse=True, scope="module")
def two_threads_without_gradients():
    before = torch.get_num_threads()
    torch.set_num_threads(2)
    logging.getLogger("transformers").setLevel(logging.ERROR)
    with torch.no_grad():
        yield
    torch.set_num_threads(before)


@pytest.fixture(scope="module", params=FAMILIES)
def family(request):
    return request.param


@pytest.fixture(scope="module")
def model(family):
    return tiny_model(family)


@pytest.fixture(params=SETTINGS)
def config(request):
    return SETTINGS[request.param]


@pytest.fixture
def llama():
    return tiny_model("llama", "sdpa")


def close(actual, expected):
    torch.testing.assert_close(actual, expected, atol=1e-4, rtol=1e-4)


def expected_reports(family, config):
    ran = {layer: LIMITED.get(family, {}).get(layer, "") for layer in range(2)}
    return {layer: ("dense" if reason or config is None else "sparse", reason) for layer, reason in ran.items()}


def reports(run):
    return {layer: (report.ran, report.reason) for layer, report in run.layers.items()}


# Every family


def test_prefill_equals_eager(family, model, config):
    ids = tokens(2, LENGTH)
    expected = model(ids).logits
    with use_sample_attention(model, config) as run:
        close(model(ids).logits, expected)
    assert reports(run) == expected_reports(family, config)
    assert model.config._attn_implementation == "eager"


@pytest.mark.parametrize("side", ["left", "right"])
def test_padded_batch_equals_eager(family, model, config, side):
    ids = tokens(3, LENGTH)
    real = torch.ones_like(ids)
    for row, count in enumerate((0, 57, 201)):
        real[row, :count] = 0
    real = real if side == "left" else real.flip(1)
    expected = model(ids, attention_mask=real).logits
    with use_sample_attention(model, config) as run:
        actual = model(ids, attention_mask=real).logits
    assert actual.isfinite().all()
    close(actual[real.bool()], expected[real.bool()])
    assert reports(run) == expected_reports(family, config)


def test_generation_after_a_left_padded_prefill_equals_eager(family, model):
    ids = tokens(3, LENGTH)
    real = torch.ones_like(ids)
    real[1, :57] = real[2, :201] = 0
    expected = model.generate(ids, attention_mask=real, **GENERATE)
    with use_sample_attention(model, EVERYTHING) as run:
        actual = model.generate(ids, attention_mask=real, **GENERATE)
    assert torch.equal(actual.sequences, expected.sequences)
    close(torch.stack(actual.logits), torch.stack(expected.logits))
    assert reports(run) == expected_reports(family, EVERYTHING)


def test_chunked_prefill_equals_eager(family, model, config):
    ids = tokens(2, LENGTH)
    expected = model.generate(ids, **GENERATE)
    with use_sample_attention(model, config) as run:
        actual = model.generate(ids, prefill_chunk_size=150, **GENERATE)
    assert torch.equal(actual.sequences, expected.sequences)
    close(torch.stack(actual.logits), torch.stack(expected.logits))
    assert reports(run) == expected_reports(family, config)


def test_left_padded_chunks_equal_eager(family, model, config):
    ids = tokens(2, LENGTH)
    real = torch.ones_like(ids)
    real[1, :200] = 0
    expected = model(ids, attention_mask=real).logits[:, 150:]
    cache = DynamicCache(config=model.config)
    with use_sample_attention(model, config) as run:
        model(ids[:, :150], attention_mask=real[:, :150], past_key_values=cache)
        assert {r.ran for r in run.layers.values()} == {"dense"}
        actual = model(ids[:, 150:], attention_mask=real, past_key_values=cache).logits
    close(actual[real[:, 150:].bool()], expected[real[:, 150:].bool()])
    assert reports(run) == expected_reports(family, config)


@pytest.mark.parametrize("chunk", [None, 150])
def test_static_cache_equals_eager(family, model, config, chunk):
    ids = tokens(2, LENGTH)
    real = torch.ones_like(ids)
    real[1, :57] = 0
    options = {"attention_mask": real, **GENERATE}
    expected = model.generate(ids, **options)
    with use_sample_attention(model, config) as run:
        actual = model.generate(ids, cache_implementation="static", disable_compile=True, prefill_chunk_size=chunk, **options)
    assert torch.equal(actual.sequences, expected.sequences)
    close(torch.stack(actual.logits), torch.stack(expected.logits))
    assert reports(run) == expected_reports(family, config)


def test_a_low_target_drops_tiles(family, model):
    ids = tokens(1, 400)
    expected = model(ids).logits
    calls = []
    with use_sample_attention(model, LITTLE, calls.append) as run:
        actual = model(ids).logits
    assert reports(run) == expected_reports(family, LITTLE)
    assert [call.ran for call in calls] == [report.ran for report in run.layers.values()]
    for call in calls:
        if call.ran == "sparse":
            assert call.selection.density.max() < 1
        else:
            assert call.selection is None
    if any(call.ran == "sparse" for call in calls):
        assert (actual - expected).abs().max() > 0.01
    else:
        close(actual, expected)


def test_half_precision_prefill_is_as_near_to_float32_as_eager(family):
    ids = tokens(1, LENGTH)
    exact, half = tiny_model(family), tiny_model(family, dtype=torch.bfloat16)
    exact.load_state_dict(half.state_dict())
    expected = exact(ids).logits
    own_error = (half(ids).logits - expected).norm()
    for config in SETTINGS.values():
        with use_sample_attention(half, config):
            assert (half(ids).logits - expected).norm() <= 1.5 * own_error


# What runs dense, and why


def run_llama(llama, config=EVERYTHING, length=LENGTH, **inputs):
    """The reports of a run whose real positions equal the model's own."""
    ids = inputs.pop("input_ids", tokens(1, length))
    expected = llama(ids, **inputs).logits
    with use_sample_attention(llama, config) as run:
        close(llama(ids, **inputs).logits, expected)
    assert len({(report.ran, report.reason) for report in run.layers.values()}) == 1
    return run.layers[0].ran, run.layers[0].reason


def test_short_prompts_run_dense(llama):
    config = EVERYTHING.replace(dense_below=LENGTH + 1)
    assert run_llama(llama, config) == ("dense", f"{LENGTH} tokens are fewer than dense_below = {LENGTH + 1}")
    assert run_llama(llama, config.replace(dense_below=LENGTH)) == ("sparse", "")


@pytest.mark.parametrize("length", [1, 2, 127, 128, 129])
def test_any_length_runs(llama, length):
    assert run_llama(llama, EVERYTHING.replace(dense_below=0), length)[0] == "sparse"
    assert run_llama(llama, None, length) == ("dense", "")


def test_packed_sequences_run_dense(llama):
    position_ids = torch.cat([torch.arange(200), torch.arange(LENGTH - 200)])[None]
    assert run_llama(llama, position_ids=position_ids, use_cache=False) == ("dense", "packed or custom mask")


@pytest.mark.parametrize("additive", [False, True])
def test_custom_masks_run_dense(llama, additive):
    visible = torch.rand(1, 1, LENGTH, LENGTH, generator=torch.Generator().manual_seed(0)) < 0.7
    visible = (visible | torch.eye(LENGTH, dtype=torch.bool)).tril()
    mask = torch.where(visible, 0.0, torch.finfo(torch.float32).min) if additive else visible
    assert run_llama(llama, attention_mask=mask) == ("dense", "packed or custom mask")


def test_padding_with_holes_runs_dense(llama):
    real = torch.ones(1, LENGTH, dtype=torch.int64)
    real[:, 100:120] = 0
    ids = tokens(1, LENGTH)
    expected = llama(ids, attention_mask=real).logits
    with use_sample_attention(llama, EVERYTHING) as run:
        close(llama(ids, attention_mask=real).logits[real.bool()], expected[real.bool()])
    assert reports(run) == dict.fromkeys(range(2), ("dense", "padding between real tokens"))


def test_a_row_of_padding_alone_runs_dense(llama):
    ids, real = tokens(2, LENGTH), torch.ones(2, LENGTH, dtype=torch.int64)
    real[1] = 0
    expected = llama(ids[:1]).logits
    with use_sample_attention(llama, EVERYTHING) as run:
        actual = llama(ids, attention_mask=real).logits
    close(actual[:1], expected)
    assert actual.isfinite().all()
    assert run.layers[0].reason == "a batch row without real tokens"


def test_bidirectional_use_runs_dense(llama):
    llama.config.is_causal = False
    ids = tokens(1, LENGTH)
    with use_sample_attention(llama, EVERYTHING) as run:
        for layer in llama.model.layers:
            layer.self_attn.is_causal = False
        actual = llama(ids).logits
    assert reports(run) == dict.fromkeys(range(2), ("dense", "bidirectional attention"))
    close(actual, llama(ids).logits)


def test_decoding_alone_is_reported_as_such(llama):
    ids, cache = tokens(1, LENGTH), DynamicCache()
    expected = llama(ids).logits[:, -1:]
    llama(ids[:, :-1], past_key_values=cache)
    with use_sample_attention(llama, EVERYTHING) as run:
        close(llama(ids[:, -1:], past_key_values=cache).logits, expected)
    assert reports(run) == dict.fromkeys(range(2), ("dense", "decode step"))


def test_dropout_runs_dense():
    model = tiny_model("llama")
    model.model.layers[1].self_attn.attention_dropout = 0.5
    model.train()
    with use_sample_attention(model, EVERYTHING) as run:
        model(tokens(1, LENGTH))
    assert reports(run) == {0: ("sparse", ""), 1: ("dense", "dropout in training")}


def test_windows_longer_than_the_prompt_run_sparse():
    model = tiny_model("mistral_sliding")
    ids = tokens(1, WINDOW)
    for length, ran in ((WINDOW - 1, "sparse"), (WINDOW, "sparse"), (WINDOW + 1, "dense")):
        ids = tokens(1, length)
        expected = model(ids).logits
        with use_sample_attention(model, EVERYTHING) as run:
            close(model(ids).logits, expected)
        assert {report.ran for report in run.layers.values()} == {ran}


def test_other_layers_of_a_hybrid_do_not_appear():
    config = AutoConfig.for_model(
        "qwen3_next",
        vocab_size=VOCABULARY,
        hidden_size=64,
        intermediate_size=64,
        num_hidden_layers=2,
        num_attention_heads=4,
        num_key_value_heads=2,
        head_dim=16,
        layer_types=["linear_attention", "full_attention"],
        linear_num_key_heads=2,
        linear_num_value_heads=2,
        linear_key_head_dim=16,
        linear_value_head_dim=16,
        num_experts=4,
        num_experts_per_tok=2,
        moe_intermediate_size=32,
        shared_expert_intermediate_size=32,
    )
    model = AutoModelForCausalLM.from_config(config, attn_implementation="eager").eval()
    ids = tokens(1, LENGTH)
    expected = model(ids).logits
    with use_sample_attention(model, EVERYTHING) as run:
        close(model(ids).logits, expected)
    assert reports(run) == {1: ("sparse", "")}


def test_latent_attention_with_other_value_dimensions_runs_sparse():
    config = AutoConfig.for_model(
        "deepseek_v3",
        vocab_size=VOCABULARY,
        hidden_size=64,
        intermediate_size=64,
        num_hidden_layers=2,
        num_attention_heads=4,
        num_key_value_heads=4,
        q_lora_rank=32,
        kv_lora_rank=16,
        qk_rope_head_dim=16,
        qk_nope_head_dim=16,
        v_head_dim=24,
        first_k_dense_replace=2,
    )
    model = AutoModelForCausalLM.from_config(config, attn_implementation="eager").eval()
    ids = tokens(1, LENGTH)
    expected = model(ids).logits
    with use_sample_attention(model, EVERYTHING) as run:
        close(model(ids).logits, expected)
    assert reports(run) == dict.fromkeys(range(2), ("sparse", ""))


def test_vision_towers_are_left_alone_and_image_masks_run_dense():
    text = {name: SIZES["gemma3_text"][name] for name in SIZES["gemma3_text"] if name not in ("sliding_window", "layer_types")}
    config = AutoConfig.for_model(
        "gemma3",
        text_config={**text, "vocab_size": VOCABULARY, "layer_types": ["full_attention"] * 2},
        vision_config={
            "hidden_size": 32,
            "intermediate_size": 32,
            "num_hidden_layers": 1,
            "num_attention_heads": 2,
            "image_size": 28,
            "patch_size": 14,
        },
        mm_tokens_per_image=4,
        image_token_index=1,
        boi_token_index=2,
        eoi_token_index=3,
    )
    model = AutoModelForImageTextToText.from_config(config, attn_implementation="eager").eval()
    plain = tokens(1, LENGTH)
    with_image = plain.clone()
    with_image[:, 10:14] = 1
    pixels = torch.randn(1, 3, 28, 28)
    inputs = {"input_ids": with_image, "pixel_values": pixels, "token_type_ids": (with_image == 1).long()}
    for arguments, ran in ((inputs, ("dense", "packed or custom mask")), ({"input_ids": plain}, ("sparse", ""))):
        expected = model(**arguments).logits
        with use_sample_attention(model, EVERYTHING) as run:
            assert model.config.vision_config._attn_implementation == "eager"
            close(model(**arguments).logits, expected)
        assert reports(run) == dict.fromkeys(range(2), ran)
        assert model.config.text_config._attn_implementation == "eager"


def test_compiled_decode_steps_after_a_sparse_prefill(llama, monkeypatch):
    ids = tokens(1, LENGTH)
    expected = llama.generate(ids, **GENERATE).sequences
    monkeypatch.setattr(llama, "_valid_auto_compile_criteria", lambda *arguments, **options: True)
    compiled = CompileConfig(fullgraph=True, backend="eager", mode=None)
    with use_sample_attention(llama, EVERYTHING) as run:
        actual = llama.generate(ids, cache_implementation="static", compile_config=compiled, **GENERATE).sequences
    assert torch.equal(actual, expected)
    assert reports(run) == expected_reports("llama", EVERYTHING)


# Observers


def test_observers_see_each_prefill_call_and_no_decode_step(llama):
    ids, real = tokens(2, LENGTH), torch.ones(2, LENGTH, dtype=torch.int64)
    real[1, :57] = 0
    calls = []
    with use_sample_attention(llama, EVERYTHING, calls.append):
        llama.generate(ids, attention_mask=real, cache_implementation="static", disable_compile=True, max_new_tokens=4)
    assert [call.layer for call in calls] == [0, 1]
    for call in calls:
        assert call.query.shape == (2, 4, LENGTH, 16)
        assert call.key.shape == call.value.shape == (2, 2, LENGTH, 16)
        assert call.output.shape == call.query.shape
        assert torch.equal(call.padding, real.bool())
        assert (call.ran, call.reason, call.eligible, call.scale) == ("sparse", "", True, 0.25)
        assert call.seconds > 0


def test_a_dense_run_is_observed_and_says_what_could_run_sparse():
    calls = []
    model = tiny_model("gemma3_text")
    with use_sample_attention(model, None, calls.append):
        model(tokens(1, LENGTH))
    assert [(call.ran, call.eligible) for call in calls] == [("dense", False), ("dense", True)]
    assert calls[1].padding is None


# Contexts


def test_the_implementation_comes_back(llama):
    with use_sample_attention(llama, EVERYTHING):
        assert llama.config._attn_implementation == NAME
        with use_sample_attention(llama, None):
            assert llama.config._attn_implementation == NAME
        assert llama.config._attn_implementation == NAME
    assert llama.config._attn_implementation == "sdpa"


def test_the_implementation_comes_back_after_an_exception(llama):
    def stop(call):
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt), use_sample_attention(llama, EVERYTHING, stop):
        llama(tokens(1, LENGTH))
    assert llama.config._attn_implementation == "sdpa"


def test_the_innermost_context_of_a_model_counts(llama):
    other, ids = tiny_model("qwen3"), tokens(1, LENGTH)
    with use_sample_attention(llama, LITTLE) as outer:
        with use_sample_attention(other, None) as others, use_sample_attention(llama, None) as inner:
            llama(ids)
            other(ids)
        assert not outer.layers
        llama(ids)
    assert [run.layers[0].ran for run in (outer, inner, others)] == ["sparse", "dense", "dense"]


def test_models_that_share_a_configuration(llama):
    twin, ids = type(llama)(llama.config), tokens(1, LENGTH)
    first = use_sample_attention(llama, EVERYTHING)
    with first, use_sample_attention(twin, None) as run:
        twin(ids)
    assert run.layers[0].ran == "dense"
    assert llama.config._attn_implementation == "sdpa"


def test_threads_do_not_disturb_each_other(llama):
    ids, rounds = tokens(1, LENGTH), 6
    dense = llama(ids).logits
    with use_sample_attention(llama, LITTLE):
        sparse = llama(ids).logits
    assert (sparse - dense).abs().max() > 0.01
    cases = {"none": (None, dense), "everything": (EVERYTHING, dense), "little": (LITTLE, sparse), "no context": ("-", dense)}
    barrier, failures = threading.Barrier(len(cases)), []

    def work(name):
        config, expected = cases[name]
        try:
            with torch.no_grad():
                for _ in range(rounds):
                    barrier.wait(60)
                    if config == "-":
                        actual = llama(ids).logits
                    else:
                        with use_sample_attention(llama, config) as run:
                            actual = llama(ids).logits
                        assert {report.ran for report in run.layers.values()} == {"sparse" if config else "dense"}
                    close(actual, expected)
        except BaseException as error:
            failures.append((name, error))
            barrier.abort()

    threads = [threading.Thread(target=work, args=(name,)) for name in cases]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert not failures
    assert llama.config._attn_implementation == "sdpa"


def test_a_thread_without_a_context_runs_dense(llama):
    ids, seen = tokens(1, LENGTH), []
    expected = llama(ids).logits

    def work():
        with torch.no_grad():
            seen.append(llama(ids).logits)

    with use_sample_attention(llama, LITTLE) as run:
        thread = threading.Thread(target=work)
        thread.start()
        thread.join()
    close(seen[0], expected)
    assert not run.layers


def test_gradients_flow_through_dense_runs_and_fail_through_sparse_ones(llama):
    ids = tokens(1, LENGTH)
    with torch.enable_grad():
        llama(ids).logits.sum().backward()
        expected = llama.model.embed_tokens.weight.grad.clone()
        llama.zero_grad()
        with use_sample_attention(llama, None):
            llama(ids).logits.sum().backward()
        torch.testing.assert_close(llama.model.embed_tokens.weight.grad, expected, atol=1e-3, rtol=1e-3)
        with use_sample_attention(llama, EVERYTHING), pytest.raises(RuntimeError, match="no backward pass"):
            llama(ids).logits.sum().backward()


# Refusals


def from_config(kind, auto=AutoModel, **sizes):
    return auto.from_config(AutoConfig.for_model(kind, vocab_size=VOCABULARY, **sizes))


SMALL = {"hidden_size": 32, "num_hidden_layers": 1}
REFUSED = {
    "mamba": (lambda: from_config("mamba", **SMALL, state_size=4), "state-space"),
    "rwkv": (lambda: from_config("rwkv", hidden_size=32, num_hidden_layers=2), "AttentionInterface"),
    "falcon": (lambda: from_config("falcon", **SMALL, num_attention_heads=2), "AttentionInterface"),
    "bert": (lambda: from_config("bert", **SMALL, num_attention_heads=2, intermediate_size=32), "encoder"),
    "t5": (lambda: from_config("t5", d_model=32, d_kv=16, d_ff=32, num_layers=1, num_heads=2), "encoder-decoder"),
    "compiled": (lambda: torch.compile(tiny_model("llama"), backend="eager"), "is compiled"),
    "module": (lambda: torch.nn.Linear(2, 2), "not a transformers model"),
}


@pytest.mark.parametrize("name", REFUSED)
def test_unsupported_models_are_refused_with_the_reason(name):
    build, reason = REFUSED[name]
    model = build()
    with pytest.raises(UnsupportedModelError, match=reason), use_sample_attention(model, EVERYTHING):
        raise AssertionError("entered")
    if name != "module":
        assert model.config._attn_implementation != NAME


def test_settings_must_be_a_config(llama):
    with pytest.raises(TypeError, match="SampleAttentionConfig"), use_sample_attention(llama, {"cra": 0.9}):
        raise AssertionError("entered")


# Masks and the dense path


@pytest.mark.parametrize("window", [None, 7, 40])
@pytest.mark.parametrize("offsets", [(0, 0), (13, 0), (20, 9)])
def test_causal_masks_have_the_cells_of_transformers(window, offsets):
    q_offset, kv_offset = offsets
    rows, keys = 17, 45
    function = sliding_window_causal_mask_function(window) if window else causal_mask_function
    real = torch.ones(2, keys + kv_offset, dtype=torch.bool)
    real[1, :15] = False
    arguments = (2, rows, keys, q_offset, kv_offset, function, real)
    mask = mask_for_sample_attention(*arguments)
    assert isinstance(mask, CausalMask) and mask.shape == (2, 1, 1, keys)
    expected = sdpa_mask(*arguments, allow_is_causal_skip=False)
    assert torch.equal(mask.part((0, rows), (0, keys)), expected)
    assert not expected[..., mask.end :].any()


def test_causal_masks_take_the_memory_of_one_row():
    mask = mask_for_sample_attention(1, 1 << 20, 1 << 20)
    assert isinstance(mask, CausalMask)
    assert mask.real.untyped_storage().nbytes() == 1 << 20


def test_a_model_that_calculates_with_its_mask_is_stopped():
    mask = CausalMask.of(torch.ones(1, 8, dtype=torch.bool), 8)
    moved = mask.to("cpu", copy=True)
    assert isinstance(moved, CausalMask) and moved.rows == 8
    for misuse in (lambda: torch.ones(8) + mask, lambda: mask[..., :4], lambda: ~mask, lambda: torch.where(mask, 0, 1)):
        with pytest.raises(UnsupportedModelError, match="calculates with its attention mask"):
            misuse()


@pytest.mark.parametrize("window", [None, 7])
def test_dense_attention_in_many_chunks(monkeypatch, window):
    monkeypatch.setattr("sampleattn.hf_dense.SCORES_AT_ONCE", {"cpu": 2 * 4 * 50 * 3})
    generator = torch.Generator().manual_seed(0)
    q, k, v = (torch.randn(2, heads, 50, 16, generator=generator, dtype=torch.float64) for heads in (4, 2, 2))
    real = torch.ones(2, 50, dtype=torch.bool)
    real[1, :20] = False
    mask = CausalMask.of(real, 40, 10, window)
    cells = mask.part((0, 40), (0, 50))
    scores = (q[:, :, 10:] @ k.repeat_interleave(2, 1).mT * 0.25).masked_fill(~cells, -torch.inf)
    expected = scores.softmax(-1).nan_to_num(0.0) @ v.repeat_interleave(2, 1)
    close(dense_attention(q[:, :, 10:], k, v, mask, 0.25), expected)
    close(dense_attention(q[:, :, 10:], k, v, mask, 0.25, sinks=torch.full((4,), -1e9)), expected.float().double())


def test_a_static_cache_that_is_continued(llama):
    ids = tokens(1, LENGTH)
    expected = llama(ids).logits[:, 200:]
    cache = StaticCache(config=llama.config, max_cache_len=512)
    calls = []
    with use_sample_attention(llama, EVERYTHING, calls.append):
        llama(ids[:, :200], past_key_values=cache)
        close(llama(ids[:, 200:], past_key_values=cache).logits, expected)
    assert [call.key.shape[2] for call in calls] == [200, 200, LENGTH, LENGTH]
