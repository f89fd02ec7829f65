"""One named test for each known defect of other implementations: mistakes that stay silent while a run goes on."""

import ast
import dataclasses
import json
import pathlib
import shutil

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from reft_jax import main, masked, models, prepare, recipe, tasks
from reft_jax.config.settings import GREEDY, Sampling
from reft_jax.configs import common as fragments
from reft_jax.data.records import Record
from reft_jax.errors import InputError, RunError, Stop
from reft_jax.losses.advantages import gae
from reft_jax.losses.ppo import ppo_loss, token_rewards
from reft_jax.rewards import answer, estimates
from reft_jax.rewards import score as rewards
from reft_jax.rewards.program import ProgramResult, VerifierError
from reft_jax.rewards.score import Grade
from reft_jax.rewards.total import Responses, total
from reft_jax.rollouts.actor import Actor
from reft_jax.rollouts.questions import ask
from reft_jax.run.metrics import Lines
from reft_jax.run.run import DROPOUT, INIT, PERMUTE, SAMPLE, Run, key_of
from reft_jax.stages import evaluate, reft
from reft_jax.training import loop, reinforce
from tests import reference, tiny

SOURCES = sorted(pathlib.Path(main.__file__).parent.rglob("*.py"))
GRADES = (
    Grade("correct", "5", True),
    Grade("wrong", "6", False),
    Grade("no_answer", None, False),
    Grade("wrong", "7", False),
)
SCORES = np.array([1.0, 0.1, 0.0, 0.1], np.float32)


def small_config(select_on="dev", **changes):
    """A run of 4 ReFT steps and an evaluation, on 8 generated problems and a model of two thousand parameters."""
    reft_stage = fragments.reft(
        "random",
        2,
        fragments.optim(1e-3),
        batch_size=4,
        minibatch_size=2,
        eval_every=1,
        eval_batch_size=2,
        **fragments.method(kl_coef=0.0),
    )
    reft_stage |= dict(select_on=select_on) | changes
    stages = dict(
        reft=reft_stage, evaluate=fragments.evaluate(dict(reft="reft"), num_samples=0, num_questions=0, batch_size=2)
    )
    data = fragments.arithmetic(num_train=8, dev_size=2, num_test=2)
    model = fragments.model("demo") | dict(arch=fragments.arch(8, 1, 2, 8))
    return recipe.build(fragments.config(seed=0, model=model, data=data, stages=stages).to_dict())


def make_run(config, workdir):
    """What main makes of a config, on one device."""
    splits = tasks.load(config.data)
    tokenizer = prepare.build_tokenizer(config, splits, None)
    model = models.Model(prepare.resolve_arch(config, tokenizer, None), layout=tiny.layout("one"))
    return Run(config, workdir, model, tokenizer, splits, Stop())


def run_stage(run, name, module=reft):
    run.folder(name).mkdir(exist_ok=True)
    module.run(name, dict(run.config.stages)[name], run)


@pytest.fixture(scope="module")
def watched(tmp_path_factory):
    """A finished reft stage whose answers were graded GRADES in turn: (run, rollouts, PPO batches, rows of each minibatch)."""
    run = make_run(small_config(), tmp_path_factory.mktemp("run"))
    rollouts, batches, rows = [], [], []
    make_advantages, make_update = reinforce.make_advantages, reinforce.make_update

    def watched_advantages(*args, **how):
        advantages = make_advantages(*args, **how)

        def call(rollout):
            out = advantages(rollout)
            rollouts.append(jax.device_get(rollout))
            batches.append(jax.device_get(out[0]))
            return out

        return call

    def watched_step(*args, **frozen):
        step = make_update(*args, **frozen)

        def call(state, batch, minibatch, packing=None):
            rows.append(np.asarray(minibatch).tolist())
            return step(state, batch, minibatch, packing=packing)

        return call

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(reinforce, "make_advantages", watched_advantages)
        patch.setattr(reinforce, "make_update", watched_step)
        patch.setattr(
            rewards, "grade", lambda task, cot, texts, golds, **limits: [GRADES[i % 4] for i in range(len(texts))]
        )
        run_stage(run, "reft")
        run_stage(run, "evaluate", evaluate)
    return run, rollouts, batches, rows


