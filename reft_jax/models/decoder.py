"""The decoder: Flax NNX modules in Llama form (RMSNorm, RoPE, grouped-query attention, SwiGLU), and pure functions over its parameters.

Modules hold initialisers and logical axis names; `init` splits them once, and everything outside this folder sees
`forward(model, params, ...)` with `params` a nested dict. Blocks are stacked on a leading layer axis: training scans over
it, so that compile time does not grow with depth; decoding unrolls over per-layer cache buffers, because a scan that
carries the cache as inputs and outputs copies it at every token (4 x slower on CPU).
"""

import dataclasses
import functools
import math

import flax.struct
import jax
import jax.numpy as jnp
from flax import nnx

from reft_jax.config import Arch
from reft_jax.sharding import Layout

MASKED = -1e30  # finite: a row that may look at nothing (padding) stays free of NaN


@dataclasses.dataclass(frozen=True)
class Model:
    """All that is static about a decoder; hashable, so it may be a static argument under jit."""

    arch: Arch
    param_dtype: str = "float32"
    compute_dtype: str = "float32"
    remat: str = "none"
    logits_chunk: int = 128
    layout: Layout | None = None


class Cache(flax.struct.PyTreeNode):
    """Keys and values of what was read so far; slots [0, length) are filled."""

    k: tuple[jax.Array, ...]  # per layer [B, S, K, H]
    v: tuple[jax.Array, ...]  # per layer [B, S, K, H]
    length: jax.Array  # i32[]


# ------------------------------------------------------------------ modules


class Linear(nnx.Module):
    """x[..., in_axes] @ kernel[in_axes, out_axes] in the compute dtype."""

    def __init__(self, shape, axes, std, model, *, num_in=1, rngs):
        init = nnx.with_partitioning(nnx.initializers.normal(std), axes)
        self.kernel = nnx.Param(init(rngs.params(), shape, jnp.dtype(model.param_dtype)))
        self.num_in, self.dtype = num_in, model.compute_dtype

    def __call__(self, x):
        contract = tuple(range(x.ndim - self.num_in, x.ndim)), tuple(range(self.num_in))
        return jax.lax.dot_general(x, self.kernel[...].astype(self.dtype), (contract, ((), ())))


class RMSNorm(nnx.Module):
    """x / rms(x) * scale of x [B, T, D], in float32."""

    def __init__(self, dim, model, *, rngs):
        init = nnx.with_partitioning(nnx.initializers.ones_init(), ("norm",))
        self.scale = nnx.Param(init(rngs.params(), (dim,), jnp.dtype(model.param_dtype)))
        self.eps = model.arch.norm_eps

    def __call__(self, x):
        x32 = x.astype(jnp.float32)
        normed = x32 * jax.lax.rsqrt(jnp.square(x32).mean(-1, keepdims=True) + self.eps)
        return (normed * self.scale[...].astype(jnp.float32)[None, None]).astype(x.dtype)


