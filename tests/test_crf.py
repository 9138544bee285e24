"""The CRF against an enumeration of all paths in float64 NumPy."""

import dataclasses
import itertools
import re
from functools import cache, cached_property, partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from jax.sharding import AxisType, NamedSharding, PartitionSpec
from scipy.special import logsumexp

from lstmjax import CRFParams, crf

TIME = 5
LENGTHS = np.array([5, 3, 0, 1, 2, 4])
CONSTRAINTS = ("none", "some", "most", "all")
every_size = pytest.mark.parametrize("tags", [1, 5])
every_constraint = pytest.mark.parametrize("constraint", CONSTRAINTS)


def example(tags, *batch, time=TIME, seed=0, scale=1.0):
    rng = np.random.default_rng(seed)
    shapes = (tags,), (tags, tags), (tags,)
    drawn = [np.float32(rng.normal(scale=scale, size=shape)) for shape in (*shapes, (*batch, time, tags))]
    *params, emissions = map(np.float64, drawn)
    return CRFParams(*params), emissions


def allowed_of(constraint, tags):
    """Nothing forbidden, some, most, or all of it; but for the last there is always a path of 2 steps and more."""
    rng = np.random.default_rng(7)
    rate = {"none": 1.0, "some": 0.7, "most": 0.2, "all": 0.0}[constraint]
    start, transitions, end = (rng.random(shape) < rate for shape in ((tags,), (tags, tags), (tags,)))
    if constraint != "all":
        start[0] = end[-1] = transitions[0, 0] = transitions[0, -1] = True
    return crf.Allowed(start, transitions, end)


def forbid(params, allowed):
    if allowed is None:
        return params
    return jax.tree.map(lambda score, may: np.where(may, score, -np.inf), params, CRFParams(**vars(allowed)))


def scores_of(params, emissions, paths):
    """Of paths [paths, time], one term of the sum after another."""
    if paths.shape[1] == 0:
        return np.zeros(len(paths))
    total = params.start[paths[:, 0]] + params.end[paths[:, -1]]
    for t, scores in enumerate(emissions):
        total = total + scores[paths[:, t]]
    for before, after in itertools.pairwise(paths.T):
        total = total + params.transitions[before, after]
    return total


class Enumeration:
    """All paths of one sequence, and what follows from them."""

    def __init__(self, params, emissions, allowed=None):
        time, tags = emissions.shape
        params = forbid(params, allowed)
        self.paths = np.array(list(itertools.product(range(tags), repeat=time)), int).reshape(tags**time, time)
        self.scores = scores_of(params, emissions, self.paths)
        self.log_partition = logsumexp(self.scores)
        possible = np.isfinite(self.log_partition)
        self.probabilities = np.exp(self.scores - self.log_partition) if possible else np.zeros(len(self.paths))
        self.onehot = np.eye(tags)[self.paths]
        self.marginals = np.einsum("p,ptk->tk", self.probabilities, self.onehot)
        self.pairs = np.einsum("p,pti,ptj->ij", self.probabilities, self.onehot[:, :-1], self.onehot[:, 1:])
        best = self.scores.argmax()
        self.best = self.paths[best] if possible else np.zeros(time, int)
        self.best_score = self.scores[best]

    @cached_property
    def covariances(self):
        """[time, tags, time, tags], the second derivatives of log Z in the emissions."""
        flat, mean = self.onehot.reshape(len(self.paths), -1), self.marginals.reshape(-1)
        covariances = flat.T * self.probabilities @ flat - np.outer(mean, mean)
        return covariances.reshape(self.marginals.shape * 2)


def enumerated(params, emissions, allowed=None, lengths=LENGTHS):
    return [Enumeration(params, e[:length], allowed) for e, length in zip(emissions, lengths, strict=True)]


def float32(tree):
    return jax.tree.map(np.float32, tree)


def padded(emissions, lengths, value=np.nan):
    return np.where(np.arange(emissions.shape[-2])[:, None] < lengths[..., None, None], emissions, value)


@jax.jit
def jitted(params, emissions, tags, lengths, allowed):
    """One program for each signature, over all of the module."""
    arguments = {"lengths": lengths, "allowed": allowed}

    def likelihood(params, emissions):
        values = crf.log_likelihood(params, emissions, tags, **arguments)
        return jnp.where(values > -jnp.inf, values, 0).sum(), values

    return {
        "log_likelihood": jax.value_and_grad(likelihood, argnums=(0, 1), has_aux=True)(params, emissions),
        "log_partition": crf.log_partition(params, emissions, **arguments),
        "marginals": crf.marginals(params, emissions, **arguments),
    }


@jax.jit
def decoded(params, emissions, lengths, allowed):
    return crf.decode(params, emissions, lengths=lengths, allowed=allowed)


