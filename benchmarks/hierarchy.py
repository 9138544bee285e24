"""Words to utterances to conversations, here, in Keras 3 and in Flax nnx: `python -m benchmarks.hierarchy`.

The same bidirectional LSTM at both levels with the same weights, each library in a process of its own, all on JAX.
Rounds are interleaved; ratios to lstmjax are medians of ratios taken round by round, with their quartiles. Compiling
is from the Python function to the executable, with caches cleared. `pip install -e '.[peers]' flax` brings the peers.
"""

import argparse
import importlib
import importlib.metadata
import os
import platform
import statistics
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np

from benchmarks import race
from benchmarks.markdown import used
from lstmjax import BidirectionalParams, HierarchyParams, LevelParams, LSTMParams, dense, embedding, hierarchy

SIZES = [(4, 32, 16, 64, 64), (8, 64, 24, 100, 100)]
VOCABULARY, TAGS = 1000, 41
KINDS = "training", "forward"


def drawn(features: int, units: int) -> dict[str, Any]:
    """The weights: a table, an LSTM (w_x, w_h, bias) for each level and direction, and a dense layer."""
    rng = np.random.default_rng(0)

    def draw(*shape):
        return rng.normal(scale=shape[0] ** -0.5, size=shape).astype(np.float32)

    def lstm(inputs):
        return draw(inputs, 4 * units), draw(units, 4 * units), 0.1 * draw(4 * units)

    return {
        "table": draw(VOCABULARY, features) * VOCABULARY**0.5,
        "words": [lstm(features), lstm(features)],
        "utterances": [lstm(2 * units), lstm(2 * units)],
        "dense": (draw(2 * units, TAGS), 0.1 * draw(TAGS)),
    }


