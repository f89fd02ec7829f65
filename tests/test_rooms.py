"""One suite for every file of a room of choices, found by listing the folder: whoever adds a file is looked at without another edit."""

import ast
import dataclasses
import importlib
import inspect

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from reft_jax import masked
from reft_jax.config import choices, records
from reft_jax.config.settings import OUTPUTS, Data
from reft_jax.data.records import Record
from reft_jax.errors import InputError
from reft_jax.losses import objective
from reft_jax.rewards.matchers.base import KINDS, Matcher
from reft_jax.rewards.score import Grade
from reft_jax.rewards.total import Responses, total
from reft_jax.types import COLUMNS, Batch, Outputs, Prompts, Rollout, Sample
from tests import reference, tiny

FILES = [(room, name) for room in choices.ROOMS for name in choices.names(room)]
IDS = [f"{room}/{name}" for room, name in FILES]
B, R, LENGTHS = 8, 6, [6, 3, 4, 5, 2, 6, 1, 4]
MASK = tiny.lengths_mask(LENGTHS, R, left=False)
NO_JAX = ("rewards/terms", "rewards/matchers", "tasks")
NEEDED = dict(stages=dict(init_from="random", epochs=1, batch_size=8, optim=dict(lr=1.0), checkpoints=dict(a="random"),
                          mode="online", sample_from="warmup", ppo=dict(minibatch_size=8)),
              optim=dict(lr=1e-3))  # fmt: skip


def of(room: str) -> list[str]:
    return list(choices.names(room))


def record_of(room: str, name: str):
    """The file's record with its defaults, and what has none."""
    cls = choices.load(room, name)
    known = {key: value for key, value in NEEDED.get(room, {}).items() if key in records.keys(cls)}
    if name == "self_train":
        known.pop("sample_from")
    return records.build(cls, known, name)


# ------------------------------------------------------------------ every file


@pytest.mark.parametrize(("room", "name"), FILES, ids=IDS)
def test_a_file_says_what_it_is_and_stands_on_what_is_below_it(room, name):
    path = choices.PACKAGE / room / f"{name}.py"
    tree = ast.parse(path.read_text())
    assert len(ast.get_docstring(tree).partition("\n")[0]) >= 12
    if room in ("losses", "advantages", "optim", "optim/schedules"):
        assert "arXiv" in ast.get_docstring(tree), "the docstring names no paper"
    imported = {node.module for node in ast.walk(tree) if isinstance(node, ast.ImportFrom) and node.module}
    imported |= {alias.name for node in ast.walk(tree) if isinstance(node, ast.Import) for alias in node.names}
    above = {"stages", "training", "rollouts", "run", "recipe", "prepare", "main"}
    if room != "stages":
        assert not {one for one in imported if one.startswith("reft_jax.") and one.split(".")[1] in above}
    if room in NO_JAX:
        assert not {one for one in imported if one.split(".")[0] in ("jax", "flax")}


@pytest.mark.parametrize(("room", "name"), [(r, n) for r, n in FILES if r in choices.RECORDS])
def test_a_record_builds_from_its_defaults_says_its_ranges_and_is_a_key(room, name):
    record = record_of(room, name)
    assert hash(record) == hash(record_of(room, name)) and record == record_of(room, name)
    for field in records.fields(type(record)):
        if field.kind == "value" and field.hint in (int, float):
            assert any(field.about.get(key) is not None for key in ("low", "high", "above", "one_of")) or field.key in (
                "weight",
            ), f"{field.key} has no range"


# ------------------------------------------------------------------ losses


SIZES = dict(B=B, P=2, R=R, T=2 + R, S=2 + R)


