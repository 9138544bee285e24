"""Layers on top of each other: against one call of each layer after another."""

import dataclasses
from functools import cache, partial

import covering
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import PartitionSpec

from lstmjax import Dropout, LSTMState, StackParams, bidirectional, lstm, stack

KEY = jax.random.key(0)
BATCH, TIME, WIDTH = 4, 5, 3
LENGTHS = np.array([TIME, 3, 1, 0])
PADDING = np.arange(TIME) >= LENGTHS[:, None]
XS = jnp.asarray(np.random.default_rng(1).normal(size=(BATCH, TIME, WIDTH)), jnp.float32)
PARAMS, BOTH, WIDER = jax.jit(
    lambda: (
        stack.init(KEY, WIDTH, (WIDTH, WIDTH)),
        stack.init(KEY, WIDTH, (WIDTH, WIDTH), bidirectional=True, merge="sum"),
        stack.init(KEY, WIDTH, (4, WIDTH)),
    )
)()
ZONEOUT = Dropout(inputs=0.5, between_layers=0.5, outputs=0.5, zoneout_h=0.2, zoneout_c=0.3)

same = partial(jax.tree.map, partial(np.testing.assert_allclose, rtol=1e-5, atol=1e-6))
equal = partial(jax.tree.map, np.testing.assert_array_equal)


def drawn(shapes, seed=2):
    rng = np.random.default_rng(seed)
    return jax.tree.map(lambda leaf: jnp.asarray(rng.normal(scale=0.5, size=leaf.shape), leaf.dtype), shapes)


@cache
def weights(init, *sizes, **options):
    """Params in the shapes of those that `init` makes."""
    return drawn(jax.eval_shape(lambda: init(KEY, *sizes, **options)))


def states(params, batch=(BATCH,)):
    return drawn(jax.eval_shape(lambda: stack.initial_state(params, batch)))


STATE = states(PARAMS)


def one_after_another(params, xs, state=None, *, merge="concat", residual_from=None, **arguments):
    ends = []
    for number, layer in enumerate(params.layers):
        module = lstm if isinstance(layer, lstm.LSTMParams) else bidirectional
        given = arguments | ({} if module is lstm else {"merge": merge})
        ys, end = module.apply(layer, xs, None if state is None else state[number], **given)
        xs = ys if residual_from is None or number < residual_from else ys + xs
        ends.append(end)
    return xs, tuple(ends)


class TestInit:
    @pytest.mark.parametrize(("units", "count"), [((4, 4, 1), 4 * (4 * 8 + 4 * 9 + 1 * 6)), ((5,), 4 * 5 * 9)])
    def test_number_of_parameters(self, units, count):
        params = jax.eval_shape(lambda: stack.init(KEY, 3, units))
        assert sum(leaf.size for leaf in jax.tree.leaves(params)) == count
        assert [(layer.inputs, layer.units) for layer in params.layers] == list(zip((3, *units), units, strict=False))

    @pytest.mark.parametrize(("merge", "wide"), [("concat", 2), ("sum", 1), ("mul", 1), ("ave", 1)])
    @pytest.mark.parametrize("projection", [None, 2])
    def test_inputs_of_layers(self, merge, wide, projection):
        make = partial(stack.init, inputs=3, units=(4, 5), merge=merge, projection=projection)
        layers = jax.eval_shape(partial(make, bidirectional=True), KEY).layers
        widths = [(half.inputs, half.units) for layer in layers for half in (layer.forward, layer.backward)]
        assert widths == [(3, 4)] * 2 + [(wide * (projection or 4), 5)] * 2
        assert [layer.inputs for layer in jax.eval_shape(make, KEY).layers] == [3, projection or 4]

    def test_default(self):
        layers = jax.eval_shape(lambda key: stack.init(key, 3), KEY).layers
        assert [layer.units for layer in layers] == [64, 64]

    def test_layers_draw_from_keys_of_their_own(self):
        assert not np.array_equal(PARAMS.layers[0].w_x, PARAMS.layers[1].w_x)
        assert not np.array_equal(BOTH.layers[0].forward.w_x, BOTH.layers[0].backward.w_x)

    def test_paths_of_the_leaves(self):
        paths, _ = jax.tree_util.tree_flatten_with_path(weights(stack.init, 3, (2, 2), bias=False))
        names = [jax.tree_util.keystr(path, simple=True, separator="/") for path, _ in paths]
        assert names == ["layers/0/w_x", "layers/0/w_h", "layers/1/w_x", "layers/1/w_h"]

    def test_initial_state(self):
        params = weights(stack.init, 3, (4, 2), bidirectional=True, learned_state=True)
        params = jax.tree.map(lambda leaf: np.full_like(leaf, 0.5), params)
        state = stack.initial_state(params, (6, 2))
        assert [layer.backward.c.shape for layer in state] == [(6, 2, 4), (6, 2, 2)]
        assert all((leaf == 0.5).all() for leaf in jax.tree.leaves(state))
        equal(stack.initial_state(params.layers[0]), bidirectional.initial_state(params.layers[0]))
        equal(stack.initial_state(PARAMS.layers[0], (2,)), lstm.initial_state(PARAMS.layers[0], (2,)))


