"""PyTorch: `torch.nn.LSTM`, its layers, directions, projection and both biases.

w_x = weight_ih^T    w_h = weight_hh^T    bias = bias_ih    bias_h = bias_hh    w_projection = weight_hr^T
"""

import re
from typing import Any

import numpy as np

from lstmjax._src import keywords
from lstmjax.interop import gates
from lstmjax.lstm import LSTMParams

FIELDS = {"w_x": "weight_ih", "w_h": "weight_hh", "bias": "bias_ih", "bias_h": "bias_hh", "w_projection": "weight_hr"}
NAME = re.compile(rf"({'|'.join(FIELDS.values())})(?:_l(\d+)(_reverse)?)?")


@keywords.explained("interop.from_torch")
def from_torch(source: Any, *, prefix: str = "") -> gates.RECURRENT:
    """Take the weights of a `torch.nn.LSTM`, or of a `torch.nn.LSTMCell`.

    Args:
        source: the module, or a state dict of it, whose values may be NumPy's too. Axes are ours, [*batch, time,
            features], with `batch_first` or without.
        prefix: what the names in the state dict of a larger model begin with, such as "encoder.lstm."; names that
            begin otherwise are left alone.

    Returns:
        LSTMParams, BidirectionalParams, or StackParams of either where there are several layers. Both biases are
        kept, `bias` and `bias_h`, since each is learned: with one, the same optimiser takes other steps.

    Raises:
        ValueError: a name that is none of an LSTM's, one that is missing, shapes that do not fit each other, a module
            in training that has dropout;
        TypeError: another kind of source, or a dtype that is not floating.

    >>> import numpy as np
    >>> weights = {"weight_ih_l0": np.ones((12, 2), "f"), "weight_hh_l0": np.ones((12, 3), "f")}
    >>> biases = {"bias_ih_l0": np.ones(12, "f"), "bias_hh_l0": np.ones(12, "f")}
    >>> from_torch(weights | biases).w_x.shape
    (2, 12)
    """
    weights = _weights(source, prefix)
    found: dict[tuple[int, bool], dict[str, Any]] = {}
    fields = {name: field for field, name in FIELDS.items()}
    for name, value in weights.items():
        match = NAME.fullmatch(name)
        if match is None:
            if set(weights) <= {"weight", "bias"}:
                raise ValueError(f"source must have the weights of an LSTM; got {', '.join(weights)}: {gates.DENSE}.")
            raise ValueError(
                f"source has {prefix + name!r}, which is no weight of torch.nn.LSTM: give the module of the LSTM "
                'itself, or what its names begin with, such as prefix="encoder.lstm."'
            )
        part, layer, backward = match.groups()
        found.setdefault((int(layer or 0), backward is not None), {})[fields[part]] = value
    if not found:
        raise ValueError(f"source must have the weights of an LSTM, such as {prefix}weight_ih_l0; got none.")
    count, directions = 1 + max(layer for layer, _ in found), (False, True) if (0, True) in found else (False,)
    whole = {(layer, backward) for layer in range(count) for backward in directions}
    parts = {place: set(found.get(place, ())) for place in whole | set(found)}
    expected = {"w_x", "w_h", *parts.get((0, False), ())}
    for (layer, backward), has in sorted(parts.items()):
        if has != expected or (layer, backward) not in whole:
            suffix = f"_l{layer}{'_reverse' if backward else ''}"
            names = ", ".join(sorted(prefix + FIELDS[field] + suffix for field in has ^ expected)) or prefix + suffix
            raise ValueError(f"source must have the same weights in every layer and direction; check {names}.")
    layers, inputs = [], None
    for layer in range(count):
        halves = [_half(found[layer, backward], layer, backward, inputs) for backward in directions]
        layers.append(tuple(halves))
        inputs = sum(half.outputs for half in halves)
    return gates.gathered(layers)


