"""Numbers for the browser as one buffer: only top-level bytes travel as they are."""

import json
import struct

import numpy as np


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