def close(actual, expected, tolerance=1e-6):
    """To 1e-6 of the largest number, where that is above 1."""
    expected = np.asarray(expected)
    largest = np.abs(expected[np.isfinite(expected)]).max(initial=1)
    np.testing.assert_allclose(actual, expected, rtol=0, atol=tolerance * largest)


@cache
def enumerated_example(tags, constraint):
    params, emissions = example(tags, len(LENGTHS))
    allowed = allowed_of(constraint, tags)
    return params, emissions, allowed, enumerated(params, emissions, allowed)


@every_constraint
@every_size
def test_against_all_paths(tags, constraint):
    params, emissions, allowed, truths = enumerated_example(tags, constraint)
    rng = np.random.default_rng(1)
    chosen = [rng.choice(len(t.paths), p=t.probabilities if t.probabilities.any() else None) for t in truths]
    path = np.full((len(LENGTHS), TIME), -9)
    for row, truth, c in zip(path, truths, chosen, strict=True):
        row[: truth.paths.shape[1]] = truth.paths[c]
    given = float32((params, padded(emissions, LENGTHS)))
    result = jitted(*given, path, LENGTHS, allowed)
    result, (tags_found, scores) = jax.tree.map(np.asarray, (result, decoded(*given, LENGTHS, allowed)))

    (_, likelihoods), slopes = result["log_likelihood"]
    close(result["log_partition"], [t.log_partition for t in truths])
    possible = [t.probabilities.any() for t in truths]
    expected = [
        t.scores[c] - t.log_partition if p else -np.inf for t, c, p in zip(truths, chosen, possible, strict=True)
    ]
    close(likelihoods, expected)
    np.testing.assert_array_less(likelihoods, 1e-6)

    assert tags_found.dtype == jnp.int32
    close(scores, [t.best_score for t in truths])
    expected_slopes = jax.tree.map(np.zeros_like, (params, emissions))
    for row, (truth, c) in enumerate(zip(truths, chosen, strict=True)):
        length = LENGTHS[row]
        np.testing.assert_array_equal(tags_found[row], [*truth.best, *[0] * (TIME - length)])
        close(result["marginals"][row, :length], truth.marginals)
        np.testing.assert_array_equal(result["marginals"][row, length:], 0)
        if length == 0 or not possible[row]:
            continue
        difference = truth.onehot[c] - truth.marginals
        expected_slopes[1][row, :length] = difference
        expected_slopes[0].start[:] += difference[0]
        expected_slopes[0].end[:] += difference[-1]
        expected_slopes[0].transitions[:] += truth.onehot[c][:-1].T @ truth.onehot[c][1:] - truth.pairs
    jax.tree.map(close, slopes, expected_slopes)


@jax.jit
def drawn_paths(params, emissions, keys, lengths, allowed):
    return jax.vmap(lambda key: crf.sample(params, emissions, key=key, lengths=lengths, allowed=allowed))(keys)


@every_constraint
def test_samples(constraint):
    """Each path as often as its probability says, within 5 standard deviations; one that is forbidden never."""
    params, emissions = example(3, 3, time=4, seed=2)
    lengths, allowed, count = np.array([4, 2, 0]), allowed_of(constraint, 3), 20_000
    keys = jax.random.split(jax.random.key(0), count)
    samples = np.asarray(drawn_paths(*float32((params, emissions)), keys, lengths, allowed))
    assert samples.shape == (count, 3, 4)
    for row, truth in enumerate(enumerated(params, emissions, allowed, lengths)):
        np.testing.assert_array_equal(samples[:, row, lengths[row] :], 0)
        if not truth.probabilities.any():
            np.testing.assert_array_equal(samples[:, row], 0)
            continue
        drawn = (samples[:, row, None, : lengths[row]] == truth.paths).all(axis=-1).sum(axis=0)
        assert drawn.sum() == count
        deviation = np.sqrt(count * truth.probabilities * (1 - truth.probabilities))
        assert (np.abs(drawn - count * truth.probabilities) <= 5 * deviation).all()


@jax.jit
def differentiated(params, emissions, path, lengths, allowed, along, weights):
    """Likelihoods, marginals, the slopes of their sum with these weights, and how they change along a direction."""
    arguments = {"lengths": lengths, "allowed": allowed}
    marginals = partial(crf.marginals, **arguments)  # themselves a derivative
    found, pull = jax.vjp(marginals, params, emissions)
    ahead = jax.jvp(marginals, (params, emissions), along)[1]
    return crf.log_likelihood(params, emissions, path, **arguments), found, pull(weights), ahead


