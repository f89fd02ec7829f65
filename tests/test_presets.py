"""Every preset is legal, has exactly the published number of parameters, and is what its model's config.json says.

Where the numbers come from: PUBLISHED are the totals that Hugging Face shows of a model's safetensors (tied embeddings count
once; of Gemma 3 with images, the text decoder's). What has no such total is counted by a closed formula of its family, which
must also give the published totals of the family's other models. The presets to train from nothing have no vocabulary
of their own: their number is without embeddings. CONFIG_JSON are published files, less the keys that say nothing of the
architecture.
"""

import json
import math
import pathlib

import jax
import pytest

from configs.models import PRESETS
from reft_jax import models, recipe
from reft_jax.config import choices, settings

CONFIGS = pathlib.Path(__file__).resolve().parents[1] / "configs"

PUBLISHED = {
    "codellama_7b": 6_738_546_688,
    "deepseek_r1_distill_qwen_1_5b": 1_777_088_000,
    "deepseek_r1_distill_qwen_7b": 7_615_616_512,
    "gemma2_27b": 27_227_128_320,
    "gemma2_2b": 2_614_341_888,
    "gemma2_9b": 9_241_705_984,
    "gemma3_12b": 11_766_034_176,
    "gemma3_1b": 999_885_952,
    "gemma3_270m": 268_098_176,
    "gemma3_27b": 27_009_346_304,
    "gemma3_4b": 3_880_263_168,
    "gpt2_124m": 124_439_808,
    "gpt2_large": 774_030_080,
    "gpt2_medium": 354_823_168,
    "gpt2_xl": 1_557_611_200,
    "llama2_13b": 13_015_864_320,
    "llama2_7b": 6_738_415_616,
    "llama3_1_8b": 8_030_261_248,
    "llama3_2_1b": 1_235_814_400,
    "llama3_2_3b": 3_212_749_824,
    "llama3_8b": 8_030_261_248,
    "mistral_7b": 7_241_732_096,
    "mistral_7b_v0_3": 7_248_023_552,
    "opt_125m": 125_239_296,
    "opt_1_3b": 1_315_758_080,
    "opt_2_7b": 2_651_596_800,
    "qwen2_5_0_5b": 494_032_768,
    "qwen2_5_14b": 14_770_033_664,
    "qwen2_5_1_5b": 1_543_714_304,
    "qwen2_5_32b": 32_763_876_352,
    "qwen2_5_3b": 3_085_938_688,
    "qwen2_5_7b": 7_615_616_512,
    "qwen2_5_math_1_5b": 1_543_714_304,
    "qwen2_5_math_7b": 7_615_616_512,
    "qwen3_0_6b": 596_049_920,
    "qwen3_14b": 14_768_307_200,
    "qwen3_1_7b": 1_720_574_976,
    "qwen3_32b": 32_762_123_264,
    "qwen3_4b": 4_022_468_096,
    "qwen3_8b": 8_190_735_360,
    "smollm2_135m": 134_515_008,
    "smollm2_1_7b": 1_711_376_384,
    "smollm2_360m": 361_821_120,
}


def gpt2_or_opt(vocab, positions, d, layers):
    """Tied embeddings and positions; per layer four attention matrices and two feed-forward ones of 4d, all with biases,
    and two LayerNorms; one more at the end."""
    return (vocab + positions) * d + layers * (12 * d * d + 13 * d) + 2 * d


def codegen(vocab, d, layers):
    """Two embeddings and the output's bias; per layer the same matrices, biases in the feed-forward alone, one LayerNorm."""
    return 2 * vocab * d + vocab + layers * (12 * d * d + 7 * d) + 2 * d


