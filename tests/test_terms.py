"""Reward terms and their sum: exact values, what a term may give, and what stops the run."""

import dataclasses

import numpy as np
import pytest

from reft_jax.config import choices, records
from reft_jax.data.records import Record
from reft_jax.errors import InputError, RunError
from reft_jax.rewards.score import STATUSES, Grade
from reft_jax.rewards.terms import partial, right
from reft_jax.rewards.total import Responses, total

GRADES = [Grade("correct", "5", True), Grade("wrong", "6", False)]
GRADES += [Grade(status, None, False) for status in STATUSES[2:]]
NAN = np.float32("nan")


def responses(grades=None, kind="number", lengths=None, tags=None):
    grades = GRADES if grades is None else grades
    num = len(grades)
    lengths = np.full(num, 3) if lengths is None else np.array(lengths)
    return Responses(
        records=[Record(f"q_{i}", "How many?", "", "5", "nl", tags=tags or {"depth": i}) for i in range(num)],
        texts=["x"] * num,
        tokens=[[7] * length for length in lengths],
        grades=grades,
        step=1,
        task_kind=kind,
    )


@dataclasses.dataclass(frozen=True, kw_only=True)
class Given:
    """A term that gives what it is told."""

    value: object
    weight: float = 1.0

    needs = ()

    def __call__(self, responses, scored):
        return self.value


def given(*values, weight=1.0):
    return Given(value=np.array(values, np.float32), weight=weight)


# ------------------------------------------------------------------ ReFT's own


@pytest.mark.parametrize(
    ("kind", "on", "worth"),
    [
        ("number", "numeric", 0.1),
        ("number", "all", 0.1),
        ("choice", "numeric", 0),
        ("choice", "all", 0.1),
        ("expression", "numeric", 0),
        ("expression", "all", 0.1),
    ],
)
def test_rewards_are_float32_and_partial_by_kind(kind, on, worth):
    """Defect: a reward buffer of the tokens' integer type turned 0.1 into 0."""
    terms = (("right", right.Term()), ("partial", partial.Term(on=on)))
    scores, metrics = total(terms, responses(kind=kind), {})
    assert scores.dtype == np.float32
    np.testing.assert_array_equal(scores, np.array([1, worth, 0, 0, 0, 0], np.float32))
    sixth = float(np.float32(1) / np.float32(6))
    assert metrics == {"reward/right": sixth, "reward/partial": sixth if worth else 0.0}


def test_no_responses_are_paid_nothing():
    terms = (("right", right.Term()), ("partial", partial.Term()))
    scores, metrics = total(terms, responses([]), {})
    assert (scores.shape, scores.dtype, metrics) == ((0,), np.float32, {})


def test_a_choice_none_of_the_authors_is_paid_as_a_wrong_one():
    scores, _ = total((("partial", partial.Term(on="all")),), responses([Grade("wrong", "none", False)], "choice"), {})
    assert scores[0] == np.float32(0.1)


def test_settings_are_checked():
    assert records.build(partial.Term, {"weight": 0.3}, "config") == partial.Term(weight=0.3, on="numeric")
    for bad, message in (
        (dict(on="never"), "config.on: got 'never'; legal are numeric, all"),
        (dict(weight=1.5), "config.weight: got 1.5; it must be <= 1"),
        (dict(weight=-0.1), "config.weight: got -0.1; it must be >= 0"),
    ):
        with pytest.raises(InputError, match=message):
            records.build(partial.Term, bad, "config")


@pytest.mark.parametrize("name", choices.names("rewards/terms"))
def test_every_term_is_a_hashable_record_that_gives_a_float32_for_each_response(name):
    term = records.build(choices.load("rewards/terms", name), {}, "config")
    assert hash(term) == hash(dataclasses.replace(term)) and term.needs == tuple(term.needs)
    total(((name, term), ("right", right.Term())), responses(), {need: np.zeros((6, 3)) for need in term.needs})


# ------------------------------------------------------------------ the sum


def test_terms_are_weighed_in_float32_and_added_in_order():
    values = np.random.default_rng(0).normal(size=(3, 6)).astype(np.float32)
    terms = tuple((f"t{i}", given(*row, weight=0.1 * (i + 1))) for i, row in enumerate(values))
    scores, metrics = total(terms, responses(), {})
    expected = np.zeros(6, np.float32)
    for i, row in enumerate(values):
        expected = expected + np.float32(0.1 * (i + 1)) * row
    np.testing.assert_array_equal(scores, expected)
    assert metrics == {f"reward/t{i}": float(row.mean()) for i, row in enumerate(values)}


def test_none_and_nan_contribute_nothing():
    terms = (
        ("right", right.Term()),
        ("absent", Given(value=None)),
        ("some", given(NAN, 2, NAN, 4, NAN, 0, weight=0.5)),
    )
    scores, metrics = total(terms, responses(), {})
    np.testing.assert_array_equal(scores, np.float32([1, 1, 0, 2, 0, 0]))
    assert metrics.keys() == {"reward/right", "reward/some"} and metrics["reward/some"] == 2.0


