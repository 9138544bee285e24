"""A linear chain of tags over a sequence: a conditional random field.

    score(y) = start[y_1] + sum_t emissions_t[y_t] + sum_t transitions[y_{t-1}, y_t] + end[y_T]
    p(y | emissions) = exp(score(y)) / Z                    Z = sum_y exp(score(y))

    alpha_t[j] = log(sum_i exp(alpha_{t-1}[i] + transitions[i, j])) + emissions_t[j]
    log Z      = log(sum_j exp(alpha_T[j] + end[j]))

Lafferty, McCallum & Pereira, "Conditional random fields" (2001). The recursion in alpha, its mirror image from the
last step to the first, and Viterbi's, with a maximum in place of the sum, are those of Rabiner, "A tutorial on
hidden Markov models" (1989).

Of a sequence without steps there is one path, the empty one, and its score is 0. A score of -inf forbids: a tag at
its step, or a transition wherever it might be taken.
"""

import math
from collections.abc import Callable, Sequence
from functools import cache, partial
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.nn import initializers
from jax.typing import DTypeLike
from jaxtyping import Array, ArrayLike, Float, Int, Integer

from lstmjax._src import keywords, mesh, padding, pytrees, validation
from lstmjax._src.crf import linear_chain


@pytrees.container
class CRFParams:
    """The scores of a chain of tags.

    Args:
        start: [tags], of the first tag.
        transitions: [tags, tags], from the tag of the row to that of the column.
        end: [tags], of the last tag.
    """

    start: Any
    transitions: Any
    end: Any


@pytrees.container
class Allowed:
    """Allowed starts, transitions and ends of a path, as `bio` makes them, or bool arrays of one's own.

    Args:
        start: bool [tags], the tags that may come first.
        transitions: bool [tags, tags], the tag of the column may follow that of the row.
        end: bool [tags], the tags that may come last.
    """

    start: Any
    transitions: Any
    end: Any


@keywords.explained("crf.init")
def init(
    key: Array,
    tags: int,
    *,
    start_init: Callable[..., Array] = initializers.zeros,
    transitions_init: Callable[..., Array] = initializers.zeros,
    end_init: Callable[..., Array] = initializers.zeros,
    dtype: DTypeLike = jnp.float32,
) -> CRFParams:
    """Make the scores of a chain: tags * (tags + 2) numbers, 0 unless an initializer says otherwise.

    Args:
        key: a JAX random key.
        tags: number of tags; ids run from 0 to tags - 1.
        start_init: initializer `(key, shape, dtype) -> array` of start.
        transitions_init: likewise of transitions.
        end_init: likewise of end.
        dtype: of all three.

    Raises:
        ValueError: tags is not a positive integer, or an initializer returns another shape.
        TypeError: dtype is not floating.

    >>> init(jax.random.key(0), tags=3).transitions.shape
    (3, 3)
    """
    tags = validation.positive_int("tags", tags)
    dtype = validation.floating_dtype("dtype", dtype)
    start_key, transitions_key, end_key = jax.random.split(validation.key(key), 3)
    return CRFParams(
        start=validation.drawn("start_init", start_init, start_key, (tags,), dtype),
        transitions=validation.drawn("transitions_init", transitions_init, transitions_key, (tags, tags), dtype),
        end=validation.drawn("end_init", end_init, end_key, (tags,), dtype),
    )


