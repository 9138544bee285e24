"""Pictures: all of their text can be read, and what they show is what they were given."""

import inspect
import io
import itertools
import sys
from functools import cache, partial

import jax
import jax.numpy as jnp
import matplotlib.pyplot as plt
import numpy as np
import pytest
from matplotlib.text import Text

from lstmjax import LSTMOptions, bidirectional, lstm, stack
from lstmjax.inspect import plot, trace
from lstmjax.inspect.plot import diagram, levels, step, unroll

KEY = jax.random.key(0)
EVERYTHING = {"peepholes": True, "projection": 7, "layer_norm": True, "coupled": True, "learned_state": True}


@pytest.fixture(autouse=True)
def closed():
    yield
    plt.close("all")


@pytest.fixture(autouse=True, scope="module")
def measured():
    """Each text is measured once, however many pictures it is in."""
    with pytest.MonkeyPatch.context() as patch:
        width_of = cache(diagram.width_of)
        for module in (levels, step, unroll):
            patch.setattr(module, "width_of", width_of)
        yield


@cache
def weights(init, *sizes, **options):
    """Params in the shapes of those that `init` makes, drawn by NumPy."""
    rng = np.random.default_rng(0)
    shapes = jax.eval_shape(lambda: init(KEY, *sizes, **options))
    return jax.tree.map(lambda leaf: jnp.asarray(rng.normal(scale=0.3, size=leaf.shape), leaf.dtype), shapes)


traced = jax.jit(trace, static_argnames="options")


@cache
def seen(inputs, units, steps, **options):
    xs = np.float32(np.random.default_rng(1).normal(size=(steps, inputs)))
    return jax.tree.map(np.asarray, traced(weights(lstm.init, inputs, units, **options), xs)), xs


def drawn(ax, monkeypatch):
    """Every text that is put on paper, with the box it takes there."""
    found = {}

    def draw(text, renderer, *rest):
        if text.get_visible() and text.get_text().strip():
            found[text] = text.get_window_extent(renderer)
        return original(text, renderer, *rest)

    original = Text.draw
    monkeypatch.setattr(Text, "draw", draw)
    ax.figure.draw_without_rendering()
    monkeypatch.undo()
    assert found
    return found


def texts(ax):
    return [text.get_text() for text in ax.texts]


def named(ax, name):
    return ax.findobj(lambda artist: artist.get_gid() == name)


two_ways = partial(weights, bidirectional.init)


