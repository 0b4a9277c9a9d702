"""SampleAttention inside transformers models: `use_sample_attention` runs the eligible attention layers of a model sparse.

Everything goes through `AttentionInterface` and `AttentionMaskInterface` under one name of ours; no class or function is patched.
A layer runs sparse only where its attention is certainly a plain causal prefill. Everything else runs dense, with the reason.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from dataclasses import dataclass, field

import torch
from torch import Tensor
from transformers import AttentionInterface, AttentionMaskInterface, PreTrainedModel

from sampleattn.attention import sample_attention
from sampleattn.config import SampleAttentionConfig
from sampleattn.fastest import dense_reason
from sampleattn.filtering import Selection
from sampleattn.hf_dense import dense_attention
from sampleattn.hf_mask import CausalMask, UnsupportedModelError, mask_for_sample_attention

NAME = "sample_attention"
UNFOLLOWED = ("cache", "sinks", "block_indices")


@dataclass(frozen=True)
class LayerReport:
    """How a layer ran in the (last chunk of the) prefill: "sparse" or "dense", and why it was not, or could not be, sparse."""

    ran: str
    reason: str = ""


@dataclass(frozen=True)
class LayerCall:
    """One attention call of a prefill, as an observer sees it.

    query [B, Hq, Nq, D]; key [B, Hkv, Nk, D]; value [B, Hkv, Nk, Dv] without the unused slots of a static cache; output
    [B, Hq, Nq, Dv]. padding: bool [B, Nk], True for real tokens, None if all are. selection: of a sparse call, else None.
    eligible: plain causal prefill, so q and k alone tell the attention weights. seconds: wall time of the attention call.
    """

    layer: int
    query: Tensor
    key: Tensor
    value: Tensor
    scale: float
    padding: Tensor | None
    output: Tensor
    selection: Selection | None
    ran: str
    reason: str
    eligible: bool
    seconds: float


@dataclass
class SampleAttentionRun:
    """What `use_sample_attention` yields: the settings, and how each layer ran (layer index -> LayerReport)."""

    config: SampleAttentionConfig | None
    observer: Callable[[LayerCall], None] | None = None
    layers: dict[int, LayerReport] = field(default_factory=dict)


@contextmanager
def use_sample_attention(
    model: PreTrainedModel, config: SampleAttentionConfig | None, observer: Callable[[LayerCall], None] | None = None
) -> Iterator[SampleAttentionRun]:
    """Runs the model's eligible attention layers with SampleAttention inside the `with` block, in this thread or task.

    config: the settings; None runs every layer dense (and still calls the observer). observer: called with a LayerCall after
    each attention call of a prefill; what it raises ends the forward. Contexts nest, on one model or several (the innermost one
    of a model counts); other threads may use the model at the same time with other settings, or with none (dense). The model's
    own attention implementation comes back when its last user leaves.

    Outputs of sparse layers have no gradient: a backward pass through them raises RuntimeError. `generate` may compile its decode
    steps, which are dense. Raises UnsupportedModelError (a ValueError) with the reason if the model has no causal attention
    that can be taken over, or is itself compiled.
    """
    if config is not None and not isinstance(config, SampleAttentionConfig):
        raise TypeError(f"config must be a SampleAttentionConfig or None, not {type(config).__name__}")
    run = SampleAttentionRun(config, observer)
    with _switched(decoder_of(model)) as decoder_config:
        token = _active.set((*_active.get(), (decoder_config, run)))
        try:
            yield run
        finally:
            _active.reset(token)


def decoder_of(model: PreTrainedModel) -> PreTrainedModel:
    """The part of the model whose attention is taken over: the text decoder (of a multimodal model), or the model itself.

    Raises UnsupportedModelError with the reason if there is none.
    """
    name = type(model).__name__
    if hasattr(model, "_orig_mod") or getattr(model, "_compiled_call_impl", None):
        raise UnsupportedModelError(f"{name} is compiled (torch.compile); use the model that is not")
    if not isinstance(model, PreTrainedModel):
        raise UnsupportedModelError(f"{name} is not a transformers model (PreTrainedModel)")
    if getattr(model.config, "is_encoder_decoder", False):
        raise UnsupportedModelError(f"{name} is an encoder-decoder model; SampleAttention needs a decoder-only language model")
    text_config = model.config.get_text_config(decoder=True)
    decoder = next((m for m in model.modules() if isinstance(m, PreTrainedModel) and m.config is text_config), None)
    if decoder is None:
        raise UnsupportedModelError(f"{name} has no text decoder with a configuration of its own")
    attention = [m for m in decoder.modules() if "Attention" in type(m).__name__ and getattr(m, "config", None) is text_config]
    if not attention:
        raise UnsupportedModelError(
            f"{name} has no attention layers that can be taken over: it is a state-space or linear-attention model, or has "
            "attention code of its own"
        )
    if not any(getattr(m, "is_causal", True) for m in attention):
        raise UnsupportedModelError(f"{name} is an encoder: its attention is not causal; SampleAttention needs a language model")
    if not decoder._can_set_attn_implementation():
        raise UnsupportedModelError(f"{name} does not compute its attention through transformers' AttentionInterface")
    return decoder


# Settings and users

_active: ContextVar[tuple[tuple[object, SampleAttentionRun], ...]] = ContextVar("sample_attention_runs", default=())


@dataclass
class _Use:
    config: object
    before: str
    users: int = 0


_lock = threading.Lock()
_uses: dict[int, _Use] = {}


@contextmanager
def _switched(decoder):
    """Counts a user of the decoder: the first switches its implementation to ours, the last switches it back.

    Counted by configuration object, which is where transformers keeps the implementation, and which models may share.
    """
    config = decoder.config
    with _lock:
        use = _uses.get(id(config)) or _Use(config, config._attn_implementation)
        if use.users == 0:
            decoder.set_attn_implementation({"": NAME})
            _uses[id(config)] = use
        use.users += 1
    try:
        yield config
    finally:
        with _lock:
            use.users -= 1
            if use.users == 0:
                del _uses[id(config)]
                decoder.set_attn_implementation({"": use.before})


def _run_of(module) -> SampleAttentionRun | None:
    return next((run for config, run in reversed(_active.get()) if config is module.config), None)


# Attention


def attention_of_layer(
    module,
    query: Tensor,
    key: Tensor,
    value: Tensor,
    attention_mask: Tensor | None,
    dropout: float = 0.0,
    scaling: float | None = None,
    is_causal: bool | None = None,
    sliding_window: int | None = None,
    softcap: float | None = None,
    s_aux: Tensor | None = None,
    position_bias: Tensor | None = None,
    **kwargs,
) -> tuple[Tensor, None]:
    """The attention function of the interface: query [B, Hq, Nq, D], key and value [B, Hkv, Nk, D] -> ([B, Nq, Hq, Dv], None)."""
    for name in UNFOLLOWED:
        if kwargs.get(name) is not None:
            raise UnsupportedModelError(f"{type(module).__name__} passes {name!r}, which SampleAttention can't follow")
    scale = query.shape[-1] ** -0.5 if scaling is None else scaling
    dense = {"scale": scale, "dropout": dropout, "softcap": softcap, "sinks": s_aux}
    layer = getattr(module, "layer_idx", None)
    run = None if layer is None or torch.compiler.is_compiling() else _run_of(module)
    causal = getattr(module, "is_causal", True) if is_causal is None else is_causal

    mask, reason = attention_mask, ""
    if mask is None and causal and query.shape[2] > 1:
        mask = CausalMask.of(key.new_ones(query.shape[0], key.shape[2], dtype=torch.bool), query.shape[2])
        reason = "the model gave no mask"
    if isinstance(mask, CausalMask):
        if (query.shape[0], query.shape[2], key.shape[2]) != (mask.shape[0], mask.rows, mask.shape[-1]):
            raise UnsupportedModelError(f"{type(module).__name__} uses its causal mask with queries or keys of other lengths")
        key, value = key[:, :, : mask.end], value[:, :, : mask.end]
    if position_bias is not None:
        mask, reason = _with_bias(mask, position_bias, query, key), "attention bias"

    if run is None or (query.shape[2] == 1 and key.shape[2] > 1):
        if run is not None:
            run.layers.setdefault(layer, LayerReport("dense", "decode step"))
        return dense_attention(query, key, value, mask, **dense).transpose(1, 2).contiguous(), None

    reason = reason or why_dense(mask, key.shape[2], sliding_window, softcap, s_aux, dropout)
    eligible = not reason
    padding = mask.real if isinstance(mask, CausalMask) and mask.padded else None
    if eligible and run.config is not None:
        reason = dense_reason(run.config, query, key.shape[2])
    start = _clock(query, run)
    selection = None
    if run.config is not None and not reason:
        output, selection = _sparse(query, key, value, run.config, scale, padding)
        if selection.dense:
            reason, selection = selection.reason, None
    else:
        output = dense_attention(query, key, value, mask, **dense)
    seconds = _clock(query, run) - start
    ran = "dense" if selection is None else "sparse"
    run.layers[layer] = LayerReport(ran, reason)
    if run.observer is not None:
        call = (layer, query, key, value, scale, padding, output, selection, ran, reason, eligible, seconds)
        run.observer(LayerCall(*call))
    return output.transpose(1, 2).contiguous(), None


def why_dense(mask, keys: int, sliding_window, softcap, sinks, dropout: float) -> str:
    """Why a prefill call is not plain causal attention, in the user's words; "" if it is."""
    if not isinstance(mask, CausalMask):
        return "bidirectional attention" if mask is None else "packed or custom mask"
    window = min(w for w in (mask.window, sliding_window, keys) if w is not None)
    if window < keys:
        return f"sliding window of {window}"
    if softcap is not None:
        return "logit soft-capping"
    if sinks is not None:
        return "attention sinks (s_aux)"
    if dropout > 0:
        return "dropout in training"
    if mask.spans is None:
        return "padding between real tokens"
    if any(first == last for first, last in mask.spans):
        return "a batch row without real tokens"
    return ""


def _clock(query, run) -> float:
    if run.observer is not None and query.is_cuda:
        torch.cuda.synchronize(query.device)
    return time.perf_counter()


def _sparse(query, key, value, config, scale, padding):
    with torch.no_grad():
        output, selection = sample_attention(query, key, value, config, scale=scale, padding=padding, return_selection=True)
    return _NoBackward.apply(output, query, key, value), selection


class _NoBackward(torch.autograd.Function):
    """Stands where a sparse output has no gradient, so that training through it fails instead of learning nothing."""

    @staticmethod
    def forward(ctx, output, *inputs):
        return output.view_as(output)

    @staticmethod
    def backward(ctx, grad):
        raise RuntimeError("SampleAttention has no backward pass: use config=None, or the model alone, for gradients")


def _with_bias(mask, bias, query, key):
    bias = bias[..., : key.shape[2]]
    if isinstance(mask, CausalMask):
        mask = mask.part((0, query.shape[2]), (0, key.shape[2]))
    if mask is None:
        return bias
    return bias.masked_fill(~mask, -torch.inf) if mask.dtype == torch.bool else bias + mask


AttentionInterface.register(NAME, attention_of_layer)
AttentionMaskInterface.register(NAME, mask_for_sample_attention)
