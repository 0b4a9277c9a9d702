"""Text of others on one line of a page or a terminal. No numpy."""

from __future__ import annotations


def printable(text: str) -> str:
    """The text with a box in place of each control character, such as those that move a terminal's cursor."""
    return "".join(sign if sign.isprintable() else "□" for sign in text)
