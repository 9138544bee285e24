import functools
import re
from functools import partial

import hypothesis
import hypothesis.strategies as st
import jax
import jax.numpy as jnp
import numpy as np
import pytest
import reference

from lstmjax import (
    BidirectionalParams,
    Dropout,
    LevelParams,
    StackParams,
    bidirectional,
    embedding,
    hierarchy,
    lstm,
    pooling,
    stack,
    time_distributed,
)

KEY = jax.random.key(0)
CODES = ("final", "last", "max", "mean")
ENCODERS = {
    "lstm": {"units": (4, 5)},
    "learned state": {"units": (4, 5), "learned_state": True},
    "bidirectional": {"units": (4, 5), "bidirectional": True},
    "stacks": {"units": ((4, 3), (5, 5)), "bidirectional": True},
    "mixed": {"units": (4, (5, 2)), "bidirectional": (True, False)},
}


def conversations(seed=0, sizes=((3, 0, 7), (), (2, 5, 1, 4), (0,))):
    """Tokens [4, 4, 7] and the lengths of both levels: empty utterances and an empty conversation among them."""
    rng = np.random.default_rng(seed)
    words, utterances = np.zeros((len(sizes), 4), np.int32), np.array([len(c) for c in sizes], np.int32)
    for row, conversation in enumerate(sizes):
        words[row, : len(conversation)] = conversation
    return rng.integers(0, 11, (len(sizes), 4, 7)).astype(np.int32), (words, utterances)


def loop(params, tokens, lengths, code):
    """One utterance at a time, one conversation at a time, in NumPy, without padding, batches or lengths."""
    words, utterances = params.levels
    rows = []
    for row, count in enumerate(lengths[1]):
        said = [tokens[row, utterance, : lengths[0][row, utterance]] for utterance in range(count)]
        codes = [one_code(words.encoder, words.embedding.table[utterance], code) for utterance in said]
        ys, _ = one_sequence(utterances.encoder, np.array(codes).reshape(count, stack.outputs(words.encoder)))
        rows.append(np.concatenate([ys, np.zeros((tokens.shape[1] - count, ys.shape[-1]))]))
    return np.stack(rows)


def one_sequence(encoder, xs):
    """Outputs at each step, and the final h."""
    layers = encoder.layers if isinstance(encoder, StackParams) else (encoder,)
    ys, ends = reference.stack(StackParams(layers), xs, None)
    halves = ends[-1] if isinstance(layers[-1], BidirectionalParams) else (ends[-1],)
    return ys, np.concatenate([h for h, _ in halves])


def one_code(encoder, xs, code):
    ys, final = one_sequence(encoder, xs)
    if code == "final":
        return final
    if not len(ys):
        return np.zeros(ys.shape[1])
    if code == "max":
        return np.take_along_axis(ys, ys.real.argmax(axis=0)[None], axis=0)[0]  # of complex numbers too
    return ys[-1] if code == "last" else ys.mean(axis=0)


@functools.cache
def shapes_of(inputs, units, **options):
    return jax.eval_shape(lambda key: hierarchy.init(key, inputs, units, **options), KEY)


def drawn(inputs, units, seed=1, **options):
    """Parameters in the shapes of `hierarchy.init`, drawn by NumPy: none is the zero that it may start at."""
    shapes = shapes_of(inputs, units, **options)
    rng = np.random.default_rng(seed)
    return jax.tree.map(lambda leaf: rng.normal(scale=0.5, size=leaf.shape).astype(leaf.dtype), shapes)


def normal(*shape, seed=0):
    return np.random.default_rng(seed).normal(size=shape).astype(np.float32)


