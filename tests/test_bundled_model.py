"""The bundled model: loads offline, fits its size, and does what its card says (short versions of evaluate.py's measures)."""

import json
import math
import sys
from pathlib import Path

import numpy as np
import pytest
import torch

ROOT = Path(__file__).resolve().parent.parent
MODEL, PROMPTS = ROOT / "data" / "model", ROOT / "data" / "prompts"


@pytest.fixture(scope="module")
def modules():
    """evaluate, tasks and corpus, which are scripts beside the model."""
    sys.path.insert(0, str(MODEL))
    import corpus
    import evaluate
    import tasks

    sys.path.remove(str(MODEL))
    return evaluate, tasks, corpus


@pytest.fixture(scope="module")
def tokenizer():
    from transformers import AutoTokenizer

    return AutoTokenizer.from_pretrained(MODEL, local_files_only=True)


@pytest.fixture(scope="module")
def model():
    from transformers import AutoModelForCausalLM

    return AutoModelForCausalLM.from_pretrained(MODEL, dtype=torch.float32, local_files_only=True).eval()


@pytest.fixture(scope="module")
def results():
    return json.loads((MODEL / "results.json").read_text())


@pytest.fixture(scope="module")
def manifest():
    return json.loads((MODEL / "manifest.json").read_text())


def code(tokenizer):
    """The 4K prompt of held-out code as int32 tokens, without <|bos|>."""
    text = (PROMPTS / "held_out_4k.txt").read_text()
    return np.array(tokenizer(text, add_special_tokens=False).input_ids, np.int32)


def test_weights_are_small_safetensors_shards():
    sizes = [path.stat().st_size for path in MODEL.glob("*.safetensors")]
    assert max(sizes) <= 15e6 and sum(sizes) <= 32e6


def test_config_is_a_grouped_query_llama_with_long_context(model):
    config = model.config
    assert config.model_type == "llama" and config.head_dim in (64, 128)
    assert config.num_key_value_heads < config.num_attention_heads
    assert config.num_hidden_layers >= 6 and config.max_position_embeddings >= 16384


@pytest.mark.parametrize("text", ["def f(x):\n    return x + 12345\n", "naïve ∑ 漢字 🙂\ttab\r\n", "  \n\n  x", ""])
def test_tokenizer_round_trips_and_its_offsets_cover_the_text(tokenizer, text):
    assert tokenizer.is_fast
    encoded = tokenizer(text, return_offsets_mapping=True)
    ids, offsets = encoded.input_ids[1:], encoded.offset_mapping[1:]
    assert encoded.input_ids[0] == tokenizer.bos_token_id and encoded.offset_mapping[0] == (0, 0)
    assert tokenizer.decode(ids) == text
    covered = {place for start, end in offsets for place in range(start, end)}
    assert covered == set(range(len(text)))
    assert [start for start, _ in offsets] == sorted(start for start, _ in offsets)


def test_offsets_give_each_token_s_text_on_a_real_prompt(tokenizer):
    text = (PROMPTS / "held_out_4k.txt").read_text()
    encoded = tokenizer(text, return_offsets_mapping=True)
    assert "".join(text[start:end] for start, end in encoded.offset_mapping) == text


def test_digits_are_split_one_by_one(tokenizer):
    ids = tokenizer("x = 90210", add_special_tokens=False).input_ids
    assert tokenizer.convert_ids_to_tokens(ids)[-5:] == list("90210")


def test_held_out_code_takes_less_than_one_bit_per_byte(model, tokenizer, modules):
    evaluate, _, _ = modules
    text = (PROMPTS / "held_out_4k.txt").read_text()
    assert evaluate.bits_per_byte(model, tokenizer, [text], context=8192, batch_tokens=8192) < 1.0


def test_passkey_at_1k_tokens(model, tokenizer, modules):
    evaluate, tasks, _ = modules
    made = tasks.Tasks(tokenizer.backend_tokenizer)
    assert evaluate.passkey_accuracy(model, made, code(tokenizer), 1024, trials=10, batch_tokens=4096) >= 0.9


def test_repeated_random_tokens_are_copied(model, tokenizer, modules):
    evaluate, tasks, _ = modules
    first, second = evaluate.repeat_loss(model, tasks.Tasks(tokenizer.backend_tokenizer), half=256, count=2)
    assert first > 8 and second < 0.5


