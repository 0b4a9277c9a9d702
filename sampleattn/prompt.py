"""A prompt as tokens with their places in the text, or one sentence why it can't be recorded."""

from __future__ import annotations

import numpy as np

from sampleattn.trace_format import MAX_TOKENS

LONGEST_TOKEN = 256


class PromptError(ValueError):
    """The prompt can't be recorded; the message says the numbers and what to do."""


def tokenise(tokenizer, text: str, context: int | None, max_tokens: int | None = None):
    """ids int32 [N], offsets int32 [N, 2], their text, and, for a cut prompt, {"cut_from_characters"}. Raises PromptError."""
    if not isinstance(text, str):
        raise PromptError(f"The prompt must be text (str), not {type(text).__name__}.")
    if not text.strip():
        raise PromptError("The prompt is empty; give some text.")
    if max_tokens is not None and max_tokens < 2:
        raise PromptError(f"max_tokens (--cut) must be at least 2, not {max_tokens}.")
    if not getattr(tokenizer, "is_fast", False):
        raise PromptError("The model's tokenizer gives no text offsets; use a model with a fast tokenizer (tokenizer.json).")
    limit = min(bound for bound in (max_tokens, context, MAX_TOKENS) if bound is not None)
    advice = f"cut it with max_tokens={limit} (--cut {limit}), or take a model with a longer context"
    whole = text
    if len(text) > limit * LONGEST_TOKEN:
        if max_tokens is None:
            raise PromptError(f"The prompt has {len(text):,} characters, far more than {limit:,} tokens of context; {advice}.")
        text = text[: limit * LONGEST_TOKEN]
    try:
        text.encode()
    except UnicodeEncodeError:
        raise PromptError("The prompt holds characters that are no valid Unicode; save the file as UTF-8.") from None
    encoded = tokenizer(text, return_offsets_mapping=True, verbose=False)
    ids, offsets = encoded["input_ids"], encoded["offset_mapping"]
    if len(ids) > limit:
        if max_tokens is None:
            raise PromptError(f"The prompt has {len(ids):,} tokens, and the model's context is {limit:,}; {advice}.")
        ids, offsets = ids[:limit], offsets[:limit]
    if len(ids) < 2:
        raise PromptError(f"The prompt has {len(ids)} token(s), too few to draw attention; give at least 2 tokens.")
    offsets = _ascending(offsets)
    if len(ids) == limit:
        text = text[: offsets[-1, 1]]
    extra = {} if text == whole else {"cut_from_characters": len(whole)}
    return np.array(ids, np.int32), offsets, text, extra


def _ascending(offsets):
    """Offsets int32 [N, 2] that never go back: special tokens, which have (0, 0), stand where the text has got to."""
    result, reached = [], (0, 0)
    for begin, end in offsets:
        reached = (max(begin, reached[0]), max(end, reached[1])) if end > begin else (reached[1], reached[1])
        result.append(reached)
    return np.array(result, np.int32).reshape(-1, 2)
