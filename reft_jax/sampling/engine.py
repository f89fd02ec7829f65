"""Continuous batching: a fixed number of slots decode together, and a slot whose response has ended takes the next prompt.

Responses differ in length by ten times, so a batch that waits for its longest wastes most of its steps. Here the device
runs three jitted functions and the host only schedules:

- `prefill` reads a few waiting prompts (right-padded to a bucket) into a store of keys and values;
- `admit` copies a store's rows into free slots, several times for several samples of one prompt, which is read once;
- `decode` takes every slot on, token by token, until enough of them have ended.

The slots' buffers are as wide as the longest response needs so far, in a few steps; when nothing waits any more and most
slots are free, the others move to a smaller set. What is sampled for (key, question, k) at response position t is a function
of these and the prompt: not of slots, neighbours, buckets or chunks.
"""

import functools
import typing

import flax.struct
import jax
import jax.numpy as jnp
import numpy as np

from reft_jax import models
from reft_jax.sampling.choose import choose
from reft_jax.types import Prompts, Sample


class Slots(flax.struct.PyTreeNode):
    """The device's state: N slots, W positions each."""

    cache: models.Cache  # [N, K, W, H] a layer; its length i32[N]: tokens whose keys and values are in it
    hidden: jax.Array  # [N, D] the state that emits the next token
    key: jax.Array  # key[N]
    t: jax.Array  # i32[N] response tokens so far
    live: jax.Array  # bool[N]
    tokens: jax.Array  # i32[N, max_new]
    logp: jax.Array  # f32[N, max_new]


class Store(flax.struct.PyTreeNode):
    """Prompts that were read and wait for slots."""

    cache: models.Cache  # [P, K, L, H] a layer
    hidden: jax.Array  # [P, D]
    length: jax.Array  # i32[P]


class Finished(typing.NamedTuple):
    row: int  # of the sample: question's place * num_samples + k
    tokens: np.ndarray  # i32[n], the end-of-sequence token included
    logp: np.ndarray  # f32[n]


