"""Dropout: what is drawn, how often, and what the equations make of it."""

import dataclasses
import itertools
from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import reference

from lstmjax import Dropout, bidirectional, hierarchy, lstm, residual, stack, windows
from lstmjax._src import dropout_masks

KEY = jax.random.key(3)
EVERY_CELL = ["fused", "scan"]  # the kernel computes the standard one
INPUTS, UNITS, TIME, BATCH = 2, 3, 4, (2, 1)

KINDS = {
    "inputs": Dropout(inputs=0.5),
    "tied": Dropout(recurrent=0.5),
    "per gate": Dropout(recurrent=0.5, recurrent_kind="per_gate"),
    "candidate": Dropout(recurrent=0.5, recurrent_kind="candidate"),
    "outputs": Dropout(outputs=0.5),
    "zoneout of h": Dropout(zoneout_h=0.5),
    "zoneout of c": Dropout(zoneout_c=0.5),
    "recurrent weights": Dropout(recurrent_weights=0.5),
    "all dropped": Dropout(inputs=1, recurrent=1, outputs=1, recurrent_weights=1),
    "candidates dropped": Dropout(inputs=1, recurrent=1, recurrent_kind="candidate"),
    "all kept": Dropout(zoneout_h=1, zoneout_c=1),
    "all": Dropout(inputs=0.2, recurrent=0.3, outputs=0.4, zoneout_h=0.5, zoneout_c=0.3, recurrent_weights=0.2),
}
every_kind = pytest.mark.parametrize("dropout", KINDS.values(), ids=KINDS)


def shapes(inputs=INPUTS, units=UNITS, init=lstm.init, **options):
    """Params of which nothing but shapes and dtypes is known, which is all that masks are drawn by."""
    return jax.eval_shape(lambda: init(KEY, inputs, units, **options))


def example(**options):
    params = shapes(**options)
    rng = np.random.default_rng(0)
    drawn = lambda leaf: np.float64(np.float32(rng.normal(scale=0.7, size=leaf.shape)))  # noqa: E731
    xs = drawn(np.empty((*BATCH, TIME, INPUTS)))
    state = jax.eval_shape(lambda params: lstm.initial_state(params, BATCH), params)
    params, state = jax.tree.map(drawn, (params, state))
    return params, xs, state


def masks_of(dropout, params, key=KEY):
    masks = named(dropout_masks.draw(dropout, key, params, BATCH, TIME))
    return {name: np.float64(mask) for name, mask in masks.items()}


def named(drawn):
    """All masks that were drawn, as the rates are named."""
    masks, zoneout = drawn
    every = vars(masks) | {f"zoneout_{name}": mask for name, mask in vars(zoneout).items()}
    return {name: mask for name, mask in every.items() if mask is not None}


def single_precision(**options):
    return jax.tree.map(np.float32, example(**options))


WAYS = {
    "fused": ("fused", {}),
    "scan": ("scan", {}),
    "coupled and projected": ("fused", {"coupled": True, "projection": 2}),
}
LATER = [
    # "all" has all of these at once.
    *((kind, "fused") for kind in ("inputs", "tied", "outputs", "recurrent weights")),
    *((kind, way) for kind in KINDS for way in ("scan", "coupled and projected") if kind not in ("all", "candidate")),
]


@jax.jit
def plainly(params, xs, state, lengths):
    return lstm.apply(params, xs, state, lengths=lengths)


@pytest.mark.parametrize(
    ("kind", "way"),
    [pytest.param(*row, marks=pytest.mark.slow if row in LATER else []) for row in itertools.product(KINDS, WAYS)],
)
def test_values_and_gradients(kind, way, x64):
    """Against the float64 loop with the same masks, drawn once from the key."""
    dropout, (implementation, options) = KINDS[kind], WAYS[way]
    arrays = example(**options)
    masks = masks_of(dropout, arrays[0])
    assert masks
    assert kind != "all" or len(masks) == 6
    lengths = np.array([[TIME], [2]])
    leaves, tree = jax.tree.flatten(arrays)
    rates = {name: getattr(dropout, name) for name in ("zoneout_h", "zoneout_c")}

    def loss(outputs):
        return sum((np.linspace(0.5, 1, out.size).reshape(out.shape) * out).sum() for out in jax.tree.leaves(outputs))

    def expected(*leaves):
        return reference.lstm(*jax.tree.unflatten(tree, leaves), lengths=lengths, masks=masks, **rates)

    def run(*arrays):
        outputs = lstm.apply(*arrays, lengths=lengths, dropout=dropout, key=KEY, implementation=implementation)
        return loss(outputs), outputs

    wide = jax.tree.map(jnp.asarray, arrays)
    slopes, actual = jax.jit(jax.grad(run, argnums=(0, 1, 2), has_aux=True))(*wide)
    for a, e in zip(jax.tree.leaves(actual), jax.tree.leaves(expected(*leaves)), strict=True):
        np.testing.assert_allclose(a, e, rtol=1e-12, atol=1e-12)
    right = reference.gradients(lambda *leaves: loss(expected(*leaves)), leaves)
    for a, e in zip(jax.tree.leaves(slopes), right, strict=True):
        np.testing.assert_allclose(a, e, rtol=0, atol=1e-12 * max(1, np.abs(e).max()))
    plain = plainly(*wide, lengths)
    assert any(np.abs(a - b).max() > 1e-3 for a, b in zip(*map(jax.tree.leaves, (actual, plain)), strict=True))


