"""Loading models: what is given back, and one clear sentence for everything that is refused. No network is used."""

import json
import socket

import pytest
import torch
from safetensors.torch import load_file, save_file
from tiny_models import tiny_model, tokens
from tokenizers import Tokenizer, models, pre_tokenizers
from transformers import PreTrainedTokenizerFast

from sampleattn import SampleAttentionConfig, use_sample_attention
from sampleattn.models import BUNDLED_FOLDER, ModelError, load_model


@pytest.fixture(autouse=True)
def no_network(monkeypatch):
    def refuse(*arguments, **options):
        raise ConnectionError("no network in tests")

    monkeypatch.setattr(socket.socket, "connect", refuse)
    monkeypatch.setattr(socket, "getaddrinfo", refuse)


@pytest.fixture
def folder(tmp_path):
    """A whole model folder: a tiny Llama and a tokenizer of 128 characters."""
    path = tmp_path / "tiny-llama"
    tiny_model("llama").save_pretrained(path)
    tokenizer = Tokenizer(models.BPE({chr(code): code for code in range(128)}, []))
    tokenizer.pre_tokenizer = pre_tokenizers.Split("", "isolated")
    PreTrainedTokenizerFast(tokenizer_object=tokenizer, pad_token="\x00").save_pretrained(path)
    return path


def edit(path, **changes):
    values = json.loads(path.read_text())
    values.update(changes)
    path.write_text(json.dumps(values))


def refused(name, match, **options):
    with pytest.raises(ModelError, match=match) as caught:
        load_model(name, **options)
    message = str(caught.value)
    assert "\n" not in message and message.endswith(".") and len(message) < 450
    return message


def test_a_folder_is_loaded_ready_for_a_run(folder):
    model, tokenizer, info = load_model(folder)
    assert info == {
        "name": "tiny-llama",
        "revision": "",
        "layers": 2,
        "heads": 4,
        "kv_heads": 2,
        "head_dim": 16,
        "context": 1024,
        "parameters": model.num_parameters(),
    }
    assert not model.training and model.dtype == torch.float32
    assert tokenizer("abc", return_offsets_mapping=True)["offset_mapping"] == [(0, 1), (1, 2), (2, 3)]
    ids = tokens(1, 40)
    with torch.no_grad(), use_sample_attention(model, SampleAttentionConfig(cra=1.0, dense_below=0)) as run:
        torch.testing.assert_close(model(ids).logits, tiny_model("llama")(ids).logits, atol=1e-4, rtol=1e-4)
    assert run.layers[0].ran == "sparse"


def test_shards_and_dtype(folder):
    (folder / "model.safetensors").unlink()
    tiny_model("llama").save_pretrained(folder, max_shard_size="50KB")
    assert len(list(folder.glob("*.safetensors"))) > 1
    assert load_model(str(folder), dtype=torch.bfloat16)[0].dtype == torch.bfloat16


@pytest.mark.skipif(not (BUNDLED_FOLDER / "config.json").is_file(), reason="the bundled model is not in the folder")
def test_the_bundled_model():
    model, tokenizer, info = load_model("bundled")
    assert info["name"] == "bundled" and info["context"] >= 16384 and info["layers"] >= 6
    assert len(tokenizer) <= model.config.vocab_size


@pytest.mark.parametrize(
    "name",
    ["", "../x", "../../etc/no", "/no/such/folder", "./no", "~nobody/x", "a/b/c", "http://host/x", "https://hf.co/a/b", "a/"]
    + ["file:///etc", "a b", "a\\b", "a/..", "a--b", "-a", "a\x00b", "a\nb", "x" * 500, "models/x.git", "ä/b", "a:b", "$(id)"],
)
def test_odd_names_are_refused(name, monkeypatch, tmp_path):
    monkeypatch.chdir(tmp_path)  # where nothing has one of these names
    refused(name, "neither a folder here nor a hub id")


def test_a_file_is_refused(folder):
    refused(folder / "config.json", "is a file")


@pytest.mark.parametrize("revision", ["../main", "a b", "", "-x", "a/../b"])
def test_odd_revisions_are_refused(revision):
    refused("owner/name", "is no revision", revision=revision)


