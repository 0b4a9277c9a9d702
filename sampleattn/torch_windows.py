"""The windows of `windows`, computed by the map kernel: for a machine with a GPU. Torch is imported in a thread of its own."""

from __future__ import annotations

import threading
from collections import OrderedDict
from importlib.util import find_spec
from pathlib import Path

import numpy as np

WIDEST_CELL = 1024
HELD_BYTES = 4 << 30


class TorchWindows:
    """Windows of traces' pinned heads on a device, where the heads that were looked at last stay.

    `ready` turns True once `start` has imported torch and run the kernel; until then, and where it can't, windows are numpy's.
    """

    def __init__(self, device: str = "cuda", held_bytes: int = HELD_BYTES):
        self.device, self.held_bytes = device, held_bytes
        self.ready = False
        self._heads, self._lock = OrderedDict(), threading.Lock()

    def start(self) -> TorchWindows:
        """Get ready in the background if there is torch and, for "cuda", an NVIDIA GPU; else do nothing."""
        if find_spec("torch") and (self.device != "cuda" or Path("/proc/driver/nvidia").exists()):
            threading.Thread(target=self._prepare, name="torch windows", daemon=True).start()
        return self

    def _prepare(self):
        import torch

        from sampleattn.maps import attention_map

        if self.device == "cuda" and not torch.cuda.is_available():
            return
        q = torch.zeros(1, 1, 256, 64, dtype=torch.float16 if self.device == "cuda" else torch.float32, device=self.device)
        attention_map(q, q, shape=(128, 128), block_mask=torch.ones(1, 1, 2, 2, dtype=torch.bool, device=self.device))
        self.ready = True

    def planes(self, trace, layer: int, head: int, rows, cols, shape=None, reduce="max", cell=1):
        """(weights, missed) float32 [h, w]: what `trace.window_planes` gives; None where that is left to numpy.

        That is: when the device's memory has run out, for cells wider than WIDEST_CELL, and for those that a window cuts short.
        """
        cut = any((end - begin) % cell and end < trace.length for begin, end in (rows, cols))
        if not shape and (cell > WIDEST_CELL or cut):
            return None
        import torch

        from sampleattn.maps import attention_map

        edges = [
            np.arange(min(n, count) + 1) * n // min(n, count) if count else np.append(np.arange(0, n, cell), n)
            for n, count in zip((rows[1] - rows[0], cols[1] - cols[0]), shape or (0, 0), strict=True)
        ]
        # Cells all of one width: the last one reaches into the padding, where there is no weight.
        rows, cols = (
            window if shape else (window[0], window[0] + cell * (len(edge) - 1))
            for window, edge in zip((rows, cols), edges, strict=True)
        )
        try:
            q, k, lse, mask = self._head(trace, layer, head)
            cells = (len(edges[0]) - 1, len(edges[1]) - 1)
            pooled = "max" if reduce == "max" else "sum"
            scale, block = trace.scale(layer), trace.config.block_size
            planes = torch.stack(attention_map(q, k, rows, cols, cells, pooled, scale, lse, mask, block))[:, 0, 0].cpu().numpy()
        except torch.OutOfMemoryError:
            self.ready = False
            self._heads.clear()
            return None
        if reduce == "mean":
            planes /= np.outer(*map(np.diff, edges)).astype(np.float32)
        return planes[0], planes[1]

    def _head(self, trace, layer, head):
        """q, k [1, 1, N + WIDEST_CELL, D], lse, block mask on the device; padded rows have no weight."""
        import torch

        name = (trace.meta["prompt"]["sha256"], trace.meta["created"], trace.meta["model"]["name"], layer, head)
        with self._lock:
            if name in self._heads:
                self._heads.move_to_end(name)
                return self._heads[name]
            pad, block = WIDEST_CELL, trace.config.block_size
            q, k, lse = trace.queries_and_keys(layer, head)
            blocks = -(-(trace.length + pad) // block)
            mask = np.ones((blocks, blocks), bool)
            kept = trace.block_mask(layer, head)
            mask[: kept.shape[0], : kept.shape[1]] = kept
            parts = (
                np.pad(q, [(0, pad), (0, 0)]), np.pad(k, [(0, pad), (0, 0)]), np.pad(lse, (0, pad), constant_values=np.inf), mask,
            )  # fmt: skip
            tensors = [torch.from_numpy(part).to(self.device)[None, None] for part in parts]
            self._heads[name] = tensors
            while len(self._heads) > 1 and sum(t.nbytes for held in self._heads.values() for t in held) > self.held_bytes:
                self._heads.popitem(last=False)
            return tensors