RATES = dropout_masks.RATES


@pytest.mark.parametrize("recurrent_kind", dropout_masks.RECURRENT_KINDS)
def test_a_rate_of_1_drops_or_keeps_everything(recurrent_kind):
    dropout = Dropout(**dict.fromkeys(RATES, 1.0), recurrent_kind=recurrent_kind)
    masks = masks_of(dropout, shapes(50, 50))
    assert len(masks) == 6
    for name, mask in masks.items():
        np.testing.assert_array_equal(mask, name.startswith("zoneout"))


def test_dropping_all_between_layers_leaves_zeros_to_read():
    params = jax.jit(lambda key: stack.init(key, INPUTS, (UNITS, UNITS)))(KEY)
    xs = np.ones((2, TIME, INPUTS), np.float32)

    @jax.jit
    def run(params, xs):
        call = lambda params: stack.apply(params, xs, dropout=Dropout(between_layers=1), key=KEY)[0]  # noqa: E731
        alone = lstm.apply(params.layers[1], jnp.zeros((2, TIME, UNITS)))[0]
        return call(params), alone, jax.grad(lambda params: call(params).sum())(params)

    ys, alone, slopes = run(params, xs)
    np.testing.assert_allclose(ys, alone, rtol=0, atol=1e-6)
    assert all(np.isfinite(leaf).all() for leaf in jax.tree.leaves(slopes))
    assert all((leaf == 0).all() for leaf in jax.tree.leaves(slopes.layers[0]))


@pytest.mark.parametrize("rate", [0.1, 0.5, 0.8])
def test_rates(rate):
    """Of 100,000 values each: the share dropped is within five standard deviations, and the mean factor is 1."""
    dropout = Dropout(**dict.fromkeys(RATES, rate))
    params = shapes(320, 320)
    drawn = [dropout_masks.draw(dropout, KEY, params, (320,), 1)]
    kinds = [dataclasses.replace(dropout, recurrent_kind=kind) for kind in ("per_gate", "candidate")]
    drawn += [dropout_masks.draw(kind, KEY, params, (320,), 1) for kind in kinds]
    leaves = jax.tree.leaves(drawn)
    assert len(leaves) == 18
    for mask in map(np.asarray, leaves):
        deviations = 5 * np.sqrt(rate * (1 - rate) / mask.size)
        held = mask if mask.dtype == bool else mask == 0
        assert abs(held.mean() - rate) < deviations
        if mask.dtype != bool:
            np.testing.assert_allclose(np.unique(mask), [0, 1 / (1 - rate)], rtol=1e-6)
            assert abs(mask.mean() - 1) < deviations / (1 - rate)


def test_shapes():
    """One mask for each sequence, the same at every step; zoneout's anew at every step; one of W_h for all."""
    dropout, params = dataclasses.replace(KINDS["all"], recurrent_kind="per_gate"), shapes(projection=2)
    masks = jax.eval_shape(lambda key: dropout_masks.draw(dropout, key, params, BATCH, TIME), KEY)
    assert {name: mask.shape for name, mask in named(masks).items()} == {
        "inputs": (*BATCH, INPUTS),
        "recurrent": (*BATCH, 4, 2),
        "outputs": (*BATCH, 2),
        "zoneout_h": (TIME, *BATCH, 2),
        "zoneout_c": (TIME, *BATCH, UNITS),
        "recurrent_weights": (2, 4 * UNITS),
    }


