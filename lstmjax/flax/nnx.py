"""Modules of nnx, whose parameters are variables of it."""

import inspect
from typing import Any, ClassVar, Self

import jax
import jax.numpy as jnp
from flax import nnx
from jax.typing import ArrayLike, DTypeLike
from jaxtyping import Array

from lstmjax import bidirectional, crf, lstm, stack
from lstmjax._src import keywords, validation
from lstmjax._src.dropout_masks import Dropout
from lstmjax._src.lstm.options import LSTMOptions
from lstmjax.bidirectional import BidirectionalParams
from lstmjax.crf import CRFParams
from lstmjax.flax import calls
from lstmjax.lstm import LSTMParams
from lstmjax.stack import StackParams


class Offset(nnx.Variable):
    """A variable added to biases and never learned: `LSTMParams.offset`."""


class _Module(nnx.Module):
    """Params as variables of nnx, in `weights`, and settings as attributes."""

    _functions: Any
    _kind: type
    _smallest: tuple[Any, ...] = (1, 1)
    _settings: ClassVar[dict[str, Any]] = {}
    _of_both: tuple[str, ...] = ()  # settings that init takes, too

    @classmethod
    def from_params(cls, params: Any, *, rngs: nnx.Rngs | None = None, **settings: Any) -> Self:
        """Make a module of given params, from `interop` or from `init` of the functions.

        Args:
            params: the tree that the functions take, which is copied.
            rngs: nnx.Rngs, where there is dropout.
            settings: of the constructor, but for those that draw params.
        """
        make: Any = cls
        module = make(*cls._smallest, rngs=nnx.Rngs(0))
        module._hold(jax.tree.map(jnp.array, params), rngs, settings)
        return module

    @property
    def params(self) -> Any:
        """The tree of arrays that the functions and `interop.to_NAME` take."""
        return jax.tree.map(
            lambda variable: variable.get_value(), self.weights, is_leaf=lambda leaf: isinstance(leaf, nnx.Variable)
        )

    def _draw(self, rngs, param_dtype, arguments, *sizes):
        validation.instance("rngs", rngs, nnx.Rngs, "nnx.Rngs(0)")
        if "dtype" in arguments:
            raise TypeError(
                "dtype is two things here: param_dtype= is that of the parameters, that to compute in is "
                "options=LSTMOptions(precision=)."
            )
        settings = {name: arguments[name] for name in self._settings if name in arguments}
        drawn_by = {name: value for name, value in arguments.items() if name not in settings or name in self._of_both}
        self._hold(self._functions.init(rngs.params(), *sizes, dtype=param_dtype, **drawn_by), rngs, settings)

    def _hold(self, params, rngs, settings):
        del rngs
        validation.instance("params", params, self._kind, f"{self._functions.__name__.removeprefix('lstmjax.')}.init")
        if unknown := settings.keys() - self._settings:
            raise TypeError(f"{type(self).__name__} of given params has no {', '.join(sorted(unknown))}.")
        for name, value in (self._settings | settings).items():
            setattr(self, name, value)
        self.weights = nnx.data(jax.tree_util.tree_map_with_path(_variable, params))