@pytest.mark.parametrize(
    ("encoder", "code"),
    [
        # "learned state" and "mixed" are made of what the first two of these have.
        *(pytest.param(name, "final", marks=pytest.mark.slow) for name in ("lstm", "bidirectional", "stacks")),
        *((name, "final") for name in ("learned state", "mixed")),
        *(("bidirectional", code) for code in CODES[1:]),
    ],
)
def test_is_the_double_loop_over_single_utterances(x64, encoder, code):
    params = drawn(3, vocabulary=11, dtype=jnp.float64, **ENCODERS[encoder])
    tokens, lengths = conversations()
    weight = np.float64(normal(4, 4, stack.outputs(params.levels[1].encoder)))

    def folded(params, tokens):
        ys = hierarchy.apply(params, tokens, lengths=lengths, code=code)
        return jnp.sum(weight * ys), ys

    (_, ys), gradient = jax.jit(jax.value_and_grad(folded, has_aux=True))(params, jnp.asarray(tokens))
    leaves, tree = jax.tree.flatten(jax.tree.map(np.asarray, params))
    np.testing.assert_allclose(ys, loop(tree.unflatten(leaves), tokens, lengths, code), rtol=0, atol=1e-12)

    rng = np.random.default_rng(0)
    directions = [rng.normal(size=leaf.shape) for leaf in leaves]
    expected = reference.slopes(
        lambda *leaves: np.sum(weight * loop(tree.unflatten(leaves), tokens, lengths, code)), leaves, directions
    )
    slopes = [np.vdot(g, d) for g, d in zip(jax.tree.leaves(gradient), directions, strict=True)]
    np.testing.assert_allclose(slopes, expected, rtol=0, atol=1e-11)


@pytest.mark.parametrize("codes", [CODES[:1], CODES[1:]], ids=["final", "others"])
def test_padding_reaches_nothing_be_it_nan_or_a_wrong_token(codes):
    tokens, lengths = conversations()
    params = drawn(3, (4, 5), bidirectional=(True, False), learned_state=True)
    vectors = normal(*tokens.shape, 3)
    real = (np.arange(7) < lengths[0][..., None]) & (np.arange(4) < lengths[1][:, None])[..., None]
    spoilt = np.where(real[..., None], vectors, np.float32(np.nan))
    beyond = np.where(np.arange(4) < lengths[1][:, None], lengths[0], 7)  # utterances that are none have words

    def total(params, vectors, words):
        every = [hierarchy.apply(params, vectors, lengths=(words, lengths[1]), code=code) for code in codes]
        return sum(jnp.sum(ys**2) for ys in every), every

    both = jax.jit(jax.value_and_grad(total, argnums=(0, 1), has_aux=True))
    clean, dirty = both(params, vectors, lengths[0]), both(params, spoilt, beyond)
    jax.tree.map(np.testing.assert_array_equal, clean, dirty)
    assert not np.any(np.asarray(clean[1][1])[~real])


@pytest.mark.parametrize("dtype", [np.int32, np.int64, np.uint8])
@pytest.mark.parametrize("jitted", [False, True])
def test_a_token_out_of_range_is_refused_where_it_counts_and_nowhere_else(dtype, jitted):
    tokens, lengths = conversations()
    tokens = tokens.astype(dtype)
    params = drawn(3, (4, 5), vocabulary=11)
    apply = jax.jit(hierarchy.apply) if jitted else hierarchy.apply
    expected = apply(params, tokens, lengths=lengths)
    real = (np.arange(7) < lengths[0][..., None]) & (np.arange(4) < lengths[1][:, None])[..., None]
    spoilt = np.where(real, tokens, np.iinfo(dtype).max).astype(dtype)
    np.testing.assert_array_equal(apply(params, spoilt, lengths=lengths), expected)
    spoilt[0, 0, 0] = 200
    if jitted:
        assert np.isnan(np.asarray(apply(params, spoilt, lengths=lengths))[0, 0]).all()
    else:
        with pytest.raises(ValueError, match=r"tokens must lie between 0 and 10"):
            apply(params, spoilt, lengths=lengths)


