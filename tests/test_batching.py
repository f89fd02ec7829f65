"""Data order as a function of (seed, step), padding, buckets, and over-long records that are never silently lost."""

import dataclasses

import numpy as np
import pytest

from reft_jax.data import batching, prompts, tokenizer
from reft_jax.data.records import Record
from reft_jax.errors import InputError

FIRST = [7, 3, 6, 0, 2, 1, 5, 4]  # the order of 8 records under seed 42, epochs 0 and 1
SECOND = [2, 3, 1, 4, 7, 0, 6, 5]


@dataclasses.dataclass(frozen=True)
class Data:
    """The fields of config.data that this module reads."""

    docstring: bool = False
    append_prefix: str = "everywhere"
    bos: str = "off"
    line_end: str = "prefix"
    max_prompt: int = 100
    max_response: int = 100


def test_order_is_a_fresh_permutation_per_seed_and_epoch():
    orders = [tuple(batching.order(seed, epoch, 50)) for seed in (0, 1) for epoch in range(4)]
    assert all(sorted(o) == list(range(50)) for o in orders) and len(set(orders)) == 8
    assert batching.order(3, 1, 50).dtype == np.int64
    assert batching.order(0, 0, 1).tolist() == [0]


def test_order_stays_what_it_was():
    # Fixed values: a change would make old checkpoints resume on other data.
    assert batching.order(42, 0, 8).tolist() == FIRST
    assert batching.order(42, 1, 8).tolist() == SECOND


def test_order_cannot_be_changed_by_a_caller():
    with pytest.raises(ValueError, match="read-only"):
        batching.order(0, 0, 5)[0] = 1


def test_order_is_uniform_over_places():
    places = np.array([batching.order(7, epoch, 10) for epoch in range(2000)])
    counts = np.array([[np.sum(places[:, j] == i) for i in range(10)] for j in range(10)])
    assert abs(counts - 200).max() < 6 * np.sqrt(200)