def test_a_question_that_is_drawn_again_is_drawn_with_other_numbers(watched):
    """As where a data set has fewer questions than a batch; the others' samples stay what they are."""
    run = watched[0]
    params = models.init(run.model, jax.random.key(1))
    questions, key = ask(run, run.splits.train, "rollout"), key_of(0, "reft", 1, SAMPLE)
    actor = Actor(run, run.model, Sampling(), 4, 2, ahead=False)

    def tokens(*rows):
        drawn = actor.draw(params, questions, key, rows)
        return drawn.by_question(drawn.tokens)

    once, again = tokens(0, 1, 2), tokens(0, 1, 0, 2, 1, 0)
    assert [again[i] for i in (0, 1, 3)] == once
    distinct = {tuple(one) for place in (0, 2, 5) for one in again[place]}
    assert len(distinct) == 6 and again[1] != again[4]
    assert tokens(2, 0)[::-1] == [once[0], once[2]]


def test_greedy_decoding_ends_where_samples_do(watched, monkeypatch):
    """Checks on dev and evaluation: the stage's stop strings, limits and forbidden tokens, and nothing that shapes a distribution."""
    run = watched[0]
    sampling = Sampling(0.7, 5, 0.9, repetition_penalty=1.2, forbidden=(3,), stop=("x",), min_new=2, max_new=5)
    greedy = Sampling(0.0, 0, 1.0, forbidden=(3,), stop=("x",), min_new=2, max_new=5)
    assert sampling.greedy == greedy and Sampling().greedy == GREEDY.greedy == GREEDY
    seen = []
    for module in (loop, evaluate):
        monkeypatch.setattr(module, "Actor", lambda run, model, sampling, *rest: seen.append(sampling))
    stages = dict(run.config.stages)
    loop.make_check(run, dataclasses.replace(stages["reft"], sampling=sampling), "rollout", {})
    again = dataclasses.replace(stages["evaluate"], sampling=sampling, checkpoints=(("again", "reft"),))
    with pytest.raises(AttributeError):  # asks the actor for answers
        evaluate.run("evaluate", again, run)
    assert seen == [greedy] * 2


def lines(path):
    with open(path, encoding="utf-8") as file:
        return [json.loads(line) for line in file]


# ------------------------------------------------------------------ "a reward buffer like the integer tokens turns 0.1 into 0"


def score(grades):
    """What a reft stage pays for these grades of answers to svamp, unless it is told otherwise."""
    num = len(grades)
    responses = Responses(
        records=[Record(f"q_{i}", "How many?", "", "5", "program") for i in range(num)],
        texts=[""] * num,
        tokens=[[7]] * num,
        grades=grades,
        step=1,
        task_kind=rewards.answer_kind("svamp"),
    )
    return total(dict(small_config().stages)["reft"].rewards, responses, {})[0]


def test_partial_rewards_are_float32_from_grades_to_scores():
    got = score(GRADES)
    assert got.dtype == np.float32
    np.testing.assert_array_equal(got, SCORES)


def test_reward_in_is_the_reward_entering_gae():
    mask = tiny.lengths_mask([4, 1, 3, 2], 4, left=False)
    logp = np.random.default_rng(0).normal(-2, 1, mask.shape).astype(np.float32)
    got = np.asarray(token_rewards(SCORES, logp, logp, mask, kl_coef=0.05))
    np.testing.assert_array_equal(got.sum(1), SCORES)  # bit for bit: 0.1 is 0.1
    _, returns = gae(got, np.zeros(mask.shape, np.float32), mask, gamma=1.0, lam=1.0)
    np.testing.assert_array_equal(np.asarray(returns)[:, 0], SCORES)