@pytest.mark.parametrize("merge", ["concat", "sum", "mul", "ave"])
@pytest.mark.parametrize("return_sequences", [True, False])
def test_layers_of_different_units_one_after_another(merge, return_sequences):
    params = weights(stack.init, 3, (4, 2), bidirectional=True, merge=merge)
    arguments = {"lengths": LENGTHS, "reverse": True, "merge": merge}
    ys, end = stack.apply(params, XS, return_sequences=return_sequences, **arguments)
    middle, first = bidirectional.apply(params.layers[0], XS, **arguments)
    expected, last = bidirectional.apply(params.layers[1], middle, return_sequences=return_sequences, **arguments)
    same((ys, end), (expected, (first, last)))


def test_layers_of_both_kinds():
    params = StackParams((weights(bidirectional.init, WIDTH, 4), weights(lstm.init, 8, 4), weights(lstm.init, 4, 1)))
    ys, end = stack.apply(params, XS, lengths=LENGTHS)
    assert ys.shape == (BATCH, TIME, 1)
    same((ys, end), one_after_another(params, XS, lengths=LENGTHS))
    with pytest.raises(ValueError, match=r"params\.layers\[0\] is bidirectional"):
        stack.step(params, XS[:, 0], end)


@pytest.mark.parametrize("layer", [PARAMS.layers[0], BOTH.layers[0]], ids=["lstm", "bidirectional"])
def test_one_layer_runs_as_its_own_module_runs_it(layer):
    module, merge = (lstm, {}) if layer is PARAMS.layers[0] else (bidirectional, {"merge": None})
    arguments = {"lengths": LENGTHS, "reverse": True, "dropout": Dropout(inputs=0.5, outputs=0.5), "key": KEY}
    arguments |= {"state": states(StackParams((layer,)))[0], "return_sequences": False}
    equal(stack.apply(layer, XS, merge=None, **arguments), module.apply(layer, XS, **merge, **arguments))


@pytest.mark.parametrize("residual_from", [None, 0, 1])
def test_steps_equal_apply(residual_from):
    ys, end = stack.apply(PARAMS, XS, STATE, residual_from=residual_from, dropout=ZONEOUT, deterministic=True)
    state = STATE
    for t in range(TIME):
        arguments = {"residual_from": residual_from, "dropout": ZONEOUT, "deterministic": True}
        y, state = stack.step(PARAMS, XS[:, t], state, **arguments)
        same(y, ys[:, t])
    same(state, end)
    assert np.abs(end[0].h - stack.apply(PARAMS, XS, STATE)[1][0].h).max() > 1e-3


@pytest.mark.parametrize("reverse", [False, True])
def test_pieces_with_the_state_carried_equal_the_whole(reverse):
    call = partial(stack.apply, PARAMS, residual_from=1, reverse=reverse)
    ys, state = [None, None], STATE
    pieces = XS[:, :2], XS[:, 2:]
    for piece in (1, 0) if reverse else (0, 1):
        ys[piece], state = call(pieces[piece], state)
    same((jnp.concatenate(ys, axis=1), state), call(XS, STATE))


