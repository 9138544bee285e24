"""Modules of Flax over the functions of this package, linen and nnx: lengths, resets, all options, its backward pass.

| Flax | here |
| --- | --- |
| `nnx.RNN(nnx.LSTMCell(2, 3, rngs=rngs))` | `LSTM(2, 3, rngs=rngs)` |
| `nnx.Bidirectional(nnx.RNN(...), nnx.RNN(...))` | `Bidirectional(2, 3, rngs=rngs)` |
| `nnx.Sequential(nnx.RNN(...), nnx.RNN(...))` | `Stack(2, (3, 3), rngs=rngs)` |
| | `CRF(tags=5, rngs=rngs)` |
| `nn.RNN(nn.LSTMCell(3))` | `RNN(LSTMCell(3))` |

They are called as Flax's are, and give the same numbers for the same weights. What differs:

- Outputs at padding are 0, and whatever stands there, NaN included, reaches nothing; a length may be 0.
- `resets` begin a sequence anew within a row; `lengths` is another name for `seq_lengths`.
- The forget gate's bias begins at 1 (`forget_bias=0` is Flax's), in the weights and not at run time.
- With `reverse=True` each output stands at its own step; `keep_order=False` puts them in the order of reading, the
  default of Flax. `RNN` alone has that default, too.
- Activations, clips and the dtype to compute in are `LSTMOptions`; dropout of all kinds is `Dropout`.

A carry is Flax's (c, h): of two directions a pair of those, of a stack a tuple with an entry for each layer.

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

from collections.abc import Callable, Sequence
from typing import Any, Self

import flax.linen as nn
import jax
import jax.numpy as jnp
from flax import nnx
from flax.linen.recurrent import flip_sequences
from jax.typing import ArrayLike, DTypeLike
from jaxtyping import Array

from lstmjax import bidirectional, checks, crf, lstm, stack
from lstmjax.bidirectional import BidirectionalParams, BidirectionalState
from lstmjax.crf import CRFParams
from lstmjax.lstm import LSTMParams, LSTMState
from lstmjax.options import LSTMOptions
from lstmjax.regularize import Dropout
from lstmjax.stack import StackParams


class LSTMCell(nn.RNNCellBase):
    """A cell of linen with the parameters of linen's own, for `RNN`, for `nn.RNN`, or for a loop of one's own.

    Args:
        features: length of h and of c.
        options: LSTMOptions.
        forget_bias: added to the forget gate's bias when that is drawn.
        kernel_init: initializer of each gate's kernel on the side of x.
        recurrent_kernel_init: likewise on the side of h.
        bias_init: initializer of each gate's bias.
        param_dtype: of the parameters; float16 and bfloat16 are drawn in float32 and rounded.

    >>> cell = LSTMCell(3)
    >>> carry = cell.initialize_carry(jax.random.key(0), (8, 2))
    >>> variables = cell.init(jax.random.key(1), carry, jnp.ones((8, 2)))
    >>> carry, y = cell.apply(variables, carry, jnp.ones((8, 2)))
    >>> y.shape, variables["params"]["if"]["kernel"].shape
    ((8, 3), (2, 3))
    """

    features: int
    options: LSTMOptions = LSTMOptions()
    forget_bias: float | int = 1.0
    kernel_init: Callable[..., Any] = nn.initializers.lecun_normal()
    recurrent_kernel_init: Callable[..., Any] = nn.initializers.orthogonal()
    bias_init: Callable[..., Any] = nn.initializers.zeros
    param_dtype: Any = jnp.float32

    @nn.compact
    def weights(self, inputs: int) -> LSTMParams:
        """The parameters, which `init` makes for inputs of this length."""
        checks.positive_int("features", self.features)
        added = {"f": checks.number("forget_bias", self.forget_bias)}
        dtype = checks.floating_dtype("param_dtype", self.param_dtype)
        of_x, of_h = [], []
        for gate in "ifgo":
            sides = (
                (of_x, f"i{gate}", inputs, self.kernel_init),
                (of_h, f"h{gate}", self.features, self.recurrent_kernel_init),
            )
            for side, name, rows, initializer in sides:
                bias_init = self.bias_init if side is of_h else None
                side.append(
                    _Gate((rows, self.features), initializer, bias_init, added.get(gate, 0.0), dtype, name=name)()
                )
        (kernels, _), (recurrent, biases) = zip(*of_x, strict=True), zip(*of_h, strict=True)
        return LSTMParams(*(jnp.concatenate(parts, axis=-1) for parts in (kernels, recurrent, biases)))

    def __call__(self, carry: tuple[Array, Array], inputs: ArrayLike) -> tuple[tuple[Array, Array], Array]:
        """Compute one step: from (c, h) and x to the new (c, h) and h."""
        params = self.weights(jnp.shape(inputs)[-1])
        y, state = lstm.step(params, inputs, _state(params, carry), options=self.options)
        return _carry(state), y

    @nn.nowrap
    def initialize_carry(self, rng: Any, input_shape: tuple[int, ...]) -> tuple[Array, Array]:
        """Make (c, h) of zeros: h of the dtype to compute in, c of float32 where that is shorter."""
        del rng
        dtype = self.options.precision or self.param_dtype
        shape = (*input_shape[:-1], self.features)
        return jnp.zeros(shape, checks.at_least_float32(dtype)), jnp.zeros(shape, dtype)

    @property
    def num_feature_axes(self) -> int:
        """One: inputs are [*batch, features]."""
        return 1


class _Gate(nn.Module):
    """The kernel and the bias of one gate on one side, where linen's `Dense` has them."""

    shape: tuple[int, int]
    kernel_init: Callable[..., Any]
    bias_init: Callable[..., Any] | None
    added: float
    dtype: Any

    @nn.compact
    def __call__(self) -> tuple[Array, Array | None]:
        kernel = self.param("kernel", self._drawn, self.kernel_init, self.shape, 0.0)
        if self.bias_init is None:
            return kernel, None
        return kernel, self.param("bias", self._drawn, self.bias_init, self.shape[1:], self.added)

    def _drawn(self, key, initializer, shape, added):
        drawn = initializer(key, shape, checks.at_least_float32(self.dtype))
        return jax.tree.map(lambda array: (array + added).astype(self.dtype), drawn)