def test_a_mask_depends_on_the_key_and_its_own_rate_alone():
    params = shapes(50, 50)
    together = masks_of(KINDS["all"], params)
    for name in ("inputs", "recurrent", "outputs", "zoneout_h", "zoneout_c", "recurrent_weights"):
        alone = masks_of(Dropout(**{name: getattr(KINDS["all"], name)}), params)
        assert list(alone) == [name]
        np.testing.assert_array_equal(alone[name], together[name])
        other = masks_of(KINDS["all"], params, jax.random.key(4))
        assert (other[name] != together[name]).any()
    same = dataclasses.replace(KINDS["all"], inputs=0.5, outputs=0.5, recurrent=0.5)
    masks = masks_of(same, params)
    assert (masks["inputs"] != masks["outputs"]).any()
    assert (masks["recurrent"] != masks["outputs"]).any()


@every_kind
def test_one_key_drops_the_same_on_every_implementation(dropout):
    params, xs, state = single_precision()

    @jax.jit
    def by_all(params, xs, state, key):
        call = partial(lstm.apply, params, xs, state, dropout=dropout, key=key)
        return [
            call(implementation=implementation, checkpoint=checkpoint)
            for implementation in EVERY_CELL
            for checkpoint in (False, True)
        ]

    runs = by_all(params, xs, state, KEY)
    for run in runs[1:]:
        jax.tree.map(partial(np.testing.assert_allclose, rtol=0, atol=1e-6), run, runs[0])


@every_kind
def test_deterministic_drops_nothing_and_zoneout_is_expected(dropout):
    params, xs, state = single_precision()
    ys, end = lstm.apply(params, xs, state, dropout=dropout, deterministic=True)
    rates = {name: getattr(dropout, name) for name in ("zoneout_h", "zoneout_c")}
    expected = reference.lstm(*jax.tree.map(np.float64, (params, xs, state)), **rates)
    np.testing.assert_allclose(ys, expected[0], rtol=0, atol=2e-6)
    np.testing.assert_allclose(end.c, expected[1][1], rtol=0, atol=2e-6)
    if not any(rates.values()):
        jax.tree.map(np.testing.assert_array_equal, (ys, end), lstm.apply(params, xs, state))
    for t in range(TIME):
        _, state = lstm.step(params, xs[..., t, :], state, dropout=dropout, deterministic=True)
    np.testing.assert_allclose(state.h, end.h, rtol=0, atol=1e-6)


def test_zoneout_is_right_on_average():
    """One step's mean over many draws is its expectation, which is linear in the masks."""
    params, xs, _ = single_precision()
    xs = np.broadcast_to(xs[0, 0, :1], (20000, 1, INPUTS))
    start = np.broadcast_to(np.linspace(-1, 1, 2 * UNITS, dtype=np.float32), (20000, 2 * UNITS))
    state = lstm.LSTMState(*np.split(start, 2, axis=-1))
    dropout = Dropout(zoneout_h=0.3, zoneout_c=0.6)
    _, drawn = lstm.apply(params, xs, state, dropout=dropout, key=KEY)
    first = jax.tree.map(lambda leaf: leaf[0], state)
    _, expected = lstm.apply(params, xs[0], first, dropout=dropout, deterministic=True)
    jax.tree.map(lambda d, e: np.testing.assert_allclose(np.mean(d, axis=0), e, atol=0.02), drawn, expected)


def test_dropped_outputs_leave_the_state_and_padding_alone():
    params, xs, state = single_precision()
    arguments = {"lengths": np.array([[2], [0]]), "dropout": Dropout(outputs=0.5), "key": KEY}
    ys, end = lstm.apply(params, xs, state, **arguments)
    whole, expected_end = lstm.apply(params, xs, state, lengths=arguments["lengths"])
    jax.tree.map(np.testing.assert_array_equal, end, expected_end)
    mask = np.asarray(dropout_masks.draw(arguments["dropout"], KEY, params, BATCH, TIME)[0].outputs)
    np.testing.assert_allclose(ys, whole * mask[:, :, None], atol=1e-6)
    last, _ = lstm.apply(params, xs, state, **arguments, return_sequences=False)
    np.testing.assert_allclose(last, expected_end.h * mask, atol=1e-6)


def test_the_halves_of_a_bidirectional_have_masks_of_their_own():
    rng = np.random.default_rng(0)
    half = jax.tree.map(lambda leaf: np.float32(rng.normal(scale=0.1, size=leaf.shape)), shapes(50, 50))
    params, xs = bidirectional.BidirectionalParams(half, half), np.ones((3, 4, 50), np.float32)
    ys, _ = bidirectional.apply(params, xs, merge=None, dropout=Dropout(outputs=0.5), key=KEY)
    forward, backward = map(np.asarray, ys)
    assert ((forward == 0) == (forward[:, :1] == 0)).all()
    assert ((forward == 0) != (backward == 0)).any()