PICTURES = {
    "unrolled": lambda ax: plot.unrolled(weights(lstm.init, 2, 3), ax=ax),
    "unrolled, one step of one unit": lambda ax: plot.unrolled(weights(lstm.init, 1, 1), steps=1, ax=ax),
    "unrolled, 8 steps": lambda ax: plot.unrolled(weights(lstm.init, 20, 16), steps=8, ax=ax),
    "unrolled, 2000 steps of all parts": lambda ax: plot.unrolled(
        jax.eval_shape(lambda: lstm.init(KEY, 2000, 2048, **EVERYTHING | {"projection": 1024})),
        steps=2000,
        return_sequences=False,
        ax=ax,
    ),
    "unrolled, two directions": lambda ax: plot.unrolled(two_ways(2, 16, learned_state=True), steps=4, ax=ax),
    "unrolled, final of two directions": lambda ax: plot.unrolled(
        two_ways(2, 3), steps=20, return_sequences=False, ax=ax
    ),
    "unrolled, three layers": lambda ax: plot.unrolled(weights(stack.init, 3, (4, 4, 1)), steps=4, ax=ax),
    "unrolled, three layers of two directions, reversed": lambda ax: plot.unrolled(
        weights(stack.init, 3, (16, 3, 1), bidirectional=True), steps=9, reverse=True, return_sequences=False, ax=ax
    ),
    "cell": lambda ax: plot.cell(ax=ax),
    "cell of one unit": lambda ax: plot.cell(weights(lstm.init, 1, 1), ax=ax),
    "cell with all parts": lambda ax: plot.cell(weights(lstm.init, 2000, 1000, **EVERYTHING), ax=ax),
    "connections": lambda ax: plot.connections(weights(lstm.init, 2, 3), ax=ax),
    "connections of one unit": lambda ax: plot.connections(weights(lstm.init, 1, 1), ax=ax),
    "connections of 16 units": lambda ax: plot.connections(weights(lstm.init, 20, 16, peepholes=True), ax=ax),
    "connections with all parts": lambda ax: plot.connections(weights(lstm.init, 300, 128, **EVERYTHING), ax=ax),
    "gates": lambda ax: plot.gates(*seen(2, 3, 10), ax=ax),
    "gates of one step": lambda ax: plot.gates(*seen(1, 1, 1), ax=ax),
    "gates of 16 units": lambda ax: plot.gates(*seen(5, 16, 20), ax=ax),
    "gates with all parts": lambda ax: plot.gates(*seen(40, 128, 1000, **EVERYTHING), ax=ax),
    "gates alone": lambda ax: plot.gates(seen(2, 3, 10)[0], ax=ax),
    "hierarchy": lambda ax: plot.hierarchy([4, 2, 3], ax=ax),
    "hierarchy of six utterances": lambda ax: plot.hierarchy([3, 8, 0, 5, 1, 2], ax=ax),
    "hierarchy of one word": lambda ax: plot.hierarchy([1], ax=ax),
    "hierarchy without words": lambda ax: plot.hierarchy([0, 0], ax=ax),
    "hierarchy, long": lambda ax: plot.hierarchy([100, 7, 0] * 40, ax=ax),
    "hierarchy of words": lambda ax: plot.hierarchy(
        [2, 3], words=[["well", "$incomprehensibilities$"], ["oh", "I", "see"]], ax=ax
    ),
}
FEWEST_AND_MOST = (
    *("unrolled, one step of one unit", "unrolled, 2000 steps of all parts"),
    *("unrolled, final of two directions", "unrolled, three layers of two directions, reversed"),
    *("cell of one unit", "cell with all parts", "connections of one unit", "connections with all parts"),
    *("gates of one step", "gates with all parts", "hierarchy without words", "hierarchy, long", "hierarchy of words"),
)  # the others with -m slow


def pictures(default):
    """All of them, of which only some are in the default suite."""
    return pytest.mark.parametrize(
        "draw",
        [
            pytest.param(draw, id=name, marks=[] if name in default else pytest.mark.slow)
            for name, draw in PICTURES.items()
        ],
    )


@pictures(FEWEST_AND_MOST)
def test_every_text_can_be_read(draw, monkeypatch):
    """None is smaller than 8 points, none is cut off, and no two are on top of each other."""
    ax = draw(None)
    boxes = drawn(ax, monkeypatch)
    width, height = ax.figure.bbox.size
    for text, box in boxes.items():
        assert text.get_size() >= 8, text
        assert box.x0 >= 0, text
        assert box.y0 >= 0, text
        assert box.x1 <= width, text
        assert box.y1 <= height, text
    for (one, box), (other, there) in itertools.combinations(boxes.items(), 2):
        assert not box.overlaps(there), f"{one} and {other}"


@pictures([name for name in FEWEST_AND_MOST if "all parts" in name or "hierarchy" in name])
def test_a_picture_stays_within_the_axes_it_is_given(draw, monkeypatch):
    figure, (other, ax) = plt.subplots(1, 2, figsize=(14, 6))
    other.axis("off")
    assert draw(ax) is ax
    assert plt.get_fignums() == [figure.number]
    for text, box in drawn(ax, monkeypatch).items():
        room = ax.get_window_extent().padded(1)
        assert room.x0 <= box.x0, text
        assert room.y0 <= box.y0, text
        assert room.x1 >= box.x1, text
        assert room.y1 >= box.y1, text


@pytest.mark.parametrize(
    ("name", "given"),
    [
        pytest.param(name, given, marks=pytest.mark.slow if given == number % 2 else [])
        for number, name in enumerate(["unrolled, two directions", "cell", "connections", "gates", "hierarchy"])
        for given in (False, True)
    ],
)
def test_a_style_of_the_reader_changes_no_colour(name, given):
    """Pixel for pixel, in a figure that is itself dark."""
    saved = []
    for style in ("default", "dark_background"):
        with plt.style.context(style):
            ax = PICTURES[name](plt.figure().add_subplot() if given else None)
            ax.figure.savefig(file := io.BytesIO(), format="rgba")
            width, height = map(int, ax.figure.canvas.get_width_height())
            x0, y0, x1, y1 = ax.get_window_extent().padded(-2).extents.round().astype(int)
            saved.append(np.frombuffer(file.getbuffer(), np.uint8).reshape(height, width, 4)[-y1 : -y0 or None, x0:x1])
    paper = (saved[0] == 255).all(axis=-1)
    assert 0.1 < paper.mean() < 0.98
    np.testing.assert_array_equal(*saved)