def test_derivatives_in_float64(x64):
    """Of first and second order, forward and reverse, against those of all paths and against differences."""
    given, allowed = example(3, 2, time=4), allowed_of("most", 3)
    params, emissions = given
    path = np.array([truth.best for truth in enumerated(params, emissions, allowed, [4, 4])])
    lengths = np.array([4, 2])
    path[1, 1] = 2
    rng = np.random.default_rng(3)
    along = jax.tree.map(lambda a: rng.normal(size=a.shape), given)
    weights = rng.normal(size=emissions.shape)
    likelihoods, found, slopes, ahead = differentiated(params, emissions, path, lengths, allowed, along, weights)

    truths = enumerated(params, emissions, allowed, lengths)
    expected = [
        scores_of(forbid(params, allowed), e[:length], y[None, :length])[0] - truth.log_partition
        for e, y, length, truth in zip(emissions, path, lengths, truths, strict=True)
    ]
    np.testing.assert_allclose(likelihoods, expected, rtol=1e-12)
    assert np.isfinite(expected).all()
    assert found.dtype == np.float64

    step = 1e-4
    ends = [
        enumerated(*jax.tree.map(lambda a, b, by=by: a + by * b, given, along), allowed, lengths)
        for by in (-step, step)
    ]
    change = np.zeros_like(emissions)
    for row, (truth, before, after) in enumerate(zip(truths, *ends, strict=True)):
        length = lengths[row]
        change[row, :length] = (after.marginals - before.marginals) / (2 * step)
        np.testing.assert_allclose(found[row, :length], truth.marginals, rtol=0, atol=1e-12)
        slope = np.tensordot(weights[row, :length], truth.covariances)
        np.testing.assert_allclose(slopes[1][row, :length], slope, rtol=0, atol=1e-12)
        assert not slopes[1][row, length:].any()
    total = sum(jax.tree.leaves(jax.tree.map(lambda a, b: (a * np.asarray(b)).sum(), along, slopes)))
    np.testing.assert_allclose(total, (weights * change).sum(), rtol=1e-6, atol=1e-6)
    np.testing.assert_allclose(ahead, change, rtol=1e-6, atol=1e-6)


def forward(params, emissions):
    """log Z and the marginals of one long sequence, by the recursion in float64 NumPy."""

    def alphas(start, transitions, emissions):
        rows = [start + emissions[0]]
        for scores in emissions[1:]:
            rows.append(np.logaddexp.reduce(rows[-1][:, None] + transitions, axis=0) + scores)
        return np.array(rows)

    ahead = alphas(params.start, params.transitions, emissions)
    behind = alphas(params.end, params.transitions.T, emissions[::-1])[::-1]
    total = logsumexp(ahead[-1] + params.end)
    return total, np.exp(ahead + behind - emissions - total)


@jax.jit
def best_of(params, emissions):
    path, score = crf.decode(params, emissions)
    total, marginals = jax.value_and_grad(crf.log_partition, argnums=1)(params, emissions)
    likelihood = crf.log_likelihood(params, emissions, path)
    return total, marginals, path, score, likelihood


@pytest.mark.parametrize("scale", [1.0, 1e3, 1e4])
def test_long_sequences(scale):
    tags, time = 4, 10_000
    params, emissions = example(tags, time=time, scale=scale)
    emissions = np.float64(np.float32(emissions + 3 * scale))
    expected, expected_marginals = forward(params, emissions)
    total, marginals, path, best, likelihood = best_of(*float32((params, emissions)))
    np.testing.assert_allclose(total, expected, rtol=1e-6)
    np.testing.assert_allclose(marginals, expected_marginals, atol=3e-5)
    path_score = scores_of(params, emissions, np.array(path)[None])[0]
    np.testing.assert_allclose(best, path_score, rtol=1e-6)
    np.testing.assert_allclose(likelihood, path_score - expected, rtol=2e-6, atol=2e-5 * scale)


@jax.jit
def scored(params, emissions, tags, lengths):
    arguments = {"lengths": lengths}
    return (
        crf.log_likelihood(params, emissions, tags, **arguments),
        crf.marginals(params, emissions, **arguments),
        crf.decode(params, emissions, **arguments),
    )


def batches():
    """Arguments of `scored` with two batch axes, the same for all who share its program."""
    params, emissions = float32(example(3, 2, 4))
    tags, lengths = np.arange(2 * 4 * TIME).reshape(2, 4, TIME) % 3, np.array([[5, 0, 2, 3], [1, 4, 2, 5]])
    return params, emissions, tags, lengths


@cache
def scored_batches():
    """In NumPy, since arrays of JAX are lost with their backend."""
    return jax.tree.map(np.asarray, scored(*batches()))