@pytest.mark.parametrize("residual_from", [0, 1])
@pytest.mark.parametrize("reverse", [False, True])
class TestResidual:
    def test_inputs_are_added_to_outputs(self, residual_from, reverse):
        arguments = {"residual_from": residual_from, "reverse": reverse}
        same(stack.apply(PARAMS, XS, STATE, **arguments), one_after_another(PARAMS, XS, STATE, **arguments))
        same(
            stack.apply(BOTH, XS, merge="sum", **arguments),
            one_after_another(BOTH, XS, merge="sum", **arguments),
        )

    def test_padding_stays_zero(self, residual_from, reverse):
        call = partial(stack.apply, lengths=LENGTHS, residual_from=residual_from, reverse=reverse)
        poisoned = jnp.where(PADDING[..., None], jnp.nan, XS)
        ys, end = call(PARAMS, poisoned, STATE)
        equal((ys, end), call(PARAMS, XS, STATE))
        assert not np.asarray(ys)[PADDING].any()
        slopes = [jax.grad(lambda *a: (call(*a)[0] ** 2).sum(), (0, 1, 2))(PARAMS, xs, STATE) for xs in (poisoned, XS)]
        equal(*slopes)
        assert not np.asarray(slopes[0][1])[PADDING].any()

    def test_without_sequences_the_output_of_the_step_read_last(self, residual_from, reverse):
        arguments = {"residual_from": residual_from, "reverse": reverse, "lengths": LENGTHS}
        ys, end = stack.apply(PARAMS, XS, STATE, **arguments)
        last, last_end = stack.apply(PARAMS, XS, STATE, **arguments, return_sequences=False)
        where = np.zeros(BATCH, int) if reverse else np.maximum(LENGTHS - 1, 0)
        read = np.asarray(ys)[np.arange(BATCH), where]
        same(last[:3], read[:3])
        same(last[3], STATE[1].h[3])
        same(last_end, end)
        del arguments["lengths"]
        last, _ = stack.apply(PARAMS, XS, STATE, **arguments, return_sequences=False)
        ys, _ = stack.apply(PARAMS, XS, STATE, **arguments)
        same(last, ys[:, 0 if reverse else -1])


def test_what_a_residual_connection_adds_is_not_dropped():
    silent = jax.tree.map(jnp.zeros_like, PARAMS.layers[1])
    params = StackParams((PARAMS.layers[0], silent))
    ys, _ = stack.apply(params, XS, residual_from=1, dropout=Dropout(between_layers=0.5), key=KEY)
    same(ys, lstm.apply(PARAMS.layers[0], XS)[0])


@covering.parametrize(
    {
        "residual_from": [None, 0],
        "return_sequences": [True, False],
        "shape": [((2,), 0), ((0,), 5)],
        "reverse": [False, True],
        "with_lengths": [False, True],
    }
)
def test_nothing_to_read(residual_from, return_sequences, shape, reverse, with_lengths):
    batch, time = shape
    xs, state = np.ones((*batch, time, WIDTH), np.float32), states(PARAMS, batch)
    arguments = {"residual_from": residual_from, "return_sequences": return_sequences, "reverse": reverse}
    if with_lengths:
        arguments["lengths"] = np.zeros(batch, int)
    ys, end = stack.apply(PARAMS, xs, state, **arguments)
    equal(end, state)
    equal(ys, np.zeros_like(xs) if return_sequences else state[1].h)


@jax.jit
def slopes_of_one_step(params, xs, state):
    def loss(params, xs, state):
        return stack.apply(params, xs, state, merge="sum")[0][:, 2].sum()

    return jax.grad(loss, argnums=(0, 1, 2))(params, xs, state)


def test_learning_reaches_every_layer_and_state():
    slopes = slopes_of_one_step(BOTH, XS, states(BOTH))
    assert all(np.abs(leaf).max() > 0 for leaf in jax.tree.leaves(slopes))
    initial = LSTMState(np.zeros(WIDTH, np.float32), np.zeros(WIDTH, np.float32))
    params = StackParams(tuple(dataclasses.replace(layer, initial=initial) for layer in PARAMS.layers))
    slopes = jax.jit(jax.grad(lambda params: stack.apply(params, XS)[0].sum()))(params)
    assert all((np.abs(leaf) > 0).all() for layer in slopes.layers for leaf in jax.tree.leaves(layer.initial))


MIXED = StackParams((BOTH.layers[0], PARAMS.layers[1]))
DROPOUT = Dropout(inputs=0.2, between_layers=0.4, zoneout_h=0.1)


