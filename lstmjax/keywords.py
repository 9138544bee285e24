"""Answers to keywords that a function does not have: what it calls them, where they belong, or which is spelled alike.

Other libraries have other names, and Python would say no more than that an argument is unexpected.
"""

import difflib
import functools
import inspect
import sys
from collections.abc import Callable
from typing import Any, TypeVar, cast

Function = TypeVar("Function", bound=Callable[..., Any])

# Our names, and those of other libraries: Keras, PyTorch, Flax, Haiku, Equinox, TensorFlow 1, ONNX, tfa and torchcrf.
OURS = {
    "units": "hidden_size hidden_sizes hidden_dim hidden_features hidden_units num_units num_hidden n_units n_hidden "
    "output_size output_dim out_features out_dim features filters out_channels",
    "inputs": "input_size input_dim input_features in_features in_channels in_dim in_size embedding_dim embed_dim",
    "features": "embedding_dim embed_dim embedding_size output_dim dim",
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
    "table_init": "embedding_init embeddings_initializer embeddings_init",
    "dtype": "param_dtype",
    "key": "rng rngs seed prng_key prng random_key rng_key dropout_rng random_state",
    "params": "weights variables transition_params",
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
ADVICE = {
    "num_layers n_layers layers depth": "stack.init makes several layers, of units=(64, 64) two",
    "bidirectional": "bidirectional.init makes two directions, stack.init(..., bidirectional=True) layers of them",
    "return_state return_carry": "apply always returns (ys, state)",
    "return_attention": "there is no attention here",
    "stateful": "apply returns the state; give it to the next call",
    "batch_first time_major": "arrays are [*batch, time, features] here; jnp.swapaxes(xs, 0, 1) puts the batch first",
    "mask masks padding_mask input_mask attention_mask": "padding is told by lengths; of a mask lengths=mask.sum(-1)",
    "mask_zero padding_idx": "padding is told by the lengths that the layers above get",
    "rate p dropout dropout_rate prob keep_prob": "rates have names here, such as Dropout(inputs=0.2, recurrent=0.2)",
    "train training is_training": "training is a call with key=, evaluation one with deterministic=True",
    "padding": "causal= says where a kernel looks, lengths= what is padding",
}
_THEIRS: dict[str, list[str]] = {}
for _ours, _theirs in OURS.items():
    for _name in _theirs.split():
        _THEIRS.setdefault(_name, []).append(_ours)
_ADVICE = {name: advice for names, advice in ADVICE.items() for name in names.split()}


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
                unknown = _unknown(kwargs, function, onward)
                if not unknown:
                    raise
            names = _names(function, onward)
            raise TypeError(" ".join(_answer(label, name, names) for name in unknown))

        return cast(Function, call)

    return decorate


def _unknown(kwargs: dict[str, Any], function: Any, onward: tuple[Any, ...]) -> list[str]:
    names = _names(function, onward)
    return [name for name in kwargs if name not in names]


def _names(function: Any, onward: tuple[Any, ...]) -> list[str]:
    """The keywords that a function takes, and those that it hands on."""
    kinds = inspect.Parameter.POSITIONAL_OR_KEYWORD, inspect.Parameter.KEYWORD_ONLY
    found = [name for name, each in inspect.signature(function).parameters.items() if each.kind in kinds]
    for more in onward:
        found += [more] if isinstance(more, str) else _names(more, ())
    return [name for name in dict.fromkeys(found) if name != "self"]


def _answer(label: str, name: str, names: list[str]) -> str:
    meant = [name, *_THEIRS.get(name, ())]
    for ours in meant:
        if ours in names:
            return f"unknown argument {name!r}: {label} calls it {ours}."
    where = _sibling(label, name) or _ADVICE.get(name)
    where = where or next(filter(None, (_sibling(label, ours) or _of_settings(label, ours) for ours in meant)), None)
    if where:
        return f"unknown argument {name!r} of {label}: {where}."
    close = difflib.get_close_matches(name, names, n=1)
    guess = f"; did you mean {close[0]!r}?" if close else ""
    return f"unknown argument {name!r} of {label}{guess} (one of: {', '.join(names)})"


def _sibling(label: str, ours: str) -> str | None:
    """The other function of the same module that has an argument."""
    module = label.partition(".")[0]
    functions = vars(sys.modules.get(f"lstmjax.{module}", object))
    for name, function in sorted(functions.items(), key=lambda item: item[0] != "apply"):
        is_other = inspect.isfunction(function) and not name.startswith("_") and f"{module}.{name}" != label
        if is_other and ours in inspect.signature(function).parameters:
            return f"{module}.{name} takes {ours}"
    return None


def _of_settings(label: str, ours: str) -> str | None:
    """The settings that have a field."""
    from lstmjax.options import LSTMOptions
    from lstmjax.regularize import Dropout

    for kind, argument in ((LSTMOptions, "options"), (Dropout, "dropout")):
        if ours in inspect.signature(kind).parameters and label != kind.__name__:
            return f"apply takes {argument}={kind.__name__}({ours}=...)"
    return None
