"""Small random models of every family, as transformers makes them: configs that switch on what sets the family apart."""

import functools

import numpy as np

VOCAB = 31
POSITIONS = 40
COMMON = dict(
    vocab_size=VOCAB,
    hidden_size=16,
    intermediate_size=24,
    num_hidden_layers=3,
    num_attention_heads=4,
    num_key_value_heads=2,
    max_position_embeddings=POSITIONS,
)
YARN = dict(rope_type="yarn", rope_theta=1000.0, factor=4.0, original_max_position_embeddings=10)
LLAMA3 = dict(
    rope_type="llama3",
    rope_theta=500.0,
    factor=8.0,
    low_freq_factor=1.0,
    high_freq_factor=4.0,
    original_max_position_embeddings=16,
)
LINEAR = dict(rope_type="linear", rope_theta=100.0, factor=4.0)
# torch gives the row of a padding token no gradient, hence none
GEMMA = dict(pad_token_id=None, head_dim=6, sliding_window=4, query_pre_attn_scalar=10)
GPT = dict(vocab_size=VOCAB, n_layer=3, n_head=4, n_positions=POSITIONS, bos_token_id=1, eos_token_id=1)
OPT = dict(
    vocab_size=VOCAB,
    pad_token_id=None,
    hidden_size=16,
    ffn_dim=24,
    num_hidden_layers=3,
    num_attention_heads=4,
    max_position_embeddings=POSITIONS,
)
# name -> (transformers' config class, its arguments); a name's first word is the family
CASES = {
    "llama": ("LlamaConfig", COMMON),
    "llama tied with biases": (
        "LlamaConfig",
        COMMON | dict(attention_bias=True, mlp_bias=True, tie_word_embeddings=True, head_dim=6),
    ),
    "llama with llama3 scaling": ("LlamaConfig", COMMON | dict(rope_parameters=LLAMA3)),
    "llama with linear scaling": ("LlamaConfig", COMMON | dict(rope_parameters=LINEAR)),
    "mistral": ("MistralConfig", COMMON | dict(sliding_window=5, hidden_act="gelu")),
    "mistral without windows": ("MistralConfig", COMMON | dict(sliding_window=None)),
    "qwen2": ("Qwen2Config", COMMON),
    "qwen2 with yarn and windows": (
        "Qwen2Config",
        COMMON
        | dict(
            rope_parameters=YARN,
            use_sliding_window=True,
            sliding_window=4,
            max_window_layers=1,
            tie_word_embeddings=True,
        ),
    ),
    "qwen3": ("Qwen3Config", COMMON | dict(head_dim=6)),
    "qwen3 with yarn": (
        "Qwen3Config",
        COMMON | dict(head_dim=6, rope_parameters=YARN | dict(truncate=False, attention_factor=0.9, beta_fast=8.0)),
    ),
    "gemma2": ("Gemma2Config", COMMON | GEMMA | dict(attn_logit_softcapping=2.0, final_logit_softcapping=3.0)),
    "gemma3_text": (
        "Gemma3TextConfig",
        COMMON
        | GEMMA
        | dict(
            num_hidden_layers=7,  # the sixth sees everything
            rope_parameters=dict(full_attention=LINEAR, sliding_attention=dict(rope_type="default", rope_theta=50.0)),
        ),
    ),
    "gpt2": ("GPT2Config", GPT | dict(n_embd=16, scale_attn_by_inverse_layer_idx=True, reorder_and_upcast_attn=True)),
    "gpt2 untied": ("GPT2Config", GPT | dict(n_embd=16, n_inner=20, tie_word_embeddings=False)),
    "opt": (
        "OPTConfig",
        OPT | dict(activation_function="gelu"),
    ),
    "opt without biases": (
        "OPTConfig",
        OPT | dict(enable_bias=False),
    ),
    "codegen": ("CodeGenConfig", GPT | dict(n_embd=32, n_ctx=POSITIONS, rotary_dim=4)),
}


@functools.cache
def theirs(case: str):
    """The torch model of a case, every parameter moved off its initial value."""
    import torch
    import transformers

    name, arguments = CASES[case]
    torch.manual_seed(0)
    config = getattr(transformers, name)(**arguments)
    model = transformers.AutoModelForCausalLM.from_config(config, attn_implementation="eager").eval()
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(0.2 * torch.randn_like(parameter))
    return model


def logits(model, tokens, mask=None) -> np.ndarray:
    """Theirs, f32[B, T, V]; positions count the real tokens."""
    import torch

    mask = np.ones(tokens.shape, bool) if mask is None else mask
    positions = torch.tensor(np.maximum(np.cumsum(mask, axis=1) - 1, 0))
    where = {} if model.config.model_type == "opt" else {"position_ids": positions}  # OPT counts them itself
    with torch.no_grad():
        out = model(
            torch.tensor(tokens, dtype=torch.long), attention_mask=torch.tensor(mask, dtype=torch.long), **where
        )
    return out.logits.numpy()