class RNN(nn.Module):
    """A cell over time, as linen's `RNN` and with the same parameters; `nn.Bidirectional` takes two of them.

    Args:
        cell: LSTMCell of this module.
        time_major: sequences are [time, *batch, features] in place of [*batch, time, features].
        return_carry: return the final carry, too.
        reverse: read valid steps last to first.
        keep_order: leave each output at its own step where that is so; else they stand in the order of reading.
        unroll: steps in one iteration of the loop.
        dropout: Dropout, drawn from the stream "dropout".
        deterministic: False in training; here or in the call, where there is dropout.
        implementation: as in `lstm.apply`.
        checkpoint: as in `lstm.apply`.

    >>> rnn = RNN(LSTMCell(3))
    >>> xs = jnp.ones((8, 10, 2))
    >>> variables = rnn.init(jax.random.key(0), xs)
    >>> (c, h), ys = rnn.apply(variables, xs, seq_lengths=jnp.arange(8), return_carry=True)
    >>> ys.shape, bool((ys[7, 6] == h[7]).all()), float(ys[0].sum())
    ((8, 10, 3), True, 0.0)
    """

    cell: LSTMCell
    time_major: bool = False
    return_carry: bool = False
    reverse: bool = False
    keep_order: bool = False
    unroll: int = 1
    dropout: Dropout | None = None
    deterministic: bool | None = None
    implementation: str = "auto"
    checkpoint: bool | int = False

    def __call__(
        self,
        inputs: ArrayLike,
        *,
        initial_carry: Any = None,
        init_key: Any = None,
        lengths: Any = None,
        seq_lengths: Any = None,
        resets: Any = None,
        return_carry: bool | None = None,
        time_major: bool | None = None,
        reverse: bool | None = None,
        keep_order: bool | None = None,
        return_sequences: bool = True,
        deterministic: bool | None = None,
    ) -> Any:
        """Run the cell over sequences.

        Args:
            inputs: [*batch, time, features].
            initial_carry: (c, h), each [*batch, units]; None for zeros.
            init_key: of no use, since the initial carry is not drawn; `nn.Bidirectional` gives it.
            lengths: valid steps of each sequence, integers [*batch] from 0 to time.
            seq_lengths: Flax's name of lengths.
            resets: bool [*batch, time], True where the carry returns to zeros before that step; [time, *batch] with
                time_major.
            return_carry: as above, likewise the next three.
            time_major: as above.
            reverse: as above.
            keep_order: as above.
            return_sequences: False returns the final h in place of the outputs.
            deterministic: as above.

        Returns:
            The outputs [*batch, time, units], or ((c, h), outputs).

        Raises:
            ValueError, TypeError: what `lstm.apply` raises; a cell of another kind.
        """
        del init_key
        checks.instance("cell", self.cell, LSTMCell, "lstmjax.flax.LSTMCell(features)")
        key = None
        if self.dropout is not None and not nn.merge_param("deterministic", self.deterministic, deterministic):
            key = self.make_rng("dropout")
        return _run(
            lstm.apply,
            self.cell.weights(jnp.shape(inputs)[-1]),
            inputs,
            initial_carry,
            lengths=lengths,
            seq_lengths=seq_lengths,
            resets=resets,
            return_carry=self.return_carry if return_carry is None else return_carry,
            time_major=self.time_major if time_major is None else time_major,
            reverse=self.reverse if reverse is None else reverse,
            keep_order=self.keep_order if keep_order is None else keep_order,
            return_sequences=return_sequences,
            options=self.cell.options,
            dropout=self.dropout,
            key=key,
            implementation=self.implementation,
            unroll=self.unroll,
            checkpoint=self.checkpoint,
        )