@keywords.explained("crf.bio")
def bio(names: Sequence[str]) -> Allowed:
    """Allow the paths that spell whole segments: "I-X" comes after "B-X" or "I-X" alone.

    The scheme is BIO, elsewhere IOB2 (Ramshaw & Marcus, "Text chunking using transformation-based learning", 1995).
    Where a name begins with "E-" or "S-" it is BIOES, in which "E-X" ends every segment of several steps, and "S-X" is
    one of a single step.

    Args:
        names: those of the tags, by id: "O", or one of B, I, E, S, a hyphen, and the kind of the segment.

    Returns:
        Allowed.

    Raises:
        ValueError: a name of another form, or no names.

    >>> bio(["O", "B-NP", "I-NP"]).transitions
    array([[ True,  True, False],
           [ True,  True,  True],
           [ True,  True,  True]])
    """
    if not isinstance(names, Sequence) or isinstance(names, str | bytes):
        raise TypeError(f"names must be a list of the names of tags; got {names!r}.")
    if not names:
        raise ValueError("names must be those of at least 1 tag, got none.")
    for name in names:
        if not isinstance(name, str) or (name != "O" and name[:2] not in ("B-", "I-", "E-", "S-")):
            raise ValueError(f"names must be 'O', or begin with 'B-', 'I-', 'E-' or 'S-'; got {name!r}.")
    marks, kinds = np.array([(name[0], name[2:]) for name in names]).T
    opened, continues = np.isin(marks, ("B", "I")), np.isin(marks, ("I", "E"))
    same = opened[:, None] & continues & (kinds[:, None] == kinds)
    closed = ~opened | (not np.isin(marks, ("E", "S")).any())  # where a segment may end
    return Allowed(start=~continues, transitions=same | closed[:, None] & ~continues, end=closed)


@keywords.explained("crf.log_likelihood")
def log_likelihood(
    params: CRFParams,
    emissions: Float[ArrayLike, "*batch time tags"],
    tags: Integer[ArrayLike, "*batch time"],
    *,
    lengths: Integer[ArrayLike, "*batch"] | None = None,
    allowed: Allowed | None = None,
) -> Float[Array, "*batch"]:
    """Compute log p(tags | emissions), 0 or less but for rounding.

    Args:
        params: CRFParams.
        emissions: score of each tag at each step [*batch, time, tags], floating; any number of batch axes.
        tags: the path, integers [*batch, time] from 0 to tags - 1; anything in padding. Under jit their values
            cannot be read: one that is out of range then gives NaN.
        lengths: valid steps of each sequence, integers [*batch] from 0 to time; None where all are valid.
        allowed: what a path may do; None where it may do anything.

    Returns:
        [*batch], in at least float32; -inf, without a gradient, for a path that is not allowed.

    Raises:
        ValueError: shapes or values that do not fit; TypeError: an argument of another type than these.

    >>> params = init(jax.random.key(0), tags=2)
    >>> log_likelihood(params, jnp.zeros((3, 2)), jnp.array([0, 1, 1])) / jnp.log(2)
    Array(-3., dtype=float32)
    """
    arrays = _checked(params, emissions, lengths, allowed)
    return _map(linear_chain.log_likelihood, arrays, _path(tags, *arrays))


@keywords.explained("crf.log_partition")
def log_partition(
    params: CRFParams,
    emissions: Float[ArrayLike, "*batch time tags"],
    *,
    lengths: Integer[ArrayLike, "*batch"] | None = None,
    allowed: Allowed | None = None,
) -> Float[Array, "*batch"]:
    """Compute log Z, of the sum over all paths that are allowed; -inf where none is.

    Args:
        params: CRFParams.
        emissions: score of each tag at each step [*batch, time, tags], floating; any number of batch axes.
        lengths: valid steps of each sequence, integers [*batch] from 0 to time; None where all are valid.
        allowed: what a path may do; None where it may do anything.

    Returns:
        [*batch], in at least float32.

    Raises:
        ValueError: shapes or values that do not fit; TypeError: an argument of another type than these.

    >>> params = init(jax.random.key(0), tags=2)
    >>> log_partition(params, jnp.zeros((3, 2))) / jnp.log(2)
    Array(3., dtype=float32)
    """
    return _map(linear_chain.log_partition, _checked(params, emissions, lengths, allowed))