@pytest.mark.parametrize("num,batch_size", [(10, 3), (10, 5), (7, 7), (3, 8), (1, 4), (101, 32)])
def test_batches_are_the_epochs_one_after_the_other(num, batch_size):
    steps = 4 * num // batch_size + 3
    line = np.concatenate([batching.batch_indices(5, step, batch_size, num) for step in range(steps)])
    epochs = np.concatenate([batching.order(5, epoch, num) for epoch in range(len(line) // num + 1)])
    assert line.dtype == np.int64 and np.array_equal(line, epochs[: len(line)])


def test_a_batch_depends_on_seed_and_step_only():
    alone = batching.batch_indices(1, 9, 8, 30)
    for step in (0, 9, 3):
        again = batching.batch_indices(1, step, 8, 30)
    assert not np.array_equal(again, alone)
    assert np.array_equal(batching.batch_indices(1, np.int32(9), 8, 30), alone)
    assert not np.array_equal(batching.batch_indices(2, 9, 8, 30), alone)


def test_wrong_arguments_are_named():
    for args in ((-1, 0, 5), (0, -1, 5), (0, 0, 0)):
        with pytest.raises(ValueError, match="order needs seed >= 0"):
            batching.order(*args)
    for args in ((0, -1, 5, 5), (0, 0, 0, 5), (0, 0, 4, 0)):
        with pytest.raises(ValueError, match="batch_indices needs"):
            batching.batch_indices(*args)


def test_bucket_is_the_smallest_that_fits():
    assert [batching.bucket(n, (4, 8, 32)) for n in (0, 1, 4, 5, 8, 9, 32)] == [4, 4, 4, 8, 8, 32, 32]
    with pytest.raises(InputError, match="33 tokens fits none of the length buckets \\(4, 8, 32\\)"):
        batching.bucket(33, (4, 8, 32))


def test_padding_sides_types_and_masks():
    rows = [[1, 2, 3], [], [4], [0, 9]]  # a real token may equal the pad id
    left, left_mask = batching.pad_left(rows, 4, 9)
    right, right_mask = batching.pad_right(rows, 4, 9)
    assert left.tolist() == [[9, 1, 2, 3], [9, 9, 9, 9], [9, 9, 9, 4], [9, 9, 0, 9]]
    assert right.tolist() == [[1, 2, 3, 9], [9, 9, 9, 9], [4, 9, 9, 9], [0, 9, 9, 9]]
    assert left_mask.tolist() == [
        [False, True, True, True],
        [False] * 4,
        [False] * 3 + [True],
        [False, False, True, True],
    ]
    assert np.array_equal(right_mask, left_mask[:, ::-1])
    assert left.dtype == right.dtype == np.int32 and left_mask.dtype == right_mask.dtype == bool
    assert batching.pad_left([], 4, 0)[0].shape == (0, 4)
    for pad in (batching.pad_left, batching.pad_right):
        with pytest.raises(ValueError, match="row 1 has 5 tokens and is to be padded to 4"):
            pad([[1], [1] * 5], 4, 0)


@pytest.fixture(scope="module")
def word():
    vocabulary = [
        "Question:",
        "Answer reasoning:",
        "\n",
        "def solution():",
        " ",
        "w",
        "return",
        "1",
        "Therefore, the answer is: ",
    ]
    return tokenizer.build_word(
        r"Question:|Answer reasoning:|def solution\(\):|Therefore, the answer is: |return|\n|\w| ", vocabulary
    )


def program(i, question, body):
    """A prompt of question + 5 tokens (+ 2 with the prefix); an SFT response of body + 8 tokens, EOS included."""
    return Record(f"r_{i}", "w" * question, "def solution():\n    return" + "1" * body, "1", "program")


def test_fit_keeps_what_fits_and_names_the_rest(word):
    records = [program(0, 5, 2), program(1, 6, 2), program(2, 5, 3), program(3, 1, 1)]
    fitted = batching.fit(word, records, Data(max_prompt=10, max_response=10), purpose="teach")
    assert [r.item_id for r in fitted.records] == ["r_0", "r_3"] and len(fitted.encoded) == 2
    assert [len(e.prompt) for e in fitted.encoded] == [10, 6] and [len(e.response) for e in fitted.encoded] == [10, 9]
    assert fitted.too_long == (batching.TooLong("r_1", 11, 10), batching.TooLong("r_2", 10, 11))
    assert fitted.note == (
        "2 of 4 records left out for their length (prompt + response over config.data.max_prompt=10 or max_response=10 "
        "tokens): r_1 (11 + 10), r_2 (10 + 11)"
    )
    everything = batching.fit(word, records, Data(), purpose="teach")
    assert everything.records == tuple(records) and everything.too_long == () and everything.note == ""
    assert list(everything.encoded) == prompts.encode_all(word, records, Data(), purpose="teach")


def test_fit_for_sampling_counts_the_prefix_and_no_gold(word):
    records = [program(0, 5, 90), program(1, 3, 90)]
    data = Data(max_prompt=10, max_response=10)
    fitted = batching.fit(word, records, data, purpose="rollout")
    assert [r.item_id for r in fitted.records] == ["r_1"] and fitted.too_long == (batching.TooLong("r_0", 12, 0),)
    fitted = batching.fit(word, records, dataclasses.replace(data, append_prefix="nowhere"), purpose="rollout")
    assert fitted.too_long == ()


def test_fit_of_nothing_is_nothing(word):
    assert batching.fit(word, [], Data(), purpose="ask") == batching.Fitted((), (), (), "")


def test_fit_refuses_when_all_are_too_long(word):
    records = [program(0, 30, 2), program(1, 20, 2)]
    with pytest.raises(
        InputError, match="none of 2 records fits: the shortest prompt has 25 tokens and config.data.max_prompt is 10"
    ):
        batching.fit(word, records, Data(max_prompt=10), purpose="teach")
    with pytest.raises(InputError, match="the shortest response has 10 tokens and config.data.max_response is 5"):
        batching.fit(word, records, Data(max_response=5), purpose="teach")
    mixed = [program(0, 30, 1), program(1, 1, 30)]
    with pytest.raises(InputError, match="each is over config.data.max_prompt=10 or config.data.max_response=10"):
        batching.fit(word, mixed, Data(max_prompt=10, max_response=10), purpose="teach")