def together(params, emissions):
    """The marginals of two sequences of 4 steps among others in one batch, by the program of `scored`."""
    given, lengths = np.zeros((2, 4, TIME, 3)), np.array([[4, 4, 5, 0], [1, 2, 3, 5]])
    given[0, :2, :4] = emissions
    _, marginals, _ = scored(*float32((params, given)), batches()[2], lengths)
    return np.asarray(marginals)[0, :2, :4]


def test_a_path_far_below_the_best_is_not_lost():
    """Tag 2 comes after tag 1 alone, which lies 200 below tag 0, until an emission makes up for it."""
    params = jax.tree.map(np.zeros_like, example(3)[0])
    allowed = crf.Allowed(np.ones(3, bool), np.array([[1, 0, 0], [1, 1, 1], [1, 1, 1]], bool), np.ones(3, bool))
    emissions = np.zeros((2, 4, 3))
    emissions[0, 0], emissions[0, 1], emissions[0, 3] = (0, -200, -300), (0, -9, 0), (-500, -500, 500)
    truths = enumerated(params, emissions, allowed, [4, 4])
    assert truths[0].marginals[0, 1] > 0.99

    @jax.jit
    @jax.vmap
    @partial(jax.jacfwd, has_aux=True)
    def derivatives(emissions):
        marginals = crf.marginals(float32(params), emissions, allowed=allowed)
        return marginals, marginals

    slopes, mapped = derivatives(float32(emissions))
    for found in (together(forbid(params, allowed), emissions), mapped):
        np.testing.assert_allclose(found, [t.marginals for t in truths], atol=1e-6)
    np.testing.assert_allclose(slopes, [t.covariances for t in truths], atol=1e-6)

    emissions[0, 0], emissions[0, 1] = (0, -87, -88), 0  # exp(-87) is a float32 and exp(-88) is too small for one
    truths = enumerated(params, emissions, allowed, [4, 4])
    np.testing.assert_allclose(together(forbid(params, allowed), emissions), [t.marginals for t in truths], atol=1e-6)


@pytest.fixture(scope="module")
def products_alone():
    """`crf.marginals` compiled with NaN where logarithms would be taken."""

    def cond(holds, products, logarithms, *operands):
        del logarithms
        return jax.tree.map(lambda array: jnp.where(holds, array, jnp.nan), products(*operands))

    compiled = jax.jit(lambda *arguments, **named: crf.marginals(*arguments, **named))

    def marginals(*arguments, **named):
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(jax.lax, "cond", cond)
            return compiled(*arguments, **named)

    return marginals


def test_products_serve_what_is_unlikely(products_alone):
    """Sums of 1e-28 of the largest, whose squares underflow, and which an emission makes up for: second derivatives."""
    params, emissions = jax.tree.map(np.zeros_like, example(3, 1, time=4))
    params.transitions[0, 1:] = -60
    emissions[0] = (0, -64, -65), (0, 5, 0), (-30, 3, 1), (0, 60, 0)
    (truth,) = enumerated(params, emissions, lengths=[4])
    assert 0.01 < truth.marginals[0, 1] < 0.99
    slopes = jax.jit(jax.jacfwd(partial(products_alone, float32(params))))(float32(emissions[0]))
    np.testing.assert_allclose(slopes, truth.covariances, atol=1e-6)


@every_constraint
def test_products_serve_what_is_forbidden(constraint, products_alone):
    """A sum of nothing is exactly 0; logarithms are for what underflows alone."""
    params, emissions = example(5, len(LENGTHS))
    allowed = allowed_of(constraint, 5)
    allowed.transitions[:, 1] = False  # nothing comes before tag 1
    emissions[[0, 5], 1, 2] = -np.inf
    found = products_alone(*float32((params, emissions)), lengths=LENGTHS, allowed=allowed)
    for row, truth in zip(found, enumerated(params, emissions, allowed), strict=True):
        np.testing.assert_allclose(row[: len(truth.marginals)], truth.marginals, atol=1e-6)


def test_batch_axes_are_vmap():
    params, emissions, tags, lengths = batches()
    mapped = jax.vmap(jax.vmap(scored, (None, 0, 0, 0)), (None, 0, 0, 0))(params, emissions, tags, lengths)
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, atol=2e-6), scored_batches(), mapped)
    free = allowed_of("none", 3)
    _, _, same = sought()(params, emissions * 0, lengths, jax.random.key(0), free)
    assert same.shape == (2, 4, TIME)
    assert (same[0, 0] != same[1, 3]).any()  # each sequence draws for itself