@pytest.mark.parametrize("dtype", [np.int32, np.int8, bool])
def test_an_integer_score_is_refused(dtype):
    mask = np.ones((4, 2), bool)
    with pytest.raises(TypeError, match="0.1 would become 0"):
        token_rewards(jnp.asarray(SCORES.astype(dtype)), jnp.zeros((4, 2)), jnp.zeros((4, 2)), mask, kl_coef=0.05)


def test_the_reft_stage_hands_the_graded_rewards_to_gae_unchanged(watched):
    run, rollouts, batches, _ = watched
    assert len(rollouts) == 4
    for rollout, batch in zip(rollouts, batches, strict=True):
        assert rollout.scores.dtype == np.float32
        np.testing.assert_array_equal(rollout.scores, SCORES)
        # kl_coef is 0: with gamma 1, adv_0 + value_0 before whitening is built from these rewards alone
        mask = rollout.sample.mask
        expected = reference.token_rewards(SCORES, rollout.logp, rollout.ref_logp, mask, kl_coef=0.0)
        _, returns = reference.gae(expected, rollout.values, mask, gamma=1.0, lam=0.95)
        np.testing.assert_allclose(batch.returns, returns, rtol=1e-4, atol=1e-5)
    for line in lines(run.folder("reft") / "metrics.jsonl")[1:]:
        assert abs(line["reward/mean"] - 0.3) < 1e-6 and abs(line["reward/with_kl"] - 0.3) < 1e-6


# ------------------------------------------------------------------ "masking after exp"


def test_an_overflowing_pad_token_changes_neither_loss_nor_gradients():
    batch = tiny.ppo_batch(np.random.default_rng(0), [3, 3], [2, 4], response_size=4)
    mask = batch.mask

    def loss(logp, values, batch):
        return ppo_loss(logp, values, batch, clip=0.2, value_clip=0.2, value_coef=5.0)[0]

    logp = np.where(mask, batch.old_logp, 200.0).astype(np.float32)  # exp(200 - 0) overflows float32
    assert jnp.isinf(jnp.exp(logp - batch.old_logp)).any()
    clean = jax.jit(jax.value_and_grad(loss, (0, 1)))(
        np.where(mask, logp, 0.0).astype(np.float32), batch.old_values, batch
    )
    dirty = jax.jit(jax.value_and_grad(loss, (0, 1)))(
        logp, np.where(mask, batch.old_values, np.inf).astype(np.float32), batch
    )
    tiny.assert_trees_equal(clean, dirty)
    assert np.isfinite(dirty[0])


# ------------------------------------------------------------------ "a Bessel term divides by zero at one valid token"


def test_whitening_one_valid_token_gives_zero_and_finite_gradients():
    mask = np.array([[True, False], [False, False]])
    x = np.array([[3.0, np.nan], [np.inf, 1.0]], np.float32)
    value, grad = jax.value_and_grad(lambda x: masked.whiten(x, mask).sum())(x)
    assert value == 0.0 and np.isfinite(grad).all()
    np.testing.assert_array_equal(masked.whiten(x, mask), 0.0)


# ------------------------------------------------------------------ "a minibatch permutation from a key that is reused"


def test_every_pass_over_a_batch_has_a_permutation_of_its_own(watched):
    _, _, _, rows = watched
    passes = [tuple(rows[i] + rows[i + 1]) for i in range(0, len(rows), 2)]  # 4 rows by 2
    assert len(passes) == 8  # 4 steps, 2 epochs each
    assert all(sorted(one) == [0, 1, 2, 3] for one in passes)
    assert len(set(passes)) >= 5  # of 24; the seed is fixed, one reused key would give 1 (or 2, or 4)


