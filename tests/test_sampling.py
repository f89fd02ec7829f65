"""`generate` and what it is made of: exact log-probs, independence of rows, endings, greedy decoding, top-k and top-p."""

import dataclasses
import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from reft_jax import models
from reft_jax.config import settings as settings_lib
from reft_jax.sampling import choose, decode, generate
from reft_jax.training import scoring
from reft_jax.types import Sample
from tests import reference, tiny

PROMPTS = [[5, 6, 7], [8], [3, 4, 9, 10, 11, 12, 2], [20, 21]]
NEVER = 10**6  # an end-of-sequence id that is no token
KEY = jax.random.key(7)


@pytest.fixture(scope="module")
def model():
    return tiny.model(None)


@pytest.fixture(scope="module")
def params(model):
    return tiny.params(model)


def lengths(sample):
    """How long each response is; the mask must be True up to there and False after."""
    mask = np.asarray(sample.mask)
    np.testing.assert_array_equal(mask, np.sort(mask, axis=1)[:, ::-1])
    return mask.sum(1)


def next_logits(model, params, tokens):
    """f32[T, V] of one sequence by the full forward, right-padded to one length for one compilation."""
    padded = np.zeros((1, 24), np.int32)
    padded[0, : len(tokens)] = tokens
    return np.asarray(models.logits(model, params, padded, np.arange(24)[None] < len(tokens))[0, : len(tokens)])


def scored(model, params, prompt, tokens):
    """Log-probs f64 of a response's tokens by one forward over prompt and response."""
    rows = next_logits(model, params, [*prompt, *tokens])[len(prompt) - 1 :]
    return np.array([reference.log_softmax(rows[t])[token] for t, token in enumerate(tokens)])


# ------------------------------------------------------------------ log-probs


