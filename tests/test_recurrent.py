"""`recurrent.apply` with cells that are not in the library, against a loop in Python."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from lstmjax import LSTMState, lstm, recurrent

BATCH, TIME, INPUTS, UNITS = 3, 5, 2, 4


def leaky(a, x, h):
    h = a * h + (1 - a) * x.sum()
    return h, h


def gru(params, x, h):
    z, r = jnp.split(jax.nn.sigmoid(x @ params["w_x"] + h @ params["w_h"]), 2)
    n = jnp.tanh(x @ params["w_n"] + (r * h) @ params["u_n"])
    h = (1 - z) * n + z * h
    return h, h


def four(params, x, state):
    """A state that is a dict of four arrays, an integer and a matrix among them, and an output that is a tree."""
    memory = 0.9 * state["memory"] + jnp.outer(x["left"], x["right"])
    read = jnp.tanh(memory @ params) + state["trace"]
    after = {
        "memory": memory,
        "trace": 0.5 * state["trace"] + x["left"],
        "count": state["count"] + 1,
        "total": state["total"] + read.sum(),
    }
    return {"read": read, "pair": (after["total"], memory)}, after


def normal(*shape):
    return np.random.default_rng(abs(hash(shape)) % 1000).normal(size=shape)


def make(name):
    """A step, its params, inputs, the state to start from and one that resets restore."""
    if name == "leaky":
        return leaky, np.float64(0.7), normal(BATCH, TIME, INPUTS), normal(BATCH, UNITS), normal(UNITS)
    if name == "gru":
        shapes = {"w_x": (INPUTS, 2 * UNITS), "w_h": (UNITS, 2 * UNITS), "w_n": (INPUTS, UNITS), "u_n": (UNITS, UNITS)}
        params = {key: normal(*shape) for key, shape in shapes.items()}
        return gru, params, normal(BATCH, TIME, INPUTS), normal(BATCH, UNITS), normal(UNITS)
    xs = {"left": normal(BATCH, TIME, 2), "right": normal(BATCH, TIME, 3)}

    def state(*batch):
        arrays = {"memory": normal(*batch, 2, 3), "trace": normal(*batch, 2), "total": normal(*batch)}
        return arrays | {"count": np.full(batch, 7, np.int32)}

    return four, normal(3), xs, state(BATCH), state()


CELLS = ("leaky", "gru", "four")
LENGTHS = np.array([5, 0, 3])
MASK = np.array([[1, 1, 0, 1, 1], [0, 0, 0, 0, 0], [0, 0, 1, 0, 1]], bool)
RESETS = np.array([[0, 0, 0, 1, 0], [1, 0, 0, 0, 0], [0, 1, 0, 0, 1]], bool)


def loop(step, params, xs, state, *, lengths=None, mask=None, resets=None, initial=None, reverse=False):
    """All outputs, 0 where there is none, and the state after every step, by Python's own loops."""
    time, rows = len(jax.tree.leaves(xs)[0][0]), []
    for row in range(BATCH):
        before = jax.tree.map(lambda leaf, row=row: jnp.asarray(leaf[row]), state)
        fresh = jax.tree.map(jnp.zeros_like, before) if initial is None else jax.tree.map(jnp.asarray, initial)
        outputs: list = [None] * time
        states: list = [None] * time
        last = None
        for t in reversed(range(time)) if reverse else range(time):
            valid = t < lengths[row] if lengths is not None else mask is None or mask[row, t]
            here = jax.tree.map(lambda leaf, row=row, t=t: leaf[row, t], xs)
            y, after = step(params, here, fresh if resets is not None and resets[row, t] else before)
            before = after if valid else before
            outputs[t] = y if valid else jax.tree.map(lambda leaf: 0 * leaf, y)
            states[t] = before
            last = y if valid else jax.tree.map(lambda leaf: 0 * leaf, y) if last is None else last
        rows.append((stack(outputs), stack(states), last, before))
    return stack(rows)


def stack(trees):
    return jax.tree.map(lambda *leaves: jnp.stack([jnp.asarray(leaf) for leaf in leaves]), *trees)


