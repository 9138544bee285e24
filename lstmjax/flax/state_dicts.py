"""Params, states and settings as Flax's state dicts, which its TrainState and its checkpoints are made of."""

import dataclasses
from typing import Any

from flax import serialization

from lstmjax._src import pytrees


def register() -> None:
    """Let `flax.serialization` take all params, states and settings."""
    for kind in pytrees.CONTAINERS:
        serialization.register_serialization_state(kind, _to_state_dict, _from_state_dict)
    for kind in pytrees.SETTINGS:
        serialization.register_serialization_state(kind, lambda given: dict(vars(given)), _settings_of)


def _to_state_dict(given: Any) -> dict[str, Any]:
    return {field.name: serialization.to_state_dict(getattr(given, field.name)) for field in dataclasses.fields(given)}


def _from_state_dict(target: Any, state: Any) -> Any:
    """Return `target` with the numbers of a state dict, or raise unless both have the same parts."""
    kind, names = type(target).__name__, _names(target, state)
    for name in names:
        if (getattr(target, name) is None) != (state[name] is None):
            has = "None in the state dict, and is there" if state[name] is None else "in the state dict, and None"
            raise ValueError(f"{kind}.{name} is {has} in the target: make the target with the same options.")
    return type(target)(
        **{name: serialization.from_state_dict(getattr(target, name), state[name], name=name) for name in names}
    )


def _settings_of(target: Any, state: Any) -> Any:
    """The settings that a state dict tells of, of the kind that `target` is."""
    return type(target)(**{name: state[name] for name in _names(target, state)})


def _names(target: Any, state: Any) -> list[str]:
    """The fields of a target, or an error unless a state dict has just these."""
    names = [field.name for field in dataclasses.fields(target)]
    if not isinstance(state, dict) or set(state) != set(names):
        found = ", ".join(map(str, state)) if isinstance(state, dict) else type(state).__name__
        raise ValueError(f"the state dict of {type(target).__name__} must have {', '.join(names)}; got {found}.")
    return names
