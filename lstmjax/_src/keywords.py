"""Answers to keywords that a function does not have: what it calls them, where they belong, or which is spelled alike.

Other libraries have other names, and Python would say no more than that an argument is unexpected.
"""

import difflib
import functools
import inspect
import sys
from collections.abc import Callable
from typing import Any, TypeVar, cast, get_args

Function = TypeVar("Function", bound=Callable[..., Any])

# Our names, and those of other libraries: Keras, PyTorch, Flax, Haiku, Equinox, TensorFlow 1, ONNX, tfa and torchcrf.
OURS = {
    "units": "hidden_size hidden_sizes hidden_dim hidden_features hidden_units num_units num_hidden n_units n_hidden "
    "output_size output_dim out_features out_dim features filters out_channels num_channels channels",
    "inputs": "input_size input_dim input_features in_features in_channels in_dim in_size embedding_dim embed_dim",
    "features": "embedding_dim embed_dim embedding_size output_dim dim units hidden_size hidden_features num_units "
    "hidden_dim",
    "in_features": "inputs input_size input_dim in_size in_channels",
    "hidden_features": "units hidden_size num_units hidden_dim hidden_units out_features features",
    "return_carry": "return_state",
    "deterministic": "is_deterministic",
    "vocabulary": "num_embeddings vocab_size vocabulary_size n_tokens num_tokens max_features input_dim",
    "tags": "num_tags n_tags num_labels num_classes labels targets tag_indices y y_true",
    "kernel": "kernel_size filter_width",
    "window": "pool_size kernel_size window_size window_shape",
    "steps": "look_back lookback timesteps time_steps window_size sequence_length seq_len seq_length",
    "rows": "batch_size",
    "batch": "batch_size batch_shape batch_dims",
    "levels": "ndim",
    "sequences": "xs x data inputs",
    "fill": "value padding_value pad_value",
    "projection": "proj_size num_proj proj_dim projection_size",
    "bias": "use_bias with_bias has_bias",
    "forget_bias": "unit_forget_bias forget_gate_bias",
    "peepholes": "use_peepholes peephole use_peephole",
    "layer_norm": "use_layer_norm layernorm layer_normalization",
    "coupled": "input_forget couple_input_forget coupled_gates cifg",
    "learned_state": "learn_initial_state trainable_initial_state learnable_state",
    "w_x_init": "kernel_init kernel_initializer w_init weight_init",
    "w_init": "kernel_init kernel_initializer weight_init",
    "w_h_init": "recurrent_kernel_init recurrent_initializer recurrent_init",
    "bias_init": "bias_initializer b_init",
    "kernel_init": "kernel_initializer w_x_init",
    "recurrent_kernel_init": "recurrent_initializer recurrent_init w_h_init",
    "table_init": "embedding_init embeddings_initializer embeddings_init",
    "dtype": "param_dtype",
    "key": "rng rngs seed prng_key prng random_key rng_key dropout_rng random_state",
    "params": "weights variables transition_params state_dict tree pytree model",
    "source": "layer model module weights state_dict params variables",
    "variables": "source layer model module weights state_dict params",
    "path": "filename file file_path filepath fname",
    "like": "target template",
    "function": "layer fn func fun f module",
    "xs": "x inputs input data sequence sequences seq input_seq",
    "x": "xs inputs input",
    "tokens": "ids indices token_ids input_ids inputs input x xs",
    "emissions": "logits scores potentials unary_potentials inputs feats x xs",
    "series": "data x xs inputs sequence timeseries",
    "state": "initial_state initial_states init_state initial_carry carry hx hidden states h_0",
    "lengths": "length sequence_length sequence_lengths sequence_lens seq_length seq_lengths seq_len seq_lens lens "
    "input_lengths input_length",
    "resets": "reset is_start done dones episode_starts",
    "reverse": "go_backwards go_backward backward backwards is_reverse",
    "return_sequences": "return_all_outputs return_all_steps only_last",
    "merge": "merge_mode merge_fn",
    "residual_from": "residual residual_connections skip_connections",
    "checkpoint": "remat rematerialize gradient_checkpointing",
    "implementation": "backend impl method cudnn",
    "stride": "strides",
    "strides": "stride",
    "dilation": "dilations dilation_rate kernel_dilation",
    "dilations": "dilation dilation_rate",
    "allowed": "constraints",
    "k": "top_k topk nbest n_best num_paths top_paths beam_width beam_size",
    "groups": "feature_group_count num_groups",
    "mask": "masks input_mask attention_mask",
    "norm_epsilon": "eps epsilon layer_norm_epsilon layer_norm_eps",
    "activation": "activation_fn cell_activation",
    "recurrent_activation": "gate_fn gate_activation inner_activation",
    "cell_clip": "cell_clip_value clip",
    "precision": "compute_dtype dtype computation_dtype",
    "recurrent": "recurrent_dropout rec_dropout dropout_u recurrent_rate",
    "between_layers": "inter_layer_dropout",
    "recurrent_weights": "weight_dropout dropconnect wdrop",
    "zoneout_h": "zoneout zoneout_hidden zoneout_outputs",
    "zoneout_c": "zoneout_cell",
}
# Advice on keywords that no function has, where the function, or the apply of its module, takes another one.
ADVICE = {
    "num_layers n_layers layers depth": ("stack.init makes several layers, of units=(64, 64) two", None),
    "bidirectional": (
        "bidirectional.init makes two directions, stack.init(..., bidirectional=True) layers of them",
        None,
    ),
    "return_state return_carry": ("apply always returns (ys, state)", "state"),
    "return_attention": ("there is no attention here", None),
    "stateful": ("apply returns the state; give it to the next call", "state"),
    "initial_state initial_states initial_carry carry hx state": (
        "every level begins with the initial state of its encoder, which init learns with learned_state=True",
        "code",
    ),
    "batch_first time_major": (
        "arrays are [*batch, time, features] here, as with batch_first=True or time_major=False; of arrays with time "
        "first jnp.swapaxes(xs, 0, 1), or time_major=True where apply takes it",
        None,
    ),
    "axis axes time_axis": ("time is the axis before the last here, the last has the features", None),
    "mask masks padding_mask input_mask attention_mask": (
        "padding is told by lengths here, of a mask that is True and then False lengths=mask.sum(-1); other masks are "
        "not served",
        "lengths",
    ),
    "mask_zero padding_idx": ("padding is told by the lengths that the layers above get", None),
    "train training is_training eval evaluation inference": (
        "training is a call with key=, evaluation one with deterministic=True",
        "deterministic",
    ),
    "padding": ("causal= says where a kernel looks, lengths= what is padding", "causal"),
    "activation": ("it has none; give its outputs to a function such as jax.nn.relu", "params"),
    "rate p dropout dropout_rate prob keep_prob": ("it has no dropout", None),
}
RATE = ("rate", "p", "dropout", "dropout_rate", "prob")
_THEIRS: dict[str, list[str]] = {}
for _ours, _theirs in OURS.items():
    for _name in _theirs.split():
        _THEIRS.setdefault(_name, []).append(_ours)
