"""Files against the format as safetensors' own reader sees it, and against every way of spoiling one."""

import dataclasses
import hashlib
import json
import math
import os
import pickle
import random
import re
import stat
import sys
from functools import partial

import hypothesis
import hypothesis.strategies as st
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from lstmjax import (
    BidirectionalParams,
    CRFParams,
    Dropout,
    LSTMOptions,
    LSTMParams,
    LSTMState,
    bidirectional,
    conv1d,
    crf,
    dense,
    embedding,
    files,
    hierarchy,
    lstm,
    residual,
    stack,
)
from lstmjax._src import serialization
from lstmjax._src.lstm.params import LSTMNorm
from lstmjax.dense import DenseParams
from lstmjax.files import FileError

pytestmark = pytest.mark.versions

safetensors = pytest.importorskip("safetensors.numpy", reason="needs the extra lstmjax[files]")

KEY = jax.random.key(0)
VARIANTS = {
    "peepholes": {"peepholes": True},
    "projection": {"projection": 2},
    **{f"norm {kind}": {"layer_norm": kind} for kind in ("joint", "joint_cell", "per_gate", "per_gate_cell")},
    "coupled": {"coupled": True, "peepholes": True},
    "learned state": {"learned_state": True, "projection": 2},
    "no bias": {"bias": False, "forget_bias": None},
    "bfloat16": {"dtype": jnp.bfloat16},
}
TREES = {
    **{name: lambda options=options: lstm.init(KEY, 2, 3, **options) for name, options in VARIANTS.items()},
    "two biases": lambda: dataclasses.replace(lstm.init(KEY, 2, 3), bias_h=jnp.ones(12), offset=jnp.arange(12.0)),
    "bidirectional": lambda: bidirectional.init(KEY, 2, 3),
    "stack": lambda: stack.init(KEY, 2, (4, 3)),
    "stack of sums": lambda: stack.init(KEY, 2, (4, 3), bidirectional=True, merge="sum"),
    "stack of pairs": lambda: stack.init(KEY, 2, (4, 3), bidirectional=True),
    "hierarchy": lambda: hierarchy.init(KEY, (3, 0), (4, (3, 2)), vocabulary=(5, None), bidirectional=True),
    "crf": lambda: {"crf": crf.init(KEY, 3), "allowed": crf.bio(["O", "B-NP", "I-NP"])},
    "tcn": lambda: {"tcn": residual.init(KEY, 2, (3, 3)), "dense": dense.init(KEY, 3, 2)},
    "without biases": lambda: {
        "tcn": residual.init(KEY, 2, (3, 3), bias=False),
        "depthwise": conv1d.init(KEY, 2, 4, groups=2, bias=False),
        "dense": dense.init(KEY, 3, 2, bias=False),
    },
    "tagger": lambda: {"words": embedding.init(KEY, 5, 2), "characters": [conv1d.init(KEY, 2, 3)], "none": None},
    "states": lambda: {
        "lstm": lstm.initial_state(lstm.init(KEY, 2, 3), (4,)),
        "both": bidirectional.initial_state(bidirectional.init(KEY, 2, 3), (4, 5)),
        "stack": stack.initial_state(stack.init(KEY, 2, (4, 3))),
    },
    "ensemble": lambda: jax.vmap(jax.vmap(lambda key: stack.init(key, 2, (4, 3), layer_norm=True)))(
        jax.random.split(KEY, (2, 3))
    ),
    "empty": lambda: {"nothing": {}, "none": None, "lists": [[], ()]},
    "array": lambda: jnp.arange(3),
}
GOOD = {"encoder": LSTMParams(np.ones((2, 12), "f"), np.ones((3, 12), "f"), None), "head": [np.arange(3, dtype="i2")]}


def filled(make):
    """A tree of these shapes and dtypes in which NumPy drew every array."""
    rng = np.random.default_rng(0)

    def draw(leaf):
        floating = jnp.issubdtype(leaf.dtype, jnp.floating)
        drawn = rng.normal(size=leaf.shape) if floating else rng.integers(0, 2, leaf.shape)
        return jnp.asarray(drawn.astype(leaf.dtype))

    return jax.tree.map(draw, jax.eval_shape(make))


def bits(array):
    if isinstance(array, int):
        return int, (), array
    return str(array.dtype), array.shape, np.asarray(array).tobytes()


def named(tree):
    leaves = jax.tree_util.tree_leaves_with_path(tree)
    return {jax.tree_util.keystr(path, simple=True, separator="/"): bits(leaf) for path, leaf in leaves}


def same(a, b):
    return named(a) == named(b) and jax.tree.structure(a) == jax.tree.structure(b)


def signed(content):
    """With the SHA-256 that the format asks for, where there is a place for one."""
    before, mark, _ = content.partition(b'sha256\\":\\"')
    if not mark:
        return content
    at = len(before + mark)
    zeros = content[:at] + b"0" * 64 + content[at + 64 :]
    return content[:at] + hashlib.sha256(zeros).hexdigest().encode() + content[at + 64 :]


