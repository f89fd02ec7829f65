"""The slot engine: sample for sample what the plain sampler gives, whatever the slots, and a schedule that loses nothing."""

import dataclasses
import functools

import hypothesis
import jax
import jax.numpy as jnp
import numpy as np
import pytest
import transformers
from hypothesis import strategies as st

from reft_jax import models
from reft_jax.config.settings import WHOLE
from reft_jax.sampling import decode
from reft_jax.sampling.engine import Engine
from reft_jax.sampling.schedule import Schedule
from reft_jax.types import Prompts
from tests import families, tiny
from tests.processes import together

MAX_PROMPT, MAX_NEW = 11, 9
KEY = jax.random.key(3)


def ragged(num, vocab, *, longest=MAX_PROMPT, seed=0) -> Prompts:
    """Prompts of 1 to `longest` tokens, the first as long as can be; indices that are not their places."""
    rng = np.random.default_rng(seed)
    tokens, mask = np.zeros((num, longest), np.int32), np.zeros((num, longest), bool)
    for row in range(num):
        length = longest if row == 0 else rng.integers(1, longest + 1)
        tokens[row, longest - length :] = rng.integers(2, vocab, length)
        mask[row, longest - length :] = True
    return Prompts(tokens, mask, np.arange(num, dtype=np.int32)[::-1] * 7)


def plain(model, params, prompts, *, num_samples=1, eos_ids=(1,), max_new=MAX_NEW, sampling=WHOLE):
    sample = functools.partial(
        decode.sample,
        model,
        max_new=max_new,
        sampling=sampling,
        eos_ids=eos_ids,
        pad_id=0,
        num_samples=num_samples,
    )
    return jax.device_get(jax.jit(sample)(params, prompts, KEY))


def engine(model, **changes):
    settings = dict(max_prompt=MAX_PROMPT, max_new=MAX_NEW, num_slots=4, eos_ids=(1,), pad_id=0)
    return Engine(model, **settings | changes)


def same(ours, theirs):
    np.testing.assert_array_equal(ours.mask, theirs.mask)
    np.testing.assert_array_equal(ours.tokens, theirs.tokens)
    np.testing.assert_allclose(ours.logp, theirs.logp, atol=2e-5)


ENDS = (1, 2, 3, 4)  # of 24 tokens: responses of very different lengths


@functools.cache
def expected(num_samples):
    model = tiny.model()
    return plain(model, tiny.params(model), ragged(13, tiny.VOCAB), num_samples=num_samples, eos_ids=ENDS)