class Offset(nnx.Variable):
    """What is added to biases and never learned: `LSTMParams.offset`."""


class _Module(nnx.Module):
    """Params as variables of nnx, in `weights`."""

    _kind: type
    _init: str
    _smallest: tuple[Any, ...] = (1, 1)

    @classmethod
    def from_params(cls, params: Any, **settings: Any) -> Self:
        """Make a module of given params, from `interop` or from `init` of the functions.

        Args:
            params: the tree that the functions take.
            settings: of the constructor, but for those that draw params; rngs where there is dropout.
        """
        make: Any = cls
        module = make(*cls._smallest, rngs=nnx.Rngs(0))
        module._hold(params, **settings)
        return module

    @property
    def params(self) -> Any:
        """The tree of arrays that the functions and `interop.to_NAME` take."""
        return jax.tree.map(
            lambda variable: variable.get_value(), self.weights, is_leaf=lambda leaf: isinstance(leaf, nnx.Variable)
        )

    def _hold(self, params):
        checks.instance("params", params, self._kind, self._init)
        self.weights = nnx.data(jax.tree_util.tree_map_with_path(_variable, params))


class _Recurrent(_Module):
    def _hold(self, params, *, options=LSTMOptions(), dropout=None, rngs=None):
        super()._hold(params)
        checks.instance("options", options, LSTMOptions, "LSTMOptions(...)")
        if dropout is not None:
            checks.instance("dropout", dropout, Dropout, "Dropout(...)")
        self.options, self.dropout, self.deterministic = options, dropout, False
        self.rngs = nnx.data(None if dropout is None or rngs is None else rngs["dropout"].fork())

    def __call__(
        self,
        inputs: ArrayLike,
        *,
        initial_carry: Any = None,
        lengths: Any = None,
        seq_lengths: Any = None,
        resets: Any = None,
        return_carry: bool = False,
        time_major: bool = False,
        reverse: bool = False,
        keep_order: bool = True,
        return_sequences: bool = True,
        deterministic: bool | None = None,
        rngs: Any = None,
        **arguments: Any,
    ) -> Any:
        """Run over sequences.

        Args:
            inputs: [*batch, time, in_features], any number of batch axes; [time, *batch, in_features] with time_major.
            initial_carry: (c, h), each [*batch, units]; a pair of those for two directions, a tuple with an entry for
                each layer of a stack. None for zeros, or what was learned.
            lengths: valid steps of each sequence, integers [*batch] from 0 to time.
            seq_lengths: Flax's name of lengths.
            resets: bool [*batch, time], True where the state returns to the initial one before that step;
                [time, *batch] with time_major.
            return_carry: return the final carry, too, after the last valid step read.
            time_major: whether time is the first axis.
            reverse: read valid steps last to first.
            keep_order: False puts the outputs in the order of reading, where that is reversed.
            return_sequences: False returns the final h in place of the outputs.
            deterministic: True for no dropout; None for what `train()` and `eval()` have set.
            rngs: for dropout in place of those of the constructor: nnx.Rngs, a stream, or a key.
            arguments: implementation, unroll and checkpoint, as `lstm.apply` takes them.

        Returns:
            The outputs [*batch, time, units], or (carry, outputs).

        Raises:
            ValueError, TypeError: what the functions raise; dropout without rngs.
        """
        return _run(
            self._apply,
            self.params,
            inputs,
            initial_carry,
            lengths=lengths,
            seq_lengths=seq_lengths,
            resets=resets,
            return_carry=return_carry,
            time_major=time_major,
            reverse=reverse,
            keep_order=keep_order,
            return_sequences=return_sequences,
            options=self.options,
            dropout=self.dropout,
            key=self._key(self.deterministic if deterministic is None else deterministic, rngs),
            **arguments,
        )

    def set_view(self, deterministic: bool | None = None) -> None:
        """What `nnx.view` sets.

        Args:
            deterministic: True for no dropout.
        """
        if deterministic is not None:
            self.deterministic = deterministic

    def _apply(self, *args, **arguments):
        raise NotImplementedError

    def _key(self, deterministic, rngs):
        if self.dropout is None or deterministic:
            return None
        if rngs is None or getattr(rngs, "tag", None) == "carry":  # which nnx.Bidirectional gives, for drawing carries
            rngs = self.rngs
        if rngs is None:
            raise ValueError("dropout needs rngs, in the constructor or the call; or eval(), or deterministic=True.")
        if isinstance(rngs, nnx.Rngs):
            rngs = rngs["dropout"]
        return rngs() if isinstance(rngs, nnx.RngStream) else rngs


