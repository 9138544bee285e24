"""Parameters before training: shapes, distributions, what options add; and the state before the first step."""

import dataclasses
import itertools
from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.nn import initializers

from lstmjax import LSTMOptions, LSTMState, lstm

KEY = jax.random.key(0)
FULL = lstm.init(KEY, 3, 4, peepholes=True, projection=2, layer_norm=True, learned_state=True)
XS = np.random.default_rng(0).normal(size=(2, 5, 3)).astype(np.float32)

same = partial(jax.tree.map, partial(np.testing.assert_allclose, rtol=1e-6, atol=1e-6))
equal = partial(jax.tree.map, np.testing.assert_array_equal)


def paths(tree):
    leaves = jax.tree_util.tree_leaves_with_path(tree)
    return {jax.tree_util.keystr(path, simple=True, separator="/"): leaf for path, leaf in leaves}


@pytest.mark.parametrize(("inputs", "units", "count"), [(1, 1, 12), (2, 3, 72), (20, 50, 4 * 50 * 71)])
def test_number_of_parameters(inputs, units, count):
    params = jax.eval_shape(lambda key: lstm.init(key, inputs=inputs, units=units), KEY)
    assert sum(leaf.size for leaf in jax.tree.leaves(params)) == count
    assert (params.inputs, params.units) == (inputs, units)


def test_initial_weights_of_each_gate():
    params = lstm.init(KEY, inputs=30, units=20)
    bound = np.sqrt(6 / (30 + 20))
    gates = [np.split(np.asarray(w), 4, axis=-1) for w in (params.w_x, params.w_h, params.bias)]
    for w_x, w_h in zip(*gates[:2], strict=True):
        assert 0.9 * bound < np.abs(w_x).max() <= bound
        np.testing.assert_allclose(w_h.T @ w_h, np.eye(20), atol=1e-5)
    for blocks in gates[:2]:
        assert not any(np.array_equal(a, b) for a, b in itertools.combinations(blocks, 2))
    np.testing.assert_array_equal(params.bias, np.repeat([0, 1, 0, 0], 20))


def test_initializers_are_replaceable():
    params = lstm.init(
        KEY,
        inputs=2,
        units=3,
        forget_bias=0.5,
        w_x_init=lambda key, shape, dtype: jnp.full(shape, shape[0], dtype),
        w_h_init=lambda key, shape, dtype: jnp.full(shape, 10 * shape[0], dtype),
        bias_init=lambda key, shape, dtype: jnp.full(shape, 7, dtype),
    )
    assert (params.w_x == 2).all()
    assert (params.w_h == 30).all()
    np.testing.assert_array_equal(params.bias, np.repeat([7, 7.5, 7, 7], 3))


@pytest.mark.parametrize("dtype", [jnp.float32, jnp.bfloat16, jnp.float16, "float32"])
def test_dtype_of_parameters(dtype):
    params = jax.eval_shape(lambda key: lstm.init(key, inputs=2, units=3, dtype=dtype), KEY)
    assert {leaf.dtype for leaf in jax.tree.leaves(params)} == {jnp.dtype(dtype)}
    state = jax.eval_shape(lambda params: lstm.initial_state(params, batch=(2,)), params)
    assert (state.h.dtype, state.c.dtype) == (jnp.dtype(dtype), jnp.float32)


def test_float64_parameters(x64):
    params = jax.jit(partial(lstm.init, inputs=2, units=3, dtype=jnp.float64))(KEY)
    assert {leaf.dtype for leaf in jax.tree.leaves(params)} == {jnp.dtype(jnp.float64)}
    assert lstm.initial_state(params).c.dtype == jnp.float64
    block = np.asarray(params.w_h)[:, :3]
    np.testing.assert_allclose(block.T @ block, np.eye(3), atol=1e-14)


def test_old_style_keys():
    assert lstm.init(jax.random.PRNGKey(0), inputs=2, units=3).w_x.shape == (2, 12)


def test_init_under_jit_and_vmap():
    make = partial(lstm.init, inputs=2, units=3)
    jax.tree.map(partial(np.testing.assert_allclose, rtol=1e-5, atol=1e-6), jax.jit(make)(KEY), make(KEY))
    assert jax.eval_shape(jax.vmap(make), jax.random.split(KEY, 5)).w_x.shape == (5, 2, 12)