@pytest.mark.parametrize(("batch", "time"), [((3,), 0), ((2, 0), 2)])
def test_nothing(batch, time):
    """Of no steps there is one path, with score 0; start and end count where there is a first and a last."""
    params, emissions = float32(example(2, *batch, time=time))
    tags = np.zeros((*batch, time), np.int32)

    def totals(params, emissions):
        scores = [crf.log_likelihood(params, emissions, tags), crf.log_partition(params, emissions)]
        return sum(score.sum() for score in scores), scores

    @jax.jit
    def run(params, emissions):
        slopes, scores = jax.grad(totals, (0, 1), has_aux=True)(params, emissions)
        marginals = crf.marginals(params, emissions)
        drawn = crf.sample(params, emissions, key=jax.random.key(0))
        return slopes, scores, crf.decode(params, emissions), drawn, marginals

    slopes, scores, (path, best), drawn, marginals = run(params, emissions)
    for result in (*scores, best):
        np.testing.assert_array_equal(result, np.zeros(batch))
    for leaf in jax.tree.leaves(slopes):
        np.testing.assert_array_equal(leaf, 0)
    assert path.shape == tags.shape == drawn.shape
    assert marginals.shape == emissions.shape


def test_half_precision_adds_up_in_float32():
    params, emissions, tags, lengths = batches()
    params, emissions = jax.tree.map(lambda a: a.astype(jnp.bfloat16), (params, emissions))
    results = scored(params, emissions, tags, lengths)
    assert {leaf.dtype.name for leaf in jax.tree.leaves(results)} == {"float32", "int32"}
    expected = scored(*jax.tree.map(lambda a: a.astype(jnp.float32), (params, emissions)), tags, lengths)
    jax.tree.map(np.testing.assert_array_equal, results, expected)
    slope = jax.eval_shape(jax.grad(lambda emissions: crf.log_partition(params, emissions).sum()), emissions)
    assert slope.dtype == jnp.bfloat16


@cache
def k_best(k):
    return jax.jit(partial(crf.decode, k=k))


@every_constraint
@pytest.mark.parametrize("k", [1, 3, 30])
def test_the_k_best_paths(k, constraint):
    """Against a sort of all paths; with padding of NaN, forbidden tags, and fewer paths than k."""
    params, emissions = example(3, 6, time=4, seed=3)
    emissions[0, 1, 2] = emissions[4, 0, :2] = -np.inf
    allowed, lengths = allowed_of(constraint, 3), np.array([4, 3, 0, 1, 2, 4])
    call = (*float32((params, padded(emissions, lengths))),)
    tags, scores = k_best(k)(*call, lengths=lengths, allowed=allowed)
    assert (tags.shape, tags.dtype, scores.shape, scores.dtype) == ((6, k, 4), jnp.int32, (6, k), jnp.float32)
    if k == 1:
        best, score = crf.decode(*call, lengths=lengths, allowed=allowed)
        np.testing.assert_array_equal(tags[:, 0], best)
        np.testing.assert_array_equal(scores[:, 0], score)
    for found, told, length, all_of in zip(
        np.asarray(tags), np.asarray(scores), lengths, enumerated(params, emissions, allowed, lengths), strict=True
    ):
        right = np.sort(all_of.scores)[::-1][:k]
        right = np.pad(right, (0, k - len(right)), constant_values=-np.inf)
        np.testing.assert_allclose(told, right, rtol=1e-5, atol=1e-5)
        assert (told[:-1] >= told[1:]).all()
        assert not found[:, length:].any()
        real = told > -np.inf
        assert not found[~real].any()
        assert len({tuple(path) for path in found[real]}) == real.sum()
        for path, score in zip(found[real, :length], told[real], strict=True):
            own = all_of.scores[(all_of.paths == path).all(axis=1)]
            np.testing.assert_allclose(own, score, rtol=1e-5, atol=1e-5)


def test_the_k_best_paths_of_any_batch_and_of_no_steps():
    params, emissions = float32(example(3, 2, 2, time=3))
    lengths = np.array([[3, 0], [1, 2]])
    call = partial(crf.decode, k=4)
    whole = call(params, emissions, lengths=lengths)
    mapped = jax.vmap(jax.vmap(lambda e, n: call(params, e, lengths=n)))(emissions, lengths)
    jax.tree.map(np.testing.assert_array_equal, whole, mapped)
    tags, scores = call(params, emissions[:, :, :0])
    assert tags.shape == (2, 2, 4, 0)
    np.testing.assert_array_equal(scores, np.broadcast_to([0, -np.inf, -np.inf, -np.inf], (2, 2, 4)))
    tags, scores = call(params, emissions[:0])
    assert (tags.shape, scores.shape) == ((0, 2, 4, 3), (0, 2, 4))


