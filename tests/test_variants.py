"""Every cell in every composition, against the float64 loop: one table each, one contract."""

import dataclasses
from collections.abc import Callable
from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import reference

from lstmjax import Dropout, LSTMOptions, bidirectional, lstm, stack

INPUTS, UNITS, TIME = 2, 3, 4


@dataclasses.dataclass(frozen=True)
class Variant:
    """Options of `lstm.init`, LSTMOptions, and zoneout, which the reference takes in expectation."""

    init: dict = dataclasses.field(default_factory=dict)
    options: dict = dataclasses.field(default_factory=dict)
    zoneout: dict = dataclasses.field(default_factory=dict)

    def arguments(self):
        return {"options": LSTMOptions(**self.options), "dropout": Dropout(**self.zoneout)}


VARIANTS = {
    "standard": Variant(),
    "no bias": Variant({"bias": False}),
    "chrono": Variant({"chrono": 10}),
    "learned state": Variant({"learned_state": True}),
    "peepholes": Variant({"peepholes": True}),
    "projection": Variant({"projection": 2}, {"projection_clip": 0.3}),
    "layer norm": Variant({"layer_norm": True}),
    "coupled": Variant({"coupled": True}),
    "clips": Variant({}, {"cell_clip": 0.5, "preactivation_clip": 0.7}),
    "hard sigmoid": Variant({}, {"recurrent_activation": "hard_sigmoid", "activation": "relu"}),
    "hard sigmoid of Keras 2": Variant({}, {"recurrent_activation": "keras2_hard_sigmoid", "activation": "sigmoid"}),
    "zoneout": Variant(zoneout={"zoneout_h": 0.2, "zoneout_c": 0.4}),
    "all": Variant(
        {"peepholes": True, "projection": 2, "layer_norm": True, "coupled": True, "learned_state": True},
        {"cell_clip": 0.8, "preactivation_clip": 1.5, "projection_clip": 0.9, "recurrent_activation": "hard_sigmoid"},
        {"zoneout_h": 0.1, "zoneout_c": 0.3},
    ),
    "all but gates of their own": Variant(
        {"peepholes": True, "projection": 2, "layer_norm": True, "bias": False},
        {"cell_clip": 0.8},
        {"zoneout_h": 0.1},
    ),
}


@dataclasses.dataclass(frozen=True)
class Composition:
    init: Callable
    initial_state: Callable
    apply: Callable
    reference: Callable
    directions: tuple[bool, ...] = (False, True)  # in which gradients are taken; values are in both


def composition(module, against, arguments=None, *, directions=(False, True), **init):
    arguments = arguments or {}
    return Composition(
        partial(module.init, inputs=INPUTS, **init),
        module.initial_state,
        partial(module.apply, **arguments),
        partial(against, **arguments),
        directions,
    )


COMPOSITIONS = {
    **{
        name: dataclasses.replace(
            composition(lstm, reference.lstm, units=UNITS), apply=partial(lstm.apply, implementation=name)
        )
        for name in lstm.IMPLEMENTATIONS
    },
    "bidirectional": composition(bidirectional, reference.bidirectional, directions=(False,), units=UNITS),
    "stack": composition(stack, reference.stack, directions=(True,), units=(UNITS, 4)),
    "residual stack": composition(
        stack, reference.stack, {"residual_from": 1}, directions=(False,), units=(UNITS, UNITS)
    ),
    "bidirectional stack": composition(
        stack, reference.stack, {"merge": "sum"}, directions=(True,), units=(UNITS, 4), bidirectional=True, merge="sum"
    ),
}

every_variant = pytest.mark.parametrize("variant", VARIANTS.values(), ids=VARIANTS)
every_composition = pytest.mark.parametrize("composition", COMPOSITIONS.values(), ids=COMPOSITIONS)


def example(composition, variant, batch=(2,)):
    """Float64 trees that float32 represents: params, xs and state; with lengths and resets."""
    rng = np.random.default_rng(0)

    def draw(shaped, scale):
        return jax.tree.map(lambda leaf: np.float64(np.float32(rng.normal(scale=scale, size=leaf.shape))), shaped)

    params = jax.eval_shape(partial(composition.init, **variant.init), jax.random.key(0))
    state = jax.eval_shape(lambda params: composition.initial_state(params, batch), params)
    xs = np.float64(np.float32(rng.normal(size=(*batch, TIME, INPUTS))))
    times = {"lengths": rng.integers(TIME - 1, TIME + 1, batch), "resets": rng.random((*batch, TIME)) < 0.2}
    times["resets"][..., 1] = True
    return (draw(params, 0.6), xs, draw(state, 0.7)), times


def cast(tree, dtype):
    return jax.tree.map(lambda leaf: jnp.asarray(leaf, dtype), tree)


def loss(outputs):
    """A number in which every output counts differently, and which complex steps go through."""
    weighted = [
        np.linspace(0.5, 1, out.size).reshape(out.shape) * (out + out * out) for out in jax.tree.leaves(outputs)
    ]
    return sum(out.sum() for out in weighted)