def test_what_is_no_axes_of_x_and_y_is_refused(untyped):
    figure = plt.figure()
    others = {
        "Figure": figure,
        "str": "x",
        "ndarray": plt.subplots(1, 2)[1],
        "one that is 3d": figure.add_subplot(projection="3d"),
        "one that is polar": figure.add_subplot(projection="polar"),
    }
    for name in ("unrolled", "cell", "connections", "gates", "hierarchy"):
        for came, ax in others.items():
            with pytest.raises(TypeError, match=f"ax must be a matplotlib Axes of x and y, .*; got {came}"):
                PICTURES[name](ax)
        assert inspect.signature(getattr(plot, name)).parameters["ax"].kind is inspect.Parameter.KEYWORD_ONLY


@pytest.mark.parametrize(
    ("steps", "columns"),
    [(1, 1), (8, 8), (9, 4), *(pytest.param(*row, marks=pytest.mark.slow) for row in ((4, 4), (20, 4)))],
)
def test_a_cell_stands_at_every_step_that_is_drawn(steps, columns):
    assert len(named(plot.unrolled(weights(lstm.init, 2, 3), steps), "cell")) == columns
    assert len(named(plot.unrolled(two_ways(2, 3), steps), "cell")) == 2 * columns
    assert len(named(plot.unrolled(weights(stack.init, 2, (4, 3)), steps), "cell")) == 2 * columns


DRAWN = {
    "lstm": partial(weights, lstm.init, 2, 3),
    "projection": partial(weights, lstm.init, 2, 3, projection=1),
    "bidirectional": partial(two_ways, 2, 3),
    "stack": partial(weights, stack.init, 2, (4, 3)),
    "bidirectional stack": partial(weights, stack.init, 2, (4, 3), bidirectional=True),
}


@pytest.mark.parametrize(
    ("name", "return_sequences"),
    [
        *((name, True) for name in DRAWN),
        *(("projection", False), ("bidirectional stack", False)),
        *(pytest.param(name, False, marks=pytest.mark.slow) for name in ("lstm", "bidirectional", "stack")),
    ],
)
def test_shapes_of_the_arrays_are_those_of_apply(name, return_sequences):
    params = DRAWN[name]()
    ys, _ = jax.eval_shape(
        lambda params: stack.apply(params, jnp.ones((6, 2)), return_sequences=return_sequences), params
    )
    written = texts(plot.unrolled(params, 6, return_sequences=return_sequences))
    assert "xs (6, 2)" in written
    assert f"ys {ys.shape}" in written
    for leaf in jax.tree.leaves(params):
        assert any(str(leaf.shape) in text for text in written)


def test_layers_merged_otherwise_than_side_by_side_are_drawn_as_what_the_next_one_reads():
    written = texts(plot.unrolled(weights(stack.init, 2, (4, 3), bidirectional=True, merge="sum"), 6))
    assert "outputs of layer 1 (6, 4)" in written
    assert "h of every step, both directions" in written


def test_h_goes_from_the_first_step_read_to_the_last():
    params = weights(lstm.init, 2, 3)
    forward, backward = (texts(plot.unrolled(params, 3, reverse=reverse)) for reverse in (False, True))
    steps = ["$h_{0}$", "$h_{1}$", "$h_{2}$", "$h_{3}$", "$h_{4}$"]
    assert [text for text in forward if text.startswith("$h")] == steps[:-1]
    assert [text for text in backward if text.startswith("$h")] == steps[:0:-1]
    assert [text for text in texts(plot.unrolled(params, 20)) if text.startswith("$h")] == [
        f"$h_{{{step}}}$" for step in (0, 1, 2, 3, 19, 20)
    ]