@pytest.mark.parametrize(
    "arch", [tiny.ARCH, dataclasses.replace(tiny.ARCH, tie_embeddings=False, num_kv_heads=4)], ids=["tied", "untied"]
)
def test_sampler_logp_is_the_models_logp(arch):
    model = tiny.model(None, arch)
    params = tiny.params(model)
    sample = generate(model, params, PROMPTS, KEY, max_new=8, eos_id=tiny.EOS, num_samples=3)
    assert isinstance(sample, Sample)
    assert sample.tokens.shape == sample.mask.shape == sample.logp.shape == (12, 8)
    assert (sample.tokens.dtype, sample.mask.dtype, sample.logp.dtype) == (jnp.int32, bool, jnp.float32)
    for row, length in enumerate(lengths(sample)):
        expected = scored(model, params, PROMPTS[row // 3], np.asarray(sample.tokens[row, :length]))
        np.testing.assert_allclose(sample.logp[row, :length], expected, rtol=1e-5, atol=2e-5)
        assert not np.any(sample.logp[row, length:])


def test_sampler_logp_equals_scorer_logp():
    model = tiny.model("one")
    params = tiny.params(model, value_head=True)
    prompts = tiny.random_prompts(np.random.default_rng(0), [3, 1, 6, 5], 6)
    sampler = tiny.sampler(model, settings_lib.Sampling(1.0, 0, 1.0), max_new=7, eos_ids=(tiny.EOS, 2), pad_id=tiny.PAD)
    sample = sampler(params, prompts, KEY)
    assert 1 < lengths(sample).min() < 7 or lengths(sample).min() != lengths(sample).max()  # ragged
    logp, ref_logp, _, _ = scoring.make_score(model)(params, params, prompts, sample.tokens, sample.mask)
    np.testing.assert_allclose(
        np.asarray(logp)[sample.mask], np.asarray(sample.logp)[sample.mask], rtol=1e-5, atol=2e-5
    )
    np.testing.assert_array_equal(logp, ref_logp)


# ------------------------------------------------------------------ a row is a function of (key, i, k) and its prompt


def test_a_sample_depends_neither_on_neighbours_nor_on_padding(model, params):
    run = functools.partial(generate, model, params, key=KEY, max_new=6, eos_id=tiny.EOS)
    together = run(PROMPTS)
    shorter = run(PROMPTS[:2])
    np.testing.assert_array_equal(together.tokens[:2], shorter.tokens)
    np.testing.assert_allclose(together.logp[:2], shorter.logp, rtol=1e-5, atol=1e-5)
    other = run([PROMPTS[0], [9] * 20, [4], [2, 2]])  # one neighbour is so long that all prompts are padded further
    np.testing.assert_array_equal(together.tokens[0], other.tokens[0])
    np.testing.assert_allclose(together.logp[0], other.logp[0], rtol=1e-5, atol=1e-5)
    assert not np.array_equal(together.tokens[1], other.tokens[1])


def test_rows_are_grouped_by_prompt_and_sample_k_is_the_same_for_any_number_of_samples(model, params):
    run = functools.partial(generate, model, params, PROMPTS, KEY, max_new=6, eos_id=NEVER)
    one, two, three = (np.asarray(run(num_samples=n).tokens) for n in (1, 2, 3))
    assert one.shape == (4, 6) and three.shape == (12, 6)
    np.testing.assert_array_equal(three[0::3], one)
    np.testing.assert_array_equal(three.reshape(4, 3, 6)[:, :2].reshape(8, 6), two)
    assert all(len({tuple(row) for row in three[3 * i : 3 * i + 3]}) == 3 for i in range(4))  # of 24^6 sequences


def test_equal_prompts_in_one_batch_are_sampled_apart_and_keys_matter(model, params):
    run = functools.partial(generate, model, params, [[5, 6]] * 4, max_new=6, eos_id=NEVER)
    first = np.asarray(run(key=KEY).tokens)
    assert len({tuple(row) for row in first}) == 4
    np.testing.assert_array_equal(first, run(key=KEY).tokens)
    assert not np.array_equal(first, run(key=jax.random.key(8)).tokens)


def test_the_questions_index_and_not_its_row_decides_what_is_drawn():
    model = tiny.model("one")
    params = tiny.params(model)
    sampler = tiny.sampler(model, settings_lib.Sampling(1.0, 0, 1.0), max_new=6, eos_ids=(tiny.EOS,), pad_id=tiny.PAD)
    prompts = tiny.random_prompts(np.random.default_rng(0), [3, 1, 6, 5], 6).replace(
        index=np.array([7, 30, 2, 9], np.int32)
    )
    order = np.array([2, 0, 3, 1])
    a, b = sampler(params, prompts, KEY), sampler(params, jax.tree.map(lambda x: x[order], prompts), KEY)
    np.testing.assert_array_equal(np.asarray(a.tokens)[order], b.tokens)


# ------------------------------------------------------------------ endings


def ended_early(sample, ids):
    """Checks each row: no end before its last token; shorter than the limit only if that last token is an end."""
    tokens, limit = np.asarray(sample.tokens), sample.tokens.shape[1]
    for row, length in enumerate(lengths(sample)):
        assert length >= 1
        assert not set(tokens[row, : length - 1]) & set(ids)
        assert length == limit or tokens[row, length - 1] in ids
        assert not tokens[row, length:].any()  # pad id 0


@pytest.mark.parametrize(
    "ids", [1, [1], (1, 5, 9, 14), np.array([3, 17])], ids=["an int", "a list", "several", "an array"]
)
def test_a_response_ends_with_the_first_end_which_its_mask_includes(model, params, ids):
    sample = generate(model, params, PROMPTS, KEY, max_new=12, eos_id=ids, num_samples=4)
    ended_early(sample, np.atleast_1d(ids).tolist())
    assert lengths(sample).min() < 12


def test_an_end_only_cuts_what_is_drawn_without_it(model, params):
    free = generate(model, params, PROMPTS, KEY, max_new=8, eos_id=NEVER)
    assert (lengths(free) == 8).all()
    cut = generate(model, params, PROMPTS, KEY, max_new=8, eos_id=int(free.tokens[2, 3]))
    for row, length in enumerate(lengths(cut)):
        np.testing.assert_array_equal(cut.tokens[row, :length], free.tokens[row, :length])
        np.testing.assert_allclose(cut.logp[row, :length], free.logp[row, :length], rtol=1e-5, atol=1e-5)
    assert lengths(cut)[2] <= 4


def test_an_end_as_the_first_token_is_a_response_of_one_token(model, params):
    first = generate(model, params, PROMPTS[:1], KEY, max_new=1, eos_id=NEVER)
    sample = generate(model, params, PROMPTS[:1], KEY, max_new=5, eos_id=int(first.tokens[0, 0]))
    np.testing.assert_array_equal(sample.mask, [[True, False, False, False, False]])
    np.testing.assert_allclose(
        sample.logp[0, 0], scored(model, params, PROMPTS[0], first.tokens[0])[0], rtol=1e-5, atol=1e-5
    )


def test_one_new_token(model, params):
    sample = generate(model, params, PROMPTS, KEY, max_new=1, eos_id=tiny.EOS)
    assert sample.mask.shape == (4, 1) and sample.mask.all()


def test_decoding_stops_when_every_response_has_ended(model, params, monkeypatch):
    steps_taken = []

    def counted(*args, **kwargs):
        jax.debug.callback(lambda: steps_taken.append(1))
        return choose.choose(*args, **kwargs)

    monkeypatch.setattr(decode, "choose", counted)
    prompts = tiny.random_prompts(np.random.default_rng(0), [3, 2], 4)
    settings = dict(max_new=30, sampling=settings_lib.WHOLE, eos_ids=(1, 2, 3, 4), pad_id=0)
    sample = jax.jit(functools.partial(decode.sample, model, **settings))(params, prompts, KEY)
    jax.effects_barrier()
    assert len(steps_taken) == lengths(sample).max() < 30


def test_prompts_that_are_empty_are_refused(model, params):
    for prompts in ([], [[]], [[1], []]):
        with pytest.raises(ValueError, match="at least one token"):
            generate(model, params, prompts, KEY, max_new=2, eos_id=tiny.EOS)


# ------------------------------------------------------------------ greedy


def greedy_by_hand(model, params, prompt, num):
    tokens = list(prompt)
    for _ in range(num):
        tokens.append(int(np.argmax(next_logits(model, params, tokens)[-1])))
    return tokens[len(prompt) :]


def test_temperature_zero_is_the_argmax_chain(model, params):
    sample = generate(model, params, PROMPTS, KEY, max_new=5, temperature=0, eos_id=NEVER)
    for row, prompt in enumerate(PROMPTS):
        assert sample.tokens[row].tolist() == greedy_by_hand(model, params, prompt, 5)
        np.testing.assert_allclose(
            sample.logp[row], scored(model, params, prompt, np.asarray(sample.tokens[row])), rtol=1e-5, atol=2e-5
        )
    np.testing.assert_array_equal(
        sample.tokens,
        generate(model, params, PROMPTS, jax.random.key(1), max_new=5, temperature=0, eos_id=NEVER).tokens,
    )


def test_greedy_equals_transformers_generate(tmp_path):
    torch = pytest.importorskip("torch")
    transformers = pytest.importorskip("transformers")
    model = tiny.model(None, dataclasses.replace(tiny.ARCH, tie_embeddings=False))
    params = tiny.params(model)
    models.save_hf(tmp_path, model, params)
    theirs = transformers.AutoModelForCausalLM.from_pretrained(tmp_path, local_files_only=True).eval()
    sample = generate(model, params, PROMPTS, KEY, max_new=10, temperature=0.0, eos_id=[4, 13])
    config = transformers.GenerationConfig(
        do_sample=False, max_new_tokens=10, eos_token_id=[4, 13], pad_token_id=0, bos_token_id=2
    )
    for row, prompt in enumerate(PROMPTS):
        ids = torch.tensor([prompt])
        with torch.no_grad():
            out = theirs.generate(ids, attention_mask=torch.ones_like(ids), generation_config=config)[
                0, len(prompt) :
            ].tolist()
        assert sample.tokens[row][sample.mask[row]].tolist() == out


# ------------------------------------------------------------------ temperature, top-k, top-p

SETTINGS = [
    dict(temperature=t, top_k=k, top_p=p)
    for t, k, p in [
        (1.0, 0, 1.0),
        (0.7, 0, 1.0),
        (2.0, 5, 1.0),
        (1.0, 1, 1.0),
        (1.0, 0, 0.6),
        (1.3, 0, 0.05),
        (0.8, 6, 0.7),
        (1.0, 100, 0.999),
    ]
] + [dict(temperature=1.0, min_p=0.3), dict(temperature=0.6, top_k=7, top_p=0.9, min_p=0.05)]


def logits_rows():
    rng = np.random.default_rng(0)
    return np.stack([rng.normal(0, scale, 12) for scale in (0.3, 1.0, 3.0, 8.0)] + [np.linspace(0, 1, 12)]).astype(
        np.float32
    )


@pytest.mark.parametrize("settings", SETTINGS, ids=str)
def test_the_sampling_distribution_matches_the_oracle(settings):
    got = np.asarray(jax.jit(functools.partial(choose.sampling_logp, **settings))(logits_rows()))
    for row, logits in zip(got, logits_rows(), strict=True):
        expected = reference.sampling_probs(logits, **settings)
        np.testing.assert_array_equal(np.exp(row) > 0, expected > 0)
        np.testing.assert_allclose(np.exp(row), expected, rtol=1e-4, atol=1e-7)
    assert np.isfinite(got).all()


@pytest.mark.parametrize("settings", [SETTINGS[i] for i in (0, 1, 2, 4, 6)], ids=str)
def test_tokens_are_drawn_with_these_frequencies(settings):
    num, logits = 4000, np.random.default_rng(1).normal(0, 1.5, 8).astype(np.float32)
    sampling = dataclasses.replace(settings_lib.WHOLE, **settings)
    token, logp = jax.jit(functools.partial(choose.choose, sampling=sampling))(
        np.tile(logits, (num, 1)), jax.random.split(jax.random.key(5), num)
    )
    expected = reference.sampling_probs(logits, **settings)
    np.testing.assert_allclose(np.exp(logp), expected[np.asarray(token)], rtol=1e-4)
    counts = np.bincount(token, minlength=8)
    assert not counts[expected == 0].any()
    possible = expected > 0
    chi2 = ((counts - num * expected)[possible] ** 2 / (num * expected[possible])).sum()
    degrees = possible.sum() - 1
    assert chi2 < degrees + 4 * np.sqrt(2 * degrees) + 1  # four sigmas; the seed is fixed


@pytest.mark.parametrize(
    "settings",
    [
        dict(temperature=1.7, top_k=3, top_p=0.9),
        dict(temperature=0.9, min_p=0.1, forbidden=(3, 20)),
        dict(repetition_penalty=1.8, top_p=0.95),
    ],
    ids=str,
)
def test_generate_passes_its_settings_on(model, params, settings):
    sample = generate(model, params, PROMPTS, KEY, max_new=5, eos_id=NEVER, num_samples=2, **settings)
    for row in range(8):
        prompt, tokens = PROMPTS[row // 2], np.asarray(sample.tokens[row]).tolist()
        rows = next_logits(model, params, [*prompt, *tokens])[len(prompt) - 1 :]
        for t, token in enumerate(tokens):
            expected = reference.sampling_probs(rows[t], **settings, seen={*prompt, *tokens[:t]})[token]
            np.testing.assert_allclose(np.exp(sample.logp[row, t]), expected, rtol=1e-4)


def test_the_order_of_the_settings_is_that_of_transformers():
    torch = pytest.importorskip("torch")
    from transformers.generation import logits_process as theirs

    rng = np.random.default_rng(2)
    logits, seen = rng.normal(0, 2, (6, 40)).astype(np.float32), rng.integers(0, 40, (6, 5))
    sampling = settings_lib.Sampling(0.8, 20, 0.9, min_p=0.05, repetition_penalty=1.4, forbidden=(3, 4), min_new=2)
    t = jnp.array([0, 1, 2, 3, 4, 5])
    scores = torch.tensor(logits)
    for processor in (
        theirs.RepetitionPenaltyLogitsProcessor(1.4),
        theirs.SuppressTokensLogitsProcessor([3, 4]),
        theirs.TemperatureLogitsWarper(0.8),
        theirs.TopKLogitsWarper(20),
        theirs.TopPLogitsWarper(0.9),
        theirs.MinPLogitsWarper(0.05),
    ):
        scores = processor(torch.tensor(seen), scores)
    mask = jnp.zeros((6, 40), bool).at[jnp.arange(6)[:, None], seen].set(True)
    ours = choose.adjusted(logits, sampling, ends=(), t=t, seen=mask)
    ours = choose.sampling_logp(ours, temperature=0.8, top_k=20, top_p=0.9, min_p=0.05)
    np.testing.assert_allclose(np.exp(ours), torch.softmax(scores, -1).numpy(), atol=1e-6)


@pytest.mark.parametrize("vocab", [7, 3000])
def test_thresholds_by_bits_keep_what_sorting_keeps(vocab):
    rng = np.random.default_rng(vocab)
    logits = np.round(rng.normal(0, 2, (20, vocab)), 1).astype(np.float32)  # many ties
    logits[0], logits[1, ::2] = 0.0, -1e30
    ordered = -np.sort(-logits, axis=1)
    for k in (1, 3, vocab - 1):
        kept = np.asarray(choose.sampling_logp(logits, temperature=1.0, top_k=k)) > -1e20
        np.testing.assert_array_equal(kept, (logits >= ordered[:, k - 1 : k]) & (logits > -1e20))
    for p in (0.01, 0.5, 0.93):
        kept = np.asarray(choose.sampling_logp(logits, temperature=1.0, top_p=p)) > -1e20
        for row, drawn in zip(logits.astype(np.float64), kept, strict=True):
            probs = np.exp(row - row.max()) / np.exp(row - row.max()).sum()
            above = np.array([probs[row > x].sum() for x in row])  # a token stays while those above it hold less than p
            sure = np.abs(above - p) > 1e-6
            np.testing.assert_array_equal(drawn[sure & (row > -1e20)], (above < p)[sure & (row > -1e20)])


@pytest.mark.parametrize("spread", [2.0, 12.0], ids=["flat", "peaked"])
def test_a_large_vocabulary_s_thresholds_are_those_of_all_its_tokens(spread):
    """Flat, the largest groups do not hold all that may be drawn; peaked, they do."""
    vocab = 4 * choose.LARGEST * choose.GROUP + 7 * choose.GROUP
    logits = np.random.default_rng(3).normal(0, spread, (6, vocab)).astype(np.float32)
    ordered = -np.sort(-logits.astype(np.float64), axis=1)
    probs = np.exp(ordered - ordered[:, :1])
    probs /= probs.sum(axis=1, keepdims=True)
    tops = -np.sort(-logits.reshape(6, choose.GROUP, -1).max(1), axis=1)[:, choose.LARGEST]
    for name, number in (("top_k", 3), ("top_k", 50), ("top_k", 20_000), ("top_p", 0.5), ("top_p", 0.99)):
        kept = np.asarray(jax.jit(functools.partial(choose.sampling_logp, temperature=1.0, **{name: number}))(logits))
        count = np.full(6, number) if name == "top_k" else (np.cumsum(probs, axis=1) < number).sum(axis=1) + 1
        if number != 20_000 and (spread > 2 or name == "top_k"):  # which way was taken
            assert (ordered[np.arange(6), count - 1] > tops).all()
        elif name == "top_p" or number == 20_000:
            assert (ordered[np.arange(6), count - 1] < tops).any()
        if name == "top_k":
            np.testing.assert_array_equal((kept > -1e20).sum(axis=1), count)
        else:  # sums of so many in float32
            np.testing.assert_allclose((kept > -1e20).sum(axis=1), count, rtol=1e-3, atol=1)
        least = np.where(kept > -1e20, logits, np.inf).min(axis=1)
        assert (least > np.where(kept > -1e20, -np.inf, logits).max(axis=1)).all()


def measured(masses, places) -> np.ndarray:
    """The share of all uniform numbers with which `_first` gives each of the places, against all others as one.

    Of its own number it is found by bisection, where it begins to lose; over the others' by midpoints z of their number 1 - z^3.
    """
    rates = np.asarray(masses, np.float64)
    z = (np.arange(1000) + 0.5) / 1000
    rates = np.stack([rates[places], rates.sum() - rates[places]], axis=-1)
    rates = np.broadcast_to(rates[:, None], (len(places), len(z), 2)).reshape(-1, 2).astype(np.float32)
    theirs = np.tile(1 - z**3, len(places))
    low, high, first = np.zeros(len(theirs)), np.ones(len(theirs)), jax.jit(choose._first)
    for _ in range(60):
        middle = (low + high) / 2
        uniform = np.minimum(np.stack([middle, theirs], axis=-1), 1 - 2.0**-24).astype(np.float32)
        wins = np.asarray(first(rates, uniform)) == 0
        low, high = np.where(wins, middle, low), np.where(wins, high, middle)
    return (low.reshape(-1, len(z)) * 3 * z**2).mean(axis=1)


@pytest.mark.parametrize("vocab", [7, 600, 50_257, 262_144])
def test_as_many_uniform_numbers_lead_to_a_token_as_its_probability_says(vocab):
    """Down to 1e-8, where one uniform float32 over the whole vocabulary would be off by ten times: its steps are 1.2e-7."""
    rng = np.random.default_rng(vocab)
    logits = rng.normal(0, 3, vocab).astype(np.float32)
    logits[: vocab // 2] -= 4
    logits[-1] = logits.max() + 3
    probs = np.exp(logits.astype(np.float64) - logits.max())
    probs /= probs.sum()
    order = np.argsort(-probs)[: (probs > 1e-8).sum()]
    tokens = order[np.unique(np.linspace(0, len(order) - 1, 20).astype(int))]
    rows = choose._in_rows(jnp.asarray(logits)[None], choose.BLOCKS)
    top = logits.max()
    masses = np.asarray(choose._columns([jnp.exp(part - top) for part in rows], jnp.sum))[0]
    blocks, share = tokens % choose.BLOCKS, []
    for token, block, of_block in zip(tokens, blocks, measured(masses, blocks), strict=True):
        column = np.exp(logits[block :: choose.BLOCKS] - top)
        alone = np.count_nonzero(column) == 1
        share.append(of_block * (1 if alone else measured(column, np.array([token // choose.BLOCKS]))[0]))
    np.testing.assert_allclose(share, probs[tokens], rtol=1e-3)


def test_uniform_numbers_are_fine_near_zero_and_never_one():
    """Of 2^20 the least is about 2^-20 with 24 bits of its own, where steps of 2^-32 would leave 12."""
    uniform = np.asarray(choose._uniform(jax.random.split(jax.random.key(0), 1024), 1024))
    assert uniform.min() > 0 and uniform.max() < 1
    least = np.sort(uniform.ravel())[:64].astype(np.float64)
    assert (least * 2**32 % 1 != 0).mean() > 0.9
    np.testing.assert_allclose([uniform.mean(), uniform.var()], [1 / 2, 1 / 12], rtol=2e-3)
    always = jnp.full((1, 3), 1 - 2.0**-24)
    assert choose._first(jnp.array([[0.0, 0.0, 1e-30]]), always)[0] == 2  # what cannot be drawn never is


def test_frequencies_in_a_large_vocabulary():
    vocab, rows, times = 40_000, 100, 60
    logits = np.random.default_rng(4).normal(0, 2, vocab).astype(np.float32)
    probs = np.exp(logits.astype(np.float64))
    probs /= probs.sum()
    drawn = jax.jit(functools.partial(choose.choose, sampling=settings_lib.WHOLE))
    keys = jax.random.split(jax.random.key(6), (times, rows))
    tokens = np.concatenate([drawn(np.tile(logits, (rows, 1)), some)[0] for some in keys])
    order = np.random.default_rng(5).permutation(vocab)
    for bins in (np.argsort(order) * 50 // vocab, np.arange(vocab) * 50 // vocab, np.arange(vocab) % 50):
        expected = len(tokens) * np.bincount(bins, probs)
        chi2 = ((np.bincount(bins[tokens], minlength=50) - expected) ** 2 / expected).sum()
        assert chi2 < 49 + 4 * np.sqrt(2 * 49)  # four sigmas; the seed is fixed


def test_no_end_before_min_new_and_then_as_without_it(model, params):
    ids, least = (1, 2, 3, 4, 5, 6), 5
    run = functools.partial(generate, model, params, PROMPTS, KEY, max_new=9, eos_id=ids, num_samples=4)
    free, held = run(), run(min_new=least)
    assert lengths(free).min() == 1 and lengths(held).min() == 6 and lengths(held).max() == 9
    for row, num in enumerate(lengths(held)):
        prompt, tokens = PROMPTS[row // 4], np.asarray(held.tokens[row, :num]).tolist()
        assert not np.isin(tokens[:least], ids).any()
        rows = next_logits(model, params, [*prompt, *tokens])[len(prompt) - 1 :]
        for t, token in enumerate(tokens):
            expected = reference.sampling_probs(rows[t], temperature=1.0, forbidden=ids if t < least else ())[token]
            np.testing.assert_allclose(np.exp(held.logp[row, t]), expected, rtol=1e-4)


# ------------------------------------------------------------------ going on with a response


@pytest.mark.parametrize("settings", [{}, dict(repetition_penalty=1.5, min_new=6)], ids=str)
def test_a_response_whose_beginning_is_given_goes_on_as_it_did(model, params, settings):
    ids = (1, 2, 3)
    run = functools.partial(generate, model, params, key=KEY, max_new=9, eos_id=ids, **settings)
    whole = run(PROMPTS)
    given = np.minimum([0, 2, 5, 3], lengths(whole) - 1)
    starts = [np.asarray(whole.tokens[row, :num]).tolist() for row, num in enumerate(given)]
    rest = run([prompt + start for prompt, start in zip(PROMPTS, starts, strict=True)], given=given.tolist())
    for row, num in enumerate(given):
        mine = np.asarray(whole.tokens[row])[num : lengths(whole)[row]]
        np.testing.assert_array_equal(np.asarray(rest.tokens[row])[: lengths(rest)[row]], mine)
        np.testing.assert_allclose(
            rest.logp[row][: len(mine)], whole.logp[row, num : num + len(mine)], rtol=1e-5, atol=2e-5
        )


@pytest.mark.parametrize("given", [[3, 0, 0, 0], [0, 0, 5, 0], [-1, 0, 0, 0]])
def test_more_than_can_be_given_is_refused(model, params, given):
    with pytest.raises(ValueError, match="are given as its response's"):
        generate(model, params, PROMPTS, KEY, max_new=5, given=given, eos_id=tiny.EOS)


def test_padding_up_to_sixteen_costs_no_new_compilation(model, params):
    from reft_jax import sampling

    run = functools.partial(generate, model, params, key=KEY, max_new=3, eos_id=tiny.EOS)
    run([[1], [2, 3]])
    size = sampling._sample._cache_size()
    run([[1] * 9, [2] * 16])
    assert sampling._sample._cache_size() == size
    run([[1] * 17, [2] * 16])
    assert sampling._sample._cache_size() == size + 1