def test_the_k_best_paths_of_a_long_sequence_and_of_ties():
    """Scores are sums of thousands of terms, of which only the differences count; equal ones are of different paths."""
    params, emissions = float32(example(2, time=3000))
    tags, scores = jax.jit(partial(crf.decode, k=3))(params, emissions + 1e4)
    best, score = jax.jit(crf.decode)(params, emissions + 1e4)
    np.testing.assert_array_equal(tags[0], best)
    assert float(scores[0]) == float(score)
    assert len(np.unique(tags, axis=0)) == 3
    tied = crf.decode(CRFParams(np.zeros(2, "f"), np.zeros((2, 2), "f"), np.zeros(2, "f")), np.zeros((3, 2), "f"), k=8)
    assert len(np.unique(tied[0], axis=0)) == 8
    np.testing.assert_array_equal(tied[1], 0)


def test_no_path_is_best_among_scores_of_nan():
    params, emissions = float32(example(3, 2, time=3))
    emissions[0, 1, 1] = np.nan
    scores = np.asarray(crf.decode(params, emissions, k=2)[1])
    assert np.isnan(scores[0]).all()
    assert np.isfinite(scores[1]).all()


@pytest.mark.usefixtures("untyped")
def test_a_number_of_paths_that_is_none():
    params, emissions = float32(example(3, 2, time=3))
    for k in (0, 2.5, True, "3"):
        with pytest.raises(ValueError, match="k must be an integer of at least 1, got"):
            crf.decode(params, emissions, k=k)


@settings(max_examples=30)
@given(st.integers(0, 2**31), st.sampled_from([0.0, 1.0, 1e3, 1e6]), st.tuples(*[st.integers(0, TIME)] * 3))
def test_decoded_paths_are_allowed(seed, scale, lengths):
    """And no path that is drawn has a higher score; both whatever the scores, ties and huge ones among them."""
    params, emissions = example(3, 2, 4, seed=seed, scale=scale)
    allowed, lengths = crf.bio(["O", "B-X", "I-X"]), np.reshape([*lengths, *[0] * 5], (2, 4))
    result = sought()(*float32((params, emissions)), lengths, jax.random.key(seed), allowed)
    found, best, drawn = map(np.asarray, result)
    legal = forbid(params, allowed)
    for row, length in np.ndenumerate(lengths):
        scores = [scores_of(legal, emissions[row][:length], y[row][None, :length]) for y in (found, drawn)]
        assert np.isfinite(scores).all()
        close(best[row], scores[0][0])
        assert scores[1] <= scores[0] + 1e-5 * max(1, scale)


@cache
def sought():
    def run(params, emissions, lengths, key, allowed):
        found, best = crf.decode(params, emissions, lengths=lengths, allowed=allowed)
        return found, best, crf.sample(params, emissions, key=key, lengths=lengths, allowed=allowed)

    return jax.jit(run)


BIO = ["O", "B-X", "I-X", "B-Y-Z", "I-Y-Z"]
BIOES = ["S-X", "O", "I-X", "B-X", "E-X", "B-Y", "E-Y"]


@pytest.mark.parametrize(
    ("names", "grammar"),
    [
        (BIO, "(O |B-X (I-X )*|B-Y-Z (I-Y-Z )*)*"),
        (BIOES, "(O |S-X |B-X (I-X )*E-X |B-Y E-Y )*"),
        (["O"], "(O )*"),
    ],
)
def test_bio_is_the_grammar(names, grammar):
    allowed = crf.bio(names)
    for path in itertools.chain(*(itertools.product(range(len(names)), repeat=time) for time in (1, 2, 3, 4))):
        legal = allowed.start[path[0]] and allowed.end[path[-1]]
        legal = legal and all(allowed.transitions[a, b] for a, b in itertools.pairwise(path))
        text = "".join(f"{names[tag]} " for tag in path)
        assert legal == bool(re.fullmatch(grammar, text)), text


def test_non_finite_emissions_of_valid_steps_propagate():
    params, emissions, tags, lengths = batches()
    emissions[0, 0, 2, 1] = np.nan
    results = scored(params, emissions, tags, lengths)
    for result in (*results[:2], results[2][1]):
        assert np.isnan(result[0, 0]).any()
        assert np.isfinite(result[1]).all()
        assert np.isfinite(result[0, 1:]).all()


def run_on_five_tags(path, lengths, *, emissions=None, allowed=None, **scores):
    """The program of `test_against_all_paths` on `enumerated_example(5, "none")` with some arrays replaced."""
    params, given, free, _ = enumerated_example(5, "none")
    params, emissions = float32((dataclasses.replace(params, **scores), given if emissions is None else emissions))
    return jitted(params, emissions, path, lengths, free if allowed is None else allowed)