@pytest.mark.parametrize(("reverse", "returned"), [(False, 3), (True, 0)])
def test_outputs_that_are_not_returned_are_faint(reverse, returned):
    params = weights(lstm.init, 2, 3)
    every = named(plot.unrolled(params, 4, reverse=reverse), "value")
    assert {box.get_linestyle() for box in every} == {"-"}
    outputs = named(plot.unrolled(params, 4, reverse=reverse, return_sequences=False), "value")[4:]
    assert [number for number, box in enumerate(outputs) if box.get_linestyle() == "-"] == [returned]


@pytest.mark.parametrize("options", [{}, {"peepholes": True}, {"coupled": True}, EVERYTHING])
def test_the_cell_has_the_gates_and_the_parts_of_its_params(options):
    params = weights(lstm.init, 20, 50, **options)
    ax = plot.cell(params)
    assert len(named(ax, "gate")) == params.gates
    assert bool(named(ax, "projection")) == (params.w_projection is not None)
    written = texts(ax)
    assert (
        ("peepholes" in written)
        == ("$i_t = \\sigma(z_i + p_i \\odot c_{t-1})$" in written)
        == bool(options.get("peepholes"))
    )
    assert ("$f_t = 1 - i_t$" in written) == bool(options.get("coupled"))
    assert any(str(params.w_x.shape) in text for text in written)


@pytest.mark.parametrize("options", [{}, {"peepholes": True}, EVERYTHING])
def test_the_weights_drawn_are_the_weights(options):
    params = weights(lstm.init, 5, 8, **options)
    ax = plot.connections(params)
    gates = "igo" if options.get("coupled") else "ifgo"
    for name, matrix in {"w_x": params.w_x, "w_h": params.w_h}.items():
        blocks = [named(ax, f"{name} {gate}")[0].get_array() for gate in gates]
        np.testing.assert_array_equal(np.concatenate(blocks, axis=1), matrix)
    scales = {panel.images[0].get_clim() for panel in ax.child_axes if panel.images}
    assert len(scales) == 1
    (low, high) = scales.pop()
    assert -low == high
    assert high >= np.abs(params.w_h).max()
    if params.w_peephole is None:
        assert not named(ax, "w_peephole i")
        return
    seeing = [gate for gate in gates if gate != "g"]
    for gate, peephole in zip(seeing, np.split(np.asarray(params.w_peephole), len(seeing)), strict=True):
        block = named(ax, f"w_peephole {gate}")[0].get_array()
        np.testing.assert_array_equal(np.diag(block), peephole)
        assert block.mask.sum() == 8 * 7
    assert named(ax, "w_peephole g")[0].get_array().mask.all()


@pytest.mark.parametrize("options", [{}, {"projection": 2}])
def test_the_gates_drawn_are_those_of_the_trace(options):
    inside, xs = seen(2, 3, 10, **options)
    ax = plot.gates(inside, xs)
    for name in "ifgoch":
        (image,) = named(ax, name)
        np.testing.assert_array_equal(image.get_array().T, getattr(inside, name))
        low, high = image.get_clim()
        assert (low, high) == (0, 1) if name in "ifo" else -low == high >= np.abs(image.get_array()).max()
    np.testing.assert_array_equal(named(ax, "x")[0].get_array().T, xs)
    labels = [label.get_text() for label in ax.child_axes[3].get_yticklabels()]
    assert labels == ["0", "0.5", "1"]
    assert not named(plot.gates(inside), "x")


def test_gates_that_open_beyond_1_are_not_cut():
    xs = 5 * seen(2, 3, 10)[1]
    inside = traced(weights(lstm.init, 2, 3), xs, options=LSTMOptions(recurrent_activation="relu"))
    most = max(float(getattr(inside, name).max()) for name in "ifo")
    assert most > 1
    assert named(plot.gates(inside), "i")[0].get_clim() == (0, pytest.approx(most))


@pytest.mark.parametrize(
    "lengths", [[4, 2, 3], [0, 3], [1], [0], [3] * 3, pytest.param([8] * 8, marks=pytest.mark.slow)]
)
def test_words_and_padding_are_as_many_as_the_lengths_say(lengths):
    ax = plot.hierarchy(lengths)
    assert len(named(ax, "word")) == sum(lengths)
    assert len(named(ax, "padding")) == len(lengths) * max(lengths) - sum(lengths)
    assert len(named(ax, "code")) == len(named(ax, "tag")) == len(lengths)
    assert all(box.get_hatch() for box in named(ax, "padding"))
    assert f"words [{len(lengths)}, {max(lengths)}]" in texts(ax)


