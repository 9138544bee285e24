"""Whether what a function makes can be donated: no two of its arrays share memory, and none does with an argument."""

import jax
import numpy as np


def aligned(array):
    """A copy that begins where XLA would take NumPy's memory as its own."""
    array = np.asarray(array)
    raw = np.zeros(array.nbytes + 64, np.uint8)
    start = -raw.ctypes.data % 64
    copy = raw[start : start + array.nbytes].view(array.dtype).reshape(array.shape)
    copy[...] = array
    return copy


def check(make, *arguments):
    """Fail unless `make(*arguments)` owns its arrays."""
    given = [leaf for leaf in jax.tree.leaves(arguments) if hasattr(leaf, "dtype") and not is_key(leaf)]
    before, taken = [np.array(numbers(leaf)) for leaf in given], [memory(leaf) for leaf in given]
    made = make(*arguments)
    leaves = jax.tree.leaves(made)
    assert leaves
    assert all(isinstance(leaf, jax.Array) for leaf in leaves)
    own = [memory(leaf) for leaf in leaves]
    assert len({start for start, _ in own}) == len(leaves), "two arrays share a buffer"
    shared = [(start, other) for start, _ in own for other, end in taken if other <= start < end]
    assert not shared, "an array shares the buffer of an argument"
    jax.jit(lambda leaves: [leaf + 1 for leaf in leaves], donate_argnums=0)(leaves)
    assert all(leaf.is_deleted() for leaf in leaves)
    for leaf, numbers_before in zip(given, before, strict=True):
        np.testing.assert_array_equal(numbers(leaf), numbers_before)


def is_key(leaf):
    return isinstance(leaf, jax.Array) and jax.dtypes.issubdtype(leaf.dtype, jax.dtypes.prng_key)


def numbers(leaf):
    return leaf.detach().numpy() if hasattr(leaf, "detach") else np.asarray(leaf)


def memory(leaf):
    """The addresses of the first byte and of that after the last."""
    if isinstance(leaf, jax.Array):
        return leaf.unsafe_buffer_pointer(), leaf.unsafe_buffer_pointer() + leaf.nbytes
    array = numbers(leaf)
    return array.ctypes.data, array.ctypes.data + array.nbytes