def packed(header, data=b""):
    """A file of this header and data, by the format's description."""
    header = header if isinstance(header, bytes) else json.dumps(header, separators=(",", ":")).encode()
    return signed(len(header).to_bytes(8, "little") + header + data)


def parts(content):
    """The header and the data of a file, and in the former what `save` tells, decoded."""
    length = int.from_bytes(content[:8], "little")
    header = json.loads(content[8 : 8 + length])
    header["__metadata__"]["lstmjax"] = json.loads(header["__metadata__"]["lstmjax"])
    return header, content[8 + length :]


def repacked(header, data):
    metadata = header["__metadata__"] | {
        "lstmjax": json.dumps(header["__metadata__"]["lstmjax"], separators=(",", ":"))
    }
    return packed(header | {"__metadata__": metadata}, data)


def put(path, content):
    """Write a new file, which is far faster than to cut an old one to nothing."""
    path.unlink(missing_ok=True)
    path.write_bytes(content)


@pytest.fixture
def path(tmp_path):
    return tmp_path / "params.safetensors"


@pytest.fixture
def good(path):
    files.save(path, GOOD, LSTMOptions(cell_clip=3))
    return path.read_bytes()


@pytest.mark.parametrize("make", TREES.values(), ids=TREES)
def test_params_come_back_to_the_bit_under_the_names_of_their_paths(path, make):
    params = filled(make)
    files.save(path, params)
    loaded, options = files.load(path, like=jax.eval_shape(lambda: params))
    assert options is None
    assert same(loaded, params)
    assert all(isinstance(leaf, jax.Array) for leaf in jax.tree.leaves(loaded))
    header, _ = parts(path.read_bytes())
    assert set(header) - {"__metadata__"} == set(named(params))


def test_other_readers_of_the_format_see_the_same_arrays(path):
    params = filled(TREES["hierarchy"])
    files.save(path, params)
    assert {name: bits(array) for name, array in safetensors.load_file(path).items()} == named(params)


def array(shape, dtype=np.float32):
    """Any bits at all, NaNs with payloads among them."""
    count = int(np.prod(shape)) * np.dtype(dtype).itemsize
    return st.binary(min_size=count, max_size=count).map(lambda data: np.frombuffer(data, dtype).reshape(shape))


@st.composite
def lstms(draw):
    inputs, units, outputs = draw(st.tuples(*[st.integers(1, 3)] * 3))
    gates, projected = draw(st.sampled_from([3, 4])), draw(st.booleans())
    outputs = outputs if projected else units
    dtype = draw(st.sampled_from([jnp.float16, jnp.bfloat16, jnp.float32]))

    def maybe(*shape):
        return draw(array(shape, dtype)) if draw(st.booleans()) else None

    def must(*shape):
        return draw(array(shape, dtype))

    z = gates * units
    return LSTMParams(
        w_x=must(inputs, z),
        w_h=must(outputs, z),
        bias=maybe(z),
        w_peephole=maybe((gates - 1) * units),
        w_projection=must(units, outputs) if projected else None,
        norm=LSTMNorm(must(z), must(z), must(units), must(units)) if draw(st.booleans()) else None,
        initial=LSTMState(h=must(outputs), c=must(units)) if draw(st.booleans()) else None,
        bias_h=maybe(z),
        offset=maybe(z),
    )


DTYPES = ["i1", "i2", "i4", "u1", "u2", "u4", "f2", "f4", "c8", "bfloat16", "float8_e4m3fn", "float8_e5m2"]
SHAPES = st.lists(st.integers(0, 3), max_size=3).map(tuple)
ARRAYS = st.tuples(SHAPES, st.sampled_from(DTYPES)).flatmap(lambda pair: array(pair[0], jnp.dtype(pair[1])))
BOOLS = SHAPES.flatmap(
    lambda shape: st.integers(0, 2**27).map(lambda n: np.resize([n >> i & 1 for i in range(27)], shape) > 0)
)
LEAVES = st.none() | ARRAYS | BOOLS | lstms() | st.builds(CRFParams, array((2,)), array((2, 2)), array((2,)))
KEYS = st.text(max_size=4).filter(lambda key: "/" not in key)


def nested(leaves):
    return st.recursive(
        leaves,
        lambda trees: (
            st.dictionaries(KEYS, trees, max_size=3)
            | st.lists(trees, max_size=3)
            | st.lists(trees, max_size=3).map(tuple)
        ),
        max_leaves=6,
    )


SCALARS = st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False) | st.text()
OPTIONS = nested(
    SCALARS
    | st.builds(LSTMOptions, cell_clip=st.none() | st.floats(0.1), precision=st.sampled_from([None, "bfloat16"]))
    | st.builds(Dropout, inputs=st.floats(0, 0.9))
)


@hypothesis.given(nested(LEAVES), OPTIONS)
@hypothesis.settings(max_examples=40, suppress_health_check=[hypothesis.HealthCheck.too_slow])
def test_any_tree_comes_back_to_the_bit(tmp_path_factory, params, options):
    path = tmp_path_factory.getbasetemp() / "any.safetensors"
    files.save(path, params, options)
    loaded, loaded_options = files.load(path)
    assert same(loaded, params)
    assert loaded_options == options
    assert repr(loaded_options) == repr(options)
    content = path.read_bytes()
    files.save(path, loaded, loaded_options)
    assert path.read_bytes() == content