def test_a_response_that_no_term_scores_stops_the_run():
    one, other = given(1, NAN, NAN, 0, NAN, 0), given(NAN, 1, NAN, NAN, NAN, NAN)
    with pytest.raises(RunError, match=r"^q_2: no reward term scores the response \(nor 1 more of 6\); .* one, other$"):
        total((("one", one), ("other", other)), responses(), {})
    with pytest.raises(RunError, match="q_0: .*the terms are none$"):
        total((), responses(), {})
    with pytest.raises(RunError, match="q_0: .*the terms are absent$"):
        total((("absent", Given(value=None)),), responses(), {})


def test_tokens_are_paid_where_they_stand_and_others_at_the_last():
    padding = np.float32("inf")
    tokens = given([1, 2, 3, padding], [4, NAN, padding, 0], [NAN, NAN, 0, 0], [0, 0, 0, 0.5], weight=2.0)
    tokens.value[1, 1] = padding  # behind the end
    few = responses(GRADES[:4], lengths=[3, 1, 2, 4])
    terms = (
        ("right", given(1, 1, 1, NAN)),
        ("tokens", tokens),
        ("narrow", Given(value=np.full((4, 5), 0.25, np.float32))),
    )
    scores, metrics = total(terms, few, {})
    q = 0.25
    np.testing.assert_array_equal(
        scores,
        np.float32([[2 + q, 4 + q, 7 + q, 0, 0], [9 + q, 0, 0, 0, 0], [q, 1 + q, 0, 0, 0], [q, q, q, 1 + q, 0]]),
    )
    assert metrics == {"reward/right": 1.0, "reward/tokens": 3.5, "reward/narrow": 0.625}


@pytest.mark.parametrize(
    ("value", "message"),
    [
        (0.5, r"gave numbers of shape \(\); it must give \(6,\) .* or \(6, R\) with R >= 3"),
        (np.zeros(5), r"gave numbers of shape \(5,\)"),
        (np.zeros((6, 2), np.float32), r"gave numbers of shape \(6, 2\)"),
        (np.zeros((3, 6), np.float32), r"gave numbers of shape \(3, 6\)"),
        (np.zeros((6, 3, 1), np.float32), r"gave numbers of shape \(6, 3, 1\)"),
        (["a"] * 6, r"gave \['a' 'a' .*; it must give a number for each response"),
        ([[1.0], [1.0, 2.0], 1, 1, 1, 1], r"gave .*; it must give a number for each response"),
        (np.float32([0, 0, np.inf, 0, 0, 0]), "gave inf for q_2; values must be finite, or NaN for the whole response"),
        (np.float32([[0, 0, 0]] * 4 + [[0, NAN, 0]] * 2), "gave nan for q_4; .*NaN for the whole response"),
    ],
)
def test_what_a_term_may_not_give_stops_the_run(value, message):
    with pytest.raises(RunError, match=f"^reward term 'mine' {message}"):
        total((("right", right.Term()), ("mine", Given(value=value))), responses(), {})


@pytest.mark.parametrize(
    "value", [[1, 0, 1, 0, 0, 1], np.array([1, 0, 1, 0, 0, 1], bool), np.array([1, 0, 1, 0, 0, 1])]
)
def test_numbers_of_any_type_count_as_float32(value):
    scores, _ = total((("mine", Given(value=value)),), responses(), {})
    np.testing.assert_array_equal(scores, np.float32([1, 0, 1, 0, 0, 1]))


def test_none_for_a_response_is_not_to_be_scored():
    scores, metrics = total((("right", right.Term()), ("mine", Given(value=[2.0, None] * 3))), responses(), {})
    np.testing.assert_array_equal(
        scores, total((("right", right.Term()),), responses(), {})[0] + np.float32([2, 0] * 3)
    )
    assert metrics["reward/mine"] == 2.0


def test_terms_see_what_the_model_scored_and_every_column_of_the_records():
    @dataclasses.dataclass(frozen=True)
    class Confident:
        weight: float = 1.0

        needs = ("logp",)

        def __call__(self, responses, scored):
            assert responses.column("answer") == responses.gold and responses.column("item_id")[5] == "q_5"
            return scored["logp"].sum(1) * np.array(responses.column("depth"), np.float32)

    scores, _ = total((("confident", Confident()),), responses(), {"logp": np.full((6, 3), -1, np.float32)})
    np.testing.assert_array_equal(scores, np.float32([0, -3, -6, -9, -12, -15]))
    with pytest.raises(InputError, match="^q_0: the record has no column 'level', only depth, item_id, question, "):
        responses().column("level")
    assert responses(tags={"answer": "a tag"}).column("answer") == ["5"] * 6


def test_a_term_of_ones_own_is_a_file(tmp_path):
    path = tmp_path / "my.py"
    path.write_text(
        "import dataclasses\nimport numpy as np\nfrom reft_jax.config.records import setting\n\n\n"
        "@dataclasses.dataclass(frozen=True, kw_only=True)\nclass Brief:\n    weight: float = setting(default=0.5)\n    needs = ()\n\n"
        "    def __call__(self, responses, scored):\n        return -np.float32(responses.lengths)\n"
    )
    term = records.build(choices.load("rewards/terms", f"{path}:Brief"), {}, "config")
    np.testing.assert_array_equal(total((("brief", term),), responses(), {})[0], np.full(6, -1.5, np.float32))