def test_paths_of_the_leaves():
    params = lstm.init(KEY, 2, 3)
    names = list(paths({"encoder": params, "state": lstm.initial_state(params)}))
    assert names == ["encoder/w_x", "encoder/w_h", "encoder/bias", "state/h", "state/c"]


PLAIN = {"w_x": (2, 12), "w_h": (3, 12), "bias": (12,)}
COUPLED = {"w_x": (2, 9), "w_h": (3, 9), "bias": (9,)}
NORM = {"norm/x_scale": (12,), "norm/h_scale": (12,), "norm/c_scale": (3,), "norm/c_bias": (3,)}


@pytest.mark.parametrize(
    ("options", "shapes", "count"),
    [
        ({"bias": False}, {"w_x": (2, 12), "w_h": (3, 12)}, 4 * 3 * 5),
        ({"chrono": 10}, PLAIN, 4 * 3 * 6),
        ({"peepholes": True}, PLAIN | {"w_peephole": (9,)}, 4 * 3 * 6 + 3 * 3),
        ({"projection": 2}, PLAIN | {"w_h": (2, 12), "w_projection": (3, 2)}, 4 * 3 * (2 + 2 + 1) + 3 * 2),
        ({"projection": 5}, PLAIN | {"w_h": (5, 12), "w_projection": (3, 5)}, 4 * 3 * (2 + 5 + 1) + 3 * 5),
        ({"layer_norm": True}, PLAIN | NORM, 4 * 3 * 6 + 2 * 12 + 2 * 3),
        ({"coupled": True}, COUPLED, 3 * 3 * 6),
        ({"coupled": True, "peepholes": True}, COUPLED | {"w_peephole": (6,)}, 3 * 3 * 6 + 2 * 3),
        ({"learned_state": True}, PLAIN | {"initial/h": (3,), "initial/c": (3,)}, 4 * 3 * 6 + 2 * 3),
        (
            {"learned_state": True, "projection": 2, "coupled": True, "bias": False, "layer_norm": True},
            {"w_x": (2, 9), "w_h": (2, 9), "w_projection": (3, 2)}
            | (NORM | {"norm/x_scale": (9,), "norm/h_scale": (9,)})
            | {"initial/h": (2,), "initial/c": (3,)},
            3 * 3 * (2 + 2) + 3 * 2 + 2 * 9 + 2 * 3 + 2 + 3,
        ),
    ],
)
@pytest.mark.parametrize("dtype", [jnp.float32, jnp.bfloat16])
def test_what_options_add(options, shapes, count, dtype):
    params = jax.eval_shape(lambda key: lstm.init(key, 2, 3, dtype=dtype, **options), KEY)
    leaves = paths(params)
    assert {name: leaf.shape for name, leaf in leaves.items()} == shapes
    assert list(leaves) == [name for name in paths(FULL) if name in shapes]
    assert {leaf.dtype for leaf in leaves.values()} == {jnp.dtype(dtype)}
    assert sum(leaf.size for leaf in leaves.values()) == count
    outputs, gates = options.get("projection", 3), 3 if "coupled" in options else 4
    assert (params.inputs, params.units, params.outputs, params.gates) == (2, 3, outputs, gates)
    state = jax.eval_shape(partial(lstm.initial_state, batch=(6, 1)), params)
    assert (state.h.shape, state.c.shape) == ((6, 1, outputs), (6, 1, 3))
    assert (state.h.dtype, state.c.dtype) == (jnp.dtype(dtype), jnp.float32)


def test_first_values_of_what_options_add():
    norm = FULL.norm
    assert all((scale == 1).all() for scale in (norm.x_scale, norm.h_scale, norm.c_scale))
    assert not any(leaf.any() for leaf in (norm.c_bias, FULL.initial.h, FULL.initial.c))
    draw = jax.jit(lambda key: lstm.init(key, 1, 500, peepholes=True, w_h_init=initializers.zeros).w_peephole)
    w_peephole = np.asarray(draw(KEY))
    assert abs(w_peephole.std() - 0.1) < 0.01
    assert not any(np.array_equal(a, b) for a, b in itertools.combinations(np.split(w_peephole, 3), 2))
    bound = np.sqrt(6 / (200 + 100))
    w_projection = jax.jit(lambda key: lstm.init(key, 1, 200, projection=100, w_h_init=initializers.zeros).w_projection)
    assert 0.99 * bound < np.abs(w_projection(KEY)).max() <= bound