ROWS = {
    "plain": {},
    "lengths": {"lengths": LENGTHS},
    "mask with holes": {"mask": MASK},
    "resets": {"resets": RESETS},
    "reverse": {"reverse": True},
    "lengths, resets, reverse": {"lengths": LENGTHS, "resets": RESETS, "reverse": True},
    "mask, resets": {"mask": MASK, "resets": RESETS},
    "mask, resets, reverse": {"mask": MASK, "resets": RESETS, "reverse": True},
}
RETURNS = {
    "sequences": lambda ys, states, last, final: (ys, final),
    "states": lambda ys, states, last, final: (ys, states),
    "last": lambda ys, states, last, final: (last, final),
    "last and states": lambda ys, states, last, final: (last, states),
}


def flags(returns):
    return {"return_sequences": "last" not in returns, "return_states": "states" in returns}


def weigh(tree):
    """A number in which every float counts differently."""
    leaves = [leaf for leaf in jax.tree.leaves(tree) if jnp.issubdtype(leaf.dtype, jnp.floating)]
    return sum(jnp.sum(jnp.sin(leaf) * jnp.linspace(0.5, 1, leaf.size).reshape(leaf.shape)) for leaf in leaves)


def close(actual, right, tolerance=1e-12):
    assert jax.tree.structure(actual) == jax.tree.structure(right)
    for one, other in zip(jax.tree.leaves(actual), jax.tree.leaves(right), strict=True):
        assert (one.shape, one.dtype) == (other.shape, other.dtype)
        np.testing.assert_allclose(one, other, rtol=tolerance, atol=tolerance)


@pytest.mark.parametrize("row", ROWS.values(), ids=ROWS)
@pytest.mark.parametrize("cell", CELLS)
def test_values_and_gradients(cell, row, x64):
    step, params, xs, state, initial = make(cell)
    given = {"initial": initial} if "resets" in row else {}
    returns = list(RETURNS)[list(ROWS.values()).index(row) % len(RETURNS)]
    chosen = RETURNS[returns]

    def floats(function):
        """Differentiates in all floats of params, xs, state and initial."""
        arrays = params, xs, state, given
        leaves, tree = jax.tree.flatten(arrays)
        at = [k for k, leaf in enumerate(leaves) if leaf.dtype == np.float64]

        def run(chosen_leaves):
            params, xs, state, given = jax.tree.unflatten(
                tree, [chosen_leaves[at.index(k)] if k in at else leaf for k, leaf in enumerate(leaves)]
            )
            result = function(params, xs, state, **given)
            return weigh(result), result

        return jax.jit(jax.grad(run, has_aux=True))([jnp.asarray(leaves[k]) for k in at])

    actual = floats(
        lambda params, xs, state, **given: recurrent.apply(step, params, xs, state, **row, **given, **flags(returns))
    )
    right = floats(lambda params, xs, state, **given: chosen(*loop(step, params, xs, state, **row, **given)))
    close(actual, right)


@pytest.mark.parametrize("returns", RETURNS)
@pytest.mark.parametrize("cell", CELLS)
def test_what_is_returned(cell, returns, x64):
    """Every combination of outputs and states, of a mask that leaves one sequence without a valid step."""
    step, params, xs, state, initial = make(cell)
    row = {**ROWS["mask, resets, reverse"], "initial": initial}
    close(
        recurrent.apply(step, params, xs, state, **row, **flags(returns)),
        RETURNS[returns](*loop(step, params, xs, state, **row)),
    )


@pytest.mark.parametrize("cell", CELLS)
def test_batch_axes_and_vmap(cell, x64):
    step, params, xs, state, initial = make(cell)

    def run(xs, state, mask, resets):
        return recurrent.apply(step, params, xs, state, mask=mask, resets=resets, initial=initial)

    right = run(xs, state, MASK, RESETS)
    close(jax.vmap(run)(xs, state, MASK, RESETS), right)
    split = lambda leaf: leaf.reshape(1, BATCH, *leaf.shape[1:])  # noqa: E731
    close(run(*jax.tree.map(split, (xs, state, MASK, RESETS))), jax.tree.map(split, right))


@pytest.mark.parametrize("cell", CELLS)
@pytest.mark.parametrize("reverse", [False, True])
def test_pieces_equal_the_whole(cell, reverse, x64):
    step, params, xs, state, _ = make(cell)

    def run(span, state):
        part = jax.tree.map(lambda leaf: leaf[:, span], xs)
        return recurrent.apply(step, params, part, state, mask=MASK[:, span], resets=RESETS[:, span], reverse=reverse)

    spans = [slice(0, 2), slice(2, TIME)]
    outputs, after = {}, state
    for span in spans[::-1] if reverse else spans:
        outputs[span.start], after = run(span, after)
    ys = jax.tree.map(lambda *parts: jnp.concatenate(parts, axis=1), *(outputs[span.start] for span in spans))
    close((ys, after), run(slice(None), state))


