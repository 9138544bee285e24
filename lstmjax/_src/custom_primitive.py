"""Kernels that stand in for functions: computed by the one, differentiated as the other.

`jax.custom_jvp` says the same, but `jax.checkpoint` may take it apart and meet a kernel that has no derivative.
`jax.custom_vjp` has no forward mode, and under `jax.vmap` is asked for each example's weight gradients.
`jax.custom_derivatives.linear_call`, which gives a linear function another transpose, has no batching, and no
derivatives in what it is not linear in. So this is a primitive, whose rules are those of the function.
"""

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
from jax.extend.core import Primitive, jaxpr_as_fun
from jax.interpreters import ad, batching, mlir

_call = Primitive("stand_in")
_call.multiple_results = True


def call(function: Callable, kernel: Callable, *arguments: Any) -> Any:
    """`kernel(*arguments)`, with the derivatives of `function(*arguments)`, to which it is equal.

    Args:
        function: of trees of arrays; not a closure over arrays.
        kernel: likewise.
        arguments: what both are given.
    """
    program, shapes = jax.make_jaxpr(function, return_shape=True)(*arguments)
    computed = jax.make_jaxpr(kernel)(*arguments)
    leaves = jax.tree.leaves(arguments)
    out = _call.bind(*leaves, program=program, computed=computed, transpose=None, fixed=len(leaves))
    return jax.tree.unflatten(jax.tree.structure(shapes), out)


def linear(function: Callable, transpose: Callable, residuals: Any, arguments: Any) -> Any:
    """`function(residuals, arguments)`, linear in arguments, with a transpose that is given and not derived.

    Args:
        function: not a closure over arrays.
        transpose: from residuals and what `function` returns to what it takes for arguments; likewise.
        residuals: a tree of arrays.
        arguments: a tree of floating arrays.
    """
    program, shapes = jax.make_jaxpr(function, return_shape=True)(residuals, arguments)
    fixed, tree = jax.tree.flatten(residuals)

    def back(*leaves):
        cotangents = jax.tree.unflatten(jax.tree.structure(shapes), leaves[len(fixed) :])
        made = transpose(tree.unflatten(leaves[: len(fixed)]), cotangents)
        return jax.tree.structure(arguments).flatten_up_to(made)

    leaves = [*fixed, *jax.tree.leaves(arguments)]
    out = _call.bind(*leaves, program=program, computed=program, transpose=back, fixed=len(fixed))
    return jax.tree.unflatten(jax.tree.structure(shapes), out)


def _evaluate(*leaves, computed, **_):
    return jaxpr_as_fun(computed)(*leaves)


def _outputs(*_, program, computed, **__):
    return program.out_avals, computed.effects


def _jvp(primals, tangents, *, program, transpose, fixed, **given):
    given |= {"program": program, "transpose": transpose, "fixed": fixed}
    filled = [ad.instantiate_zeros(tangent) for tangent in tangents]
    if transpose is not None and all(isinstance(tangent, ad.Zero) for tangent in tangents[:fixed]):
        return _call.bind(*primals, **given), _call.bind(*primals[:fixed], *filled[fixed:], **given)
    return _call.bind(*primals, **given), jax.jvp(jaxpr_as_fun(program), tuple(primals), tuple(filled))[1]


def _transposed(cotangents, *leaves, program, transpose, fixed, **_):
    wanted = list(map(ad.is_undefined_primal, leaves))
    filled = list(map(ad.instantiate_zeros, cotangents))
    if transpose is None or any(wanted[:fixed]):
        return _transposed_as_written(program, filled, leaves, wanted)
    given = transpose(*leaves[:fixed], *filled)
    return [None] * fixed + [leaf if want else None for leaf, want in zip(given, wanted[fixed:], strict=True)]


def _transposed_as_written(program, cotangents, leaves, wanted):
    def function(*some):
        some = iter(some)
        every = [next(some) if want else leaf for leaf, want in zip(leaves, wanted, strict=True)]
        return jaxpr_as_fun(program)(*every)

    shapes = [leaf.aval for leaf, want in zip(leaves, wanted, strict=True) if want]
    given = iter(jax.linear_transpose(function, *shapes)(cotangents))
    return [next(given) if want else None for want in wanted]


def _batched(leaves, axes, *, program, computed, transpose, fixed):
    def back(*leaves):
        given = jax.vmap(transpose, in_axes=(*axes[:fixed], *[0] * (len(leaves) - fixed)))(*leaves)
        return [
            leaf.sum(0) if axis is None else jnp.moveaxis(leaf, 0, axis)
            for leaf, axis in zip(given, axes[fixed:], strict=True)
        ]

    def mapped(program):
        return jax.make_jaxpr(jax.vmap(jaxpr_as_fun(program), in_axes=tuple(axes)))(*leaves)

    function = mapped(program)
    kernel = function if computed is program else mapped(computed)
    out = _call.bind(
        *leaves,
        program=function,
        computed=kernel,
        transpose=None if transpose is None else back,
        fixed=fixed,
    )
    return out, [0] * len(out)


_call.def_impl(jax.jit(_evaluate, static_argnames=("program", "computed", "transpose", "fixed")))
_call.def_effectful_abstract_eval(_outputs)
ad.primitive_jvps[_call] = _jvp
ad.primitive_transposes[_call] = _transposed
batching.primitive_batchers[_call] = _batched
mlir.register_lowering(_call, mlir.lower_fun(_evaluate, multiple_results=True))