def test_layers_of_a_stack():
    """`inputs` drops before the first, `outputs` after the last, `between_layers` between, all else in each."""
    rng = np.random.default_rng(0)
    normal = lambda leaf: np.float32(rng.normal(scale=0.5, size=leaf.shape))  # noqa: E731
    params, xs = jax.tree.map(normal, (shapes(6, (5, 5), stack.init), np.empty((3, 4, 6))))
    dropout = Dropout(inputs=0.3, outputs=0.4, between_layers=0.5, recurrent=0.2, zoneout_c=0.1)
    first = dataclasses.replace(dropout, between_layers=0.0, outputs=0.0)
    last = dataclasses.replace(dropout, between_layers=0.0, inputs=0.0)

    @jax.jit
    def run(params, xs, key):
        (first_key, _), (last_key, between_key) = jax.random.split(key, (2, 2))
        middle, first_state = lstm.apply(params.layers[0], xs, dropout=first, key=first_key)
        kept = dropout_masks.factors(between_key, 0.5, (3, 1, 5))
        ys, last_state = lstm.apply(params.layers[1], middle * kept, dropout=last, key=last_key)
        still = stack.apply(params, xs, dropout=Dropout(between_layers=0.9), key=key, deterministic=True)
        without_key = stack.apply(params, xs), still
        return stack.apply(params, xs, dropout=dropout, key=key), (ys, (first_state, last_state)), kept, without_key

    dropped, expected, kept, without_key = run(params, xs, KEY)
    assert len(np.unique(kept)) == 2
    same = partial(np.testing.assert_allclose, rtol=0, atol=1e-6)
    jax.tree.map(same, dropped, expected)
    jax.tree.map(same, *without_key)


def test_no_retrace_on_an_equal_dropout():
    traces = []

    @partial(jax.jit, static_argnames="dropout")
    def run(xs, key, dropout):
        traces.append(None)
        return lstm.apply(lstm.init(KEY, INPUTS, UNITS), xs, dropout=dropout, key=key)[0]

    for seed in range(3):
        run(jnp.ones((2, TIME, INPUTS)), jax.random.key(seed), Dropout(inputs=0.5, zoneout_h=0.1))
    assert len(traces) == 1


def test_old_style_keys_and_dtypes():
    xs = np.ones((2, TIME, INPUTS), jnp.bfloat16)
    params = jax.tree.map(lambda leaf: np.ones(leaf.shape, leaf.dtype), shapes(dtype=jnp.bfloat16))
    ys, state = lstm.apply(params, xs, dropout=KINDS["all"], key=jax.random.PRNGKey(0))
    assert (ys.dtype, state.h.dtype, state.c.dtype) == (jnp.bfloat16, jnp.bfloat16, jnp.float32)


@pytest.mark.parametrize(
    ("arguments", "error", "text"),
    [
        ({"inputs": 1.1}, ValueError, r"inputs must be a rate from 0 to 1; got 1\.1"),
        ({"zoneout_h": -0.1}, ValueError, r"zoneout_h must be a rate from 0 to 1; got -0\.1"),
        ({"recurrent": float("nan")}, ValueError, "recurrent must be a rate from 0 to 1; got nan"),
        ({"outputs": "half"}, TypeError, "outputs must be a number, got 'half'"),
        ({"recurrent_kind": "gal"}, ValueError, "recurrent_kind must be one of 'tied', 'per_gate', 'candidate'; got"),
    ],
)
@pytest.mark.usefixtures("untyped")
def test_refusals(arguments, error, text):
    with pytest.raises(error, match=text):
        Dropout(**arguments)


RUNS = {
    "lstm.apply": (lstm.apply, shapes(2, 3), (4, 2), Dropout(inputs=0.5)),
    "lstm.apply, zoneout": (lstm.apply, shapes(2, 3), (4, 2), Dropout(zoneout_c=0.5)),
    "bidirectional.apply": (bidirectional.apply, shapes(2, 3, bidirectional.init), (4, 2), Dropout(outputs=0.5)),
    "stack.apply": (stack.apply, shapes(2, (3, 3), stack.init), (4, 2), Dropout(between_layers=0.5)),
    "hierarchy.apply": (hierarchy.apply, shapes(2, (3, 3), hierarchy.init), (4, 5, 2), Dropout(inputs=0.5)),
    "hierarchy.encode": (hierarchy.encode, shapes(2, 3), (4, 2), Dropout(recurrent=0.5)),
    "residual.apply": (residual.apply, shapes(2, (3,), residual.init), (4, 2), 0.5),
    "windows.truncated_bptt": (windows.truncated_bptt(lstm.apply, 2), shapes(2, 3), (4, 2), Dropout(inputs=0.5)),
}