def test_words_stand_in_their_utterances():
    ax = plot.hierarchy([2, 1], words=[["good", "morning"], ["hello"]])
    heights = {text.get_text(): text.get_position()[1] for text in ax.texts}
    assert heights["good"] == heights["morning"] > heights["hello"]


def test_refusals(untyped):
    inside, xs = jax.tree.map(lambda leaf: leaf[:5], seen(2, 3, 10))
    both, layers = two_ways(2, 3), weights(stack.init, 2, (4, 3))
    with pytest.raises(TypeError, match=r"trace has two directions: take trace\.forward or trace\.backward"):
        plot.gates(jax.eval_shape(trace, both, xs))
    with pytest.raises(TypeError, match=r"trace has 2 layers: take one, such as trace\[0\]"):
        plot.gates(jax.eval_shape(trace, layers, xs))
    with pytest.raises(ValueError, match=r"index its batch axes, such as jax\.tree\.map\(lambda leaf: leaf\[0, 0\]"):
        plot.gates(jax.tree.map(lambda leaf: leaf[None, None], inside))
    with pytest.raises(ValueError, match=r"xs must be \[time, inputs\] with the 5 steps of trace; got shape \(4, 2\)"):
        plot.gates(inside, xs[:4])
    with pytest.raises(ValueError, match="trace must have at least 1 step"):
        plot.gates(jax.tree.map(lambda leaf: leaf[:0], inside))
    with pytest.raises(TypeError, match=r"params has two directions: take params\.forward or params\.backward"):
        plot.connections(both)
    with pytest.raises(TypeError, match=r"params has 2 layers: take one, such as params\.layers\[0\]"):
        plot.connections(layers)
    with pytest.raises(TypeError, match=r"params must be LSTMParams, as lstm\.init makes it; got dict"):
        plot.cell({})
    with pytest.raises(TypeError, match="params must be LSTMParams, BidirectionalParams or StackParams"):
        plot.unrolled({})
    with pytest.raises(ValueError, match="steps must be an integer of at least 1, got 0"):
        plot.unrolled(both, 0)
    with pytest.raises(ValueError, match="lengths must have an entry for each of at least 1 utterance; got none"):
        plot.hierarchy([])
    with pytest.raises(ValueError, match="each of lengths must be an integer from 0"):
        plot.hierarchy([2, -1])
    with pytest.raises(ValueError, match=r"words must be as many as lengths say, \[2\]; got \[1\]"):
        plot.hierarchy([2], words=[["one"]])


@pytest.mark.parametrize("name", ["unrolled", "cell", "connections", "gates", "hierarchy"])
def test_without_matplotlib_the_error_says_what_to_install(name, monkeypatch):
    for module in [module for module in sys.modules if module.split(".")[0] == "matplotlib"]:
        monkeypatch.setitem(sys.modules, module, None)
    with pytest.raises(ImportError, match=r"pip install 'lstmjax\[plot\]'"):
        PICTURES[name](None)


@pytest.mark.parametrize("kind", [tuple, np.array, jnp.array])
def test_lengths_of_any_kind_and_words_without_letters(kind):
    ax = plot.hierarchy(kind([2, 1]), words=[["ja", ""], [""]])
    assert "lengths = ([2, 1], 2)" in " ".join(text.get_text() for text in ax.texts)


def test_gates_of_padding_are_not_drawn_as_shut():
    xs = np.ones((6, 2), np.float32)
    xs[4:] = 9
    seen = traced(weights(lstm.init, 2, 3), xs, lengths=4)
    ax = plot.gates(seen, xs, length=4)
    images = [np.ma.filled(image.get_array(), np.nan) for panel in ax.child_axes for image in panel.get_images()]
    assert len(images) >= 7
    for image in images:
        if image.shape[1] == 6:
            assert np.isnan(image[:, 4:]).all()
            assert np.isfinite(image[:, :4]).all()
    for length, words in ((7, "at most the 6 steps"), (0, "at least 1")):
        with pytest.raises(ValueError, match=f"length must be .*{words}"):
            plot.gates(seen, xs, length=length)
