"""What is painted in the browser: the map of a head, the board of all heads, a line of tokens.

Their code is ours alone; text of a trace or a user only ever reaches the page through textContent or a canvas.
"""

import json
import struct
from pathlib import Path

import numpy as np
import streamlit as st

HERE = Path(__file__).parent


def _component(name: str):
    source = {kind: (HERE / f"{name}.{kind}").read_text(encoding="utf-8") for kind in ("js", "css")}
    return st.components.v2.component(f"sampleattention_{name}", html='<div class="root"></div>', **source)


_map_canvas = _component("map_canvas")
_head_board = _component("head_board")
_token_line = _component("token_line")


def pack(header: dict, **planes: np.ndarray) -> bytes:
    """One buffer: the header's length (uint32), the header as JSON, then every plane, each at a multiple of 8 bytes.

    header["planes"][name] says dtype, shape and where the plane starts, counted from the end of the header.
    """
    places, chunks, at = {}, [], 0
    for name, plane in planes.items():
        raw = np.ascontiguousarray(plane).tobytes()
        places[name] = {"dtype": str(plane.dtype), "shape": list(plane.shape), "at": at}
        padding = -len(raw) % 8
        chunks.append(raw + bytes(padding))
        at += len(raw) + padding
    text = json.dumps({**header, "planes": places}).encode()
    text += b" " * (-(len(text) + 4) % 8)
    return struct.pack("<I", len(text)) + text + b"".join(chunks)


def map_canvas(buffer: bytes, key: str):
    """Paint the map that `figures.head_map.canvas_buffer` packed."""
    _map_canvas(data=buffer, key=key)


def head_board(board: dict, key: str, on_pick) -> None:
    """Draw the board of heads. When a head is clicked, `on_pick` is called; it reads session_state[key]["picked"]."""
    _head_board(data=board, key=key, on_picked_change=on_pick)


def token_line(pieces: list[str], others: list[str], key: str) -> None:
    """Write the pieces in a row, line ends kept; those that differ from `others` are marked, the first one with an arrow."""
    different = [i >= len(others) or piece != others[i] for i, piece in enumerate(pieces)]
    _token_line(data={"pieces": pieces, "different": different}, key=key)
