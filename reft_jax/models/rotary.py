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


def rotary_tables(arch: Arch, positions, *, local: bool, most: int = 0):
    """(cos, sin) f32[B, T, H/2] of the angles; `local`: of a layer with a window.

    `most`: looked up among so many positions (NaN beyond); else a CPU's compiler computes them again for each head of each layer that
    is no step of a scan.
    """
    alone = local and arch.local_rope_theta
    theta, scaling = (arch.local_rope_theta, RopeScaling()) if alone else (arch.rope_theta, arch.rope_scaling)
    frequency, factor = rotary_frequencies(arch.rotary_dim or arch.head_dim, theta, scaling)
    if most:
        angles = np.arange(most, dtype=np.float32)[:, None] * np.asarray(frequency, np.float32)
        tables = (jnp.asarray(factor * of(angles), jnp.float32) for of in (np.cos, np.sin))
        return tuple(table.at[positions].get(mode="fill", fill_value=jnp.nan) for table in tables)
    angles = positions[:, :, None].astype(jnp.float32) * jnp.asarray(frequency, jnp.float32)[None, None]
    return factor * jnp.cos(angles), factor * jnp.sin(angles)


def rotate(x, cos, sin, *, interleaved: bool, heads_first: bool = False):
    """Rotary embedding of the first 2 * cos.shape[-1] of H of x [B, T, heads, H]; the rest passes.

    `heads_first`: it is turned to [B, heads, T, H], as attention reads it, before and not after, which takes a CPU a third of the time.
    """
    if heads_first:
        x, cos, sin = x.swapaxes(1, 2), cos[:, None], sin[:, None]
    else:
        cos, sin = cos[:, :, None], sin[:, :, None]
    size = 2 * cos.shape[-1]
    turned = x[..., :size].astype(jnp.float32)
    if interleaved:
        a, b = turned[..., ::2], turned[..., 1::2]
        out = jnp.stack([a * cos - b * sin, b * cos + a * sin], axis=-1).reshape(turned.shape)
    else:
        a, b = jnp.split(turned, 2, axis=-1)
        out = jnp.concatenate([a * cos - b * sin, b * cos + a * sin], axis=-1)
    out = out.astype(x.dtype)
    if size < x.shape[-1]:
        out = jnp.concatenate([out, x[..., size:]], axis=-1)
    return out.swapaxes(1, 2) if heads_first else out