_ADVICE: dict[str, list[tuple[str, str | None]]] = {}
for _names_of_it, _told in ADVICE.items():
    for _name in _names_of_it.split():
        _ADVICE.setdefault(_name, []).append(_told)


def explained(label: str, *onward: Any) -> Callable[[Function], Function]:
    """Let a function, or a class, answer keywords that it does not have; a call without such costs no more than a call.

    Args:
        label: what users call it, such as "lstm.init".
        onward: what its **arguments may be: functions that get them, or names.
    """

    def decorate(function: Function) -> Function:
        if inspect.isclass(function):
            kind: Any = function
            kind.__init__ = explained(label, *onward)(kind.__init__)
            return cast(Function, function)

        @functools.wraps(function)
        def call(*args, **kwargs):
            try:
                return function(*args, **kwargs)
            except TypeError:
                names = _names(call)
                unknown = [name for name in kwargs if name not in names]
                if not unknown:
                    raise
            raise TypeError(" ".join(_answer(label, call, name) for name in unknown))

        vars(call)["onward"] = onward
        return cast(Function, call)

    return decorate


def _names(function: Any) -> list[str]:
    """The keywords that a function takes, and those that it hands on."""
    kinds = inspect.Parameter.POSITIONAL_OR_KEYWORD, inspect.Parameter.KEYWORD_ONLY
    found = [name for name, each in inspect.signature(function).parameters.items() if each.kind in kinds]
    for more in getattr(function, "onward", ()):
        found += [more] if isinstance(more, str) else _names(more)
    return [name for name in dict.fromkeys(found) if name != "self"]