@keywords.explained("crf.marginals")
def marginals(
    params: CRFParams,
    emissions: Float[ArrayLike, "*batch time tags"],
    *,
    lengths: Integer[ArrayLike, "*batch"] | None = None,
    allowed: Allowed | None = None,
) -> Float[Array, "*batch time tags"]:
    """Compute p(y_t | emissions), the probability of each tag at each step.

    Args:
        params: CRFParams.
        emissions: score of each tag at each step [*batch, time, tags], floating; any number of batch axes.
        lengths: valid steps of each sequence, integers [*batch] from 0 to time; None where all are valid.
        allowed: what a path may do; None where it may do anything.

    Returns:
        [*batch, time, tags], in at least float32; 0 at padding, and where no path is allowed.

    Raises:
        ValueError: shapes or values that do not fit; TypeError: an argument of another type than these.

    >>> params = init(jax.random.key(0), tags=2)
    >>> marginals(params, jnp.array([[1.0, 1.0], [2.0, -jnp.inf]]))
    Array([[0.5, 0.5],
           [1. , 0. ]], dtype=float32)
    """
    return _map(linear_chain.marginals, _checked(params, emissions, lengths, allowed))


@keywords.explained("crf.decode")
def decode(
    params: CRFParams,
    emissions: Float[ArrayLike, "*batch time tags"],
    *,
    lengths: Integer[ArrayLike, "*batch"] | None = None,
    allowed: Allowed | None = None,
    k: int | None = None,
) -> tuple[Int[Array, "*batch time"] | Int[Array, "*batch k time"], Float[Array, "*batch"] | Float[Array, "*batch k"]]:
    """Find the path with the highest score, or the k of the highest scores, and what they score.

    Args:
        params: CRFParams.
        emissions: score of each tag at each step [*batch, time, tags], floating; any number of batch axes.
        lengths: valid steps of each sequence, integers [*batch] from 0 to time; None where all are valid.
        allowed: what a path may do; None where it may do anything.
        k: how many paths, all different, the best first; None for one, without an axis for it.

    Returns:
        The tags, int32 [*batch, time], 0 at padding; and their score [*batch], in at least float32. Where no path is
        allowed the score is -inf and the tags are 0. One of several highest paths is as good as another. With k
        they are [*batch, k, time] and [*batch, k]; where there are fewer than k paths, the others have scores of -inf.

    Raises:
        ValueError: shapes or values that do not fit; TypeError: an argument of another type than these.

    >>> params = init(jax.random.key(0), tags=2)
    >>> decode(params, jnp.array([[1.0, 2.0], [4.0, 3.0], [9.0, 9.0]]), lengths=2)
    (Array([1, 0, 0], dtype=int32), Array(6., dtype=float32))
    >>> tags, scores = decode(params, jnp.array([[1.0, 2.0], [4.0, 3.0]]), k=3)
    >>> tags.tolist(), scores.tolist()
    ([[1, 0], [0, 0], [1, 1]], [6.0, 5.0, 5.0])
    """
    arrays = _checked(params, emissions, lengths, allowed)
    if k is None:
        return _map(linear_chain.decode, arrays)
    most = validation.LARGEST // len(arrays[0])
    if validation.positive_int("k", k) > most:
        raise ValueError(f"k must be at most {most} with {len(arrays[0])} tags, got {k!r}.")
    return _map(_bound(linear_chain.decode_several, int(k)), arrays)