def batch_and_outputs(fill, seed=0):
    """A random Batch with every column, and random Outputs by name; `fill` where the mask is False."""
    rng = np.random.default_rng(seed)

    def numbers(mean=0.0, std=1.0):
        return jnp.asarray(np.where(MASK, rng.normal(mean, std, MASK.shape), fill).astype(np.float32))

    columns = {}
    for name, column in COLUMNS.items():
        shape = tuple(SIZES[axis] for axis in column.axes)
        if column.axes == "BR" and column.dtype == "float32":
            columns[name] = (
                jnp.abs(numbers()) if name == "weights" else numbers(*((-2.0, 0.3) if "logp" in name else ()))
            )
        else:
            columns[name] = jnp.asarray(rng.integers(0, 2, shape)).astype(column.dtype)
    columns |= dict(own=jnp.arange(B) % 2 == 0, right=jnp.arange(B) % 3 == 0)
    outputs = dict(logp=numbers(-2.0, 0.3), entropy=jnp.abs(numbers()), values=numbers(), ref_logp=numbers(-2.0, 0.3))
    outputs |= dict(ref_kl=jnp.abs(numbers()), attention_row=jnp.abs(numbers()))
    outputs |= dict(right_logits=jnp.asarray(rng.normal(size=B).astype(np.float32)))
    outputs |= dict(hidden=jnp.where(MASK[..., None], jnp.asarray(rng.normal(size=(B, R, 5)).astype(np.float32)), fill))
    assert (
        outputs.keys() == {field.name for field in dataclasses.fields(Outputs)} == {*OUTPUTS, "values", "right_logits"}
    )
    return Batch(None, jnp.zeros(MASK.shape, jnp.int32), jnp.asarray(MASK), columns), outputs


def whole(record, batch, how="token"):
    return record.whole(batch, how) if hasattr(record, "whole") else batch


def loss_of(record, outputs, batch, how="token"):
    return objective([record], Outputs(**outputs), whole(record, batch, how), masked.Mean(batch.mask, how))


def moved_settings(record):
    """The record with each number, choice and switch moved by itself, in records within it too."""
    for field in records.fields(type(record)):
        value = getattr(record, field.name)
        if field.about.get("one_of"):
            moved = [one for one in field.about["one_of"] if one != value]
        elif isinstance(value, bool):
            moved = [not value]
        elif field.hint in (int, float) and field.name not in ("coef", "weight"):
            moved = [value * 0.5 if value else 0.3]
        elif field.kind == "record":
            moved = [value, *moved_settings(value)]
            moved = [one for first in moved for one in [first, *moved_settings(first)]]  # two at a time
        else:
            moved = []
        yield from (dataclasses.replace(record, **{field.name: one}) for one in dict.fromkeys(moved) if one != value)


def legal(record) -> bool:
    within = [getattr(record, field.name) for field in records.fields(type(record)) if field.kind == "record"]
    return not (hasattr(record, "check") and list(record.check())) and all(map(legal, within))


def variants(room: str):
    """(name, record) of a room's files: with their defaults, and moved off them as far as that is legal."""
    for name in of(room):
        record = record_of(room, name)
        yield from ((name, one) for one in [record, *moved_settings(record)] if legal(one))


def oracle_of(room: str, name: str):
    try:
        return importlib.import_module(f"tests.oracles.{room}.{name}")
    except ModuleNotFoundError as error:
        pytest.fail(
            f"{room}/{name} has no oracle, tests/oracles/{room}/{name}.py (tests/oracles/__init__.py says what it is): {error}"
        )


@pytest.mark.parametrize("how", ["token", "sequence"])
@pytest.mark.parametrize(("name", "record"), list(variants("losses")))
def test_a_loss_is_its_oracle_s(name, record, how):
    batch, outputs = batch_and_outputs(np.nan)
    got, _ = loss_of(dataclasses.replace(record, coef=1.0), outputs, batch, how)
    host = jax.device_get((batch, outputs))
    np.testing.assert_allclose(got, oracle_of("losses", name).loss(record, *host, how), rtol=2e-5)


