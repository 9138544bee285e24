"""Drawn sequences: a function of the step, and different at every one."""

import jax
import jax.numpy as jnp
import numpy as np

from experiments.data import drawn


def test_sequences_of_a_step_do_not_depend_on_the_chunk():
    def draw(key):
        return jax.random.uniform(key, (5,))

    key = jax.random.key(0)
    whole = np.asarray(drawn.per_step(draw, key, jnp.arange(6), batch=4))
    late = np.asarray(drawn.per_step(draw, key, jnp.arange(3, 6), batch=4))
    np.testing.assert_array_equal(late, whole[3:])
    assert whole.shape == (6, 4, 5)
    assert len(np.unique(whole)) == whole.size
