"""The ways to compute attention: plain XLA everywhere, kernels where they pay. `path` says which one a model takes, and why.

- `xla`: logits, soft-cap and softmax of [B, N, T, S] in float32; any platform, and the numbers the others are tested against.
- `splash`, a TPU's training and scoring: the block-sparse flash attention that ships with JAX (after arXiv 2205.14135),
  forward and backward. No [T, T] array reaches memory, and blocks that nobody may look at are skipped.
- `ragged`, a TPU's decoding of slots with lengths of their own: `_ragged` below reads, of each slot, the blocks that hold
  its positions, and writes the new token in place.
- `cudnn`, a GPU's training and scoring in bfloat16: `jax.nn.dot_product_attention`. Its decoding wants caches [B, S, K, H];
  ours are [N, K, W, H], so that it would copy them at every token, and decoding stays with XLA there.

On a CPU the TPU's kernels are interpreted (config.model.attention=kernel): slow, for tests.
"""

import functools

import jax
import jax.numpy as jnp
import numpy as np
from jax.ad_checkpoint import checkpoint_name

NAME = "attention"  # what remat's policies know its result by
WIDE = "wide_attention"  # and before it is rounded
MASKED = -1e30  # finite: a row that may look at nothing (padding) stays free of NaN
LANES = 128
QUERIES = 128  # that read the same keys
CACHE_MULTIPLE = 16  # positions of a cache come in tiles of so many rows (bfloat16's; float32's are 8)


# ------------------------------------------------------------------ which way


def platform(model) -> str:
    """cpu, gpu or tpu: where the model's programs run."""
    if model.layout is None:
        return jax.default_backend()
    return model.layout.mesh.devices.flat[0].platform


def on_cpu(model) -> bool:
    return platform(model) == "cpu"


def path(model, *, slots: bool = False) -> tuple[str, str]:
    """(xla, splash, ragged or cudnn; why, if it is xla). `slots`: decoding from a cache whose rows have lengths of their own.

    `auto` is `kernel` on a TPU, by what its compiler counts (benchmarks/attention.py). A layer's decoding at CodeLlama 7B's heads
    over 8 chips, 64 slots of 1,280, takes XLA 1.2M cycles by the compiler's estimate, since with one query a head it multiplies
    without the matrix unit; the kernel's step (512 positions, 1 MB, 1.3 us from memory) is 950 bundles of instructions (0.6 us),
    192 steps at most: 0.37M cycles, and fewer the shorter responses are. No GPU was measured, so that it is `xla` there.
    """
    arch, where, asked = model.arch, platform(model), model.attention
    if asked == "xla":
        return "xla", "config.model.attention is xla"
    if where == "tpu" or (where == "cpu" and asked == "kernel"):
        if slots and where == "tpu" and arch.head_dim % LANES:
            return "xla", f"caches of head_dim {arch.head_dim}, no multiple of {LANES}, lie across a kernel's tiles"
        return "ragged" if slots else "splash", ""
    if asked == "auto":
        return "xla", f"no kernel was measured on a {where}"
    if slots:
        return "xla", "cuDNN would copy the cache at every token"
    if model.compute_dtype != "bfloat16":
        return "xla", f"cuDNN takes bfloat16, not {model.compute_dtype}"
    if arch.head_dim > 128 or arch.head_dim % 8:
        return "xla", f"cuDNN takes a head_dim of at most 128 and a multiple of 8, not {arch.head_dim}"
    if arch.attention_softcap:
        return "xla", "cuDNN has no soft-cap"
    return "cudnn", ""


def slot_axes(model) -> tuple[int, int]:
    """The axis along which slots lie in the keys' and in the values' buffers; the other one of the last two is head_dim's.

    A CPU reads keys fastest if a step's few queries go along head_dim over rows of slots: at SmolLM2's heads, 64 rows of 520 slots in
    float32, 2.3 ms a layer, and 4.5 to 20 ms the other way.
    """
    return (3 if on_cpu(model) and path(model, slots=True)[0] == "xla" else 2), 2


def cache_dtype(model):
    """The model's, but float32 on a CPU: to write a slot of each row its compiler converts a whole buffer of bfloat16 to float32 and back
    (jax 0.10.2), and reading bfloat16 is no faster there."""
    return jnp.dtype(jnp.float32 if slot_axes(model)[0] == 3 else model.compute_dtype)


