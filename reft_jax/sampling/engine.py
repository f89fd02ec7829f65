"""Continuous batching: a fixed number of slots decode together, and a slot whose response has ended takes the next prompt.

Responses differ in length by ten times, so a batch that waits for its longest wastes most of its steps. Here the device
runs three jitted functions and the host only schedules:

- `prefill` reads a few waiting prompts (right-padded to a bucket) into a store of keys and values;
- `admit` copies a store's rows into free slots, several times for several samples of one prompt, which is read once;
- `decode` takes every slot on, token by token, until enough of them have ended.

The slots' buffers are as wide as the longest response needs so far, in a few steps; when nothing waits any more and most
slots are free, the others move to a smaller set. What is sampled for (key, question, k) at response position t is a function
of these and the prompt: not of slots, neighbours, buckets or chunks. Before the work begins the parameters are laid out for
decoding (unstacked, in the compute dtype, on the mesh as `layout` says); that copy lives as long as the work.

With several processes each runs the same schedule: what the host decides on is replicated.
"""

import bisect
import dataclasses
import functools
import typing
from collections.abc import Callable

import flax.struct
import jax
import jax.numpy as jnp
import numpy as np

from reft_jax import models
from reft_jax.config.settings import WHOLE, Sampling
from reft_jax.sampling.choose import choose, first_seen, now_seen
from reft_jax.sampling.decode import check_given
from reft_jax.sampling.schedule import Schedule, buckets
from reft_jax.types import Prompts, Sample


class Slots(flax.struct.PyTreeNode):
    """The device's state: N slots, W positions each."""

    cache: models.Cache  # its length i32[N]: tokens whose keys and values are in it
    hidden: jax.Array  # [N, D] the state that emits the next token
    key: jax.Array  # key[N]
    seen: jax.Array  # bool[N, V] tokens of prompt and response, for a repetition penalty; without one [N, 0]
    t: jax.Array  # i32[N] response tokens so far, those given with the prompt included
    live: jax.Array  # bool[N]
    tokens: jax.Array  # i32[N, max_new]
    logp: jax.Array  # f32[N, max_new]


class Store(flax.struct.PyTreeNode):
    """Prompts that were read and wait for slots."""

    cache: models.Cache  # of L positions
    hidden: jax.Array  # [P, D]
    seen: jax.Array  # bool[P, V], or [P, 0]
    length: jax.Array  # i32[P]


class Look(typing.NamedTuple):
    """What the host sees between two chunks, the same in every process; fields as in Slots."""

    live: jax.Array
    t: jax.Array
    length: jax.Array
    tokens: jax.Array
    logp: jax.Array
    steps: jax.Array  # i32[] taken in the chunk


class Finished(typing.NamedTuple):
    row: int  # of the sample: question's place * num_samples + k
    # i32[n], the end-of-sequence token included; with a stop string, up to the token that completes it
    tokens: np.ndarray
    logp: np.ndarray  # f32[n]