def test_an_option_changes_no_other_weights():
    plain = lstm.init(KEY, 3, 4)
    added = {"peepholes": True, "layer_norm": True, "learned_state": True}
    for option in (added, {"bias": False}, {"chrono": 10}, {"forget_bias": 0.0}, {"projection": 4}):
        params = lstm.init(KEY, 3, 4, **option)
        equal((params.w_x, params.w_h), (plain.w_x, plain.w_h))
    coupled = lstm.init(KEY, 3, 4, coupled=True)
    equal((coupled.w_x, coupled.w_h), (plain.w_x[:, :12], plain.w_h[:, :12]))
    keys = jax.random.split(KEY, (2, 4))
    for gate, (x_key, h_key) in enumerate(zip(*keys, strict=True)):
        columns = slice(4 * gate, 4 * gate + 4)
        equal(plain.w_x[:, columns], initializers.glorot_uniform()(x_key, (3, 4)))
        equal(plain.w_h[:, columns], initializers.orthogonal()(h_key, (4, 4)))


def test_the_recurrent_block_of_each_gate_is_orthogonal_with_a_projection():
    for block in np.split(lstm.init(KEY, 3, 4, projection=2).w_h, 4, axis=-1):
        np.testing.assert_allclose(block @ block.T, np.eye(2), atol=1e-6)


@pytest.mark.parametrize("coupled", [False, True])
def test_chrono(coupled):
    """Tallec & Ollivier (2018): b_f = log U(1, chrono - 1), b_i = -b_f; Kolmogorov and Smirnov's distance at 0.001."""
    draw = jax.jit(jax.vmap(lambda key: lstm.init(key, 1, 4, chrono=10, coupled=coupled).bias))
    i, *f, g, o = np.split(draw(jax.random.split(KEY, 2500)), 3 if coupled else 4, axis=-1)
    if not coupled:
        np.testing.assert_array_equal(f[0], -i)
    assert not g.any()
    assert not o.any()
    spans = np.sort(np.exp(-i), axis=None)
    assert spans[0] >= 1 - 1e-5
    assert spans[-1] <= 9 + 1e-5
    distance = np.abs((spans - 1) / 8 - np.arange(spans.size) / spans.size).max()
    assert distance < 1.95 / np.sqrt(spans.size)


@pytest.mark.parametrize("bias", [{"forget_bias": 2.0}, {"forget_bias": -1.0}, {}, {"chrono": 30}])
def test_a_coupled_cell_forgets_as_much_at_first(bias):
    """Without weights c_1 = f c_0: both cells keep the same share of it."""
    make = partial(lstm.init, KEY, 1, 3, w_x_init=initializers.zeros, w_h_init=initializers.zeros, **bias)
    state = LSTMState(jnp.zeros(3), jnp.ones(3))
    kept = [lstm.step(make(coupled=coupled), jnp.ones(1), state)[1].c for coupled in (False, True)]
    same(*kept)
    if "chrono" not in bias:
        np.testing.assert_allclose(kept[0], jax.nn.sigmoid(bias.get("forget_bias", 1.0)), rtol=1e-6)
    b = make(coupled=True).bias
    same(b[:3], -make().bias[3:6])
    assert not b[3:].any()


def test_no_bias():
    assert lstm.init(KEY, 2, 3, bias=False, forget_bias=0.0).bias is None
    without, plain = (lstm.init(KEY, 3, 4, **option) for option in ({"bias": False}, {"forget_bias": 0.0}))
    same(*jax.jit(lambda *both: [lstm.apply(params, XS) for params in both])(without, plain))