def conversations(count: int, utterances: int, words: int) -> dict[str, Any]:
    """The first conversation is full, the last empty; in those between, some utterances have no words."""
    rng = np.random.default_rng(1)
    spoken = rng.integers(utterances // 2, utterances + 1, count).astype(np.int32)
    spoken[0], spoken[-1] = utterances, 0
    said = rng.integers(1, words + 1, (count, utterances)) * (rng.random((count, utterances)) > 1 / 8)
    said[0] = words
    real = np.arange(utterances) < spoken[:, None]
    said = np.where(real, said, 0).astype(np.int32)
    tokens = rng.integers(1, VOCABULARY, (count, utterances, words)) * (np.arange(words) < said[..., None])
    tags = rng.integers(0, TAGS, (count, utterances))
    return {"tokens": tokens.astype(np.int32), "said": said, "spoken": spoken, "real": real, "tags": tags}


def double_loop(weights: dict[str, Any], data: dict[str, Any]) -> np.ndarray:
    """Scores in float64, one utterance and one conversation at a time, without padding."""

    def sigmoid(z):
        return 1 / (1 + np.exp(-z))

    def run(lstm, xs):
        w_x, w_h, bias = (w.astype(np.float64) for w in lstm)
        h = c = np.zeros(len(w_h))
        hs = []
        for x in xs:
            i, f, g, o = np.split(x @ w_x + h @ w_h + bias, 4)
            c = sigmoid(f) * c + sigmoid(i) * np.tanh(g)
            h = sigmoid(o) * np.tanh(c)
            hs.append(h)
        return np.array(hs).reshape(len(xs), len(h)), h

    def code(words):
        forward, backward = weights["words"]
        xs = weights["table"][words].astype(np.float64)
        return np.concatenate([run(forward, xs)[1], run(backward, xs[::-1])[1]])

    scores = np.zeros((*data["real"].shape, TAGS))
    for row, count in enumerate(data["spoken"]):
        if count:
            xs = [code(data["tokens"][row, n, : data["said"][row, n]]) for n in range(count)]
            forward, backward = weights["utterances"]
            ys = np.concatenate([run(forward, xs)[0], run(backward, xs[::-1])[0][::-1]], axis=-1)
            scores[row, :count] = ys @ weights["dense"][0] + weights["dense"][1]
    return scores


# A model is (parameters, scores(parameters, tokens, said, spoken), the embedding's table in its parameters)
Model = tuple[Any, Callable[..., Any], Callable[[Any], Any]]


def ours(weights: dict[str, Any], utterances: int, words: int) -> Model:
    del utterances, words

    def level(name, table=None):
        forward, backward = (LSTMParams(*lstm) for lstm in weights[name])
        return LevelParams(BidirectionalParams(forward, backward), table)

    lower = level("words", embedding.EmbeddingParams(weights["table"]))
    params = HierarchyParams((lower, level("utterances"))), dense.DenseParams(*weights["dense"])

    def scores(params, tokens, said, spoken):
        return dense.apply(params[1], hierarchy.apply(params[0], tokens, lengths=(said, spoken)))

    return params, scores, lambda params: params[0].levels[0].embedding.table


def keras_time_distributed(weights: dict[str, Any], utterances: int, words: int) -> Model:
    return _keras(weights, utterances, words, folded=False)


def keras_folded(weights: dict[str, Any], utterances: int, words: int) -> Model:
    return _keras(weights, utterances, words, folded=True)


def _keras(weights: dict[str, Any], utterances: int, words: int, *, folded: bool) -> Model:
    os.environ["KERAS_BACKEND"] = "jax"  # read at the import
    keras: Any = importlib.import_module("keras")
    layers, ops = keras.layers, keras.ops

    features, units = weights["table"].shape[1], len(weights["words"][0][1])
    table = layers.Embedding(VOCABULARY, features, mask_zero=True)
    lower = layers.Bidirectional(layers.LSTM(units))
    upper = layers.Bidirectional(layers.LSTM(units, return_sequences=True))
    dense = layers.Dense(TAGS)

    tokens = keras.Input((utterances, words), dtype="int32")
    real = keras.Input((utterances,), dtype="bool")
    if folded:
        codes = lower(table(ops.reshape(tokens, (-1, words))))
        codes = ops.reshape(codes, (-1, utterances, 2 * units))
    else:
        codes = layers.TimeDistributed(lower)(table(tokens))
    # of its own, the upper level would skip utterances without words: codes bring along the mask of words alone
    model = keras.Model([tokens, real], dense(upper(codes, mask=real)))

    table.set_weights([weights["table"]])
    for layer, name in ((lower, "words"), (upper, "utterances")):
        layer.set_weights([w for lstm in weights[name] for w in lstm])
    dense.set_weights(weights["dense"])
    rest = [v.value for v in model.non_trainable_variables]
    place = [v.path for v in model.trainable_variables].index(table.embeddings.path)

    def scores(params, tokens, said, spoken):
        del said  # Keras reads it off the zeros in tokens
        real = ops.arange(utterances) < spoken[:, None]
        return model.stateless_call(params, rest, [tokens, real])[0]

    return [v.value for v in model.trainable_variables], scores, lambda params: params[place]


def flax_vmap(weights: dict[str, Any], utterances: int, words: int) -> Model:
    del utterances, words
    import jax.numpy as jnp

    nnx: Any = importlib.import_module("flax.nnx")
    features, units = weights["table"].shape[1], len(weights["words"][0][1])

    def encoder(name, inputs):
        rngs = nnx.Rngs(0)
        halves = []
        for w_x, w_h, bias in weights[name]:
            cell = nnx.OptimizedLSTMCell(inputs, units, rngs=rngs)
            cell.dense_i.kernel[...], cell.dense_h.kernel[...], cell.dense_h.bias[...] = w_x, w_h, bias
            halves.append(nnx.RNN(cell))
        return nnx.Bidirectional(*halves, return_carry=True)

    class Model(nnx.Module):
        def __init__(self):
            self.table = nnx.Embed(VOCABULARY, features, rngs=nnx.Rngs(0))
            self.words, self.utterances = encoder("words", features), encoder("utterances", 2 * units)
            self.dense = nnx.Linear(2 * units, TAGS, rngs=nnx.Rngs(0))
            self.table.embedding[...] = weights["table"]
            self.dense.kernel[...], self.dense.bias[...] = weights["dense"]

        def __call__(self, tokens, said, spoken):
            def code(words, xs, lengths):
                ((_, forward), (_, backward)), _ = words(xs, seq_lengths=lengths)
                return jnp.concatenate([forward, backward], axis=-1)

            axes = nnx.StateAxes({nnx.Param: None, ...: None}), 0, 0
            codes = nnx.vmap(code, in_axes=axes)(self.words, self.table(tokens), said)
            _, ys = self.utterances(codes, seq_lengths=spoken)
            return self.dense(ys)

    graph, params, rest = nnx.split(Model(), nnx.Param, ...)

    def scores(params, tokens, said, spoken):
        return nnx.merge(graph, params, rest, copy=True)(tokens, said, spoken)

    return params, scores, lambda params: params["table"]["embedding"][...]


MODELS = {
    "lstmjax": (ours, ["lstmjax", "jax"]),
    "Keras 3, TimeDistributed": (keras_time_distributed, ["keras"]),
    "Keras 3, folded by hand": (keras_folded, ["keras"]),
    "Flax nnx, vmap": (flax_vmap, ["flax"]),
}


def serve(name: str, size: tuple[int, ...], folder: Path) -> None:
    """In its own process: compile, run, and leave scores and the gradient of the embedding in a file."""
    import jax

    count, utterances, words, features, units = size
    params, scores, table = MODELS[name][0](drawn(features, units), utterances, words)
    data = conversations(count, utterances, words)
    inputs = {key: jax.device_put(data[key]) for key in ("tokens", "said", "spoken")}
    tags, real = jax.device_put((data["tags"], data["real"]))

    def loss(params, inputs):
        chosen = jax.numpy.take_along_axis(jax.nn.log_softmax(scores(params, **inputs)), tags[..., None], axis=-1)
        return -jax.numpy.sum(chosen[..., 0], where=real) / jax.numpy.sum(real)

    functions = {"training": jax.value_and_grad(loss), "forward": lambda params, inputs: scores(params, **inputs)}
    compiled: dict[str, Any] = {}
    jax.jit(lambda x: x + 1)(1.0)

    def build(kind):
        jax.clear_caches()
        start = time.perf_counter()
        compiled[kind] = jax.jit(functions[kind]).lower(params, inputs).compile()
        return time.perf_counter() - start

    def run(kind):
        return race.timed(lambda: jax.block_until_ready(compiled[kind](params, inputs)), *race.INSIDE)

    def outputs():
        gradient = table(compiled["training"](params, inputs)[1])
        np.savez(folder / f"{name}.npz", scores=compiled["forward"](params, inputs), gradient=gradient)

    race.serve({"compile": build, "run": run, "outputs": outputs})


def measure(size: tuple[int, ...], rounds: int, compiles: int) -> tuple[list[list[str]], list[dict[str, Any]]]:
    """A row for each figure that is measured or compared: a title, then a cell for each model; and their timings."""
    with tempfile.TemporaryDirectory() as folder:
        told = ["--folder", folder, "--sizes", ",".join(map(str, size))]
        commands = {
            name: ["benchmarks.hierarchy", "--serve", name, *told]
            for name, (_, needed) in MODELS.items()
            if not race.missing(needed)
        }
        with race.started(commands) as processes:
            times = {f"compile {kind}": race.rounds(processes, compiles, "compile", kind) for kind in KINDS}
            timings = []
            for kind in KINDS:
                found = {n: race.summary(each) for n, each in race.rounds(processes, rounds, "run", kind).items()}
                times[kind] = {name: timing["seconds"] for name, timing in found.items()}
                timings += [timing | {"case": kind, "peer": name} for name, timing in found.items()]
            race.rounds(processes, 1, "outputs")
            outputs = {name: dict(np.load(Path(folder) / f"{name}.npz")) for name in processes}
    return [[what, *cells(taken)] for what, taken in times.items()] + agreement(size, outputs), timings


def cells(times: dict[str, list[float]]) -> list[str]:
    base = times["lstmjax"]
    texts = {name: race.beside(taken, base) for name, taken in times.items()}
    texts["lstmjax"] = race.seconds(statistics.median(base))
    return [texts.get(name, "not installed") for name in MODELS]


def agreement(size: tuple[int, ...], outputs: dict[str, Any]) -> list[list[str]]:
    """The largest differences of scores from a float64 loop, and of the embedding's gradient from ours."""
    count, utterances, words, features, units = size
    data = conversations(count, utterances, words)
    expected = double_loop(drawn(features, units), data)
    real = data["real"]
    silent = real & (data["said"] == 0)
    untouched = real & ~silent.any(axis=1, keepdims=True)
    gradient = outputs["lstmjax"]["gradient"]
    places = {"real utterances": real, "those of conversations without an empty utterance": untouched}
    rows = []
    for title, where in places.items():
        off = {name: np.abs(each["scores"] - expected)[where].max(initial=0) for name, each in outputs.items()}
        rows.append([f"scores off, {title} ({where.sum()})", *(f"{off[n]:.1e}" if n in off else "" for n in MODELS)])
    off = {name: np.abs(each["gradient"] - gradient).max() / np.abs(gradient).max() for name, each in outputs.items()}
    rows.append(
        ["gradient of the table off ours, of its largest", *(f"{off[n]:.1e}" if n in off else "" for n in MODELS)]
    )
    return rows


def main() -> None:
    parser = argparse.ArgumentParser(description="Hierarchies here, in Keras 3 and in Flax nnx.")
    parser.add_argument(
        "--rounds", type=race.count, default=20, help="timed rounds over all libraries of a size, at least 2"
    )
    parser.add_argument(
        "--compiles", type=race.count, default=3, help="times that each program is compiled, at least 2"
    )
    parser.add_argument(
        "--sizes", nargs="+", default=SIZES, type=sizes, help="conversations,utterances,words,embedding,units"
    )
    parser.add_argument("--serve", choices=MODELS, help=argparse.SUPPRESS)
    parser.add_argument("--folder", type=Path, help=argparse.SUPPRESS)
    given = parser.parse_args()
    if given.serve:
        return serve(given.serve, given.sizes[0], given.folder)
    versions = [n for n in ("jax", "keras", "flax") if not race.missing([n])]
    print(", ".join(f"{n} {importlib.metadata.version(n)}" for n in versions), end=", ")
    print(platform.processor() or platform.machine())
    for size in given.sizes:
        print("\nconversations, utterances, words, embedding, units = " + ", ".join(map(str, size)))
        print("\n| | " + " | ".join(MODELS) + " |\n| --- |" + " --- |" * len(MODELS))
        rows, timings = measure(size, given.rounds, given.compiles)
        print("\n".join("| " + " | ".join(row) + " |" for row in rows), flush=True)
        print("", *used(timings), sep="\n")


def sizes(text: str) -> tuple[int, ...]:
    size = tuple(int(number) for number in text.split(","))
    if len(size) != 5:
        raise argparse.ArgumentTypeError(f"five numbers, such as 4,32,16,64,64; got {text!r}.")
    return size


if __name__ == "__main__":
    main()
