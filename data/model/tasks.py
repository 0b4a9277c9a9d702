"""Synthetic long-range tasks: passkeys and key-value recall hidden in code, and repeated spans.

One class makes both the training sequences and the prompts of the evaluation, so that the two agree in format. It works on
token ids; `tokenizer` is a `tokenizers.Tokenizer`. Filler is always given as token ids (real code), and lines are put in
at the line breaks of the filler.
"""

from dataclasses import dataclass

import numpy as np

KEYS = (  # noqa: SIM905
    "amber anchor apple arrow autumn basil beacon birch bishop blossom breeze bridge bronze canyon castle cedar cherry "
    "cinder clover cobalt comet copper coral cotton crane crystal dagger daisy dragon eagle ember falcon feather fern "
    "forest fox garnet ginger glacier granite harbor hazel hollow indigo iris island ivory jade jasmine juniper lagoon "
    "lantern laurel lemon lilac linen lotus magnet maple marble meadow mercury mint mirror needle nickel oak ocean olive "
    "onyx opal orchid otter panda pearl pebble pepper pine planet plum prairie quartz raven ribbon river robin ruby saddle "
    "saffron sage silver sparrow spruce summit sunset thistle thunder tiger timber topaz tulip turtle valley velvet violet "
    "walnut willow winter wolf zebra zinc"
).split()
PASSKEY = ("\n# The passkey of {key} is {value}.", "\n# What is the passkey of {key}? The passkey of {key} is {value}.")
TEMPLATES = (
    PASSKEY,
    ("\n{key}_code = {value}", "\nassert {key}_code == {value}"),
    ('\nregistry["{key}"] = {value}', '\nprint(registry["{key}"])  # prints {value}'),
)
DIGITS = 5
ANSWER_WEIGHT = 4  # of an answer's digits in the loss; ordinary tokens have 1, what nobody can predict has 0


@dataclass(frozen=True)
class Passkey:
    """A prompt [n] whose next tokens should be `answer` [a]; the needle's digits are at `needle` (a slice) in it."""

    prompt: np.ndarray
    answer: np.ndarray
    needle: slice


