"""Decoders as pure functions over parameter trees, and the way in and out of Hugging Face directories."""

from reft_jax.models.adapters import init as init_adapters
from reft_jax.models.adapters import join, only_adapters
from reft_jax.models.adapters import merge as merge_adapters
from reft_jax.models.attention import cache_multiple, slot_axes
from reft_jax.models.attention import path as attention_path
from reft_jax.models.classifier import classifier_axes, classify, init_classifier, make_classifier_score
from reft_jax.models.decoder import (
    Cache,
    Model,
    attention_row,
    axes,
    decoding_shardings,
    empty_cache,
    for_decoding,
    forward,
    init,
    layer_for_decoding,
    positions_of,
    rest_for_decoding,
    shapes,
)
from reft_jax.models.heads import critic_params, init_value_head, value_axes, values, with_critic
from reft_jax.models.hf import SHIPPED, check_hf, load_hf, read_config, resolve, save_config, save_hf
from reft_jax.models.placement import param_axes, param_shardings
from reft_jax.models.quantize import quantize as quantize_base
from reft_jax.models.quantize import restore as restore_base
from reft_jax.models.vocabulary import logits, token_logp, token_outputs, unembed