class LSTM(_Recurrent):
    """An LSTM over time, for `nnx.RNN(nnx.LSTMCell(in_features, hidden_features, rngs=rngs))`.

    Args:
        in_features: length of one input vector.
        hidden_features: length of h and of c.
        rngs: nnx.Rngs, for the parameters and for dropout.
        param_dtype: of the parameters; what is computed in is `options.precision`.
        options: LSTMOptions.
        dropout: Dropout; on until `eval()` or `deterministic=True`.
        arguments: what else `lstm.init` takes.

    >>> layer = LSTM(2, 3, peepholes=True, rngs=nnx.Rngs(0))
    >>> layer(jnp.ones((8, 10, 2)), lengths=jnp.arange(8)).shape
    (8, 10, 3)
    """

    _kind, _init = LSTMParams, "lstm.init"

    def __init__(
        self,
        in_features: int,
        hidden_features: int,
        *,
        rngs: nnx.Rngs,
        param_dtype: DTypeLike = jnp.float32,
        options: LSTMOptions = LSTMOptions(),
        dropout: Dropout | None = None,
        **arguments: Any,
    ):
        """Draw the parameters."""
        params = _drawn(lstm.init, rngs, param_dtype, arguments, in_features, hidden_features)
        self._hold(params, options=options, dropout=dropout, rngs=rngs)

    def _apply(self, *args, **arguments):
        return lstm.apply(*args, **arguments)


