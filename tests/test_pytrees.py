"""Params, states and options as JAX and Flax see them: stored programs, state dicts, training states, short reprs."""

import dataclasses
import importlib
import pkgutil
import sys

import jax
import jax.export
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from flax import serialization
from flax.training.train_state import TrainState

import lstmjax
import lstmjax.flax
from lstmjax import (
    Dropout,
    LSTMOptions,
    LSTMParams,
    LSTMState,
    bidirectional,
    crf,
    dense,
    hierarchy,
    lstm,
    ragged,
    residual,
    stack,
)
from lstmjax.inspect.traces import BidirectionalTrace

KEY = jax.random.key(0)
TOLD = "LSTMParams(w_x=f32[2,12], w_h=f32[3,12], bias=f32[12])"


def filled(kind):
    """One of a kind, whose fields are arrays that differ, without its constructor."""
    made = object.__new__(kind)
    for number, field in enumerate(dataclasses.fields(kind)):
        value = jnp.full(number + 1, number, jnp.float32)
        if field.metadata.get("static", False):
            value = number if field.default is dataclasses.MISSING else field.default
        object.__setattr__(made, field.name, value)
    return made


def containers():
    """All dataclasses of the package whose arrays JAX finds."""
    for module in pkgutil.walk_packages(lstmjax.__path__, "lstmjax."):
        if not module.name.endswith("__main__"):
            importlib.import_module(module.name)
    modules = [module for name, module in sys.modules.items() if name.startswith("lstmjax")]
    found = {kind for module in modules for kind in vars(module).values() if isinstance(kind, type)}
    ours = [kind for kind in found if kind.__module__.startswith("lstmjax")]
    return sorted((kind for kind in ours if dataclasses.is_dataclass(kind) and has_arrays(filled(kind))), key=str)


def has_arrays(made):
    return bool(jax.tree.leaves(made)) and not jax.tree_util.all_leaves([made])


CONTAINERS = containers()


def same(one, other):
    assert jax.tree.structure(one) == jax.tree.structure(other)
    jax.tree.map(np.testing.assert_array_equal, one, other)


def test_all_are_found():
    assert {"LSTMParams", "LSTMState", "CRFParams", "Conv1DParams", "StepMasks", "SequenceMasks", "Trace"} <= {
        kind.__name__ for kind in CONTAINERS
    }


@pytest.mark.parametrize("kind", CONTAINERS)
def test_a_stored_program_takes_and_returns_it(kind):
    made = filled(kind)
    program = jax.export.export(jax.jit(lambda given: jax.tree.map(lambda leaf: leaf + 1, given)))(made).serialize()
    same(jax.export.deserialize(program).call(made), jax.tree.map(lambda leaf: leaf + 1, made))


@pytest.mark.parametrize(
    "made",
    [
        ragged.buckets([[1, 2], [3]])[0],
        bidirectional.BidirectionalState(LSTMState(jnp.ones(2), jnp.ones(2)), LSTMState(jnp.ones(2), jnp.ones(2))),
        BidirectionalTrace(jnp.ones(2), jnp.ones(3)),
    ],
    ids=lambda made: type(made).__name__,
)
def test_a_stored_program_takes_and_returns_named_tuples(made):
    program = jax.export.export(jax.jit(lambda given: given))(made).serialize()
    back = jax.export.deserialize(program).call(made)
    assert type(back) is type(made)
    same(back, jax.tree.map(jnp.asarray, made))


def test_a_stored_program_takes_states_of_both_directions_and_options():
    arguments = (
        bidirectional.initial_state(bidirectional.init(KEY, 2, 3)),
        LSTMOptions(cell_clip=3),
        Dropout(inputs=0.5),
    )
    program = jax.export.export(jax.jit(lambda *given: given))(*arguments).serialize()
    back = jax.export.deserialize(program).call(*arguments)
    same(back, arguments)
    assert (type(back[0]), *back[1:]) == (bidirectional.BidirectionalState, *arguments[1:])


