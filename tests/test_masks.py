"""`mask`, `return_states` and `time_major` of LSTMs, on every implementation and composition."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import reference

from lstmjax import LSTMState, bidirectional, hierarchy, lstm, pooling, stack, windows

BATCH, TIME, INPUTS, UNITS = 4, 6, 3, 2
IMPLEMENTATIONS = ("scan", "fused", "pallas_tpu")
RNG = np.random.default_rng(0)
XS = np.float32(RNG.normal(size=(BATCH, TIME, INPUTS)))
MASK = np.array(
    [[1, 0, 1, 1, 0, 1], [0, 0, 0, 1, 1, 1], [0, 0, 0, 0, 0, 0], [1, 1, 1, 1, 1, 1]], bool
)  # holes, left padding, none, all
RESETS = RNG.random((BATCH, TIME)) < 0.3
PARAMS = lstm.init(jax.random.key(1), INPUTS, UNITS)
STATE = LSTMState(*(np.float32(RNG.normal(size=(BATCH, UNITS))) for _ in "hc"))
DIRTY = np.where(MASK[..., None], XS, np.nan)


def by_rows(run):
    """`run(xs, state, resets)` of the valid steps of each row alone; its outputs at their own steps, and the state."""
    ys, states = np.zeros((BATCH, TIME, UNITS)), []
    for row in range(BATCH):
        steps = np.flatnonzero(MASK[row])
        at = LSTMState(STATE.h[row], STATE.c[row])
        outputs, after = run(XS[row, steps], at, RESETS[row, steps])
        ys[row, steps] = outputs
        states.append(after)
    return ys, LSTMState(*(np.stack(part) for part in zip(*states, strict=True)))


def expected(reverse):
    def run(xs, state, resets):
        return reference.lstm(PARAMS, xs, state, resets=resets, reverse=reverse)

    return by_rows(run)


def close(actual, right, tolerance=2e-6):
    for one, other in zip(jax.tree.leaves(actual), jax.tree.leaves(right), strict=True):
        np.testing.assert_allclose(one, other, rtol=tolerance, atol=tolerance)


@pytest.mark.parametrize("reverse", [False, True])
@pytest.mark.parametrize("implementation", IMPLEMENTATIONS)
def test_values_are_those_of_the_valid_steps_alone(implementation, reverse):
    how = {"resets": RESETS, "reverse": reverse, "implementation": implementation}
    close(lstm.apply(PARAMS, DIRTY, STATE, mask=MASK, **how), expected(reverse))


@pytest.mark.parametrize("implementation", IMPLEMENTATIONS)
def test_a_mask_of_lengths_gives_what_lengths_give(implementation):
    """Values and gradients; the mask is an argument of the program, so that nothing is known of it."""
    lengths = np.array([6, 0, 3, 1])
    mask = np.arange(TIME) < lengths[:, None]

    @jax.jit
    def run(params, xs, lengths=None, mask=None):
        def loss(params, xs):
            ys, state = lstm.apply(
                params, xs, STATE, lengths=lengths, mask=mask, resets=RESETS, implementation=implementation
            )
            return jnp.sum(ys * jnp.arange(ys.size).reshape(ys.shape)) + jnp.sum(state.c), (ys, state)

        return jax.grad(loss, (0, 1), has_aux=True)(params, xs)

    close(run(PARAMS, XS, mask=mask), run(PARAMS, XS, lengths=lengths))


@pytest.mark.parametrize("implementation", IMPLEMENTATIONS)
def test_gradients_with_holes(implementation):
    """Those of the plain scan over the valid steps of each row; none where nothing is valid, NaN there or not."""

    def loss(params, xs):
        ys, state = lstm.apply(params, xs, STATE, mask=MASK, resets=RESETS, implementation=implementation)
        return jnp.sum(ys * jnp.arange(ys.size).reshape(ys.shape)) + jnp.sum(state.h * state.c)

    def of_rows(params, xs):
        total = 0
        weights = np.arange(BATCH * TIME * UNITS).reshape(BATCH, TIME, UNITS)
        for row in range(BATCH):
            steps = np.flatnonzero(MASK[row])
            at = LSTMState(STATE.h[row], STATE.c[row])
            ys, state = lstm.apply(params, xs[row, steps], at, resets=RESETS[row, steps], implementation="scan")
            total += jnp.sum(ys * weights[row, steps]) + jnp.sum(state.h * state.c)
        return total

    of_params, of_xs = jax.jit(jax.grad(loss, (0, 1)))(PARAMS, DIRTY)
    close((of_params, of_xs), jax.jit(jax.grad(of_rows, (0, 1)))(PARAMS, XS), 1e-5)
    assert not of_xs[~MASK].any()


COMPOSITIONS = {
    "lstm": (lstm, PARAMS, {}),
    "bidirectional": (bidirectional, bidirectional.init(jax.random.key(2), INPUTS, UNITS), {}),
    "stack": (stack, stack.init(jax.random.key(3), INPUTS, (INPUTS, INPUTS)), {"residual_from": 0}),
    "stack of two directions": (stack, stack.init(jax.random.key(4), INPUTS, (UNITS, UNITS), bidirectional=True), {}),
}


@pytest.mark.parametrize("return_sequences", [True, False])
@pytest.mark.parametrize("reverse", [False, True])
@pytest.mark.parametrize("name", COMPOSITIONS)
def test_compositions(name, reverse, return_sequences):
    """A row with holes gives what its valid steps give alone, NaN elsewhere or not."""
    module, params, arguments = COMPOSITIONS[name]
    arguments = {**arguments, "return_sequences": return_sequences, "reverse": reverse}
    ys, state = module.apply(params, DIRTY, mask=MASK, resets=RESETS, **arguments)
    for row in range(BATCH):
        steps = np.flatnonzero(MASK[row])
        alone, after = module.apply(params, XS[row, steps], resets=RESETS[row, steps], **arguments)
        close(ys[row, steps] if return_sequences else ys[row], alone)
        close(jax.tree.map(lambda leaf, row=row: leaf[row], state), after)
        if return_sequences:
            assert not ys[row, ~MASK[row]].any()


@pytest.mark.parametrize("implementation", ["scan", "fused"])
@pytest.mark.parametrize("name", COMPOSITIONS)
def test_states_after_every_step(name, implementation):
    """The state after step t is the final state of the sequence cut there, which also holds under a gradient."""
    module, params, arguments = COMPOSITIONS[name]
    if "bidirectional" in name or "directions" in name:
        arguments = {**arguments, "merge": "concat"}
    how = {**arguments, "implementation": implementation}

    def loss(xs, resets):
        ys, states = module.apply(params, xs, mask=MASK, resets=resets, return_states=True, **how)
        return sum(jnp.sum(leaf**2) for leaf in jax.tree.leaves((ys, states))), (ys, states)

    for resets in (None, RESETS):
        slopes, (ys, states) = jax.grad(loss, has_aux=True)(XS, resets)
        plain = module.apply(params, XS, mask=MASK, resets=resets, return_states=True, **how)
        close((ys, states), plain)
        close(ys, module.apply(params, XS, mask=MASK, resets=resets, **how)[0])
        if name in ("lstm", "stack"):
            for t in range(TIME):
                cut = {"mask": MASK[:, : t + 1], "resets": None if resets is None else resets[:, : t + 1]}
                _, after = module.apply(params, XS[:, : t + 1], **cut, **how)
                close(jax.tree.map(lambda leaf, t=t: leaf[:, t], states), after)
        by_scan = jax.grad(
            lambda xs, resets=resets: sum(
                jnp.sum(leaf**2)
                for leaf in jax.tree.leaves(
                    module.apply(
                        params, xs, mask=MASK, resets=resets, return_states=True, **arguments, implementation="scan"
                    )
                )
            )
        )(XS)
        close(slopes, by_scan, 1e-5)


@pytest.mark.parametrize("returns", [{}, {"return_states": True}, {"return_sequences": False}])
@pytest.mark.parametrize("name", COMPOSITIONS)
def test_time_major(name, returns):
    module, params, arguments = COMPOSITIONS[name]
    arguments = {**arguments, **returns}
    ys, state = module.apply(params, XS, mask=MASK, resets=RESETS, **arguments)
    first = lambda leaf: np.moveaxis(leaf, 1, 0)  # noqa: E731
    actual = module.apply(params, first(XS), mask=MASK.T, resets=RESETS.T, time_major=True, **arguments)
    right = first(ys) if returns.get("return_sequences", True) else ys
    close(actual, (right, jax.tree.map(first, state) if "return_states" in returns else state), 0)


def test_the_kernel_refuses_states_by_name():
    with pytest.raises(ValueError, match=r"'pallas_tpu' cannot run here: it keeps no states: leave out return_states"):
        lstm.apply(PARAMS, XS, return_states=True, implementation="pallas_tpu")


def test_lengths_and_mask_together_are_refused():
    for apply in (lstm.apply, lambda params, xs, **how: windows.truncated_bptt(lstm.apply, 2)(params, xs, **how)):
        with pytest.raises(ValueError, match=r"lengths and mask both tell which steps are valid: pass one of them"):
            apply(PARAMS, XS, lengths=np.full(BATCH, 2), mask=MASK)


@pytest.mark.parametrize("return_sequences", [True, False])
@pytest.mark.parametrize("reverse", [False, True])
def test_truncated(reverse, return_sequences):
    """Values are those of the whole; a mask of lengths has their gradient."""
    run = windows.truncated_bptt(lstm.apply, 4)
    how = {"resets": RESETS, "reverse": reverse, "return_sequences": return_sequences}
    close(run(PARAMS, DIRTY, STATE, mask=MASK, **how), lstm.apply(PARAMS, XS, STATE, mask=MASK, **how))
    ys, after = run(PARAMS, XS, STATE, mask=MASK, **how)
    time_major = {**how, "resets": RESETS.T, "mask": MASK.T, "time_major": True}
    turned, same = run(PARAMS, np.moveaxis(XS, 1, 0), STATE, **time_major)
    close((np.moveaxis(turned, 0, 1) if return_sequences else turned, same), (ys, after), 0)
    with pytest.raises(ValueError, match="return_states=True is not for truncated_bptt"):
        run(PARAMS, XS, return_states=True)
    lengths = np.array([6, 0, 3, 4])

    def slopes(**valid):
        return jax.grad(lambda xs: sum(leaf.sum() for leaf in jax.tree.leaves(run(PARAMS, xs, STATE, **valid, **how))))(
            XS
        )

    close(slopes(mask=np.arange(TIME) < lengths[:, None]), slopes(lengths=lengths))


@pytest.mark.parametrize("reverse", [False, True])
@pytest.mark.parametrize("valid", [(4, 6), (2, 4), (0, 2)])
def test_truncated_stops_no_gradient_where_valid_steps_are_on_one_side(valid, reverse):
    """All valid steps are in one piece: gradients are those of `apply`, of the final state and into the first one."""
    mask = (np.arange(TIME) >= valid[0]) & (np.arange(TIME) < valid[1])
    mask = np.broadcast_to(mask, (BATCH, TIME))

    def slopes(apply):
        def loss(xs, state):
            ys, after = apply(PARAMS, xs, state, mask=mask, reverse=reverse)
            return jnp.sum(ys**2) + jnp.sum(after.h * after.c)

        return jax.grad(loss, (0, 1))(XS, STATE)

    close(slopes(windows.truncated_bptt(lstm.apply, 2)), slopes(lstm.apply))


POOLS = {
    "max": (pooling.global_max, lambda xs: xs.max(0)),
    "mean": (pooling.global_mean, lambda xs: xs.mean(0)),
    "last": (pooling.last, lambda xs: xs[-1]),
}


@pytest.mark.parametrize("name", POOLS)
def test_pools(name):
    pool, alone = POOLS[name]
    right = [alone(XS[row, MASK[row]]) if MASK[row].any() else np.zeros(INPUTS) for row in range(BATCH)]
    close(pool(DIRTY, mask=MASK), np.stack(right))


@pytest.mark.parametrize(("window", "stride"), [(2, None), (2, 1), (3, 2), (2, 3)])
def test_windows_of_valid_steps(window, stride):
    by = stride or window
    right = np.zeros((BATCH, -(-TIME // by), INPUTS))
    for row in range(BATCH):
        for j in range(right.shape[1]):
            span = slice(j * by, j * by + window)
            if MASK[row, span].any():
                right[row, j] = XS[row, span][MASK[row, span]].max(0)
    close(pooling.max_over_windows(DIRTY, window, stride=stride, mask=MASK), right)


@pytest.mark.parametrize("code", ["final", "last", "max", "mean"])
def test_hierarchy(code):
    """Words and utterances with holes: what the valid ones give alone, and 0 elsewhere."""
    params = hierarchy.init(jax.random.key(5), INPUTS, (UNITS, UNITS), vocabulary=9, bidirectional=True)
    tokens = RNG.integers(0, 9, (2, 3, 4))
    words, utterances = RNG.random((2, 3, 4)) < 0.6, np.array([[1, 0, 1], [0, 1, 1]], bool)
    wrong = np.where(words & utterances[..., None], tokens, 999)
    ys = hierarchy.apply(params, wrong, mask=(words, utterances), code=code)
    assert not ys[~utterances].any()
    for row in range(2):
        codes = []
        for utterance in np.flatnonzero(utterances[row]):
            steps = tokens[row, utterance][words[row, utterance]]
            xs = params.levels[0].embedding.table[steps]
            codes.append(hierarchy.encode(params.levels[0].encoder, xs, code=code))
        alone, _ = bidirectional.apply(params.levels[1].encoder, jnp.stack(codes))
        close(ys[row, utterances[row]], alone)


@pytest.mark.parametrize("code", ["final", "max"])
def test_codes_of_time_major_sequences(code):
    right = hierarchy.encode(PARAMS, XS, mask=MASK, resets=RESETS, code=code)
    first = np.moveaxis(XS, 1, 0)
    close(hierarchy.encode(PARAMS, first, mask=MASK.T, resets=RESETS.T, code=code, time_major=True), right, 0)


@pytest.mark.parametrize("name", ["return_states", "return_sequences"])
def test_a_code_has_no_steps(name):
    with pytest.raises(TypeError, match=f"{name} is not for hierarchy.encode"):
        hierarchy.encode(PARAMS, XS, **{name: True})


def test_hierarchy_refuses_what_does_not_fit():
    params = hierarchy.init(jax.random.key(5), INPUTS, (UNITS, UNITS), vocabulary=9)
    tokens, words = np.ones((2, 3, 4), int), np.ones((2, 3, 4), bool)
    with pytest.raises(ValueError, match=r"lengths\[0\] and mask\[0\] both tell which steps are valid"):
        hierarchy.apply(params, tokens, lengths=(np.full((2, 3), 2), None), mask=(words, None))
    with pytest.raises(ValueError, match=r"mask\[1\] must have shape \(2, 3\)"):
        hierarchy.apply(params, tokens, mask=(None, words))
    with pytest.raises(ValueError, match=r"mask must be a tuple with an entry for each of the 2 levels"):
        hierarchy.apply(params, tokens, mask=words)
