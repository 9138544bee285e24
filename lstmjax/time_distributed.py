"""One function on every step of a sequence, as Keras's TimeDistributed."""

import math
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp

from lstmjax._src import keywords, validation


@keywords.explained("lstmjax.time_distributed")
def time_distributed(function: Callable) -> Callable:
    """Make `function`, which works on [batch, ...], work on every step of [batch, time, ...].

    The first two axes of every array are folded into one, `function` is called once, and the axes are
    unfolded again: no loop, and one compiled program whatever the number of steps. It is
    `jax.vmap(function, in_axes=1, out_axes=1)` for every function that treats the entries of its batch alike.

    Args:
        function: takes arrays, or trees of them, with a batch axis in front, and returns the same.

    Returns:
        A function of arrays [batch, time, ...]; lengths of inner sequences are [batch, time].

    Raises:
        ValueError: an array with fewer than two axes, or whose first two axes differ from the others'.

    One encoder for each utterance of each conversation, [conversation, utterance, word, features]:

    >>> from lstmjax import lstm
    >>> params = lstm.init(jax.random.key(0), inputs=4, units=3)
    >>> def encode(words, lengths):
    ...     return lstm.apply(params, words, lengths=lengths, return_sequences=False)[0]
    >>> time_distributed(encode)(jnp.ones((2, 5, 7, 4)), jnp.full((2, 5), 7)).shape
    (2, 5, 3)

    One network for each feature by itself, as if it were a sequence of its own: the axes are permuted first. A
    reshape to the same shape would mix steps and features.

    >>> xs = jnp.array([[[1, -1], [2, -2], [3, -3]]], float)  # one sequence: three steps of two features
    >>> jnp.swapaxes(xs, 1, 2)[0]
    Array([[ 1.,  2.,  3.],
           [-1., -2., -3.]], dtype=float32)
    >>> jnp.reshape(xs, (1, 2, 3))[0]
    Array([[ 1., -1.,  2.],
           [-2.,  3., -3.]], dtype=float32)

    The same filters then run over every feature, and no output can depend on how features relate:

    >>> from functools import partial
    >>> from lstmjax import conv1d
    >>> filters = conv1d.init(jax.random.key(0), inputs=1, units=8)
    >>> alone = jnp.swapaxes(xs, 1, 2)[..., None]  # [batch, features, time, 1]
    >>> time_distributed(partial(conv1d.apply, filters))(alone).shape
    (1, 2, 3, 8)
    """

    def distributed(*args: Any, **kwargs: Any) -> Any:
        axes = validation.common_leading_axes(jax.tree.leaves((args, kwargs)), 2, "batch, time")
        args, kwargs = jax.tree.map(lambda a: jnp.reshape(a, (math.prod(axes), *jnp.shape(a)[2:])), (args, kwargs))
        ys = function(*args, **kwargs)
        return jax.tree.map(lambda y: jnp.reshape(y, (*axes, *jnp.shape(y)[1:])), ys)

    return distributed