@pytest.mark.parametrize("name", of("losses"))
def test_a_loss_does_not_see_what_the_mask_excludes_and_has_finite_gradients(name):
    record, found = record_of("losses", name), []
    for fill in (0.0, np.nan):
        batch, outputs = batch_and_outputs(fill)
        (loss, metrics), grads = jax.value_and_grad(lambda out, b=batch: loss_of(record, out, b), has_aux=True)(outputs)
        assert loss.shape == () and loss.dtype == jnp.float32 and np.isfinite(loss)
        assert all(np.isfinite(value) for value in metrics.values())
        moved = {key for key, grad in grads.items() if np.abs(np.where(np.isnan(grad), 0, grad)).sum() > 0}
        assert moved and moved <= set(record.needs), f"it reads {moved}, and says {record.needs}"
        real = {key: np.where(MASK, grads[key], 0) if grads[key].ndim == 2 else grads[key] for key in moved}
        assert all(np.isfinite(grad).all() for grad in real.values())
        found.append((float(loss), {key: np.asarray(grad) for key, grad in real.items()}))
    assert found[0][0] == found[1][0]
    for key, grad in found[0][1].items():
        np.testing.assert_array_equal(grad, found[1][1][key])


@pytest.mark.parametrize("name", of("losses"))
def test_a_loss_reads_the_columns_that_it_names_and_is_traced_once(name):
    record, (batch, outputs) = record_of("losses", name), batch_and_outputs(0.0)
    allowed, traces, batch = {"mask", "tokens", "weights", *record.reads}, [], whole(record, batch)

    class Watched:
        def __getattr__(self, key):
            assert key in allowed, f"it reads {key}, and says {record.reads}"
            return getattr(batch, key)

    @jax.jit
    def compute(outputs):
        traces.append(1)
        return objective([record], Outputs(**outputs), Watched(), masked.Mean(batch.mask, "token"))[0]

    compute(outputs)
    compute(jax.tree.map(lambda x: x + 0.1, outputs))
    assert len(traces) == 1


@pytest.mark.parametrize(
    "name", [name for name in of("losses") if record_of("losses", name).together in ("token", "row")]
)
def test_a_loss_is_the_same_for_every_split_of_the_batch(name):
    record, (batch, outputs) = record_of("losses", name), batch_and_outputs(0.0)
    rows, batch = record.together == "row", whole(record, batch)

    def part_of(some, outputs):
        return float(objective([record], Outputs(**outputs), some, masked.Mean(some.mask, "token"))[0])

    expected = part_of(batch, outputs)
    for part in (2, 4):
        found, sizes = [], []
        for first in range(part):
            chosen = slice(first, None, part)
            some, seen = jax.tree.map(lambda x, chosen=chosen: x[chosen], (batch, outputs))
            found.append(part_of(some, seen))
            sizes.append(len(MASK[chosen]) if rows else MASK[chosen].sum())
        np.testing.assert_allclose(np.dot(found, sizes) / np.sum(sizes), expected, rtol=1e-5)


# ------------------------------------------------------------------ advantages


def rollout(fill, values=True, seed=0):
    rng = np.random.default_rng(seed)

    def numbers(mean=0.0, std=1.0):
        return jnp.asarray(np.where(MASK, rng.normal(mean, std, MASK.shape), fill).astype(np.float32))

    prompts = Prompts(jnp.zeros((B, 2), jnp.int32), jnp.ones((B, 2), bool), jnp.arange(B, dtype=jnp.int32))
    sample = Sample(jnp.zeros((B, R), jnp.int32), jnp.asarray(MASK), numbers(-2.0))
    logp, ref_logp, critic, entropy = numbers(-2.0), numbers(-2.0), numbers(), numbers()
    scores = jnp.asarray(rng.choice(np.float32([0, 0.1, 1]), B))
    return Rollout(prompts, sample, logp, ref_logp, critic if values else None, entropy, scores, 4)