@pytest.mark.usefixtures("x64")
def test_64_bits_come_back(path):
    params = {name: np.array([1, 2], name) for name in ("float64", "int64", "uint64")}
    files.save(path, params)
    assert same(files.load(path)[0], params)


def test_64_bits_are_refused_where_jax_has_32(path):
    with pytest.raises(ValueError, match="params/a has dtype float64, which needs 64-bit JAX"):
        files.save(path, {"a": np.zeros(2)})
    with jax.enable_x64(True):
        files.save(path, {"a": np.zeros(2)})
    with pytest.raises(FileError, match="params/a has dtype float64, which needs 64-bit JAX"):
        files.load(path)


@pytest.mark.parametrize(
    ("params", "error", "message"),
    [
        ({"a": "text"}, TypeError, "params/a must be an array, .* got str"),
        ({"a": 1j}, TypeError, "params/a must be an array, .* got complex"),
        ({"a": LSTMOptions()}, TypeError, "params/a must be an array, .* got LSTMOptions"),
        ({1: np.zeros(2, "f")}, TypeError, "params must have keys of text .* got 1"),
        ({"\ud800": None}, TypeError, "keys of text that UTF-8 can write"),
        ({"__metadata__": np.zeros(2, "f")}, ValueError, "safetensors keeps for itself"),
        ({"a/b": np.zeros(2, "f"), "a": {"b": np.zeros(2, "f")}}, ValueError, "'a/b', which is the name of two arrays"),
        ({"a": jnp.zeros(2, jnp.int4)}, ValueError, "params/a must have one of the dtypes bool, .* got int4"),
        ({"a": np.array(["text"])}, ValueError, "params/a must have one of the dtypes"),
        (jax.ShapeDtypeStruct((2,), "f"), TypeError, "got ShapeDtypeStruct"),
        ({"a": LSTMParams(np.ones((2, 12), "f"), np.ones((3, 8), "f"), None)}, ValueError, "params/a is no LSTMParams"),
    ],
)
def test_what_cannot_come_back_is_not_saved(path, params, error, message):
    path.write_text("stays")
    with pytest.raises(error, match=message):
        files.save(path, params)
    assert path.read_text() == "stays"


def test_trees_too_deep_or_too_large_are_not_saved(path):
    deep = None
    for _ in range(serialization.DEEPEST + 1):
        deep = [deep]
    with pytest.raises(ValueError, match="at most 64 levels"):
        files.save(path, deep)
    files.save(path, deep[0])
    assert files.load(path)[0] == deep[0]
    with pytest.raises(ValueError, match="at most 8388608 bytes"):
        files.save(path, None, "x" * files.LONGEST_HEADER)


def training_state(optimizer):
    params = lstm.init(KEY, 2, 3, layer_norm=True)
    return {
        "params": params,
        "optimizer": optimizer.init(params),
        "step": 3,
        "rate": 0.1,
        "best": -math.inf,
        "on": True,
    }


OPTIMIZERS = {
    "adam": optax.adam(1e-3),
    "chain": optax.chain(optax.clip_by_global_norm(1.0), optax.adamw(optax.cosine_decay_schedule(0.1, 10))),
    "masked": optax.masked(
        optax.sgd(0.1, momentum=0.9), lambda params: jax.tree.map(lambda leaf: leaf.ndim > 1, params)
    ),
    "injected": optax.inject_hyperparams(optax.sgd)(learning_rate=0.1),
}


@pytest.mark.parametrize("name", OPTIMIZERS)
def test_a_state_of_training_comes_back_to_the_bit(path, name):
    state = training_state(OPTIMIZERS[name])
    files.save(path, state)
    for like in (state, jax.eval_shape(lambda: state)):
        loaded, _ = files.load(path, like=like)
        assert same(loaded["optimizer"], state["optimizer"])
        assert same(loaded["params"], state["params"])
        for key in ("step", "rate", "best", "on"):
            assert (type(loaded[key]), loaded[key]) == (type(state[key]), state[key])
    with pytest.raises(FileError, match=r"params/optimizer.* is a optax\..*, which no file makes: pass like="):
        files.load(path)


def test_states_of_another_optimizer_are_refused(path):
    files.save(path, training_state(optax.adam(1e-3)))
    other = training_state(optax.sgd(1e-3, momentum=0.9))
    words = r"params/optimizer/0 is optax\..*ScaleByAdamState, and in like optax\..*TraceState"
    with pytest.raises(FileError, match=words):
        files.load(path, like=other)
    with pytest.raises(FileError, match="params/step is int, and in like float"):
        files.load(path, like=training_state(optax.adam(1e-3)) | {"step": 3.0})


