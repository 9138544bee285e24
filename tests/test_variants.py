"""Every cell in every composition, against the float64 loop: one table each, one contract."""

import dataclasses
import itertools
from collections.abc import Callable
from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import reference

from lstmjax import Dropout, LSTMOptions, LSTMParams, LSTMState, bidirectional, lstm, stack

EVERY_CELL = ["fused", "scan"]  # the kernel computes the standard one
INPUTS, UNITS, TIME = 3, 3, 4  # layers of one shape compile once


@dataclasses.dataclass(frozen=True)
class Variant:
    """Options of `lstm.init`, LSTMOptions, zoneout, which the reference takes in expectation, and biases to add."""

    init: dict = dataclasses.field(default_factory=dict)
    options: dict = dataclasses.field(default_factory=dict)
    zoneout: dict = dataclasses.field(default_factory=dict)
    biases: tuple = ()

    def make(self, init, key):
        params = init(key, **{"units": UNITS, **self.init})
        of_lstm = lambda node: isinstance(node, LSTMParams)  # noqa: E731
        return jax.tree.map(self.with_biases, params, is_leaf=of_lstm) if self.biases else params

    def with_biases(self, params):
        return dataclasses.replace(params, **dict.fromkeys(self.biases, jnp.zeros(params.w_x.shape[1])))

    def arguments(self):
        return {"options": LSTMOptions(**self.options), "dropout": Dropout(**self.zoneout), "deterministic": True}


VARIANTS = {
    "standard": Variant(),
    "no bias": Variant({"bias": False}),
    "two biases": Variant(biases=("bias_h",)),
    "chrono": Variant({"chrono": 10}),
    "learned state": Variant({"learned_state": True}),
    "peepholes": Variant({"peepholes": True}),
    "projection": Variant({"units": 4, "projection": 3}, {"projection_clip": 0.3}),
    "layer norm": Variant({"layer_norm": True}),
    "coupled": Variant({"coupled": True}),
    "clips": Variant({}, {"cell_clip": 0.5, "preactivation_clip": 0.7}),
    "hard sigmoid": Variant({}, {"recurrent_activation": "hard_sigmoid", "activation": "relu"}),
    "hard sigmoid of Keras 2": Variant({}, {"recurrent_activation": "keras2_hard_sigmoid", "activation": "sigmoid"}),
    "zoneout": Variant(zoneout={"zoneout_h": 0.2, "zoneout_c": 0.4}),
    "all": Variant(
        {"peepholes": True, "units": 4, "projection": 3, "layer_norm": True, "coupled": True, "learned_state": True},
        {"cell_clip": 0.8, "preactivation_clip": 1.5, "projection_clip": 0.9, "recurrent_activation": "hard_sigmoid"},
        {"zoneout_h": 0.1, "zoneout_c": 0.3},
        ("bias_h",),
    ),
    "all but gates of their own": Variant(
        {"peepholes": True, "units": 4, "projection": 3, "layer_norm": True, "bias": False},
        {"cell_clip": 0.8},
        {"zoneout_h": 0.1},
    ),
    "layer norm kept": Variant({"layer_norm": "joint_cell"}, {"norm_epsilon": 1e-3}),
    "layer norm per gate": Variant({"layer_norm": "per_gate"}, {"norm_epsilon": 1e-8}),
    "layer norm per gate and kept": Variant({"layer_norm": "per_gate_cell"}, {"norm_epsilon": 1e-12}),
    "all, per gate": Variant(
        {"peepholes": True, "units": 4, "projection": 3, "layer_norm": "per_gate", "learned_state": True},
        {"cell_clip": 0.8, "preactivation_clip": 1.5, "projection_clip": 0.9, "norm_epsilon": 0.1},
        {"zoneout_h": 0.1, "zoneout_c": 0.3},
        ("bias_h",),
    ),
    "coupled, per gate and kept": Variant(
        {"peepholes": True, "layer_norm": "per_gate_cell", "coupled": True, "bias": False},
        {"cell_clip": 0.8, "recurrent_activation": "hard_sigmoid"},
    ),
}


@dataclasses.dataclass(frozen=True)
class Composition:
    init: Callable
    initial_state: Callable
    apply: Callable
    reference: Callable


def lstm_by(implementation):
    apply = partial(lstm.apply, implementation=implementation)
    return Composition(partial(lstm.init, inputs=INPUTS), lstm.initial_state, apply, reference.lstm)


def bidirectional_by(merge):
    arguments = {"merge": merge}
    apply, against = partial(bidirectional.apply, **arguments), partial(reference.bidirectional, **arguments)
    return Composition(partial(bidirectional.init, inputs=INPUTS), bidirectional.initial_state, apply, against)


MERGES = ("concat", "sum", "mul", "ave")


