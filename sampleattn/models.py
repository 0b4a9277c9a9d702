"""Loading a model to look at: the bundled one, a local folder, or a hub id. Safetensors only; a model's own code never runs."""

from __future__ import annotations

import json
import re
from contextlib import contextmanager
from pathlib import Path

import torch
from huggingface_hub import HfApi
from huggingface_hub import errors as hub
from transformers import AutoConfig, AutoModelForCausalLM, AutoTokenizer, PreTrainedConfig

from sampleattn.hf import UnsupportedModelError, decoder_of

BUNDLED = "bundled"
BUNDLED_FOLDER = Path(__file__).resolve().parent.parent / "data" / "model"
MOST_LAYERS = 1024
WEIGHTS_PER_BYTE = 4

_HUB_ID = re.compile(r"[A-Za-z0-9][\w.-]{0,95}(/[A-Za-z0-9][\w.-]{0,95})?", re.ASCII)
_REVISION = re.compile(r"[A-Za-z0-9][\w./-]{0,127}", re.ASCII)


class ModelError(ValueError):
    """A model that can't be loaded; the message is one sentence that says why and what to do."""


def load_model(
    name_or_path: str | Path,
    device: str | torch.device = "cpu",
    dtype: torch.dtype | None = None,
    revision: str | None = None,
    memory_limit: int | None = None,
):
    """Loads a causal language model and its tokenizer for inference.

    name_or_path: "bundled", a local folder (never touches the network), or a hub id ("name" or "owner/name"). dtype: of the
    weights; None means float32 on a CPU and the checkpoint's own elsewhere. revision: of a hub id. memory_limit: bytes that the
    weights may take; checked before they are downloaded or read.

    Returns (model in eval mode, fast tokenizer, info); info is a dict of name, revision, layers, heads, kv_heads, head_dim,
    context (tokens, or None) and parameters. Raises ModelError.
    """
    name, source, folder = _located(name_or_path, revision)
    device = _device(name, device)
    with _explained(name):
        options, stored = _local_files(folder) if folder else _hub_files(name, revision)
        raw, _ = PreTrainedConfig.get_config_dict(source, **options)
        _no_remote_code(name, raw)
        config = AutoConfig.from_pretrained(source, trust_remote_code=False, **options)
        # A checkpoint may name a kernel repository as its attention or experts implementation: the choice is ours.
        config._attn_implementation = config._experts_implementation = None
        dtype = dtype or (torch.float32 if device.type == "cpu" else getattr(config, "dtype", None) or torch.float32)
        _check_config(name, config, dtype, stored, memory_limit)
        tokenizer = AutoTokenizer.from_pretrained(source, trust_remote_code=False, **options)
        if not tokenizer.is_fast:
            raise ModelError(f"{name} has no fast tokenizer (tokenizer.json), which is needed to place tokens in the text.")
        model, loading = AutoModelForCausalLM.from_pretrained(
            source, config=config, dtype=dtype, use_safetensors=True, trust_remote_code=False, output_loading_info=True, **options
        )
        if loading["missing_keys"]:
            missing = sorted(loading["missing_keys"])
            raise ModelError(f"{name} lacks {len(missing)} of its weights ({missing[0]}, ...): download it again.")
        text_config = decoder_of(model).config
        if len(tokenizer) > model.get_input_embeddings().weight.shape[0]:
            raise ModelError(f"{name} has a tokenizer with more tokens than the model: it belongs to another model.")
        model = model.to(device).eval()
    commit = "" if folder else getattr(config, "_commit_hash", None) or options["revision"]
    return model, tokenizer, _info(name, commit, model, text_config)


def _info(name, revision, model, config) -> dict:
    heads = config.num_attention_heads
    return {
        "name": name,
        "revision": revision,
        "layers": config.num_hidden_layers,
        "heads": heads,
        "kv_heads": getattr(config, "num_key_value_heads", None) or heads,
        "head_dim": getattr(config, "head_dim", None) or config.hidden_size // heads,
        "context": getattr(config, "max_position_embeddings", None),
        "parameters": model.num_parameters(),
    }


def _located(name_or_path, revision) -> tuple[str, str, Path | None]:
    """(name to show, what to give to from_pretrained, the folder or None for a hub id)."""
    text = str(name_or_path).strip()
    if text == BUNDLED:
        folder, name = BUNDLED_FOLDER, BUNDLED
    else:
        folder, name = _folder(text), text
    if folder is not None:
        _check_folder(name, folder)
        return (name if name == BUNDLED else folder.resolve().name), str(folder), folder
    if not _HUB_ID.fullmatch(text) or ".." in text or "--" in text or text.endswith((".git", ".", "-")):
        raise ModelError(f"{text[:100]!r} is neither a folder here nor a hub id: give a folder, or an id such as owner/name.")
    if revision is not None and (not _REVISION.fullmatch(revision) or ".." in revision):
        raise ModelError(f"{revision[:100]!r} is no revision: give a branch, a tag or a commit hash.")
    return text, text, None


def _folder(text) -> Path | None:
    try:
        path = Path(text).expanduser()
        if path.is_file():
            raise ModelError(f"{text} is a file: give the folder that holds config.json and the safetensors weights.")
        return path if text and path.is_dir() else None
    except (OSError, RuntimeError, ValueError) as error:
        if isinstance(error, ModelError):
            raise
        return None


def _local_files(folder) -> tuple[dict, int]:
    return {"local_files_only": True}, sum(file.stat().st_size for file in folder.glob("*.safetensors"))