def test_a_type_that_a_file_names_is_not_imported(path, good):
    """Neither is one that has this very name but another structure made."""
    header, data = parts(good)
    head = header["__metadata__"]["lstmjax"]["tree"]["dict"]["head"]
    header["__metadata__"]["lstmjax"]["tree"]["dict"]["head"] = {"like": ["os.system", {"0": head["list"][0]}]}
    put(path, repacked(header, data))
    for like, words in (
        (None, "params/head is a os.system, which no file makes: pass like="),
        (GOOD, "params/head is os.system, and in like list"),
        (GOOD | {"head": optax.EmptyState()}, "params/head is os.system, and in like optax"),
    ):
        with pytest.raises(FileError, match=words):
            files.load(path, like=like)
    for spoilt in ([], ["optax"], [{}, "optax"], {"optax": {}}, None):
        header["__metadata__"]["lstmjax"]["tree"]["dict"]["head"] = {"like": spoilt}
        put(path, repacked(header, data))
        with pytest.raises(FileError, match="params/head must be described by the name of a type and what it holds"):
            files.load(path)


def test_frozen_dicts(path):
    core = pytest.importorskip("flax.core")
    frozen = core.FrozenDict({"layer": {"w": jnp.ones(2)}, "scale": 2})
    files.save(path, frozen)
    plain, thawed = files.load(path)[0], core.unfreeze(frozen)
    assert type(plain) is dict
    assert same(plain, thawed)
    again, _ = files.load(path, like=frozen)
    assert isinstance(again, core.FrozenDict)
    assert same(again, frozen)


def test_long_keys_and_long_names(tmp_path):
    params = {"k" * 5000: {"/" * 300: jnp.arange(3), "x" * 70_000: 1}}
    path = tmp_path / ("n" * 243 + ".safetensors")  # 255 bytes, the most that a file system takes
    files.save(path, params)
    files.save(path, params)
    loaded, _ = files.load(path)
    assert same(loaded, params)
    assert list(tmp_path.iterdir()) == [path]


@pytest.mark.parametrize("options", [{1: 2}, {"a": object()}, np.float32(1), {"a": np.zeros(2)}, {1, 2}])
def test_options_that_json_cannot_hold_are_refused(path, options):
    with pytest.raises(TypeError, match=r"options.* must (be|have)"):
        files.save(path, None, options)


@pytest.mark.parametrize("function", ["replace", "fsync"])
def test_a_file_is_written_whole_or_not_at_all(path, good, monkeypatch, function):
    def fails(*arguments):
        raise OSError("no space left")

    monkeypatch.setattr(os, function, fails)
    with pytest.raises(OSError, match="no space left"):
        files.save(path, {"other": np.zeros(2, "f")})
    assert path.read_bytes() == good
    assert list(path.parent.iterdir()) == [path]


def test_a_file_is_as_readable_as_any_other_and_a_link_stays_one(path, tmp_path):
    (link := tmp_path / "newest").symlink_to(path)
    files.save(link, GOOD)
    (tmp_path / "other").touch()
    assert link.is_symlink()
    assert stat.S_IMODE(path.stat().st_mode) == stat.S_IMODE((tmp_path / "other").stat().st_mode)
    path.chmod(0o600)
    files.save(path, GOOD)
    assert stat.S_IMODE(path.stat().st_mode) == 0o600


def test_every_mismatch_with_like_is_named(path, good):
    encoder = LSTMParams(np.ones((2, 16), "f"), np.ones((3, 12), jnp.bfloat16), np.ones(12, "f"))
    with pytest.raises(FileError) as caught:
        files.load(path, like={"encoder": encoder, "head": (None,), "tail": np.ones(2)})
    for mismatch in (
        "params/encoder/w_x is float32 (2, 12), and in like float32 (2, 16)",
        "params/encoder/w_h is float32 (3, 12), and in like bfloat16 (3, 12)",
        "params/encoder/bias is None, and in like float32 (12,)",
        "params/head is list, and in like tuple",
        "params/tail is missing",
    ):
        assert mismatch in str(caught.value)
    with pytest.raises(FileError, match="params/head/0 is not in like"):
        files.load(path, like=GOOD | {"head": []})
    assert same(files.load(path, like=GOOD)[0], GOOD)


def test_every_truncation_is_refused(path, good):
    for length in range(len(good)):
        put(path, good[:length])
        with pytest.raises(FileError, match=re.escape(str(path))):
            files.load(path)


def mutated(draw, good, other):
    """One random change to a file."""
    at, end = sorted((draw.randrange(len(good)), draw.randrange(len(good) + 1)))
    block = slice(at, min(end, at + draw.choice([1, 8, 1000])))
    noise = draw.randbytes(draw.choice([1, 8, 64]))
    return draw.choice(
        [
            lambda: good[:at] + bytes([good[at] ^ 1 << draw.randrange(8)]) + good[at + 1 :],
            lambda: good[:at] + noise + good[at + len(noise) :],
            lambda: good[:at] + noise + good[at:],
            lambda: good[:at] + good[block] + good[at:],
            lambda: good[: block.start] + good[block.stop :],
            lambda: good[:at] + bytes(block.stop - at) + good[block.stop :],
            lambda: good[:at],
            lambda: good[end:] + good[:end],
            lambda: good[:at] + good[end:] + good[at:end],
            lambda: good[:end] + other[end:],
            lambda: other[:at] + good[at:],
            lambda: good + noise,
        ]
    )()


