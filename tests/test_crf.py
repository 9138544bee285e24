"""The CRF against an enumeration of all paths in float64 NumPy."""

import itertools
from functools import cache

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from scipy.special import logsumexp

from lstmjax import CRFParams, crf

TIME = 6
LENGTHS = np.array([6, 3, 0, 1, 2, 5])
CONSTRAINTS = ("none", "some", "most", "all")
every_size = pytest.mark.parametrize("tags", [1, 2, 3, 5])
every_implementation = pytest.mark.parametrize("implementation", crf.IMPLEMENTATIONS)
every_constraint = pytest.mark.parametrize("constraint", CONSTRAINTS)


def example(tags, *batch, time=TIME, seed=0, scale=1.0):
    rng = np.random.default_rng(seed)
    shapes = (tags,), (tags, tags), (tags,)
    drawn = [np.float32(rng.normal(scale=scale, size=shape)) for shape in (*shapes, (*batch, time, tags))]
    *params, emissions = map(np.float64, drawn)
    return CRFParams(*params), emissions


def allowed_of(constraint, tags):
    """Nothing forbidden, a few moves, most of them, or all: in every case "most" leaves one tag that may go on."""
    if constraint == "none":
        return None
    rng = np.random.default_rng(7)
    rate = {"some": 0.7, "most": 0.2, "all": 0.0}[constraint]
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


def enumerated(params, emissions, allowed=None, lengths=LENGTHS):
    return [Enumeration(params, e[:length], allowed) for e, length in zip(emissions, lengths, strict=True)]


def float32(tree):
    return jax.tree.map(lambda a: jnp.asarray(a, jnp.float32), tree)


def padded(emissions, lengths, value=np.nan):
    return np.where(np.arange(emissions.shape[-2])[:, None] < lengths[..., None, None], emissions, value)


@cache
def jitted(implementation):
    """One program for each signature, over all of the module."""

    def run(params, emissions, tags, lengths, allowed):
        arguments = {"lengths": lengths, "allowed": allowed, "implementation": implementation}

        def likelihood(params, emissions):
            values = crf.log_likelihood(params, emissions, tags, **arguments)
            return jnp.where(values > -jnp.inf, values, 0).sum(), values

        def partition(params, emissions):
            values = crf.log_partition(params, emissions, **arguments)
            return jnp.where(values > -jnp.inf, values, 0).sum(), values

        differentiate = [jax.value_and_grad(f, argnums=(0, 1), has_aux=True) for f in (likelihood, partition)]
        return {
            "log_likelihood": differentiate[0](params, emissions),
            "log_partition": differentiate[1](params, emissions),
            "marginals": crf.marginals(params, emissions, **arguments),
            "decode": crf.decode(params, emissions, lengths=lengths, allowed=allowed),
        }

    return jax.jit(run)


def close(actual, expected, tolerance=1e-6):
    """To 1e-6 of the largest number, where that is above 1."""
    expected = np.asarray(expected)
    largest = np.abs(expected[np.isfinite(expected)]).max(initial=1)
    np.testing.assert_allclose(actual, expected, rtol=0, atol=tolerance * largest)


@every_constraint
@every_size
@every_implementation
def test_against_all_paths(tags, constraint, implementation):
    params, emissions = example(tags, len(LENGTHS))
    allowed = allowed_of(constraint, tags)
    truths = enumerated(params, emissions, allowed)
    rng = np.random.default_rng(1)
    chosen = [rng.choice(len(t.paths), p=t.probabilities if t.probabilities.any() else None) for t in truths]
    path = np.full((len(LENGTHS), TIME), -9)
    for row, truth, c in zip(path, truths, chosen, strict=True):
        row[: truth.paths.shape[1]] = truth.paths[c]
    given = padded(emissions, LENGTHS)
    result = jitted(implementation)(float32(params), jnp.asarray(given, jnp.float32), path, LENGTHS, allowed)

    (_, partitions), partition_slopes = result["log_partition"]
    (_, likelihoods), slopes = result["log_likelihood"]
    close(partitions, [t.log_partition for t in truths])
    possible = [t.probabilities.any() for t in truths]
    expected = [
        t.scores[c] - t.log_partition if p else -np.inf for t, c, p in zip(truths, chosen, possible, strict=True)
    ]
    close(likelihoods, expected)
    np.testing.assert_array_less(likelihoods, 1e-6)

    tags_found, scores = result["decode"]
    assert tags_found.dtype == jnp.int32
    close(scores, [t.best_score for t in truths])
    expected_slopes = jax.tree.map(np.zeros_like, (params, emissions))
    for row, (truth, c) in enumerate(zip(truths, chosen, strict=True)):
        length = LENGTHS[row]
        np.testing.assert_array_equal(tags_found[row], [*truth.best, *[0] * (TIME - length)])
        close(result["marginals"][row, :length], truth.marginals)
        np.testing.assert_array_equal(result["marginals"][row, length:], 0)
        close(partition_slopes[1][row, :length], truth.marginals)
        if length == 0 or not possible[row]:
            continue
        difference = truth.onehot[c] - truth.marginals
        expected_slopes[1][row, :length] = difference
        expected_slopes[0].start[:] += difference[0]
        expected_slopes[0].end[:] += difference[-1]
        expected_slopes[0].transitions[:] += truth.onehot[c][:-1].T @ truth.onehot[c][1:] - truth.pairs
    jax.tree.map(close, slopes, expected_slopes)


@every_constraint
def test_samples(constraint):
    """Each path as often as its probability says, within 5 standard deviations; one that is forbidden never."""
    params, emissions = example(3, 3, time=4, seed=2)
    lengths, allowed, count = np.array([4, 2, 0]), allowed_of(constraint, 3), 20_000
    params32, emissions32 = float32((params, emissions))
    draw = jax.jit(lambda key: crf.sample(params32, emissions32, key=key, lengths=lengths, allowed=allowed))
    samples = np.asarray(jax.vmap(draw)(jax.random.split(jax.random.key(0), count)))
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