def dropped(params, xs, lengths, key):
    return stack.apply(params, xs, lengths=lengths, merge="sum", residual_from=1, dropout=DROPOUT, key=key)


def number(outputs):
    return sum((leaf**2).sum() for leaf in jax.tree.leaves(outputs))


@pytest.mark.usefixtures("four_devices")
def test_batch_sharded_over_an_explicit_mesh():
    run = jax.jit(dropped)
    expected = run(MIXED, XS, LENGTHS, KEY)
    mesh = jax.make_mesh((4,), ("data",), axis_types=(jax.sharding.AxisType.Explicit,))
    rows = jax.NamedSharding(mesh, PartitionSpec("data"))
    xs, lengths = jax.device_put((XS, jnp.asarray(LENGTHS)), rows)
    with jax.set_mesh(mesh):
        actual = run(MIXED, xs, lengths, KEY)
    same(actual, expected)
    assert all(leaf.sharding.is_equivalent_to(rows, leaf.ndim) for leaf in jax.tree.leaves(actual))


@pytest.mark.usefixtures("four_devices")
def test_vmap_and_shard_map_drop_by_the_key_of_each():
    keys = jax.random.split(KEY, BATCH)
    mesh = jax.make_mesh((4,), ("data",), axis_types=(jax.sharding.AxisType.Auto,))
    rows, whole = PartitionSpec("data"), PartitionSpec()
    mapped = jax.vmap(dropped, in_axes=(None, 0, 0, 0))
    sharded = jax.shard_map(mapped, mesh=mesh, in_specs=(whole, rows, rows, rows), out_specs=rows)

    @partial(jax.jit, static_argnums=0)
    def slopes(run, params):
        def loss(params):
            outputs = run(params, XS, LENGTHS, keys)
            return number(outputs), outputs

        return jax.grad(loss, has_aux=True)(params)

    by_vmap, by_mesh = slopes(mapped, MIXED), slopes(sharded, MIXED)
    same(by_mesh, by_vmap)
    together, xs, single = jax.tree.map(np.asarray, by_vmap[1]), np.asarray(XS), jax.jit(dropped)
    for i in range(BATCH):
        same(jax.tree.map(lambda leaf: leaf[i], together), single(MIXED, xs[i], LENGTHS[i], keys[i]))  # noqa: B023