@pytest.mark.parametrize(
    "count", [300, pytest.param(1_000, marks=pytest.mark.slow), pytest.param(10_000, marks=pytest.mark.long)]
)
def test_mutations_are_refused(path, good, tmp_path, count):
    draw = random.Random(0)
    files.save(tmp_path / "other", GOOD | {"head": [np.arange(3, 6, dtype="i2")]}, LSTMOptions(cell_clip=4))
    other, refused = (tmp_path / "other").read_bytes(), 0
    while refused < count:
        content = mutated(draw, good, other)
        if content in (good, other):
            continue
        put(path, content)
        with pytest.raises(FileError):
            files.load(path)
        refused += 1


ATOMS = [
    None,
    True,
    0,
    -1,
    1,
    2**64,
    1e300,
    float("nan"),
    "",
    "array",
    "\ud800",
    "x" * 1000,
    [],
    {},
    [[]],
    {"a": "array"},
]
ATOMS += [
    {"tuple": ["array"]},
    {"LSTMParams": {}},
    {"DenseParams": {"w": "array", "bias": "array"}},
    {"os.system": "true"},
]
ATOMS += ["F64", "I4", "BOOL", [0, 0], [0, 2**63], [2, 2], "LSTMOptions", {"LSTMOptions": {"precision": "(1,1)f4"}}]


def spoiled(draw, value):
    """One random change somewhere in JSON."""
    if isinstance(value, dict | list) and value and draw.random() < 0.9:
        pairs = list(value.items() if isinstance(value, dict) else enumerate(value))
        at = draw.randrange(len(pairs))
        key, child = pairs[at]
        pairs[at : at + 1] = draw.choice(
            [[(key, spoiled(draw, child))]] * 6
            + [[], [(key, child), (f"{key}x", child)], [(draw.choice(["w", "dict", "list", "CRFParams", ""]), child)]]
        )
        return dict(pairs) if isinstance(value, dict) else [child for _, child in pairs]
    return draw.choice([atom for atom in ATOMS if atom is not value])


@pytest.mark.parametrize(
    "count", [100, pytest.param(300, marks=pytest.mark.slow), pytest.param(3_000, marks=pytest.mark.long)]
)
def test_forged_headers_are_refused_or_give_params_that_fit(path, good, count):
    draw = random.Random(0)
    outcomes = {True: 0, False: 0}
    for _ in range(count):
        header, data = parts(good)
        document = header["__metadata__"]["lstmjax"]
        if draw.random() < 0.3:
            tensors = spoiled(draw, {name: header[name] for name in header if name != "__metadata__"})
            header = {"__metadata__": header["__metadata__"]} | (tensors if isinstance(tensors, dict) else {})
        else:
            header["__metadata__"] = {"lstmjax": spoiled(draw, document)}
        put(path, repacked(header, data))
        try:
            params, options = files.load(path)
        except FileError:
            outcomes[False] += 1
            continue
        outcomes[True] += 1
        files.save(path, params, options)
        assert same(files.load(path)[0], params)
    assert outcomes[False] > count * 2 / 3
    assert outcomes[True] > count / 300


class Touches:
    """What runs where a pickle is opened."""

    def __init__(self, path):
        self.path = path

    def __reduce__(self):
        return open, (str(self.path), "w")


def test_a_pickle_is_refused_and_not_run(path, tmp_path):
    touched = tmp_path / "touched"
    for protocol in range(pickle.HIGHEST_PROTOCOL + 1):
        put(path, pickle.dumps({"w_x": Touches(touched)}, protocol))
        with pytest.raises(FileError, match="no safetensors file"):
            files.load(path)
    assert not touched.exists()
    pickle.loads(path.read_bytes())["w_x"].close()
    assert touched.exists()


def test_what_is_no_file_of_weights_is_refused(path, tmp_path):
    with pytest.raises(FileNotFoundError):
        files.load(path)
    with pytest.raises(FileError, match="directory"):
        files.load(tmp_path)
    os.mkfifo(tmp_path / "pipe")
    with pytest.raises(FileError, match="no regular file"):
        files.load(tmp_path / "pipe")
    np.savez(tmp_path / "params.npz", w=np.ones(3))
    path.write_text("epoch,loss\n1,0.5\n")
    for name in (path, tmp_path / "params.npz"):
        with pytest.raises(FileError, match="no safetensors file, or cut short"):
            files.load(name)
    put(path, b"")
    with pytest.raises(FileError, match="empty"):
        files.load(path)


def test_a_foreign_file_is_told_what_it_has(path):
    safetensors.save_file({"weight_ih_l0": np.ones((12, 2), "f")}, path, {"format": "pt"})
    with pytest.raises(FileError, match=r"1 arrays, 'weight_ih_l0': safetensors.numpy.load_file reads them"):
        files.load(path)


def test_no_more_is_read_than_a_refusal_needs(path, good):
    """Of a terabyte, which a hole in a file can pretend to be."""
    foreign = safetensors.save({"a": np.ones(3, "f")})
    for content, reason in (
        (foreign, "not written by lstmjax"),
        ((2**39).to_bytes(8, "little"), "at most 8388608 bytes"),
        (good, "or has more than its arrays"),
    ):
        put(path, content)
        os.truncate(path, 2**40)
        with pytest.raises(FileError, match=reason):
            files.load(path)