def test_learned_state():
    params = lstm.init(KEY, 3, 4, learned_state=True, projection=2)
    assert not any(leaf.any() for leaf in jax.tree.leaves(params.initial))
    initial = LSTMState(h=np.float32([0.3, -0.2]), c=np.linspace(-1, 1, 4, dtype=np.float32))
    params = dataclasses.replace(params, initial=initial)
    state = lstm.initial_state(params, batch=(2,))
    equal(state, LSTMState(h=np.stack([initial.h] * 2), c=np.stack([initial.c] * 2)))

    resets = np.broadcast_to(np.arange(5) == 2, (2, 5))
    at_once = resets | (np.arange(5) == 0)
    other = jax.tree.map(np.zeros_like, state)

    @jax.jit
    def run(params, state, other):
        def slopes(resets):
            total = lambda params, state: lstm.apply(params, XS, state, resets=resets)[0].sum()  # noqa: E731
            params_slopes, state_slopes = jax.grad(total, argnums=(0, 1))(params, state)
            return params_slopes.initial, state_slopes

        at_start = jax.grad(lambda params: lstm.apply(params, XS)[0].sum())(params).initial
        reset = lstm.apply(params, XS, other, resets=resets), lstm.apply(params, XS[:, 2:])
        whole = lstm.apply(params, XS), lstm.apply(params, XS, state)
        return whole, reset, slopes(np.zeros((2, 5), bool)), slopes(at_once), at_start

    whole, ((ys, end), expected), (learned, carried), (after, none), at_start = run(params, state, other)
    equal(*whole)
    same((ys[:, 2:], end), expected)
    assert not any(leaf.any() for leaf in jax.tree.leaves(learned))
    same(at_start, jax.tree.map(lambda leaf: leaf.sum(axis=0), carried))
    assert all((np.abs(leaf) > 0).all() for leaf in jax.tree.leaves(after))
    assert not any(leaf.any() for leaf in jax.tree.leaves(none))


def test_a_learned_state_in_half_precision_is_carried_wide():
    params = lstm.init(KEY, 2, 3, learned_state=True, dtype=jnp.bfloat16)
    params = dataclasses.replace(params, initial=LSTMState(*jnp.full((2, 3), 0.3, jnp.bfloat16)))
    state = lstm.initial_state(params)
    assert (state.h.dtype, state.c.dtype) == (jnp.bfloat16, jnp.float32)
    equal(state.c, params.initial.c.astype(jnp.float32))