def test_permutation_keys_differ_by_step_and_epoch_and_are_a_function_of_seed_and_step():
    def order(seed, step, epoch, stream=PERMUTE):
        return tuple(jax.random.permutation(jax.random.fold_in(key_of(seed, "reft", step, stream), epoch), 64).tolist())

    orders = {(seed, step, epoch): order(seed, step, epoch) for seed in (0, 1) for step in (1, 2) for epoch in (0, 1)}
    assert len(set(orders.values())) == 8
    assert orders[1, 2, 1] == order(1, 2, 1) != order(1, 2, 1, SAMPLE)
    assert len({SAMPLE, PERMUTE, DROPOUT, INIT}) == 4


# ------------------------------------------------------------------ "try: jax.distributed.initialize() except: pass"


def swallows(handler: ast.ExceptHandler) -> bool:
    """Whether a handler takes everything, or takes broad errors and does nothing with them."""
    names = {node.id for node in ast.walk(handler.type) if isinstance(node, ast.Name)} if handler.type else set()
    idle = all(
        isinstance(line, ast.Pass | ast.Continue) or isinstance(line, ast.Expr) and isinstance(line.value, ast.Constant)
        for line in handler.body
    )
    return handler.type is None or (bool(names & {"Exception", "BaseException"}) and idle)


def attempts(tree: ast.AST):
    """Dotted names of what is called inside `try` blocks with a handler that does not end by raising."""
    for node in ast.walk(tree):
        if isinstance(node, ast.Try) and not all(isinstance(handler.body[-1], ast.Raise) for handler in node.handlers):
            for line in node.body:
                yield from (ast.unparse(call.func) for call in ast.walk(line) if isinstance(call, ast.Call))


def offences(source: str) -> list[str]:
    tree = ast.parse(source)
    found = [
        f"line {node.lineno}: swallows errors"
        for node in ast.walk(tree)
        if isinstance(node, ast.ExceptHandler) and swallows(node)
    ]
    found += [f"{name} inside try" for name in attempts(tree) if name.endswith("distributed.initialize")]
    return found + [
        f"suppress({ast.unparse(call.args[0])})"
        for call in ast.walk(tree)
        if isinstance(call, ast.Call)
        and ast.unparse(call.func).endswith("suppress")
        and ast.unparse(call.args[0]).endswith("Exception")
    ]


@pytest.mark.parametrize(
    "path", SOURCES, ids=lambda path: str(path.relative_to(path.parents[path.parts[::-1].index("reft_jax") - 1]))
)
def test_no_error_is_swallowed(path):
    assert offences(path.read_text(encoding="utf-8")) == []


@pytest.mark.parametrize(
    "bad",
    [
        "try:\n    f()\nexcept:\n    raise",
        "try:\n    f()\nexcept Exception:\n    pass",
        "try:\n    f()\nexcept (OSError, BaseException):\n    'no'",
        "try:\n    jax.distributed.initialize()\nexcept RuntimeError as e:\n    print(e)",
        "with contextlib.suppress(Exception):\n    f()",
    ],
)
def test_that_check_sees_what_it_is_for(bad):
    assert len(offences(bad)) == 1


# ------------------------------------------------------------------ "a verifier exception counted as reward 0"


def broken_verifier(programs, **limits):
    return [ProgramResult("error", None, "verifier: the worker died")] * len(programs)


def test_a_failing_verifier_raises_instead_of_paying_zero(monkeypatch):
    monkeypatch.setattr(rewards, "run_programs", broken_verifier)
    with pytest.raises(VerifierError, match="2 of 2 programs could not be judged"):
        rewards.grade(
            "svamp", "program", ["def solution():\n    return 1", "def solution():\n    return 2"], ["1", "2"]
        )


def keep_opened(monkeypatch) -> list:
    """What a stage that samples opens for writing."""
    opened = []
    for name in ("Lines", "Metrics"):
        make = getattr(loop, name)
        keep = lambda *args, make=make, **kwargs: opened.append(make(*args, **kwargs)) or opened[-1]  # noqa: E731
        monkeypatch.setattr(loop, name, keep)
    return opened