@keywords.explained("interop.to_torch")
def to_torch(params: gates.RECURRENT) -> dict[str, Any]:
    """Make the state dict that `torch.nn.LSTM.load_state_dict` takes.

    Args:
        params: LSTMParams, BidirectionalParams or StackParams.

    Returns:
        torch tensors by name. Both biases are given back as they came; where there is one, or an offset, their sum is
        `bias_ih` and `bias_hh` is 0. Without any, the module is to be made with `bias=False`.

    Raises:
        ValueError: parts that PyTorch has no place for; layers with and without a bias or a projection, of different
            units, or that do not fit on each other; ImportError without PyTorch.

    >>> import jax
    >>> from lstmjax import lstm
    >>> sorted(to_torch(lstm.init(jax.random.key(0), inputs=2, units=3)))  # doctest: +SKIP
    ['bias_hh_l0', 'bias_ih_l0', 'weight_hh_l0', 'weight_ih_l0']
    """
    torch = gates.library("torch")
    layers = [[gates.only("PyTorch", half, "w_projection") for half in halves] for halves in gates.layers(params)]
    every = [half for halves in layers for half in halves]
    kinds = {(half.units, half.outputs, gates.has_bias(half), half.w_projection is None) for half in every}
    if len(kinds) > 1 or len({len(halves) for halves in layers}) > 1:
        raise ValueError(
            "torch.nn.LSTM has one number of units, of outputs and of directions, and biases and projections in all "
            f"layers or in none; got (units, outputs, bias, no projection) of {sorted(kinds)}."
        )
    weights, inputs = {}, every[0].inputs
    for layer, halves in enumerate(layers):
        for half, suffix in zip(halves, (f"_l{layer}", f"_l{layer}_reverse"), strict=False):
            if half.inputs != inputs:
                raise ValueError(
                    f"layer {layer} of params must have {inputs} inputs, the outputs below; got {half.inputs}."
                )
            parts = {"w_x": half.w_x.T, "w_h": half.w_h.T}
            if gates.has_bias(half):
                parts["bias"], parts["bias_h"] = gates.two_biases(half)
            if half.w_projection is not None:
                parts["w_projection"] = half.w_projection.T
            weights |= {FIELDS[field] + suffix: part for field, part in parts.items()}
        inputs = sum(half.outputs for half in halves)
    return {name: _tensor(torch, part) for name, part in weights.items()}


def _weights(source: Any, prefix: str) -> dict[str, Any]:
    if hasattr(source, "state_dict"):
        kinds = [kind.__name__ for kind in type(source).__mro__]
        if other := next((kind for kind in kinds if kind in gates.GATES), None):
            raise TypeError(
                f"source must be a torch.nn.LSTM, got a torch.nn.{other}, which has {gates.GATES[other]}: an LSTM has "
                "4."
            )
        if "Linear" in kinds:
            raise TypeError(f"source must be a torch.nn.LSTM, got a torch.nn.Linear: {gates.DENSE}.")
        if getattr(source, "dropout", 0) and source.training:
            raise ValueError(
                f"source has dropout={source.dropout} and is in training, where apply without dropout does not do what "
                "it does: call source.eval() first, and to train here give apply Dropout(between_layers=...)."
            )
        source = source.state_dict()
    source = gates.named("source", source, "a torch.nn.LSTM or its state dict")
    return {name.removeprefix(prefix): value for name, value in source.items() if name.startswith(prefix)}


def _half(parts: dict[str, Any], layer: int, backward: bool, inputs: int | None) -> LSTMParams:
    def part(field: str, *axes: int | None) -> np.ndarray:
        name = f"{FIELDS[field]}_l{layer}{'_reverse' if backward else ''}"
        return gates.host(name, parts[field], *axes)

    w_x = part("w_x", None, inputs)
    w_h = part("w_h", w_x.shape[0], None)
    if "w_projection" not in parts:
        gates.four(f"weight_hh_l{layer}", *w_h.shape)
    taken = {"w_x": gates.to_ours(w_x, "torch", 0).T, "w_h": gates.to_ours(w_h, "torch", 0).T, "bias": None}
    for field in ("bias", "bias_h"):
        if field in parts:
            taken[field] = gates.to_ours(part(field, w_x.shape[0]), "torch")
    if "w_projection" in parts:
        taken["w_projection"] = part("w_projection", w_h.shape[1], w_x.shape[0] // 4).T
    elif w_h.shape != (w_x.shape[0], w_x.shape[0] // 4):
        raise ValueError(f"weight_hh_l{layer} must have shape {w_x.shape[0], w_x.shape[0] // 4}, got {w_h.shape}.")
    return gates.params(**taken)


def _tensor(torch: Any, part: np.ndarray) -> Any:
    part = np.array(part, order="C")
    return (
        torch.from_numpy(part.view(np.int16)).view(torch.bfloat16)
        if part.dtype == "bfloat16"
        else torch.from_numpy(part)
    )
