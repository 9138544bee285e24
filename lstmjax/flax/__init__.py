"""Modules of Flax over the functions of this package, linen and nnx: lengths, resets, all options, its backward pass.

| Flax | here |
| --- | --- |
| `nnx.RNN(nnx.LSTMCell(2, 3, rngs=rngs))` | `LSTM(2, 3, rngs=rngs)` |
| `nnx.Bidirectional(nnx.RNN(...), nnx.RNN(...))` | `Bidirectional(2, 3, rngs=rngs)` |
| `nnx.Sequential(nnx.RNN(...), nnx.RNN(...))` | `Stack(2, (3, 3), rngs=rngs)` |
| | `CRF(tags=5, rngs=rngs)` |
| `nn.RNN(nn.LSTMCell(3))` | `RNN(LSTMCell(3))` |
| `nn.RNN(nn.OptimizedLSTMCell(3))` in a compact method | `RNN(LSTMCell(3, name="OptimizedLSTMCell_0"))` |

They are made and called as Flax's `RNN` are, and give the same numbers for the same weights. What differs:

- Outputs at padding are 0, and its contents, NaN included, never affect a result; a length may be 0.
- `resets` begin a sequence anew within a row; `lengths` is another name for `seq_lengths`.
- The forget gate's bias begins at 1 (`forget_bias=0` is Flax's), in the weights and not at run time.
- `Bidirectional` heeds `reverse`, which swaps its directions, and `keep_order`.
- Integers are promoted to the dtype of the parameters, as in Flax; a float dtype that is wider than theirs widens.
- Activations, clips and the dtype to compute in are `LSTMOptions`; dropout of all kinds is `Dropout`.
- How a weight is sharded is metadata of it: `layer.weights.w_x.set_metadata(out_sharding=(None, "model"))`.

A carry is Flax's (c, h): of two directions a pair of those, of a stack a tuple with an entry for each layer.

Params and states of the functions, which Flax's checkpoints and TrainState take once this module is imported, are
`flax.serialization`'s business: `to_state_dict`, `from_bytes` and so on.

Weights of Flax's own modules, and of every other library, come and go through `lstmjax.interop`:

>>> import jax
>>> import jax.numpy as jnp
>>> import optax
>>> from flax import linen as nn
>>> from flax import nnx
>>> import lstmjax.flax
>>> from lstmjax import Dropout, interop
>>> theirs = nnx.RNN(nnx.LSTMCell(2, 3, rngs=nnx.Rngs(0)))
>>> ours = lstmjax.flax.LSTM.from_params(interop.from_flax(theirs))
>>> xs = jax.random.normal(jax.random.key(0), (8, 10, 2))
>>> bool(jnp.allclose(ours(xs), theirs(xs), atol=1e-6))
True

With nnx, an LSTM that learns to add up a sequence of any length:

>>> lengths = jnp.arange(1, 9)
>>> wanted = jnp.stack([x[:length].sum() for x, length in zip(xs, lengths)])
>>> class Adder(nnx.Module):
...     def __init__(self, rngs):
...         self.lstm = lstmjax.flax.LSTM(2, 16, dropout=Dropout(inputs=0.1), rngs=rngs)
...         self.out = nnx.Linear(16, 1, rngs=rngs)
...
...     def __call__(self, xs, lengths):
...         return self.out(self.lstm(xs, lengths=lengths, return_sequences=False))[:, 0]
>>> @nnx.jit
... def train(model, optimizer):
...     loss, grads = nnx.value_and_grad(lambda model: jnp.mean((model(xs, lengths) - wanted) ** 2))(model)
...     optimizer.update(model, grads)
...     return loss
>>> model = Adder(nnx.Rngs(0))
>>> optimizer = nnx.Optimizer(model, optax.adam(0.03), wrt=nnx.Param)
>>> losses = [float(train(model, optimizer)) for _ in range(40)]
>>> losses[-1] < 0.5 * losses[0]
True
>>> model.eval()
>>> bool((model(xs, lengths) == model(xs, lengths)).all())
True

With linen the same:

>>> class LinenAdder(nn.Module):
...     @nn.compact
...     def __call__(self, xs, lengths):
...         ys = lstmjax.flax.RNN(lstmjax.flax.LSTMCell(16))(xs, lengths=lengths, return_sequences=False)
...         return nn.Dense(1)(ys)[:, 0]
>>> model = LinenAdder()
>>> variables = model.init(jax.random.key(0), xs, lengths)
>>> tx = optax.adam(0.03)
>>> @jax.jit
... def train(variables, state):
...     loss = lambda variables: jnp.mean((model.apply(variables, xs, lengths) - wanted) ** 2)
...     value, grads = jax.value_and_grad(loss)(variables)
...     updates, state = tx.update(grads, state)
...     return optax.apply_updates(variables, updates), state, value
>>> state, losses = tx.init(variables), []
>>> for _ in range(40):
...     variables, state, value = train(variables, state)
...     losses.append(float(value))
>>> losses[-1] < 0.5 * losses[0]
True
"""

from lstmjax.flax import state_dicts
from lstmjax.flax.linen import RNN as RNN
from lstmjax.flax.linen import LSTMCell as LSTMCell
from lstmjax.flax.nnx import CRF as CRF
from lstmjax.flax.nnx import LSTM as LSTM
from lstmjax.flax.nnx import Bidirectional as Bidirectional
from lstmjax.flax.nnx import Offset as Offset
from lstmjax.flax.nnx import Stack as Stack

state_dicts.register()