def test_three_levels_with_vectors_of_their_own_equal_the_layers_by_hand():
    params = drawn((2, 3, 1), (4, (5, 6), 7), vocabulary=(20, 30, None), bidirectional=(True, False, True))
    rng = np.random.default_rng(0)
    characters, words = rng.integers(0, 20, (2, 3, 4, 5)), rng.integers(0, 30, (2, 3, 4))
    speakers = normal(2, 3, 1)
    lengths = rng.integers(0, 6, (2, 3, 4)), rng.integers(0, 5, (2, 3)), np.array([3, 2])
    apply = jax.jit(partial(hierarchy.apply, code=("final", "max", "final")))
    got = apply(params, (characters, words, speakers), lengths=lengths)

    @jax.jit
    def by_hand(params):
        spelling, phrase, talk = params.levels
        xs = embedding.apply(spelling.embedding, characters)
        codes, _ = bidirectional.apply(spelling.encoder, xs, lengths=lengths[0], return_sequences=False)
        xs = jnp.concatenate([embedding.apply(phrase.embedding, words), codes], axis=-1)
        ys, _ = stack.apply(phrase.encoder, xs, lengths=lengths[1])
        xs = jnp.concatenate([speakers, pooling.global_max(ys, lengths=lengths[1])], axis=-1)
        return bidirectional.apply(talk.encoder, xs, lengths=lengths[2])[0]

    np.testing.assert_allclose(got, by_hand(params), rtol=0, atol=1e-6)
    assert got.shape == (2, 3, 14)


@pytest.mark.parametrize(
    "units", [(4,), *(pytest.param(some, marks=pytest.mark.slow) for some in ((4, 5), (4, 5, 6))), (2, 3, 4, 5)]
)
def test_any_number_of_levels_down_to_one_code(units):
    params = drawn(3, units)
    xs = normal(*(2, 3, 2, 3, 2, 3)[-len(units) - 2 :])
    run = jax.jit(lambda params, xs: [hierarchy.apply(params, xs, return_sequences=whole) for whole in (False, True)])
    code, ys = map(np.asarray, run(params, xs))
    assert code.shape == (xs.shape[0], units[-1])
    np.testing.assert_allclose(code, ys[:, -1], rtol=0, atol=1e-6)


def test_equals_the_plain_functions_under_time_distributed_and_under_vmap():
    params = drawn(3, (4, 5), vocabulary=11, bidirectional=(True, False))
    tokens, lengths = jax.tree.map(jnp.asarray, conversations())
    words, talk = params.levels

    def encode(tokens, lengths):
        vectors = embedding.apply(words.embedding, tokens)
        return bidirectional.apply(words.encoder, vectors, lengths=lengths, return_sequences=False)[0]

    def converse(codes, lengths):
        return lstm.apply(talk.encoder, codes, lengths=lengths)[0]

    @jax.jit
    def several_ways():
        plain = converse(time_distributed(encode)(tokens, lengths[0]), lengths[1])
        mapped = jax.vmap(converse)(jax.vmap(jax.vmap(encode))(tokens, lengths[0]), lengths[1])
        whole = jax.vmap(lambda t, w, u: hierarchy.apply(params, t, lengths=(w, u)))(tokens, *lengths)
        return plain, mapped, whole

    expected = jax.jit(hierarchy.apply)(params, tokens, lengths=lengths)
    for ys in several_ways():
        np.testing.assert_allclose(ys, expected, rtol=0, atol=1e-6)


