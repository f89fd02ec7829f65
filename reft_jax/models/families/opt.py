"""OPT and Galactica (`model_type` "opt"): learned positions that begin at row 2, LayerNorm, biases everywhere."""

from reft_jax.config.settings import Arch
from reft_jax.models.families import translate, weights

PREFIX = "model."  # the oldest files leave it out
OFFSET = 2
SIZES = {
    "vocab_size": "vocab_size",
    "dim": "hidden_size",
    "num_layers": "num_hidden_layers",
    "num_heads": "num_attention_heads",
    "ffn_dim": "ffn_dim",
    "tie_embeddings": "tie_word_embeddings",
    "init_std": "init_std",
    "max_positions": "max_position_embeddings",
}
NAMES = {
    "embed": "model.decoder.embed_tokens",
    "positions": "model.decoder.embed_positions",
    "norm": "model.decoder.final_layer_norm",
    "attention_norm": "model.decoder.layers.{}.self_attn_layer_norm",
    "mlp_norm": "model.decoder.layers.{}.final_layer_norm",
    **{f"attention.{name}": f"model.decoder.layers.{{}}.self_attn.{name}_proj" for name in "qkv"},
    "attention.o": "model.decoder.layers.{}.self_attn.out_proj",
    "mlp.up": "model.decoder.layers.{}.fc1",
    "mlp.down": "model.decoder.layers.{}.fc2",
}


def read(config, where: str) -> Arch:
    """The Arch of a transformers OPTConfig."""
    translate.require(
        where,
        config,
        do_layer_norm_before=True,  # opt-350m alone has False
        word_embed_proj_dim=config.hidden_size,
        layer_norm_elementwise_affine=True,
        _remove_final_layer_norm=False,
    )
    biases = dict.fromkeys(("qkv_bias", "out_bias", "mlp_bias"), bool(config.enable_bias))
    positions = dict(positions="learned", position_offset=OFFSET)
    return Arch(**translate.old_base(config, where, SIZES), norm_eps=1e-5, **positions, **biases)


def write(arch: Arch, dtype: str) -> dict:
    """The config.json of an Arch."""
    return translate.old_base_written(arch, SIZES, "OPTForCausalLM", dtype) | {
        "word_embed_proj_dim": arch.dim,
        "do_layer_norm_before": True,
        "layer_norm_elementwise_affine": True,
        "enable_bias": arch.qkv_bias,
    }


def table(arch: Arch) -> dict:
    return weights.table(arch, NAMES)
