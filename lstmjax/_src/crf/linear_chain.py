"""Sums and maxima over all paths of one sequence; `crf` maps these functions over its batch.

    alpha_t[j] = log(sum_i exp(alpha_{t-1}[i] + transitions[i, j])) + emissions_t[j]         forward
    delta_t[j] = max_i(delta_{t-1}[i] + transitions[i, j]) + emissions_t[j]                  Viterbi's

Where several paths are asked for, delta_t[j] is the list of the best k scores, since each of the best k paths through a
tag goes on from one of the best k through the tag before (Seshadri & Sundberg, "List Viterbi decoding algorithms with
applications", 1994).

Rabiner, "A tutorial on hidden Markov models" (1989). Start and end scores are in the emissions of the first and of the
last valid step, and what is forbidden scores -inf.
"""

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from lstmjax._src import mesh


def log_likelihood(transitions, emissions, length, tags):
    """-log Z of the scores less those of the path, step by step: nothing large is subtracted from something large."""
    emissions = emissions - _highest(emissions)
    scores = _step_scores(transitions, emissions, length, tags)
    possible = (scores != -jnp.inf).all()
    relative = emissions - jnp.where(possible, scores, 0)[:, None]
    log_p = -log_partition(transitions, relative, length)
    otherwise = jnp.where(jnp.isnan(log_p) | jnp.isnan(scores).any(), jnp.nan, -jnp.inf)
    return jnp.where(possible, log_p, otherwise)


def _step_scores(transitions, emissions, length, tags):
    """Score that each step of a path adds: NaN for a tag out of range, 0 in padding."""
    tags = jnp.where(tags < 0, len(transitions), tags)
    moves = transitions.at[tags[:-1], tags[1:]].get(mode="fill", fill_value=np.nan)
    scores = jnp.take_along_axis(emissions, tags[:, None], axis=1, mode="fill")[:, 0]
    return jnp.where(jnp.arange(len(tags)) < length, scores + jnp.pad(moves, (len(tags) - len(moves), 0)), 0)


def log_partition(transitions, emissions, length):
    """log(sum_j exp(alpha_T[j])), 0 without steps."""
    alphas, norm = _forward(transitions, emissions, length)
    return jnp.where(length > 0, norm + _log_sum(_at(alphas, length - 1), 0), 0)


def marginals(transitions, emissions, length):
    """The derivative of log Z in the emissions; 0 at padding, even where that derivative is NaN."""
    slopes = jax.grad(log_partition, argnums=1)(transitions, emissions, length)
    return jnp.where(jnp.arange(len(emissions))[:, None] < length, slopes, 0)


def decode(transitions, emissions, length):
    """The path of the highest score, and that score."""
    highest, norms = _recursion(lambda delta: (delta[:, None] + transitions).max(axis=0), emissions, length)
    tags = _backward(transitions, highest, length, jnp.zeros_like(highest))
    score = _step_scores(transitions, emissions, length, tags).sum()
    return tags, jnp.where(jnp.isnan(norms).any(), jnp.nan, score)  # there is no best path among scores of NaN


