"""The masks of the model adapter: a causal prefill's as its key padding and a few numbers, any other as SDPA would get it."""

from __future__ import annotations

from functools import cache

import torch
import torch.nn.functional as F
from torch import Tensor
from transformers.masking_utils import causal_mask_function, sdpa_mask, sliding_window_causal_mask_function


class UnsupportedModelError(ValueError):
    """The model's attention can't be taken over; the message says why."""


class CausalMask(Tensor):
    """The mask of a causal prefill, without its Nq x Nk cells: bool [B, 1, 1, Nk], True for keys that are real tokens.

    Key j is visible to row r if it is real, j <= offset + r and offset + r - j < window. Keys from `end` on are unused slots of a
    static cache. Moving it between devices keeps it what it is; a model that calculates with it raises UnsupportedModelError.

    rows: Nq; offset: the key position of row 0; window: tokens, None for all; spans: (first, one past last) real key of each
    batch row, None where padding lies between real tokens.
    """

    rows: int
    offset: int
    window: int | None
    spans: tuple[tuple[int, int], ...] | None

    @classmethod
    def of(cls, real: Tensor, rows: int, offset: int = 0, window: int | None = None) -> CausalMask:
        """From real: bool [B, Nk]."""
        mask = real[:, None, None].as_subclass(cls)
        end = offset + rows
        mask.rows, mask.offset = rows, offset
        mask.window = window if window is not None and window < end else None
        mask.spans = _spans(real[:, :end])
        return mask

    @property
    def end(self) -> int:
        """One past the last key that any row may see."""
        return self.offset + self.rows

    @property
    def padded(self) -> bool:
        return self.spans is None or any(span != (0, self.end) for span in self.spans)

    @property
    def real(self) -> Tensor:
        """Bool [B, end]: which keys are real tokens."""
        return self.as_subclass(Tensor)[:, 0, 0, : self.end]

    def part(self, rows: tuple[int, int], keys: tuple[int, int]) -> Tensor:
        """The cells of a window of rows and keys, bool [B, 1, rows, keys]."""
        row = torch.arange(*rows, device=self.device)[:, None] + self.offset
        key = torch.arange(*keys, device=self.device)
        visible = key <= row
        if self.window is not None:
            visible &= row - key < self.window
        return visible & self.as_subclass(Tensor)[..., keys[0] : keys[1]]

    @classmethod
    def __torch_function__(cls, func, types, args=(), kwargs=None):
        kwargs = kwargs or {}
        if func is F.scaled_dot_product_attention:
            return func(*_cells(args), **dict(zip(kwargs, _cells(kwargs.values()), strict=True)))
        if func.__name__ not in _KEEPS_MASK:
            raise UnsupportedModelError(f"the model calculates with its attention mask ({func.__name__}); this can't be followed")
        result = super().__torch_function__(func, types, args, kwargs)
        if isinstance(result, cls) and result is not args[0]:
            result.__dict__.update(args[0].__dict__)
        return result


_KEEPS_MASK = {"__get__", "__set__", "__repr__", "size", "dim"}
_KEEPS_MASK |= {"as_subclass", "clone", "contiguous", "cpu", "cuda", "detach", "to"}


def _cells(values):
    return tuple(v.part((0, v.rows), (0, v.shape[-1])) if isinstance(v, CausalMask) else v for v in values)


def _spans(real: Tensor) -> tuple[tuple[int, int], ...] | None:
    count = real.sum(-1)
    first = real.to(torch.uint8).argmax(-1)
    last = real.shape[1] - real.flip(-1).to(torch.uint8).argmax(-1)
    rows = torch.stack([count, first, last], -1).tolist()
    if any(count and last - first != count for count, first, last in rows):
        return None
    return tuple((first, last) if count else (0, 0) for count, first, last in rows)


@cache
def _sliding_code():
    """The code objects of transformers' sliding causal mask: of the intersection, and of its overlay."""
    both = sliding_window_causal_mask_function(1)
    return both.__code__, _free(both, "mask_functions")[0].__code__


def _free(function, name):
    return function.__closure__[function.__code__.co_freevars.index(name)].cell_contents


def _window_of(mask_function) -> int | None:
    """The window of a causal sliding mask, 0 for plain causal, None for any other mask."""
    if mask_function is causal_mask_function:
        return 0
    code, overlay_code = _sliding_code()
    if getattr(mask_function, "__code__", None) is code:
        overlay, *rest = _free(mask_function, "mask_functions")
        if rest == [causal_mask_function] and getattr(overlay, "__code__", None) is overlay_code:
            return _free(overlay, "sliding_window")
    return None


def mask_for_sample_attention(
    batch_size,
    q_length,
    kv_length,
    q_offset=0,
    kv_offset=0,
    mask_function=causal_mask_function,
    attention_mask=None,
    allow_is_causal_skip=True,
    device="cpu",
    **kwargs,
) -> Tensor | None:
    """What an attention layer gets: a CausalMask for a causal prefill, else as for SDPA: bool [B, 1, Nq, Nk], or None."""
    window = None if torch.compiler.is_compiling() else _window_of(mask_function)
    if window is not None and (q_length > 1 or kv_length == 1) and allow_is_causal_skip:
        offset = int(q_offset) - int(kv_offset)
        if offset >= 0 and offset + q_length <= kv_length:
            real = torch.ones(batch_size, kv_length, dtype=torch.bool, device=device)
            if attention_mask is not None:
                known = attention_mask[:, kv_offset : kv_offset + kv_length]
                real = F.pad(known, (0, kv_length - known.shape[1]))
            return CausalMask.of(real, q_length, offset, window or None)
    return sdpa_mask(
        batch_size,
        q_length,
        kv_length,
        q_offset=q_offset,
        kv_offset=kv_offset,
        mask_function=mask_function,
        attention_mask=attention_mask,
        allow_is_causal_skip=allow_is_causal_skip,
        device=device,
        **kwargs,
    )
