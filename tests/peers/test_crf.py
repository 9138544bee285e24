"""Our CRF against pytorch-crf on CPU with the same scores: log-likelihoods, gradients and best paths."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from lstmjax import CRFParams, crf

INSTALL = "python -m pip install -e '.[peers]'"
torch = pytest.importorskip("torch", reason=f"torch is not installed: {INSTALL}")
torchcrf = pytest.importorskip("torchcrf", reason=f"pytorch-crf is not installed: {INSTALL}")
torch.set_num_threads(1)  # its thread pool and XLA's would fight over the cores

LENGTHS = np.array([7, 3, 1, 5])
BATCH, TIME = 4, 7


@pytest.mark.parametrize("tags", [1, 2, 5, 9])
def test_likelihoods_gradients_and_paths(tags, x64):
    rng = np.random.default_rng(tags)
    params = CRFParams(*(jnp.asarray(rng.normal(size=shape)) for shape in ((tags,), (tags, tags), (tags,))))
    emissions, path = rng.normal(size=(BATCH, TIME, tags)), rng.integers(tags, size=(BATCH, TIME))

    peer = torchcrf.CRF(tags, batch_first=True).double()
    scores = peer.start_transitions, peer.transitions, peer.end_transitions
    for theirs, ours in zip(scores, jax.tree.leaves(params), strict=True):
        theirs.data = torch.tensor(np.asarray(ours))
    mask = torch.tensor(np.arange(TIME) < LENGTHS[:, None])
    given = torch.tensor(emissions, requires_grad=True)
    expected = peer(given, torch.tensor(path), mask=mask, reduction="none")
    expected.sum().backward()

    def loss(params, emissions):
        values = crf.log_likelihood(params, emissions, path, lengths=LENGTHS)
        return values.sum(), values

    (_, values), slopes = jax.value_and_grad(loss, argnums=(0, 1), has_aux=True)(params, jnp.asarray(emissions))
    np.testing.assert_allclose(values, expected.detach().numpy(), rtol=1e-12, atol=1e-12)
    for slope, theirs in zip(jax.tree.leaves(slopes), (*scores, given), strict=True):
        np.testing.assert_allclose(slope, theirs.grad.numpy(), rtol=1e-10, atol=1e-12)

    found, _ = crf.decode(params, jnp.asarray(emissions), lengths=LENGTHS)
    for row, best in zip(np.asarray(found), peer.decode(given, mask=mask), strict=True):
        assert row.tolist() == [*best, *[0] * (TIME - len(best))]