@pytest.mark.parametrize(
    ("both_ways", "forward", "implementation"),
    [
        (True, 4, "fused"),
        (False, 2, "scan"),
        pytest.param(False, 2, "fused", marks=pytest.mark.slow),
        pytest.param(True, 4, "scan", marks=pytest.mark.slow),
    ],
)
def test_two_levels_are_two_loops_for_each_direction_whatever_the_sizes(both_ways, forward, implementation):
    params = drawn(3, (4, 5), bidirectional=both_ways)

    def total(params, xs, lengths):
        return jnp.sum(hierarchy.apply(params, xs, lengths=lengths, implementation=implementation))

    def lowered(function, sizes):
        return jax.jit(function).lower(params, normal(*sizes, 3), (np.full(sizes[:2], 2), np.full(sizes[0], 2)))

    small, large = (lowered(jax.grad(total), sizes) for sizes in ((2, 3, 4), (5, 11, 17)))
    assert small.as_text().count("stablehlo.while") == large.as_text().count("stablehlo.while")
    for program, loops in ((lowered(total, (5, 11, 17)), forward), (large, 2 * forward)):
        assert len(re.findall(r"\bwhile\(", program.compile().as_text())) == loops


def test_no_recompilation_on_other_lengths():
    params = drawn(3, (4, 5), vocabulary=11)
    tokens, (words, utterances) = conversations()
    apply = jax.jit(lambda *args, **kwargs: hierarchy.apply(*args, **kwargs))
    apply(params, tokens, lengths=(words, utterances))
    apply(params, tokens + 0, lengths=(words * 0, utterances * 0))
    assert apply._cache_size() == 1


@hypothesis.settings(max_examples=8)
@hypothesis.given(st.lists(st.lists(st.integers(0, 7), max_size=4), min_size=1, max_size=4), st.integers(0, 1000))
def test_a_conversation_does_not_depend_on_its_neighbours(sizes, seed):
    tokens, (words, utterances) = conversations(seed, [*sizes, *[()] * (4 - len(sizes))])
    params = drawn(3, (4, 5), vocabulary=11, bidirectional=True)
    apply = jax.jit(hierarchy.apply)
    together = np.asarray(apply(params, tokens, lengths=(words, utterances)))
    order = np.random.default_rng(seed).permutation(4)
    moved = apply(params, tokens[order], lengths=(words[order], utterances[order]))
    np.testing.assert_allclose(moved, together[order], rtol=0, atol=1e-6)


@pytest.mark.parametrize("shape", [(0, 4, 7), (3, 0, 7), (3, 4, 0), pytest.param((0, 0, 0), marks=pytest.mark.slow)])
def test_axes_of_no_size(shape):
    params = drawn(3, (4, 5), vocabulary=11, bidirectional=(True, False))
    lengths = np.full(shape[:2], shape[2]), np.full(shape[:1], shape[1])

    @jax.jit
    def by_every_code(tokens, lengths):
        return [hierarchy.apply(params, tokens, lengths=lengths, code=code) for code in CODES]

    for ys in by_every_code(np.zeros(shape, np.int32), lengths):
        assert ys.shape == (*shape[:2], 5)
        assert np.isfinite(ys).all()


def test_dropout_needs_a_key_and_is_drawn_anew_at_each_level():
    params = drawn(3, (4, 5))
    xs = normal(2, 3, 4, 3)
    rates, keys = Dropout(inputs=0.5, outputs=0.5), jax.random.split(KEY, 2)

    @jax.jit
    def run(params):
        apply = partial(hierarchy.apply, params, xs)
        codes = hierarchy.encode(params.levels[0].encoder, xs, dropout=rates, key=keys[0])
        by_hand, _ = lstm.apply(params.levels[1].encoder, codes, dropout=rates, key=keys[1])
        without_key = apply(), apply(dropout=rates, deterministic=True)
        return without_key, apply(dropout=rates, key=KEY), apply(dropout=(rates, None), key=KEY), by_hand

    (still, expected), dropped, lower, by_hand = run(params)
    np.testing.assert_array_equal(expected, still)
    assert np.mean(np.asarray(dropped) == 0) > 0.2
    assert np.all(np.asarray(lower) != 0)
    assert not np.allclose(lower, still)
    np.testing.assert_allclose(dropped, by_hand, rtol=0, atol=1e-6)