def llama(d, layers, heads, kv_heads, ffn):
    """Without embeddings."""
    return layers * (2 * d * d + 2 * d * d * kv_heads // heads + 3 * d * ffn + 2 * d) + d


FORMULA = {
    "gpt2_124m": gpt2_or_opt(50257, 1024, 768, 12),
    "gpt2_xl": gpt2_or_opt(50257, 1024, 1600, 48),
    "codeparrot_small": gpt2_or_opt(32768, 1024, 768, 12),
    "opt_125m": gpt2_or_opt(50272, 2050, 768, 12),
    "opt_2_7b": gpt2_or_opt(50272, 2050, 2560, 32),
    "opt_6_7b": gpt2_or_opt(50272, 2050, 4096, 32),
    "galactica_125m": gpt2_or_opt(50000, 2050, 768, 12),
    "galactica_1_3b": gpt2_or_opt(50000, 2050, 2048, 24),
    "galactica_6_7b": gpt2_or_opt(50000, 2050, 4096, 32),
    "codegen_350m": codegen(51200, 1024, 20),
    "codegen_2b": codegen(51200, 2560, 32),
    "codegen_6b": codegen(51200, 4096, 33),
    "demo": llama(128, 2, 4, 4, 352),
    "tiny": llama(128, 2, 4, 2, 352),
    "words_1m": llama(128, 4, 4, 4, 352),
    "words": llama(256, 4, 8, 8, 704),
    "small": llama(512, 8, 8, 4, 1408),
}


CONFIG_JSON = {
    "codellama_7b": dict(
        model_type="llama",
        hidden_act="silu",
        hidden_size=4096,
        initializer_range=0.02,
        intermediate_size=11008,
        max_position_embeddings=16384,
        num_attention_heads=32,
        num_hidden_layers=32,
        num_key_value_heads=32,
        rms_norm_eps=1e-05,
        rope_scaling=None,
        rope_theta=1000000,
        tie_word_embeddings=False,
        vocab_size=32016,
    ),
    "llama3_2_3b": dict(
        model_type="llama",
        attention_bias=False,
        head_dim=128,
        hidden_act="silu",
        hidden_size=3072,
        initializer_range=0.02,
        intermediate_size=8192,
        max_position_embeddings=131072,
        mlp_bias=False,
        num_attention_heads=24,
        num_hidden_layers=28,
        num_key_value_heads=8,
        rms_norm_eps=1e-05,
        rope_scaling=dict(
            factor=32.0,
            high_freq_factor=4.0,
            low_freq_factor=1.0,
            original_max_position_embeddings=8192,
            rope_type="llama3",
        ),
        rope_theta=500000.0,
        tie_word_embeddings=True,
        vocab_size=128256,
    ),
    "mistral_7b": dict(
        model_type="mistral",
        hidden_act="silu",
        hidden_size=4096,
        initializer_range=0.02,
        intermediate_size=14336,
        max_position_embeddings=32768,
        num_attention_heads=32,
        num_hidden_layers=32,
        num_key_value_heads=8,
        rms_norm_eps=1e-05,
        rope_theta=10000.0,
        sliding_window=4096,
        tie_word_embeddings=False,
        vocab_size=32000,
    ),
    "qwen2_5_32b": dict(
        model_type="qwen2",
        hidden_act="silu",
        hidden_size=5120,
        initializer_range=0.02,
        intermediate_size=27648,
        max_position_embeddings=131072,
        max_window_layers=64,
        num_attention_heads=40,
        num_hidden_layers=64,
        num_key_value_heads=8,
        rms_norm_eps=1e-05,
        rope_theta=1000000.0,
        sliding_window=131072,
        tie_word_embeddings=False,
        use_sliding_window=False,
        vocab_size=152064,
    ),
    "qwen3_14b": dict(
        model_type="qwen3",
        attention_bias=False,
        head_dim=128,
        hidden_act="silu",
        hidden_size=5120,
        initializer_range=0.02,
        intermediate_size=17408,
        max_position_embeddings=40960,
        max_window_layers=40,
        num_attention_heads=40,
        num_hidden_layers=40,
        num_key_value_heads=8,
        rms_norm_eps=1e-06,
        rope_scaling=None,
        rope_theta=1000000,
        sliding_window=None,
        tie_word_embeddings=False,
        use_sliding_window=False,
        vocab_size=151936,
    ),
    "gemma2_27b": dict(
        model_type="gemma2",
        attention_bias=False,
        attn_logit_softcapping=50.0,
        final_logit_softcapping=30.0,
        head_dim=128,
        hidden_act="gelu_pytorch_tanh",
        hidden_activation="gelu_pytorch_tanh",
        hidden_size=4608,
        initializer_range=0.02,
        intermediate_size=36864,
        max_position_embeddings=8192,
        num_attention_heads=32,
        num_hidden_layers=46,
        num_key_value_heads=16,
        query_pre_attn_scalar=144,
        rms_norm_eps=1e-06,
        rope_theta=10000.0,
        sliding_window=4096,
        sliding_window_size=4096,
        vocab_size=256000,
    ),
    "gemma3_4b": dict(  # as its text decoder is published alone
        model_type="gemma3_text",
        attention_bias=False,
        attn_logit_softcapping=None,
        final_logit_softcapping=None,
        head_dim=256,
        hidden_activation="gelu_pytorch_tanh",
        hidden_size=2560,
        initializer_range=0.02,
        intermediate_size=10240,
        max_position_embeddings=131072,
        num_attention_heads=8,
        num_hidden_layers=34,
        num_key_value_heads=4,
        query_pre_attn_scalar=256,
        rms_norm_eps=1e-06,
        rope_local_base_freq=10000.0,
        rope_scaling=dict(factor=8.0, rope_type="linear"),
        rope_theta=1000000.0,
        sliding_window=1024,
        sliding_window_pattern=6,
        vocab_size=262208,
    ),
    "codeparrot_small": dict(
        model_type="gpt2",
        activation_function="gelu_new",
        initializer_range=0.02,
        layer_norm_epsilon=1e-05,
        n_ctx=1024,
        n_embd=768,
        n_head=12,
        n_inner=None,
        n_layer=12,
        n_positions=1024,
        reorder_and_upcast_attn=True,
        scale_attn_by_inverse_layer_idx=True,
        scale_attn_weights=True,
        vocab_size=32768,
    ),
    "galactica_1_3b": dict(
        model_type="opt",
        _remove_final_layer_norm=False,
        activation_function="gelu",
        do_layer_norm_before=True,
        enable_bias=True,
        ffn_dim=8192,
        hidden_size=2048,
        init_std=0.02,
        layer_norm_elementwise_affine=True,
        learned_embeddings=True,
        max_position_embeddings=2048,
        num_attention_heads=32,
        num_hidden_layers=24,
        scale_embeddings=False,
        vocab_size=50000,
        word_embed_proj_dim=2048,
    ),
    "codegen_6b": dict(
        model_type="codegen",
        activation_function="gelu_new",
        initializer_range=0.02,
        layer_norm_epsilon=1e-05,
        n_ctx=2048,
        n_embd=4096,
        n_head=16,
        n_inner=None,
        n_layer=33,
        n_positions=2048,
        rotary_dim=64,
        scale_attn_weights=True,
        tie_word_embeddings=False,
        vocab_size=51200,
    ),
}


def preset(name) -> settings.Arch:
    """The preset as a config that names it holds it."""
    config, _ = recipe.load(f"{CONFIGS / 'sft.py'}:data=svamp,model={name},train_file=t.json")
    assert config.model.name == name and config.model.directory == ""
    return config.model.arch


@pytest.mark.parametrize("name", PRESETS)
def test_a_preset_is_legal_and_has_the_published_number_of_parameters(name):
    shapes = jax.tree.leaves(models.shapes(models.Model(preset(name))))
    counts = {table[name] for table in (PUBLISHED, FORMULA) if name in table}
    assert counts == {sum(math.prod(x.shape) for x in shapes)}


def test_no_preset_hides_a_shipped_model():
    assert not set(PRESETS) & {path.name for path in models.SHIPPED.iterdir()}


@pytest.mark.parametrize("name", [name for name, arch in PRESETS.items() if arch["vocab_size"]])
def test_a_preset_is_written_and_read_back(name, tmp_path):
    arch = preset(name)
    models.save_config(tmp_path, models.Model(arch))
    assert models.read_config(tmp_path) == arch


def test_every_family_has_a_published_config_here():
    assert {values["model_type"] for values in CONFIG_JSON.values()} == set(choices.names("models/families"))


@pytest.mark.parametrize("name", CONFIG_JSON)
def test_a_published_config_is_read_as_the_preset(name, tmp_path):
    (tmp_path / "config.json").write_text(json.dumps(CONFIG_JSON[name]))
    assert models.read_config(tmp_path) == preset(name)