def test_a_trained_stack_is_stored_with_its_params_open():
    params, xs = stack.init(KEY, 2, (3, 3), bidirectional=True), jnp.ones((4, 5, 2))
    program = jax.export.export(jax.jit(stack.apply))(params, xs).serialize()
    jax.tree.map(
        lambda a, b: np.testing.assert_allclose(a, b, atol=1e-6),
        jax.export.deserialize(program).call(params, xs),
        jax.jit(stack.apply)(params, xs),
    )


@pytest.mark.parametrize("kind", CONTAINERS)
def test_flax_reads_and_writes_it(kind):
    made, other = filled(kind), jax.tree.map(jnp.zeros_like, filled(kind))
    same(serialization.from_state_dict(other, serialization.to_state_dict(made)), made)
    same(serialization.from_bytes(other, serialization.to_bytes(made)), made)


MODELS = {
    "lstm": lstm.init(KEY, 2, 3),
    "every part": lstm.init(KEY, 2, 3, layer_norm=True, learned_state=True, projection=2, peepholes=True, bias=False),
    "stack": stack.init(KEY, 2, (3, 2), bidirectional=True),
    "hierarchy": hierarchy.init(KEY, 2, (3, (2, 2)), vocabulary=7),
    "residual": residual.init(KEY, 2, (3, 3)),
    "dict": {"encoder": lstm.init(KEY, 2, 3), "scores": dense.init(KEY, 3, 4), "chain": crf.init(KEY, 4)},
}


@pytest.mark.parametrize("name", MODELS)
def test_trainstate_takes_a_step_and_is_restored(name):
    params = MODELS[name]
    state = TrainState.create(apply_fn=lstm.apply, params=params, tx=optax.adam(0.1))
    after = jax.jit(lambda state, grads: state.apply_gradients(grads=grads))(state, jax.tree.map(jnp.ones_like, params))
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b - 0.1, atol=1e-5), after.params, params)
    same(serialization.from_bytes(state, serialization.to_bytes(after)), after)


@pytest.mark.parametrize(
    "settings",
    [
        LSTMOptions(),
        LSTMOptions(cell_clip=3, precision="bfloat16", units_axis="model"),
        Dropout(),
        Dropout(inputs=0.25, recurrent_kind="per_gate"),
    ],
)
def test_flax_writes_and_reads_settings(settings):
    tree = {"settings": settings, "params": jnp.ones(2)}
    target = {"settings": type(settings)(), "params": jnp.zeros(2)}
    same(serialization.from_state_dict(target, serialization.to_state_dict(tree)), tree)
    same(serialization.from_bytes(target, serialization.to_bytes(tree)), tree)


@pytest.mark.parametrize(
    ("target", "source", "words"),
    [
        (Dropout(), LSTMOptions(), "Dropout must have inputs, recurrent, .*; got activation, recurrent_activation"),
        (LSTMOptions(), lstm.init(KEY, 2, 3), "LSTMOptions must have activation, .*; got w_x"),
        (lstm.init(KEY, 2, 3), dense.init(KEY, 2, 3), "LSTMParams must have w_x, w_h, .*; got w, bias"),
        (lstm.init(KEY, 2, 3), lstm.init(KEY, 2, 3, bias=False), r"LSTMParams\.bias is None in the state dict"),
        (lstm.init(KEY, 2, 3, bias=False), lstm.init(KEY, 2, 3), r"LSTMParams\.bias is in the state dict, and None"),
        (lstm.init(KEY, 2, 3), (jnp.ones(3), jnp.ones(3)), "LSTMParams must have w_x, w_h, .*; got 0, 1"),
    ],
)
def test_a_state_dict_of_something_else_is_refused(target, source, words):
    with pytest.raises(ValueError, match=words):
        serialization.from_state_dict(target, serialization.to_state_dict(source))