class Engine:
    """Samples for prompts of at most max_prompt tokens, max_new tokens each. Compiled functions are kept with it.

    num_slots: how many responses decode together (rounded up to what the mesh divides). chunk: at most so many tokens between
    two looks of the host. One prefill reads `prefill` prompts (0: as many as 4,096 tokens hold, but no more than slots).
    layout: where parameters lie while decoding, see sharding.Layout.for_decoding. text: token ids -> str, for `response` and stop strings.
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
        sampling: Sampling = WHOLE,
        text: Callable[[list[int]], str] | None = None,
        layout: str = "as_trained",
        chunk: int = 32,
        prefill: int = 0,
    ):
        for name, given, least in (("num_slots", num_slots, 1), ("max_new", max_new, 1), ("chunk", chunk, 1)):
            if given < least:
                raise ValueError(f"{name} is {given}; it must be {least} or more")
        if sampling.stop and text is None:
            raise ValueError("sampling.stop needs `text`, which turns token ids into a string")
        if model.layout is not None:
            model = dataclasses.replace(model, layout=model.layout.for_decoding(layout))
        self.model, self.max_new, self.pad_id, self.sampling, self.text = model, max_new, pad_id, sampling, text
        parts = 1 if model.layout is None else model.layout.parts("batch")
        self.chunk, self.num_samples, self.max_prompt = chunk, num_samples, max_prompt
        full = max_prompt + max_new
        # the last for prompts with a response's beginning
        self.lengths = (*buckets(max_prompt, least=32, step=2), full)
        self.sizes = buckets(num_slots, least=8, step=4, multiple=parts)
        prefill = prefill or max(1, min(num_slots, 4096 // max_prompt))
        self.prefill_rows = -(-prefill // parts) * parts
        widths = {full} | {w for w in (full // 2, full * 3 // 4) if w >= self.LEAST_WIDTH}
        multiple = models.cache_multiple(model)
        self.widths = tuple(sorted({-(-w // multiple) * multiple for w in widths}))
        # What else the settings hold makes no other program, so engines of one model share these.
        shaping = dataclasses.replace(sampling, stop=(), max_new=0)
        penalty = dataclasses.replace(WHOLE, repetition_penalty=sampling.repetition_penalty)
        self._programs = _programs(model, penalty)
        self._prefill, self._admit, self._move, self._take, self._halt = self._programs
        self._relayers = _relayers(model)
        self._empty = _beginning(model, penalty, max_new, pad_id)
        self._decode = _decoding(model, tuple(eos_ids), shaping)
        self.counts = dict(steps=0, slot_steps=0, prefills=0, chunks=0, moves=0)

    @property
    def num_programs(self) -> int:
        """How many programs were compiled for this engine, and for those of the same model that share them."""
        jitted = (*self._relayers, *self._programs, self._empty, self._decode)
        return sum(function._cache_size() for function in jitted)

    def programs(self, params) -> dict[str, tuple]:
        """{name: (jitted function, arguments, what else of params and engine lies on the devices meanwhile)} at the largest shapes, to
        be lowered without arrays; `params` are shapes with shardings, and so is what comes back."""
        num, width, length = self.sizes[-1], self.widths[-1], self.lengths[-2]

        def placed(tree, places):
            if places is None:
                return tree
            return jax.tree.map(lambda x, place: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=place), tree, places)

        def ints(*shape):
            return jax.ShapeDtypeStruct(shape, jnp.int32)

        params = {name: params[name] for name in models.shapes(self.model)}
        laid = jax.eval_shape(functools.partial(models.for_decoding, self.model), params)
        laid = placed(laid, models.decoding_shardings(self.model))
        places, stored = _places(self.model)
        slots = placed(jax.eval_shape(lambda: self._empty(num=num, width=width)), places)
        prompts = ints(self.prefill_rows, length), ints(self.prefill_rows)
        store = placed(jax.eval_shape(self._prefill, laid, *prompts), stored)
        key, rows = jax.eval_shape(lambda: jax.random.key(0)), ints(num)
        blocks, rest = params["blocks"], {name: node for name, node in params.items() if name != "blocks"}
        before = laid | {"blocks": laid["blocks"][:-1]}  # the last layer is being laid out
        return dict(
            relay=(self._relayers[1], (blocks, ints()), dict(params=rest, laid=before)),
            prefill=(self._prefill, (laid, *prompts), dict(params=params, slots=slots, store=store)),
            admit=(self._admit, (slots, store, rows, rows, key, rows, rows, rows), dict(params=params, laid=laid)),
            decode=(self._decode, (laid, slots, 0, self.chunk), dict(params=params, store=store)),
        )

    # -------------------------------------------------------------- what callers use

    def __call__(self, params, prompts: Prompts, key, each: Callable[[Finished], None] | None = None) -> Sample:
        """num_samples responses a prompt, as `decode.sample` orders them: row i belongs to prompt i // num_samples. Host arrays.

        `each` is called with every response as it ends, while others are still being sampled.
        """
        rows = len(prompts.tokens) * self.num_samples
        tokens = np.full((rows, self.max_new), self.pad_id, np.int32)
        mask, logp = np.zeros((rows, self.max_new), bool), np.zeros((rows, self.max_new), np.float32)
        for done in self.stream(params, prompts, key):
            num = len(done.tokens)
            tokens[done.row, :num], mask[done.row, :num], logp[done.row, :num] = done.tokens, True, done.logp
            if each is not None:
                each(done)
        return Sample(tokens, mask, logp)

    def response(self, tokens: np.ndarray) -> str:
        """The text of a response's tokens, cut before the first stop string."""
        text = self.text(tokens.tolist())
        return text[: min([text.find(stop) for stop in self.sampling.stop if stop in text], default=len(text))]

    def stream(self, params, prompts: Prompts, key):
        """Yields a Finished for every response, as they end. `prompts` holds host arrays."""
        num_samples = self.num_samples
        texts = [row[real] for row, real in zip(np.asarray(prompts.tokens), np.asarray(prompts.mask), strict=True)]
        given = np.zeros(len(texts), int) if prompts.given is None else np.asarray(prompts.given)
        for place, (text, num) in enumerate(zip(texts, given, strict=True)):
            if not 1 <= len(text) - num <= self.max_prompt:
                legal = f"from 1 to max_prompt {self.max_prompt} can be read"
                raise ValueError(f"prompt {place} has {len(text) - num} tokens; {legal}")
        check_given(given, [len(text) for text in texts], self.max_new)
        index = np.asarray(prompts.index)
        params = self.relay(params)
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
                which = dict(questions=index[questions], ks=rows % num_samples, given=given[questions])
                slots = self._fill(slots, store, key, rows=questions - stored.start, targets=into, **which)
                filled[into] = [len(texts[i]) for i in questions]
            kept = schedule.shrink()
            filled = filled if kept is None else filled[kept]
            longest = int(filled[schedule.holder >= 0].max())
            wider = self._width(longest + 1)
            if kept is not None or wider > width:
                width = wider if kept is not None else max(wider, width)
                slots = self._moved(slots, np.arange(schedule.num_slots) if kept is None else kept, width)
            slots, look = self._decode(params, slots, schedule.stop_at(), min(self.chunk, width - longest))
            look = jax.device_get(look)
            filled = np.array(look.length, int)
            self.counts["chunks"] += 1
            self.counts["steps"] += int(look.steps)
            self.counts["slot_steps"] += int(look.steps) * schedule.num_slots
            ends, stopped = look.t.copy(), np.zeros(schedule.num_slots, bool)
            if self.sampling.stop:
                for slot in np.flatnonzero(schedule.holder >= 0):
                    question = schedule.holder[slot] // num_samples
                    before, first = texts[question], given[question]
                    new = look.tokens[slot, first : look.t[slot]]
                    if (num := self._stop(before[len(before) - first :], new)) is not None:
                        ends[slot], stopped[slot] = first + num, True
                if (stopped & look.live).any():
                    slots = self._halt(slots, stopped)
            for slot, row in schedule.release(~look.live | stopped):
                new = slice(given[row // num_samples], ends[slot])
                yield Finished(row, look.tokens[slot, new].copy(), look.logp[slot, new].copy())

    # -------------------------------------------------------------- the host's side of the three functions

    def relay(self, params) -> dict:
        """The parameters as decoding reads them, where it wants them: `models.for_decoding`, layer by layer."""
        rest, layer = self._relayers
        params = {name: params[name] for name in models.shapes(self.model)}
        blocks = params.pop("blocks")
        layers = tuple(layer(blocks, np.int32(i)) for i in range(self.model.arch.num_layers))
        return rest(params) | {"blocks": layers}

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

    def _fill(self, slots, store, key, *, rows, targets, questions, ks, given) -> Slots:
        """Padded to all slots or a quarter of them, with a target that is not there: two programs serve any number."""
        num = len(slots.live)
        size = next(size for size in (-(-num // 4), num) if size >= len(rows))

        def padded(values, filler=0):
            return np.concatenate([values, np.full(size - len(values), filler)]).astype(np.int32)

        return self._admit(
            slots, store, padded(rows), padded(targets, num), key, padded(questions), padded(ks), padded(given)
        )

    def _moved(self, slots, rows, width: int) -> Slots:
        """The slots `rows`, as slots of their own with buffers of that width: one buffer after the other, each freed when it has been
        read, so that no second cache is held."""
        self.counts["moves"] += 1
        rows = rows.astype(np.int32)

        def move(buffers, axis):
            out = []
            for buffer in buffers:
                out.append(self._move(buffer, rows, width=width, axis=axis))
                buffer.delete()
            return tuple(out)

        k, v = map(move, (slots.cache.k, slots.cache.v), models.slot_axes(self.model))
        rest = self._take(slots.replace(cache=slots.cache.replace(k=(), v=())), rows)
        return rest.replace(cache=rest.cache.replace(k=k, v=v))

    def _stop(self, before, new) -> int | None:
        """How many of the tokens `new` a response has that follows on `before` and ends with a stop string; None if there is none."""

        def ended(num):
            text = self.text([*before.tolist(), *new[:num].tolist()])
            return any(stop in text for stop in self.sampling.stop)

        if not ended(len(new)):
            return None
        return bisect.bisect_left(range(1, len(new)), True, key=ended) + 1


# ------------------------------------------------------------------ the programs, which engines of one model share


def _places(model):
    """(slots', store's) shardings, over the axes of "batch"; always the same, since another layout would be another program."""
    if model.layout is None:
        return None, None

    def over(*names):
        return model.layout.sharding(
            ("batch", *names), (model.layout.parts("batch"), model.arch.num_kv_heads, 1, 1)[: 1 + len(names)]
        )

    rows, table, buffers = over(), over(None), (over("kv_heads", None, None),) * model.arch.num_layers
    cache = models.Cache(buffers, buffers, rows)
    slots = Slots(cache, hidden=table, key=rows, seen=table, t=rows, live=rows, tokens=table, logp=table)
    return slots, Store(cache.replace(length=model.layout.replicated), hidden=table, seen=table, length=rows)


@functools.lru_cache(maxsize=8)
def _relayers(model):
    """What lays out the parameters outside the blocks, and one layer, for decoding."""
    places = models.decoding_shardings(model)
    rest = places and {name: node for name, node in places.items() if name != "blocks"}
    layer = places and places["blocks"][0]
    return (
        jax.jit(functools.partial(models.rest_for_decoding, model), out_shardings=rest),
        jax.jit(functools.partial(models.layer_for_decoding, model), out_shardings=layer),
    )


@functools.lru_cache(maxsize=8)
def _programs(model, sampling):
    """prefill, admit, move, take, halt."""
    slots, store = _places(model)
    buffer = slots and slots.cache.k[0]
    rest = slots and slots.replace(cache=slots.cache.replace(k=(), v=()))
    return (
        jax.jit(functools.partial(_prefill, model, sampling), out_shardings=store),
        jax.jit(functools.partial(_admit, models.slot_axes(model)), donate_argnums=0, out_shardings=slots),
        jax.jit(_move, static_argnames=("width", "axis"), out_shardings=buffer),
        jax.jit(lambda slots, rows: jax.tree.map(lambda x: x[rows], slots), out_shardings=rest),
        jax.jit(lambda slots, ended: slots.replace(live=slots.live & ~ended), donate_argnums=0, out_shardings=slots),
    )


@functools.lru_cache(maxsize=8)
def _beginning(model, sampling, max_new, pad_id):
    empty = functools.partial(_empty, model, sampling, max_new=max_new, pad_id=pad_id)
    return jax.jit(empty, static_argnames=("num", "width"), out_shardings=_places(model)[0])


@functools.lru_cache(maxsize=8)
def _decoding(model, eos_ids, sampling):
    out = None if model.layout is None else (_places(model)[0], model.layout.replicated)
    return jax.jit(functools.partial(_decode, model, sampling, eos_ids), donate_argnums=1, out_shardings=out)


# ------------------------------------------------------------------ on the device


def _empty(model, sampling, *, num, width, max_new, pad_id) -> Slots:
    cache, nothing = models.empty_cache(model, num, width), jnp.zeros((num, 0), jnp.int32)
    return Slots(
        cache=cache.replace(length=jnp.zeros(num, jnp.int32)),
        hidden=jnp.zeros((num, model.arch.dim), jnp.dtype(model.compute_dtype)),
        key=jax.vmap(jax.random.key)(jnp.zeros(num, jnp.int32)),
        seen=first_seen(sampling, nothing, nothing > 0, model.num_rows),
        t=jnp.zeros(num, jnp.int32),
        live=jnp.zeros(num, bool),
        tokens=jnp.full((num, max_new), pad_id, jnp.int32),
        logp=jnp.zeros((num, max_new), jnp.float32),
    )


def _prefill(model, sampling, params, tokens, lengths) -> Store:
    """tokens i32[P, L] right-padded. What the padding leaves in the cache is overwritten before it can be seen."""
    batch, length = tokens.shape
    everything = jnp.ones((batch, length), bool)
    positions = jnp.broadcast_to(jnp.arange(length)[None], (batch, length))
    cache = models.empty_cache(model, batch, length)
    hidden, cache = models.forward(model, params, tokens, positions, everything, cache)
    last = jnp.take_along_axis(hidden, (lengths - 1)[:, None, None], axis=1)[:, 0]
    return Store(cache, last, first_seen(sampling, tokens, positions < lengths[:, None], model.num_rows), lengths)


def _admit(axes, slots: Slots, store: Store, rows, targets, key, questions, ks, given) -> Slots:
    """Row rows[i] of the store into slot targets[i]; a target past the last slot is dropped."""

    def into(mine, theirs):
        return mine.at[targets].set(theirs, mode="drop")

    def copied(mine, theirs, axis):
        length = min(mine.shape[axis], theirs.shape[axis])  # what a narrow slot cuts off is padding
        there = (slice(None),) * (axis - 1) + (slice(length),)
        return mine.at[targets, *there].set(theirs[rows, *there], mode="drop")

    def all_copied(mine, theirs, axis):
        return tuple(copied(*layer, axis) for layer in zip(mine, theirs, strict=True))

    keys = jax.vmap(lambda question, k: jax.random.fold_in(jax.random.fold_in(key, question), k))(questions, ks)
    return slots.replace(
        cache=models.Cache(
            all_copied(slots.cache.k, store.cache.k, axes[0]),
            all_copied(slots.cache.v, store.cache.v, axes[1]),
            into(slots.cache.length, store.length[rows]),
        ),
        hidden=into(slots.hidden, store.hidden[rows]),
        key=into(slots.key, keys),
        seen=into(slots.seen, store.seen[rows]),
        t=into(slots.t, given),
        live=into(slots.live, True),
    )


def _move(buffer, rows, *, width, axis):
    """buffer[rows], cut or padded to `width` positions, which lie along `axis`."""
    more = width - buffer.shape[axis]
    moved = jax.lax.slice_in_dim(buffer, 0, min(width, buffer.shape[axis]), axis=axis)[rows]
    return moved if more <= 0 else jnp.pad(moved, [(0, more if i == axis else 0) for i in range(4)])


def _decode(model, sampling, ends, params, slots: Slots, stop_at, chunk) -> tuple[Slots, Look]:
    """Tokens for all live slots until at most `stop_at` are live or `chunk` tokens were taken."""
    num, max_new = slots.tokens.shape

    def unfinished(state):
        step, slots = state
        return (step < chunk) & (slots.live.sum() > stop_at)

    def one(state):
        step, slots = state
        live, t, length = slots.live, slots.t, slots.cache.length
        keys = jax.vmap(jax.random.fold_in)(slots.key, t)
        logits = models.unembed(model, params, slots.hidden)
        token, logp = choose(logits, keys, sampling, ends=ends, t=t, seen=slots.seen)
        place = jnp.where(live, t, max_new)  # past the end: dropped
        rows = jnp.arange(num)
        hidden, cache = models.forward(model, params, token[:, None], length[:, None], None, slots.cache)
        return step + 1, slots.replace(
            cache=cache.replace(length=jnp.where(live, cache.length, length)),
            hidden=hidden[:, 0],
            seen=now_seen(sampling, slots.seen, token),
            t=jnp.where(live, t + 1, t),
            live=live & ~(token[:, None] == jnp.asarray(ends, jnp.int32)[None]).any(axis=1) & (t + 1 < max_new),
            tokens=slots.tokens.at[rows, place].set(token, mode="drop"),
            logp=slots.logp.at[rows, place].set(logp, mode="drop"),
        )

    step, slots = jax.lax.while_loop(unfinished, one, (jnp.zeros((), jnp.int32), slots))
    return slots, Look(slots.live, slots.t, slots.cache.length, slots.tokens, slots.logp, step)
