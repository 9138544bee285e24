"""Params made of modules of other libraries may be donated: the modules keep their memory."""

import donation
import jax
import numpy as np
import pytest
from flax import nnx

from lstmjax import interop, lstm

INSTALL = "pip install 'lstmjax[peers]'"
torch = pytest.importorskip("torch", reason=f"torch is not installed: {INSTALL}")
onnx = pytest.importorskip("onnx", reason=f"onnx is not installed: {INSTALL}")


def test_torch_keeps_its_memory():
    module = torch.nn.LSTM(16, 16, num_layers=2, bidirectional=True, proj_size=4)
    donation.check(lambda *_: interop.from_torch(module), *module.parameters())
    donation.check(interop.from_torch, {name: part.numpy() for name, part in module.state_dict().items()})


def test_flax_keeps_its_memory():
    for cell in (nnx.LSTMCell(2, 16, rngs=nnx.Rngs(0)), nnx.OptimizedLSTMCell(2, 16, rngs=nnx.Rngs(0))):
        donation.check(lambda *_, cell=cell: interop.from_flax(cell), *jax.tree.leaves(nnx.state(cell)))


def test_onnx_keeps_its_memory():
    params = lstm.init(jax.random.key(0), 2, 3, learned_state=True)
    params = jax.tree.map(lambda leaf: leaf + 1, params)
    model = interop.to_onnx(params)
    before = model.SerializeToString()
    donation.check(lambda: interop.from_onnx(model)[0])
    assert onnx.ModelProto.FromString(before) == model
    np.testing.assert_array_equal(interop.from_onnx(model)[0].initial.h, params.initial.h)