@pytest.mark.parametrize("num_samples", [1, 3])
@pytest.mark.parametrize("num_slots, chunk, prefill", [(1, 1, 1), (3, 64, 2), (8, 5, 8), (16, 2, 3), (64, 64, 64)])
def test_samples_are_the_plain_sampler_s_for_any_slots_and_chunks(num_slots, chunk, prefill, num_samples):
    model = tiny.model()
    prompts, theirs = ragged(13, tiny.VOCAB), expected(num_samples)
    lengths = theirs.mask.sum(1)
    assert lengths.min() == 1 and lengths.max() == MAX_NEW  # an end at the first token, and one at the limit
    machine = engine(model, num_slots=num_slots, chunk=chunk, prefill=prefill, eos_ids=ENDS, num_samples=num_samples)
    ours = machine(tiny.params(model), prompts, KEY)
    same(ours, theirs)
    assert machine.counts["prefills"] == -(-13 // prefill)  # a prompt is read once for all its samples
    assert machine.counts["slot_steps"] >= lengths.sum()


@pytest.mark.parametrize("chunk", [1, 3, 32])
def test_samples_are_the_same_while_buffers_grow_and_shrink(chunk, monkeypatch):
    monkeypatch.setattr(Engine, "LEAST_WIDTH", 1)
    model = tiny.model()
    machine = engine(model, num_slots=9, chunk=chunk, eos_ids=ENDS, num_samples=3)
    assert machine.widths == (10, 15, 20)
    same(machine(tiny.params(model), ragged(13, tiny.VOCAB), KEY), expected(3))
    assert machine.counts["moves"] > 1 or chunk == 32
    short = jax.tree.map(lambda x: x[1:], ragged(13, tiny.VOCAB, longest=4))
    settings = dict(eos_ids=ENDS, num_samples=2)
    theirs = plain(model, tiny.params(model), short, **settings)
    same(engine(model, num_slots=3, chunk=chunk, **settings)(tiny.params(model), short, KEY), theirs)


@pytest.mark.parametrize("where", [*(pytest.param(name, marks=pytest.mark.slow) for name in ("data", "fsdp")), "mixed"])
@pytest.mark.parametrize("layout", ["replicated", "tensor", "as_trained"])
def test_samples_are_the_same_on_eight_devices(where, layout, capfd):
    model = tiny.model(where)
    machine = engine(model, num_slots=8, eos_ids=ENDS, num_samples=3, layout=layout)
    same(machine(tiny.params(model), ragged(13, tiny.VOCAB), KEY), expected(3))
    if (
        layout != "as_trained"
    ):  # there the table of embeddings is split in two ways, and XLA gathers it anew for every token
        assert "rematerialization" not in capfd.readouterr().err


@pytest.mark.slow
@pytest.mark.parametrize("layout", ["replicated", "tensor"])
def test_samples_are_the_same_with_two_processes_of_two_devices(layout, tmp_path):
    same(together(layout, tmp_path), expected(3))


def test_where_parameters_lie_while_decoding():
    model = tiny.model("mixed")
    laid = {how: engine(model, layout=how).relay(tiny.params(model)) for how in ("replicated", "tensor", "as_trained")}

    def parts(how, name):  # ways that the layer's matrix is split
        return laid[how]["blocks"][0]["mlp"][name]["kernel"].sharding.shard_shape((16, 24))

    assert parts("as_trained", "up") == (8, 12)
    assert parts("replicated", "up") == (16, 12)
    assert parts("tensor", "up") == (16, 6)
    assert engine(model, layout="tensor")._empty(num=4, width=128).tokens.sharding.shard_shape((4, 9)) == (2, 9)


# Learned positions, a parallel block, windows and caps, two rotations; the others (tests/test_families.py) have parts of these.
@pytest.mark.parametrize(
    "case", ["gpt2", "gemma3_text", *(pytest.param(name, marks=pytest.mark.slow) for name in ("codegen", "gemma2"))]
)
def test_samples_are_the_plain_sampler_s_for_every_kind_of_family(case, tmp_path):
    name, arguments = families.CASES[case]
    getattr(transformers, name)(**arguments).save_pretrained(tmp_path)
    model = models.Model(models.read_config(tmp_path))
    params = jax.tree.map(lambda x: x * 4 if x.ndim > 1 else x, models.init(model, jax.random.key(0)))
    prompts = ragged(5, families.VOCAB)
    theirs = plain(model, params, prompts, eos_ids=(1, 2, 3))
    same(engine(model, num_slots=2, eos_ids=(1, 2, 3))(params, prompts, KEY), theirs)


@pytest.mark.parametrize(
    "settings",
    [
        dict(temperature=0.0),
        dict(temperature=0.7, top_k=5),
        dict(top_p=0.8),
        dict(min_p=0.2, forbidden=(5, 7, 9)),
        dict(repetition_penalty=1.7, min_new=4),
    ],
)
def test_token_choice_is_the_plain_sampler_s(settings):
    model = tiny.model()
    params, prompts = tiny.params(model), ragged(6, tiny.VOCAB)
    sampling = dataclasses.replace(WHOLE, **settings)
    theirs = plain(model, params, prompts, eos_ids=ENDS, sampling=sampling, num_samples=2)
    same(engine(model, eos_ids=ENDS, sampling=sampling, num_samples=2)(params, prompts, KEY), theirs)


def spelled(ids):
    """A text for tests: a letter a token."""
    return "".join(chr(97 + i) for i in ids)


@pytest.mark.parametrize("chunk", [1, 3, 32])
def test_a_response_is_cut_exactly_at_a_stop_string(chunk):
    model = tiny.model()
    params, prompts, stops = tiny.params(model), ragged(13, tiny.VOCAB), ("k", "hh", "db", "jf", "ha", "w")
    theirs = plain(model, params, prompts, eos_ids=(1,), num_samples=2)
    sampling = dataclasses.replace(WHOLE, stop=stops)
    machine = engine(model, sampling=sampling, text=spelled, chunk=chunk, num_samples=2)
    ours = machine(params, prompts, KEY)
    cut = 0
    for row, (tokens, mask) in enumerate(zip(theirs.tokens, theirs.mask, strict=True)):
        full = spelled(tokens[mask])
        ends = [full.index(stop) + len(stop) for stop in stops if stop in full]
        num = min(ends, default=len(full))
        cut += num < len(full)
        assert ours.mask[row].sum() == num and spelled(ours.tokens[row, :num]) == full[:num]
        np.testing.assert_allclose(ours.logp[row, :num], theirs.logp[row, :num], atol=2e-5)
        first = min([full.index(stop) for stop in stops if stop in full[:num]], default=num)
        assert machine.response(ours.tokens[row, :num]) == full[:first]
    assert 4 < cut < 26


def test_stop_strings_need_a_text():
    with pytest.raises(ValueError, match="token ids into a string"):
        engine(tiny.model(), sampling=dataclasses.replace(WHOLE, stop=("a",)))


@pytest.mark.parametrize("stop", [(), ("k", "hh", "db")])
def test_responses_go_on_where_they_were_left_in_any_slot(stop):
    model, sampling = tiny.model(), dataclasses.replace(WHOLE, stop=stop)
    machine = engine(model, num_slots=3, eos_ids=ENDS, sampling=sampling, text=spelled)
    prompts, params = ragged(13, tiny.VOCAB), tiny.params(model)
    whole = machine(params, prompts, KEY)
    lengths = whole.mask.sum(1)
    given = np.arange(13) % lengths
    tokens, mask = np.zeros((13, MAX_PROMPT + MAX_NEW), np.int32), np.zeros((13, MAX_PROMPT + MAX_NEW), bool)
    for row, num in enumerate(given):
        text = [*prompts.tokens[row][prompts.mask[row]], *whole.tokens[row, :num]]
        tokens[row, len(tokens[row]) - len(text) :], mask[row, len(tokens[row]) - len(text) :] = text, True
    rest = machine(params, Prompts(tokens, mask, prompts.index, given.astype(np.int32)), KEY)
    for row, num in enumerate(given):
        left = lengths[row] - num
        assert rest.mask[row].sum() == left
        np.testing.assert_array_equal(rest.tokens[row, :left], whole.tokens[row, num : lengths[row]])
        np.testing.assert_allclose(rest.logp[row, :left], whole.logp[row, num : lengths[row]], atol=2e-5)


def test_responses_are_handed_over_while_others_are_sampled():
    model, seen = tiny.model(), []
    machine = engine(model, num_slots=3, eos_ids=ENDS, chunk=2)
    sample = machine(
        tiny.params(model),
        ragged(13, tiny.VOCAB),
        KEY,
        each=lambda done: seen.append((done.row, machine.counts["chunks"])),
    )
    assert sorted(row for row, _ in seen) == list(range(13)) and seen[0][1] < seen[-1][1]
    assert sample.mask.any(1).all()


def test_one_new_token():
    model = tiny.model()
    params, prompts = tiny.params(model), ragged(6, tiny.VOCAB)
    ours = engine(model, max_new=1)(params, prompts, KEY)
    same(ours, plain(model, params, prompts, max_new=1))
    assert ours.mask.all()


def test_bfloat16_decoding_reads_what_scoring_reads():
    model = tiny.model(compute_dtype="bfloat16")
    params = tiny.params(model)
    laid = models.for_decoding(model, params)
    assert laid["blocks"][1]["attention"]["q"]["kernel"].dtype == jnp.bfloat16
    assert laid["norm"]["scale"].dtype == jnp.float32
    prompts = ragged(6, tiny.VOCAB)
    ours, theirs = engine(model, eos_ids=ENDS)(params, prompts, KEY), plain(model, params, prompts, eos_ids=ENDS)
    np.testing.assert_array_equal(ours.tokens, theirs.tokens)


@pytest.mark.parametrize("where", ["one", "mixed"])
def test_programs_are_compiled_once_for_a_whole_run(where):
    model = tiny.model(where)
    machine, params = engine(model, num_slots=16, eos_ids=ENDS), tiny.params(model)
    counts = [machine.num_programs]
    for seed in range(3):
        machine(params, ragged(40, tiny.VOCAB, seed=seed), KEY)
        counts.append(machine.num_programs)
    assert len(machine.sizes) == 2 and counts[1] - counts[0] <= 12 and counts[3] == counts[2]


@pytest.mark.parametrize("lengths, named", [([3, 0, 2], "prompt 1 has 0"), ([3, 12], "prompt 1 has 12")])
def test_prompts_that_cannot_be_read_are_refused(lengths, named):
    mask = np.arange(12)[None] >= 12 - np.array(lengths)[:, None]
    prompts = Prompts(np.full(mask.shape, 5, np.int32), mask, np.arange(len(lengths), dtype=np.int32))
    model = tiny.model()
    with pytest.raises(ValueError, match=named):
        engine(model)(tiny.params(model), prompts, KEY)


@hypothesis.settings(deadline=None, derandomize=True, database=None, max_examples=150)
@hypothesis.given(
    sizes=st.sets(st.integers(1, 30), min_size=1, max_size=4).map(lambda sizes: tuple(sorted(sizes))),
    total=st.integers(1, 90),
    num_samples=st.integers(1, 7),
    rng=st.randoms(use_true_random=False),
)
def test_a_schedule_begins_every_sample_once_in_order_and_shares_no_slot(sizes, total, num_samples, rng):
    schedule = Schedule(total, sizes)
    begun, ended = [], []
    while schedule.busy or schedule.waiting:
        while (row := schedule.next_row()) is not None:
            before = set(schedule.holder[schedule.holder >= 0])
            stop = (
                row // num_samples + rng.randint(1, 3)
            ) * num_samples  # samples of the prompts that are read by then
            slots, rows = schedule.admit(stop)
            assert len(slots) == len(set(slots)) and max(rows) < min(stop, total) and not before & set(rows)
            assert before | set(rows) == set(schedule.holder[schedule.holder >= 0])
            begun += list(rows)
        assert not schedule.waiting or schedule.busy == schedule.num_slots
        holding = schedule.holder.copy()
        if (kept := schedule.shrink()) is not None:
            assert not schedule.waiting and schedule.num_slots in sizes and schedule.num_slots < len(holding)
            np.testing.assert_array_equal(holding[kept], schedule.holder)
            assert set(holding) - {-1} == set(schedule.holder) - {-1}
        assert 0 <= schedule.stop_at() < schedule.busy
        over = np.array([rng.random() < 0.3 for _ in range(schedule.num_slots)])
        expected_rows = [int(r) for r, o in zip(schedule.holder, over, strict=True) if o and r >= 0]
        done = schedule.release(over)
        assert [row for _, row in done] == expected_rows
        ended += expected_rows
    assert begun == list(range(total)) and sorted(ended) == begun