@every_variant
@every_composition
def test_values_and_gradients(composition, variant, x64):
    """All that a call may take together, with gradients in params, inputs and states."""
    arrays, times = example(composition, variant)
    leaves, tree = jax.tree.flatten(arrays)

    def run(params, xs, state, directions):
        call = partial(composition.apply, params, xs, state, **times, **variant.arguments())
        outputs = [call(reverse=reverse) for reverse in directions]
        return loss(outputs), outputs

    def expected(*leaves, directions):
        params, xs, state = jax.tree.unflatten(tree, leaves)
        call = partial(composition.reference, params, xs, state, **times, **variant.options, **variant.zoneout)
        return [call(reverse=reverse) for reverse in directions]

    _, narrow = jax.jit(partial(run, directions=(False, True)))(*cast(arrays, jnp.float32))
    right = jax.tree.leaves(expected(*leaves, directions=(False, True)))
    for a, e in zip(jax.tree.leaves(narrow), right, strict=True):
        assert a.dtype == jnp.float32
        np.testing.assert_allclose(a, e, rtol=2e-6, atol=2e-6)

    directions = composition.directions
    slope = jax.grad(partial(run, directions=directions), argnums=(0, 1, 2), has_aux=True)
    slopes, wide = jax.jit(slope)(*cast(arrays, jnp.float64))
    right = jax.tree.leaves(expected(*leaves, directions=directions))
    for a, e in zip(jax.tree.leaves(wide), right, strict=True):
        assert a.dtype == jnp.float64
        np.testing.assert_allclose(a, e, rtol=1e-12, atol=1e-12)
    right = reference.gradients(lambda *leaves: loss(expected(*leaves, directions=directions)), leaves)
    assert all(np.abs(e).max() > 0 for e in right)
    for a, e in zip(jax.tree.leaves(slopes), right, strict=True):
        np.testing.assert_allclose(a, e, rtol=0, atol=1e-12 * max(1, np.abs(e).max()))


@every_variant
def test_the_contract_of_time(variant):
    """What holds whatever the cell: each pair is the same thing said in two ways."""
    (params, xs, state), times = example(COMPOSITIONS["fused"], variant, batch=(2, 3))
    params, xs, state = cast((params, xs, state), jnp.float32)
    times["lengths"] = np.array([[TIME, 0, 1], [2, 3, TIME]])
    lengths, resets = jax.tree.map(jnp.asarray, (times["lengths"], times["resets"]))

    @jax.jit
    def pairs(params, xs, state, lengths, resets):
        call = partial(lstm.apply, params, **variant.arguments())
        whole = call(xs, state)
        steps, after = [], state
        for t in range(TIME):
            y, after = lstm.step(params, xs[:, :, t], after, **variant.arguments())
            steps.append(y)
        first, middle = call(xs[:, :, :3], state)
        second, end = call(xs[:, :, 3:], middle)
        ragged = call(xs, state, lengths=lengths, resets=resets)
        padding = jnp.stack([t >= lengths for t in range(TIME)], axis=-1)
        poisoned = jnp.where(padding[..., None], jnp.nan, xs)
        last, _ = call(xs, state, lengths=lengths, resets=resets, return_sequences=False)
        mapped = jax.vmap(jax.vmap(lambda x, s, n, r: call(x, s, lengths=n, resets=r)))(xs, state, lengths, resets)
        segments = [call(xs, state, lengths=lengths, resets=resets, checkpoint=c) for c in (True, 1, 3, 9)]
        own = jax.tree.map(lambda leaf: leaf[0, 1], state)
        return {
            "steps": ((jnp.stack(steps, axis=2), after), whole),
            "pieces": ((jnp.concatenate([first, second], axis=2), end), whole),
            "padding": (call(poisoned, state, lengths=lengths, resets=resets), ragged),
            "outputs at padding": (jnp.where(padding[..., None], ragged[0], 0), jnp.zeros_like(ragged[0])),
            "no valid step": (jax.tree.map(lambda leaf: leaf[0, 1], ragged[1]), own),
            "the last h": (last, ragged[1].h),
            "vmap": (mapped, ragged),
            "segments": (segments, [ragged] * 4),
            "no state": (call(xs), call(xs, lstm.initial_state(params, (2, 3)))),
            "a reset at once": (call(xs, state, resets=resets.at[..., 0].set(True)), call(xs, resets=resets)),
        }

    for name, (actual, expected) in pairs(params, xs, state, lengths, resets).items():
        same = partial(np.testing.assert_allclose, rtol=1e-5, atol=2e-6, err_msg=name)
        jax.tree.map(same, actual, expected)


@pytest.mark.parametrize("variant", [VARIANTS["standard"], VARIANTS["all"]], ids=["standard", "all"])
@pytest.mark.parametrize("implementation", lstm.IMPLEMENTATIONS)
@pytest.mark.parametrize("reverse", [False, True])
def test_gradients_of_segments(variant, implementation, reverse):
    arrays, times = example(COMPOSITIONS["fused"], variant)
    arguments = {**times, **variant.arguments(), "implementation": implementation, "reverse": reverse}

    def slopes(checkpoint):
        call = partial(lstm.apply, **arguments, checkpoint=checkpoint)
        return jax.grad(lambda *arrays: loss(call(*arrays)), argnums=(0, 1, 2))

    actual, expected = jax.jit(lambda *arrays: (slopes(3)(*arrays), slopes(False)(*arrays)))(*cast(arrays, jnp.float32))
    jax.tree.map(partial(np.testing.assert_allclose, rtol=1e-4, atol=1e-5), actual, expected)