def test_names_of_the_leaves_read_well():
    params = drawn(3, (4, 5), vocabulary=11)
    paths = [jax.tree_util.keystr(path, simple=True, separator="/") for path, _ in jax.tree.leaves_with_path(params)]
    assert paths == [
        "levels/0/encoder/w_x",
        "levels/0/encoder/w_h",
        "levels/0/encoder/bias",
        "levels/0/embedding/table",
        "levels/1/encoder/w_x",
        "levels/1/encoder/w_h",
        "levels/1/encoder/bias",
    ]


@pytest.mark.parametrize(
    ("inputs", "units", "options", "message"),
    [
        (3, 4, {}, r"units must be a tuple with an entry for each level"),
        (3, (), {}, r"units must be a tuple with an entry for each level"),
        (0, (4, 5), {}, r"inputs\[0\] must be an integer of at least 1, got 0"),
        ((3, -1), (4, 5), {}, r"inputs\[1\] must be an integer of at least 1, got -1"),
        ((3, 0, 0), (4, 5), {}, r"inputs must have an entry for each of the 2 levels, lowest first; got 3"),
        (3, (4, 5), {"vocabulary": (7, 8)}, r"inputs\[1\] must be the length of a vector of vocabulary\[1\]; got 0"),
        (3, (4, 5), {"bidirectional": (True,)}, r"bidirectional must have an entry for each of the 2 levels"),
        (3, (4, 5), {"merge": "add"}, r"merge must be one of"),
    ],
)
def test_init_says_what_is_wrong(untyped, inputs, units, options, message):
    with pytest.raises(ValueError, match=message):
        jax.eval_shape(lambda key: hierarchy.init(key, inputs, units, **options), KEY)


@pytest.mark.parametrize(
    ("tokens", "options", "message"),
    [
        (np.zeros(4, int), {}, r"tokens\[0\] must have an axis of time for each of the 2 levels; got shape \(4,\)"),
        (None, {}, r"tokens\[0\] must be an array, which its embedding reads; got None"),
        ((np.zeros((2, 3, 4), int), np.zeros((2, 4, 1))), {}, r"tokens\[1\] must have shape \(2, 3, 1\)"),
        (np.zeros((2, 3, 4), int), {"lengths": (np.zeros((2, 3), int),)}, r"lengths must have an entry for each"),
        (
            np.zeros((2, 3, 4), int),
            {"lengths": (np.zeros((3, 2), int), None)},
            r"lengths\[0\] must have shape \(2, 3\)",
        ),
        (
            np.zeros((2, 3, 4), int),
            {"lengths": (None, np.array([4, 0]))},
            r"lengths\[1\] must lie between 0 and 3 \(the time steps of level 1\)",
        ),
        (np.zeros((2, 3, 4), int), {"code": "first"}, r"code\[0\] must be one of 'final', 'last', 'max', 'mean'"),
        (np.zeros((2, 3, 4), int), {"code": ("max",)}, r"code must have an entry for each of the 2 levels"),
    ],
)
def test_apply_says_what_is_wrong(untyped, tokens, options, message):
    params = drawn(3, (4, 5), vocabulary=7)
    with pytest.raises(ValueError, match=message):
        hierarchy.apply(params, tokens, **options)


@pytest.mark.parametrize(
    ("tokens", "options", "message"),
    [
        (normal(2, 3, 4, 9), {}, r"levels\[0\].encoder must have 9 inputs, 9 features of tokens\[0\]; got 3"),
        (
            normal(2, 3, 4, 3),
            {},
            r"\[1\].encoder must have 8 inputs, 0 features of tokens\[1\] and codes of 8 with merge='concat'; got 6",
        ),
        (
            (normal(2, 3, 4, 3), normal(2, 3, 7)),
            {"merge": "sum"},
            r"\[1\].encoder must have 11 inputs, 7 features of tokens\[1\] and codes of 4 with merge='sum'; got 6",
        ),
    ],
)
def test_vectors_of_another_length_are_refused_by_their_level(untyped, tokens, options, message):
    params = drawn((3, 2), (4, (5, 6)), bidirectional=True, merge="sum")
    with pytest.raises(ValueError, match=message):
        hierarchy.apply(params, tokens, **options)