def test_a_hub_id_without_network(monkeypatch, tmp_path):
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(tmp_path))
    refused("sample-attention-tests/no-such-model", "check the network|offline mode is on")


@pytest.mark.parametrize("device", ["cuda:99", "nonsense"])
def test_devices_that_are_not_here(folder, device):
    refused(folder, "device|does not have", device=device)


def test_too_large_for_the_limit(folder):
    refused(folder, "more than the 0.0 GB allowed", memory_limit=1000)
    load_model(folder, memory_limit=10**9)


def test_size_is_checked_before_weights_are_read(folder):
    edit(folder / "config.json", hidden_size=1 << 20, intermediate_size=1 << 20, num_hidden_layers=200)
    refused(folder, "more than its files hold")
    edit(folder / "config.json", num_hidden_layers=10**12)
    refused(folder, "layers; at most")


def test_remote_code_is_refused_and_not_run(folder):
    ran = folder / "ran"
    (folder / "code.py").write_text(f"open({str(ran)!r}, 'w')")
    edit(folder / "config.json", auto_map={"AutoModelForCausalLM": "code.Model", "AutoConfig": "code.Config"})
    refused(folder, "its own Python code")
    edit(folder / "config.json", auto_map=None, model_type="unheard-of")
    refused(folder, "could not be loaded|code")
    assert not ran.exists()


def test_the_model_does_not_choose_its_attention_code(folder):
    edit(folder / "config.json", attn_implementation="hostile/kernels", _attn_implementation="hostile/kernels")
    assert load_model(folder)[0].config._attn_implementation == "sdpa"


def test_pickled_weights_are_refused(folder):
    weights = load_file(folder / "model.safetensors")
    (folder / "model.safetensors").unlink()
    torch.save(weights, folder / "pytorch_model.bin")
    refused(folder, "pickled weights")


def test_missing_files(folder, tmp_path):
    refused(tmp_path, "no config.json")
    (folder / "tokenizer.json").unlink()
    refused(folder, "tokenizer|could not be loaded")
    (folder / "model.safetensors").unlink()
    refused(folder, "no weights file")


def test_damaged_files(folder):
    weights = folder / "model.safetensors"
    weights.write_bytes(weights.read_bytes()[:-100])
    refused(folder, "could not be loaded")
    (folder / "config.json").write_text("{")
    refused(folder, "could not be loaded")


@pytest.mark.parametrize("shard", ["../other.safetensors", "/etc/x.safetensors", "code.py", 7])
def test_an_index_that_points_elsewhere(folder, shard):
    (folder / "model.safetensors.index.json").write_text(json.dumps({"weight_map": {"w": shard}}))
    refused(folder, "points outside the folder")


def test_weights_that_are_missing_are_not_made_up(folder):
    weights = load_file(folder / "model.safetensors")
    del weights["model.layers.1.self_attn.q_proj.weight"]
    save_file(weights, folder / "model.safetensors", {"format": "pt"})
    refused(folder, "lacks 1 of its weights")


def test_a_tokenizer_of_another_model(folder):
    tokenizer = PreTrainedTokenizerFast(tokenizer_file=str(folder / "tokenizer.json"))
    tokenizer.add_tokens([f"<{i}>" for i in range(10)])
    tokenizer.save_pretrained(folder)
    refused(folder, "more tokens than the model")


def test_adapters_and_other_kinds_of_model(folder):
    (folder / "adapter_config.json").write_text("{}")
    refused(folder, "adapter")
    (folder / "adapter_config.json").unlink()
    edit(folder / "config.json", model_type="vit")
    refused(folder, "causal language model|could not be loaded")
    edit(folder / "config.json", model_type="mamba", num_hidden_layers=1)
    refused(folder, "state-space")


NONSENSE = [("hidden_size", "many"), ("num_attention_heads", 0), ("vocab_size", -1), ("rms_norm_eps", "x")]


@pytest.mark.parametrize("field, value", NONSENSE)
def test_nonsense_in_the_config(folder, field, value):
    edit(folder / "config.json", **{field: value})
    refused(folder, "could not be loaded")