DOCUMENT = {"sha256": "0" * 64, "format": 1, "version": "0.1.0", "tree": "array", "options": None}
FLOATS = {"dtype": "F32", "shape": [2], "data_offsets": [0, 8]}
LATER = {**FLOATS, "data_offsets": [8, 16]}


def ours(tensors, data=bytes(8), **document):
    return repacked({"__metadata__": {"lstmjax": DOCUMENT | document}, **tensors}, data)


def tree(kind, **fields):
    """A description of a kind that has an array in each field, and those arrays' shapes."""
    at, tensors = 0, {}
    for name, shape in fields.items():
        size = 4 * int(np.prod(shape))
        tensors[name] = {"dtype": "F32", "shape": list(shape), "data_offsets": [at, at + size]}
        at += size
    return ours(tensors, bytes(at), tree={kind: dict.fromkeys(fields, "array")})


def lists(depth):
    return "[" * depth + "]" * depth


HOSTILE = {
    "newer": (ours({"": FLOATS}, format=2, version="9.9"), "its format is 2, of lstmjax '9.9'.*upgrade"),
    "no format": (ours({"": FLOATS}, format="1"), "must have a format"),
    "bool as format": (ours({"": FLOATS}, format=True), "must have a format"),
    "one key more": (ours({"": FLOATS}, run="rm"), "must have just .* 'run'"),
    "missing array": (ours({}, b""), "the array '' is missing"),
    "array too many": (ours({"": FLOATS, "a": LATER}, bytes(16)), "arrays that its description does not: 'a'"),
    "array named twice": (
        ours({"a/b": FLOATS}, tree={"dict": {"a/b": "array", "a": {"dict": {"b": "array"}}}}),
        "'a/b' is missing, or is named twice",
    ),
    "overlap": (ours({"a": FLOATS, "b": {**FLOATS, "data_offsets": [4, 12]}}, bytes(12)), "offset"),
    "out of range": (ours({"": LATER}), "refused"),
    "backwards": (ours({"": {**FLOATS, "data_offsets": [8, 0]}}), "refused"),
    "negative": (ours({"": {**FLOATS, "data_offsets": [-8, 0]}}), "refused"),
    "hole": (ours({"": LATER}, bytes(16)), "refused"),
    "more data": (ours({"": FLOATS}, bytes(16)), "they end at 8, of 16"),
    "wrong shape": (ours({"": {**FLOATS, "shape": [3]}}), "refused"),
    "overflowing shape": (ours({"": {**FLOATS, "shape": [2**32, 2**32, 2**32]}}), "refused"),
    "shape of nothing": (ours({"": {**FLOATS, "shape": [0, 2**63], "data_offsets": [0, 0]}}, b""), "refused"),
    "wrong dtype": (ours({"": {**FLOATS, "dtype": "F64"}}), "refused"),
    "dtype of none": (ours({"": {**FLOATS, "dtype": "object"}}), "refused"),
    "dtype not ours": (
        ours({"": {**FLOATS, "dtype": "F8_E8M0", "shape": [8]}}),
        "must have one of the dtypes .* got F8_E8M0",
    ),
    "bools of 2": (ours({"": {**FLOATS, "dtype": "BOOL", "shape": [8]}}, b"\2" * 8), "0 and 1 for False and True"),
    "kind unknown": (ours({}, b"", tree={"builtins.eval": {"a": None}}), "got 'builtins.eval', which this version"),
    "kind of options": (ours({}, b"", tree={"LSTMOptions": {}}), "got 'LSTMOptions', which this version"),
    "two kinds": (ours({}, b"", tree={"tuple": [], "list": []}), "of one kind; got 'tuple'; 'list'"),
    "no kind": (ours({}, b"", tree={}), "of one kind; got none"),
    "children of a tuple": (ours({}, b"", tree={"tuple": {"0": None}}), "a tuple, has as children a dict"),
    "children of params": (ours({}, b"", tree={"LSTMParams": [None]}), "a LSTMParams, has as children a list"),
    "field unknown": (
        ours({}, b"", tree={"LSTMState": {"h": None, "c": None, "__class__": None}}),
        "unknown: '__class__'",
    ),
    "field missing": (ours({}, b"", tree={"LSTMState": {"h": None}}), "missing: c"),
    "list as node": (ours({}, b"", tree=[]), "described by an object, null or 'array'"),
    "array as option": (ours({}, b"", tree=None, options=["x"]), "options must be text"),
    "option unknown": (ours({}, b"", tree=None, options={"LSTMOptions": {"run": "rm"}}), "unknown: 'run'"),
    "option of nonsense": (ours({}, b"", tree=None, options={"LSTMOptions": {"activation": "eval"}}), "activation"),
    "dtype to parse": (
        ours({}, b"", tree=None, options={"LSTMOptions": {"precision": "1" * 9999 + "f"}}),
        "precision among",
    ),
    "surrogate": (ours({}, b"", tree={"dict": {"\ud800": None}}), "UTF-8"),
    "w_h of others": (tree("LSTMParams", w_x=(2, 12), w_h=(3, 8), bias=(12,)), "params is no LSTMParams that runs"),
    "w_x without axes": (tree("LSTMParams", w_x=(), w_h=(3, 12), bias=(12,)), "params is no LSTMParams that runs"),
    "some members": (tree("LSTMParams", w_x=(5, 2, 12), w_h=(4, 3, 12), bias=(5, 12)), "params is no LSTMParams"),
    "w_x of none": (
        ours({}, b"", tree={"LSTMParams": dict.fromkeys(["w_x", "w_h", "bias"])}),
        "params is no LSTMParams",
    ),
    "w_x in pieces": (
        ours(
            {"w_x/0": {**FLOATS, "shape": [1, 2]}, "w_h": {**LATER, "shape": [1, 2]}},
            bytes(16),
            tree={"LSTMParams": {"w_x": {"list": ["array"]}, "w_h": "array", "bias": None}},
        ),
        "params/w_x must be .* got list",
    ),
    "bias of nothing": (
        ours(
            {"w_x": {**FLOATS, "shape": [1, 2]}, "w_h": {**LATER, "shape": [1, 2]}},
            bytes(16),
            tree={"LSTMParams": {"w_x": "array", "w_h": "array", "bias": {"tuple": []}}},
        ),
        "params/bias must be .* got tuple",
    ),
    "offsets of none": (ours({"": {"dtype": "F32"}}), "without data_offsets"),
    "array of none": (ours({"": None}), "without data_offsets"),
    "offsets of text": (ours({"": {**FLOATS, "data_offsets": "ab"}}), "refused"),
    "deep array": (
        ours({"0/" * 64 + "0": FLOATS}, tree=json.loads('{"list":[' * 65 + '"array"' + "]}" * 65)),
        "at most 64 levels",
    ),
    "dense": (tree("DenseParams", w=(2, 3), bias=(2,)), "params/bias must have 3 for units"),
    "crf": (tree("CRFParams", start=(2,), transitions=(2, 3), end=(2,)), "params/transitions must have 2 for tags"),
    "table": (tree("EmbeddingParams", table=(2,)), r"params/table must be a floating array \[vocabulary, features\]"),
    "allowed of floats": (tree("Allowed", start=(2,), transitions=(2, 2), end=(2,)), "must be a bool array"),
    "states of two batches": (tree("LSTMState", h=(2, 3), c=(4, 3)), "params/c must have .* for the axes before"),
    "halves of arrays": (
        tree("BidirectionalParams", forward=(2,), backward=(2,)),
        "params is no BidirectionalParams that runs",
    ),
    "layers of an array": (tree("StackParams", layers=(2,)), "params is no StackParams that runs"),
    "no layers": (ours({}, b"", tree={"StackParams": {"layers": {"tuple": []}}}), "at least one layer"),
    "no levels": (ours({}, b"", tree={"HierarchyParams": {"levels": {"list": []}}}), "at least one LevelParams"),
    "deep": (ours({}, b"", tree=json.loads('{"list":[' * 99 + "null" + "]}" * 99)), "at most 64 levels"),
    "deep options": (ours({}, b"", tree=None, options=json.loads('{"list":[' * 99 + "1" + "]}" * 99)), "at most 64"),
    "deeper header": (packed(lists(10**5).encode()), "nested too deeply"),
    "deepest header": (packed(lists(4 * 10**6).encode()), "nested too deeply"),
    "deep metadata": (packed({"__metadata__": {"lstmjax": '{"sha256":"' + lists(10**6)}}), "no JSON"),
    "deeper metadata": (packed({"__metadata__": {"lstmjax": lists(10**6)}}), "nested too deeply"),
    "long metadata": (packed({"__metadata__": {"lstmjax": " " * 2**23}}), "at most 8388608 bytes"),
    "long number": (packed(b'{"a":' + b"1" * 10**6 + b"}"), "refused"),
    "long name": (ours({"x" * 10**6: LATER}), "they end at 16, of 8"),
    "metadata of a list": (packed({"__metadata__": ["lstmjax"]}), "not written by lstmjax"),
    "metadata of a number": (packed({"__metadata__": {"lstmjax": 1}}), "not written by lstmjax"),
    "header of a list": (packed([1, 2]), "not written by lstmjax"),
    "header of UTF-16": (packed('{"a":1}'.encode("utf-16")), "its header is no JSON"),
    "header of nothing": (packed(b""), "its header is no JSON"),
    "key twice": (packed(b'{"a":1,"a":1}'), "one key twice"),
    "reordered": (
        packed({"": FLOATS, "__metadata__": {"lstmjax": json.dumps(DOCUMENT, separators=(",", ":"))}}, bytes(8)),
        "changed after it was written",
    ),
}