class Engine:
    """Samples for prompts of at most max_prompt tokens, max_new tokens each. Compiled functions are kept with it.

    num_slots: how many responses decode together (rounded up to what the mesh divides). chunk: at most so many tokens between
    two looks of the host. One prefill reads `prefill` prompts (0: as many as 4,096 tokens hold, but no more than slots).
    """

    LEAST_WIDTH = 128  # narrower buffers would save less than another program costs

    def __init__(
        self,
        model,
        *,
        max_prompt: int,
        max_new: int,
        num_slots: int,
        eos_ids: tuple[int, ...],
        pad_id: int,
        num_samples: int = 1,
        temperature: float = 1.0,
        top_k: int = 0,
        top_p: float = 1.0,
        chunk: int = 32,
        prefill: int = 0,
    ):
        for name, given, least in (("num_slots", num_slots, 1), ("max_new", max_new, 1), ("chunk", chunk, 1)):
            if given < least:
                raise ValueError(f"{name} is {given}; it must be {least} or more")
        self.model, self.max_new, self.pad_id = model, max_new, pad_id
        parts = 1 if model.layout is None else model.layout.parts("batch")
        self.chunk, self.num_samples = chunk, num_samples
        self.lengths = _buckets(max_prompt, least=32, step=2)
        self.sizes = _buckets(num_slots, least=8, step=4, multiple=parts)
        prefill = prefill or max(1, min(num_slots, 4096 // max_prompt))
        self.prefill_rows = -(-prefill // parts) * parts
        self._relay, self._prefill, self._admit, self._move = _programs(model)
        full = max_prompt + max_new
        widths = {full} | {w for w in (full // 2, full * 3 // 4) if w >= self.LEAST_WIDTH}
        multiple = models.cache_multiple(model)
        self.widths = tuple(sorted({-(-w // multiple) * multiple for w in widths}))
        self._empty = _beginning(model, max_new, pad_id)
        self._decode = _decoding(model, tuple(eos_ids), float(temperature), int(top_k), float(top_p))
        self.counts = dict(steps=0, slot_steps=0, prefills=0, chunks=0, moves=0)

    # -------------------------------------------------------------- what callers use

    def __call__(self, params, prompts: Prompts, key) -> Sample:
        """num_samples responses a prompt, as `decode.sample` orders them: row i belongs to prompt i // num_samples. Host arrays."""
        rows = len(prompts.tokens) * self.num_samples
        tokens = np.full((rows, self.max_new), self.pad_id, np.int32)
        mask, logp = np.zeros((rows, self.max_new), bool), np.zeros((rows, self.max_new), np.float32)
        for done in self.stream(params, prompts, key):
            num = len(done.tokens)
            tokens[done.row, :num], mask[done.row, :num], logp[done.row, :num] = done.tokens, True, done.logp
        return Sample(tokens, mask, logp)

    def stream(self, params, prompts: Prompts, key):
        """Yields a Finished for every response, as they end. `prompts` holds host arrays."""
        num_samples = self.num_samples
        texts = [row[real] for row, real in zip(np.asarray(prompts.tokens), np.asarray(prompts.mask), strict=True)]
        for place, text in enumerate(texts):
            if not 1 <= len(text) <= self.lengths[-1]:
                raise ValueError(
                    f"prompt {place} has {len(text)} tokens; from 1 to max_prompt {self.lengths[-1]} can be read"
                )
        index = np.asarray(prompts.index)
        params = self._relay(params)
        schedule = Schedule(len(texts) * num_samples, self.sizes)
        width = self._width(max(map(len, texts)) + 1)
        slots = self._empty(num=schedule.num_slots, width=width)
        store, stored = None, range(0)  # the questions whose prompts were read last
        filled = np.zeros(schedule.num_slots, int)  # positions that each slot has filled

        while schedule.busy or schedule.waiting:
            while (row := schedule.next_row()) is not None:
                question = row // num_samples
                if question not in stored:
                    stored = range(question, min(question + self.prefill_rows, len(texts)))
                    store = self._read(params, [texts[i] for i in stored])
                into, rows = schedule.admit(stored.stop * num_samples)
                questions = rows // num_samples
                slots = self._fill(
                    slots, store, into, questions - stored.start, key, index[questions], rows % num_samples
                )
                filled[into] = [len(texts[i]) for i in questions]
            kept = schedule.shrink()
            filled = filled if kept is None else filled[kept]
            longest = int(filled[schedule.holder >= 0].max())
            wider = self._width(longest + 1)
            if kept is not None or wider > width:
                width = wider if kept is not None else max(wider, width)
                rows = np.arange(schedule.num_slots) if kept is None else kept
                slots = self._move(slots, rows.astype(np.int32), width=width)
                self.counts["moves"] += 1
            steps = min(self.chunk, width - longest)
            slots, steps = self._decode(params, slots, schedule.stop_at(), steps)
            live, t, total, tokens, logp, steps = jax.device_get(
                (slots.live, slots.t, slots.cache.length, slots.tokens, slots.logp, steps)
            )
            filled = np.array(total, int)
            self.counts["chunks"] += 1
            self.counts["steps"] += int(steps)
            self.counts["slot_steps"] += int(steps) * schedule.num_slots
            for slot, row in schedule.release(~live):
                num = t[slot]
                yield Finished(row, tokens[slot, :num].copy(), logp[slot, :num].copy())

    # -------------------------------------------------------------- the host's side of the three functions

    def _width(self, needed: int) -> int:
        """The narrowest buffers that hold `needed` positions and, if there are such, another chunk."""
        return next((width for width in self.widths if width >= needed + self.chunk - 1), self.widths[-1])

    def _read(self, params, texts) -> Store:
        length = next(size for size in self.lengths if size >= max(map(len, texts)))
        tokens = np.zeros((self.prefill_rows, length), np.int32)
        lengths = np.ones(self.prefill_rows, np.int32)
        for row, text in enumerate(texts):
            tokens[row, : len(text)], lengths[row] = text, len(text)
        self.counts["prefills"] += 1
        return self._prefill(params, tokens, lengths)

    def _fill(self, slots, store, into, stored, key, questions, ks) -> Slots:
        """Padded to the number of slots with a target that is not there, so that one program serves any number."""
        num = len(slots.live)

        def padded(values, filler=0):
            return np.concatenate([values, np.full(num - len(values), filler)]).astype(np.int32)

        return self._admit(slots, store, padded(stored), padded(into, num), key, padded(questions), padded(ks))


class Schedule:
    """Which sample each slot works on: samples 0 to num_rows - 1, begun in that order. The host's bookkeeping, no device."""

    def __init__(self, num_rows: int, sizes: tuple[int, ...]):
        """sizes: the legal numbers of slots, ascending; the work begins with the last, or with fewer if there is less to do."""
        self.sizes, self.num_rows, self.begun = sizes, num_rows, 0
        self.holder = np.full(next((size for size in sizes if size >= num_rows), sizes[-1]), -1)

    @property
    def num_slots(self) -> int:
        return len(self.holder)

    @property
    def busy(self) -> int:
        return int((self.holder >= 0).sum())

    @property
    def waiting(self) -> int:
        return self.num_rows - self.begun

    def next_row(self) -> int | None:
        """The sample that a free slot would take; None where there is no such slot or no such sample."""
        return self.begun if self.waiting and self.busy < self.num_slots else None

    def admit(self, before: int):
        """(slots, samples) i64[n]: free slots and the samples below `before` that they take."""
        free = np.flatnonzero(self.holder < 0)[: min(before, self.num_rows) - self.begun]
        rows = self.begun + np.arange(len(free))
        self.holder[free] = rows
        self.begun += len(free)
        return free, rows

    def stop_at(self) -> int:
        """How many live slots are few enough to stop for: an eighth of them ended, or a smaller set of slots would do."""
        if self.waiting:
            return self.busy - max(1, self.num_slots // 8)
        return max((size for size in self.sizes if size < self.busy), default=0)

    def release(self, ended) -> list[tuple[int, int]]:
        """(slot, sample) of the busy slots that ended; they are free afterwards."""
        done = [(int(slot), int(self.holder[slot])) for slot in np.flatnonzero((self.holder >= 0) & ended)]
        self.holder[[slot for slot, _ in done]] = -1
        return done

    def shrink(self):
        """i32[n], the slots that become slots 0 to n - 1 of a smaller set; None while prompts wait or none would do."""
        num = next(size for size in self.sizes if size >= self.busy)
        if self.waiting or num == self.num_slots:
            return None
        kept = np.argsort(self.holder < 0, kind="stable")[:num]
        self.holder = self.holder[kept]
        return kept.astype(np.int32)


def _buckets(most: int, *, least: int, step: int, multiple: int = 1) -> tuple[int, ...]:
    """`most` and what dividing it by `step` gives, not below `least`; ascending multiples."""
    sizes = [most]
    while sizes[-1] > least:
        sizes.append(max(least, -(-sizes[-1] // step)))
    return tuple(sorted({-(-size // multiple) * multiple for size in sizes}))


# ------------------------------------------------------------------ the programs, which engines of one model share


def _places(model):
    """Slots' shardings, over the axes of "batch"; always the same, since another layout would be another program."""
    if model.layout is None:
        return None

    def over(*names):
        return model.layout.sharding(
            ("batch", *names), (model.layout.parts("batch"), model.arch.num_kv_heads, 1, 1)[: 1 + len(names)]
        )

    rows, table, buffers = over(), over(None), (over("kv_heads", None, None),) * model.arch.num_layers
    cache = models.Cache(buffers, buffers, rows)
    return Slots(cache, hidden=table, key=rows, t=rows, live=rows, tokens=table, logp=table)


@functools.lru_cache(maxsize=8)
def _programs(model):
    """relay, prefill, admit, move."""
    return (
        jax.jit(functools.partial(models.for_decoding, model)),
        jax.jit(functools.partial(_prefill, model)),
        jax.jit(_admit, donate_argnums=0, out_shardings=_places(model)),
        jax.jit(_move, static_argnames="width", out_shardings=_places(model)),
    )


@functools.lru_cache(maxsize=8)
def _beginning(model, max_new, pad_id):
    empty = functools.partial(_empty, model, max_new=max_new, pad_id=pad_id)
    return jax.jit(empty, static_argnames=("num", "width"), out_shardings=_places(model))


@functools.lru_cache(maxsize=8)
def _decoding(model, eos_ids, temperature, top_k, top_p):
    choice = functools.partial(choose, temperature=temperature, top_k=top_k, top_p=top_p)
    out = None if model.layout is None else (_places(model), model.layout.replicated)
    return jax.jit(functools.partial(_decode, model, choice, eos_ids), donate_argnums=1, out_shardings=out)


# ------------------------------------------------------------------ on the device


def _empty(model, *, num, width, max_new, pad_id) -> Slots:
    cache = models.empty_cache(model, num, width)
    return Slots(
        cache=cache.replace(length=jnp.zeros(num, jnp.int32)),
        hidden=jnp.zeros((num, model.arch.dim), jnp.dtype(model.compute_dtype)),
        key=jax.vmap(jax.random.key)(jnp.zeros(num, jnp.int32)),
        t=jnp.zeros(num, jnp.int32),
        live=jnp.zeros(num, bool),
        tokens=jnp.full((num, max_new), pad_id, jnp.int32),
        logp=jnp.zeros((num, max_new), jnp.float32),
    )


def _prefill(model, params, tokens, lengths) -> Store:
    """tokens i32[P, L] right-padded. What the padding leaves in the cache is overwritten before it can be seen."""
    batch, length = tokens.shape
    everything = jnp.ones((batch, length), bool)
    positions = jnp.broadcast_to(jnp.arange(length)[None], (batch, length))
    hidden, cache = models.forward(
        model, params, tokens, positions, everything, models.empty_cache(model, batch, length)
    )
    last = jnp.take_along_axis(hidden, (lengths - 1)[:, None, None], axis=1)[:, 0]
    return Store(cache, last, lengths)


def _admit(slots: Slots, store: Store, rows, targets, key, questions, ks) -> Slots:
    """Row rows[i] of the store into slot targets[i]; a target past the last slot is dropped."""

    def into(mine, theirs):
        return mine.at[targets].set(theirs, mode="drop")

    def copied(mine, theirs):
        length = min(mine.shape[2], theirs.shape[2])  # what a narrow slot cuts off is padding
        return mine.at[targets, :, :length].set(theirs[rows, :, :length], mode="drop")

    keys = jax.vmap(lambda question, k: jax.random.fold_in(jax.random.fold_in(key, question), k))(questions, ks)
    return slots.replace(
        cache=models.Cache(
            tuple(map(copied, slots.cache.k, store.cache.k)),
            tuple(map(copied, slots.cache.v, store.cache.v)),
            into(slots.cache.length, store.length[rows]),
        ),
        hidden=into(slots.hidden, store.hidden[rows]),
        key=into(slots.key, keys),
        t=into(slots.t, 0),
        live=into(slots.live, True),
    )


def _move(slots: Slots, rows, *, width) -> Slots:
    """The slots `rows`, as slots of their own with buffers of that width."""
    moved = jax.tree.map(lambda x: x[rows], slots)

    def fit(buffer):
        more = width - buffer.shape[2]
        return buffer[:, :, :width] if more <= 0 else jnp.pad(buffer, ((0, 0), (0, 0), (0, more), (0, 0)))

    k, v = (tuple(map(fit, buffers)) for buffers in (moved.cache.k, moved.cache.v))
    return moved.replace(cache=moved.cache.replace(k=k, v=v))


def _decode(model, choose, ends, params, slots: Slots, stop_at, chunk):
    """(slots, steps): tokens for all live slots until at most `stop_at` are live or `chunk` tokens were taken."""
    num, max_new = slots.tokens.shape

    def unfinished(state):
        step, slots = state
        return (step < chunk) & (slots.live.sum() > stop_at)

    def one(state):
        step, slots = state
        live, t, length = slots.live, slots.t, slots.cache.length
        keys = jax.vmap(jax.random.fold_in)(slots.key, t)
        token, logp = choose(models.unembed(model, params, slots.hidden), keys)
        place = jnp.where(live, t, max_new)  # past the end: dropped
        rows = jnp.arange(num)
        hidden, cache = models.forward(model, params, token[:, None], length[:, None], None, slots.cache)
        return step + 1, slots.replace(
            cache=cache.replace(length=jnp.where(live, cache.length, length)),
            hidden=hidden[:, 0],
            t=jnp.where(live, t + 1, t),
            live=live & ~(token[:, None] == jnp.asarray(ends, jnp.int32)[None]).any(axis=1) & (t + 1 < max_new),
            tokens=slots.tokens.at[rows, place].set(token, mode="drop"),
            logp=slots.logp.at[rows, place].set(logp, mode="drop"),
        )

    step, slots = jax.lax.while_loop(unfinished, one, (jnp.zeros((), jnp.int32), slots))
    return slots, step
