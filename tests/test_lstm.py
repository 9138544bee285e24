from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import reference

import lstmjax
from lstmjax import Dropout, LSTMOptions, LSTMParams, LSTMState, lstm
from lstmjax._src.lstm import arguments

KEY = jax.random.key(0)


def test_numpy_parameters_and_inputs():
    params = lstm.init(KEY, 2, 3)
    xs = np.ones((4, 2), np.float32)
    expected, _ = lstm.apply(params, jnp.asarray(xs))
    actual, _ = lstm.apply(jax.tree.map(np.asarray, params), xs)
    np.testing.assert_array_equal(actual, expected)


class Foreign:
    """An array of another library."""

    def __init__(self, array):
        self.array = array

    def __array__(self, dtype=None, copy=None):
        return np.array(self.array, dtype)


@pytest.mark.usefixtures("untyped")
@pytest.mark.parametrize("kind", [list, Foreign])
def test_what_becomes_an_array(kind):
    params = lstm.init(KEY, 2, 3)
    xs, resets = np.ones((4, 2), np.float32), np.array([False, True, False, False])
    state = lstm.LSTMState(h=np.full(3, 0.5, np.float32), c=np.ones(3, np.float32))
    taken = lstm.LSTMState(h=kind(state.h), c=kind(state.c))
    jax.tree.map(
        np.testing.assert_array_equal,
        lstm.apply(params, kind(xs), taken, resets=kind(resets)),
        lstm.apply(params, xs, state, resets=resets),
    )
    jax.tree.map(np.testing.assert_array_equal, lstm.step(params, kind(xs[0]), taken), lstm.step(params, xs[0], state))


@pytest.mark.usefixtures("untyped")
@pytest.mark.parametrize("place", ["params", "xs", "state"])
def test_another_byte_order_is_refused_once_compiled_too(place):
    """`jax.jit` takes such arrays for those it has compiled for, and reads their bytes as they stand."""
    params = jax.tree.map(np.asarray, lstm.init(KEY, 2, 3))
    arrays = {
        "params": params,
        "xs": np.ones((4, 2), "f"),
        "state": jax.tree.map(np.asarray, lstm.initial_state(params)),
    }
    lstm.apply(**arrays)
    lstm.step(params, arrays["xs"][0], arrays["state"])
    arrays[place] = jax.tree.map(lambda leaf: leaf.astype(">f4"), arrays[place])
    with pytest.raises(TypeError, match=rf"{place}.* must have the byte order of this machine, .*'float32'"):
        lstm.apply(**arrays)
    with pytest.raises(TypeError, match=r"must have the byte order of this machine, .*'float32'"):
        lstm.step(arrays["params"], arrays["xs"][0], arrays["state"])


@pytest.mark.parametrize(
    "options",
    [
        pytest.param({"activation": "relu"}, marks=pytest.mark.slow),  # the next two are together in test_variants
        pytest.param({"recurrent_activation": "hard_sigmoid"}, marks=pytest.mark.slow),
        {"recurrent_activation": "keras2_hard_sigmoid", "activation": "sigmoid"},
        {"activation": "elu", "output_activation": "softsign"},
        {"activation": "linear", "output_activation": "tanh"},
        {"activation": "silu", "output_activation": "softplus"},
        pytest.param({"cell_clip": 0.3}, marks=pytest.mark.slow),
        pytest.param({"preactivation_clip": 0.4}, marks=pytest.mark.slow),
        {"cell_clip": 0.5, "preactivation_clip": 1.0, "activation": "tanh"},
    ],
)
def test_options_against_the_reference(options):
    rng = np.random.default_rng(0)
    arrays = [rng.normal(size=shape) for shape in [(3, 16), (4, 16), (16,), (2, 6, 3), (2, 4), (2, 4)]]
    arrays = [a.astype(np.float32).astype(np.float64) for a in arrays]
    w_x, w_h, bias, xs, h, c = (jnp.asarray(a, jnp.float32) for a in arrays)
    lengths = np.array([6, 4])
    expected = reference.apply(*arrays, lengths=lengths, **options)
    plain = reference.apply(*arrays, lengths=lengths)
    assert np.abs(expected[0] - plain[0]).max() > 1e-2

    params, state = LSTMParams(w_x, w_h, bias), LSTMState(h, c)
    weights = rng.normal(size=expected[0].shape)

    @jax.jit
    @partial(jax.grad, argnums=(0, 1, 2), has_aux=True)
    def differentiated(*arrays):
        ys, end = lstm.apply(*arrays, lengths=lengths, options=LSTMOptions(**options))
        return (ys * weights).sum(), (ys, end)

    actual, (ys, end) = differentiated(params, xs, state)
    for a, e in zip((ys, end.h, end.c), expected, strict=True):
        np.testing.assert_allclose(a, e, rtol=2e-6, atol=2e-6)
    y, _ = lstm.step(params, xs[:, 0], state, options=LSTMOptions(**options))
    np.testing.assert_allclose(y, expected[0][:, 0], rtol=2e-6, atol=2e-6)

    slopes = reference.gradients(
        lambda *a: (reference.apply(*a, lengths=lengths, **options)[0] * weights).sum(), arrays
    )
    for a, e in zip(jax.tree.leaves(actual), slopes, strict=True):
        np.testing.assert_allclose(a, e, rtol=0, atol=1e-5 * np.abs(e).max())