def test_a_failing_verifier_stops_the_reft_stage_before_an_update_is_logged_or_saved(tmp_path, monkeypatch):
    config = small_config(select="last", eval_every=0.0)
    run = make_run(config, tmp_path)
    run.folder("reft").mkdir()
    good = rewards.run_programs
    calls = []

    def breaks_later(programs, **limits):
        calls.append(len(programs))
        return good(programs, **limits) if len(calls) == 1 else broken_verifier(programs)

    opened = keep_opened(monkeypatch)
    monkeypatch.setattr(rewards, "run_programs", breaks_later)  # the first call is the check before step 1
    with pytest.raises(VerifierError):
        reft.run("reft", dict(config.stages)["reft"], run)
    for file in opened:  # the end of the process closes them otherwise
        file.close()
    assert [line["step"] for line in lines(run.folder("reft") / "metrics.jsonl")] == [0]
    assert [path.name for path in (run.folder("reft") / "checkpoints").iterdir() if path.name.isdigit()] == ["0"]
    assert not run.done("reft")


def test_a_loss_that_is_no_number_ends_a_stage_that_samples_at_its_step(tmp_path, monkeypatch):
    """Also where that step is neither logged nor saved: no further responses are drawn from what it has made."""
    run = make_run(small_config(log_every=10, save_every=10), tmp_path)
    run.folder("reft").mkdir()
    make_update = reinforce.make_update

    def broken(*args, **how):
        update = make_update(*args, **how)

        def call(*given, **more):
            state, metrics = update(*given, **more)
            return state, metrics | {"ppo/loss": metrics["ppo/loss"] * np.float32("nan")}

        return call

    monkeypatch.setattr(reinforce, "make_update", broken)
    opened = keep_opened(monkeypatch)
    with pytest.raises(RunError, match="reft: ppo/loss is nan at step 1; the last checkpoint is from before"):
        reft.run("reft", dict(run.config.stages)["reft"], run)
    for file in opened:
        file.close()
    assert [path.name for path in (run.folder("reft") / "checkpoints").iterdir() if path.name.isdigit()] == ["0"]


def test_the_programs_that_the_verifier_failed_on_are_written_down(tmp_path, monkeypatch):
    run = make_run(small_config(), tmp_path)
    run.folder("reft").mkdir()
    opened = keep_opened(monkeypatch)
    monkeypatch.setattr(rewards, "run_programs", broken_verifier)
    with pytest.raises(RunError, match="reft: .*could not be judged.*verifier_failures.jsonl"):
        main.run_stage(reft.run, "reft", dict(run.config.stages)["reft"], run)
    for file in opened:
        file.close()
    written = lines(run.folder("reft") / "verifier_failures.jsonl")
    assert written and all(line["detail"] == "verifier: the worker died" and line["program"] for line in written)


def test_the_share_of_verifier_failures_is_a_setting(monkeypatch):
    monkeypatch.setattr(rewards, "run_programs", broken_verifier)
    grades = rewards.grade("svamp", "program", ["a", "b"], ["1", "2"], max_verifier_failures=1.0)
    assert [g.status for g in grades] == ["error", "error"]


def test_a_programs_own_error_has_a_status_of_its_own_and_is_no_answer():
    texts = [
        "def solution():\n    return 1 / 0",
        "def solution():\n    return None",
        "def solution():\n    return 4",
        "def solution():\n    return 5",
    ]
    grades = rewards.grade("svamp", "program", texts, ["5"] * 4)
    assert [(g.status, g.extracted, g.correct) for g in grades] == [
        ("error", None, False),
        ("no_answer", None, False),
        ("wrong", "4", False),
        ("correct", "5", True),
    ]
    np.testing.assert_array_equal(score(grades), np.float32([0, 0, 0.1, 1]))


# ------------------------------------------------------------------ "votes that count 42 and 42.0 apart; pass@k that needs all on one sample"