def _answer(label: str, function: Any, name: str) -> str:
    names, meant = _names(function), [name, *_THEIRS.get(name, ())]
    for ours in meant:
        if ours in names:
            return f"unknown argument {name!r}: {label} calls it {ours}."
    near = [function, _apply_of(label)]
    where = _sibling(label, name) or _of_rates(label, near, name) or _of_settings(label, near, name)
    where = where or _advice(near, name)
    where = where or next(
        filter(None, (_sibling(label, ours) or _of_settings(label, near, ours) for ours in meant[1:])), None
    )
    if where:
        return f"unknown argument {name!r} of {label}: {where}."
    close = difflib.get_close_matches(name, names, n=1, cutoff=0.7)
    guess = f"; did you mean {close[0]!r}?" if close else ""
    return f"unknown argument {name!r} of {label}{guess} (one of: {', '.join(names)})"


def _module(label: str) -> Any:
    return sys.modules.get(f"lstmjax.{label.partition('.')[0]}")


def _apply_of(label: str) -> Any:
    """The apply of the same module; that of lstm for the settings, which are of no module."""
    return getattr(_module(label if "." in label else "lstm."), "apply", None)


def _advice(near: list[Any], name: str) -> str | None:
    taken = {name for function in near if function for name in _names(function)}
    return next((told for told, needs in _ADVICE.get(name, ()) if needs is None or needs in taken), None)


def _sibling(label: str, ours: str) -> str | None:
    """The other function of the same module that has an argument."""
    module = label.partition(".")[0]
    functions = vars(_module(label) or object)
    for name, function in sorted(functions.items(), key=lambda item: item[0] != "apply"):
        is_other = inspect.isfunction(function) and not name.startswith("_") and f"{module}.{name}" != label
        if is_other and ours in (_names(function) if name == "apply" else inspect.signature(function).parameters):
            return f"{module}.{name} takes {ours}"
    return None


def _parameter(function: Any, name: str) -> Any:
    """A parameter that a function takes or hands on."""
    found = inspect.signature(function).parameters.get(name) if callable(function) else None
    onward = (_parameter(more, name) for more in getattr(function, "onward", ()) if callable(more))
    return found or next(filter(None, onward), None)


def _takes(near: list[Any], argument: str, kind: type) -> bool:
    """True if one of the functions takes settings of a kind."""
    found = [_parameter(function, argument) for function in near]
    named = any(argument in getattr(function, "onward", ()) for function in near)
    return named or any(kind is each.annotation or kind in get_args(each.annotation) for each in found if each)


def _of_rates(label: str, near: list[Any], name: str) -> str | None:
    """Advice on a rate of dropout: of the one number that there is, or of those of Dropout."""
    from lstmjax._src.dropout_masks import Dropout

    if name not in RATE:
        return None
    if label == "Dropout" or _takes(near, "dropout", Dropout):
        return "rates have names here, such as Dropout(inputs=0.2, recurrent=0.2)"
    if "dropout" not in _names(near[0]):
        return _sibling(label, "dropout")
    return f"{label} calls it dropout"


def _of_settings(label: str, near: list[Any], ours: str) -> str | None:
    """The settings that have a field, where apply takes them."""
    from lstmjax._src.dropout_masks import Dropout
    from lstmjax._src.lstm.options import LSTMOptions

    for kind, argument in ((LSTMOptions, "options"), (Dropout, "dropout")):
        has_it = ours in inspect.signature(kind).parameters and label != kind.__name__
        for who, one in zip((label, "apply"), near, strict=True):
            if has_it and _takes([one], argument, kind):
                return f"{who} takes {argument}={kind.__name__}({ours}=...)"
    return None