@pytest.mark.usefixtures("untyped")
class TestRefusals:
    @pytest.mark.parametrize(
        ("arguments", "error", "text"),
        [
            ({"units": 4}, ValueError, r"units must be a tuple with one number .*, such as \(64, 64\); got 4"),
            ({"units": ()}, ValueError, r"units must be a tuple with one number .*, such as \(64, 64\); got \(\)"),
            ({"units": "44"}, ValueError, r"units must be a tuple with one number .*; got '44'"),
            ({"units": (4, 0)}, ValueError, "units must be an integer of at least 1, got 0"),
            ({"bidirectional": "no"}, TypeError, "bidirectional must be True or False.*; got 'no'"),
            ({"merge": None}, ValueError, "merge must be one of 'concat', 'sum', 'mul', 'ave'; got None"),
            ({"inputs": 0}, ValueError, "inputs must be an integer of at least 1, got 0"),
        ],
    )
    def test_init(self, arguments, error, text):
        with pytest.raises(error, match=text):
            jax.eval_shape(lambda: stack.init(**{"key": KEY, "inputs": 3, **arguments}))

    def test_initial_state(self):
        with pytest.raises(TypeError, match=r"must be LSTMParams, Bidirectional.*; got NoneType"):
            stack.initial_state(None)
        with pytest.raises(TypeError, match=r"params\.layers\[1\] must be LSTMParams.*; got NoneType"):
            stack.initial_state(StackParams((PARAMS.layers[0], None)))
        with pytest.raises(TypeError, match=r"params\.layers must be a tuple of at least one layer; got 3"):
            stack.initial_state(StackParams(3))

    @pytest.mark.parametrize(
        ("arguments", "error", "text"),
        [
            ({"params": StackParams(())}, TypeError, r"params\.layers must be a tuple of at least one layer; got \(\)"),
            ({"params": PARAMS.layers}, TypeError, r"params must be LSTMParams, Bi.*; got tuple: .*StackParams"),
            ({"params": StackParams(PARAMS.layers[0])}, TypeError, r"params\.layers must be a tuple of at least one"),
            ({"params": StackParams((PARAMS.layers[0], None))}, TypeError, "must be LSTMParams.*; got NoneType"),
            (
                {"params": StackParams((PARAMS.layers[0], WIDER.layers[1]))},
                ValueError,
                r"params\.layers\[1\] must have 3 inputs, which layer 0 puts out; got 4",
            ),
            (
                {"params": BOTH},
                ValueError,
                r"params\.layers\[1\] must have 6 inputs, which layer 0 puts out with merge='concat'; got 3",
            ),
            ({"residual_from": 2}, ValueError, "residual_from must be the number of a layer, from 0 to 1; got 2"),
            ({"residual_from": -1}, ValueError, "residual_from must be the number of a layer, from 0 to 1; got -1"),
            ({"residual_from": True}, ValueError, "residual_from must be the number of a layer, from 0 to 1; got True"),
            ({"residual_from": 0.0}, ValueError, r"residual_from must be the number of a layer.*; got 0\.0"),
            (
                {"params": WIDER, "residual_from": 1},
                ValueError,
                r"residual_from=1 needs as many outputs as inputs in layer 1; it has 4 inputs and 3 outputs with",
            ),
            (
                {"params": BOTH, "merge": "sum", "residual_from": 1, "return_sequences": False},
                ValueError,
                "return_sequences=False with a residual connection around a bidirectional last layer has no",
            ),
            (
                {"params": PARAMS.layers[0], "residual_from": 0},
                ValueError,
                r"residual_from=0 needs StackParams, as stack\.init makes them",
            ),
            ({"state": STATE[:1]}, TypeError, r"state must be a tuple of 2 states, .*stack\.initial_state.*tuple of 1"),
            ({"state": STATE[0]}, TypeError, r"state must be a tuple of 2 states, .*; got LSTMState"),
            ({"state": (STATE[0], tuple(STATE))}, TypeError, r"state must be LSTMState, .*; got tuple"),
            (
                {"state": (STATE[0], LSTMState(STATE[1].h[:2], STATE[1].c))},
                ValueError,
                r"state\.h must have shape \(4, 3\)",
            ),
            ({"dropout": 0.5}, TypeError, r"dropout must be Dropout, as Dropout\(\.\.\.\) makes it; got float"),
            ({"key": KEY}, ValueError, "key has no use without dropout"),
            (
                {"params": BOTH, "merge": None},
                ValueError,
                "merge=None gives pairs, which a stack cannot hand on",
            ),
            ({"lengths": np.array([6, 1, 1, 1])}, ValueError, "lengths must lie between 0 and 5"),
            ({"lengths": np.array([6, 1, 1, 1]), "residual_from": 0}, ValueError, "lengths must lie between 0 and 5"),
            ({"reverse": "no"}, TypeError, "reverse must be True or False"),
            ({"xs": jnp.ones((4, 5, 2))}, ValueError, "xs must have 3 features in its last axis"),
            ({"xs": XS.astype(int), "residual_from": 0}, TypeError, "xs must have a floating dtype, got int32"),
            ({"implementation": "cudnn"}, ValueError, "implementation must be one of"),
            ({"dropout": Dropout(inputs=0.5), "key": 3}, TypeError, "key must be a JAX random key, .*; got int"),
            (
                {"params": StackParams(PARAMS.layers[:1]), "dropout": Dropout(between_layers=0.5), "key": KEY},
                ValueError,
                r"Dropout\(between_layers=0\.5\) needs at least 2 layers, and params has 1",
            ),
        ],
    )
    def test_apply(self, arguments, error, text):
        with pytest.raises(error, match=text):
            stack.apply(**{"params": PARAMS, "xs": XS, **arguments})

    @pytest.mark.parametrize(
        ("arguments", "error", "text"),
        [
            ({"params": PARAMS.layers[0]}, TypeError, r"params must be StackParams, as stack\.init .*; got LSTMParams"),
            ({"params": BOTH}, ValueError, r"params\.layers\[0\] is bidirectional: its backward half needs the whole"),
            (
                {"params": StackParams((PARAMS.layers[0], WIDER.layers[1]))},
                ValueError,
                r"params\.layers\[1\] must have 3 inputs, which layer 0 puts out; got 4",
            ),
            ({"params": StackParams(3)}, TypeError, r"params\.layers must be a tuple of at least one layer; got 3"),
            (
                {"params": StackParams(PARAMS.layers[:1]), "state": STATE[:1], "dropout": Dropout(between_layers=0.5)},
                ValueError,
                "needs at least 2 layers",
            ),
            (
                {"state": STATE[:1]},
                TypeError,
                "state must be a tuple of 2 states, one for each layer.*; got tuple of 1",
            ),
            ({"state": None}, TypeError, "state must be a tuple of 2 states, one for each layer.*; got NoneType"),
            ({"residual_from": 2}, ValueError, "residual_from must be the number of a layer, from 0 to 1; got 2"),
            ({"params": WIDER, "residual_from": 0}, ValueError, "residual_from=0 needs as many outputs as inputs in"),
            ({"dropout": 0.5}, TypeError, "dropout must be Dropout"),
            ({"x": XS}, ValueError, r"state\.h must have shape \(4, 5, 3\)"),
        ],
    )
    def test_step(self, arguments, error, text):
        with pytest.raises(error, match=text):
            stack.step(**{"params": PARAMS, "x": XS[:, 0], "state": STATE, **arguments})