@pytest.mark.parametrize("returns", RETURNS)
def test_time_major(returns, x64):
    step, params, xs, state, _ = make("gru")
    how = flags(returns)
    ys, states = recurrent.apply(step, params, xs, state, mask=MASK, resets=RESETS, **how)
    first = lambda array, flag: np.moveaxis(array, 1, 0) if flag else array  # noqa: E731
    actual = recurrent.apply(step, params, first(xs, True), state, mask=MASK.T, resets=RESETS.T, time_major=True, **how)
    close(actual, (first(ys, how["return_sequences"]), first(states, how["return_states"])))


@pytest.mark.parametrize("checkpoint", [True, 2])
@pytest.mark.parametrize("returns", ["states", "last"])
def test_checkpoint_changes_no_value_and_no_gradient(checkpoint, returns, x64):
    step, params, xs, state, _ = make("four")

    def run(params, checkpoint=False):
        result = recurrent.apply(
            step, params, xs, state, mask=MASK, resets=RESETS, checkpoint=checkpoint, **flags(returns)
        )
        return weigh(result), result

    plain, kept = (jax.grad(run, has_aux=True)(params, c) for c in (False, checkpoint))
    close(kept, plain)


def test_nan_in_padding_reaches_neither_values_nor_gradients(x64):
    step, params, xs, state, _ = make("gru")
    dirty = np.where(MASK[..., None], xs, np.nan)
    run = lambda xs: weigh(recurrent.apply(step, params, xs, state, mask=MASK))  # noqa: E731
    clean, spoilt = (jax.value_and_grad(run)(each) for each in (xs, dirty))
    close(spoilt, clean)
    assert not clean[1][~MASK].any()


def test_no_steps(x64):
    step, params, xs, state, _ = make("four")
    none = jax.tree.map(lambda leaf: leaf[:, :0], xs)
    ys, after = recurrent.apply(step, params, none, state)
    assert ys["pair"][1].shape == (BATCH, 0, 2, 3)
    close(after, jax.tree.map(jnp.asarray, state))
    last, _ = recurrent.apply(step, params, none, state, return_sequences=False)
    close(last["read"], jnp.zeros((BATCH, 2)))


def test_the_scan_of_an_lstm_is_this_function():
    """With the step of an LSTM it is `lstm.apply(implementation="scan")`."""
    params = lstm.init(jax.random.key(0), INPUTS, UNITS)
    xs = np.float32(normal(BATCH, TIME, INPUTS))
    state = LSTMState(*(np.float32(normal(BATCH, UNITS)) for _ in "hc"))
    for row in ROWS.values():
        ours = recurrent.apply(lstm.step, params, xs, state, **row)
        close(ours, lstm.apply(params, xs, state, implementation="scan", **row), 1e-6)


def test_a_step_is_traced_once_and_lives_as_long_as_its_owner():
    traced = []

    def step(params, x, h):
        traced.append(None)
        return h, h + params * x

    arguments = 2.0, np.ones((BATCH, TIME, UNITS), np.float32), np.zeros((BATCH, UNITS), np.float32)
    first = recurrent.apply(step, *arguments)
    count = len(traced)
    close(recurrent.apply(step, *arguments), first)
    assert len(traced) == count
    kept = len(recurrent._programs)
    del step
    assert len(recurrent._programs) == kept - 1


class Cell:
    """A cell that is an object; all are equal."""

    def __init__(self, rate):
        self.rate, self.traced = rate, 0

    def step(self, params, x, h):
        self.traced += 1
        return h, h + self.rate * x

    __call__ = step

    def __eq__(self, other):
        return isinstance(other, Cell)

    def __hash__(self):
        return 0


def test_methods_and_equal_callables_have_programs_of_their_own():
    xs, h = np.ones((1, 2, 1), np.float32), np.zeros((1, 1), np.float32)
    cells = Cell(1.0), Cell(2.0)
    kept = len(recurrent._programs)
    for _ in range(2):
        for cell in cells:
            for step in (cell.step, cell):
                assert recurrent.apply(step, None, xs, h)[1] == 2 * cell.rate
    assert [cell.traced for cell in cells] == [2, 2]
    del cell, cells, step
    assert len(recurrent._programs) == kept