def test_promotion_of_mixed_dtypes():
    params = lstm.init(KEY, 2, 3)
    ys, state = lstm.apply(params, jnp.ones((4, 2), jnp.bfloat16))
    assert ys.dtype == state.h.dtype == jnp.float32
    np.testing.assert_array_equal(ys, lstm.apply(params, jnp.ones((4, 2)))[0])


def test_strict_promotion_of_one_dtype():
    with jax.numpy_dtype_promotion("strict"):
        for dtype in (jnp.float32, jnp.bfloat16):
            params = lstm.init(KEY, 2, 3, dtype=dtype)
            xs, lengths = jnp.ones((2, 4, 2), dtype), jnp.array([4, 2], jnp.uint8)
            loss = lambda p: lstm.apply(p, xs, lengths=lengths)[0].sum()  # noqa: E731, B023
            assert jax.grad(loss)(params).w_x.dtype == dtype


@pytest.mark.parametrize("dtype", [np.int8, np.uint8, np.int32, np.int64])
def test_every_integer_type_serves_for_lengths(dtype):
    params, xs = lstm.init(KEY, 2, 3), jnp.ones((2, 200, 2))
    error, (ys, _) = lstmjax.checked(lstm.apply)(params, xs, lengths=np.array([100, 3], dtype))
    error.throw()
    assert np.asarray(ys).any(axis=-1).sum(axis=-1).tolist() == [100, 3]


def test_equal_options_are_equal(untyped):
    assert LSTMOptions(cell_clip=3) == LSTMOptions(cell_clip=np.float32(3.0))
    assert hash(LSTMOptions(cell_clip=3)) == hash(LSTMOptions(cell_clip=np.float32(3.0)))


def test_explain():
    params, xs = lstm.init(KEY, 2, 3), jnp.ones((4, 2))
    assert lstm.dispatch(params, xs) == "fused runs\npallas_tpu does not: there is no TPU here"
    asked = "does not: implementation='scan' was asked for"
    assert lstm.dispatch(params, xs, implementation="scan") == f"scan runs\npallas_tpu {asked}\nfused {asked}"


def test_auto_runs_what_explain_says():
    params, xs = lstm.init(KEY, 2, 3), jnp.ones((4, 2))
    program = lambda name: str(jax.make_jaxpr(partial(lstm.apply, implementation=name))(params, xs))  # noqa: E731
    assert "name=run" in program("auto")
    assert "name=run" not in program("scan")


XS = jnp.ones((2, 5, 3))