def cache_multiple(model) -> int:
    """What the width of a cache should be a multiple of: a TPU lays out other widths in another order, and copies them."""
    return CACHE_MULTIPLE if platform(model) == "tpu" or path(model, slots=True)[0] == "ragged" else 1


def attend(model, q, k, v, *, visible, real, layer, scale, cache=None):
    """q [B, T, N, H], k and v [B, T, K, H] -> ([B, T, N, H], (k, v)): attention of layer `layer` (i32[], may be traced).

    visible bool[B, T, S], with the layer's window; real bool[B, S], None if every slot is, segments i32[B, S] or bool[B, T, S] (see forward);
    scale f32[]. `cache`: (k, v, length), buffers as Cache has them, into which the new keys and values go at slot `length`,
    i32[] or i32[B].
    """
    if cache is None:
        way, _ = path(model)
        if way == "xla" or real is not None and real.ndim == 3:  # who sees whom is given: no kernel has that
            return _trained(model, q, k, v, visible, scale), (k, v)
        q = (q.astype(jnp.float32) * scale).astype(q.dtype)
        windows = model.arch.windows or (0,)
        distinct = sorted(set(windows))
        kernel = {"splash": _splash, "cudnn": _cudnn}[way]
        branches = [functools.partial(kernel, model, window=window) for window in distinct]
        if len(distinct) == 1:
            return branches[0](q, k, v, real), (k, v)
        which = jnp.asarray([distinct.index(window) for window in windows])[layer]
        return jax.lax.switch(which, branches, q, k, v, real), (k, v)
    buffers, length = cache[:2], cache[2]
    whole = buffers[0].shape[2] % CACHE_MULTIPLE == 0
    if length.ndim and real is None and whole and path(model, slots=True)[0] == "ragged":
        window = (model.arch.windows or (0,) * model.arch.num_layers)[layer]
        out, *buffers = _slots(model, q, k, v, *buffers, length, scale, window)
        return out, tuple(buffers)
    written = zip(buffers, (k, v), slot_axes(model), strict=True)
    k, v = (_written(model, old, new.astype(old.dtype), length, axis) for old, new, axis in written)
    return _plain(model, q, k, v, visible, scale), (k, v)


def soft_cap(x, cap: float):
    return cap * jnp.tanh(x / cap) if cap else x


# ------------------------------------------------------------------ XLA


def weights(arch, q, k, visible, scale, slot_axis: int = 2):
    """f32[B, K, N / K, T, S] of q [B, T, N, H] and k [B, K, S, H], or [B, K, H, S] where `slot_axis` is 3; visible bool[B, T, S]."""
    b, t, _, h = q.shape
    rows = q.swapaxes(1, 2).reshape(b, arch.num_kv_heads, -1, h)
    logits = scale * _by_head(rows.astype(k.dtype), k, (3, 5 - slot_axis), jnp.float32)
    logits = soft_cap(logits.reshape(*logits.shape[:2], -1, t, logits.shape[-1]), arch.attention_softcap)
    return jax.nn.softmax(jnp.where(visible[:, None, None], logits, MASKED), axis=-1)


def _by_head(a, b, axes, dtype):
    """The product of a and b [B, K, ...] over the axes (of a, of b), in `dtype`."""
    dimensions = (((axes[0],), (axes[1],)), ((0, 1), (0, 1)))
    return jax.lax.dot_general(a, b, dimensions, preferred_element_type=dtype)


def _plain(model, q, k, v, visible, scale):
    """[B, T, N, H] of k and v as caches have them; the rest as `weights` has it. Not einsum, whose product begins with v: a CPU takes
    four times as long for that, and jax 0.10.2 refuses to run it in bfloat16."""
    by = weights(model.arch, q, k, visible, scale, slot_axes(model)[0]).astype(q.dtype)
    b, kv, groups, t, slots = by.shape
    out = _by_head(by.reshape(b, kv, groups * t, slots).astype(v.dtype), v, (3, 2), v.dtype).astype(q.dtype)
    return out.reshape(b, kv * groups, t, -1).swapaxes(1, 2)