@keywords.explained("crf.sample")
def sample(
    params: CRFParams,
    emissions: Float[ArrayLike, "*batch time tags"],
    *,
    key: Array,
    lengths: Integer[ArrayLike, "*batch"] | None = None,
    allowed: Allowed | None = None,
) -> Int[Array, "*batch time"]:
    """Draw a path from p(y | emissions): alpha forward, then one tag after another from the last to the first.

    Args:
        params: CRFParams.
        emissions: score of each tag at each step [*batch, time, tags], floating; any number of batch axes.
        key: a JAX random key.
        lengths: valid steps of each sequence, integers [*batch] from 0 to time; None where all are valid.
        allowed: what a path may do; None where it may do anything.

    Returns:
        Tags, int32 [*batch, time]; 0 at padding, and where no path is allowed.

    Raises:
        ValueError: shapes or values that do not fit; TypeError: an argument of another type than these.

    >>> params = init(jax.random.key(0), tags=2)
    >>> sample(params, jnp.array([[1.0, -jnp.inf], [-jnp.inf, 0.0]]), key=jax.random.key(1))
    Array([0, 1], dtype=int32)
    """
    arrays = _checked(params, emissions, lengths, allowed)
    return _map(linear_chain.sample, arrays, jax.random.split(validation.key(key), arrays[2].shape))


_bound = cache(partial)  # one object for equal arguments, by which jit knows what it has compiled


def _checked(params, emissions, lengths, allowed):
    """Transitions, emissions and lengths: start and end scores in the emissions, -inf for what is forbidden."""
    validation.instance("params", params, CRFParams, "crf.init")
    size = len(validation.weights("params.transitions", params.transitions, "from", "to"))
    shapes = {"start": (size,), "transitions": (size, size), "end": (size,)}
    for name, shape in shapes.items():
        validation.weights(f"params.{name}", getattr(params, name), *("tags",) * len(shape))
        validation.shape(f"params.{name}", getattr(params, name), shape, "the tags of params.transitions")
    emissions = validation.floating("emissions", emissions)
    validation.features("emissions", emissions, size, "*batch, time, tags", "params.transitions has that many tags")
    *batch, time, _ = emissions.shape
    if lengths is None:
        lengths = jnp.full(batch, time, jnp.int32)
    else:
        lengths = validation.lengths(lengths, tuple(batch), time, "emissions")
    dtype = validation.at_least_float32(jnp.result_type(params.start, params.transitions, params.end, emissions))
    scores = {name: jnp.asarray(getattr(params, name), dtype) for name in shapes}
    if allowed is not None:
        validation.instance("allowed", allowed, Allowed, "crf.bio")
        for name, shape in shapes.items():
            may = validation.booleans(f"allowed.{name}", getattr(allowed, name), "True where a path may go")
            validation.shape(f"allowed.{name}", may, shape, "the tags of params.transitions")
            scores[name] = jnp.where(may, scores[name], -jnp.inf)
    steps, counts = jax.lax.broadcasted_iota(jnp.int32, emissions.shape, len(batch)), lengths[..., None, None]
    emissions = padding.fill(emissions, lengths).astype(dtype)
    for name, here in (("start", steps == 0), ("end", steps == counts - 1)):
        emissions = emissions + jnp.where(here, jnp.broadcast_to(scores[name], emissions.shape), 0)
    return scores["transitions"], emissions, lengths


def _path(tags, transitions, emissions, lengths):
    tags = tags if hasattr(tags, "shape") else validation.asarray("tags", tags)
    validation.shape("tags", tags, emissions.shape[:-1], "[*batch, time] of emissions")
    tags = validation.blank(tags, padding.valid(lengths, emissions.shape[-2]))  # padding is not looked at
    return validation.integers("tags", tags, 0, len(transitions) - 1, "the tags of params.transitions")


@partial(jax.jit, static_argnums=0)
def _map(function, arrays, *arguments):
    """`function(transitions, emissions, length, ...)` of every sequence."""
    transitions, emissions, lengths = arrays
    batch = lengths.shape

    def run(transitions, *batched):
        flat = jax.tree.map(lambda array: array.reshape(math.prod(batch), *array.shape[len(batch) :]), batched)
        results = jax.vmap(partial(function, transitions))(*flat)
        return jax.tree.map(lambda array: array.reshape(*batch, *array.shape[1:]), results)

    return mesh.with_auto_axes(run, len(batch))(transitions, emissions, lengths, *arguments)