@pytest.mark.usefixtures("untyped")
class TestRefusals:
    params = lstm.init(KEY, inputs=3, units=4)
    state = lstm.initial_state(params, batch=(2,))

    @pytest.mark.parametrize(
        ("arguments", "error", "text"),
        [
            (
                {"xs": jnp.ones(3)},
                ValueError,
                r"xs must have axes \[\*batch, time, inputs\], at least 2 of them; got shape \(3,\)",
            ),
            (
                {"xs": jnp.ones((2, 5, 4))},
                ValueError,
                r"xs must have 3 features in its last axis, because params.w_x has that many rows; got shape "
                r"\(2, 5, 4\)",
            ),
            (
                {"xs": jnp.ones((2, 5, 3), jnp.int32)},
                TypeError,
                r"xs must have a floating dtype, got int32 \(2, 5, 3\)\. Convert it with \.astype\(jnp\.float32\)",
            ),
            ({"xs": XS + 1j}, TypeError, "xs must have a floating dtype, got complex64"),
            ({"xs": "words"}, TypeError, "xs must be an array, got str"),
            (
                {"lengths": jnp.array([1, 2, 3])},
                ValueError,
                r"lengths must have shape \(2,\) \(the batch axes of xs\), got \(3,\)",
            ),
            (
                {"lengths": jnp.array([1.0, 2.0])},
                TypeError,
                r"lengths must be integers, got float32 \(2,\)",
            ),
            (
                {"lengths": jnp.ones((2, 5), bool)},
                TypeError,
                r"lengths must be integers, got bool \(2, 5\)",
            ),
            (
                {"lengths": jnp.array([6, 2])},
                ValueError,
                r"lengths must lie between 0 and 5 \(the number of time steps of xs\); got values from 2 to 6",
            ),
            ({"lengths": jnp.array([-1, 2])}, ValueError, r"between 0 and 5 .*; got values from -1 to 2"),
            (
                {"resets": jnp.zeros((2, 4), bool)},
                ValueError,
                r"resets must have shape \(2, 5\) \(\[\*batch, time\] of xs\), got \(2, 4\)",
            ),
            (
                {"resets": jnp.zeros((2, 5))},
                TypeError,
                r"resets must be bool, .* got float32 \(2, 5\)\. Convert it with \.astype\(bool\)",
            ),
            (
                {"state": (jnp.ones((2, 4)), jnp.ones((2, 4)))},
                TypeError,
                r"state must be LSTMState, as lstm\.initial_state makes it; got tuple",
            ),
            (
                {"state": LSTMState(jnp.ones((3, 4)), jnp.ones((2, 4)))},
                ValueError,
                r"state\.h must have shape \(2, 4\) \(the batch axes of the input, then units\), got \(3, 4\)",
            ),
            (
                {"state": LSTMState(jnp.ones((2, 4)), jnp.ones(4))},
                ValueError,
                r"state\.c must have shape \(2, 4\)",
            ),
            (
                {"params": {"w_x": 1}},
                TypeError,
                r"params must be LSTMParams, as lstm\.init makes it; got dict",
            ),
            (
                {"params": LSTMParams(jnp.ones((3, 16)), jnp.ones((4, 12)), jnp.ones(16))},
                ValueError,
                r"params\.w_h must have shape \(4, 16\) \(units, 4\*units\), got \(4, 12\)",
            ),
            (
                {"params": LSTMParams(None, jnp.ones((4, 16)), jnp.ones(16))},
                TypeError,
                r"params\.w_x must be an array, got NoneType",
            ),
            (
                {"params": jax.tree.map(lambda leaf: jnp.stack([leaf, leaf]), params)},
                ValueError,
                r"params\.w_x must have axes \[inputs, 4\*units\], got shape \(2, 3, 16\)\. Map over stacked "
                r"parameters with jax\.vmap",
            ),
            (
                {"lengths": np.full(2, 2**32 + 3)},
                ValueError,
                r"lengths must lie between 0 and 5 .*; got values from 4294967299 to 4294967299",
            ),
            ({"reverse": "no"}, TypeError, r"reverse must be True or False, known before tracing; got 'no'"),
            ({"return_sequences": None}, TypeError, r"return_sequences must be True or False.*; got None"),
            (
                {"params": LSTMParams(jnp.ones((3, 16)), jnp.ones((4, 16)), jnp.ones(16, int))},
                TypeError,
                r"params\.bias must have a floating dtype, got int32",
            ),
            (
                {"implementation": "cudnn"},
                ValueError,
                r"implementation must be one of 'auto', 'pallas_tpu', 'fused', 'scan'; got 'cudnn'",
            ),
            (
                {"options": LSTMOptions(projection_clip=1.0)},
                ValueError,
                r"projection_clip=1\.0 needs params with a projection: lstm\.init\(\.\.\., projection=\.\.\.\) makes",
            ),
            ({"key": KEY}, ValueError, r"key has no use without dropout: pass dropout=Dropout\(\.\.\.\), or no key"),
            ({"dropout": 0.5}, TypeError, r"dropout must be Dropout, as Dropout\(\.\.\.\) makes it; got float"),
            (
                {"dropout": Dropout(between_layers=0.5), "deterministic": True},
                ValueError,
                r"Dropout\(between_layers=0\.5\) needs layers: use stack\.apply",
            ),
            ({"checkpoint": 0}, ValueError, "checkpoint must be an integer of at least 1, got 0"),
            ({"checkpoint": "yes"}, ValueError, "checkpoint must be an integer of at least 1, got 'yes'"),
            ({"options": {"activation": "relu"}}, TypeError, r"options must be LSTMOptions, .* got dict"),
            ({"unroll": 0}, ValueError, "unroll must be an integer of at least 1, got 0"),
            ({"unroll": 1.5}, ValueError, r"unroll must be an integer of at least 1, got 1\.5"),
        ],
    )
    @pytest.mark.parametrize("entrance", [lstm.apply, lstm.dispatch])
    def test_apply(self, entrance, arguments, error, text):
        with pytest.raises(error, match=text):
            entrance(**{"params": self.params, "xs": XS, **arguments})

    def test_unknown_argument(self):
        with pytest.raises(TypeError, match="lenghts"):
            lstm.apply(self.params, XS, lenghts=jnp.array([1, 2]))

    def test_step(self):
        with pytest.raises(ValueError, match=r"x must have 3 features in its last axis.*read as \[\*batch, inputs\]"):
            lstm.step(self.params, jnp.ones((2, 5)), self.state)
        with pytest.raises(ValueError, match=r"state\.h must have shape \(3, 4\)"):
            lstm.step(self.params, jnp.ones((3, 3)), self.state)
        with pytest.raises(
            ValueError, match=r"x must have axes \[\*batch, inputs\], at least 1 of them; got shape \(\)"
        ):
            lstm.step(self.params, jnp.ones(()), self.state)

    @pytest.mark.parametrize(
        ("arguments", "text"),
        [
            (
                {"activation": "tahn"},
                r"activation must be one of 'tanh', 'sigmoid', 'relu', 'linear', .*; got 'tahn'",
            ),
            ({"recurrent_activation": None}, r"recurrent_activation must be one of .*; got None"),
            ({"cell_clip": 0.0}, r"cell_clip must be above 0, or None for no clipping; got 0\.0"),
            ({"activation": ["tanh"]}, r"activation must be one of .*; got \['tanh'\]"),
            ({"preactivation_clip": float("nan")}, r"preactivation_clip must be above 0.*got nan"),
            ({"norm_epsilon": 0.0}, r"norm_epsilon must be above 0 and finite; got 0\.0"),
            ({"norm_epsilon": float("inf")}, r"norm_epsilon must be above 0 and finite; got inf"),
            ({"cell_clip": "3"}, r"cell_clip must be a number, got '3'"),
            ({"cell_clip": True}, r"cell_clip must be a number, got True"),
        ],
    )
    def test_options(self, arguments, text):
        with pytest.raises((ValueError, TypeError), match=text):
            LSTMOptions(**arguments)

    def test_lengths_above_time_under_jit(self):
        """Their values cannot be read and count as `time`; `checked` reports them, of what was traced before, too."""
        call = jax.jit(lambda lengths: lstm.apply(self.params, XS, lengths=lengths)[0])
        np.testing.assert_array_equal(call(jnp.array([9, 5])), call(jnp.array([5, 5])))
        for checked in (lstmjax.checked(call), jax.jit(lstmjax.checked(call))):
            error, ys = checked(jnp.array([9, 5]))
            with pytest.raises(ValueError, match=r"lengths must lie between 0 and 5"):
                error.throw()
            np.testing.assert_array_equal(ys, call(jnp.array([9, 5])))
            error, _ = checked(jnp.array([0, 5]))
            error.throw()

    def test_the_gradient_of_a_checked_function(self):
        """Its error is that of the function, and its slopes are those without `checked`."""
        call = lambda xs, lengths: lstm.apply(self.params, xs, lengths=lengths)[0].sum()  # noqa: E731
        slopes, error = jax.grad(lambda *arrays: lstmjax.checked(call)(*arrays)[::-1], has_aux=True)(
            XS, np.array([9, 5])
        )
        with pytest.raises(ValueError, match=r"lengths must lie between 0 and 5"):
            error.throw()
        np.testing.assert_array_equal(slopes, jax.grad(call)(XS, np.array([5, 5])))

    @pytest.mark.parametrize("lengths", [jnp.array([9, 5]), np.array([2**32 + 1, 5]), [9, 5], [-1, 5]])
    def test_checked_reports_values_that_are_known_too(self, lengths):
        """Of a function that is not jitted, of its gradient, and of constants in it."""
        call = lambda xs: lstm.apply(self.params, xs, lengths=lengths)[0].sum()  # noqa: E731
        for run in (call, jax.grad(call), jax.value_and_grad(call)):
            error, _ = lstmjax.checked(run)(XS)
            with pytest.raises(ValueError, match=r"lengths must lie between 0 and 5"):
                error.throw()
        with pytest.raises(ValueError, match=r"lengths must lie between 0 and 5"):
            call(XS)


def test_calls_alike_are_checked_once(monkeypatch):
    params, xs = lstm.init(jax.random.key(0), 5, 7), jnp.ones((3, 4, 5))
    state = lstm.initial_state(params, (3,))
    ys, _ = lstm.apply(params, xs)
    y, _ = lstm.step(params, xs[:, 0], state)
    monkeypatch.setattr(arguments, "check", None)
    assert (lstm.apply(params, xs)[0] == ys).all()
    assert (lstm.step(params, xs[:, 0], state)[0] == y).all()
