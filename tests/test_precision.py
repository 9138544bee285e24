"""LSTMOptions(precision=...): what is computed in which dtype, whatever that of params and inputs."""

import dataclasses
import re
from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from lstmjax import Dropout, LSTMOptions, LSTMParams, LSTMState, bidirectional, lstm, stack

KEY = jax.random.key(0)
BATCH, TIME, INPUTS, UNITS = 2, 4, 3, 4
XS = jnp.asarray(np.random.default_rng(1).normal(size=(BATCH, TIME, INPUTS)), jnp.float32)
HALF = LSTMOptions(precision="bfloat16")
CELL = {"peepholes": True, "projection": 3, "layer_norm": True, "learned_state": True}
every_cell = pytest.mark.parametrize("implementation", ["fused", "scan"])  # the kernel computes the standard one
every_implementation = pytest.mark.parametrize(
    "implementation",
    [pytest.param(name, marks=[pytest.mark.slow] * (name == "pallas_tpu")) for name in lstm.IMPLEMENTATIONS],
)

equal = partial(jax.tree.map, np.testing.assert_array_equal)


def cast(tree, dtype=jnp.bfloat16):
    return jax.tree.map(lambda leaf: leaf.astype(dtype), tree)


def example(**cell):
    params = lstm.init(KEY, INPUTS, UNITS, **cell)
    rng = np.random.default_rng(0)
    params = jax.tree.map(lambda leaf: leaf + np.float32(rng.normal(scale=0.2, size=leaf.shape)), params)
    state = lstm.initial_state(params, (BATCH,))
    return params, LSTMState(h=state.h + 0.3, c=state.c - 0.7)


def by_hand(params, xs, state, **arguments):
    return lstm.apply(cast(params), xs.astype(jnp.bfloat16), LSTMState(h=cast(state.h), c=state.c), **arguments)


def number(outputs):
    return sum((leaf.astype(jnp.float32) ** 2).sum() for leaf in jax.tree.leaves(outputs))


TREES = {
    "lstm": (lstm, lstm.init(KEY, INPUTS, UNITS, projection=3, learned_state=True)),
    "bidirectional": (bidirectional, bidirectional.init(KEY, INPUTS, UNITS)),
    "stack": (stack, stack.init(KEY, INPUTS, (UNITS, 3))),
    "stack of two directions": (stack, stack.init(KEY, INPUTS, (UNITS, 3), bidirectional=True)),
}
every_tree = pytest.mark.parametrize(("module", "params"), TREES.values(), ids=TREES)


@every_tree
def test_an_integer_is_one_batch_axis(module, params):
    made = [module.initial_state(params, size) for size in ((8,), 8, np.int64(8), np.uint8(8))]
    assert {leaf.shape[0] for leaf in jax.tree.leaves(made)} == {8}
    assert len({str(jax.tree.map(jnp.shape, state)) for state in made}) == 1
    assert {leaf.shape[0] for leaf in jax.tree.leaves(module.initial_state(params, 0))} == {0}


DTYPES = ["float32", "bfloat16", "float16", "float64"]


@every_tree
@pytest.mark.parametrize("precision", [None, *DTYPES])
def test_the_initial_state_has_the_dtypes_of_the_last(module, params, precision, x64):
    """For params of every dtype, and of two: `apply` returns what it was given, and a scan can carry it over `step`."""
    options = LSTMOptions(precision=precision)
    for dtype in DTYPES:
        wider = cast(params, dtype)
        if module is lstm:
            wider = dataclasses.replace(wider, bias=wider.bias.astype(jnp.float32))
        for mixed in (cast(params, dtype), wider):
            state = module.initial_state(mixed, BATCH, options=options)
            xs = XS.astype(dtype)
            _, after = jax.eval_shape(partial(module.apply, options=options), mixed, xs, state)
            assert str(jax.eval_shape(lambda state=state: state)) == str(after)
            if "BidirectionalState" in str(after):
                continue

            def run(params, xs, state):
                step = lambda state, x: module.step(params, x, state, options=options)[::-1]  # noqa: E731
                return jax.lax.scan(step, state, jnp.moveaxis(xs, 1, 0))

            assert str(jax.eval_shape(run, mixed, xs, state)[0]) == str(after)