def test_greedy_generation_answers_the_passkey_prompt(model, tokenizer):
    entry = next(e for e in json.loads((PROMPTS / "index.json").read_text()) if e["file"] == "passkey_4k.txt")
    inputs = tokenizer((PROMPTS / entry["file"]).read_text(), return_tensors="pt")
    output = model.generate(**inputs, max_new_tokens=7, do_sample=False)[0, inputs.input_ids.shape[1] :]
    assert tokenizer.decode(output).strip().startswith(entry["answer"])


def test_prompts_have_the_tokens_and_packages_their_index_says(tokenizer, manifest):
    held_out = {f"{e['name']} {e['version']}" for e in manifest["held_out"]}
    for entry in json.loads((PROMPTS / "index.json").read_text()):
        text = (PROMPTS / entry["file"]).read_text()
        assert len(tokenizer(text, verbose=False).input_ids) == entry["tokens"]
        assert entry["source"] in held_out
        assert entry["source"] in (PROMPTS / "NOTICE.md").read_text()


def test_manifest_keeps_held_out_packages_out_of_training(manifest, modules):
    corpus = modules[2]
    train, held_out = ({e["name"] for e in manifest[part]} for part in ("train", "held_out"))
    assert held_out == set(corpus.HELD_OUT) and not train & held_out
    assert all(entry["licence"] and entry["version"] for part in ("train", "held_out") for entry in manifest[part])


def test_recorded_results_meet_the_bars(results):
    overall = results["bits_per_byte"]["all"]
    assert overall["model"] <= 1.0 and overall["model"] < overall["xz"]
    assert results["settings"]["trials"] >= 100
    assert all(results["passkey"][length] >= 0.98 for length in ("2048", "4096", "8192")) and results["passkey"]["16384"] >= 0.95
    assert results["repeat"]["second"] <= 0.25
    assert np.shape(results["oracle_density"]["4096"]) == np.shape(results["oracle_density"]["16384"]) == (8, 6)


def test_oracle_takes_the_tiles_a_planted_pattern_needs(modules):
    """Rows that put 96% on one column and their own block need two tiles per query block, the first one only one."""
    evaluate, _, _ = modules
    blocks = 8
    masses = torch.zeros(blocks, 128, blocks)
    for i in range(blocks):
        masses[i, :, : i + 1] = 0.04 / (i + 1)
        masses[i, :, 0] += 0.56
        masses[i, :, i] += 0.40
    assert math.isclose(evaluate.oracle_density(masses), (2 * blocks - 1) / (blocks * (blocks + 1) / 2), rel_tol=1e-6)


def test_attention_rows_are_the_attention_that_sdpa_computes(modules):
    evaluate, _, _ = modules
    generator = torch.Generator().manual_seed(0)
    q, k, v = (torch.randn(heads, 300, 64, generator=generator) for heads in (6, 2, 2))
    rows = torch.arange(0, 300, 7)
    expected = torch.nn.functional.scaled_dot_product_attention(q[None], k[None], v[None], is_causal=True, enable_gqa=True)[0]
    for head in range(6):
        out = evaluate.attention_rows(q, k, head, rows) @ v[head // 3]
        torch.testing.assert_close(out, expected[head, rows], atol=1e-5, rtol=1e-5)


def test_recalled_values_were_given_before(tokenizer, modules):
    """Every recalled value, whose digits weigh more in the loss, stands somewhere before."""
    _, tasks, _ = modules
    made, rng = tasks.Tasks(tokenizer.backend_tokenizer), np.random.default_rng(0)
    stream, recalled = np.tile(code(tokenizer), 3).astype(np.uint16), 0
    for _ in range(40):
        tokens, weights = made.training_sequence(rng, stream, 2048)
        assert tokens.shape == weights.shape == (2049,) and tokens[0] == made.bos
        digits = [(i, tokenizer.decode(tokens[i : i + 5])) for i in np.flatnonzero(weights == tasks.ANSWER_WEIGHT)[::5]]
        for start, value in digits:
            if len(value) == 5:
                recalled += 1
                assert value in tokenizer.decode(tokens[:start])
    assert recalled > 10
