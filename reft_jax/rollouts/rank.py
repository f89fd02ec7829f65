"""Ranking responses with a re-ranker: how they are read, and P(right) of each."""

import numpy as np

from reft_jax.data import batching
from reft_jax.mesh import distributed
from reft_jax.models import make_classifier_score
from reft_jax.rollouts import stored
from reft_jax.run import begin
from reft_jax.run.progress import Progress
from reft_jax.run.run import Run

LENGTHS, LEAST = 4, 128  # rows are of so many lengths; shorter ones would save less than another program costs


def sequences(run: Run, records, texts, purpose: str) -> list[list[int]]:
    """Prompt, response and end-of-sequence as token ids, at most config.data.max_prompt + max_response."""
    longest = run.config.data.max_prompt + run.config.data.max_response
    out = []
    for ask, prefix, rest in stored.pieces(run, records, texts, purpose, keep_unknown=True):
        ids = ask + prefix + rest
        out.append(ids if len(ids) <= longest else ids[: longest - 1] + rest[-1:])
    return out


def pad(run: Run, rows: list[list[int]]) -> tuple[np.ndarray, np.ndarray]:
    """(tokens i32[B, T], mask bool[B, T]), T a quarter or more of the longest that there can be."""
    longest = run.config.data.max_prompt + run.config.data.max_response
    lengths = [-(-longest * i // LENGTHS) for i in range(1, LENGTHS)]
    length = batching.bucket(max(map(len, rows)), [*(size for size in lengths if size >= LEAST), longest])
    return batching.pad_right(rows, length, run.tokenizer.pad_token_id)


# ------------------------------------------------------------------ ranking


def make_scorer(run: Run, name: str):
    """(records, texts, purpose) -> P(right) f64[N] of the responses, by the finished re-ranker stage `name`."""
    size = dict(run.config.stages)[name].batch_size
    params = begin.initial_params(run, name)
    score = make_classifier_score(run.model)

    def scorer(records, texts, purpose: str) -> np.ndarray:
        rows = sequences(run, records, texts, purpose)
        by_length = sorted(range(len(rows)), key=lambda i: len(rows[i]))
        out = np.zeros(len(rows))
        bar = Progress(f"{name}: scores", len(rows), unit="response")
        each = run.heard(bar)
        for first in range(0, len(rows), size):
            chosen = by_length[first : first + size]
            filled = [rows[i] for i in chosen] + [rows[chosen[-1]]] * (size - len(chosen))
            logits = distributed.fetch(score(params, *run.layout.batch(pad(run, filled))))
            # in float64: two that are almost sure are still told apart
            out[chosen] = np.exp(-np.logaddexp(0.0, -logits[: len(chosen)].astype(np.float64)))
            each(first + len(chosen))
        bar.close()
        return out

    return scorer