@pytest.mark.parametrize("name", of("advantages"))
def test_an_advantage_does_not_see_what_the_mask_excludes(name):
    record = record_of("advantages", name)
    critic = getattr(record, "critic", None) is not None
    found = [jax.jit(record)(rollout(fill, values=critic)) for fill in (0.0, np.nan)]
    for adv, returns, metrics in found:
        assert adv.shape == (B, R) and adv.dtype == jnp.float32 and np.isfinite(adv).all()
        assert (np.asarray(adv)[~MASK] == 0).all() and (returns is not None) == critic
        assert all(value.shape == () and np.isfinite(value) for value in metrics.values())
    jax.tree.map(np.testing.assert_array_equal, *found)
    assert np.abs(found[0][0]).sum() > 0


@pytest.mark.parametrize(("name", "record"), list(variants("advantages")))
def test_an_advantage_is_its_oracle_s(name, record):
    given = rollout(np.nan, values=getattr(record, "critic", None) is not None)
    adv, returns, _ = jax.jit(record)(given)
    expected = oracle_of("advantages", name).advantage(record, jax.device_get(given))
    np.testing.assert_allclose(adv, expected[0], rtol=1e-4, atol=2e-5)
    assert (returns is None) == (expected[1] is None)
    if returns is not None:
        np.testing.assert_allclose(returns, expected[1], rtol=1e-4, atol=2e-5)


@pytest.mark.parametrize(
    "name", [n for n in of("advantages") if getattr(choices.load("advantages", n), "compares", False)]
)
def test_an_advantage_that_compares_gives_equal_answers_nothing(name):
    same = rollout(0.0, values=False).replace(scores=jnp.ones(B))
    cls = choices.load("advantages", name)
    off = records.build(cls, dict(kl={"in": "off"}) if "kl" in records.keys(cls) else {}, name)
    np.testing.assert_array_equal(off(same)[0], 0.0)


# ------------------------------------------------------------------ optimizers and their schedules


@pytest.mark.parametrize("name", of("optim"))
def test_an_optimizer_moves_every_parameter_down_and_decays_matrices_only(name):
    model, rng = tiny.model(None), np.random.default_rng(0)
    params = tiny.params(model, value_head=True)
    grads = jax.tree.map(lambda p: jnp.asarray(rng.normal(size=p.shape).astype(np.float32)), params)
    traces, found = [], []
    for decay in (0.0, 0.5):
        tx = dataclasses.replace(record_of("optim", name), weight_decay=decay)(10)

        @jax.jit
        def update(grads, state, params, tx=tx):
            traces.append(1)
            with jax.numpy_dtype_promotion("standard"):
                return tx.update(grads, state, params)

        state = tx.init(params)
        for _ in range(2):
            updates, state = update(grads, state, params)
        found.append(updates)
    assert len(traces) == 2 and jax.tree.structure(updates) == jax.tree.structure(params)
    for (path, free), pulled, grad, p in zip(
        jax.tree_util.tree_leaves_with_path(found[0]), *map(jax.tree.leaves, (found[1], grads, params)), strict=True
    ):
        assert np.isfinite(free).all() and free.dtype == p.dtype and (free * grad).sum() < 0, path
        decayed = 0.0 if path[-1].key in ("scale", "bias") or path[0].key == "value_head" else 1e-3 * 0.5 * p
        np.testing.assert_allclose(pulled, free - decayed, rtol=1e-5, atol=1e-9)


def schedules():
    """Every schedule with its defaults, and with each of its fractions and names moved off them."""
    for name in of("optim/schedules"):
        fields = records.fields(choices.load("optim/schedules", name))
        yield name, {}
        moved = {field.key: dict(warmup=0.25, hold=0.5, final=0.4, decay=0.3).get(field.key) for field in fields}
        yield name, {key: value for key, value in moved.items() if value is not None}
        for field in fields:
            for choice in field.about.get("one_of") or ():
                yield name, {field.key: choice, **{key: value for key, value in moved.items() if value is not None}}


