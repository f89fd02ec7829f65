"""From logits to a token: penalties and bans, temperature, top-k, top-p and min-p, and the log-probability under just that distribution.

The order is that of transformers' `generate`. A token is drawn without noise for the whole vocabulary: it is cut into BLOCKS blocks, whose
masses are summed in one pass; the first of exponential times with these rates tells the block, and the first of its tokens' the token. A
time is made of 64 random bits, so that a rare token is as likely as it should be to float32's precision, however rare.

Top-k and top-p find their threshold bit by bit instead of sorting the vocabulary: 32 passes, over the largest logits alone where these
are seen to be enough.
"""

import math

import jax
import jax.numpy as jnp

from reft_jax.config.settings import Sampling
from reft_jax.models.attention import LANES, MASKED

BLOCKS = 4 * LANES  # parts of the vocabulary that are drawn from in two steps
LARGEST, GROUP = 256, 32  # groups of tokens among which a threshold is looked for first, and their size


def adjusted(logits, sampling: Sampling, *, ends: tuple[int, ...] = (), t=None, seen=None) -> jax.Array:
    """f32[B, V]: the repetition penalty (arXiv 1909.05858) on tokens that were `seen` bool[B, V], forbidden tokens excluded, and
    before response position min_new the `ends` too; t i32[B] is the position that is drawn."""
    logits = logits.astype(jnp.float32)
    if sampling.repetition_penalty != 1.0:
        penalty = sampling.repetition_penalty
        logits = jnp.where(seen, jnp.where(logits > 0, logits / penalty, logits * penalty), logits)
    if sampling.forbidden:
        logits = logits.at[:, jnp.asarray(sampling.forbidden)].set(MASKED)
    if sampling.min_new and ends:
        banned = jnp.zeros(logits.shape[-1:], bool).at[jnp.asarray(ends)].set(True, mode="drop")
        logits = jnp.where((t < sampling.min_new)[:, None] & banned[None], MASKED, logits)
    return logits


def sampling_logp(
    logits: jax.Array, *, temperature: float, top_k: int = 0, top_p: float = 1.0, min_p: float = 0.0
) -> jax.Array:
    """f32[B, V] log-probabilities of the distribution that tokens are drawn from; excluded tokens get about -1e30.

    top_k 0, top_p 1 and min_p 0 are off; ties at the last place stay in. min_p is a share of the likeliest token's probability.
    temperature must be > 0 (0 = greedy is `choose`'s).
    """
    return jax.nn.log_softmax(_allowed(logits, temperature, top_k, top_p, min_p), axis=-1)


def _allowed(logits, temperature: float, top_k: int, top_p: float, min_p: float) -> jax.Array:
    """f32[B, V]: the logits of that distribution, MASKED where it has no token."""
    logits = logits.astype(jnp.float32) / temperature
    if 0 < top_k < logits.shape[-1]:
        logits = _at_least(logits, jnp.ones_like, top_k)
    if top_p < 1.0:
        norm = jax.nn.logsumexp(logits, axis=-1, keepdims=True)  # of all, also where only the largest are looked at
        logits = _at_least(logits, lambda logits: jnp.exp(logits - norm), top_p)
    if min_p > 0.0:
        least = logits.max(axis=-1, keepdims=True) + math.log(min_p)
        logits = jnp.where(logits < least, MASKED, logits)
    return logits