def bidirectional_by_every_merge():
    """A list of what each merge gives, of one program."""
    modules = bidirectional.apply, reference.bidirectional
    apply, against = (
        lambda *arrays, call=call, **how: [call(*arrays, merge=merge, **how) for merge in MERGES] for call in modules
    )
    return Composition(partial(bidirectional.init, inputs=INPUTS), bidirectional.initial_state, apply, against)


def stack_by(*, layers, bidirectional=False, **arguments):
    def init(key, *, units, **options):
        merge = arguments.get("merge", "concat")
        return stack.init(key, INPUTS, (units,) * layers, bidirectional=bidirectional, merge=merge, **options)

    apply, against = partial(stack.apply, **arguments), partial(reference.stack, **arguments)
    return Composition(init, stack.initial_state, apply, against)


COMPOSITIONS = {
    **{name: lstm_by(name) for name in EVERY_CELL},
    **{f"bidirectional, {merge}": bidirectional_by(merge) for merge in MERGES},
    "stack": stack_by(layers=3),
    "residual stack": stack_by(layers=2, residual_from=1),
    "residual stack from the start": stack_by(layers=2, residual_from=0),
    "bidirectional stack": stack_by(layers=2, bidirectional=True, merge="sum"),
    "bidirectional residual stack": stack_by(layers=2, bidirectional=True, merge="ave", residual_from=1),
}

CHECKED = {name: composition for name, composition in COMPOSITIONS.items() if "bidirectional, " not in name}
CHECKED["bidirectional"] = bidirectional_by_every_merge()
FULLEST = ("all", "all but gates of their own")
NORMS = tuple(name for name in VARIANTS if "kept" in name or "per gate" in name)
# The first two are in the fullest ones, the third is the standard cell, and test_lstm has the last.
CONTAINED = ("no bias", "two biases", "chrono", "hard sigmoid of Keras 2")


def by_default(variant, composition, reverse):
    """Whether this row of the product is in the default suite; the others are slow.

    By default each cell takes the path with derivatives of its own, in one direction, unless another one has its parts;
    the fullest cells take the other path, too, and the fullest of all takes every composition.
    """
    if (list(VARIANTS).index(variant) + list(CHECKED).index(composition)) % 2 != reverse:
        return False
    if composition == "fused":
        return variant not in CONTAINED
    return variant == "all" or (composition == "scan" and variant in FULLEST + NORMS)


def example(composition, variant, batch=(2,)):
    """Float64 trees that float32 represents: params, xs and state; with lengths and resets."""
    rng = np.random.default_rng(0)

    def draw(shaped, scale):
        return jax.tree.map(lambda leaf: np.float64(np.float32(rng.normal(scale=scale, size=leaf.shape))), shaped)

    params = jax.eval_shape(partial(variant.make, composition.init), jax.random.key(0))
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


@pytest.mark.parametrize(
    ("variant", "composition", "reverse"),
    [
        pytest.param(*row, marks=[] if by_default(*row) else pytest.mark.slow)
        for row in itertools.product(VARIANTS, CHECKED, (False, True))
    ],
)
def test_values_and_gradients(variant, composition, reverse, x64):
    """All that a call may take together, with gradients in params, inputs and states."""
    check_values_and_gradients(CHECKED[composition], VARIANTS[variant], reverse)


def check_values_and_gradients(composition, variant, reverse):
    """In float64, and values in float32 too where it is not reversed."""
    arrays, times = example(composition, variant)
    leaves, tree = jax.tree.flatten(arrays)
    arguments = {**times, "reverse": reverse}

    def run(*arrays):
        outputs = composition.apply(*arrays, **arguments, **variant.arguments())
        return loss(outputs), outputs

    @jax.jit
    def both(wide, narrow):
        slopes, outputs = jax.grad(run, argnums=(0, 1, 2), has_aux=True)(*wide)
        return slopes, outputs, None if narrow is None else run(*narrow)[1]

    def expected(*leaves):
        arrays = jax.tree.unflatten(tree, leaves)
        return composition.reference(*arrays, **arguments, **variant.options, **variant.zoneout)

    right = jax.tree.leaves(expected(*leaves))
    slopes, wide, narrow = both(cast(arrays, jnp.float64), None if reverse else cast(arrays, jnp.float32))
    for dtype, tolerance, actual in ((jnp.float64, 1e-12, wide), (jnp.float32, 2e-6, narrow)):
        if actual is None:
            continue
        if dtype == jnp.float32:
            tolerance += 3 * change_by_rounding(expected, leaves, right)
        for a, e in zip(jax.tree.leaves(actual), right, strict=True):
            assert a.dtype == dtype
            np.testing.assert_allclose(a, e, rtol=tolerance, atol=tolerance)
    rng = np.random.default_rng(1)
    directions = [rng.normal(size=leaf.shape) for leaf in leaves]
    right = reference.slopes(lambda *leaves: loss(expected(*leaves)), leaves, directions)
    assert right[0] != 0
    for slope, direction, e in zip(jax.tree.leaves(slopes), directions, right, strict=True):
        terms = np.asarray(slope) * direction
        np.testing.assert_allclose(terms.sum(), e, rtol=0, atol=1e-12 * max(1, np.abs(terms).sum()))