@every_implementation
def test_as_if_all_were_cast_by_hand(implementation):
    params, state = example(learned_state=True)
    arguments = {"lengths": np.array([TIME, 2]), "implementation": implementation}

    def slopes(call, **options):
        def loss(params, xs, state):
            outputs = call(params, xs, state, **arguments, **options)
            return number(outputs), outputs

        return jax.jit(jax.grad(loss, argnums=(0, 1, 2), has_aux=True))(params, XS, state)

    gradients, (ys, end) = slopes(lstm.apply, options=HALF)
    assert (ys.dtype, end.h.dtype, end.c.dtype) == (jnp.bfloat16, jnp.bfloat16, jnp.float32)
    assert {leaf.dtype for leaf in jax.tree.leaves(gradients)} == {jnp.dtype(jnp.float32)}
    equal((gradients, (ys, end)), slopes(by_hand))


@every_cell
def test_near_float32(implementation):
    """bfloat16 keeps 8 bits; here, 200 draws of arguments changed by up to 2^-8 of theirs moved c by at most 0.041."""
    params, state = example(**CELL)
    dropout = Dropout(inputs=0.3, recurrent=0.3, outputs=0.3, zoneout_h=0.3, zoneout_c=0.2, recurrent_weights=0.1)
    call = partial(lstm.apply, params, XS, state, implementation=implementation, dropout=dropout, key=KEY)
    (ys, end), (narrow, narrow_end) = call(), call(options=HALF)
    assert (ys.dtype, end.h.dtype, end.c.dtype) == (jnp.float32,) * 3
    assert (narrow.dtype, narrow_end.h.dtype, narrow_end.c.dtype) == (jnp.bfloat16, jnp.bfloat16, jnp.float32)
    jax.tree.map(
        lambda n, w: np.testing.assert_allclose(np.float32(n), w, rtol=0, atol=2**-4), (narrow, narrow_end), (ys, end)
    )
    assert np.abs(np.float32(narrow) - ys).max() > 2**-13
    equal(narrow == 0, ys == 0)


def test_steps_equal_apply():
    params, state = example(**CELL)
    ys, end = lstm.apply(params, XS, state, options=HALF)
    for t in range(TIME):
        y, state = lstm.step(params, XS[:, t], state, options=HALF)
        assert (y.dtype, state.h.dtype, state.c.dtype) == (jnp.bfloat16, jnp.bfloat16, jnp.float32)
        np.testing.assert_allclose(np.float32(y), np.float32(ys[:, t]), rtol=0, atol=2**-8)
    np.testing.assert_allclose(state.c, end.c, rtol=0, atol=2**-8)


@every_implementation
def test_c_adds_up_in_float32(implementation):
    """3000 times 2^-10, of which bfloat16 would keep 2^-2: there 2^-10 is less than half the last place."""
    bias = jnp.array([100.0, 100.0, 2**-10, 100.0])
    params = LSTMParams(jnp.zeros((1, 4)), jnp.zeros((1, 4)), bias)
    state = lstm.initial_state(params)
    for _ in range(2):
        _, state = lstm.apply(params, jnp.ones((1500, 1)), state, options=HALF, implementation=implementation)
    np.testing.assert_allclose(state.c, 3000 * np.tanh(2**-10), rtol=1e-4)


@every_implementation
def test_products_add_up_in_float32(implementation):
    """z, rounded to bfloat16, would be wrong by up to 2^-9; i is sigmoid(z) where g is 1 and c was 0."""
    w_x, w_h = (np.float64(cast(jax.random.normal(key, (300, 1)) / 20)) for key in jax.random.split(KEY))
    params = LSTMParams(
        *(jnp.asarray(np.pad(w, ((0, 0), (0, 1199)))) for w in (w_x, w_h)), jnp.repeat(jnp.eye(4)[2], 300) * 50
    )
    x, h = jnp.ones(300), cast(jnp.linspace(-1, 1, 300))
    state = LSTMState(h, jnp.zeros(300))
    z = (w_x[:, 0] @ np.float64(x)) + w_h[:, 0] @ np.float64(h)
    _, end = lstm.apply(params, x[None], state, options=HALF, implementation=implementation)
    np.testing.assert_allclose(end.c[0], 1 / (1 + np.exp(-z)), rtol=1e-6)
    _, after = lstm.step(params, x, state, options=HALF)
    np.testing.assert_allclose(after.c[0], end.c[0], rtol=1e-6)