def decode_several(k, transitions, emissions, length):
    """The k paths of the highest scores, best first, and those scores; -inf and tags 0 where there are fewer."""
    time, size = emissions.shape
    steps = jnp.arange(time, dtype=jnp.int32)
    empty = jnp.where(jnp.arange(k) == 0, 0, -jnp.inf).astype(emissions.dtype)  # the one path without steps
    same = jnp.arange(size * k, dtype=jnp.int32).reshape(size, k)

    def step(delta, inputs):
        t, emission = inputs
        ways = (delta[:, None, :] + transitions[:, :, None]).transpose(1, 0, 2).reshape(size, size * k)  # to each tag
        scores, sources = jax.lax.top_k(ways, k)
        scores = jnp.where(t == 0, empty[None], scores) + emission[:, None]
        scores, sources = jnp.where(t < length, scores, delta), jnp.where(t < length, sources, same)
        return scores - _highest(scores.reshape(-1))[0], sources

    def back(place, inputs):
        t, sources = inputs
        tags = jnp.where(t < length, place // k, 0)
        return jnp.where(t < length, jnp.take_along_axis(sources.reshape(-1), place, axis=0), place), tags

    first, emissions = mesh.match_varying_axes((jnp.zeros((size, k), emissions.dtype), emissions))
    delta, sources = jax.lax.scan(step, first, (steps, emissions))
    found, places = jax.lax.top_k(delta.reshape(-1), k)
    _, tags = jax.lax.scan(back, places, (steps, sources), reverse=True)
    possible = jnp.where(length > 0, found, empty) > -jnp.inf
    tags = jnp.where(possible[:, None], tags.T, 0)
    scores = jax.vmap(lambda tags: _step_scores(transitions, emissions, length, tags).sum())(tags)
    scores = jnp.where(jnp.isnan(found).any(), jnp.nan, jnp.where(possible, scores, -jnp.inf))
    scores, order = jax.lax.top_k(scores, k)  # sums of the same numbers in another order may differ in rounding
    return tags[order], scores


def sample(transitions, emissions, length, key):
    """A path as likely as the others are: the argmax of scores with Gumbel noise is a draw from their softmax."""
    alphas, _ = _forward(transitions, emissions, length)
    return _backward(transitions, alphas, length, jax.random.gumbel(key, alphas.shape, alphas.dtype))


def _forward(transitions, emissions, length):
    """alpha_t, each less a constant of its step, and what was taken from the last of them."""
    tops = _highest(emissions)
    lowered = emissions - tops

    def exactly(transitions, lowered, alphas, norms):
        del alphas, norms
        return _recursion(lambda alpha: _log_sum(alpha[:, None] + transitions, 0), lowered, length)

    alphas, norms = _recursion(_product(transitions), lowered, length)
    alphas, norms = jax.lax.cond(
        _everywhere(~_lost(transitions, lowered, alphas, length)),
        lambda transitions, lowered, alphas, norms: (alphas, norms),
        jax.checkpoint(exactly),  # so that where it does not run there is nothing to be kept for its gradient
        *(transitions, lowered, alphas, norms),
    )
    return alphas, (tops[:, 0] + norms).sum()


def _product(transitions):
    """log(exp(alpha) exp(transitions)) by a product with a matrix; -inf for a sum that may have lost a part.

    Both factors are at most 1, so what underflows is below `tiny`: a sum of at least tiny / eps misses no more than
    rounding does.
    """
    limits = jnp.finfo(transitions.dtype)
    top, least = _highest(transitions.reshape(-1))[0], limits.tiny / limits.eps
    factors = jnp.exp(transitions - top)

    def predict(alpha):
        total = jnp.matmul(jnp.exp(alpha), factors, precision=jax.lax.Precision.HIGHEST)
        lost = total < least
        scale = jax.lax.stop_gradient(jnp.where(lost, 1, total))
        ratio = jnp.where(lost, 1, total / scale)  # 1; second derivatives divide by its square, not by that of total
        return jnp.where(lost, -jnp.inf, jnp.log(ratio) + jnp.log(scale) + top)

    return predict


def _lost(transitions, emissions, alphas, length):
    """Test for an alpha of -inf that comes from underflow in `_product`, not from a forbidden transition."""
    possible, may = (jnp.asarray(scores > -jnp.inf, scores.dtype) for scores in (alphas[:-1], transitions))
    reached = (possible @ may > 0) & (emissions[1:] > -jnp.inf) & (jnp.arange(1, len(alphas))[:, None] < length)
    return (reached & (alphas[1:] == -jnp.inf)).any()


def _recursion(predict, emissions, length):
    """alpha_t, or Viterbi's delta_t, each less its maximum; and those maxima.

    Args:
        predict: from alpha_{t-1} to the log sum, or the maximum, over the tags before.
        emissions: [time, tags].
        length: valid steps; the maxima behind them are 0, and alpha means nothing there.
    """

    def step(alpha, inputs):
        t, emission = inputs
        scores = jnp.where(t == 0, 0, predict(alpha)) + emission
        norm = _highest(scores)[0]
        return scores - norm, (scores - norm, jnp.where(t < length, norm, 0))

    time, size = emissions.shape
    before, emissions = mesh.match_varying_axes((jnp.zeros(size, emissions.dtype), emissions))
    return jax.lax.scan(step, before, (jnp.arange(time), emissions))[1]


def _backward(transitions, alphas, length, noise):
    """Tags from the last to the first; before y comes argmax_i alpha_t[i] + transitions[i, y] + noise_t[i]."""

    def step(after, inputs):
        t, alpha, noise = inputs
        scores = alpha + jnp.where(t == length - 1, 0, transitions[:, after])
        tag = jnp.where(t < length, jnp.argmax(scores - _highest(scores) + noise), 0).astype(jnp.int32)
        return tag, tag

    possible = (_at(alphas, length - 1) > -jnp.inf).any()
    none, alphas, noise = mesh.match_varying_axes((jnp.int32(0), alphas, noise))
    _, tags = jax.lax.scan(step, none, (jnp.arange(len(alphas)), alphas, noise), reverse=True)
    return jnp.where(possible, tags, 0)


def _at(scores, t):
    """Select the scores of one step; 0 where there is no such step."""
    return jnp.where((jnp.arange(len(scores)) == t)[:, None], scores, 0).sum(axis=0)


def _highest(scores, axis: int | tuple[int, ...] = -1):
    """The maximum, or 0 where all are -inf. It is taken away here and added there: its derivatives cancel."""
    top = jax.lax.stop_gradient(scores.max(axis=axis, keepdims=True))
    return jnp.where(top == -jnp.inf, 0, top)


def _log_sum(scores, axis):
    """log(sum(exp(scores))); -inf where all of them are, with derivatives of 0."""
    top = _highest(scores, axis)
    total = jnp.exp(scores - top).sum(axis=axis)
    return jnp.where(total == 0, -jnp.inf, jnp.log(jnp.where(total == 0, 1, total)) + top.squeeze(axis))


# Under `jax.vmap` a condition that differs between examples has both its branches run, so ask that it hold for all.
_everywhere: Any = jax.custom_batching.custom_vmap(lambda holds: holds)
_everywhere.def_vmap(lambda size, _, holds: (_everywhere(holds.all()), False))