def test_options_are_arguments_of_a_jitted_function():
    params, xs, traced = lstm.init(KEY, 2, 3), jnp.ones((4, 2)), []

    @jax.jit
    def run(params, xs, options, dropout, key):
        traced.append(options)
        return lstm.apply(params, xs, options=options, dropout=dropout, key=key)[0]

    dropout = Dropout(zoneout_h=0.25)
    ours = [run(params, xs, LSTMOptions(cell_clip=clip), dropout, KEY) for clip in (0.01, 0.01, 9.0)]
    assert traced == [LSTMOptions(cell_clip=0.01), LSTMOptions(cell_clip=9.0)]
    for clip, ys in zip((0.01, 0.01, 9.0), ours, strict=True):
        direct, _ = lstm.apply(params, xs, options=LSTMOptions(cell_clip=clip), dropout=dropout, key=KEY)
        np.testing.assert_allclose(ys, direct, atol=1e-6)


@pytest.mark.parametrize(
    "options", [LSTMOptions(precision="bfloat16"), Dropout(recurrent=0.5, recurrent_kind="per_gate")]
)
def test_options_have_no_leaves_and_stay_in_trees(options):
    tree = {"params": lstm.init(KEY, 2, 3), "options": options}
    assert len(jax.tree.leaves(tree)) == 3
    assert jax.tree.map(jnp.zeros_like, tree)["options"] == options
    assert jax.vmap(lambda tree, x: tree["options"], in_axes=(None, 0))(tree, jnp.ones(2)) == options


class Odd:
    shape = "odd"
    dtype = None

    def __repr__(self):
        return "Odd()"


@pytest.mark.parametrize(
    ("given", "told"),
    [
        (lstm.init(KEY, 2, 3), TOLD),
        (jax.eval_shape(lambda: lstm.init(KEY, 2, 3)), TOLD),
        (jax.tree.map(np.asarray, lstm.init(KEY, 2, 3)), TOLD),
        (
            lstm.init(KEY, 2, 3, bias=False, learned_state=True, dtype=jnp.bfloat16),
            "LSTMParams(w_x=bf16[2,12], w_h=bf16[3,12], bias=None, initial=LSTMState(h=bf16[3], c=bf16[3]))",
        ),
        (
            stack.init(KEY, 2, (3,), bidirectional=True),
            f"StackParams(layers=(BidirectionalParams(forward={TOLD}, backward={TOLD}),))",
        ),
        (
            hierarchy.init(KEY, 2, (3,), vocabulary=7),
            f"HierarchyParams(levels=(LevelParams(encoder={TOLD}, embedding=EmbeddingParams(table=f32[7,2])),))",
        ),
        (crf.bio(["O", "B-X"]), "Allowed(start=bool[2], transitions=bool[2,2], end=bool[2])"),
        (LSTMParams("text", 3, Odd()), "LSTMParams(w_x='text', w_h=3, bias=Odd())"),
        (LSTMParams(np.ndarray, KEY, True), "LSTMParams(w_x=<class 'numpy.ndarray'>, w_h=key<fry>[], bias=True)"),
        (LSTMParams(np.int8(1), np.zeros(2, "u4"), 1j), "LSTMParams(w_x=i8[], w_h=u32[2], bias=1j)"),
        (LSTMParams([np.ones(1)], {"a": np.ones(1)}, ()), "LSTMParams(w_x=[f64[1]], w_h={'a': f64[1]}, bias=())"),
    ],
)
def test_repr_has_dtypes_and_shapes(given, told):
    assert repr(given) == told


def test_repr_of_tracers_and_of_deleted_arrays():
    params, told = lstm.init(KEY, 2, 3), []

    def look(params):
        told.append(repr(params))
        return jax.tree.map(lambda leaf: leaf + 1, params)

    jax.jit(look, donate_argnums=0)(params)
    jax.vmap(look)(jax.tree.map(lambda leaf: jnp.ones((5, *leaf.shape)), lstm.init(KEY, 2, 3)))
    assert [*told, repr(params)] == [TOLD] * 3


@pytest.mark.parametrize("kind", CONTAINERS)
def test_repr_is_short_for_all(kind):
    made = filled(kind)
    first = dataclasses.fields(kind)[0].name
    assert repr(made).startswith(f"{kind.__name__}({first}=f32[1]")
    assert "array" not in repr(made).lower()