def _hub_files(name, revision) -> tuple[dict, int | None]:
    """The commit that all files are taken from, and the bytes of its weights; without a network, what was downloaded earlier."""
    try:
        found = HfApi().model_info(name, revision=revision, timeout=10, files_metadata=True)
    except (hub.GatedRepoError, hub.RevisionNotFoundError, hub.RepositoryNotFoundError):
        raise
    except Exception:
        return {"revision": revision or "main", "local_files_only": True}, None
    weights = [file for file in found.siblings or () if file.rfilename.endswith(".safetensors")]
    if not weights:
        raise ModelError(f"{name} has no safetensors weights on the hub: choose a model that has them.")
    return {"revision": found.sha}, sum(file.size or 0 for file in weights)


def _check_folder(name, folder):
    if not (folder / "config.json").is_file():
        raise ModelError(f"{name} is no model folder: it has no config.json.")
    if (folder / "adapter_config.json").is_file():
        raise ModelError(f"{name} holds an adapter, not a whole model: merge it into its base model and save that.")
    index = folder / "model.safetensors.index.json"
    shards = {"model.safetensors"}
    if index.is_file():
        try:
            shards = set(json.loads(index.read_text(encoding="utf-8"))["weight_map"].values())
        except (ValueError, KeyError, TypeError, AttributeError) as error:
            raise ModelError(f"{name} has a damaged model.safetensors.index.json: download it again.") from error
        if any(not isinstance(shard, str) or Path(shard).name != shard or not shard.endswith(".safetensors") for shard in shards):
            raise ModelError(f"{name} has an index that points outside the folder: don't use it.")
    missing = sorted(shard for shard in shards if not (folder / shard).is_file())
    if missing and list(folder.glob("*.bin")) + list(folder.glob("*.pt")) + list(folder.glob("*.pth")):
        raise ModelError(f"{name} has only pickled weights, which can run code when read: convert them to safetensors.")
    if missing:
        raise ModelError(f"{name} has no weights file {missing[0]}: download the model again, as safetensors.")


def _no_remote_code(name, raw):
    if raw.get("auto_map"):
        raise ModelError(
            f"{name} comes with its own Python code (auto_map in config.json), which is never run here: choose a model that "
            "transformers supports by itself, or remove auto_map from a local copy if it is one."
        )


def _check_config(name, config, dtype, stored, memory_limit):
    """Kind and size of the model, built on the meta device, which takes no memory. stored: bytes of its files, if known."""
    layers = getattr(config.get_text_config(decoder=True), "num_hidden_layers", 0)
    if not isinstance(layers, int) or layers > MOST_LAYERS:
        raise ModelError(f"{name} claims {str(layers)[:20]} layers; at most {MOST_LAYERS} are accepted: check its config.json.")
    with torch.device("meta"):
        model = AutoModelForCausalLM.from_config(config, dtype=dtype)
    decoder_of(model)
    weights = model.num_parameters()
    if stored is not None and weights > WEIGHTS_PER_BYTE * stored:
        raise ModelError(f"{name} claims {weights:,} weights, far more than its files hold: check its config.json.")
    needed = weights * dtype.itemsize
    if memory_limit is not None and needed > memory_limit:
        raise ModelError(
            f"{name} needs {needed / 1e9:.1f} GB for its weights, more than the {memory_limit / 1e9:.1f} GB allowed: "
            "choose a smaller model, or a smaller dtype."
        )


def _device(name, device) -> torch.device:
    try:
        device = torch.device(device)
    except RuntimeError as error:
        raise ModelError(f"{str(device)[:50]!r} is no device: give cpu, cuda or cuda:0.") from error
    if device.type == "cuda" and (not torch.cuda.is_available() or (device.index or 0) >= torch.cuda.device_count()):
        raise ModelError(f"{name} can't be put on {device}, which this machine does not have: choose cpu.")
    return device


_HUB_REASONS = (
    (hub.GatedRepoError, "is gated: accept its terms on huggingface.co and log in with `hf auth login`."),
    (hub.RevisionNotFoundError, "has no such revision on the hub: check the branch, tag or commit."),
    (hub.RepositoryNotFoundError, "is not on the hub, or private: check the spelling, or log in with `hf auth login`."),
    (hub.LocalEntryNotFoundError, "is not on this machine and the hub is out of reach: check the network, or give a folder."),
    (hub.OfflineModeIsEnabled, "is not on this machine and offline mode is on: unset HF_HUB_OFFLINE, or give a local folder."),
    (ConnectionError, "could not be downloaded: check the network, or give a local folder."),
    (torch.OutOfMemoryError, "does not fit into the device's memory: choose a smaller model, a smaller dtype, or the CPU."),
    (MemoryError, "does not fit into memory: choose a smaller model or a smaller dtype."),
)


@contextmanager
def _explained(name):
    """Turns whatever a hostile, damaged or missing model makes the libraries raise into a ModelError of one sentence."""
    try:
        yield
    except ModelError:
        raise
    except UnsupportedModelError as error:
        raise ModelError(f"{name} can't be used: {error}.") from error
    except Exception as error:
        chain = [error]
        while (cause := chain[-1].__cause__ or chain[-1].__context__) is not None and cause not in chain:
            chain.append(cause)
        for kind, reason in _HUB_REASONS:
            if any(isinstance(one, kind) for one in chain):
                raise ModelError(f"{name} {reason}") from error
        if "Unrecognized configuration class" in str(error):
            raise ModelError(f"{name} is no language model that generates text: choose a causal language model.") from error
        if "trust_remote_code" in str(error) or "custom code" in str(error):
            raise ModelError(f"{name} needs Python code of its own, which is never run here: choose another model.") from error
        first = (str(error).strip() or type(error).__name__).splitlines()[0][:200]
        raise ModelError(f"{name} could not be loaded ({first.rstrip('.')}): check that its files are whole.") from error
