"""Params and units divided over a mesh: what is computed stays, and what a step exchanges is counted."""

import dataclasses
import functools
from collections import Counter
from functools import partial

import covering
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import AxisType, NamedSharding
from jax.sharding import PartitionSpec as P

from benchmarks.scale import collectives
from lstmjax import Dropout, LSTMOptions, LSTMParams, bidirectional, dense, hierarchy, lstm, sharding, stack

pytestmark = pytest.mark.usefixtures("four_devices")

close = partial(np.testing.assert_allclose, rtol=1e-5, atol=1e-5)
DIVIDED = LSTMOptions(units_axis="model")
BATCH, TIME, INPUTS, UNITS = 4, 6, 8, 16
kinds = pytest.mark.parametrize("explicit", [False, True])
LENGTHS = np.array([6, 0, 3, 5])
RESETS = np.random.default_rng(3).random((BATCH, TIME)) < 0.2


@pytest.fixture(scope="module")
def xs():
    return jnp.asarray(np.random.default_rng(1).normal(size=(BATCH, TIME, INPUTS)), jnp.float32)


def drawn(init, *sizes, **options):
    """Params in the shapes of `init`, drawn by NumPy."""
    rng = np.random.default_rng(0)
    shapes = jax.eval_shape(lambda key: init(key, *sizes, **options), jax.random.key(0))
    return jax.tree.map(lambda leaf: rng.normal(scale=0.3, size=leaf.shape).astype(leaf.dtype), shapes)


@functools.cache
def differentiated(model):
    """Values and gradients of a model; of one model each program is compiled once."""

    def loss(params, xs, options):
        made = model(params, xs, options)
        return sum(jnp.sum(jnp.sin(leaf)) for leaf in jax.tree.leaves(made)), made

    return jax.jit(jax.value_and_grad(loss, argnums=(0, 1), has_aux=True), static_argnums=2)


def compare(model, params, xs, mesh, rules=sharding.UNITS):
    """`model(params, xs, options)`: values and gradients, divided as the rules say, beside those of one device."""
    differentiate = differentiated(model)
    expected = differentiate(params, xs, LSTMOptions())
    with jax.set_mesh(mesh):
        divided = sharding.place(params, mesh, rules), jax.device_put(xs, NamedSharding(mesh, P("data")))
        program = differentiate.lower(*divided, DIVIDED).compile()
        found = program(*divided)
    jax.tree.map(close, jax.device_get(found), jax.device_get(expected))
    return collectives(program.as_text())


@functools.cache
def masked(implementation):
    def model(params, xs, options):
        return lstm.apply(params, xs, lengths=LENGTHS, resets=RESETS, options=options, implementation=implementation)

    return model


@covering.parametrize(
    {"implementation": ["fused", "scan"], "explicit": [False, True], "sizes": [(1, 4), (2, 2), (4, 1)]}
)
def test_divided_units_compute_the_same(implementation, explicit, sizes, xs):
    params = drawn(lstm.init, INPUTS, UNITS)
    mesh = sharding.mesh(data=sizes[0], model=sizes[1], explicit=explicit)
    loops, _ = compare(masked(implementation), params, xs, mesh)
    one_each = [Counter({"all-gather": 1}), Counter({"reduce-scatter": 1})]
    # A plain scan's own gradient adds to that of the weights at every step.
    alone = [] if implementation == "fused" else [Counter({"all-reduce": 1})]
    assert sorted(loops, key=str) == (one_each if sizes[1] > 1 else alone)


VARIANTS = {
    "peepholes": {"peepholes": True},
    "coupled": {"coupled": True},
    "coupled peepholes": {"coupled": True, "peepholes": True},
    "learned state": {"learned_state": True},
    "no bias": {"bias": False},
    "inputs that cannot be divided": {"inputs": 3},
    "four gates": {"peepholes": True, "bias": False, "inputs": 3},
    "three gates": {"coupled": True, "peepholes": True, "learned_state": True},
}


def some(values, chosen):
    """Every value by every implementation; all but the chosen are slow."""
    return [
        pytest.param(name, value, marks=[] if (name, value) in chosen else pytest.mark.slow)
        for name in ("fused", "scan")
        for value in values
    ]