def test_42_and_42_point_0_are_one_vote():
    spellings = ["42", "7", "42.0", "7", "$42", "7.0", "42.00001"]
    keys = [answer.extract(f"x\nTherefore, the answer is: {text}", kind="number", matcher="reft") for text in spellings]
    assert keys == ["42", "7", "42", "7", "42", "7", "42"]
    assert estimates.majority(keys) == "42"  # as strings, "7" would have won
    programs = rewards.grade(
        "svamp", "program", ["def solution():\n    return 42.0", "def solution():\n    return 42"], ["42", "42"]
    )
    assert {g.extracted for g in programs} == {"42"}


def test_pass_at_k_counts_a_question_as_solved_by_any_one_right_sample():
    assert (
        estimates.pass_at_k(4, 1, 4) == 1.0
        and estimates.pass_at_k(4, 0, 4) == 0.0
        and estimates.pass_at_k(4, 1, 1) == 0.25
    )


# ------------------------------------------------------------------ the sampler's distribution and the trained policy's


def sampled_with(correction, **changes):
    """small_config with that correction and those changes of the sampling."""
    ppo = dict(minibatch_size=2, correction=correction)
    return small_config(ppo=ppo, sampling=changes, **fragments.method(kl_coef=0.1))


def test_log_probs_that_differ_from_trainings_stop_the_run_before_it_trains(tmp_path, monkeypatch):
    make_score = reinforce.make_score

    def shifted(*args, **kwargs):
        score = make_score(*args, **kwargs)
        return lambda *inputs: (score(*inputs)[0] - 0.01, *score(*inputs)[1:])

    monkeypatch.setattr(reinforce, "make_score", shifted)
    run = make_run(small_config(), tmp_path)
    with pytest.raises(
        RunError, match=r"differ from those that training computes by 0.01 on average.*max_logp_gap allows 0.0001"
    ):
        run_stage(run, "reft")
    assert not (tmp_path / "reft" / "metrics.jsonl").exists()
    run_stage(make_run(small_config(max_logp_gap=0.02), tmp_path), "reft")  # but can be allowed
    assert len(lines(tmp_path / "reft" / "metrics.jsonl")) == 5


def test_a_tempered_policy_is_tempered_in_scoring_too(tmp_path):
    run_stage(make_run(sampled_with("temper", temperature=0.5), tmp_path), "reft")
    rows = lines(tmp_path / "reft" / "metrics.jsonl")[1:]
    for row in rows:
        assert row["sample/logp_gap_max"] < 1e-4 and row["ppo/first_ratio_error"] < 1e-4
    assert rows[0]["kl/mean"] == pytest.approx(0, abs=1e-4)


def test_importance_weights_account_for_another_distribution(tmp_path):
    changes = dict(top_k=5, min_new=3, stop=("zz",))
    run_stage(make_run(sampled_with("importance", **changes), tmp_path), "reft")
    for row in lines(tmp_path / "reft" / "metrics.jsonl")[1:]:
        assert row["sample/logp_gap_mean"] > 0.1  # q holds five tokens, p all of them
        assert 0 < row["ppo/importance_mean"] < 1 and row["ppo/first_ratio_error"] < 1e-4
    plain = sampled_with("importance")
    shutil.rmtree(tmp_path / "reft")
    run_stage(make_run(plain, tmp_path), "reft")
    for row in lines(tmp_path / "reft" / "metrics.jsonl")[1:]:
        assert row["ppo/importance_mean"] == pytest.approx(1, abs=1e-4) and row["ppo/importance_capped"] == 0


def test_a_forbidden_token_must_be_one(tmp_path):
    config = sampled_with("importance", forbidden=(10**6,))
    run = make_run(config, tmp_path)
    with pytest.raises(InputError, match="sampling.forbidden: got 1000000"):
        prepare.check_sizes(config, run.model.arch)


# ------------------------------------------------------------------ "samples overwritten each step; resume that repeats data"