def test_scores_of_minus_infinity_forbid():
    """In the parameters as in `allowed`, and in emissions."""
    params, emissions, _, _ = enumerated_example(5, "none")
    allowed, emissions = allowed_of("some", 5), emissions.copy()
    emissions[:, 1, 0] = -np.inf
    truths = enumerated(params, emissions, allowed)
    assert truths[0].probabilities.any()
    found = run_on_five_tags(np.zeros((len(LENGTHS), TIME), int), LENGTHS, emissions=emissions, allowed=allowed)
    for marginals, truth in zip(found["marginals"], truths, strict=True):
        np.testing.assert_allclose(marginals[: len(truth.marginals)], truth.marginals, atol=1e-6)

    params, emissions = example(3, 2, time=4)
    allowed = allowed_of("most", 3)
    emissions[:, 1, 0] = -np.inf
    truths = enumerated(params, emissions, allowed, [4, 4])
    np.testing.assert_allclose(together(forbid(params, allowed), emissions), [t.marginals for t in truths], atol=1e-6)


@pytest.mark.parametrize("place", ["emissions", "transitions"])
def test_a_path_that_is_not_allowed_does_not_hide_what_is_not_finite(place):
    params, emissions, allowed, _ = enumerated_example(5, "none")
    emissions, transitions, may = emissions.copy(), params.transitions.copy(), allowed.transitions.copy()
    if place == "emissions":
        emissions[:, 0, 0] = np.nan
    else:
        transitions[0, 0] = np.nan
    may[1, 1] = False
    allowed = dataclasses.replace(allowed, transitions=may)
    path, lengths = np.ones((len(LENGTHS), TIME), int), np.full(len(LENGTHS), TIME)
    result = run_on_five_tags(path, lengths, emissions=emissions, allowed=allowed, transitions=transitions)
    (_, likelihoods), _ = result["log_likelihood"]
    assert np.isnan(likelihoods).all()


def test_a_tag_out_of_range_gives_nan_under_jit():
    path, lengths = np.zeros((len(LENGTHS), TIME), int), np.array([1, 5, 5, 3, 2, 0])
    path[0, 0], path[1, 2], path[3, 3] = -1, 5, 5
    (_, likelihoods), _ = run_on_five_tags(path, lengths)["log_likelihood"]
    np.testing.assert_array_equal(np.isnan(likelihoods), [True, True, False, False, False, False])


def in_rows():
    """`batches` with one batch axis, to be spread over devices, and what is expected of them."""
    params, *arrays = batches()
    flat = jax.tree.map(lambda a: a.reshape(8, *a.shape[2:]), (arrays, scored_batches()))
    return (params, *flat[0]), flat[1]


@pytest.mark.parametrize("kind", [AxisType.Auto, AxisType.Explicit])
@pytest.mark.usefixtures("four_devices")
def test_batch_sharded_over_a_mesh(kind):
    (params, *arrays), expected = in_rows()
    rows = NamedSharding(jax.make_mesh((4,), ("data",), axis_types=(kind,)), PartitionSpec("data"))
    with jax.set_mesh(rows.mesh):
        results = scored(params, *jax.device_put(arrays, rows))
    assert results[0].sharding.is_equivalent_to(rows, 1)
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, atol=2e-6), results, expected)


@pytest.mark.usefixtures("four_devices")
def test_shard_map_over_the_batch():
    (params, *arrays), expected = in_rows()
    rows, mesh = PartitionSpec("data"), jax.make_mesh((4,), ("data",), axis_types=(AxisType.Auto,))
    specs = PartitionSpec(), rows, rows, rows
    results = jax.jit(jax.shard_map(scored, mesh=mesh, in_specs=specs, out_specs=rows))(params, *arrays)
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, atol=2e-6), results, expected)


@pytest.mark.usefixtures("nothing_cached")
def test_a_second_call_compiles_nothing():
    compilations = []

    def listen(event, duration, **_):
        del duration
        if "compile" in event:
            compilations.append(event)

    params, emissions = float32(example(2, 3))
    decode = jax.jit(partial(crf.decode, lengths=np.array([5, 0, 2]), allowed=crf.bio(["O", "B-X"])))
    jax.monitoring.register_event_duration_secs_listener(listen)
    try:
        jax.block_until_ready(decode(params, emissions))
        assert compilations
        compilations.clear()
        jax.block_until_ready(decode(params, emissions))
        assert not compilations
    finally:
        jax.monitoring.unregister_event_duration_listener(listen)


def test_init():
    normal = jax.nn.initializers.normal(1.0)
    drawn = {"start_init": normal, "transitions_init": normal, "dtype": jnp.bfloat16}
    params = jax.tree.map(np.asarray, jax.jit(lambda: crf.init(jax.random.key(0), 3, **drawn))())
    assert [leaf.shape for leaf in jax.tree.leaves(params)] == [(3,), (3, 3), (3,)]
    assert {leaf.dtype.name for leaf in jax.tree.leaves(params)} == {"bfloat16"}
    assert (params.start != params.transitions[0]).any()
    np.testing.assert_array_equal(params.end, 0)