class Bidirectional(_Recurrent):
    """Two LSTMs, one of which reads last to first, for `nnx.Bidirectional` of two `nnx.RNN`.

    Args:
        in_features: length of one input vector.
        hidden_features: length of h and of c in each direction.
        rngs: as in `LSTM`.
        merge: "concat", "sum", "mul", "ave", or None for the pair of both halves' outputs.
        param_dtype: as in `LSTM`.
        options: as in `LSTM`.
        dropout: as in `LSTM`.
        arguments: as in `LSTM`.

    >>> Bidirectional(2, 3, rngs=nnx.Rngs(0))(jnp.ones((8, 10, 2)), lengths=jnp.arange(8)).shape
    (8, 10, 6)
    """

    _kind, _init = BidirectionalParams, "bidirectional.init"

    def __init__(
        self,
        in_features: int,
        hidden_features: int,
        *,
        rngs: nnx.Rngs,
        merge: str | None = "concat",
        param_dtype: DTypeLike = jnp.float32,
        options: LSTMOptions = LSTMOptions(),
        dropout: Dropout | None = None,
        **arguments: Any,
    ):
        """Draw the parameters."""
        params = _drawn(bidirectional.init, rngs, param_dtype, arguments, in_features, hidden_features)
        self._hold(params, merge=merge, options=options, dropout=dropout, rngs=rngs)

    def _hold(self, params, *, merge: str | None = "concat", **settings):
        super()._hold(params, **settings)
        self.merge = merge

    def _apply(self, *args, **arguments):
        return bidirectional.apply(*args, merge=self.merge, **arguments)


class Stack(_Recurrent):
    """LSTMs on top of each other, for `nnx.Sequential` of `nnx.RNN` or `nnx.Bidirectional`.

    Args:
        in_features: length of one input vector.
        hidden_features: of each layer, and in each direction.
        rngs: as in `LSTM`.
        bidirectional: whether every layer reads in both directions.
        merge: "concat", "sum", "mul" or "ave", what a layer hands on of both.
        residual_from: the layer from which on inputs are added to outputs, or None.
        param_dtype: as in `LSTM`.
        options: as in `LSTM`.
        dropout: as in `LSTM`, with `between_layers`.
        arguments: as in `LSTM`.

    >>> Stack(2, (4, 3), bidirectional=True, rngs=nnx.Rngs(0))(jnp.ones((8, 10, 2))).shape
    (8, 10, 6)
    """

    _kind, _init, _smallest = StackParams, "stack.init", (1, (1,))

    def __init__(
        self,
        in_features: int,
        hidden_features: Sequence[int],
        *,
        rngs: nnx.Rngs,
        bidirectional: bool = False,
        merge: str = "concat",
        residual_from: int | None = None,
        param_dtype: DTypeLike = jnp.float32,
        options: LSTMOptions = LSTMOptions(),
        dropout: Dropout | None = None,
        **arguments: Any,
    ):
        """Draw the parameters."""
        arguments |= {"bidirectional": bidirectional, "merge": merge}
        params = _drawn(stack.init, rngs, param_dtype, arguments, in_features, hidden_features)
        self._hold(params, merge=merge, residual_from=residual_from, options=options, dropout=dropout, rngs=rngs)

    def _hold(self, params, *, merge="concat", residual_from=None, **settings):
        super()._hold(params, **settings)
        self.merge, self.residual_from = merge, residual_from

    def _apply(self, *args, **arguments):
        return stack.apply(*args, merge=self.merge, residual_from=self.residual_from, **arguments)