@pytest.mark.parametrize(("name", "settings"), list(schedules()))
@pytest.mark.parametrize("num", [1, 10, 1000])
def test_a_schedule_is_its_oracle_s(name, settings, num):
    record = records.build(choices.load("optim/schedules", name), settings, name)
    counts = np.unique(np.linspace(0, 1.2 * num, 60).astype(int))
    with jax.numpy_dtype_promotion("standard"):
        rates = jax.jit(jax.vmap(record(0.02, num)))(jnp.asarray(counts, jnp.int32))
    expected = [reference.share_of_lr(name, count, num, **dataclasses.asdict(record)) for count in counts.tolist()]
    assert rates.dtype == jnp.float32
    np.testing.assert_allclose(rates, 0.02 * np.asarray(expected), rtol=2e-5, atol=1e-9)


# ------------------------------------------------------------------ reward terms


def responses(num=4):
    question = [Record(f"q{i}", f"How many, {i}?", "", str(i), "nl") for i in range(num)]
    grades = [Grade(status, "1", status == "correct") for status in ("correct", "wrong", "no_answer", "timeout")]
    texts, tokens = [f"So {i}." for i in range(num)], [[1, 2], [1], [1, 2, 3], [4]]
    return Responses(question, texts, tokens, grades, num_samples=2, step=1)


@pytest.mark.parametrize("name", of("rewards/terms"))
def test_a_term_scores_responses_on_the_host(name):
    term, scored = record_of("rewards/terms", name), {}
    for key in term.needs:
        scored[key] = np.zeros((4, 3), np.float32)
    scores, metrics = total([(name, term)], responses(), scored)
    assert scores.dtype == np.float32 and scores.shape[0] == 4 and np.isfinite(scores).all()
    assert set(metrics) == {f"reward/{name}"} and isinstance(term.weight, float)


# ------------------------------------------------------------------ matchers, tasks, families, stages


@pytest.mark.parametrize("name", of("rewards/matchers"))
def test_a_matcher_reads_any_text_and_its_own_keys(name):
    rule = choices.load("rewards/matchers", name)
    assert isinstance(rule, Matcher) and rule.about and rule.kinds and set(rule.kinds) <= set(KINDS)
    for kind in rule.kinds:
        for text in ("", "no answer here", "\u2028\x00", "Therefore, the answer is: 7", "a" * 10_000):
            seen = rule.find(text, kind)
            assert (seen.value is None) == (seen.status != "ok") == (seen.span is None)
        gold = rule.gold({"number": "7", "choice": "b", "expression": "7"}[kind], kind)
        assert gold is not None and rule.agree(gold, {"number": "7", "choice": "b", "expression": "7"}[kind], kind)


@pytest.mark.parametrize("name", of("tasks"))
def test_a_task_says_what_it_reads(name):
    task = choices.load("tasks", name)()
    assert task.kind in KINDS and task.sources and callable(task.splits)
    source = task.sources[0]
    data = Data(task=name, cot="nl", source=source, num_train=4, num_test=2, dev_size=1)
    wrong = list(task.check(data))
    assert all(key in records.keys(Data) and len(said) > 10 for key, said in wrong)
    if not wrong and source == "files":
        with pytest.raises(InputError, match="file"):  # there is none
            task.splits(data)
    elif not wrong:
        splits = task.splits(data)
        assert len(splits.train) == 4 and all(record.question and record.answer for record in splits.test)
        assert task.splits(dataclasses.replace(data)) == splits


@pytest.mark.parametrize("name", of("models/families"))
def test_a_family_reads_and_writes(name):
    module = choices.module("models/families", name)
    assert all(callable(getattr(module, function)) for function in ("read", "write", "table"))


@pytest.mark.parametrize("name", of("stages"))
def test_a_stage_runs_says_what_it_begins_with_and_what_it_compiles(name):
    module, record = choices.module("stages", name), record_of("stages", name)
    assert (
        list(inspect.signature(module.run).parameters)[0] == "name"
        and len(inspect.signature(module.run).parameters) == 3
    )
    assert all(isinstance(key, str) for key, _ in record.sources()) and callable(record.programs)