@pytest.mark.parametrize(
    ("implementation", "variant"),
    some(VARIANTS, [("fused", "four gates"), ("fused", "three gates"), ("scan", "three gates")]),
)
def test_variants(implementation, variant, xs):
    how = {"inputs": INPUTS} | VARIANTS[variant]
    params = drawn(lstm.init, units=UNITS, **how)
    params = dataclasses.replace(params, bias_h=params.bias, offset=params.bias)

    def model(params, xs, options):
        options = dataclasses.replace(options, cell_clip=0.6, activation="softsign")
        return lstm.apply(params, xs, resets=RESETS, reverse=True, options=options, implementation=implementation)

    compare(model, params, xs[..., : how["inputs"]], sharding.mesh(data=2, model=2))


@pytest.mark.parametrize(
    ("implementation", "kind"),
    some(["per_gate", "tied", "candidate"], [("fused", "per_gate"), ("fused", "candidate"), ("scan", "tied")]),
)
def test_dropout_drops_the_same(implementation, kind, xs):
    params = drawn(lstm.init, INPUTS, UNITS)
    dropout = Dropout(
        inputs=0.2, recurrent=0.3, recurrent_kind=kind, outputs=0.2, zoneout_h=0.2, zoneout_c=0.1, recurrent_weights=0.2
    )
    how = {"dropout": dropout, "key": jax.random.key(5), "implementation": implementation}
    compare(
        lambda params, xs, options: lstm.apply(params, xs, options=options, **how),
        params,
        xs,
        sharding.mesh(data=2, model=2),
    )


MODELS = {
    "bidirectional": (bidirectional.init, bidirectional.apply),
    "stack": (lambda key, inputs, units: stack.init(key, inputs, (units, units)), stack.apply),
    "last of a stack": (
        lambda key, inputs, units: stack.init(key, inputs, (units, units)),
        partial(stack.apply, return_sequences=False),
    ),
    "segments": (lstm.init, partial(lstm.apply, checkpoint=2)),
    "last": (lstm.init, partial(lstm.apply, return_sequences=False)),
}


@pytest.mark.parametrize(
    "name", [pytest.param(name, marks=[pytest.mark.slow] * (name in ("stack", "last"))) for name in MODELS]
)
def test_models_of_lstms(name, xs):
    init, apply = MODELS[name]

    def model(params, xs, options):
        ys, state = apply(params["lstm"], xs, options=options)
        return dense.apply(params["dense"], ys), state

    params = {"lstm": drawn(init, INPUTS, UNITS)}
    features = jax.eval_shape(lambda: apply(params["lstm"], xs)[0]).shape[-1]
    compare(model, params | {"dense": drawn(dense.init, features, 3)}, xs, sharding.mesh(data=2, model=2))


def test_a_hierarchy(xs):
    params = drawn(hierarchy.init, INPUTS, (UNITS, UNITS))
    xs = jnp.stack([xs, xs[::-1]], axis=1)
    lengths = jnp.array([[6, 3], [2, 0], [0, 0], [1, 6]]), jnp.array([2, 1, 0, 2])

    def model(params, xs, options):
        return hierarchy.apply(params, xs, lengths=lengths, options=options)

    compare(model, params, xs, sharding.mesh(data=2, model=2))


def test_without_batch_and_under_vmap(xs):
    params = drawn(lstm.init, INPUTS, UNITS)
    mesh = sharding.mesh(data=2, model=2)
    ys, state = lstm.apply(params, xs)
    with jax.set_mesh(mesh):
        one, _ = lstm.apply(params, xs[0], options=DIVIDED)
        mapped, mapped_state = jax.jit(jax.vmap(partial(lstm.apply, params, options=DIVIDED)))(xs)
        y, after = lstm.step(params, xs[:, 0], lstm.initial_state(params, (BATCH,)), options=DIVIDED)
    close(one, ys[0])
    jax.tree.map(close, (mapped, mapped_state), (ys, state))
    close(y, ys[:, 0])
    close(after.h, ys[:, 0])


def test_forward_mode(xs):
    params = drawn(lstm.init, INPUTS, UNITS)
    along = jax.tree.map(jnp.cos, params)
    expected = jax.jit(partial(jax.jvp, lambda p: lstm.apply(p, xs)[0]))((params,), (along,))
    with jax.set_mesh(sharding.mesh(data=2, model=2)):
        found = jax.jit(partial(jax.jvp, lambda p: lstm.apply(p, xs, options=DIVIDED)[0]))((params,), (along,))
    jax.tree.map(close, found, expected)