ONE, TWO = ([weights(make.init, 3, units) for units in (2, 4)] for make in (lstm, bidirectional))


@pytest.mark.parametrize(
    ("layers", "text"),
    [
        ((ONE[1], ONE[0]), r"layers\[1\] must have 4 inputs, which layer 0 puts out; got 3"),
        (
            (TWO[1], ONE[0]),
            r"layers\[1\] must have 8 or 4 inputs, which layer 0 puts out with merge='concat' or 'sum'; got 3",
        ),
        (
            (weights(bidirectional.init, 6, 3), TWO[1], weights(bidirectional.init, 8, 4)),  # summed, then concatenated
            r"layers\[2\] must have 4 inputs, which layer 1 puts out with merge='sum'; got 8",
        ),
        (
            (TWO[1], weights(bidirectional.init, 8, 4), weights(bidirectional.init, 4, 4)),
            r"layers\[2\] must have 8 inputs, which layer 1 puts out with merge='concat'; got 4",
        ),
        ((ONE[1], lstm.LSTMParams(None, None, None)), r"layers\[1\]\.w_x must be"),
        ((StackParams(tuple(ONE)),), "must be LSTMParams.*; got StackParams"),
        ((), "at least one layer"),
    ],
)
def test_check_tells_which_inputs_would_fit(layers, text):
    with pytest.raises((ValueError, TypeError), match=text):
        stack.check(StackParams(layers))


def test_halves_of_different_units_are_as_wide_as_both():
    halves = bidirectional.BidirectionalParams(weights(lstm.init, WIDTH, 2), weights(lstm.init, WIDTH, 4))
    params = StackParams((halves, weights(lstm.init, 6, WIDTH)))
    stack.check(params)
    assert stack.outputs(halves) == 6
    assert jax.eval_shape(stack.apply, params, XS)[0].shape == (BATCH, TIME, WIDTH)


def test_every_layer_and_boundary_of_four_drops_by_itself():
    """Units pass through all layers unless dropped: as many remain as of independent masks."""
    count, rate, width, batch = 4, 0.3, 32, 256
    w_x, bias = np.zeros((width, 4, width), np.float32), np.zeros((4, width), np.float32)
    w_x[:, 2], bias[:] = np.eye(width), np.array([[9], [-9], [0], [9]])  # i and o are open, f is shut
    layer = lstm.LSTMParams(w_x.reshape(width, -1), np.zeros((width, 4 * width), np.float32), bias.reshape(-1))
    dropout = Dropout(between_layers=rate, recurrent=rate, recurrent_kind="candidate")
    run = jax.jit(partial(stack.apply, dropout=dropout, implementation="scan"))
    ys, _ = run(StackParams((layer,) * count), np.ones((batch, 2, width), np.float32), key=KEY)
    remain = np.asarray(ys) != 0
    np.testing.assert_array_equal(remain[:, 0], remain[:, 1])
    share = (1 - rate) ** (count + count - 1)
    assert abs(remain.mean() - share) < 5 * (share * (1 - share) / (batch * width)) ** 0.5
