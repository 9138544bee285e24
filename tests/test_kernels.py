"""What the contract of time does not see of the kernels: blocks, what is skipped, races, refusals, and derivatives.

Here a CPU interprets them. `tests/test_contract.py` runs the contract, `tests/aot` compiles them for TPUs.
"""

import itertools
from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.experimental.pallas import tpu as pltpu

from lstmjax import Dropout, LSTMOptions, LSTMState, bidirectional, lstm, stack
from lstmjax._src import custom_primitive
from lstmjax._src.lstm.pallas_tpu import tpu

slow = pytest.mark.slow
KEY = jax.random.key(0)
INPUTS, UNITS = 3, 5
same = partial(jax.tree.map, partial(np.testing.assert_allclose, rtol=1e-5, atol=1e-5))


@pytest.fixture
def small_blocks(monkeypatch):
    """Blocks of 8 rows and 4 steps, two of them an iteration."""
    for name, size in {"ROWS": 8, "STEPS": 4, "CHUNK": 16, "UNROLLED": 2}.items():
        monkeypatch.setattr(tpu, name, size)
    jax.clear_caches()
    yield
    jax.clear_caches()


def on_a_tpu(monkeypatch):
    monkeypatch.setattr(jax, "default_backend", lambda: "tpu")
    monkeypatch.setattr(jax, "device_count", lambda: 1)
    jax.clear_caches()


def example(rows, time, *, lengths, resets):
    params = lstm.init(KEY, INPUTS, UNITS, learned_state=True)
    rng = np.random.default_rng(0)
    draw = lambda *shape: jnp.asarray(rng.normal(size=shape), jnp.float32)  # noqa: E731
    arrays = {
        "params": jax.tree.map(lambda leaf: leaf + np.float32(rng.normal(scale=0.2, size=leaf.shape)), params),
        "xs": draw(rows, time, INPUTS),
        "state": LSTMState(draw(rows, UNITS), draw(rows, UNITS)),
    }
    times = {}
    if lengths:
        times["lengths"] = jnp.asarray(rng.integers(0, time + 1, rows)).at[0].set(0)
    if resets:
        times["resets"] = jnp.asarray(rng.random((rows, time)) < 0.3)
    return arrays, times


def values_and_slopes(arrays, **arguments):
    def loss(arrays):
        outputs = lstm.apply(**arrays, **arguments)
        return sum(
            (leaf * jnp.cos(jnp.arange(leaf.size)).reshape(leaf.shape)).sum() for leaf in jax.tree.leaves(outputs)
        ), outputs

    return jax.jit(jax.grad(loss, has_aux=True))(arrays)


BLOCKS = {
    "sizes": [(20, 11), (8, 8), (17, 3)],
    "lengths": [True, False],
    "resets": [True, False],
    "reverse": [False, True],
}


FULLEST = (20, 11), True, True, False


