"""The cell of linen, and its loop over time."""

from collections.abc import Callable
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
from jax.typing import ArrayLike
from jaxtyping import Array

from lstmjax import lstm
from lstmjax._src import keywords, validation
from lstmjax._src.dropout_masks import Dropout
from lstmjax._src.lstm.options import LSTMOptions
from lstmjax.flax import calls
from lstmjax.lstm import LSTMParams


@keywords.explained("lstmjax.flax.LSTMCell")
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
        validation.positive_int("features", self.features)
        added = {"f": validation.number("forget_bias", self.forget_bias)}
        dtype = validation.floating_dtype("param_dtype", self.param_dtype)

        def gates(side, rows, kernel_init, bias_init):
            shape, every = (rows, self.features), [(gate, added.get(gate, 0.0)) for gate in "ifgo"]
            drawn = [_Gate(shape, kernel_init, bias_init, more, dtype, name=f"{side}{gate}")() for gate, more in every]
            return (jnp.concatenate(parts, axis=-1) for parts in zip(*drawn, strict=True))

        (w_x,) = gates("i", inputs, self.kernel_init, None)
        w_h, bias = gates("h", self.features, self.recurrent_kernel_init, self.bias_init)
        return LSTMParams(w_x, w_h, bias)

    def __call__(self, carry: tuple[Array, Array], inputs: ArrayLike) -> tuple[tuple[Array, Array], Array]:
        """Compute one step: from (c, h) and x to the new (c, h), in the dtypes of the old ones, and h.

        So `nn.RNN` can carry them whatever the dtype of its inputs.
        """
        params = self.weights(jnp.shape(inputs)[-1])
        before = calls.state(params, carry)
        y, after = lstm.step(params, calls.promoted(params, "inputs", inputs), before, options=self.options)
        return calls.carry_of(jax.tree.map(lambda new, old: new.astype(old.dtype), after, before)), y

    @nn.nowrap
    def initialize_carry(self, rng: Any, input_shape: tuple[int, ...] | Any) -> tuple[Array, Array]:
        """Make (c, h) of zeros: h of the dtype to compute in, c of float32 where that is shorter.

        Args:
            rng: of no use, since zeros are not drawn.
            input_shape: [*batch, features] of one step's inputs; an integer is the size of a batch.
        """
        del rng
        dtype = self.options.precision or self.param_dtype
        batch = input_shape[:-1] if isinstance(input_shape, tuple | list) else validation.batch(input_shape)
        shape = (*batch, self.features)
        return jnp.zeros(shape, validation.at_least_float32(dtype)), jnp.zeros(shape, dtype)

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
    def __call__(self) -> tuple[Array, ...]:
        kernel = self.param("kernel", self._drawn, self.kernel_init, self.shape, 0.0)
        if self.bias_init is None:
            return (kernel,)
        return kernel, self.param("bias", self._drawn, self.bias_init, self.shape[1:], self.added)

    def _drawn(self, key, initializer, shape, added):
        drawn = initializer(key, shape, validation.at_least_float32(self.dtype))
        return jax.tree.map(lambda array: (array + added).astype(self.dtype), drawn)


@keywords.explained("lstmjax.flax.RNN")
class RNN(nn.Module):
    """A cell over time, as linen's `RNN` and with the same parameters; `nn.Bidirectional` takes two of them.

    Args:
        cell: LSTMCell of this module.
        time_major: sequences are [time, *batch, features] in place of [*batch, time, features].
        return_carry: return the final carry, too.
        reverse: read valid steps in reverse order.
        keep_order: leave each output at its own step where that is so; else they stand in the order of reading.
        unroll: steps in one iteration of the loop; None for what `lstm.apply` chooses.
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
    unroll: int | None = None
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
            inputs: [*batch, time, features], or [time, *batch, features] with time_major; likewise resets.
            initial_carry: (c, h), each [*batch, units]; None for zeros.
            init_key: of no use, since the initial carry is not drawn; `nn.Bidirectional` gives it.
            lengths: valid steps of each sequence, integers [*batch] from 0 to time.
            seq_lengths: Flax's name of lengths.
            resets: bool [*batch, time], True where the carry returns to zeros before that step.
            return_carry: None for the attribute, likewise the next three.
            time_major: as above.
            reverse: as above.
            keep_order: as above.
            return_sequences: False returns the final h in place of the outputs.
            deterministic: False in training; here or as the attribute, where there is dropout.

        Returns:
            The outputs [*batch, time, units], or ((c, h), outputs).

        Raises:
            ValueError, TypeError: what `lstm.apply` raises; a cell of another kind.
        """
        del init_key
        validation.instance("cell", self.cell, LSTMCell, "lstmjax.flax.LSTMCell(features)")
        key = None
        if self.dropout is not None and not nn.merge_param("deterministic", self.deterministic, deterministic):
            key = self.make_rng("dropout")
        settings = calls.settings(
            self,
            (
                "return_carry",
                "time_major",
                "reverse",
                "keep_order",
                "unroll",
                "dropout",
                "implementation",
                "checkpoint",
            ),
            return_carry=return_carry,
            time_major=time_major,
            reverse=reverse,
            keep_order=keep_order,
        )
        return calls.run(
            lstm.apply,
            self.cell.weights(jnp.shape(inputs)[-1]),
            inputs,
            initial_carry,
            lengths=lengths,
            seq_lengths=seq_lengths,
            resets=resets,
            return_sequences=return_sequences,
            options=self.cell.options,
            key=key,
            **settings,
        )
