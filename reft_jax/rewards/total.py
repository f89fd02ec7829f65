"""What responses are paid: `total` adds up the terms (`rewards/terms`), each times its weight, in float32. NumPy only.

Nothing wrong is silent: an array of another shape, a value that is no finite number and a response that no term scores stop the run.
"""

import dataclasses
import functools
from collections.abc import Mapping, Sequence

import numpy as np

from reft_jax.data.records import Record
from reft_jax.data.splits import place_of
from reft_jax.errors import InputError, RunError
from reft_jax.rewards.score import Grade


@dataclasses.dataclass(frozen=True, eq=False)
class Responses:
    """Responses to questions, num_samples in a row for each; lists are parallel, one entry for each response."""

    records: Sequence[Record]
    texts: Sequence[str]
    tokens: Sequence[Sequence[int]]  # ids, the end-of-sequence token included
    grades: Sequence[Grade]  # () until they are graded
    num_samples: int = 1
    purpose: str = "rollout"  # how the questions were asked: `data.prompts`
    ended: Sequence[bool] = ()  # by itself, and not at the limit
    logp: Sequence[np.ndarray] = ()  # f32[length] of the tokens under the distribution that they were drawn from
    step: int = 0
    task_kind: str = "number"  # what the task's answers are: number, choice or expression

    @property
    def gold(self) -> list[str]:
        return [record.gold for record in self.records]

    @functools.cached_property
    def lengths(self) -> np.ndarray:
        """int[B] in tokens."""
        return np.array([len(tokens) for tokens in self.tokens], int)

    @property
    def group(self) -> np.ndarray:
        """int[B]: which question of the batch."""
        return np.arange(len(self.records)) // self.num_samples

    def by_question(self, values: Sequence | None = None) -> list[list]:
        """The grades, or other values of the responses, in a list for each question."""
        values, num = list(self.grades if values is None else values), self.num_samples
        return [values[i : i + num] for i in range(0, len(values), num)]

    def column(self, name: str) -> list:
        """A field of each response's record, or its tag of that name. InputError where a record has neither."""
        columns = [record.tags | vars(record) for record in self.records]
        for record, known in zip(self.records, columns, strict=True):
            if name not in known:
                raise InputError(f"{place_of(record)}: the record has no column {name!r}, only {', '.join(known)}")
        return [known[name] for known in columns]


def total(
    terms: Sequence[tuple[str, object]], responses: Responses, scored: Mapping[str, np.ndarray]
) -> tuple[np.ndarray, dict[str, float]]:
    """(scores, metrics) of ((label, term), ...): the sum of weight x term in the given order, and as "reward/<label>" the mean of each
    unweighted term over the responses that it scores (of its sum over the tokens, where it pays tokens).

    Scores are f32[B]; or where a term is f32[B, R], as wide as the widest of these, what others pay being at the last token. What
    stands behind a response's end is not looked at. RunError for what a term may not give, and for a response that none of them scores.
    """
    num, lengths, parts, metrics = len(responses.records), responses.lengths, [], {}
    missed = np.ones(num, bool)
    for label, term in terms:
        value = term(responses, scored)
        if value is None:
            continue
        value, scores = _checked(label, _numbers(label, value), responses, lengths)
        parts.append(np.float32(term.weight) * value)
        missed &= ~scores
        if scores.any():
            metrics[f"reward/{label}"] = float(value.reshape(num, -1).sum(1)[scores].mean())
    if missed.any():
        first, named = responses.records[missed.argmax()].item_id, ", ".join(label for label, _ in terms)
        raise RunError(
            f"{first}: no reward term scores the response (nor {missed.sum() - 1} more of {num}); the terms are {named or 'none'}"
        )
    widths = [part.shape[1] for part in parts if part.ndim == 2]
    out = np.zeros((num, max(widths)) if widths else num, np.float32)
    for part in parts:
        if part.ndim == 2:
            out[:, : part.shape[1]] += part
        elif widths:
            out[np.arange(num), lengths - 1] += part
        else:
            out += part
    return out, metrics


def _numbers(label: str, value) -> np.ndarray:
    """What a term gave as float32: an array or a list of numbers, in which None is NaN."""
    if isinstance(value, (list, tuple)):
        value = [np.nan if one is None else one for one in value]
    try:
        value = np.asarray(value)
        if value.dtype.kind in "biuf":
            return value.astype(np.float32)
    except ValueError:  # rows of several lengths
        pass
    raise RunError(
        f"reward term {label!r} gave {str(value)[:80]}; it must give a number for each response or for each of its tokens (None or NaN: it "
        "does not score the response)"
    )


def _checked(label: str, value: np.ndarray, responses: Responses, lengths: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """(what a term gave, with 0 where it does not score; bool[B] of the responses that it scores)."""
    num, longest = len(lengths), int(lengths.max(initial=0))
    shaped = value.shape == (num,) or value.ndim == 2 and len(value) == num and value.shape[1] >= longest
    if not shaped:
        raise RunError(
            f"reward term {label!r} gave numbers of shape {value.shape}; it must give ({num},) (a value for each response), or ({num}, R) with "
            f"R >= {longest} (one for each token)"
        )
    rows = value if value.ndim == 2 else value[:, None]
    real = np.arange(rows.shape[1]) < (lengths if value.ndim == 2 else np.ones_like(lengths))[:, None]
    skipped = (np.isnan(rows) | ~real).all(1)
    rows = np.where(real & ~skipped[:, None], rows, np.float32(0))
    if not np.isfinite(rows).all():
        row = (~np.isfinite(rows)).any(1).argmax()
        raise RunError(
            f"reward term {label!r} gave {rows[row][~np.isfinite(rows[row])][0]} for {responses.records[row].item_id}; values must be finite, "
            "or NaN for the whole response, which is then not scored by this term"
        )
    return rows.reshape(value.shape), ~skipped