def _at_least(logits, weigh, least: float) -> jax.Array:
    """logits [B, V] without those below the largest threshold of its row above which the logits' weights, `weigh`(logits), add up to `least`.

    In a large vocabulary it is looked for among the LARGEST groups of about GROUP tokens by their largest ones. If it lies above what
    all others hold, in every row, then these cannot matter; else all are looked through.
    """
    batch, num = logits.shape
    if num < 4 * LARGEST * GROUP:
        return jnp.where(logits < _threshold(logits, weigh, least), MASKED, logits)
    rows = _in_rows(logits, num // GROUP // LANES * LANES)
    tops, which = jax.lax.top_k(_columns(rows, jnp.max), LARGEST + 1)
    some = jnp.concatenate([_take(part, which[:, :LARGEST]).reshape(batch, -1) for part in rows], axis=1)
    found = _threshold(some, weigh, least)
    sure = (found > tops[:, LARGEST:]).all()
    threshold = jax.lax.cond(sure, lambda: found, lambda: _threshold(logits, weigh, least))
    return jnp.where(logits < threshold, MASKED, logits)


def _in_rows(logits, width: int) -> tuple[jax.Array, jax.Array]:
    """Logits [B, V] in their order, `width` in a row: the whole rows [B, N, width], and the rest [B, 1, fewer].

    A multiple of LANES needs no copy on a TPU; padding the rest would need one on a CPU.
    """
    whole = logits.shape[1] // width * width
    return logits[:, :whole].reshape(len(logits), -1, width), logits[:, None, whole:]


def _columns(rows, reduce) -> jax.Array:
    """[B, width]: jnp.sum or jnp.max of each column of what `_in_rows` gave (of positive numbers, or such that nothing is less than MASKED)."""
    (whole, rest), filler = rows, MASKED if reduce is jnp.max else 0.0
    rest = jnp.pad(rest[:, 0], ((0, 0), (0, whole.shape[2] - rest.shape[2])), constant_values=filler)
    if not whole.shape[1]:
        return rest
    together = reduce(whole, axis=1)
    return jnp.maximum(together, rest) if reduce is jnp.max else together + rest


def _take(part, which) -> jax.Array:
    """[B, rows, N]: the columns which i32[B, N] of part [B, rows, width]; MASKED for those that it has not."""
    if not part.size:
        return jnp.full((len(which), part.shape[1], which.shape[1]), MASKED)
    there = jnp.take_along_axis(part, jnp.minimum(which, part.shape[2] - 1)[:, None], axis=2)
    return jnp.where((which < part.shape[2])[:, None], there, MASKED)


def _threshold(logits, weigh, least: float) -> jax.Array:
    """f32[B, 1]: the largest number such that the logits [B, N] which are at least as large weigh `least`; NaN if all weigh less."""
    bits = jax.lax.bitcast_convert_type(logits, jnp.int32)
    # unsigned integers in the order of the floats: the sign bit turned over, and all others of a negative number too
    places = jax.lax.bitcast_convert_type(bits ^ ((bits >> 31) & 0x7FFFFFFF), jnp.uint32) ^ jnp.uint32(1 << 31)
    weights = weigh(logits)

    def bit(i, found):
        tried = found | (jnp.uint32(1 << 31) >> i.astype(jnp.uint32))
        enough = jnp.where(places >= tried[:, None], weights, 0.0).sum(axis=-1) >= least
        return jnp.where(enough, tried, found)

    found = jax.lax.fori_loop(0, 32, bit, jnp.zeros(logits.shape[0], jnp.uint32))
    bits = jax.lax.bitcast_convert_type(found ^ jnp.uint32(1 << 31), jnp.int32)
    return jax.lax.bitcast_convert_type(bits ^ ((bits >> 31) & 0x7FFFFFFF), jnp.float32)[:, None]


def choose(logits, keys, sampling: Sampling, *, ends: tuple[int, ...] = (), t=None, seen=None):
    """(token i32[B], logp f32[B]): each row drawn with its own key (key[B]), so that a row does not depend on its neighbours.

    temperature 0 takes the most likely token; its logp is then that of the untempered distribution. `ends`, `t`, `seen`: see
    `adjusted`; `seen` is read only with a repetition penalty, `t` only with min_new.
    """
    logits = adjusted(logits, sampling, ends=ends, t=t, seen=seen)
    if sampling.temperature == 0.0:
        token = jnp.argmax(logits, axis=-1)
        norm = jax.nn.logsumexp(logits, axis=-1)
    else:
        logits = _allowed(logits, sampling.temperature, sampling.top_k, sampling.top_p, sampling.min_p)
        token, norm = _draw(logits, keys)
    return token.astype(jnp.int32), jnp.take_along_axis(logits, token[:, None], axis=-1)[:, 0] - norm


def _draw(logits, keys) -> tuple[jax.Array, jax.Array]:
    """(token i32[B], the logits' logsumexp f32[B]): a token of softmax(logits [B, V]) for each key."""
    rows = _in_rows(logits, BLOCKS)  # a block is a column
    num_rows = rows[0].shape[1] + 1
    uniform = _uniform(keys, BLOCKS + num_rows)
    top = _columns(rows, jnp.max).max(axis=-1)[:, None]
    masses = _columns([jnp.exp(part - top[:, :, None]) for part in rows], jnp.sum)
    block = _first(masses, uniform[:, :BLOCKS])
    column = jnp.concatenate([_take(part, block[:, None])[:, :, 0] for part in rows], axis=1)
    row = _first(jnp.exp(column - top), uniform[:, BLOCKS:])
    return row * BLOCKS + block, top[:, 0] + jnp.log(masses.sum(axis=-1))


def _uniform(keys, num: int) -> jax.Array:
    """f32[B, num] uniform in [0, 1) as 64 bits tell it: near 0 the steps are as small as the numbers, not 2^-24."""
    bits = jax.vmap(lambda key: jax.random.bits(key, (2, num), jnp.uint32))(keys)
    high, low = bits[:, 0].astype(jnp.float32) * 2.0**-32, bits[:, 1].astype(jnp.float32) * 2.0**-64
    return jnp.minimum(high + low, 1 - 2.0**-24)


def _first(masses, uniform) -> jax.Array:
    """i32[B]: a place drawn in proportion to masses f32[B, N]: the first to arrive of exponential times with these rates."""
    times = -jnp.log1p(-uniform) / masses
    return jnp.argmin(jnp.where(masses > 0, times, jnp.inf), axis=-1).astype(jnp.int32)


def first_seen(sampling: Sampling, tokens, mask, num_rows: int) -> jax.Array:
    """bool[B, V] which tokens the prompts tokens i32[B, P], mask bool[B, P] hold; [B, 0] where no penalty reads it."""
    batch = tokens.shape[0]
    if sampling.repetition_penalty == 1.0:
        return jnp.zeros((batch, 0), bool)
    return jnp.zeros((batch, num_rows), bool).at[jnp.arange(batch)[:, None], tokens].max(mask)


def now_seen(sampling: Sampling, seen, token) -> jax.Array:
    """`seen` with the tokens i32[B] that were just drawn."""
    if sampling.repetition_penalty == 1.0:
        return seen
    return seen.at[jnp.arange(len(token)), token].set(True)