class Tasks:
    def __init__(self, tokenizer):
        self._tokenizer = tokenizer
        self.vocabulary = tokenizer.get_vocab_size()
        self.bos = tokenizer.token_to_id("<|bos|>")
        self._first_ordinary = 1 + max(tokenizer.token_to_id(t) for t in ("<|bos|>", "<|eos|>", "<|pad|>"))
        texts = [tokenizer.decode([i], skip_special_tokens=False) for i in range(self.vocabulary)]
        self._breaks_line = np.array([text.startswith("\n") for text in texts])
        self._is_digit = np.array([text.isdigit() for text in texts])

    def encode(self, text):
        """-> int32 [n], without <|bos|>."""
        return np.array(self._tokenizer.encode(text, add_special_tokens=False).ids, np.int32)

    def _line(self, template, digit_weight, **names):
        tokens = self.encode(template.format(**names))
        return tokens, np.where(self._is_digit[tokens], digit_weight, 1).astype(np.uint8)

    def _value(self, rng):
        return "".join(map(str, rng.integers(0, 10, DIGITS)))

    def _insert(self, filler, pieces):
        """Put pieces (position in filler, tokens, weights) into filler, in order. -> tokens, weights."""
        tokens, weights, last = [], [], 0
        for position, piece, weight in sorted(pieces, key=lambda p: p[0]):
            tokens += [filler[last:position], piece]
            weights += [np.ones(position - last, np.uint8), weight]
            last = position
        tokens.append(filler[last:])
        weights.append(np.ones(len(filler) - last, np.uint8))
        return np.concatenate(tokens), np.concatenate(weights)

    def _line_breaks(self, filler, positions):
        """The first line break of `filler` at or after each position (the end, if there is none)."""
        breaks = np.append(np.flatnonzero(self._breaks_line[filler]), len(filler))
        return breaks[np.searchsorted(breaks, positions)]

    def _recall_pieces(self, rng, filler):
        """Needle lines and, later, the lines that recall them: half at log-uniform, half at uniform distances."""
        count = rng.integers(1 + len(filler) // 4096, min(20, 3 + len(filler) // 768))
        room = max(16, len(filler) - 48 * count)
        keys = rng.choice(len(KEYS), count, replace=False)
        distances = np.where(
            rng.random(count) < 0.5, np.exp(rng.uniform(np.log(8), np.log(room), count)), rng.uniform(0, room, count)
        ).astype(int)
        starts = (rng.random(count) * (room - distances)).astype(int)
        if rng.random() < 0.25:  # a table: all needles together
            starts[:] = starts.min()
        pieces = []
        for key, place, recall_place in zip(
            keys, self._line_breaks(filler, starts), self._line_breaks(filler, starts + distances), strict=True
        ):
            needle, recall = TEMPLATES[rng.choice(len(TEMPLATES), p=(0.6, 0.2, 0.2))]
            names = {"key": KEYS[key], "value": self._value(rng)}
            pieces.append((place, *self._line(needle, 0, **names)))
            pieces.append((recall_place, *self._line(recall, ANSWER_WEIGHT, **names)))
        return pieces

    def random_tokens(self, rng, count):
        """-> int32 [count], uniform over the ordinary tokens."""
        return rng.integers(self._first_ordinary, self.vocabulary, count).astype(np.int32)

    def _repeat_pieces(self, rng, filler, stream):
        """A span (random tokens, or code from elsewhere) and its copy, at once or some way after."""
        length = len(filler)
        span = int(np.exp(rng.uniform(np.log(32), np.log(0.49 * length))))
        if rng.random() < 0.7:
            tokens, weight = self.random_tokens(rng, span), np.zeros(span, np.uint8)
        else:
            start = rng.integers(len(stream) - span)
            tokens, weight = stream[start : start + span].astype(np.int32), np.ones(span, np.uint8)
        room = length - 2 * span
        gap = int(np.exp(rng.uniform(0, np.log(room)))) if rng.random() < 0.5 else 0
        start = int(rng.random() * (room - gap))
        return [(start, tokens, weight), (start + gap, tokens, np.ones(span, np.uint8))]

    def training_sequence(self, rng, stream, length):
        """<|bos|> and `length` tokens of the stream with tasks put in. -> int32 [length + 1], uint8 loss weights [length + 1]."""
        start = rng.integers(len(stream) - length)
        filler = stream[start : start + length].astype(np.int32)
        draw = rng.random()
        pieces = []
        if draw < 0.60:
            pieces = self._recall_pieces(rng, filler)
        elif draw < 0.78:
            pieces = self._repeat_pieces(rng, filler, stream)
        tokens, weights = self._insert(filler, pieces)
        return (
            np.concatenate([[self.bos], tokens[:length]]).astype(np.int32),
            np.concatenate([[0], weights[:length]]).astype(np.uint8),
        )

    def training_batch(self, rng, stream, length, count):
        """-> int32 [count, length + 1] tokens, uint8 [count, length + 1] loss weights."""
        tokens, weights = zip(*(self.training_sequence(rng, stream, length) for _ in range(count)), strict=True)
        return np.stack(tokens), np.stack(weights)

    def passkey(self, rng, filler, length, depth=None):
        """A Passkey of exactly `length` tokens with its answer, the needle at `depth` in [0, 1] (random if None).

        `filler` int32 [at least length]: the code around it.
        """
        key, value = KEYS[rng.integers(len(KEYS))], self._value(rng)
        needle, recall = (self.encode(t.format(key=key, value=value)) for t in PASSKEY)
        asked = self.encode(PASSKEY[1].split("{value}")[0].rstrip().format(key=key))
        answer = recall[len(asked) : -1]  # without the full stop
        filler = filler[: length - 1 - len(needle) - len(recall) + 1]
        place = self._line_breaks(filler, int((rng.random() if depth is None else depth) * len(filler)))
        body, _ = self._insert(filler, [(int(place), needle, np.ones(len(needle), np.uint8))])
        first_digit = 1 + int(place) + int(np.argmax(self._is_digit[needle]))
        return Passkey(np.concatenate([[self.bos], body, asked]), answer, slice(first_digit, first_digit + DIGITS))

    def repeated_random(self, rng, half):
        """<|bos|>, `half` random tokens, the same again. -> int32 [1 + 2 half]."""
        tokens = self.random_tokens(rng, half)
        return np.concatenate([[self.bos], tokens, tokens]).astype(np.int32)