def test_the_kind_of_a_norm_is_kept_and_compared(path):
    kept, other = (filled(partial(lstm.init, KEY, 2, 3, layer_norm=kind)) for kind in ("joint_cell", "joint"))
    files.save(path, kept)
    assert files.load(path, like=kept)[0].norm.kind == "joint_cell"
    with pytest.raises(FileError, match=r"params/norm is LSTMNorm\(kind='joint_cell'\), and in like LSTMNorm\(kind='j"):
        files.load(path, like=other)
    files.save(path, other)
    header, _ = parts(path.read_bytes())
    norm = header["__metadata__"]["lstmjax"]["tree"]["LSTMParams"]["norm"]
    assert "kind" not in norm["LSTMNorm"]  # so that versions without kinds can read it


def test_long_names_are_not_made_for_every_node(path):
    """50,000 of 400,000 characters each would be 20 GB."""
    many, key = {f"k{number}": None for number in range(50_000)}, "k" * 400_000
    put(path, ours({}, b"", tree={"dict": {key: {"dict": many}}}))
    assert files.load(path)[0] == {key: many}
    for leaf, reason in (("array", "the array '.*' is missing"), ([], "params/.* must be described by an object")):
        put(path, ours({}, b"", tree={"dict": {key: {"dict": dict.fromkeys(many, leaf)}}}))
        with pytest.raises(FileError, match=reason):
            files.load(path)
    put(path, ours({}, b"", tree={"dict": {key: {"dict": many}}}))
    with pytest.raises(FileError, match="is not in like"):
        files.load(path, like={key: {}})
    with pytest.raises(ValueError, match="a header of at most"):
        files.save(path, {"k" * files.LONGEST_HEADER: np.ones(1, np.float32)})


