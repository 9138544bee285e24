"""The public functions of layers, and the axes of what they return."""

import dataclasses
import inspect
from collections.abc import Callable
from types import UnionType
from typing import Any

from lstmjax import bidirectional, conv1d, crf, dense, embedding, hierarchy, lstm, residual, stack
from lstmjax.bidirectional import BidirectionalParams
from lstmjax.conv1d import Conv1DParams
from lstmjax.crf import CRFParams
from lstmjax.dense import DenseParams
from lstmjax.embedding import EmbeddingParams
from lstmjax.hierarchy import HierarchyParams
from lstmjax.lstm import LSTMParams
from lstmjax.stack import StackParams


@dataclasses.dataclass(frozen=True)
class Function:
    """A layer's public function.

    Args:
        run: the function, whose first argument is params.
        of: the params that it takes as a layer of its own; it may take others, which it hands on.
        steps: the axes of what it returns between the batch axes and the last one, from its arguments.
        last: whether there is a last one.
        is_row: whether it is a layer by itself.
    """

    run: Callable[..., Any]
    of: type | UnionType
    steps: Callable[[dict[str, Any]], tuple[str, ...]] = lambda _: ()
    last: bool = True
    is_row: bool = True

    @property
    def does(self) -> str:
        """Label next to the name of the layer."""
        return "" if self.run.__name__ == "apply" else f" {self.run.__name__}"


def _in_time(arguments: dict[str, Any]) -> tuple[str, ...]:
    return ("time",) if arguments["return_sequences"] else ()


FUNCTIONS = (
    Function(lstm.apply, LSTMParams, _in_time),
    Function(lstm.step, LSTMParams),
    Function(bidirectional.apply, BidirectionalParams, _in_time),
    Function(stack.apply, StackParams, _in_time),
    Function(stack.step, StackParams),
    Function(hierarchy.apply, HierarchyParams, _in_time),
    Function(hierarchy.encode, LSTMParams | BidirectionalParams | StackParams, is_row=False),
    Function(dense.apply, DenseParams),
    Function(embedding.apply, EmbeddingParams),
    Function(embedding.attend, EmbeddingParams, lambda _: ("vocabulary",), last=False),
    Function(conv1d.apply, Conv1DParams, lambda _: ("steps",)),
    Function(residual.apply, tuple, lambda _: ("steps",)),
    Function(crf.log_likelihood, CRFParams, last=False),
    Function(crf.log_partition, CRFParams, last=False),
    Function(crf.marginals, CRFParams, lambda _: ("time", "tags"), last=False),
    Function(crf.decode, CRFParams, lambda given: ("time",) if given["k"] is None else ("k", "time"), last=False),
    Function(crf.sample, CRFParams, lambda _: ("time",), last=False),
)
WATCHED = {inspect.unwrap(function.run).__code__: function for function in FUNCTIONS}


def told(shape: tuple[int, ...], names: tuple[str, ...]) -> str:
    """The axes of an array with their sizes, of which the last have these names."""
    count = len(shape) - len(names)
    batch = [f"batch {' x '.join(map(str, shape[:count]))}"] if count else []
    return f"[{', '.join([*batch, *(f'{name} {size}' for name, size in zip(names, shape[count:], strict=True))])}]"
