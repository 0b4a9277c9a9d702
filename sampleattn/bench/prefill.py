"""Time to first token of a model of Llama-3.1-8B's shape with random weights: dense, with SampleAttention, without attention.

A prefill is one forward of the whole prompt, batch 1, filling a plain DynamicCache, with the logits of the last token only.
"Without attention" replaces each layer's attention by its queries (a copy, as attention's output would be): the time that no
attention can save. What Amdahl's law allows, with r that time and a = dense - r the time of dense attention, is
dense / (r + density * a): attention at dense attention's rate on the kept tiles, chosen in no time (`bars.amdahl`).
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager, nullcontext
from functools import partial

import torch
from torch.nn.attention import SDPBackend, sdpa_kernel
from transformers import AttentionInterface, AttentionMaskInterface, LlamaConfig, LlamaForCausalLM

from sampleattn.bench.cases import Case, Cases, choice, forced
from sampleattn.hf import use_sample_attention

LENGTHS = (32768, 131072)
LAYERS, INTERMEDIATE, VOCABULARY, THETA = 32, 14336, 128256, 5e5
NO_ATTENTION = "no_attention_of_bench"


def llama(shape, layers=LAYERS, intermediate=INTERMEDIATE, vocabulary=VOCABULARY) -> LlamaForCausalLM:
    """A Llama with shape's heads, head_dim, dtype and device (`measure.Shape`), its weights drawn where they stay."""
    config = LlamaConfig(
        hidden_size=shape.heads * shape.head_dim,
        intermediate_size=intermediate,
        num_hidden_layers=layers,
        num_attention_heads=shape.heads,
        num_key_value_heads=shape.kv_heads,
        head_dim=shape.head_dim,
        vocab_size=vocabulary,
        max_position_embeddings=max(LENGTHS),
        rope_parameters={"rope_type": "default", "rope_theta": THETA},
    )
    torch.manual_seed(0)
    before = torch.get_default_dtype()
    try:
        torch.set_default_dtype(shape.dtype)
        with torch.device(shape.device):
            return LlamaForCausalLM._from_config(config, attn_implementation="sdpa").eval()
    finally:
        torch.set_default_dtype(before)


def cases_of(model: LlamaForCausalLM, length: int, density: float) -> Cases:
    """Dense, sparse with `density` imposed, and without attention, in turns. RuntimeError if a layer did not run sparse."""
    ids = torch.randint(model.config.vocab_size, (1, length), generator=torch.Generator().manual_seed(0)).to(model.device)
    config = forced(model.device, density=density)

    def first_token(context):
        def call():
            with torch.no_grad(), context():
                return model(ids, use_cache=True, logits_to_keep=1).logits

        return call

    def timed(name, context, share):
        return Case("prefill", name, partial(nullcontext, first_token(context)), share)

    cuda = model.device.type == "cuda"
    dense = (lambda: sdpa_kernel(SDPBackend.CUDNN_ATTENTION)) if cuda else nullcontext
    share = _sparse_density(model, config, first_token(nullcontext))
    yield (
        timed("dense, cudnn" if cuda else "dense, sdpa", dense, 1.0),
        timed(f"sample_attention, {choice(config)}", lambda: use_sample_attention(model, config), share),
        timed("without attention", lambda: _without_attention(model), 0.0),
    )


def _sparse_density(model, config, first_token) -> float:
    """The mean density over the layers and heads of a sparse run."""
    densities = []

    def observe(call):
        if call.ran != "sparse":
            raise RuntimeError(f"layer {call.layer} ran dense: {call.reason}")
        densities.append(call.selection.density.mean())

    with use_sample_attention(model, config, observe):
        first_token()
    return float(torch.stack(densities).mean())


@contextmanager
def _without_attention(model) -> Iterator[None]:
    before = model.config._attn_implementation
    model.set_attn_implementation(NO_ATTENTION)
    try:
        yield
    finally:
        model.set_attn_implementation(before)


def _queries(module, query, key, value, attention_mask, **kwargs):
    return query.transpose(1, 2).contiguous(), None


AttentionInterface.register(NO_ATTENTION, _queries)
AttentionMaskInterface.register(NO_ATTENTION, lambda *args, **kwargs: None)