def change_by_rounding(expected, leaves, right):
    """How far outputs move when each argument moves within half a unit of its last place in float32.

    At most 3e-7, but where a layer norm divides by the deviation of three units that are nearly equal.
    """
    rng, half_unit = np.random.default_rng(2), np.finfo(np.float32).eps / 2
    moved = expected(*(leaf * (1 + rng.uniform(-half_unit, half_unit, leaf.shape)) for leaf in leaves))
    return max(np.abs(m - e).max(initial=0) for m, e in zip(jax.tree.leaves(moved), right, strict=True))


@pytest.mark.parametrize(
    "variant",
    [
        pytest.param(variant, marks=[] if name in FULLEST else pytest.mark.slow, id=name)
        for name, variant in VARIANTS.items()
    ],
)
def test_the_contract_of_time(variant):
    """What holds whatever the cell: each pair is the same thing said in two ways.

    By default of the fullest cells, which have the parts of most others.
    """
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
        segments = [call(xs, state, lengths=lengths, resets=resets, checkpoint=c) for c in (True, 3)]
        own = jax.tree.map(lambda leaf: leaf[0, 1], state)
        return {
            "steps": ((jnp.stack(steps, axis=2), after), whole),
            "pieces": ((jnp.concatenate([first, second], axis=2), end), whole),
            "padding": (call(poisoned, state, lengths=lengths, resets=resets), ragged),
            "outputs at padding": (jnp.where(padding[..., None], ragged[0], 0), jnp.zeros_like(ragged[0])),
            "no valid step": (jax.tree.map(lambda leaf: leaf[0, 1], ragged[1]), own),
            "the last h": (last, ragged[1].h),
            "vmap": (mapped, ragged),
            "segments": (segments, [ragged] * 2),
            "no state": (call(xs), call(xs, lstm.initial_state(params, (2, 3)))),
            "a reset at once": (call(xs, state, resets=resets.at[..., 0].set(True)), call(xs, resets=resets)),
        }

    for name, (actual, expected) in pairs(params, xs, state, lengths, resets).items():
        same = partial(np.testing.assert_allclose, rtol=1e-5, atol=2e-6, err_msg=name)
        jax.tree.map(same, actual, expected)


@pytest.mark.parametrize(
    ("variant", "implementation", "reverse"),
    [
        pytest.param(
            *row, marks=[] if row in (("all", "fused", False), ("standard", "scan", True)) else pytest.mark.slow
        )
        for row in itertools.product(("standard", "all"), EVERY_CELL, (False, True))
    ],
)
def test_gradients_of_segments(variant, implementation, reverse):
    arrays, times = example(COMPOSITIONS["fused"], VARIANTS[variant])
    arguments = {**times, **VARIANTS[variant].arguments(), "implementation": implementation, "reverse": reverse}

    def slopes(checkpoint):
        call = partial(lstm.apply, **arguments, checkpoint=checkpoint)
        return jax.grad(lambda *arrays: loss(call(*arrays)), argnums=(0, 1, 2))

    actual, expected = jax.jit(lambda *arrays: (slopes(3)(*arrays), slopes(False)(*arrays)))(*cast(arrays, jnp.float32))
    jax.tree.map(partial(np.testing.assert_allclose, rtol=1e-4, atol=1e-5), actual, expected)


@pytest.mark.parametrize("peepholes", [False, True])
def test_a_closed_forget_gate_of_a_coupled_cell_keeps_its_value(peepholes):
    """It is sigmoid(-z), where 1 - sigmoid(z) would be 0, without a gradient, from z = 17 on."""
    z = np.linspace(-80, 80, 64).astype(np.float32).astype(np.float64)
    params = lstm.init(jax.random.key(0), 1, 1, coupled=True, peepholes=peepholes)
    params = jax.tree.map(jnp.zeros_like, params)
    params = dataclasses.replace(params, w_x=jnp.array([[1.0, 0.0, 0.0]]))  # z_i = x; g = 0

    def kept(xs):
        state = LSTMState(h=jnp.zeros((len(xs), 1)), c=jnp.ones((len(xs), 1)))
        return lstm.apply(params, xs, state, return_sequences=False)[1].c

    c, pull = jax.vjp(jax.jit(kept), jnp.asarray(z[:, None, None], jnp.float32))
    (slope,) = pull(jnp.ones_like(c))
    f, i = 1 / (1 + np.exp(z)), 1 / (1 + np.exp(-z))
    np.testing.assert_allclose(c[:, 0], f, rtol=4e-7)
    np.testing.assert_allclose(slope[z > 0, 0, 0], -(f * i)[z > 0], rtol=2e-6)
