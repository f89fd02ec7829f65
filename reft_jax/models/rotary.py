"""Rotary positions (RoPE, arXiv 2104.09864): full, partial or interleaved, with linear, Llama 3 or YaRN scaling."""

import math

import jax.numpy as jnp
import numpy as np

from reft_jax.config.settings import Arch, RopeScaling


def rotary_frequencies(rotary_dim: int, theta: float, scaling: RopeScaling) -> tuple[np.ndarray, float]:
    """(f64[H/2] radians per position, factor on cos and sin): theta^(-2i/H), changed as `scaling` says.

    linear: all are divided by factor. llama3 (Llama 3.1's): those of a wavelength over original / low_freq_factor are
    divided, those under original / high_freq_factor kept, between them interpolated in 1 / wavelength. yarn (arXiv
    2309.00071, section 3.2): a ramp over the dimensions between beta_fast and beta_slow turns in the original context.
    """
    frequency = theta ** (-np.arange(0, rotary_dim, 2, dtype=np.float64) / rotary_dim)
    length, factor = scaling.original_max_positions, scaling.factor
    if scaling.kind == "linear":
        return frequency / factor, 1.0
    if scaling.kind == "llama3":
        turns = length * frequency / (2 * np.pi)
        low, high = scaling.low_freq_factor, scaling.high_freq_factor
        kept = np.clip((turns - low) / (high - low), 0, 1)
        return frequency * (kept + (1 - kept) / factor), 1.0
    if scaling.kind == "yarn":

        def dimension(turns):  # whose wavelength makes so many turns over the original context
            return rotary_dim * math.log(length / (turns * 2 * math.pi)) / (2 * math.log(theta))

        low, high = dimension(scaling.beta_fast), dimension(scaling.beta_slow)
        if scaling.truncate:
            low, high = math.floor(low), math.ceil(high)
        low, high = max(low, 0), min(high, rotary_dim - 1)
        high = high + 0.001 if low == high else high
        kept = 1 - np.clip((np.arange(rotary_dim // 2) - low) / (high - low), 0, 1)
        attention = scaling.attention_factor or (0.1 * math.log(factor) + 1 if factor > 1 else 1.0)
        return frequency * (kept + (1 - kept) / factor), attention
    return frequency, 1.0


def rotary_tables(arch: Arch, positions, *, local: bool):
    """(cos, sin) f32[B, T, H/2] of the angles; `local`: of a layer with a window."""
    alone = local and arch.local_rope_theta
    theta, scaling = (arch.local_rope_theta, RopeScaling()) if alone else (arch.rope_theta, arch.rope_scaling)
    frequency, factor = rotary_frequencies(arch.rotary_dim or arch.head_dim, theta, scaling)
    angles = positions[:, :, None].astype(jnp.float32) * jnp.asarray(frequency, jnp.float32)[None, None]
    return factor * jnp.cos(angles), factor * jnp.sin(angles)


def rotate(x, cos, sin, *, interleaved: bool):
    """Rotary embedding of the first 2 * cos.shape[-1] of H of x [B, T, heads, H]; the rest passes."""
    size = 2 * cos.shape[-1]
    cos, sin, turned = cos[:, :, None], sin[:, :, None], x[..., :size].astype(jnp.float32)
    if interleaved:
        a, b = turned[..., ::2], turned[..., 1::2]
        out = jnp.stack([a * cos - b * sin, b * cos + a * sin], axis=-1).reshape(turned.shape)
    else:
        a, b = jnp.split(turned, 2, axis=-1)
        out = jnp.concatenate([a * cos - b * sin, b * cos + a * sin], axis=-1)
    return jnp.concatenate([out.astype(x.dtype), x[..., size:]], axis=-1) if size < x.shape[-1] else out.astype(x.dtype)