@pytest.mark.usefixtures("four_devices")
@pytest.mark.parametrize("returns", RETURNS)
def test_shard_map(returns):
    """Also where the mask alone is sharded."""
    xs = np.float32(normal(4, TIME, INPUTS))
    mask = np.arange(TIME) >= np.arange(4)[:, None]
    mesh = jax.make_mesh((4,), ("data",), axis_types=(jax.sharding.AxisType.Auto,))
    rows, whole = jax.sharding.PartitionSpec("data"), jax.sharding.PartitionSpec()

    def run(xs, mask):
        return recurrent.apply(leaky, 0.7, xs, jnp.zeros((len(xs), UNITS)), mask=mask, **flags(returns))

    sharded = jax.shard_map(run, mesh=mesh, in_specs=(rows, rows), out_specs=rows)
    close(jax.jit(sharded)(xs, mask), run(xs, mask), 1e-6)
    same = jax.shard_map(run, mesh=mesh, in_specs=(whole, rows), out_specs=rows)
    first = xs[:1]
    close(jax.jit(same)(first, mask), run(np.repeat(first, 4, axis=0), mask), 1e-6)


def test_no_steps_without_jit():
    with jax.disable_jit():
        ys, h = recurrent.apply(leaky, 0.7, np.zeros((2, 0, 1)), jnp.ones((2, 3)))
    assert ys.shape == (2, 0, 3)
    np.testing.assert_array_equal(h, 1)


def wrong(y_and_state):
    return lambda params, x, h: y_and_state(x, h)


XS, H = np.zeros((BATCH, TIME, 2), np.float32), np.zeros((BATCH, 2), np.float32)


@pytest.mark.parametrize(
    ("arguments", "kind", "text"),
    [
        ({"step": 3}, TypeError, r"step must be a function step\(params, x, state\) -> \(y, state\), got int"),
        ({"step": wrong(lambda x, h: h)}, TypeError, r"step must return \(y, state\), a tuple of two; got"),
        ({"step": wrong(lambda x, h: (h, (h, h)))}, TypeError, r"step must return a state like the one it takes"),
        ({"step": wrong(lambda x, h: (h, h[:1]))}, TypeError, r"step must return state as it takes it, float32 \(2,\)"),
        ({"step": wrong(lambda x, h: (h, h.astype("int32")))}, TypeError, r"float32 \(2,\); got int32 \(2,\)"),
        ({"xs": ()}, ValueError, r"xs must have at least one array"),
        ({"xs": np.zeros(3)}, ValueError, r"xs must have axes \[\*batch, time, features\]"),
        ({"xs": (XS, XS[:, :3])}, ValueError, r"all but the last the same; got"),
        ({"state": H[:2]}, ValueError, r"state must begin with \(3,\), the batch axes of xs; got shape \(2, 2\)"),
        ({"initial": (H[0], H[0])}, TypeError, r"initial must be a tree like state"),
        ({"initial": H}, ValueError, r"initial must have shape \(2,\)"),
        ({"lengths": LENGTHS, "mask": MASK}, ValueError, r"lengths and mask both tell which steps are valid"),
        ({"lengths": np.array([6, 0, 0])}, ValueError, r"lengths must lie between 0 and 5"),
        ({"lengths": MASK}, TypeError, r"lengths must be integers.* pass mask="),
        ({"mask": LENGTHS}, TypeError, r"mask must be bool"),
        ({"mask": MASK[:, :3]}, ValueError, r"mask must have shape \(3, 5\)"),
        ({"resets": RESETS[:, :3]}, ValueError, r"resets must have shape \(3, 5\)"),
        ({"reverse": 1}, TypeError, r"reverse must be"),
        ({"unroll": 0}, ValueError, r"unroll must be an integer of at least 1"),
        ({"hidden": 3}, TypeError, r"unknown argument 'hidden': recurrent.apply calls it state"),
    ],
)
def test_refusals(arguments, kind, text, untyped):
    right = {"step": lambda params, x, h: (h, h + x), "params": None, "xs": XS, "state": H}
    with pytest.raises(kind, match=text):
        recurrent.apply(**(right | arguments))
