"""MNIST by rows, on a small stand-in for the data: what is read, measured and compared with."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import scipy.optimize

from experiments import models
from experiments.models import Model
from experiments.tasks import mnist_rows

RNG = np.random.default_rng(0)


@pytest.fixture(scope="module")
def data():
    """Noise around one pattern per digit, with digit 7 the commonest to train on."""
    patterns = RNG.random((10, 28, 28), np.float32)

    def split(count):
        digits = np.where(RNG.random(count) < 0.3, 7, RNG.integers(0, 10, count)).astype(np.int32)
        return patterns[digits] + RNG.normal(0, 2.0, (count, 28, 28)).astype(np.float32), digits

    return {"train": split(200), "validation": split(20), "test": split(40)}


@pytest.fixture
def task(data, monkeypatch):
    monkeypatch.setattr(mnist_rows.mnist, "load", lambda: data)
    monkeypatch.setattr(mnist_rows, "AT_ONCE", 10)
    return mnist_rows.build(mnist_rows.Options(), Model(units=4), 8, jax.random.key(0))


def test_split_measured_in_pieces_is_the_split_measured_whole(task, data):
    params = jax.jit(task.init)(jax.random.key(1))
    images, digits = data["test"]
    last = jax.jit(functools.partial(models.last, Model(units=4)))
    logits = np.asarray(last(params, images), np.float64)
    outputs = np.exp(logits) / np.exp(logits).sum(axis=1, keepdims=True)
    figures = jax.jit(task.evaluate)(params, task.splits["test"])
    assert float(figures["accuracy"]) == pytest.approx(np.mean(logits.argmax(axis=1) == digits))
    assert float(figures["loss"]) == pytest.approx(-np.mean(np.log(outputs[np.arange(40), digits])), rel=1e-5)


def test_baselines_recomputed_image_by_image(task, data):
    (images, digits), (tested, truth) = data["train"], data["test"]
    means = [images[digits == digit].mean(axis=0) for digit in range(10)]
    nearest = [min(range(10), key=lambda d, i=image: ((i - means[d]) ** 2).sum()) for image in tested]
    assert task.baselines()["nearest mean image"]["accuracy"] == pytest.approx(np.mean(nearest == truth))
    assert task.baselines()["commonest"]["accuracy"] == pytest.approx(np.mean(truth == 7))


def test_the_linear_baseline_minimizes_its_loss(task, data, monkeypatch):
    monkeypatch.setattr(mnist_rows, "TOLERANCE", 1e-6)
    (images, digits), (tested, truth) = data["train"], data["test"]
    pixels, truly = images.reshape(200, 784).astype(float), np.eye(10)[digits]

    def loss(flat):
        weights, bias = flat[:7840].reshape(784, 10), flat[7840:]
        logits = pixels @ weights + bias
        outputs = np.exp(logits) / np.exp(logits).sum(axis=1, keepdims=True)
        value = -np.log(outputs[truly > 0]).sum() + (weights**2).sum() / 2 / mnist_rows.PENALTY
        slope = outputs - truly
        return value, np.append(pixels.T @ slope + weights / mnist_rows.PENALTY, slope.sum(axis=0))

    best = scipy.optimize.minimize(loss, np.zeros(7850), jac=True, method="L-BFGS-B").x
    said = (tested.reshape(40, 784) @ best[:7840].reshape(784, 10) + best[7840:]).argmax(axis=1)
    assert task.baselines()["linear, all pixels"]["accuracy"] == pytest.approx(np.mean(said == truth))


def reader(task):
    """The batches of some steps."""
    return jax.jit(lambda steps: task.batches(task.splits["train"], jax.random.key(2), steps))


def test_batches_keep_each_image_with_its_digit(task, data):
    batches = reader(task)(jnp.arange(25))
    images, digits = data["train"]
    known = {image.tobytes(): digit for image, digit in zip(images, digits, strict=True)}
    rows = np.asarray(batches["rows"]).reshape(-1, 28, 28)
    assert [known[row.tobytes()] for row in rows] == np.asarray(batches["digit"]).ravel().tolist()
    assert len({row.tobytes() for row in rows}) == 200


def test_half_of_the_images_are_mirrored_others_each_time(data, monkeypatch):
    monkeypatch.setattr(mnist_rows.mnist, "load", lambda: data)
    plain, mirrored = (
        mnist_rows.build(mnist_rows.Options(mirror=mirror), Model(units=4), 8, jax.random.key(0))
        for mirror in (False, True)
    )
    steps = jnp.arange(50)  # twice through the images
    read = reader(mirrored)
    expected, batches = reader(plain)(steps), read(steps)
    images, rows = (np.asarray(batch["rows"]) for batch in (expected, batches))
    turned = (rows == images[..., ::-1]).all(axis=(2, 3))
    assert (turned | (rows == images).all(axis=(2, 3))).all()
    assert 0.4 < turned.mean() < 0.6
    assert (turned[:25] != turned[25:]).any()
    np.testing.assert_array_equal(batches["digit"], expected["digit"])
    late = read(steps + 30)
    np.testing.assert_array_equal(late["rows"][:20], rows[30:])
    for name in ("validation", "test"):
        np.testing.assert_array_equal(mirrored.splits[name]["rows"], data[name][0])
