"""The two pictures that are painted in the browser: the map of a head and the board of all heads.

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


def head_board(board: dict, key: str, on_pick) -> bool:
    """Draw the board of heads; calls `on_pick` (which reads session_state[key]["picked"]) when a head is clicked, and then returns True."""
    return bool(_head_board(data=board, key=key, on_picked_change=on_pick).picked)