def _trained(model, q, k, v, visible, scale):
    """The same for k and v [B, T, K, H] that no query sees ahead of itself, with a gradient of its own."""
    b, t, n, h = q.shape
    q, k, v = (x.swapaxes(1, 2) for x in (q, k, v))
    q = q.reshape(b, k.shape[1], -1, t, h)
    wide = jnp.dtype(jnp.float32) if on_cpu(model) else q.dtype  # what a product's sums are given in: see products.py
    out = _dense(model.arch.attention_softcap, wide, q, k, v, visible, jnp.asarray(scale, jnp.float32))
    return out.reshape(b, n, t, h).swapaxes(1, 2)


@functools.partial(jax.custom_vjp, nondiff_argnums=(0, 1))
def _dense(cap: float, wide, q, k, v, visible, scale):
    """[B, K, G, T, H] of q [B, K, G, T, H], k and v [B, K, T, H], visible bool[B, T, T], scale f32[]. QUERIES of a head's at a time,
    with the keys until there. For the backward pass q, k, v, the result and two numbers a query are kept, and the weights computed
    again, as in arXiv 2205.14135."""
    return _dense_forward(cap, wide, q, k, v, visible, scale)[0]


def _blocks(q, k, visible):
    """(the queries' places, q [B, K, G t, H], k [B, K, S, H], visible bool[B, 1, G t, S]) of each block of queries."""
    b, kv, groups, length, h = q.shape
    for first in range(0, length, QUERIES):
        end = min(first + QUERIES, length)
        seen = jnp.tile(visible[:, first:end, :end], (1, groups, 1))[:, None]
        yield slice(first, end), q[:, :, :, first:end].reshape(b, kv, -1, h), k[:, :, :end], seen


def _dense_logits(cap, q, k, seen, scale):
    """f32[B, K, G t, S], and those before MASKED was put in."""
    logits = soft_cap(scale * jnp.einsum("bkqh,bksh->bkqs", q, k, preferred_element_type=jnp.float32), cap)
    return jnp.where(seen, logits, MASKED), logits


def _dense_forward(cap, wide, q, k, v, visible, scale):
    parts = []
    for at, queries, keys, seen in _blocks(q, k, visible):
        logits, _ = _dense_logits(cap, queries, keys, seen, scale)
        top = logits.max(-1, keepdims=True)
        weights = jnp.exp(logits - top)
        total = weights.sum(-1, keepdims=True)
        by = (weights / total).astype(v.dtype)
        out = jnp.einsum("bkqs,bksh->bkqh", by, v[:, :, : at.stop], preferred_element_type=wide)
        parts.append([x.reshape(*q.shape[:3], -1, x.shape[-1]) for x in (out, top, total)])
    out, top, total = (checkpoint_name(jnp.concatenate(x, axis=3), WIDE) for x in zip(*parts, strict=True))
    out, top, total = (checkpoint_name(x, NAME) for x in (out.astype(v.dtype), top, total))
    return out, (q, k, v, visible, scale, out, top, total)


def _dense_backward(cap, wide, kept, dout):
    q, k, v, visible, scale, out, top, total = kept
    own = (dout.astype(jnp.float32) * out.astype(jnp.float32)).sum(-1, keepdims=True)
    dq, dk, dv = [], jnp.zeros(k.shape, jnp.float32), jnp.zeros(v.shape, jnp.float32)
    for at, queries, keys, seen in _blocks(q, k, visible):

        def cut(x, at=at):
            return x[:, :, :, at].reshape(*x.shape[:2], -1, x.shape[-1])

        logits, uncovered = _dense_logits(cap, queries, keys, seen, scale)
        weights = jnp.exp(logits - cut(top)) / cut(total)
        dweights = jnp.einsum("bkqh,bksh->bkqs", cut(dout), v[:, :, : at.stop], preferred_element_type=jnp.float32)
        dlogits = scale * weights * (dweights - cut(own))
        if cap:
            dlogits = dlogits * (1.0 - jnp.square(uncovered / cap))
        dlogits, weights = dlogits.astype(q.dtype), weights.astype(q.dtype)
        part = jnp.einsum("bkqs,bksh->bkqh", dlogits, keys, preferred_element_type=wide).astype(q.dtype)
        dq.append(part.reshape(q[:, :, :, at].shape))
        # The smaller factor comes first: that is the one that a product turns around.
        sums = dict(preferred_element_type=jnp.float32)
        dk = dk.at[:, :, : at.stop].add(jnp.einsum("bkqh,bkqs->bkhs", queries, dlogits, **sums).swapaxes(2, 3))
        dv = dv.at[:, :, : at.stop].add(jnp.einsum("bkqh,bkqs->bkhs", cut(dout), weights, **sums).swapaxes(2, 3))
    return jnp.concatenate(dq, axis=3), dk.astype(k.dtype), dv.astype(v.dtype), None, None


