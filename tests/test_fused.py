"""What the path with derivatives of its own keeps for them."""

import jax
import jax.numpy as jnp

from lstmjax import lstm
from lstmjax._src import chunking

BATCH, TIME, INPUTS, UNITS = 2, 50, 3, 4


def kept(**options):
    """Numbers that a gradient keeps of each step of each sequence."""
    params = lstm.init(jax.random.key(0), INPUTS, UNITS, **options)
    xs = jnp.ones((BATCH, TIME, INPUTS))
    _, pull = jax.vjp(lambda params, xs: lstm.apply(params, xs, implementation="fused")[0], params, xs)
    return sum(leaf.size for leaf in jax.tree.leaves(pull) if leaf.ndim == 3) / (BATCH * TIME)


def test_a_gradient_keeps_the_pre_activations_the_states_and_the_inputs():
    standard = 4 * UNITS + 2 * UNITS + INPUTS
    assert kept() == standard
    assert kept(peepholes=True) == standard
    assert kept(coupled=True) == standard - UNITS
    assert kept(projection=2) == 4 * UNITS + UNITS + 2 + UNITS + INPUTS  # z, c, h, what is projected, x
    assert kept(layer_norm=True) == standard + 2 * 4 * UNITS  # both products as they were before the norm
    assert kept(layer_norm="per_gate") == kept(layer_norm="per_gate_cell") == standard


def test_a_gradient_keeps_as_much_where_steps_go_in_blocks(monkeypatch):
    """And once, not once for each platform."""

    def all_kept():
        params = lstm.init(jax.random.key(0), INPUTS, UNITS)
        jax.clear_caches()
        _, pull = jax.vjp(lambda params, xs: lstm.apply(params, xs)[0], params, jnp.ones((BATCH, TIME, INPUTS)))
        return sum(leaf.size for leaf in jax.tree.leaves(pull))

    whole = all_kept()
    monkeypatch.setattr(chunking, "CACHED", 256)
    assert all_kept() <= whole