@kinds
def test_a_batch_divided_alone_exchanges_nothing_in_a_loop(explicit, xs):
    params = drawn(lstm.init, INPUTS, UNITS)
    mesh = sharding.mesh(data=4, explicit=explicit)

    def model(params, xs, options):
        del options
        return lstm.apply(params, xs, lengths=LENGTHS)

    loops, outside = compare(model, params, xs, mesh, sharding.DATA)
    assert loops == []
    assert outside["all-reduce"] > 0


def test_what_a_mesh_cannot_do(xs):
    params = drawn(lstm.init, INPUTS, UNITS)
    with pytest.raises(
        ValueError, match=r"units_axis='model' must be an axis of the mesh set by jax.set_mesh, which has none"
    ):
        lstm.apply(params, xs, options=DIVIDED)
    mesh = sharding.mesh(data=2, model=2)
    with jax.set_mesh(mesh):
        with pytest.raises(ValueError, match=r"must be an axis of the mesh .* which has data, model"):
            lstm.apply(params, xs, options=LSTMOptions(units_axis="units"))
        with pytest.raises(ValueError, match="5 units cannot be divided over the 2 devices of that axis; choose a mul"):
            lstm.apply(drawn(lstm.init, INPUTS, 5), xs, options=DIVIDED)
        with pytest.raises(ValueError, match="does not divide units with layer norm"):
            lstm.apply(drawn(lstm.init, INPUTS, UNITS, layer_norm=True), xs, options=DIVIDED)
        with pytest.raises(ValueError, match="does not divide units with a projection"):
            lstm.apply(drawn(lstm.init, INPUTS, UNITS, projection=4), xs, options=DIVIDED)
        with pytest.raises(ValueError, match="without divided units"):
            lstm.apply(params, xs, options=DIVIDED, implementation="pallas_tpu")
        call = partial(lstm.apply, options=DIVIDED)
        with pytest.raises(ValueError, match=r"is used within a jax.shard_map over data: call it outside"):
            jax.shard_map(call, in_specs=(P(), P("data")), out_specs=P("data"), axis_names={"data"})(params, xs)


def test_an_axis_has_a_name(untyped):
    with pytest.raises(TypeError, match="units_axis must be the name of an axis of the mesh, or None; got 1"):
        LSTMOptions(units_axis=1)  # pyright: ignore


def test_rules():
    mesh = sharding.mesh(data=2, model=2)
    params = {"b": drawn(bidirectional.init, 3, 4), "dense": drawn(dense.init, 8, 2)}
    rules = ((r"^dense/w$", P("data", "model"), P("data")), (r"backward/w_h", P(("data", "model"))), *sharding.UNITS)
    found = sharding.specs(params, mesh, rules)
    assert isinstance(found["b"].forward, LSTMParams)
    assert (found["b"].forward.w_x, found["b"].forward.w_h, found["b"].forward.bias) == (P(), P("model"), P())
    assert found["b"].backward.w_h == P(("data", "model"))
    assert found["dense"].w == P("data", "model")
    placed = sharding.place(params, mesh, rules)
    assert {shard.data.shape for shard in placed["dense"].w.addressable_shards} == {(4, 1)}
    jax.tree.map(np.testing.assert_array_equal, placed, params)


def test_rules_that_do_not_fit():
    mesh = sharding.mesh(data=2, model=2)
    params = {"w": jnp.zeros((3, 2)), "scale": jnp.zeros(())}
    with pytest.raises(ValueError, match=r"'w' \(3, 2\) cannot be divided over the mesh .*'data': 2.* as P.*'model'"):
        sharding.specs(params, mesh, (("w", P("model")), ("", P())))
    with pytest.raises(ValueError, match="no pattern is found in 'scale'; end with"):
        sharding.specs(params, mesh, (("w", P()),))
    with pytest.raises(ValueError, match="names unit; the mesh has data, model"):
        sharding.specs(params, mesh, (("", P("unit")),))
    with pytest.raises(ValueError, match=r"'scale' \(\) cannot be divided"):
        sharding.specs(params, mesh, (("scale", P("data")), ("", P())))
    for sizes in ({"data": 5}, {"data": 0}, {"data": 2, "model": 4}):
        with pytest.raises(ValueError, match=r"need data \* model devices, of at least 1; got 4"):
            sharding.mesh(**sizes)


def test_a_mesh_has_the_axes_it_says():
    assert sharding.mesh(data=2, model=2, explicit=True).axis_types == (AxisType.Explicit,) * 2
    assert sharding.mesh(model=2, devices=jax.devices()[2:]).devices.tolist() == [jax.devices()[2:]]