@pytest.mark.usefixtures("small_blocks")
@pytest.mark.parametrize(
    tuple(BLOCKS),
    [pytest.param(*row, marks=[] if row == FULLEST else slow) for row in itertools.product(*BLOCKS.values())],
)
def test_several_blocks_of_rows_and_steps(sizes, lengths, resets, reverse):
    rows, time = sizes
    arrays, times = example(rows, time, lengths=lengths, resets=resets)
    made = tpu.plan(tpu.Shape(time, rows, INPUTS, UNITS, 4, 4), backward=False)
    assert (made.rows, made.units) == (8, 128)
    assert made.row_blocks == -(-rows // 8)
    actual, expected = (
        values_and_slopes(arrays, **times, reverse=reverse, implementation=name) for name in ("pallas_tpu", "scan")
    )
    same(actual, expected)


@slow
@pytest.mark.usefixtures("small_blocks")
@pytest.mark.parametrize(("lengths", "resets"), [(False, False), (True, True)])
def test_no_race_and_nothing_read_that_was_not_written(lengths, resets, capfd):
    """As a TPU of two cores would, whose memory holds NaN at first."""
    arrays, times = example(12, 7, lengths=lengths, resets=resets)
    expected = values_and_slopes(arrays, **times, implementation="scan")
    how = pltpu.InterpretParams(detect_races=True, uninitialized_memory="nan", num_cores_or_threads=2)
    with pltpu.force_tpu_interpret_mode(how):
        actual = jax.block_until_ready(values_and_slopes(arrays, **times, implementation="pallas_tpu"))
    same(actual, expected)
    assert "RACE" not in capfd.readouterr().out


def test_chunking_that_no_row_has_are_not_fetched_and_their_steps_not_run():
    layout = tpu._Layout(tpu.plan(tpu.Shape(64, 8, 3, 4, 4, 4), backward=False), ragged=True)
    assert (layout.plan.steps, layout.plan.step_blocks) == (16, 4)
    spans = tpu.Spans(jnp.zeros(8, jnp.int32), jnp.array([0, 3, 20, 7, 1, 0, 2, 9], jnp.int32))
    live = layout.blocks(spans)
    assert {name: bound.tolist() for name, bound in live.items()} == {"first": [0], "last": [20]}
    _, fetched = layout.steps(jnp.zeros((64, 8, 3)), 128)
    assert [int(fetched.index_map(0, block, *live.values())[0]) for block in range(4)] == [0, 1, 1, 1]
    written = layout.steps_of(128, jnp.float32)[2]
    assert [int(written.index_map(0, block, *live.values())[0]) for block in range(4)] == [0, 1, 2, 3]
    refs = {"start": None, "first": live["first"], "last": live["last"]}
    with jax.disable_jit(), pytest.MonkeyPatch.context() as patch:
        patch.setattr(tpu.pl, "program_id", lambda _: 0)
        bounds = [[int(bound) for bound in tpu._live(refs, block, layout.plan)] for block in range(4)]
    assert [high - low for low, high in bounds] == [16, 4, 0, 0]


def test_weights_are_fetched_once():
    """One buffer, and the same block at every point of the grid."""
    _, spec = tpu._Layout(tpu.plan(tpu.Shape(64, 300, 3, 4, 4, 4), backward=False), ragged=False).fixed(
        jnp.ones((128, 512))
    )
    assert spec.block_shape == (128, 512)
    assert spec.pipeline_mode.buffer_count == 1
    assert {tuple(map(int, spec.index_map(row, block))) for row in range(2) for block in range(4)} == {(0, 0)}


other_cells = pytest.mark.parametrize(
    ("cell", "arguments", "part"),
    [
        ({"peepholes": True}, {}, "peepholes"),
        ({"projection": 2}, {}, "projection"),
        ({"layer_norm": True}, {}, "layer norm"),
        ({"coupled": True}, {}, "coupled gates"),
        ({}, {"options": LSTMOptions(cell_clip=1.0)}, "clips"),
        ({}, {"options": LSTMOptions(preactivation_clip=1.0)}, "clips"),
        ({}, {"options": LSTMOptions(activation="relu")}, "other activations"),
        ({}, {"options": LSTMOptions(recurrent_activation="hard_sigmoid")}, "other activations"),
        ({}, {"options": LSTMOptions(output_activation="linear")}, "other activations"),
        ({}, {"dropout": Dropout(zoneout_c=0.1), "deterministic": True}, "zoneout"),
        ({}, {"dropout": Dropout(recurrent=0.1), "key": KEY}, "recurrent dropout"),
    ],
)


@other_cells
def test_other_cells_are_refused(cell, arguments, part, monkeypatch):
    params = jax.eval_shape(lambda: lstm.init(KEY, INPUTS, UNITS, **cell))
    params = jax.tree.map(lambda leaf: np.ones(leaf.shape, leaf.dtype), params)
    xs = np.ones((2, 4, INPUTS), np.float32)
    with pytest.raises(
        ValueError, match=f"'pallas_tpu' cannot run here: it computes the standard cell, without {part}"
    ):
        lstm.apply(params, xs, implementation="pallas_tpu", **arguments)
    on_a_tpu(monkeypatch)
    said = lstm.dispatch(params, xs, **arguments)
    assert said == f"fused runs\npallas_tpu does not: it computes the standard cell, without {part}"


@slow
@other_cells
def test_other_cells_run_by_the_fused_path(cell, arguments, part, monkeypatch):
    del part
    params, xs = lstm.init(KEY, INPUTS, UNITS, **cell), jnp.ones((2, 4, INPUTS))
    on_a_tpu(monkeypatch)
    same(lstm.apply(params, xs, **arguments), lstm.apply(params, xs, implementation="fused", **arguments))


@pytest.mark.usefixtures("untyped")
def test_weights_that_do_not_fit_are_refused_with_the_numbers(monkeypatch):
    shape = jax.ShapeDtypeStruct
    params = jax.eval_shape(lambda: lstm.init(KEY, 2048, 2048))
    xs = shape((8, 4, 2048), jnp.float32)
    text = r"weights of 128\.0 MiB and a block of one step do not fit into 64 MiB of VMEM"
    with pytest.raises(ValueError, match=text):
        jax.eval_shape(partial(lstm.apply, implementation="pallas_tpu"), params, xs)
    on_a_tpu(monkeypatch)
    params, xs = jax.tree.map(lambda leaf: jnp.zeros(leaf.shape), (params, xs))
    assert lstm.dispatch(params, xs).splitlines()[0] == "fused runs"


def test_auto_leaves_it_to_those_who_name_it(monkeypatch):
    """It has never run on a TPU."""
    params, xs = lstm.init(KEY, INPUTS, UNITS), jnp.ones((2, 4, INPUTS))
    assert lstm.dispatch(params, xs).splitlines() == ["fused runs", "pallas_tpu does not: there is no TPU here"]
    on_a_tpu(monkeypatch)
    runs, why = lstm.dispatch(params, xs).splitlines()
    assert runs == "fused runs"
    assert why == "pallas_tpu does not: nobody has timed it on a TPU; implementation='pallas_tpu' runs it"
    assert "stand_in" not in str(jax.make_jaxpr(lstm.apply)(params, xs))
    assert lstm.dispatch(params, xs, implementation="pallas_tpu") == "pallas_tpu runs"
    jax.clear_caches()


def test_a_dtype_that_a_tpu_lacks_is_refused_there(monkeypatch):
    params, xs = lstm.init(KEY, INPUTS, UNITS, dtype=jnp.float16), jnp.ones((2, 4, INPUTS), jnp.float16)
    on_a_tpu(monkeypatch)
    assert lstm.dispatch(params, xs).splitlines()[1] == (
        "pallas_tpu does not: a TPU has bfloat16 and float32, not float16"
    )


LOWERED = {
    "dtype": [jnp.float32, jnp.bfloat16],
    "precision": ["default", "highest", "tensorfloat32"],
    "wide": [False, True],
}


@pytest.mark.parametrize(
    tuple(LOWERED),
    [
        pytest.param(*row, marks=[] if row == (jnp.float32, "default", False) else slow)
        for row in itertools.product(*LOWERED.values())
    ],
)
def test_lowers_for_a_tpu(dtype, precision, wide):
    """As far as JAX itself goes; tests/aot compiles."""
    arrays, times = example(12, 7, lengths=True, resets=True)
    arrays = jax.tree.map(lambda leaf: leaf.astype(dtype), arrays)
    times = {name: np.asarray(array, np.int32 if name == "lengths" else bool) for name, array in times.items()}

    def slopes(arrays, times):
        return jax.grad(lambda arrays: lstm.apply(**arrays, **times, implementation="pallas_tpu")[0].sum())(arrays)

    with jax.enable_x64(wide), jax.default_matmul_precision(precision):
        for given in ({}, times):
            program = jax.export.export(jax.jit(slopes), platforms=["tpu"])(arrays, given).mlir_module()
            assert program.count("tpu_custom_call") >= 2


@pytest.mark.parametrize("time", [1, 2, 3, 5, 17, 33, 100, 512])
@pytest.mark.parametrize("rows", [1, 8, 128, 300])
@pytest.mark.parametrize("backward", [False, True])
def test_little_of_the_last_block_is_empty(time, rows, backward):
    made = tpu.plan(tpu.Shape(time, rows, 256, 256, 2, 4), backward=backward, save=True)
    assert made.steps % made.chunk == 0
    assert time <= made.steps * made.step_blocks <= max(time * 1.25, time + 7)
    assert made.rows * made.row_blocks < rows + 16 * made.row_blocks
    assert made.bytes <= tpu.SHARE * tpu.VMEM


def test_what_a_kernel_says_that_it_costs():
    params, xs = lstm.init(KEY, 128, 128), jnp.ones((8, 160, 128))
    run = partial(lstm.apply, implementation="pallas_tpu")
    (cost,) = {call.params["cost_estimate"] for call in calls(jax.make_jaxpr(run)(params, xs).jaxpr)}
    numbers = 8 * 160 * 128
    assert (cost.flops, cost.transcendentals) == (8 * numbers * 256, 5 * numbers)
    arrays = 2 * numbers + 4 * 128 * 256 + 4 * 128 + 4 * 8 * 128
    assert cost.bytes_accessed == 4 * arrays


@pytest.mark.usefixtures("untyped")
def test_sizes_left_open_are_refused():
    (time,) = jax.export.symbolic_shape("time")
    params = lstm.init(KEY, INPUTS, UNITS)
    with pytest.raises(ValueError, match="sizes that are known"):
        jax.eval_shape(
            partial(lstm.apply, implementation="pallas_tpu"),
            params,
            jax.ShapeDtypeStruct((2, time, INPUTS), jnp.float32),
        )


@slow
@pytest.mark.parametrize("layer", [bidirectional, stack], ids=["bidirectional", "stack"])
def test_layers_of_it(layer):
    units = UNITS if layer is bidirectional else (UNITS, 4)
    params, xs = layer.init(KEY, INPUTS, units), jax.random.normal(KEY, (2, 6, INPUTS))

    def slopes(implementation):
        def loss(params, xs):
            outputs = layer.apply(params, xs, lengths=jnp.array([4, 6]), implementation=implementation)
            return sum((leaf**2).sum() for leaf in jax.tree.leaves(outputs)), outputs

        return jax.jit(jax.grad(loss, argnums=(0, 1), has_aux=True))(params, xs)

    same(slopes("pallas_tpu"), slopes("scan"))


def test_vmap_gives_it_more_rows_and_not_more_calls():
    params, xs = lstm.init(KEY, INPUTS, UNITS), jnp.ones((6, 4, 5, INPUTS))
    run = jax.vmap(lambda xs, length: lstm.apply(params, xs, lengths=length, implementation="pallas_tpu"))
    found = list(calls(jax.make_jaxpr(run)(xs, jnp.full((6, 4), 5)).jaxpr))
    assert found
    for call in found:
        assert "float32[5,24,128]" in [str(given.aval) for given in call.invars]


def calls(jaxpr):
    """The kernels of a program, those in its parts included."""
    for eqn in jaxpr.eqns:
        if eqn.primitive.name == "pallas_call":
            yield eqn
        else:
            for part in jax.tree.leaves(list(eqn.params.values()), is_leaf=lambda leaf: hasattr(leaf, "eqns")):
                yield from calls(part) if hasattr(part, "eqns") else ()


def test_what_a_gradient_keeps():
    """z and c of each step, and what is there already: x and h."""
    params, xs = lstm.init(KEY, INPUTS, UNITS), jnp.ones((2, 50, INPUTS))
    call = lambda params, xs: lstm.apply(params, xs, implementation="pallas_tpu")[0]  # noqa: E731
    pull = jax.eval_shape(lambda params, xs: jax.vjp(call, params, xs)[1], params, xs)
    assert sum(leaf.size for leaf in jax.tree.leaves(pull) if leaf.ndim == 3) / 100 == 4 * UNITS + 2 * UNITS + INPUTS


class TestStandIn:
    """A wrong kernel and a wrong transpose, so that it shows which of them was used."""

    def test_a_kernel_is_computed_and_its_function_differentiated(self):
        call = partial(custom_primitive.call, lambda x: jnp.sin(x), lambda x: x * 0 + 7)
        assert call(2.0) == 7
        assert jax.jit(call)(2.0) == 7
        np.testing.assert_allclose(jax.jvp(call, (2.0,), (1.0,)), (7, np.cos(2.0)), rtol=1e-6)
        np.testing.assert_allclose(jax.grad(call)(2.0), np.cos(2.0), rtol=1e-6)
        np.testing.assert_allclose(jax.grad(jax.grad(jax.checkpoint(call)))(2.0), -np.sin(2.0), rtol=1e-6)
        twice = partial(custom_primitive.call, lambda x: 2 * x, lambda x: 7 * x)
        assert jax.linear_transpose(twice, 1.0)(1.0) == (2,)
        xs = jnp.arange(3.0)
        np.testing.assert_array_equal(jax.vmap(call)(xs), [7, 7, 7])
        np.testing.assert_allclose(jax.vmap(jax.grad(call))(xs), np.cos(xs), rtol=1e-6)

    def test_a_linear_function_has_the_transpose_that_is_given(self):
        def call(factor, x):
            return custom_primitive.linear(lambda r, x: r * x, lambda r, out: 10 * r * out, factor, x)

        assert call(3.0, 2.0) == 6
        assert jax.jvp(partial(call, 3.0), (2.0,), (1.0,)) == (6, 3)
        assert jax.grad(call, argnums=1)(3.0, 2.0) == 30
        assert jax.grad(call)(3.0, 2.0) == 2
        assert jax.jvp(jax.grad(call, argnums=1), (3.0, 2.0), (1.0, 0.0)) == (30, 10)
        ones = jnp.ones(4)
        np.testing.assert_array_equal(jax.vmap(call)(3 * ones, 2 * ones), 6 * ones)
        np.testing.assert_array_equal(jax.vmap(jax.grad(call, argnums=1), in_axes=(0, None))(3 * ones, 2.0), 30 * ones)
        np.testing.assert_allclose(jax.linear_transpose(partial(call, 3.0), 2.0)(1.0), (30,))
        one = jax.grad(lambda x: jax.vmap(call, in_axes=(0, None))(3 * ones, x).sum())(2.0)
        assert one == 4 * 30


@slow
def test_float64_state_of_float32_inputs(x64):
    del x64
    params, xs = jax.tree.map(
        partial(jnp.asarray, dtype=jnp.float32), (lstm.init(KEY, INPUTS, UNITS), jnp.ones((2, 4, INPUTS)))
    )
    state = LSTMState(h=jnp.zeros((2, UNITS), jnp.float32), c=jnp.ones((2, UNITS), jnp.float64))
    outputs = [lstm.apply(params, xs, state, implementation=name) for name in ("pallas_tpu", "scan")]
    assert outputs[0][1].c.dtype == jnp.float64
    same(*outputs)