@pytest.mark.usefixtures("untyped")
class TestRefusals:
    @pytest.mark.parametrize(
        ("arguments", "error", "text"),
        [
            ({"inputs": 0}, ValueError, "inputs must be an integer of at least 1, got 0"),
            ({"units": -3}, ValueError, "units must be an integer of at least 1, got -3"),
            ({"units": 2.5}, ValueError, r"units must be an integer of at least 1, got 2\.5"),
            ({"units": True}, ValueError, "units must be an integer of at least 1, got True"),
            ({"projection": 0}, ValueError, "projection must be an integer of at least 1, got 0"),
            ({"projection": True}, ValueError, "projection must be an integer of at least 1, got True"),
            ({"projection": 2.5}, ValueError, r"projection must be an integer of at least 1, got 2\.5"),
            ({"bias": 0}, TypeError, "bias must be True or False, known before tracing; got 0"),
            ({"peepholes": "yes"}, TypeError, "peepholes must be True or False, .*; got 'yes'"),
            ({"layer_norm": 1}, ValueError, "layer_norm must be one of 'joint', .*True, False, None; got 1"),
            ({"layer_norm": "gates"}, ValueError, "layer_norm must be one of 'joint', 'joint_cell', 'per_gate', .*got"),
            ({"layer_norm": "per_gate", "units": 1}, ValueError, "layer_norm='per_gate' needs units above 1"),
            ({"coupled": 1}, TypeError, "coupled must be True or False, .*; got 1"),
            ({"learned_state": 1.0}, TypeError, r"learned_state must be True or False, .*; got 1\.0"),
            (
                {"layer_norm": True, "units": 1},
                ValueError,
                "layer_norm=True needs units above 1: a single c less its mean",
            ),
            (
                {"bias": False, "forget_bias": 2},
                ValueError,
                r"bias=False leaves no place for forget_bias=2\.0: give one",
            ),
            (
                {"bias": False, "chrono": 10},
                ValueError,
                "bias=False leaves no place for chrono=10: give one of the two",
            ),
            ({"chrono": 2}, ValueError, "chrono must be above 2, and finite, the steps .* may span; got 2"),
            ({"chrono": float("nan")}, ValueError, "chrono must be above 2, .*; got nan"),
            ({"chrono": True}, TypeError, "chrono must be a number, got True"),
            ({"chrono": float("inf")}, ValueError, "chrono must be above 2, and finite, .*; got inf"),
            ({"chrono": 1e39}, ValueError, r"chrono must be above 2, and finite, .*; got 1e\+39"),
            ({"forget_bias": float("nan")}, ValueError, "forget_bias must be a finite number in float32; got nan"),
            ({"forget_bias": 1e39}, ValueError, r"forget_bias must be a finite number in float32; got 1e\+39"),
            ({"forget_bias": 1e5, "dtype": "float16"}, ValueError, "forget_bias must be a finite number in float16"),
            ({"forget_bias": 10**400}, ValueError, "forget_bias must be a number that a float can hold"),
            ({"forget_bias": np.complex64(1)}, TypeError, "forget_bias must be a number"),
            ({"units": 2**70}, ValueError, "units must be at most 2147483647, got 1180591620717411303424"),
            ({"key": 3}, TypeError, r"key must be a JAX random key, such as jax\.random\.key\(0\); got int"),
            ({"key": jax.random.split(KEY)}, ValueError, r"key must be one key, got an array of shape \(2,\)"),
            ({"key": np.zeros(2)}, TypeError, r"key must be a JAX random key, .*; got ndarray of float64 \(2,\)"),
            ({"w_x_init": 3}, TypeError, r"w_x_init must be a function \(key, shape, dtype\) -> array; got 3"),
            ({"dtype": None}, TypeError, r"dtype must be a floating type such as jnp\.float32, got NoneType"),
            (
                {"chrono": 9, "forget_bias": 0},
                ValueError,
                r"forget_bias=0\.0 and chrono=9 both set the forget gate's bias",
            ),
            ({"dtype": jnp.int32}, TypeError, r"dtype must be a floating type such as jnp\.float32, got int32"),
        ],
    )
    def test_init(self, arguments, error, text):
        with pytest.raises(error, match=text):
            lstm.init(**{"key": KEY, "inputs": 2, "units": 3, **arguments})

    def test_initializers(self):
        with pytest.raises(
            ValueError, match=r"w_x_init must return shape \(2, 3\), which it was called with; got \(7, 7\)"
        ):
            lstm.init(KEY, 2, 3, w_x_init=lambda key, shape, dtype: jnp.ones((7, 7), dtype))
        with pytest.raises(
            TypeError, match=r"w_h_init must be a function \(key, shape, dtype\) -> array; .* raised: len"
        ):
            lstm.init(KEY, 2, 3, w_h_init=len)
        with pytest.raises(ValueError, match=r"bias_init must return shape \(3,\), .* got \(\)"):
            lstm.init(KEY, 2, 3, bias_init=lambda key, shape, dtype: 0.0)
        with pytest.raises(ValueError, match=r"w_peephole_init must return shape \(3,\), .* got \(9,\)"):
            lstm.init(KEY, 2, 3, peepholes=True, w_peephole_init=lambda key, shape, dtype: jnp.ones(9, dtype))
        with pytest.raises(ValueError, match=r"w_projection_init must return shape \(3, 2\), .* got \(2, 3\)"):
            lstm.init(KEY, 2, 3, projection=2, w_projection_init=lambda key, shape, dtype: jnp.ones((2, 3), dtype))
        with pytest.raises(TypeError, match=r"forget_bias must be a number, got Array"):
            lstm.init(KEY, 2, 3, forget_bias=jnp.ones(3))
        with pytest.raises(ValueError, match=r"dtype float64 needs 64-bit JAX: set jax_enable_x64"):
            lstm.init(KEY, 2, 3, dtype=jnp.float64)

    def test_initial_state(self):
        for batch in ([8], 8.0, True, None, "8"):
            with pytest.raises(TypeError, match=r"batch must be an integer, a tuple of sizes such as \(8,\).*got "):
                lstm.initial_state(FULL, batch=batch)
        with pytest.raises(ValueError, match=r"each of batch must be an integer from 0 .*got -1"):
            lstm.initial_state(FULL, batch=-1)
        with pytest.raises(TypeError, match=r"options must be LSTMOptions, as LSTMOptions\(\.\.\.\) makes it; got str"):
            lstm.initial_state(FULL, 8, options="bfloat16")
        with pytest.raises(TypeError, match=r"params must be LSTMParams, as lstm\.init makes it; got dict"):
            lstm.initial_state({"w_x": 1})

    @pytest.mark.parametrize(
        ("name", "value", "error", "text"),
        [
            (
                "w_h",
                jnp.ones((2, 12)),
                ValueError,
                r"w_h must have shape \(2, 16\) \(projection, 4\*units\), got \(2, 12\)",
            ),
            ("bias", jnp.ones(12), ValueError, r"bias must have shape \(16,\) .*, got \(12,\)"),
            ("w_peephole", jnp.ones(8), ValueError, r"w_peephole must have shape \(12,\) \(3\*units\), got \(8,\)"),
            ("w_peephole", jnp.ones((3, 4)), ValueError, r"w_peephole must have axes \[3\*units\], got shape \(3, 4\)"),
            ("w_projection", jnp.ones((4, 3)), ValueError, r"w_projection must have shape \(4, 2\) .*, got \(4, 3\)"),
            ("w_projection", jnp.ones(4), ValueError, r"w_projection must have axes \[units, projection\], got"),
            ("norm", (1, 2), TypeError, "norm must be LSTMNorm, as lstm.init makes it; got tuple"),
            (
                "norm.x_scale",
                jnp.ones(4),
                ValueError,
                r"norm\.x_scale must have shape \(16,\) \(4\*units\), got \(4,\)",
            ),
            ("norm.h_scale", jnp.ones(()), ValueError, r"norm\.h_scale must have axes \[4\*units\], got shape \(\)"),
            ("norm.c_scale", jnp.ones(2), ValueError, r"norm\.c_scale must have shape \(4,\) \(units\), got \(2,\)"),
            ("norm.c_bias", jnp.ones(16), ValueError, r"norm\.c_bias must have shape \(4,\) \(units\), got \(16,\)"),
            ("norm.c_bias", None, TypeError, r"norm\.c_bias must be an array, got NoneType"),
            ("norm.x_scale", jnp.ones(16, int), TypeError, r"norm\.x_scale must have a floating dtype, got int32"),
            (
                "norm.z_scale",
                jnp.ones(16),
                ValueError,
                r"norm\.z_scale must be None with the kind 'joint'; got an array",
            ),
            ("norm.kind", "per_gate", ValueError, r"norm\.x_scale must be None with the kind 'per_gate'; got an array"),
            ("norm.kind", "gates", ValueError, r"norm\.kind must be one of 'joint', .*; got 'gates'"),
            ("initial", (1, 2), TypeError, "initial must be LSTMState, as lstm.init makes it; got tuple"),
            ("initial.h", jnp.ones(4), ValueError, r"initial\.h must have shape \(2,\) \(projection\), got \(4,\)"),
            ("initial.c", jnp.ones(2), ValueError, r"initial\.c must have shape \(4,\) \(units\), got \(2,\)"),
            ("initial.c", None, TypeError, r"initial\.c must be an array, got NoneType"),
        ],
    )
    def test_optional_leaves(self, name, value, error, text):
        parent, _, leaf = name.rpartition(".")
        if parent:
            value = dataclasses.replace(getattr(FULL, parent), **{leaf: value})
        params = dataclasses.replace(FULL, **{parent or leaf: value})
        with pytest.raises(error, match=rf"params\.{text}"):
            lstm.apply(params, XS)

    def test_a_peephole_too_many_for_a_coupled_cell(self):
        params = dataclasses.replace(lstm.init(KEY, 3, 4, coupled=True), w_peephole=jnp.ones(12))
        with pytest.raises(ValueError, match=r"params\.w_peephole must have shape \(8,\) \(2\*units\), got \(12,\)"):
            lstm.apply(params, XS)

    @pytest.mark.parametrize("entrance", [lstm.apply, lstm.step])
    @pytest.mark.parametrize(
        ("option", "text"),
        [
            ({"projection_clip": 1}, r"projection_clip=1\.0 needs params with a projection"),
            ({"norm_epsilon": 1e-3}, r"norm_epsilon=0\.001 needs params with layer norm: lstm\.init"),
        ],
    )
    def test_options_without_a_meaning(self, entrance, option, text):
        params = lstm.init(KEY, 3, 4)
        with pytest.raises(ValueError, match=text):
            entrance(params, XS, lstm.initial_state(params, (2,)), options=LSTMOptions(**option))