@every_cell
@pytest.mark.parametrize("kind", ["tied", "per_gate"])
def test_no_product_comes_out_narrow(implementation, kind):
    """As written: a CPU's compiler rounds no product that is widened again, an accelerator's may."""
    params, state = example(**CELL)
    dropout = Dropout(recurrent=0.5, recurrent_kind=kind)
    call = partial(lstm.apply, options=HALF, dropout=dropout, key=KEY, implementation=implementation)
    programs = [jax.make_jaxpr(call)(params, XS, state)]
    programs += [jax.make_jaxpr(partial(lstm.step, options=HALF))(params, XS[:, 0], state)]
    for program in programs:
        products = re.findall(r":(\w+)\[[^\]]*\] = dot_general", str(program))
        assert len(products) >= 3
        assert set(products) == {"f32"}


def dtypes(call, *arguments, **options):
    """Of ys, h and c."""
    ys, end = jax.eval_shape(partial(call, options=LSTMOptions(**options)), *arguments)
    return [ys.dtype.name, end.h.dtype.name, end.c.dtype.name]


@pytest.mark.parametrize(("call", "xs"), [(lstm.apply, XS), (lstm.step, XS[:, 0])])
def test_precision_decides_whatever_the_arguments(call, xs, x64):
    params, state = jax.tree.map(jnp.asarray, example())
    arguments = params, xs, state
    for wide in (jnp.bfloat16, jnp.float64):
        given = cast(arguments, wide)
        assert dtypes(call, *given, precision="bfloat16") == ["bfloat16", "bfloat16", "float32"]
        assert dtypes(call, *given, precision="float32") == ["float32"] * 3
        assert dtypes(call, *given, precision="float64") == ["float64"] * 3
        assert dtypes(call, *given)[0] == jnp.dtype(wide).name
    slopes = jax.eval_shape(jax.grad(lambda params: number(call(params, xs, state, options=HALF))), cast(params))
    assert {leaf.dtype for leaf in jax.tree.leaves(slopes)} == {jnp.dtype(jnp.bfloat16)}


def test_float32_of_bfloat16():
    arguments = cast(example()), cast(XS)
    (params, state), xs = arguments
    actual = lstm.apply(params, xs, state, options=LSTMOptions(precision="float32"))
    (params, state), xs = cast(arguments, jnp.float32)
    equal(actual, lstm.apply(params, xs, state))


def test_bidirectional_and_stacks():
    params = stack.init(KEY, INPUTS, (INPUTS, INPUTS), bidirectional=True, merge="ave")
    call = partial(stack.apply, merge="ave", residual_from=1)
    ys, end = call(params, XS, options=HALF)
    assert ys.dtype == end[1].backward.h.dtype == jnp.bfloat16
    assert end[0].forward.c.dtype == jnp.float32
    equal((ys, end), call(cast(params), cast(XS)))
    layer = params.layers[0]
    equal(bidirectional.apply(layer, XS, options=HALF), bidirectional.apply(cast(layer), cast(XS)))
    one_way = stack.init(KEY, INPUTS, (INPUTS, INPUTS))
    y, after = stack.step(one_way, XS[:, 0], stack.initial_state(one_way, (BATCH,)), residual_from=1, options=HALF)
    assert (y.dtype, after[1].h.dtype, after[1].c.dtype) == (jnp.bfloat16, jnp.bfloat16, jnp.float32)
    whole, _ = stack.apply(one_way, XS, residual_from=1, options=HALF)
    np.testing.assert_allclose(np.float32(y), np.float32(whole[:, 0]), rtol=0, atol=2**-8)


def test_one_dtype_by_many_names():
    names = ["bfloat16", jnp.bfloat16, jnp.dtype(jnp.bfloat16), np.dtype(jnp.bfloat16)]
    assert len({LSTMOptions(precision=name) for name in names}) == 1
    assert LSTMOptions(precision=None) != LSTMOptions(precision="float32") != HALF


@pytest.mark.usefixtures("untyped")
@pytest.mark.parametrize(
    ("precision", "error", "text"),
    [
        ("float64", ValueError, "precision float64 needs 64-bit JAX: set jax_enable_x64"),
        ("int32", TypeError, r"precision must be a floating type such as jnp\.float32, got int32"),
        (bool, TypeError, r"precision must be a floating type such as jnp\.float32, got bool"),
        ("half", None, None),
        ("brain", TypeError, "brain"),
    ],
)
def test_refusals(precision, error, text):
    if error is None:
        assert LSTMOptions(precision=precision).precision == "float16"
    else:
        with pytest.raises(error, match=text):
            LSTMOptions(precision=precision)