_dense.defvjp(_dense_forward, _dense_backward)


def _written(model, buffer, new, length, axis: int):
    """The buffer with new [B, T, K, H] in the slots from `length` on, which lie along `axis`; see Cache.

    Rows with lengths of their own are scattered: on a TPU head by head, since with all heads of a position as one update the
    compiler turns the whole buffer around (to [B, S, K, H]) before the loop over tokens and back after it, and holds both.
    """
    new = new.transpose(0, 2, 1, 3) if axis == 2 else new.transpose(0, 2, 3, 1)
    if length.ndim == 0:
        return jax.lax.dynamic_update_slice_in_dim(buffer, new, length, axis=axis)
    rows, sure = jnp.arange(len(buffer)), dict(unique_indices=True, indices_are_sorted=True)
    if axis == 3:
        return buffer.at[rows, :, :, length].set(new[:, :, :, 0], **sure)
    if platform(model) == "tpu":
        heads = jnp.arange(buffer.shape[1])[None]
        return buffer.at[rows[:, None], heads, length[:, None]].set(new[:, :, 0], **sure)
    return buffer.at[rows, :, length].set(new[:, :, 0], **sure)


# ------------------------------------------------------------------ over a mesh


def _over_mesh(model, function, results, **args):
    """function(*values) on each device's part of them; args: name = (logical axes, value). Results lie like the args named."""
    values = [value for _, value in args.values()]
    if model.layout is None:
        return function(*values)
    specs = {name: model.layout.spec(axes, value.shape) for name, (axes, value) in args.items()}
    places = dict(in_specs=tuple(specs.values()), out_specs=tuple(specs[name] for name in results))
    return jax.shard_map(function, mesh=model.layout.mesh, check_vma=False, **places)(*values)