@pytest.mark.parametrize("merge", [None, "add"])
def test_what_makes_no_one_vector_of_two_directions_is_refused(untyped, merge):
    params = drawn(4, (4, 5), bidirectional=True, merge="sum")
    for whole in (False, True):
        with pytest.raises(ValueError, match="merge must be one of 'concat', 'sum', 'mul', 'ave'; got"):
            hierarchy.apply(params, normal(2, 3, 4, 4), merge=merge, return_sequences=whole)
    for code in CODES:
        with pytest.raises(ValueError, match="merge must be one of"):
            hierarchy.encode(params.levels[0].encoder, normal(2, 4, 4), merge=merge, code=code)


@pytest.mark.parametrize("name", ["reverse", "resets"])
def test_what_is_of_a_single_level_is_refused(name):
    params = drawn(3, (4, 5))
    with pytest.raises(
        TypeError, match=rf"unknown argument '{name}' of hierarchy.apply \(one of: params, tokens, .*unroll"
    ):
        hierarchy.apply(params, np.zeros((2, 3, 4, 3), np.float32), **{name: True})


def test_apply_wants_params_of_its_own(untyped):
    encoder = drawn(2, (3,)).levels[0].encoder
    with pytest.raises(TypeError, match=r"params must be HierarchyParams, as hierarchy.init makes it; got dict"):
        hierarchy.apply({}, np.zeros((2, 3, 4), np.float32))
    with pytest.raises(TypeError, match=r"params.levels must be a tuple of at least one LevelParams"):
        hierarchy.apply(hierarchy.HierarchyParams(()), np.zeros((2, 3, 4), np.float32))
    with pytest.raises(TypeError, match=r"params.levels\[0\] must be LevelParams"):
        hierarchy.apply(hierarchy.HierarchyParams((encoder,)), np.zeros((2, 3, 4), np.float32))
    params = hierarchy.HierarchyParams((LevelParams(encoder),))
    with pytest.raises(TypeError, match=r"tokens\[0\] must have a floating dtype, got int32"):
        hierarchy.apply(params, np.zeros((2, 3), np.int32))


@pytest.mark.parametrize(("units", "shape"), [((4,), (1, 3)), ((4,), (2, 3)), ((4, 5), (1, 2, 3)), ((4, 5), (2, 2, 3))])
@pytest.mark.parametrize("vocabulary", [7, None])
def test_nested_lists_are_the_arrays_that_they_make(units, shape, vocabulary):
    """Also where the outermost list is as long as there are levels."""
    params = drawn(3, units, vocabulary=vocabulary)
    tokens = np.arange(np.prod(shape)).reshape(shape) % 7 if vocabulary else normal(*shape, 3)
    lengths = tuple(np.maximum(0, 2 - np.indices(shape[: -1 - level]).sum(0)) for level in range(len(units)))
    listed = tuple(steps.tolist() for steps in lengths)
    expected = jax.jit(lambda tokens, lengths: hierarchy.apply(params, tokens, lengths=lengths))(tokens, lengths)
    for given in (listed, listed[0] if len(units) == 1 else list(listed)):
        np.testing.assert_array_equal(hierarchy.apply(params, tokens.tolist(), lengths=given), expected)


def test_a_list_of_arrays_is_no_tuple_of_them(untyped):
    params = drawn(3, (4, 5), vocabulary=7)
    with pytest.raises(TypeError, match="tokens, unless it is a tuple with an entry for each level, must be an array"):
        hierarchy.apply(params, [np.zeros((2, 3, 4), np.int32), None])
