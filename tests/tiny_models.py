"""Tiny randomly initialised models of every tested family: 2 to 4 layers, hidden 32 to 64, a vocabulary of 128."""

import torch
from transformers import AutoConfig, AutoModelForCausalLM

VOCABULARY = 128
WINDOW = 96

_LLAMA = {
    "hidden_size": 64,
    "intermediate_size": 96,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "head_dim": 16,
    "max_position_embeddings": 1024,
}
_FULL = {**_LLAMA, "layer_types": ["full_attention"] * 2}
_MIXED = {**_LLAMA, "sliding_window": WINDOW, "layer_types": ["sliding_attention", "full_attention"]}
_EXPERTS = {"num_experts_per_tok": 2, "moe_intermediate_size": 32}

SIZES = {
    "gpt2": {"n_embd": 64, "n_layer": 2, "n_head": 4, "n_positions": 1024},
    "gpt_neox": {
        **{name: _LLAMA[name] for name in ("hidden_size", "intermediate_size", "num_hidden_layers", "num_attention_heads")},
        "max_position_embeddings": 1024,
        "rotary_pct": 0.25,
    },
    "llama": _LLAMA,
    "qwen2": {**_FULL, "use_sliding_window": False},
    "qwen3": _FULL,
    "mistral": {**_LLAMA, "sliding_window": None},
    "mistral_sliding": {**_LLAMA, "sliding_window": WINDOW},
    "phi3": {**_LLAMA, "sliding_window": None},
    "gemma2": {**_MIXED, "query_pre_attn_scalar": 16, "attn_logit_softcapping": 2.0},
    "gemma3_text": {**_MIXED, "query_pre_attn_scalar": 16},
    "glm4": _LLAMA,
    "olmo2": _LLAMA,
    "smollm3": {**_FULL, "no_rope_layers": [1, 0]},
    "gpt_oss": {**_MIXED, "num_local_experts": 4, "num_experts_per_tok": 2},
    "mixtral": {**_LLAMA, "sliding_window": None, "num_local_experts": 4, "num_experts_per_tok": 2},
    "qwen3_moe": {**_LLAMA, **_EXPERTS, "num_experts": 4, "decoder_sparse_step": 1},
}
FAMILIES = tuple(SIZES)
LIMITED = {
    "mistral_sliding": {0: f"sliding window of {WINDOW}", 1: f"sliding window of {WINDOW}"},
    "gemma2": {0: f"sliding window of {WINDOW}", 1: "logit soft-capping"},
    "gemma3_text": {0: f"sliding window of {WINDOW}", 1: ""},
    "gpt_oss": {0: f"sliding window of {WINDOW}", 1: "attention sinks (s_aux)"},
}


def tiny_model(family, attn_implementation="eager", dtype=torch.float32):
    """An eval-mode model of the family, the same at every call, with attention that is not nearly uniform."""
    config = AutoConfig.for_model(
        family.removesuffix("_sliding"),
        vocab_size=VOCABULARY,
        pad_token_id=0,
        bos_token_id=1,
        eos_token_id=None,
        **SIZES[family],
    )
    torch.manual_seed(0)
    model = AutoModelForCausalLM.from_config(config, attn_implementation=attn_implementation, dtype=dtype)
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if name.endswith("sinks"):
                parameter.normal_()
            elif parameter.ndim >= 2:
                parameter.normal_(std=parameter.shape[-1] ** -0.5)
    return model.eval()


def tokens(batch, length, seed=1):
    """Random token ids [batch, length], none of them padding."""
    return torch.randint(2, VOCABULARY, (batch, length), generator=torch.Generator().manual_seed(seed))