class _Recurrent(_Module):
    options: LSTMOptions
    dropout: Dropout | None
    _settings: ClassVar[dict[str, Any]] = {
        "options": LSTMOptions(),
        "dropout": None,
        "return_carry": False,
        "time_major": False,
        "reverse": False,
        "keep_order": False,
        "implementation": "auto",
        "unroll": None,
        "checkpoint": False,
    }

    def __init__(
        self,
        in_features: int,
        hidden_features: Any,
        *,
        rngs: nnx.Rngs,
        param_dtype: DTypeLike = jnp.float32,
        **arguments: Any,
    ):
        """Draw the parameters."""
        self._draw(rngs, param_dtype, arguments, in_features, hidden_features)

    def _hold(self, params, rngs, settings):
        super()._hold(params, rngs, settings)
        validation.instance("options", self.options, LSTMOptions, "LSTMOptions(...)")
        if self.dropout is not None:
            validation.instance("dropout", self.dropout, Dropout, "Dropout(...)")
        self.deterministic = False
        self.rngs = nnx.data(None if self.dropout is None or rngs is None else rngs["dropout"].fork())

    def __call__(
        self,
        inputs: ArrayLike,
        *,
        initial_carry: Any = None,
        lengths: Any = None,
        seq_lengths: Any = None,
        resets: Any = None,
        return_carry: bool | None = None,
        time_major: bool | None = None,
        reverse: bool | None = None,
        keep_order: bool | None = None,
        return_sequences: bool = True,
        deterministic: bool | None = None,
        rngs: Any = None,
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
            return_carry: as in the constructor, likewise the next three; None for what that was told.
            time_major: as above.
            reverse: as above.
            keep_order: as above.
            return_sequences: False returns the final h in place of the outputs.
            deterministic: True for no dropout; None for what `train()` and `eval()` have set.
            rngs: for dropout in place of those of the constructor: nnx.Rngs, a stream, or a key.

        Returns:
            The outputs [*batch, time, units], or (carry, outputs).

        Raises:
            ValueError, TypeError: what the functions raise; dropout without rngs.
        """
        settings = calls.settings(
            self,
            self._settings,
            return_carry=return_carry,
            time_major=time_major,
            reverse=reverse,
            keep_order=keep_order,
        )
        return calls.run(
            self._functions.apply,
            self.params,
            inputs,
            initial_carry,
            lengths=lengths,
            seq_lengths=seq_lengths,
            resets=resets,
            return_sequences=return_sequences,
            key=self._key(self.deterministic if deterministic is None else deterministic, rngs),
            **settings,
        )

    def set_view(self, deterministic: bool | None = None) -> None:
        """Set the attributes that `nnx.view` sets.

        Args:
            deterministic: True for no dropout.
        """
        if deterministic is not None:
            self.deterministic = deterministic

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


_SETTINGS = tuple(_Recurrent._settings)
_DRAWN = [name for name in inspect.signature(lstm.init).parameters if name not in ("key", "inputs", "units")]


@keywords.explained("lstmjax.flax.LSTM", *_SETTINGS, *_DRAWN)
class LSTM(_Recurrent):
    """An LSTM over time, for `nnx.RNN(nnx.LSTMCell(in_features, hidden_features, rngs=rngs))`.

    Args:
        in_features: length of one input vector.
        hidden_features: length of h and of c.
        rngs: nnx.Rngs, for the parameters and for dropout.
        param_dtype: of the parameters; what is computed in is `options.precision`.
        options: LSTMOptions.
        dropout: Dropout; on until `eval()` or `deterministic=True`.
        return_carry: return the final carry, too, after the last valid step read.
        time_major: sequences are [time, *batch, features] in place of [*batch, time, features].
        reverse: read valid steps in reverse order.
        keep_order: leave each output at its own step where that is so; else they stand in the order of reading.
        implementation: as in `lstm.apply`.
        unroll: as in `lstm.apply`.
        checkpoint: as in `lstm.apply`.
        arguments: what else `lstm.init` takes.

    >>> layer = LSTM(2, 3, peepholes=True, rngs=nnx.Rngs(0))
    >>> layer(jnp.ones((8, 10, 2)), lengths=jnp.arange(8)).shape
    (8, 10, 3)
    """

    _functions, _kind = lstm, LSTMParams


@keywords.explained("lstmjax.flax.Bidirectional", *_SETTINGS, *_DRAWN, "merge")
class Bidirectional(_Recurrent):
    """Two LSTMs, one of which reads in reverse order, for `nnx.Bidirectional` of two `nnx.RNN`.

    Args:
        in_features: length of one input vector.
        hidden_features: length of h and of c in each direction.
        rngs: as in `LSTM`.
        param_dtype: as in `LSTM`.
        merge: "concat", "sum", "mul", "ave", or None for the pair of both halves' outputs.
        arguments: what else `LSTM` takes.

    >>> Bidirectional(2, 3, rngs=nnx.Rngs(0))(jnp.ones((8, 10, 2)), lengths=jnp.arange(8)).shape
    (8, 10, 6)
    """

    _functions, _kind = bidirectional, BidirectionalParams
    _settings: ClassVar[dict[str, Any]] = _Recurrent._settings | {"merge": "concat"}


@keywords.explained("lstmjax.flax.Stack", *_SETTINGS, *_DRAWN, "merge", "residual_from", "bidirectional")
class Stack(_Recurrent):
    """LSTMs on top of each other, for `nnx.Sequential` of `nnx.RNN` or `nnx.Bidirectional`.

    Args:
        in_features: length of one input vector.
        hidden_features: of each layer, and in each direction.
        rngs: as in `LSTM`.
        param_dtype: as in `LSTM`.
        bidirectional: whether every layer reads in both directions.
        merge: "concat", "sum", "mul" or "ave", what a layer hands on of both.
        residual_from: the layer from which on inputs are added to outputs, or None.
        dropout: as in `LSTM`, with `between_layers`.
        arguments: what else `LSTM` takes.

    >>> Stack(2, (4, 3), bidirectional=True, rngs=nnx.Rngs(0))(jnp.ones((8, 10, 2))).shape
    (8, 10, 6)
    """

    _functions, _kind, _smallest = stack, StackParams, (1, (1,))
    _settings: ClassVar[dict[str, Any]] = _Recurrent._settings | {"merge": "concat", "residual_from": None}
    _of_both = ("merge",)


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

    _functions, _kind, _smallest = crf, CRFParams, (1,)

    def __init__(self, tags: int, *, rngs: nnx.Rngs, param_dtype: DTypeLike = jnp.float32, **arguments: Any):
        """Draw the scores."""
        self._draw(rngs, param_dtype, arguments, tags)

    def __call__(self, emissions: ArrayLike, tags: ArrayLike, **arguments: Any) -> Array:
        """The log-likelihood of a path, as `crf.log_likelihood`; its negative is what to train with."""
        return crf.log_likelihood(self.params, self._scores(emissions), tags, **arguments)

    def log_partition(self, emissions: ArrayLike, **arguments: Any) -> Array:
        """As `crf.log_partition`."""
        return crf.log_partition(self.params, self._scores(emissions), **arguments)

    def marginals(self, emissions: ArrayLike, **arguments: Any) -> Array:
        """As `crf.marginals`."""
        return crf.marginals(self.params, self._scores(emissions), **arguments)

    def decode(self, emissions: ArrayLike, **arguments: Any) -> tuple[Array, Array]:
        """The path with the highest score, and that score, as `crf.decode`."""
        return crf.decode(self.params, self._scores(emissions), **arguments)

    def sample(self, emissions: ArrayLike, *, key: Array, **arguments: Any) -> Array:
        """As `crf.sample`."""
        return crf.sample(self.params, self._scores(emissions), key=key, **arguments)

    def _scores(self, emissions):
        return calls.promoted(self.params, "emissions", emissions)


def _variable(path, array):
    return (Offset if path[-1].name == "offset" else nnx.Param)(array)
