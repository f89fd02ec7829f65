"""One decoder for every family: Flax NNX modules that `config.Arch` shapes, and pure functions over their parameters.

A Llama unless the Arch says otherwise (norms, biases, positions, activation, parallel residual, windows, soft-caps, ...).
Modules hold initialisers and logical axis names; `init` splits them once, and everything outside this folder sees
`forward(model, params, ...)` with `params` a nested dict. Blocks are stacked on a leading layer axis: training scans over
it, so that compile time does not grow with depth; decoding unrolls over per-layer cache buffers, because a scan that
carries the cache as inputs and outputs copies it at every token (4 x slower on CPU).
"""

import dataclasses
import functools
import math
import re

import flax.struct
import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx

from reft_jax.config.settings import MATRICES, Arch, Lora
from reft_jax.errors import InputError
from reft_jax.mesh.sharding import Layout
from reft_jax.models import attention, products, quantize
from reft_jax.models.products import product
from reft_jax.models.rotary import rotary_tables, rotate

DTYPES = ("float32", "bfloat16", "float16")


@dataclasses.dataclass(frozen=True)
class Model:
    """All that is static about a decoder; hashable, so it may be a static argument under jit."""

    arch: Arch
    param_dtype: str = "float32"
    compute_dtype: str = "float32"
    remat: str = "none"
    logits_chunk: int = 128
    slice_tokens: int = 0  # that an update or scoring takes at a time on a device; 0 = all
    layout: Layout | None = None
    lora: Lora | None = None
    base: str = "full"  # or int8, int4, nf4: `quantize.py`
    vocab_multiple: int = 1
    attention: str = "auto"  # or xla, kernel: `attention.py`
    num_ids: int = 0  # that the tokenizer has: the rows after these are no tokens, and never likely; 0 = all are tokens

    def __post_init__(self):
        for name in ("param_dtype", "compute_dtype"):
            object.__setattr__(self, name, _dtype_name(name, getattr(self, name)))

    @property
    def num_rows(self) -> int:
        """Rows of the embedding: the vocabulary, padded to a multiple that mesh axes divide. No padded token is ever likely."""
        return -(-self.arch.vocab_size // self.vocab_multiple) * self.vocab_multiple


def _dtype_name(key: str, given) -> str:
    """The name of a dtype: a name, a scalar type or a dtype object. InputError for one that no weight has."""
    try:
        name = jnp.dtype(given).name
    except TypeError:
        name = None
    if name not in DTYPES:
        raise InputError(f"{key}: got {given!r}; legal are {', '.join(DTYPES)}, as names or as JAX's and NumPy's types")
    return name


class Cache(flax.struct.PyTreeNode):
    """Keys and values of what was read so far; slots [0, length) are filled."""

    # per layer [B, K, S, H], or the keys [B, K, H, S] (attention.slot_axes): a head's lie together, as its product reads them
    k: tuple[jax.Array, ...]
    v: tuple[jax.Array, ...]
    length: jax.Array  # i32[], or i32[B] where each row has its own; then tokens come one at a time


# ------------------------------------------------------------------ modules


def _param(init, shape, axes, model, rngs, dtype=None):
    dtype = jnp.dtype(dtype or model.param_dtype)
    return nnx.Param(nnx.with_partitioning(init, axes)(rngs.params(), shape, dtype))


class Linear(nnx.Module):
    """x[..., in_axes] @ kernel[in_axes, out_axes] (+ bias[out_axes]) in the compute dtype; with a low-rank adapter if
    the model's `lora` names it."""

    def __init__(self, name, shape, axes, std, model, *, bias=False, num_in=1, rngs):
        self.base = model.base if name in MATRICES else "full"
        if self.base == "full":
            self.kernel = _param(nnx.initializers.normal(std), shape, axes, model, rngs)
        else:
            zeros, ones = nnx.initializers.zeros_init(), nnx.initializers.ones_init()
            self.kernel_q = _param(zeros, shape, axes, model, rngs, quantize.STORED[self.base])
            scales = quantize.scale_shape(self.base, shape, num_in)
            self.kernel_scale = _param(ones, scales, axes, model, rngs, "float32")
        if bias:
            self.bias = _param(nnx.initializers.zeros_init(), shape[num_in:], axes[num_in:], model, rngs)
        lora = model.lora
        if lora is not None and name in MATRICES and re.fullmatch(lora.targets, name):
            inputs, outputs = shape[:num_in], shape[num_in:]
            a_std = 1 / math.sqrt(math.prod(inputs))
            normal, zeros = nnx.initializers.normal(a_std), nnx.initializers.zeros_init()
            self.lora_a = _param(normal, (*inputs, lora.rank), (*axes[:num_in], "rank"), model, rngs, "float32")
            self.lora_b = _param(zeros, (lora.rank, *outputs), ("rank", *axes[num_in:]), model, rngs, "float32")
            self.lora_scale = lora.alpha / lora.rank
        self.num_in, self.dtype, self.wide = num_in, model.compute_dtype, attention.on_cpu(model)

    def __call__(self, x):
        if self.base == "full":
            kernel = self.kernel[...].astype(self.dtype)
        else:
            kernel = quantize.dequantized(self.kernel_q[...], self.kernel_scale[...], self.base, jnp.dtype(self.dtype))
        out = product(x, kernel, self.num_in, wide=self.wide)
        if hasattr(self, "lora_a"):
            low = product(x, self.lora_a[...].astype(self.dtype), self.num_in, wide=self.wide)
            out = out + self.lora_scale * product(low, self.lora_b[...].astype(self.dtype), wide=self.wide)
        if hasattr(self, "bias"):
            bias = self.bias[...].astype(self.dtype)
            out = out + bias.reshape((1,) * (out.ndim - bias.ndim) + bias.shape)
        return out


class Norm(nnx.Module):
    """RMSNorm or LayerNorm over the last axis, in float32."""

    def __init__(self, dim, model, *, rngs):
        self.kind, self.eps = model.arch.norm, model.arch.norm_eps
        start = nnx.initializers.zeros_init() if self.kind == "rms_plus_one" else nnx.initializers.ones_init()
        self.scale = _param(start, (dim,), ("norm",), model, rngs)
        if self.kind == "layer":
            self.bias = _param(nnx.initializers.zeros_init(), (dim,), ("norm",), model, rngs)

    def __call__(self, x):
        x32, scale = x.astype(jnp.float32), self.scale[...].astype(jnp.float32)
        if self.kind == "layer":
            x32 = x32 - x32.mean(-1, keepdims=True)
        elif self.kind == "rms_plus_one":
            scale = 1.0 + scale
        out = x32 * jax.lax.rsqrt(jnp.square(x32).mean(-1, keepdims=True) + self.eps) * wide(scale, x)
        if self.kind == "layer":
            out = out + wide(self.bias[...].astype(jnp.float32), x)
        return out.astype(x.dtype)


def wide(vector, x):
    """vector [n] as the last axis of x."""
    return vector.reshape((1,) * (x.ndim - 1) + vector.shape)


class Attention(nnx.Module):
    """Causal grouped-query attention; logits, soft-cap and softmax in float32."""

    def __init__(self, model, *, rngs):
        arch = model.arch
        d, n, k, h, std = arch.dim, arch.num_heads, arch.num_kv_heads, arch.head_dim, arch.init_std
        out_std = std / math.sqrt(2 * arch.num_layers)
        heads, kv_heads = ("embed", "heads", "head_dim"), ("embed", "kv_heads", "head_dim")
        linear = functools.partial(Linear, model=model, rngs=rngs)
        self.q = linear("attention.q", (d, n, h), heads, std, bias=arch.qkv_bias)
        self.k = linear("attention.k", (d, k, h), kv_heads, std, bias=arch.qkv_bias)
        self.v = linear("attention.v", (d, k, h), kv_heads, std, bias=arch.qkv_bias)
        self.o = linear("attention.o", (n, h, d), ("heads", "head_dim", "embed"), out_std, bias=arch.out_bias, num_in=2)
        if arch.qk_norm:
            self.q_norm = Norm(h, model, rngs=rngs)
            self.k_norm = Norm(h, model, rngs=rngs)
        self.arch, self.model = arch, model

    def __call__(self, x, rope, sight, scale, cache=None):
        """x [B, T, D], rope (cos, sin) or None, sight (what is seen: visible, real, layer), scale f32[] -> ([B, T, D], (k, v)).

        `sight` and `cache` are attention.attend's.
        """
        q, k, v = *self._asked(x, rope), self.v(x)
        out, cache = attention.attend(self.model, q, k, v, scale=scale, cache=cache, **sight)
        return self.o(out), cache

    def _asked(self, x, rope):
        """The queries and keys of x."""
        q, k = self.q(x), self.k(x)
        if self.arch.qk_norm:
            q, k = self.q_norm(q), self.k_norm(k)
        if rope is not None:
            how = dict(interleaved=self.arch.rope_interleaved, heads_first=attention.on_cpu(self.model))
            q, k = (rotate(y, *rope, **how) for y in (q, k))
        return q, k

    def row(self, x, rope, sight, scale, query):
        """f32[B, T]: the weights, mean over heads, with which the tokens at query i32[B] look at those of x [B, T, D]."""
        q, k = self._asked(x, rope)
        q = jnp.take_along_axis(q, query[:, None, None, None], axis=1)
        visible = jnp.take_along_axis(sight["visible"], query[:, None, None], axis=1)
        weights = attention.weights(self.arch, q, k.swapaxes(1, 2), visible, scale)
        return weights.mean((1, 2))[:, 0]


ACTIVATIONS = {
    "silu": jax.nn.silu,
    "gelu": functools.partial(jax.nn.gelu, approximate=False),
    "gelu_tanh": functools.partial(jax.nn.gelu, approximate=True),
    "relu": jax.nn.relu,
}


class MLP(nnx.Module):
    """down(act(gate x) * up x), or down(act(up x))."""

    def __init__(self, model, *, rngs):
        arch = model.arch
        linear = functools.partial(Linear, bias=arch.mlp_bias, model=model, rngs=rngs)
        if arch.gated:
            self.gate = linear("mlp.gate", (arch.dim, arch.ffn_dim), ("embed", "mlp"), arch.init_std)
        self.up = linear("mlp.up", (arch.dim, arch.ffn_dim), ("embed", "mlp"), arch.init_std)
        out_std = arch.init_std / math.sqrt(2 * arch.num_layers)
        self.down = linear("mlp.down", (arch.ffn_dim, arch.dim), ("mlp", "embed"), out_std)
        self.activation, self.gated = arch.activation, arch.gated

    def __call__(self, x):
        act = ACTIVATIONS[self.activation]
        return self.down(act(self.gate(x)) * self.up(x) if self.gated else act(self.up(x)))


class Block(nnx.Module):
    """Attention and feed-forward after a norm each, with a residual (and dropout on it, if asked for); see Arch's
    `parallel` and `post_norms`."""

    def __init__(self, model, *, rngs):
        arch = model.arch
        self.attention_norm = Norm(arch.dim, model, rngs=rngs)
        self.attention = Attention(model, rngs=rngs)
        if not arch.parallel:
            self.mlp_norm = Norm(arch.dim, model, rngs=rngs)
        self.mlp = MLP(model, rngs=rngs)
        if arch.post_norms:
            self.attention_post_norm = Norm(arch.dim, model, rngs=rngs)
            self.mlp_post_norm = Norm(arch.dim, model, rngs=rngs)
        self.parallel, self.post_norms = arch.parallel, arch.post_norms

    def __call__(self, x, rope, sight, scale, cache=None, rate=0.0, key=None):
        normed = self.attention_norm(x)
        attended, cache = self.attention(normed, rope, sight, scale, cache)
        if self.post_norms:
            attended = self.attention_post_norm(attended)
        after = x + dropout(attended, rate, key, 0)
        fed = self.mlp(normed if self.parallel else self.mlp_norm(after))
        if self.post_norms:
            fed = self.mlp_post_norm(fed)
        return after + dropout(fed, rate, key, 1), cache


class Decoder(nnx.Module):
    def __init__(self, model, *, rngs):
        arch, rows = model.arch, model.num_rows

        @nnx.split_rngs(splits=arch.num_layers)
        @nnx.vmap(in_axes=0, out_axes=0, transform_metadata={nnx.PARTITION_NAME: "layers"})
        def stack(rngs):
            return Block(model, rngs=rngs)

        linear = functools.partial(Linear, std=arch.init_std, model=model, rngs=rngs)
        self.embed = linear("embed", (rows, arch.dim), ("vocab", "embed"))
        if arch.positions == "learned":
            self.positions = linear(
                "positions", (arch.max_positions + arch.position_offset, arch.dim), ("positions", "embed")
            )
        self.blocks = stack(rngs)
        self.norm = Norm(arch.dim, model, rngs=rngs)
        if not arch.tie_embeddings:
            self.unembed = linear("unembed", (arch.dim, rows), ("embed", "vocab"), bias=arch.unembed_bias)


# ------------------------------------------------------------------ parts of the forward


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
    """(graphdef of the last norm, graphdef of one block, shapes, logical axis names); nothing is allocated."""
    with nnx.use_eager_sharding(False):
        whole = jax.eval_shape(lambda: nnx.split(Decoder(model, rngs=nnx.Rngs(params=0))))
        block = jax.eval_shape(lambda: nnx.split(Block(model, rngs=nnx.Rngs(params=0))))
        norm = jax.eval_shape(lambda: nnx.split(Norm(model.arch.dim, model, rngs=nnx.Rngs(params=0))))
    axes = nnx.to_pure_dict(nnx.get_partition_spec(whole[1]))
    return norm[0], block[0], nnx.to_pure_dict(whole[1]), axes


def shapes(model: Model) -> dict:
    """Tree of jax.ShapeDtypeStruct of the decoder's parameters."""
    return _graphs(model)[2]


def axes(model: Model) -> dict:
    """Tree of tuples of logical axis names, like `shapes`."""
    return jax.tree.map(tuple, _graphs(model)[3], is_leaf=lambda x: isinstance(x, jax.sharding.PartitionSpec))


def make(model: Model, key: jax.Array) -> dict:
    """Random parameters; to be jitted."""
    with nnx.use_eager_sharding(False):
        return nnx.to_pure_dict(nnx.split(Decoder(model, rngs=nnx.Rngs(params=key)))[1])


def init(model: Model, key: jax.Array) -> dict:
    """Random parameters, born on the model's layout."""
    shardings = model.layout and model.layout.tree(shapes(model), axes(model))
    return jax.jit(functools.partial(make, model), out_shardings=shardings)(key)


# ------------------------------------------------------------------ forward


def _constrain(model, x):
    return x if model.layout is None else model.layout.constrain(x, "batch", *(None,) * (x.ndim - 1))


def embed(model: Model, params, tokens, positions):
    """[B, T, D] of tokens i32[B, T] in the compute dtype, with learned positions where the Arch has them."""
    arch, dtype = model.arch, jnp.dtype(model.compute_dtype)
    x = params["embed"]["kernel"].astype(dtype)[tokens]
    if arch.embed_scale != 1.0:
        x = x * jnp.asarray(arch.embed_scale, dtype)
    if arch.positions == "learned":
        x = x + params["positions"]["kernel"].astype(dtype)[positions + arch.position_offset]
    return x


class _Layers:
    """What differs between layers: which slots they see, their rotary tables and their scale. Layer numbers may be traced."""

    def __init__(self, arch: Arch, positions, visible, real, first, most: int = 0):
        """visible bool[B, T, S] without windows; query t stands in slot first + t, first i32[B or 1, 1, 1]. real: attend's; most:
        rotary_tables'."""
        self.arch, self.visible, self.real = arch, visible, real
        self.windows = np.asarray(arch.windows or (0,) * arch.num_layers)
        rotary = arch.positions == "rotary"
        self.rope = rotary_tables(arch, positions, local=False, most=most) if rotary else None
        self.local_rope = (
            rotary_tables(arch, positions, local=True, most=most) if rotary and arch.local_rope_theta else None
        )
        queries, slots = visible.shape[1:]
        self.age = first + jnp.arange(queries)[None, :, None] - jnp.arange(slots)[None, None]  # since a slot was filled

    def __getitem__(self, i):
        """(rope, sight, scale) of layer i."""
        arch, visible, rope = self.arch, self.visible, self.rope
        scale = arch.attention_scale or 1 / math.sqrt(arch.head_dim)
        if arch.scale_by_layer:
            scale = scale / (jnp.asarray(i, jnp.float32) + 1.0)
        if self.windows.any():
            window = jnp.asarray(self.windows)[i]
            visible = visible & ((self.age < window) | (window == 0))
            if self.local_rope is not None:
                rope = tuple(jnp.where(window > 0, a, b) for a, b in zip(self.local_rope, rope, strict=True))
        return rope, dict(visible=visible, real=self.real, layer=i), scale


def _remat(model: Model):
    """The policy of jax.checkpoint: "block" computes everything inside a block again in the backward pass; "dots" keeps products with
    weights and what attention gives. A CPU keeps these in float32: to put a layer's into the stack of all layers', its compiler would
    convert the whole stack of bfloat16 to float32 and back (jax 0.10.2)."""
    if model.remat == "block":
        return None
    narrow, wide = (products.NAME, attention.NAME), (products.WIDE, attention.WIDE)
    return jax.checkpoint_policies.save_only_these_names(*(wide if attention.on_cpu(model) else narrow))


def _visible(mask, num_queries: int, num_slots: int, first):
    """bool[B, T, S]: which slots each query sees; mask as `forward` has it."""
    causal = jnp.arange(num_slots)[None, None] <= first + jnp.arange(num_queries)[None, :, None]
    if mask is None:
        return causal
    if mask.ndim == 3:
        return causal & mask
    return causal & (mask[:, None] if mask.dtype == bool else mask[:, :, None] == mask[:, None])


def _through(model: Model, layers: _Layers, x, blocks, indices, rate=0.0, key=None):
    """x [B, T, D] through the layers i32[L] whose stacked parameters are `blocks`."""
    graphdef = _graphs(model)[1]

    def body(x, layer):
        weights, index = layer
        layer_key = None if key is None else jax.random.fold_in(key, 3 + index)
        x, _ = nnx.merge(graphdef, nnx.State(weights))(x, *layers[index], None, rate, layer_key)
        return _constrain(model, x), None

    if model.remat != "none":
        body = jax.checkpoint(body, policy=_remat(model))
    return jax.lax.scan(body, x, (blocks, indices))[0]


def attention_row(model: Model, params, tokens, positions, mask, query) -> jax.Array:
    """f32[B, T]: the last layer's attention weights, mean over heads, of the token at query i32[B]; the rest is `forward`'s."""
    last, first = model.arch.num_layers - 1, jnp.zeros((1, 1, 1), jnp.int32)
    visible = _visible(mask, *(tokens.shape[1],) * 2, first)
    layers = _Layers(model.arch, positions, visible, mask, first)
    x = _constrain(model, embed(model, params, tokens, positions))
    x = _through(model, layers, x, jax.tree.map(lambda w: w[:last], params["blocks"]), jnp.arange(last))
    block = nnx.merge(_graphs(model)[1], nnx.State(jax.tree.map(lambda w: w[last], params["blocks"])))
    return block.attention.row(block.attention_norm(x), *layers[last], query)


def forward(model: Model, params, tokens, positions, mask, cache: Cache | None = None, *, rate=0.0, key=None):
    """Hidden states after the last norm, [B, T, D], and the cache.

    tokens, positions i32[B, T]. Without a cache, mask is bool[B, T] (True = real; left- or right-padded), or i32[B, T]: which of
    several sequences in a row a token belongs to (0 = padding), or bool[B, T, T]: which earlier tokens, and itself, each token sees (XLA's
    attention alone has it). With one, the tokens go into slots [length, length + T), positions are below the number of slots, and mask is
    bool[B, S] over the slots, or None: all of them are real up to the tokens'. `rate` is dropout's, with its `key`.
    """
    arch = model.arch
    norm_graphdef, block_graphdef = _graphs(model)[:2]
    x = _constrain(model, embed(model, params, tokens, positions))
    if rate:
        x = dropout(x, rate, key, 2)
    num_queries, num_slots = tokens.shape[1], mask.shape[1] if cache is None else cache.v[0].shape[2]
    first = jnp.zeros((1, 1, 1), jnp.int32) if cache is None else cache.length.reshape(-1, 1, 1)
    most = num_slots if cache is not None and attention.on_cpu(model) else 0
    layers = _Layers(arch, positions, _visible(mask, num_queries, num_slots, first), mask, first, most)

    if cache is None:
        x = _through(model, layers, x, params["blocks"], jnp.arange(arch.num_layers), rate, key)
    else:
        keys, values = [], []
        for i in range(arch.num_layers):
            blocks = params["blocks"]
            weights = blocks[i] if isinstance(blocks, tuple) else jax.tree.map(lambda w, i=i: w[i], blocks)
            block = nnx.merge(block_graphdef, nnx.State(weights))
            x, (k, v) = block(x, *layers[i], (cache.k[i], cache.v[i], cache.length))
            keys.append(k)
            values.append(v)
        cache = Cache(tuple(keys), tuple(values), cache.length + num_queries)
    return nnx.merge(norm_graphdef, nnx.State(params["norm"]))(x), cache


def for_decoding(model: Model, params) -> dict:
    """The parameters as decoding reads them, with the same results: matrices in the compute dtype, and a tuple of layers in the
    place of the stack (cutting a layer out of it at every token would move each weight twice)."""
    rest = {name: node for name, node in params.items() if name != "blocks"}
    layers = (layer_for_decoding(model, params["blocks"], i) for i in range(model.arch.num_layers))
    return rest_for_decoding(model, rest) | {"blocks": tuple(layers)}


def layer_for_decoding(model: Model, blocks, i) -> dict:
    """Layer i (may be traced) of `for_decoding`: one at a time, no second copy of the stack is held while it is laid out."""
    return rest_for_decoding(model, jax.tree.map(lambda w: w[i], blocks))


def rest_for_decoding(model: Model, params) -> dict:
    """What is outside the blocks."""
    dtype = jnp.dtype(model.compute_dtype)

    def cast(path, leaf):
        return leaf.astype(dtype) if path[-1].key == "kernel" else leaf  # other leaves are used in float32, or not only

    return jax.tree_util.tree_map_with_path(cast, params)


def decoding_shardings(model: Model):
    """Where the model's layout has what `for_decoding` gives; None without a layout."""
    if model.layout is None:
        return None
    names = axes(model)
    layer = jax.tree.map(lambda of: of[1:], names["blocks"], is_leaf=lambda x: isinstance(x, tuple))
    out = jax.eval_shape(functools.partial(for_decoding, model), shapes(model))
    return model.layout.tree(out, names | {"blocks": (layer,) * model.arch.num_layers})


def empty_cache(model: Model, batch: int, num_slots: int) -> Cache:
    arch = model.arch
    names = ("batch", "kv_heads", None, None)

    def buffer(axis):
        sizes = (num_slots, arch.head_dim) if axis == 2 else (arch.head_dim, num_slots)
        zeros = jnp.zeros((batch, arch.num_kv_heads, *sizes), attention.cache_dtype(model))
        return zeros if model.layout is None else model.layout.constrain(zeros, *names)

    k, v = (tuple(buffer(axis) for _ in range(arch.num_layers)) for axis in attention.slot_axes(model))
    return Cache(k, v, jnp.zeros((), jnp.int32))