def test_samples_of_every_step_are_kept(watched):
    run, rollouts, _, _ = watched
    stored = lines(run.folder("reft") / "samples.jsonl")
    assert [line["step"] for line in stored] == [1] * 4 + [2] * 4 + [3] * 4 + [4] * 4
    for line, (rollout, row) in zip(stored, [(rollout, row) for rollout in rollouts for row in range(4)], strict=True):
        mask = rollout.sample.mask[row]
        np.testing.assert_allclose(line["logp"], rollout.logp[row][mask], rtol=1e-6)
        assert line["score"] == pytest.approx(SCORES[row]) and line["status"] == GRADES[row].status


def test_each_epoch_asks_every_question_once(watched):
    run, _, _, _ = watched
    asked = [line["item_id"] for line in lines(run.folder("reft") / "samples.jsonl")]
    everything = {record.item_id for record in run.splits.train}
    assert set(asked[:8]) == set(asked[8:]) == everything and asked[:8] != asked[8:]


def test_resumed_lines_drop_the_half_written_one_and_all_after_the_checkpoint(tmp_path):
    path = tmp_path / "metrics.jsonl"
    first = Lines(path, after_step=-1)
    for step in range(5):
        first.write({"step": step, "text": "\u2028é\r", "x": np.float32(0.1)})
    first.close()
    whole = path.read_bytes()
    path.write_bytes(whole + b'{"step": 2, "x": 0.')  # killed while writing
    again = Lines(path, after_step=2)
    assert path.read_bytes() == b"".join(whole.splitlines(keepends=True)[:3])
    for step in (3, 4):
        again.write({"step": step, "text": "\u2028é\r", "x": np.float32(0.1)})
    again.close()
    assert path.read_bytes() == whole  # as if it had never been killed
    assert [line["x"] for line in map(json.loads, whole.decode().strip().split("\n"))] == [pytest.approx(0.1)] * 5


def test_opening_lines_of_a_new_run_adds_to_nothing(tmp_path):
    path = tmp_path / "samples.jsonl"
    path.write_text('{"step": 1}\n{"step": 2}\n')
    Lines(path, after_step=-1).close()
    assert path.read_text() == ""


# ------------------------------------------------------------------ "best picked on test without saying so"


def test_results_say_what_the_checkpoint_was_selected_on(watched):
    run, _, _, _ = watched
    done = run.facts("reft")
    assert done["selected_on"] == "dev" and done["selected_step"] in (0, 2, 4)
    result = json.loads((run.workdir / "results.json").read_text())["stages"]["reft"]
    assert result["selected_on"] == "dev" and result["step"] == done["selected_step"]
    assert all("eval/test_accuracy" not in line for line in lines(run.folder("reft") / "metrics.jsonl"))


@pytest.mark.parametrize(
    "select, select_on, said, step", [("best", "dev", "dev", 2), ("best", "test", "test", 2), ("last", "test", None, 6)]
)
def test_a_stage_writes_down_how_it_chose(tmp_path, select, select_on, said, step):
    config = small_config(select_on=select_on, select=select)
    run = Run(config, tmp_path, None, None, None, Stop())
    stage = dict(config.stages)["reft"]
    run.folder("reft").mkdir()
    progress = {"best_step": None, "best_accuracy": -1.0}
    other = {"dev": "test", "test": "dev"}[select_on]
    for at, accuracy in [(0, 0.1), (2, 0.5), (4, 0.5), (6, 0.3)]:
        loop.select(progress, at, {f"eval/{select_on}_accuracy": accuracy, f"eval/{other}_accuracy": at}, stage)
    about = run.folder("reft") / "checkpoints" / str(step) / "progress" / "metadata"
    about.parent.mkdir(parents=True)
    about.write_text(json.dumps(progress | {"fingerprint": "f" * 32}))
    loop.finish(run, "reft", stage, progress, 6, 3.0)
    facts = run.facts("reft")
    assert facts["fingerprint"] == "f" * 32
    assert (facts["selected_on"], facts["selected_step"], facts["last_step"]) == (said, step, 6)
    assert facts["selected_epoch"] == step / 2
