"""From what a user gives to a prompt: bytes to text, text to a count of tokens, or one clear sentence why not. No streamlit."""

from __future__ import annotations

import json
import re
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path

from sampleattn.trace_format import MAX_HEAD_DIM, MAX_HEADS, MAX_LAYERS

BUNDLED = Path(__file__).resolve().parents[1] / "data" / "model"
MAX_MEGABYTES = 16
MAX_SIZE = 1 << 24
PAIR = re.compile(r"\d{1,4}\s*\.\s*\d{1,4}", re.ASCII)
SIGNATURES = {
    b"PK\x03\x04": "a zip archive",
    b"%PDF": "a PDF",
    b"\x89PNG": "a picture",
    b"\xff\xd8\xff": "a picture",
    b"\x1f\x8b": "a gzip archive",
    b"\x7fELF": "a program",
}


class IntakeError(ValueError):
    """The input cannot be a prompt; the message is one sentence that says why and what to do."""


class NotUtf8(IntakeError):
    """The bytes are text in another encoding, or damaged."""


def read_text(data: bytes, replace: bool = False) -> str:
    """The text in uploaded bytes. Raises IntakeError for binary data, NotUtf8 for what is not UTF-8, unless `replace`."""
    if not data:
        raise IntakeError("The file is empty; choose one with text in it.")
    for signature, name in SIGNATURES.items():
        if data.startswith(signature):
            raise IntakeError(f"The file is {name}, not text; save its text as .txt and upload that.")
    if data.startswith((b"\xff\xfe", b"\xfe\xff")):
        return _decode(data, "utf-16", replace)
    if b"\0" in data or _control_share(data) > 0.02:
        raise IntakeError("The file holds binary data, not text; choose a text file (.txt, .md, .py, .json, .csv, .log).")
    return _decode(data, "utf-8-sig", replace)


def _decode(data, encoding, replace):
    try:
        return data.decode(encoding, errors="replace" if replace else "strict")
    except UnicodeDecodeError as error:
        raise NotUtf8(
            f"The file is not valid UTF-8 (byte {error.start:,} of {len(data):,}); save it as UTF-8, "
            "or allow the bytes that can't be read to be replaced."
        ) from None


def _control_share(data):
    sample = data[: 1 << 16]
    return sum(byte < 32 and byte not in b"\t\n\r\f\x1b" for byte in sample) / len(sample)


@dataclass(frozen=True)
class Shape:
    """What of a model decides how large its traces are."""

    layers: int
    heads: int
    kv_heads: int
    head_dim: int
    vocabulary: int


@dataclass(frozen=True)
class Count:
    """Tokens of a text for a model; the model's context and shape (None: unknown)."""

    tokens: int
    context: int | None
    ends: tuple[int, ...]
    shape: Shape | None = None


@lru_cache(maxsize=2)
def _tokenizer(path: str, stamp: int):
    from tokenizers import Tokenizer

    return Tokenizer.from_file(path)


def count(text: str, model: str) -> Count | None:
    """Exact count with the tokenizer of a model's folder, without loading the model; None where there is no such tokenizer."""
    try:
        folder = BUNDLED if model == "bundled" else Path(model).expanduser()
        file = folder / "tokenizer.json"
        encoding = _tokenizer(str(file), file.stat().st_mtime_ns).encode(text)
        config = json.loads((folder / "config.json").read_text(encoding="utf-8"))
        context = config.get("max_position_embeddings")
    except Exception:
        return None
    ends = tuple(end for _, end in encoding.offsets)
    return Count(len(encoding.ids), context if isinstance(context, int) else None, ends, _shape(config))


def _shape(config: dict) -> Shape | None:
    """The shape in a model's config.json; None if it names it otherwise, or no trace holds such a model."""
    layers, heads, hidden, words = (
        config.get(name) for name in ("num_hidden_layers", "num_attention_heads", "hidden_size", "vocab_size")
    )
    if not _within((layers, MAX_LAYERS), (heads, MAX_HEADS), (hidden, MAX_SIZE), (words, MAX_SIZE)):
        return None
    shape = Shape(layers, heads, config.get("num_key_value_heads") or heads, config.get("head_dim") or hidden // heads, words)
    known = _within((shape.kv_heads, heads), (shape.head_dim, MAX_HEAD_DIM)) and heads % shape.kv_heads == 0
    return shape if known else None


def _within(*limits) -> bool:
    """Whether each (number, most) is a whole number from 1 to `most`."""
    return all(type(number) is int and 0 < number <= most for number, most in limits)


def pairs(text: str) -> tuple[tuple[int, int], ...]:
    """The heads in "3.1, 4.0", as (layer, head). Raises IntakeError."""
    parts = [part.strip() for part in text.split(",") if part.strip()]
    if not parts or not all(PAIR.fullmatch(part) for part in parts):
        raise IntakeError("Name the heads to pin as layer.head, such as 3.1, 4.0.")
    return tuple(sorted({tuple(map(int, part.split("."))) for part in parts}))


def check_pins(pins: tuple[tuple[int, int], ...], shape: Shape | None) -> None:
    """Raises IntakeError for a head that a model of this shape does not have; None: not known yet."""
    wrong = [pair for pair in pins if shape and not (pair[0] < shape.layers and pair[1] < shape.heads)]
    if wrong:
        raise IntakeError(
            f"There is no head {wrong[0][0]}.{wrong[0][1]}: layers are 0 to {shape.layers - 1}, heads 0 to {shape.heads - 1}."
        )


def cut(text: str, counted: Count, most: int) -> str:
    """The beginning of the text that has at most `most` tokens."""
    return text if counted.tokens <= most else text[: max(counted.ends[:most])]


def check_text(text: str) -> None:
    """Raises IntakeError for a text without anything in it."""
    if not text.strip():
        raise IntakeError("There is no text yet; type or paste some, or upload a file.")


def check_model(choice: str, name: str) -> None:
    """Raises IntakeError when the model cannot be there, as far as can be seen without loading it."""
    if choice == "bundled" and not (BUNDLED / "config.json").is_file():
        raise IntakeError("The bundled model is not in data/model; check that folder out, or choose a local folder or a hub id.")
    if choice != "bundled" and not name.strip():
        raise IntakeError(
            "Say which model: " + ("the path of its folder." if choice == "folder" else "its hub id, such as Qwen/Qwen3-0.6B.")
        )
    if choice == "folder":
        try:
            folder = Path(name.strip()).expanduser()
            found = folder.is_dir()
        except (OSError, RuntimeError):
            found = False
        if not found:
            raise IntakeError(f"There is no folder {name.strip()[:120]}; check the path.")
        if not (folder / "config.json").is_file():
            raise IntakeError(
                f"The folder {name.strip()[:120]} holds no model: it has no config.json; choose one saved with save_pretrained."
            )