@pytest.mark.usefixtures("untyped")
@pytest.mark.parametrize(("run", "params", "shape", "dropout"), RUNS.values(), ids=RUNS)
def test_dropout_without_a_key_is_refused_unless_deterministic(run, params, shape, dropout):
    params, xs = jax.tree.map(lambda leaf: np.ones(leaf.shape, np.float32), (params, np.empty(shape)))
    with pytest.raises(ValueError, match="dropout needs key=, a JAX random key, in training; or deterministic=True"):
        run(params, xs, dropout=dropout)
    with pytest.raises(TypeError, match="deterministic must be True or False"):
        run(params, xs, dropout=dropout, deterministic=1)
    still, with_key = (run(params, xs, dropout=dropout, deterministic=True, **key) for key in ({}, {"key": KEY}))
    jax.tree.map(np.testing.assert_array_equal, still, with_key)
    if dropout != Dropout(zoneout_c=0.5):
        jax.tree.map(np.testing.assert_array_equal, still, run(params, xs))


def test_no_rate_needs_no_key():
    params, xs = jax.tree.map(lambda leaf: np.ones(leaf.shape, np.float32), (shapes(2, 3), np.empty((4, 2))))
    jax.tree.map(np.testing.assert_array_equal, lstm.apply(params, xs, dropout=Dropout()), lstm.apply(params, xs))


@pytest.mark.parametrize("layers", [1, 2])
def test_a_step_with_a_key_is_a_sequence_of_one_step(layers):
    """And so a sequence of steps with one key has the masks of `apply`, but for zoneout."""
    params = lstm.init(KEY, 3, 4) if layers == 1 else stack.init(KEY, 3, (4, 4))
    module = lstm if layers == 1 else stack
    dropout = Dropout(inputs=0.3, recurrent=0.3, outputs=0.3, recurrent_weights=0.3, between_layers=0.4 * (layers - 1))
    xs, state = np.ones((2, 3, 3), np.float32), module.initial_state(params, 2)
    ys, end = module.apply(params, xs, dropout=dropout, key=KEY)
    for t in range(3):
        y, state = module.step(params, xs[:, t], state, dropout=dropout, key=KEY)
        np.testing.assert_allclose(y, ys[:, t], atol=1e-6)
    jax.tree.map(partial(np.testing.assert_allclose, atol=1e-6), state, end)
    with pytest.raises(ValueError, match="dropout needs key="):
        module.step(params, xs[:, 0], state, dropout=dropout)
    zoneout, first = Dropout(zoneout_h=0.5, inputs=0.2), module.initial_state(params, 2)
    one = module.apply(params, xs[:, :1], dropout=zoneout, key=KEY, return_sequences=False)
    jax.tree.map(np.testing.assert_array_equal, one, module.step(params, xs[:, 0], first, dropout=zoneout, key=KEY))


def test_dropout_between_layers_at_every_step_as_pytorch_draws_it():
    params, xs = stack.init(KEY, 3, (16, 16)), np.ones((2, 6, 3), np.float32)
    last = lambda xs, **rest: lstm.apply(params.layers[1], xs, **rest)[0]  # noqa: E731
    below, _ = lstm.apply(params.layers[0], xs)
    (_, _), (_, between) = jax.random.split(KEY, (2, 2))
    found = {}
    for kind, steps in (("sequence", 1), ("step", 6)):
        dropout = Dropout(between_layers=0.5, between_layers_kind=kind)
        found[kind], _ = stack.apply(params, xs, dropout=dropout, key=KEY)
        kept = np.asarray(dropout_masks.factors(between, 0.5, (2, steps, 16)))
        assert (kept != kept[:, :1]).any() == (kind == "step")
        np.testing.assert_allclose(found[kind], last(below * kept), atol=1e-6)
    assert not np.allclose(found["sequence"], found["step"])
    with pytest.raises(ValueError, match="between_layers_kind must be one of 'sequence', 'step'"):
        Dropout(between_layers_kind="batch")