def _head_groups(model, q, k, v):
    """k and v with as many heads, repeated, as a mesh that divides q's heads can divide."""
    parts = 1 if model.layout is None else model.layout.parts("heads")
    n, kv = q.shape[2], k.shape[2]
    if n % parts == 0 and kv % parts:
        k, v = (jnp.repeat(x, np.lcm(kv, parts) // kv, axis=2) for x in (k, v))
    return k, v


def _by_heads(model, function, q, k, v, real):
    """function(q, k, v, real) on each device's rows and heads of q [B, T, N, H]; its result lies like q."""
    heads = ("batch", None, "heads", None)
    k, v = _head_groups(model, q, k, v)
    args = dict(q=(heads, q), k=(heads, k), v=(heads, v), real=(("batch", None), real))
    return _over_mesh(model, lambda *local: (function(*local),), "q", **args)[0]


def _splash(model, q, k, v, real, *, window: int):
    """Causal attention of q [B, T, N, H], scaled already, among the real (bool[B, T], or segments i32[B, T]); JAX's splash kernel.

    Padding tokens see each other: no row is empty, and nobody reads theirs. Lengths are padded to whole blocks.
    """
    # Pallas takes a while to import, and only a TPU needs it.
    from jax.experimental.pallas.ops.tpu.splash_attention import splash_attention_kernel as splash
    from jax.experimental.pallas.ops.tpu.splash_attention import splash_attention_mask as splash_mask

    length = q.shape[1]
    size = -(-length // LANES) * LANES if length <= 512 else -(-length // 256) * 256
    block = next(block for block in (512, 384, 256, 128) if size % block == 0)
    near = None if not window else (window - 1, 0)

    def local(q, k, v, real):
        def heads_first(x):
            return jnp.pad(x, ((0, 0), (0, size - length), (0, 0), (0, 0))).swapaxes(1, 2)

        square = splash_mask.LocalMask((size, size), near, 0) if near else splash_mask.CausalMask((size, size))
        with jax.ensure_compile_time_eval():
            kernel = splash.make_splash_mha(
                splash_mask.MultiHeadMask([square] * q.shape[2]),
                block_sizes=splash.BlockSizes(*[block] * 8),
                head_shards=1,
                q_seq_shards=1,
                attn_logits_soft_cap=model.arch.attention_softcap or None,
                interpret=platform(model) == "cpu",
            )
            kernel = jax.tree.map(np.asarray, kernel)
        segments = jnp.pad(real, ((0, 0), (0, size - length))).astype(jnp.int32)
        run = jax.vmap(lambda q, k, v, ids: kernel(q, k, v, segment_ids=splash.SegmentIds(ids, ids)))
        out = run(*map(heads_first, (q, k, v)), segments)
        return out.swapaxes(1, 2)[:, :length].astype(q.dtype)

    return _by_heads(model, local, q, k, v, real)


def _cudnn(model, q, k, v, real, *, window: int, implementation: str = "cudnn"):
    """The same with cuDNN's flash attention, or with the plain attention that JAX gives the same arguments."""
    length = q.shape[1]
    odd = length % 2  # it takes masks of even sizes only

    def local(q, k, v, real):
        q, k, v = (jnp.pad(x, ((0, 0), (0, odd), (0, 0), (0, 0))) for x in (q, k, v))
        real = jnp.pad(real, ((0, 0), (0, odd)))
        mask = (real[:, :, None] == real[:, None])[:, None]
        near = (window - 1, 0) if window else None
        attention = functools.partial(jax.nn.dot_product_attention, scale=1.0, is_causal=True, local_window_size=near)
        return attention(q, k, v, mask=mask, implementation=implementation)[:, :length]

    return _by_heads(model, local, q, k, v, real)


# ------------------------------------------------------------------ decoding


def _slots(model, q, k, v, old_k, old_v, length, scale, window: int):
    """One token of each slot: q [N, 1, heads, H], k, v [N, 1, K, H], caches [N, K, W, H] -> ([N, 1, heads, H], caches)."""
    num, _, heads, size = q.shape
    kv = k.shape[2]
    q = (q.astype(jnp.float32) * scale).astype(q.dtype).reshape(num, kv, heads // kv, size)
    settings = dict(window=window, cap=model.arch.attention_softcap, interpret=platform(model) == "cpu")
    token, buffer = ("batch", "kv_heads", None), ("batch", "kv_heads", None, None)
    out, old_k, old_v = _over_mesh(
        model,
        functools.partial(_ragged, **settings),
        ("q", "old_k", "old_v"),
        length=(("batch",), length),
        q=(buffer, q),
        k=(token, k[:, 0]),
        v=(token, v[:, 0]),
        old_k=(buffer, old_k),
        old_v=(buffer, old_v),
    )
    return out.reshape(num, 1, heads, size), old_k, old_v


def _ragged(length, q, new_k, new_v, k, v, *, window: int, cap: float, interpret: bool, block: int = 0):
    """(out [N, K, G, H], k, v): slot n's query, scaled already, over its positions [0, length[n]) and its new token.

    length i32[N], q [N, K, G, H], new_k, new_v [N, K, H], k, v [N, K, W, H], W a multiple of CACHE_MULTIPLE. A grid step is
    one slot's block of positions, all heads. Blocks before the window and after the length are not computed, and not fetched:
    their index is clamped to one that is there already. The softmax goes on from block to block (arXiv 1805.02867), beginning
    with the new token itself, in float32; the last block's step puts that token's row into the tile of the cache that it
    belongs to, which is all that is written. Behind the new row the tile is zeros: nobody has been there.
    """
    from jax.experimental import pallas as pl
    from jax.experimental.pallas import tpu as pltpu

    num, kv, group, size = q.shape
    width = k.shape[2]
    tile = CACHE_MULTIPLE
    if not block:
        row = kv * size * k.dtype.itemsize
        fit = 2**19 // row  # half a megabyte: enough for the memory's full speed
        block = min(max(fit // LANES, 1), 8) * LANES
    block = min(block, width)
    precision = jax.lax.Precision.HIGHEST if k.dtype == jnp.float32 else jax.lax.Precision.DEFAULT
    dot = functools.partial(jax.lax.dot_general, precision=precision, preferred_element_type=jnp.float32)
    length = jnp.minimum(length, width - 1)  # a slot that is full has ended

    def ends(total):
        """The first and the last block with something to see."""
        first = jnp.maximum(total - window + 1, 0) // block if window else 0
        return first, jnp.maximum(total - 1, 0) // block

    def kernel(lengths, q, new_k, new_v, k, v, out, k_out, v_out, top, total, acc):
        step, place = pl.program_id(1), lengths[pl.program_id(0)]
        first, last = ends(place)

        @pl.when(step == 0)
        def _():
            own = (q[0].astype(jnp.float32) * new_k[0].astype(jnp.float32)[:, None]).sum(-1, keepdims=True)
            top[...] = jnp.broadcast_to(soft_cap(own, cap), top.shape)
            total[...] = jnp.ones_like(total)
            acc[...] = jnp.broadcast_to(new_v[0].astype(jnp.float32)[:, None], acc.shape)

        @pl.when((step >= first) & (step <= last))
        def _():
            logits = soft_cap(dot(q[0], k[0], (((2,), (2,)), ((0,), (0,)))), cap)  # [K, G, block]
            at = step * block + jax.lax.broadcasted_iota(jnp.int32, logits.shape, 2)
            seen = at < place
            if window:
                seen &= at > place - window
            logits = jnp.where(seen, logits, MASKED)
            values = v[0]
            if width % block:  # what a block has past the end may be anything
                rows = step * block + jax.lax.broadcasted_iota(jnp.int32, values.shape, 1)
                values = jnp.where(rows < width, values, jnp.zeros_like(values))
            old = top[...][..., :1]
            new = jnp.maximum(old, logits.max(-1, keepdims=True))
            weights, keep = jnp.exp(logits - new), jnp.exp(old - new)
            top[...] = jnp.broadcast_to(new, top.shape)
            total[...] = keep * total[...] + weights.sum(-1, keepdims=True)
            product = dot(weights.astype(values.dtype), values, (((2,), (1,)), ((0,), (0,))))
            acc[...] = keep * acc[...] + product

        @pl.when(step == last)
        def _():
            out[0] = (acc[...] / total[...][..., :1]).astype(out.dtype)
            start = pl.multiple_of(jnp.minimum(place // tile * tile - last * block, block - tile), tile)
            for new, old, into in ((new_k, k, k_out), (new_v, v, v_out)):
                kept = old[0, :, pl.ds(start, tile)].astype(jnp.float32)  # older compilers cannot mask smaller types
                row = jax.lax.broadcasted_iota(jnp.int32, kept.shape, 1)
                behind = jnp.where(row == place % tile, new[0].astype(jnp.float32)[:, None], 0.0)
                into[0] = jnp.where(row < place % tile, kept, behind).astype(into.dtype)

    def slot(*shape):
        return pl.BlockSpec((1, *shape), lambda n, j, lengths: (n, *(0,) * len(shape)))

    def blocks():
        return pl.BlockSpec((1, kv, block, size), lambda n, j, lengths: (n, 0, jnp.clip(j, *ends(lengths[n])), 0))

    def last_tile():
        return pl.BlockSpec((1, kv, tile, size), lambda n, j, lengths: (n, 0, lengths[n] // tile, 0))

    scratch = [pltpu.VMEM((kv, group, width), jnp.float32) for width in (LANES, LANES, size)]
    grid = pltpu.PrefetchScalarGridSpec(
        num_scalar_prefetch=1,
        grid=(num, pl.cdiv(width, block)),
        in_specs=[slot(kv, group, size), slot(kv, size), slot(kv, size), blocks(), blocks()],
        out_specs=[slot(kv, group, size), last_tile(), last_tile()],
        scratch_shapes=scratch,
    )
    return pl.pallas_call(
        kernel,
        grid_spec=grid,
        out_shape=[jax.ShapeDtypeStruct(x.shape, x.dtype) for x in (q, k, v)],
        input_output_aliases={4: 1, 5: 2},
        compiler_params=pltpu.CompilerParams(dimension_semantics=("parallel", "arbitrary")),
        name="ragged_decode",
        interpret=interpret,
    )(length, q, new_k, new_v, k, v)