@pytest.mark.parametrize(("content", "reason"), HOSTILE.values(), ids=HOSTILE)
def test_hostile_files_are_refused_with_the_reason(path, content, reason):
    put(path, content)
    with pytest.raises(FileError, match=reason) as caught:
        files.load(path)
    assert str(caught.value).startswith(f"{path} is refused: ")
    assert len(str(caught.value)) < 3000


def test_what_these_tests_forge_is_taken_where_nothing_is_wrong(path):
    put(path, ours({"": FLOATS}))
    assert same(files.load(path)[0], jnp.zeros(2))
    put(path, tree("DenseParams", w=(2, 3), bias=(3,)))
    assert same(files.load(path)[0], DenseParams(jnp.zeros((2, 3)), jnp.zeros(3)))
    put(path, tree("LSTMParams", w_x=(5, 2, 12), w_h=(5, 3, 12), bias=(5, 12)))
    assert files.load(path)[0].w_x.shape == (5, 2, 12)


def test_layers_that_do_not_fit_are_refused(path):
    layers = stack.init(KEY, 2, (4, 3)).layers
    with pytest.raises(ValueError, match="params/0 is no StackParams"):
        files.save(path, [stack.StackParams(layers[::-1])])
    halves = BidirectionalParams(*layers)
    with pytest.raises(ValueError, match="as many inputs; got 2 and 4"):
        files.save(path, halves)


def test_without_safetensors_the_extra_is_named(path, good, monkeypatch):
    for name in ("safetensors", "safetensors.numpy"):
        monkeypatch.setitem(sys.modules, name, None)
    for call in (lambda: files.load(path), lambda: files.save(path, GOOD)):
        with pytest.raises(ImportError, match=r"lstmjax\[files\]"):
            call()


@pytest.mark.parametrize("impl", ["threefry2x32", "rbg", "unsafe_rbg"])
@pytest.mark.parametrize("shape", [(), (3,)])
@pytest.mark.parametrize("with_like", [False, True])
def test_typed_keys_come_back(impl, shape, with_like, tmp_path):
    key = jax.random.key(7, impl=impl)
    state = {"key": jax.random.split(key, shape) if shape else key, "params": lstm.init(KEY, 2, 3)}
    files.save(tmp_path / "state", state)
    back, _ = files.load(tmp_path / "state", like=jax.eval_shape(lambda: state) if with_like else None)
    assert back["key"].dtype == state["key"].dtype
    np.testing.assert_array_equal(jax.random.key_data(back["key"]), jax.random.key_data(state["key"]))
    draws = [jax.vmap(jax.random.normal)(one["key"].reshape(-1)) for one in (back, state)]
    np.testing.assert_array_equal(*draws)


def test_keys_of_another_kind_are_refused(tmp_path):
    files.save(tmp_path / "state", {"key": jax.random.key(7)})
    with pytest.raises(FileError, match=r"params/key is key<fry>.*and in like key<rbg>"):
        files.load(tmp_path / "state", like={"key": jax.random.key(7, impl="rbg")})
    with pytest.raises(ValueError, match="params must be a key of threefry2x32, rbg, unsafe_rbg; got 'md5'"):
        serialization.rebuild({"key": "md5"}, {"": jnp.zeros(2, jnp.uint32)})
    with pytest.raises((ValueError, TypeError), match=r"uint32|key"):
        serialization.rebuild({"key": "rbg"}, {"": jnp.zeros(2, jnp.uint32)})


@pytest.mark.parametrize("value", [np.int64(-3), np.uint64(2**63), np.float64(0.1), np.int32(5), np.bool_(True)])
def test_numbers_of_numpy_are_such_as_python_has(value, tmp_path):
    files.save(tmp_path / "state", {"step": value})
    for like in (None, {"step": value}):
        back, _ = files.load(tmp_path / "state", like=like)
        assert back["step"] == value
