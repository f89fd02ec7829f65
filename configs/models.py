"""Architectures by name: small ones to train from nothing, and those of published models. Each is a dict of
`config.settings.Arch`'s keys, without those that are as in a Llama.

A published preset is what the model's Hugging Face config.json says, and its vocabulary is the rows of the embedding, which
may be more than its tokenizer has. No weights come with it: for those, name the Hugging Face directory instead.
"""

import math

# ------------------------------------------------------------------ one function per family


def arch(dim, num_layers, num_heads, ffn_dim, *, num_kv_heads=None, rope_theta=10000.0):
    """A new model's sizes. init_std is 1/sqrt(dim): 0.02, usual at dim 2500, starts these small models much too slowly."""
    return dict(
        vocab_size=0,
        dim=dim,
        num_layers=num_layers,
        num_heads=num_heads,
        num_kv_heads=num_kv_heads or num_heads,
        head_dim=dim // num_heads,
        ffn_dim=ffn_dim,
        rope_theta=rope_theta,
        norm_eps=1e-5,
        tie_embeddings=True,
        init_std=round(dim**-0.5, 4),
    )


def published(family, vocab_size, dim, num_layers, num_heads, num_kv_heads, ffn_dim, **rest):
    """The keys that no family leaves at its default; what all the models below agree on may be overridden."""
    sizes = dict(
        family=family,
        vocab_size=vocab_size,
        dim=dim,
        num_layers=num_layers,
        num_heads=num_heads,
        num_kv_heads=num_kv_heads,
        ffn_dim=ffn_dim,
    )
    return sizes | dict(head_dim=dim // num_heads, rope_theta=10000.0, norm_eps=1e-5, init_std=0.02) | rest


def gpt2(vocab_size, dim, num_layers, num_heads, **rest):
    """GPT-2 and Codeparrot."""
    return published(
        "gpt2",
        vocab_size,
        dim,
        num_layers,
        num_heads,
        num_heads,
        4 * dim,
        tie_embeddings=True,
        max_positions=1024,
        positions="learned",
        norm="layer",
        activation="gelu_tanh",
        gated=False,
        qkv_bias=True,
        out_bias=True,
        mlp_bias=True,
        **rest,
    )


def opt(vocab_size, dim, num_layers, num_heads, *, activation="relu"):
    """OPT and Galactica. Galactica's paper has no biases; its published files do."""
    return published(
        "opt",
        vocab_size,
        dim,
        num_layers,
        num_heads,
        num_heads,
        4 * dim,
        tie_embeddings=True,
        max_positions=2048,
        positions="learned",
        position_offset=2,
        norm="layer",
        activation=activation,
        gated=False,
        qkv_bias=True,
        out_bias=True,
        mlp_bias=True,
    )


def codegen(dim, num_layers, num_heads, *, rotary_dim):
    """CodeGen; mono, multi and nl are one architecture."""
    return published(
        "codegen",
        51200,
        dim,
        num_layers,
        num_heads,
        num_heads,
        4 * dim,
        tie_embeddings=False,
        max_positions=2048,
        rotary_dim=rotary_dim,
        rope_interleaved=True,
        norm="layer",
        parallel=True,
        activation="gelu_tanh",
        gated=False,
        mlp_bias=True,
        unembed_bias=True,
    )


def llama(*sizes, max_positions, rope_theta=10000.0, tied=False, rope_factor=1.0):
    """Llama 2 and 3 and CodeLlama; rope_factor > 1 is Llama 3.1's scaling, from the 8,192 positions of pretraining."""
    scaling = dict(
        kind="llama3", factor=rope_factor, original_max_positions=8192, low_freq_factor=1.0, high_freq_factor=4.0
    )
    return published(
        "llama",
        *sizes,
        rope_theta=rope_theta,
        tie_embeddings=tied,
        max_positions=max_positions,
        **(dict(rope_scaling=scaling) if rope_factor > 1 else {}),
    )


def mistral(vocab_size, *, rope_theta, window):
    """Mistral 7B, whose versions differ in little; window 0 = none."""
    return published(
        "mistral",
        vocab_size,
        4096,
        32,
        32,
        8,
        14336,
        rope_theta=rope_theta,
        tie_embeddings=False,
        max_positions=32768,
        windows=(window,) * 32 if window else (),
    )


def qwen2(*sizes, max_positions, rope_theta=1e6, norm_eps=1e-6, tied=False):
    """Qwen 2.5's base models, its Math models and DeepSeek's distillations of those. The instruct models have max_positions
    32768, and all of them norm_eps 1e-6."""
    return published(
        "qwen2",
        *sizes,
        rope_theta=rope_theta,
        norm_eps=norm_eps,
        tie_embeddings=tied,
        max_positions=max_positions,
        qkv_bias=True,
    )


def qwen3(dim, num_layers, num_heads, ffn_dim, *, tied):
    """Qwen 3, dense and post-trained; the base models have max_positions 32768."""
    return published(
        "qwen3",
        151936,
        dim,
        num_layers,
        num_heads,
        8,
        ffn_dim,
        head_dim=128,
        rope_theta=1e6,
        norm_eps=1e-6,
        tie_embeddings=tied,
        max_positions=40960,
        qk_norm=True,
    )


def gemma(family, *sizes, head_dim, query_pre_attn_scalar, **rest):
    """What Gemma 2 and 3 have in common."""
    return published(
        family,
        *sizes,
        head_dim=head_dim,
        norm_eps=1e-6,
        tie_embeddings=True,
        norm="rms_plus_one",
        post_norms=True,
        activation="gelu_tanh",
        attention_scale=float(query_pre_attn_scalar) ** -0.5,
        embed_scale=math.sqrt(sizes[1]),
        **rest,
    )


def local_and_global(num_layers, period, window):
    """Arch.windows of `period` - 1 layers with a window, then one without, over and over."""
    return tuple(window if (i + 1) % period else 0 for i in range(num_layers))


def gemma2(dim, num_layers, num_heads, num_kv_heads, ffn_dim, *, head_dim=256, query_pre_attn_scalar=256):
    """Gemma 2: every other layer has a window, and attention and output are soft-capped."""
    return gemma(
        "gemma2",
        256000,
        dim,
        num_layers,
        num_heads,
        num_kv_heads,
        ffn_dim,
        head_dim=head_dim,
        query_pre_attn_scalar=query_pre_attn_scalar,
        max_positions=8192,
        windows=local_and_global(num_layers, 2, 4096),
        attention_softcap=50.0,
        logit_softcap=30.0,
    )


def gemma3(*sizes, window, max_positions, head_dim=256, query_pre_attn_scalar=256, rope_factor=1.0):
    """Gemma 3's text decoder: five layers with a window to one without, whose angles alone are stretched by rope_factor."""
    return gemma(
        "gemma3_text",
        *sizes,
        head_dim=head_dim,
        query_pre_attn_scalar=query_pre_attn_scalar,
        rope_theta=1e6,
        local_rope_theta=10000.0,
        max_positions=max_positions,
        windows=local_and_global(sizes[2], 6, window),
        qk_norm=True,
        **(dict(rope_scaling=dict(kind="linear", factor=rope_factor)) if rope_factor > 1 else {}),
    )


# ------------------------------------------------------------------ the table

# The decoders in Gemma 3's image-and-text models: 64 rows of the embedding are for images.
GEMMA3_LARGE = dict(window=1024, max_positions=131072, rope_factor=8.0)
GEMMA3_SMALL = dict(window=512, max_positions=32768)
LLAMA3 = dict(max_positions=131072, rope_theta=500000.0)

PRESETS = {
    "demo": arch(128, 2, 4, 352, rope_theta=1000.0),  # 0.4M parameters: the base model that the demo starts from
    "tiny": arch(128, 2, 4, 352, num_kv_heads=2),  # 0.5M with a vocabulary of 1,000: real text in minutes on two cores
    "words": arch(256, 4, 8, 704, rope_theta=1000.0),  # 3.7M with a vocabulary of 2,000: word problems on a laptop
    "words_1m": arch(128, 4, 4, 352, rope_theta=1000.0),  # 1.1M: 130,000 problems an hour on one core
    "small": arch(512, 8, 8, 1408, num_kv_heads=4),
    # vocabulary, dim, layers, heads (, feed-forward 4 dim)
    "galactica_125m": opt(50000, 768, 12, 12, activation="gelu"),
    "galactica_1_3b": opt(50000, 2048, 24, 32, activation="gelu"),
    "galactica_6_7b": opt(50000, 4096, 32, 32, activation="gelu"),
    "opt_125m": opt(50272, 768, 12, 12),
    "opt_1_3b": opt(50272, 2048, 24, 32),
    "opt_2_7b": opt(50272, 2560, 32, 32),
    "opt_6_7b": opt(50272, 4096, 32, 32),
    "codeparrot_small": gpt2(32768, 768, 12, 12, scale_by_layer=True),
    "gpt2_124m": gpt2(50257, 768, 12, 12),
    "gpt2_medium": gpt2(50257, 1024, 24, 16),
    "gpt2_large": gpt2(50257, 1280, 36, 20),
    "gpt2_xl": gpt2(50257, 1600, 48, 25),
    # dim, layers, heads
    "codegen_350m": codegen(1024, 20, 16, rotary_dim=32),
    "codegen_2b": codegen(2560, 32, 32, rotary_dim=64),
    "codegen_6b": codegen(4096, 33, 16, rotary_dim=64),
    # vocabulary, dim, layers, heads, key-value heads, feed-forward
    "codellama_7b": llama(32016, 4096, 32, 32, 32, 11008, max_positions=16384, rope_theta=1e6),
    "llama2_7b": llama(32000, 4096, 32, 32, 32, 11008, max_positions=4096),
    "llama2_13b": llama(32000, 5120, 40, 40, 40, 13824, max_positions=4096),
    "llama3_8b": llama(128256, 4096, 32, 32, 8, 14336, max_positions=8192, rope_theta=500000.0),
    "llama3_1_8b": llama(128256, 4096, 32, 32, 8, 14336, rope_factor=8.0, **LLAMA3),
    "smollm2_135m": llama(49152, 576, 30, 9, 3, 1536, tied=True, max_positions=8192, rope_theta=100000.0),
    "smollm2_360m": llama(49152, 960, 32, 15, 5, 2560, tied=True, max_positions=8192, rope_theta=100000.0),
    "smollm2_1_7b": llama(49152, 2048, 24, 32, 32, 8192, tied=True, max_positions=8192, rope_theta=130000.0),
    "llama3_2_1b": llama(128256, 2048, 16, 32, 8, 8192, rope_factor=32.0, tied=True, **LLAMA3),
    "llama3_2_3b": llama(128256, 3072, 28, 24, 8, 8192, rope_factor=32.0, tied=True, **LLAMA3),
    "mistral_7b": mistral(32000, rope_theta=10000.0, window=4096),  # v0.1
    "mistral_7b_v0_3": mistral(32768, rope_theta=1e6, window=0),
    "qwen2_5_0_5b": qwen2(151936, 896, 24, 14, 2, 4864, max_positions=32768, tied=True),
    "qwen2_5_1_5b": qwen2(151936, 1536, 28, 12, 2, 8960, max_positions=131072, tied=True),
    "qwen2_5_3b": qwen2(151936, 2048, 36, 16, 2, 11008, max_positions=32768, tied=True),
    "qwen2_5_7b": qwen2(152064, 3584, 28, 28, 4, 18944, max_positions=131072),
    "qwen2_5_14b": qwen2(152064, 5120, 48, 40, 8, 13824, max_positions=131072, norm_eps=1e-5),
    "qwen2_5_32b": qwen2(152064, 5120, 64, 40, 8, 27648, max_positions=131072, norm_eps=1e-5),
    "qwen2_5_math_1_5b": qwen2(151936, 1536, 28, 12, 2, 8960, max_positions=4096, rope_theta=10000.0, tied=True),
    "qwen2_5_math_7b": qwen2(152064, 3584, 28, 28, 4, 18944, max_positions=4096, rope_theta=10000.0),
    "deepseek_r1_distill_qwen_1_5b": qwen2(151936, 1536, 28, 12, 2, 8960, max_positions=131072, rope_theta=10000.0),
    "deepseek_r1_distill_qwen_7b": qwen2(152064, 3584, 28, 28, 4, 18944, max_positions=131072, rope_theta=10000.0),
    # dim, layers, heads, feed-forward
    "qwen3_0_6b": qwen3(1024, 28, 16, 3072, tied=True),
    "qwen3_1_7b": qwen3(2048, 28, 16, 6144, tied=True),
    "qwen3_4b": qwen3(2560, 36, 32, 9728, tied=True),
    "qwen3_8b": qwen3(4096, 36, 32, 12288, tied=False),
    "qwen3_14b": qwen3(5120, 40, 40, 17408, tied=False),
    "qwen3_32b": qwen3(5120, 64, 64, 25600, tied=False),
    # dim, layers, heads, key-value heads, feed-forward
    "gemma2_2b": gemma2(2304, 26, 8, 4, 9216),
    "gemma2_9b": gemma2(3584, 42, 16, 8, 14336),
    "gemma2_27b": gemma2(4608, 46, 32, 16, 36864, head_dim=128, query_pre_attn_scalar=144),
    # vocabulary, dim, layers, heads, key-value heads, feed-forward
    "gemma3_270m": gemma3(262144, 640, 18, 4, 1, 2048, **GEMMA3_SMALL),
    "gemma3_1b": gemma3(262144, 1152, 26, 4, 1, 6912, **GEMMA3_SMALL),
    "gemma3_4b": gemma3(262208, 2560, 34, 8, 4, 10240, **GEMMA3_LARGE),
    "gemma3_12b": gemma3(262208, 3840, 48, 16, 8, 15360, **GEMMA3_LARGE),
    "gemma3_27b": gemma3(262208, 5376, 62, 32, 16, 21504, head_dim=128, query_pre_attn_scalar=168, **GEMMA3_LARGE),
}