class Attention(nnx.Module):
    """Causal grouped-query attention with rotary positions; softmax in float32."""

    def __init__(self, model, *, rngs):
        arch = model.arch
        d, n, k, h = arch.dim, arch.num_heads, arch.num_kv_heads, arch.head_dim
        out_std = arch.init_std / math.sqrt(2 * arch.num_layers)
        self.q = Linear((d, n, h), ("embed", "heads", "head_dim"), arch.init_std, model, rngs=rngs)
        self.k = Linear((d, k, h), ("embed", "kv_heads", "head_dim"), arch.init_std, model, rngs=rngs)
        self.v = Linear((d, k, h), ("embed", "kv_heads", "head_dim"), arch.init_std, model, rngs=rngs)
        self.o = Linear((n, h, d), ("heads", "head_dim", "embed"), out_std, model, num_in=2, rngs=rngs)
        self.groups = n // k

    def __call__(self, x, angles, visible, cache=None):
        """x [B, T, D], angles f32[B, T, H/2], visible bool[B, T, S] -> ([B, T, D], (k, v)).

        `cache`: (k, v, length), buffers [B, S, K, H] into which the new keys and values go at slot `length`.
        """
        q, k, v = rotate(self.q(x), angles), rotate(self.k(x), angles), self.v(x)
        if cache is not None:
            k = jax.lax.dynamic_update_slice_in_dim(cache[0], k, cache[2], axis=1)
            v = jax.lax.dynamic_update_slice_in_dim(cache[1], v, cache[2], axis=1)
        b, t, n, h = q.shape
        q = q.reshape(b, t, n // self.groups, self.groups, h)
        weights = jnp.einsum("btkgh,bskh->bkgts", q, k, preferred_element_type=jnp.float32) / math.sqrt(h)
        weights = jax.nn.softmax(jnp.where(visible[:, None, None], weights, MASKED), axis=-1).astype(v.dtype)
        out = jnp.einsum("bkgts,bskh->btkgh", weights, v)
        return self.o(out.reshape(b, t, n, h)), (k, v)


class MLP(nnx.Module):
    """SwiGLU."""

    def __init__(self, model, *, rngs):
        arch = model.arch
        self.gate = Linear((arch.dim, arch.ffn_dim), ("embed", "mlp"), arch.init_std, model, rngs=rngs)
        self.up = Linear((arch.dim, arch.ffn_dim), ("embed", "mlp"), arch.init_std, model, rngs=rngs)
        self.down = Linear(
            (arch.ffn_dim, arch.dim), ("mlp", "embed"), arch.init_std / math.sqrt(2 * arch.num_layers), model, rngs=rngs
        )

    def __call__(self, x):
        return self.down(jax.nn.silu(self.gate(x)) * self.up(x))


class Block(nnx.Module):
    """Pre-norm attention and feed-forward, each with a residual (and dropout on it, if asked for)."""

    def __init__(self, model, *, rngs):
        self.attention_norm = RMSNorm(model.arch.dim, model, rngs=rngs)
        self.attention = Attention(model, rngs=rngs)
        self.mlp_norm = RMSNorm(model.arch.dim, model, rngs=rngs)
        self.mlp = MLP(model, rngs=rngs)

    def __call__(self, x, angles, visible, cache=None, rate=0.0, key=None):
        attended, cache = self.attention(self.attention_norm(x), angles, visible, cache)
        x = x + dropout(attended, rate, key, 0)
        return x + dropout(self.mlp(self.mlp_norm(x)), rate, key, 1), cache


class Decoder(nnx.Module):
    def __init__(self, model, *, rngs):
        arch = model.arch

        @nnx.split_rngs(splits=arch.num_layers)
        @nnx.vmap(in_axes=0, out_axes=0, transform_metadata={nnx.PARTITION_NAME: "layers"})
        def stack(rngs):
            return Block(model, rngs=rngs)

        self.embed = Linear((arch.vocab_size, arch.dim), ("vocab", "embed"), arch.init_std, model, rngs=rngs)
        self.blocks = stack(rngs)
        self.norm = RMSNorm(arch.dim, model, rngs=rngs)
        if not arch.tie_embeddings:
            self.unembed = Linear((arch.dim, arch.vocab_size), ("embed", "vocab"), arch.init_std, model, rngs=rngs)


# ------------------------------------------------------------------ parts of the forward


def rotary_angles(positions, head_dim, theta):
    """f32[B, T, H/2]: position x theta^(-2i/H)."""
    frequency = theta ** (-jnp.arange(0, head_dim, 2, dtype=jnp.float32) / head_dim)
    return positions[:, :, None].astype(jnp.float32) * frequency[None, None]


def rotate(x, angles):
    """Rotary embedding of x [B, T, heads, H], the two halves of H being the pairs (NeoX and Llama order)."""
    cos, sin = jnp.cos(angles)[:, :, None], jnp.sin(angles)[:, :, None]
    a, b = jnp.split(x.astype(jnp.float32), 2, axis=-1)
    return jnp.concatenate([a * cos - b * sin, b * cos + a * sin], axis=-1).astype(x.dtype)


def dropout(x, rate, key, salt):
    """Inverted dropout; rate is static, and 0 costs nothing."""
    if rate == 0.0:
        return x
    keep = jax.random.bernoulli(jax.random.fold_in(key, salt), 1.0 - rate, x.shape)
    return jnp.where(keep, x / (1.0 - rate), jnp.zeros((), x.dtype))


def positions_of(mask):
    """i32[B, T]: how many real tokens stand before each (0 on the padding before the first)."""
    return jnp.maximum(jnp.cumsum(mask, axis=1) - 1, 0)


# ------------------------------------------------------------------ parameters


@functools.cache
def _graphs(model: Model):
    """(graphdef of the decoder, graphdef of one block, shapes, logical axis names); nothing is allocated."""
    with nnx.use_eager_sharding(False):
        whole = jax.eval_shape(lambda: nnx.split(Decoder(model, rngs=nnx.Rngs(params=0))))
        block = jax.eval_shape(lambda: nnx.split(Block(model, rngs=nnx.Rngs(params=0))))
    axes = nnx.to_pure_dict(nnx.get_partition_spec(whole[1]))
    return whole[0], block[0], nnx.to_pure_dict(whole[1]), axes


def shapes(model: Model) -> dict:
    """Tree of jax.ShapeDtypeStruct of the decoder's parameters."""
    return _graphs(model)[2]


def axes(model: Model) -> dict:
    """Tree of tuples of logical axis names, like `shapes`."""
    return jax.tree.map(tuple, _graphs(model)[3], is_leaf=lambda x: isinstance(x, jax.sharding.PartitionSpec))


def init(model: Model, key: jax.Array) -> dict:
    """Random parameters, born on the model's layout."""

    def make(key):
        with nnx.use_eager_sharding(False):
            return nnx.to_pure_dict(nnx.split(Decoder(model, rngs=nnx.Rngs(params=key)))[1])

    shardings = model.layout and model.layout.tree(shapes(model), axes(model))
    return jax.jit(make, out_shardings=shardings)(key)


# ------------------------------------------------------------------ forward


def _constrain(model, x):
    return x if model.layout is None else model.layout.constrain(x, "batch", *(None,) * (x.ndim - 1))


def forward(model: Model, params, tokens, positions, mask, cache: Cache | None = None, *, rate=0.0, key=None):
    """Hidden states after the last norm, [B, T, D], and the cache.

    tokens, positions i32[B, T]. Without a cache, mask is bool[B, T] (True = real; left- or right-padded). With one, the
    tokens go into slots [length, length + T), and mask is bool[B, S] over the slots. `rate` is dropout's, with its `key`.
    """
    arch, dtype = model.arch, jnp.dtype(model.compute_dtype)
    graphdef, block_graphdef = _graphs(model)[:2]
    decoder = nnx.merge(graphdef, nnx.State({name: params[name] for name in shapes(model)}))
    x = _constrain(model, decoder.embed.kernel[...].astype(dtype)[tokens])
    if rate:
        x = dropout(x, rate, key, 2)
    angles = rotary_angles(positions, arch.head_dim, arch.rope_theta)
    num_queries, num_slots = tokens.shape[1], mask.shape[1]
    first = 0 if cache is None else cache.length
    causal = jnp.arange(num_slots)[None] <= first + jnp.arange(num_queries)[:, None]
    visible = causal[None] & mask[:, None]

    if cache is None:

        def body(x, layer):
            weights, index = layer
            layer_key = None if key is None else jax.random.fold_in(key, 3 + index)
            x, _ = nnx.merge(block_graphdef, nnx.State(weights))(x, angles, visible, None, rate, layer_key)
            return _constrain(model, x), None

        if model.remat == "block":
            body = jax.checkpoint(body)
        x, _ = jax.lax.scan(body, x, (params["blocks"], jnp.arange(arch.num_layers)))
    else:
        keys, values = [], []
        for i in range(arch.num_layers):
            block = nnx.merge(block_graphdef, nnx.State(jax.tree.map(lambda w, i=i: w[i], params["blocks"])))
            x, (k, v) = block(x, angles, visible, (cache.k[i], cache.v[i], cache.length))
            keys.append(k)
            values.append(v)
        cache = Cache(tuple(keys), tuple(values), cache.length + num_queries)
    return decoder.norm(x), cache


def empty_cache(model: Model, batch: int, num_slots: int) -> Cache:
    arch = model.arch
    shape = (batch, num_slots, arch.num_kv_heads, arch.head_dim)
    names = ("batch", None, "kv_heads", "head_dim")

    def buffer():
        zeros = jnp.zeros(shape, jnp.dtype(model.compute_dtype))
        return zeros if model.layout is None else model.layout.constrain(zeros, *names)

    return Cache(*(tuple(buffer() for _ in range(arch.num_layers)) for _ in range(2)), jnp.zeros((), jnp.int32))


def unembed(model: Model, params, hidden) -> jax.Array:
    """Logits f32[..., V] of hidden [..., D]."""
    dtype = jnp.dtype(model.compute_dtype)
    if model.arch.tie_embeddings:
        return jnp.einsum(
            "...d,vd->...v", hidden, params["embed"]["kernel"].astype(dtype), preferred_element_type=jnp.float32
        )
    return jnp.einsum(
        "...d,dv->...v", hidden, params["unembed"]["kernel"].astype(dtype), preferred_element_type=jnp.float32
    )


def token_logp(model: Model, params, hidden, tokens):
    """(logp, entropy) f32[B, R] of tokens i32[B, R] given the states hidden [B, R, D] that emit them.

    Logits exist for `logits_chunk` positions at a time, also in the backward pass: [B, R, V] float32 would be the memory peak.
    """

    def chunk(args):
        hidden, tokens = args
        logp = jax.nn.log_softmax(unembed(model, params, hidden))
        return jnp.take_along_axis(logp, tokens[..., None], axis=-1)[..., 0], -(jnp.exp(logp) * logp).sum(-1)

    length, size = tokens.shape[1], model.logits_chunk
    if length <= size:
        return chunk((hidden, tokens))
    num = -(-length // size)
    pad = num * size - length
    hidden = jnp.pad(hidden, ((0, 0), (0, pad), (0, 0))).reshape(hidden.shape[0], num, size, -1).swapaxes(0, 1)
    padded = jnp.pad(tokens, ((0, 0), (0, pad))).reshape(tokens.shape[0], num, size).swapaxes(0, 1)
    logp, entropy = jax.lax.map(jax.checkpoint(chunk), (hidden, padded))
    flat = [x.swapaxes(0, 1).reshape(tokens.shape[0], -1)[:, :length] for x in (logp, entropy)]
    return flat[0], flat[1]


def logits(model: Model, params, tokens, mask=None) -> jax.Array:
    """f32[B, T, V] next-token logits of tokens i32[B, T]; mask bool[B, T] (None = all real), left- or right-padded."""
    mask = jnp.ones(tokens.shape, bool) if mask is None else jnp.asarray(mask)
    tokens = jnp.asarray(tokens)
    return _logits(model, params, tokens, mask)


@functools.partial(jax.jit, static_argnums=0)
def _logits(model, params, tokens, mask):
    hidden, _ = forward(model, params, tokens, positions_of(mask), mask)
    return unembed(model, params, hidden)