class CRF(_Module):
    """A linear chain of tags, on top of the scores of each tag at each step: `lstmjax.crf` with its scores.

    Args:
        tags: number of tags.
        rngs: nnx.Rngs.
        param_dtype: of the scores.
        arguments: what else `crf.init` takes.

    >>> chain = CRF(tags=3, rngs=nnx.Rngs(0))
    >>> emissions, tags = jnp.zeros((8, 10, 3)), jnp.ones((8, 10), int)
    >>> chain(emissions, tags, lengths=jnp.arange(8)).shape, chain.decode(emissions)[0].shape
    ((8,), (8, 10))
    """

    _kind, _init, _smallest = CRFParams, "crf.init", (1,)

    def __init__(self, tags: int, *, rngs: nnx.Rngs, param_dtype: DTypeLike = jnp.float32, **arguments: Any):
        """Draw the scores."""
        self._hold(_drawn(crf.init, rngs, param_dtype, arguments, tags))

    def __call__(self, emissions: ArrayLike, tags: ArrayLike, **arguments: Any) -> Array:
        """The log-likelihood of a path, as `crf.log_likelihood`; its negative is what to train with."""
        return crf.log_likelihood(self.params, emissions, tags, **arguments)

    def log_partition(self, emissions: ArrayLike, **arguments: Any) -> Array:
        """As `crf.log_partition`."""
        return crf.log_partition(self.params, emissions, **arguments)

    def marginals(self, emissions: ArrayLike, **arguments: Any) -> Array:
        """As `crf.marginals`."""
        return crf.marginals(self.params, emissions, **arguments)

    def decode(self, emissions: ArrayLike, **arguments: Any) -> tuple[Array, Array]:
        """The path with the highest score, and that score, as `crf.decode`."""
        return crf.decode(self.params, emissions, **arguments)

    def sample(self, emissions: ArrayLike, *, key: Array, **arguments: Any) -> Array:
        """As `crf.sample`."""
        return crf.sample(self.params, emissions, key=key, **arguments)


def _run(
    apply,
    params,
    xs,
    carry,
    *,
    lengths,
    seq_lengths,
    resets,
    time_major,
    reverse,
    keep_order,
    return_carry,
    return_sequences,
    **arguments,
):
    """Call a function of ours in the manner of Flax."""
    if lengths is not None and seq_lengths is not None:
        raise ValueError("seq_lengths is Flax's name of lengths: give one of them.")
    lengths = seq_lengths if lengths is None else lengths
    if time_major:
        xs, resets = jnp.moveaxis(xs, 0, -2), None if resets is None else jnp.moveaxis(resets, 0, -1)
    ys, state = apply(
        params,
        xs,
        None if carry is None else _state(params, carry),
        lengths=lengths,
        resets=resets,
        reverse=reverse,
        return_sequences=return_sequences,
        **arguments,
    )
    if return_sequences and reverse and not keep_order:
        counts = None if lengths is None else jnp.asarray(lengths)
        ys = jax.tree.map(lambda half: flip_sequences(half, counts, half.ndim - 2, time_major=False), ys)
    if return_sequences and time_major:
        ys = jax.tree.map(lambda half: jnp.moveaxis(half, -2, 0), ys)
    return (_carry(state), ys) if return_carry else ys


def _state(params, carry) -> Any:
    count = len(params.layers) if isinstance(params, StackParams) else 2
    if not isinstance(carry, tuple | list) or len(carry) != count:
        wanted = "(c, h)" if isinstance(params, LSTMParams) else f"a tuple of {count} carries"
        raise TypeError(f"initial_carry must be {wanted}, got {type(carry).__name__}.")
    if isinstance(params, LSTMParams):
        return LSTMState(h=carry[1], c=carry[0])
    if isinstance(params, BidirectionalParams):
        return BidirectionalState(_state(params.forward, carry[0]), _state(params.backward, carry[1]))
    return tuple(map(_state, params.layers, carry))


def _carry(state) -> Any:
    return (state.c, state.h) if isinstance(state, LSTMState) else tuple(map(_carry, state))


def _drawn(init, rngs, param_dtype, arguments, *sizes):
    checks.instance("rngs", rngs, nnx.Rngs, "nnx.Rngs(0)")
    if "dtype" in arguments:
        raise TypeError(
            "dtype is two things here: param_dtype= is that of the parameters, options=LSTMOptions(precision=) that "
            "to compute in."
        )
    return init(rngs.params(), *sizes, dtype=param_dtype, **arguments)


def _variable(path, array):
    return (Offset if path[-1].name == "offset" else nnx.Param)(array)