def test_marginals_of_padding_are_0_even_beside_nan():
    start, path = np.array([np.nan, 0, 0, 0, 0]), np.zeros((len(LENGTHS), TIME), int)
    found = np.asarray(run_on_five_tags(path, LENGTHS, start=start)["marginals"])
    for marginals, length in zip(found, LENGTHS, strict=True):
        assert np.isnan(marginals[:length]).all()
        assert not marginals[length:].any()


def test_refusals(untyped):
    params, emissions = jax.tree.map(np.float32, example(3, 2))
    tags = np.zeros((2, TIME), int)
    functions = [
        partial(crf.log_likelihood, tags=tags),
        crf.log_partition,
        crf.marginals,
        crf.decode,
        partial(crf.sample, key=jax.random.key(0)),
    ]
    for call in functions:
        with pytest.raises(TypeError, match=r"params must be CRFParams, as crf\.init makes it; got dict"):
            call({}, emissions)
        with pytest.raises(TypeError, match="emissions must have a floating dtype, got int32"):
            call(params, emissions.astype(np.int32))
        with pytest.raises(ValueError, match=r"emissions must have 3 features in its last axis, because params\.trans"):
            call(params, emissions[..., :2])
        with pytest.raises(ValueError, match=r"emissions must have axes \[\*batch, time, tags\], at least 2 of them"):
            call(params, emissions[0, 0])
        with pytest.raises(ValueError, match=r"lengths must lie between 0 and 5 \(the number of time steps of emissio"):
            call(params, emissions, lengths=np.array([7, 1]))
        with pytest.raises(
            ValueError, match=r"lengths must have shape \(2,\) \(the batch axes of emissions\), got \(\)"
        ):
            call(params, emissions, lengths=3)
        with pytest.raises(ValueError, match=r"params\.end must have shape \(3,\) \(the tags of params\.transitions\)"):
            call(CRFParams(params.start, params.transitions, params.end[:2]), emissions)
        with pytest.raises(ValueError, match=r"params\.transitions must have shape \(3, 3\)"):
            call(CRFParams(params.start, params.transitions[:, :2], params.end), emissions)
        with pytest.raises(TypeError, match=r"allowed must be Allowed, as crf\.bio makes it; got list"):
            call(params, emissions, allowed=["O", "B-X", "I-X"])
        with pytest.raises(TypeError, match=r"allowed\.start must be bool, True where a path may go; got int32 \(3,\)"):
            call(params, emissions, allowed=crf.Allowed(np.ones(3, np.int32), np.ones((3, 3), bool), np.ones(3, bool)))
        with pytest.raises(ValueError, match=r"allowed\.start must have shape \(3,\) .*, got \(2,\)"):
            call(params, emissions, allowed=crf.bio(["O", "B-X"]))
    with pytest.raises(
        ValueError, match=r"tags must lie between 0 and 2 \(the tags of params\.transitions\); got .* 3"
    ):
        crf.log_likelihood(params, emissions, tags + 3, lengths=np.array([5, 1]))
    with pytest.raises(TypeError, match=r"tags must be integers, got float32 \(2, 5\)"):
        crf.log_likelihood(params, emissions, np.zeros((2, TIME), np.float32))
    with pytest.raises(
        ValueError, match=r"tags must have shape \(2, 5\) \(\[\*batch, time\] of emissions\), got \(2, 4\)"
    ):
        crf.log_likelihood(params, emissions, tags[:, 1:])
    tags[1, 1:] = -100
    likelihood = partial(crf.log_likelihood, tags=tags, lengths=np.array([5, 1]))  # constants of the program
    assert np.isfinite(jax.jit(likelihood)(params, emissions)).all()
    assert crf._path(tags, params.transitions, emissions, jnp.array([5, 1])).max() == 0
    with pytest.raises(ValueError, match="tags must be an integer of at least 1, got 0"):
        crf.init(jax.random.key(0), 0)
    with pytest.raises(ValueError, match=r"end_init must return shape \(2,\)"):
        crf.init(jax.random.key(0), 2, end_init=lambda key, shape, dtype: jnp.zeros(1))
    for names in (["O", "X"], ["Q-X"], ["B"], [""], ["O-X"]):
        with pytest.raises(ValueError, match="names must be 'O', or begin with 'B-', 'I-', 'E-' or 'S-'; got '"):
            crf.bio(names)
    with pytest.raises(ValueError, match="names must be those of at least 1 tag, got none"):
        crf.bio([])
