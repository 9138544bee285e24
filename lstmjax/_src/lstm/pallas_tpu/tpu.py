"""The recurrence as TPU kernels, in which the weights stay on the chip.

A scan fetches W_h from the device's memory for every few steps. Here it comes into the core's memory (VMEM) once, and
stays while a grid of blocks of rows, and within them of steps, passes by:

    forward     z_t = x_t W_x + b of a few steps in one product;  then z_t += h_{t-1} W_h, and the gates
    backward    the gates again, from z_t and c_{t-1};  then dz_t, and dh_{t-1} += dz_t W_h'

h, c and their gradients are carried in scratch memory; products accumulate, and c is carried, in float32 at least. A
gradient keeps z_t in the dtype of xs, and c_{t-1}. What is no multiple of a tile is padded here with zeros, which
stay zeros; steps that no row of a block has are skipped.
"""

import contextlib
import dataclasses
import math
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.experimental import pallas as pl
from jax.experimental.pallas import tpu as pltpu
from jaxtyping import Array, Bool, Float

from lstmjax._src import mesh, pytrees

LANES = 128
ROWS = 256  # of a block, at most
STEPS = 16  # of a block, at most
CHUNK = 256  # rows of one product x W_x, nearly
UNROLLED = 8  # steps of an iteration, at most
CODE = 2**23  # weights of the steps of an iteration, at most, which bounds what there is to compile
VMEM = 64 * 2**20  # bytes of a core's memory, where the device is not known
SHARE = 0.9  # of it that a kernel may take: XLA has uses for the rest, and for what a kernel leaves


@pytrees.container
class Weights:
    """Arrays that all rows share.

    Args:
        w_x: [inputs, gates], in the dtype of xs.
        w_h: [units, gates], likewise.
        bias: [gates], as wide as c.
        initial: state [units] that a reset restores.
    """

    w_x: Any
    w_h: Any
    bias: Any
    initial: Any


@pytrees.container
class Spans:
    """The valid steps of each row, all between two.

    Args:
        start: the first, int32 [rows].
        stop: the step after the last, int32 [rows].
    """

    start: Any
    stop: Any

    @classmethod
    def of(cls, valid: Bool[Array, "time rows"]) -> "Spans":
        """The spans where `valid` is True."""
        start = (jnp.cumsum(valid, axis=0) == 0).sum(0, dtype=jnp.int32)
        return cls(start, start + valid.sum(0, dtype=jnp.int32))

    def valid(self, time: int) -> Bool[Array, "time rows"]:
        """True within the spans."""
        return jax.vmap(lambda t: (self.start <= t) & (t < self.stop))(jnp.arange(time, dtype=jnp.int32))


@pytrees.container
class Rows:
    """Arrays with one row for each sequence.

    Args:
        state: h and c [rows, units] before the first step, or the gradients of those after the last.
        spans: Spans, or None where all steps are valid.
    """

    state: Any
    spans: Any


@pytrees.container
class Steps:
    """Arrays with one entry for each step.

    Args:
        xs: [time, rows, inputs].
        resets: bool [time, rows], True where a step starts from the initial state; None for nowhere.
    """

    xs: Any
    resets: Any


@pytrees.container
class Kept:
    """Residuals of each step, kept for the backward pass.

    Args:
        z: pre-activations [time, rows, gates], in the dtype of xs.
        before_c: c before the step [time, rows, units].
        resets: as in Steps.
        d_ys: the gradient of h [time, rows, units], where there is one.
    """

    z: Any
    before_c: Any
    resets: Any
    d_ys: Any = None


@dataclasses.dataclass(frozen=True)
class Shape:
    """Sizes of a call.

    Args:
        time, rows, inputs, units: as the arrays have them.
        itemsize: bytes of a number of xs.
        wide: bytes of a number of c.
        ragged: whether rows have spans.
        resetting: whether there are resets.
    """

    time: int
    rows: int
    inputs: int
    units: int
    itemsize: int
    wide: int
    ragged: bool = True
    resetting: bool = True


@dataclasses.dataclass(frozen=True)
class Plan:
    """Block sizes with which a kernel goes over its arrays, all of them padded.

    Args:
        rows: of a block.
        steps: of a block.
        chunk: steps of one iteration of the loop over a block, whose x W_x are one product.
        row_blocks, step_blocks: how many there are.
        inputs, units: padded to whole tiles.
        bytes: of VMEM that this takes.
    """

    rows: int
    steps: int
    chunk: int
    row_blocks: int
    step_blocks: int
    inputs: int
    units: int
    bytes: int


def plan(shape: Shape, *, backward: bool, save: bool = False, vmem: int = VMEM) -> Plan | None:
    """The largest blocks that fit, of a number of steps that leaves little of the last one empty; None if none fit."""
    tile = 32 // min(4, shape.itemsize)
    inputs, units = (_up(size, LANES) for size in (shape.inputs, shape.units))
    most = _up(min(shape.rows, ROWS), tile)
    while True:
        blocks = -(-shape.rows // most)
        rows = _up(-(-shape.rows // blocks), tile)
        chunk = min(max(1, CHUNK // rows), UNROLLED, max(1, CODE // (4 * units * units)), shape.time)
        sizes = range(min(STEPS - STEPS % chunk, _up(shape.time, chunk)), 0, -chunk)
        fit = {size: _bytes(shape, rows, size, chunk, inputs, units, backward, save) for size in sizes}
        fit = {size: total for size, total in fit.items() if total <= SHARE * vmem}
        if fit:
            large = [size for size in fit if 2 * size >= max(fit)]
            steps = min(large, key=lambda size: (_up(shape.time, size), -size))
            return Plan(rows, steps, chunk, blocks, -(-shape.time // steps), inputs, units, fit[steps])
        if most == tile:
            return None
        most = _up(most // 2, tile)


def _bytes(shape, rows, steps, chunk, inputs, units, backward, save):
    gates, narrow, wide = 4 * units, shape.itemsize, shape.wide
    if backward:
        fixed = gates * units * narrow
        step = (2 * gates + units) * narrow + units * wide
        scratch = 2 * units * wide
    else:
        fixed = (inputs + units) * gates * narrow + 8 * gates * wide
        step = (inputs + units) * narrow + save * (gates * narrow + units * wide)
        scratch = chunk * gates * wide + units * (narrow + wide)
    column = LANES * 4  # bytes of a number that each row has
    step += shape.resetting * column
    state = (8 + 4 * shape.resetting) * units * wide + shape.ragged * 4 * column
    temporary = 3 * gates * wide
    return fixed + rows * (2 * steps * step + scratch + state + temporary)


def forward(
    weights: Weights, rows: Rows, steps: Steps, *, save: bool, return_sequences: bool, interpret: Any = False
) -> tuple[Any, tuple[Any, Any]]:
    """Run over time.

    Returns:
        The state after the last step; ys [time, rows, units], or None; and z and c before each step with `save`, or
        None.
    """
    (time, count, inputs), units = steps.xs.shape, weights.w_h.shape[0]
    dtype, wide = steps.xs.dtype, rows.state.c.dtype
    also = rows.spans is not None, steps.resets is not None
    made = _planned(Shape(time, count, inputs, units, dtype.itemsize, wide.itemsize, *also), backward=False, save=save)
    rows = _bounded(rows, time, count, made)
    lie = _Layout(made, ragged=rows.spans is not None)
    given: dict[str, Any] = {
        "xs": lie.steps(steps.xs, made.inputs),
        "w_x": lie.fixed(_pad(_gates_to(weights.w_x, made.units), made.inputs)),
        "w_h": lie.fixed(_pad(_gates_to(weights.w_h, made.units), made.units)),
        "bias": lie.fixed(_gates_to(weights.bias[None], made.units)),
        "first_h": lie.rows(rows.state.h, made.units),
        "first_c": lie.rows(rows.state.c, made.units),
        **lie.spans(rows.spans),
    }
    if steps.resets is not None:
        given["resets"] = lie.steps(steps.resets[..., None].astype(wide), 1)
        given["initial_h"], given["initial_c"] = (
            lie.fixed(_pad(leaf[None], 1, made.units)) for leaf in (weights.initial.h, weights.initial.c)
        )
    made_of: dict[str, Any] = {"last_h": lie.rows_of(made.units, dtype), "last_c": lie.rows_of(made.units, wide)}
    if return_sequences:
        made_of["ys"] = lie.steps_of(made.units, dtype)
    if save:
        made_of["z"] = lie.steps_of(4 * made.units, dtype)
        made_of["before_c"] = lie.steps_of(made.units, wide)
    scratch: dict[str, Any] = {
        "h": pltpu.VMEM((made.rows, made.units), dtype),
        "c": pltpu.VMEM((made.rows, made.units), wide),
    }
    out = _call(partial(_forward, plan=made), lie, rows.spans, given, made_of, scratch, interpret, inputs + units)
    state = dataclasses.replace(rows.state, h=out["last_h"][:count, :units], c=out["last_c"][:count, :units])
    ys = out["ys"][:time, :count, :units] if return_sequences else None
    if not save:
        return state, (ys, None)
    return state, (ys, (_gates_of(out["z"][:time, :count], units), out["before_c"][:time, :count, :units]))


def backward(
    w_h: Float[Array, "units gates"], rows: Rows, steps: Kept, *, interpret: Any = False
) -> tuple[tuple[Any, Any], Any]:
    """Run against time, from what `forward` saved.

    Returns:
        The gradients, as wide as c, of the state before the first step, and by row of what resets restore; and of z, in
        its dtype.
    """
    (time, count, _), units = steps.z.shape, w_h.shape[0]
    dtype, wide = steps.z.dtype, steps.before_c.dtype
    also = rows.spans is not None, steps.resets is not None
    made = _planned(Shape(time, count, 0, units, dtype.itemsize, wide.itemsize, *also), backward=True)
    rows = _bounded(rows, time, count, made)
    lie = _Layout(made, ragged=rows.spans is not None, against=True)
    given: dict[str, Any] = {
        "w_h": lie.fixed(_pad(_gates_to(w_h, made.units), made.units).T),
        "z": lie.steps(_gates_to(steps.z, made.units), 4 * made.units),
        "before_c": lie.steps(steps.before_c, made.units),
        "last_h": lie.rows(rows.state.h.astype(wide), made.units),
        "last_c": lie.rows(rows.state.c, made.units),
        **lie.spans(rows.spans),
    }
    if steps.d_ys is not None:
        given["d_ys"] = lie.steps(steps.d_ys, made.units)
    made_of: dict[str, Any] = {"d_z": lie.steps_of(4 * made.units, dtype)}
    made_of |= {name: lie.rows_of(made.units, wide) for name in ("first_h", "first_c")}
    if steps.resets is not None:
        given["resets"] = lie.steps(steps.resets[..., None].astype(wide), 1)
        made_of |= {name: lie.rows_of(made.units, wide) for name in ("initial_h", "initial_c")}
    scratch: dict[str, Any] = {name: pltpu.VMEM((made.rows, made.units), wide) for name in ("d_h", "d_c")}
    out = _call(partial(_backward, plan=made), lie, rows.spans, given, made_of, scratch, interpret, units)

    def state(name):
        if f"{name}_h" not in out:
            return jax.tree.map(lambda leaf: jnp.zeros(leaf.shape, wide), rows.state)
        h, c = (out[f"{name}_{leaf}"][:count, :units] for leaf in ("h", "c"))
        return dataclasses.replace(rows.state, h=h, c=c)

    return (state("first"), state("initial")), _gates_of(out["d_z"][:time, :count], units)


def _forward(refs, *, plan):
    block, ragged = pl.program_id(1), "start" in refs
    low, high = _live(refs, block, plan)
    first, last = _chunks(low, high, plan)
    h, c = refs["h"], refs["c"]

    @pl.when(block == 0)
    def _():
        h[...], c[...] = refs["first_h"][...], refs["first_c"][...]

    def project(chunk):
        xs = refs["xs"][pl.ds(chunk * plan.chunk, plan.chunk)].reshape(plan.chunk * plan.rows, plan.inputs)
        return (_product(xs, refs["w_x"][...], c.dtype) + refs["bias"][...]).reshape(plan.chunk, plan.rows, -1)

    def step(t, z_x):
        held = before = h[...], c[...]
        if "resets" in refs:
            before = _where(refs["resets"][t] > 0, (refs["initial_h"][...], refs["initial_c"][...]), held)
        z = z_x + _product(before[0], refs["w_h"][...], c.dtype)
        if "z" in refs:
            refs["z"][t], refs["before_c"][t] = z.astype(refs["z"].dtype), before[1]
        i, f, g, o = _gates(z, plan.units)
        after_c = f * before[1] + i * g
        y = (o * jnp.tanh(after_c)).astype(h.dtype)
        after = y, after_c
        if ragged:
            valid = _valid(refs, block * plan.steps + t)
            after = _where(valid, after, held)
            (y,) = _where(valid, (y,), (jnp.zeros_like(y),))
        h[...], c[...] = after
        if "ys" in refs:
            refs["ys"][t] = y

    def chunk(index, _):
        z_x = project(index)
        for t in range(plan.chunk):
            step(index * plan.chunk + t, z_x[t])

    if ragged:
        pl.when((low > 0) | (high < plan.steps))(partial(_clear, refs, "ys", "z", "before_c"))
    jax.lax.fori_loop(first, last, chunk, None)

    @pl.when(block == plan.step_blocks - 1)
    def _():
        refs["last_h"][...], refs["last_c"][...] = h[...], c[...]


def _backward(refs, *, plan):
    block, ragged = plan.step_blocks - 1 - pl.program_id(1), "start" in refs
    low, high = _live(refs, block, plan)
    first, last = _chunks(low, high, plan)
    d_h, d_c = refs["d_h"], refs["d_c"]

    @pl.when(block == plan.step_blocks - 1)
    def _():
        d_h[...], d_c[...] = refs["last_h"][...], refs["last_c"][...]
        _clear(refs, "initial_h", "initial_c")

    def step(t):
        held, before_c = (d_h[...], d_c[...]), refs["before_c"][t]
        i, f, g, o = _gates(refs["z"][t].astype(d_c.dtype), plan.units)
        shown = jnp.tanh(f * before_c + i * g)
        d_y = held[0] + refs["d_ys"][t].astype(d_h.dtype) if "d_ys" in refs else held[0]
        d_shown = d_y * o
        d_cell = held[1] + d_shown * (1 - shown * shown)
        d_kept, d_new = d_cell * f, d_cell * i
        parts = (
            d_new * g * (1 - i),
            d_kept * before_c * (1 - f),
            d_new * (1 - g * g),
            d_shown * shown * (1 - o),
        )
        valid: Any = _valid(refs, block * plan.steps + t) if ragged else None
        for gate, part in enumerate(parts):
            if ragged:
                part = jnp.where(valid, part, jnp.zeros_like(part))
            refs["d_z"][t, :, gate * plan.units : (gate + 1) * plan.units] = part.astype(refs["d_z"].dtype)
        before = _product(refs["d_z"][t], refs["w_h"][...], d_h.dtype), d_kept
        if "resets" in refs:
            reset = refs["resets"][t] > 0
            if ragged:
                reset &= valid
            none = jnp.zeros_like(before[0]), jnp.zeros_like(before[1])
            restored = _where(reset, before, none)
            refs["initial_h"][...] += restored[0]
            refs["initial_c"][...] += restored[1]
            before = _where(reset, none, before)
        d_h[...], d_c[...] = _where(valid, before, held) if ragged else before

    def chunk(index, _):
        for t in range(plan.chunk):
            step((first + last - index) * plan.chunk - 1 - t)

    if ragged:
        pl.when((low > 0) | (high < plan.steps))(partial(_clear, refs, "d_z"))
    jax.lax.fori_loop(first, last, chunk, None)

    @pl.when(block == 0)
    def _():
        refs["first_h"][...], refs["first_c"][...] = d_h[...], d_c[...]


def _gates(z, units):
    i, f, g, o = (z[:, gate * units : (gate + 1) * units] for gate in range(4))
    return jax.nn.sigmoid(i), jax.nn.sigmoid(f), jnp.tanh(g), jax.nn.sigmoid(o)


def _product(a, b, dtype):
    asked = jax.config.jax_default_matmul_precision  # pyright: ignore - set as JAX is imported
    exact = a.dtype == jnp.float32 and asked not in (None, "default", "bfloat16", "fastest")
    precision = jax.lax.Precision.HIGHEST if exact else jax.lax.Precision.DEFAULT
    return jax.lax.dot(a, b, precision=precision, preferred_element_type=dtype)


def _where(condition, chosen, other):
    return tuple(jnp.where(condition, a, b) for a, b in zip(chosen, other, strict=True))


def _clear(refs, *names):
    for name in names:
        if name in refs:
            refs[name][...] = jnp.zeros_like(refs[name])


def _valid(refs, t):
    """[rows, 1]"""
    return (refs["start"][...] <= t) & (t < refs["stop"][...])


def _live(refs, block, plan):
    """From which step of the block to which some row has any."""
    if "start" not in refs:
        return 0, plan.steps
    before = block * plan.steps
    low = jnp.clip(refs["first"][pl.program_id(0)] - before, 0, plan.steps)
    return low, jnp.clip(refs["last"][pl.program_id(0)] - before, low, plan.steps)


def _chunks(low, high, plan):
    """The iterations that have these steps; int32 on a TPU, whatever `jax_enable_x64` says."""
    size = np.int32(plan.chunk)
    if isinstance(high, int):
        return np.int32(low) // size, np.int32(high) // size
    return jax.lax.div(low, size), jax.lax.div(high + size - 1, size)


@dataclasses.dataclass(frozen=True)
class _Layout:
    """Padding and block specs of a kernel's arrays."""

    plan: Plan
    ragged: bool
    against: bool = False

    def steps(self, array, features):
        """Arrays that are streamed; blocks without a valid step in any row are not fetched."""
        plan = self.plan
        padded = _pad(array, plan.steps * plan.step_blocks, plan.rows * plan.row_blocks, features)
        return padded, self._passing(features, skip=self.ragged)

    def steps_of(self, features, dtype):
        plan = self.plan
        shape = plan.steps * plan.step_blocks, plan.rows * plan.row_blocks, features
        return shape, dtype, self._passing(features, skip=False)

    def rows(self, array, features):
        """Arrays with one row for each sequence."""
        return _pad(array, self.plan.rows * self.plan.row_blocks, features), self._of_rows(features)

    def rows_of(self, features, dtype):
        return (self.plan.rows * self.plan.row_blocks, features), dtype, self._of_rows(features)

    def fixed(self, array):
        """Arrays that stay in one buffer."""
        return array, pl.BlockSpec(array.shape, lambda *_: (np.int32(0),) * 2, pipeline_mode=pl.Buffered(1))

    def spans(self, spans):
        if spans is None:
            return {}
        return {name: self.rows(getattr(spans, name)[:, None], 1) for name in ("start", "stop")}

    def blocks(self, spans):
        """The first and the last step that any row of a block has."""
        start, stop = (
            _pad(bound, self.plan.rows * self.plan.row_blocks).reshape(self.plan.row_blocks, -1)
            for bound in (spans.start, spans.stop)
        )
        last = jnp.where(start < stop, stop, 0).max(1)
        first = jnp.where(start < stop, start, jnp.iinfo(start.dtype).max).min(1)
        return {"first": jnp.minimum(first, last), "last": last}

    def _of_rows(self, features):
        return pl.BlockSpec((self.plan.rows, features), lambda row, *_: (row, np.int32(0)))

    def _passing(self, features, skip):
        plan = self.plan

        def place(row, block, *live):
            block = plan.step_blocks - 1 - block if self.against else block
            if skip:
                first, last = live[0][row], jnp.maximum(live[1][row] - 1, 0)
                block = jnp.clip(block, *(jax.lax.div(step, np.int32(plan.steps)) for step in (first, last)))
            return block, row, np.int32(0)

        return pl.BlockSpec((plan.steps, plan.rows, features), place)


def _call(kernel, lie, spans, given, made_of, scratch, interpret, contracted):
    """`kernel(refs)`, refs by name: what is given, what is made, and scratch memory."""
    live = {} if spans is None else lie.blocks(spans)
    arrays, in_specs = zip(*given.values(), strict=True)
    axes = jax.typeof(arrays[0]).manual_axis_type
    out_shape = [jax.ShapeDtypeStruct(shape, dtype, manual_axis_type=axes) for shape, dtype, _ in made_of.values()]
    names = [*live, *given, *made_of, *scratch]
    plan = lie.plan
    numbers = plan.steps * plan.step_blocks * plan.rows * plan.row_blocks * plan.units
    passed = sum(math.prod(array.shape) * array.dtype.itemsize for array in (*arrays, *out_shape))
    run = pl.pallas_call(
        lambda *refs: kernel(dict(zip(names, refs, strict=True))),
        grid_spec=pltpu.PrefetchScalarGridSpec(
            num_scalar_prefetch=len(live),
            grid=(plan.row_blocks, plan.step_blocks),
            in_specs=in_specs,
            out_specs=[spec for _, _, spec in made_of.values()],
            scratch_shapes=list(scratch.values()),
        ),
        out_shape=out_shape,
        compiler_params=pltpu.CompilerParams(
            dimension_semantics=("parallel", "arbitrary"), vmem_limit_bytes=min(vmem(), int(plan.bytes / SHARE) + 2**20)
        ),
        cost_estimate=pl.CostEstimate(
            flops=8 * numbers * contracted,
            transcendentals=5 * numbers,
            bytes_accessed=passed,
        ),
        interpret=interpret,
        name=f"lstm{kernel.func.__name__}",
    )
    with contextlib.nullcontext() if any(array.dtype == jnp.float64 for array in arrays) else jax.enable_x64(False):
        made = run(*live.values(), *arrays)
    return dict(zip(made_of, made, strict=True))


def _planned(shape: Shape, **how: Any) -> Plan:
    made = plan(shape, **how, vmem=vmem())
    if made is None:
        raise ValueError(f"{shape} does not fit into {vmem()} bytes of VMEM.")
    return made


def _bounded(rows, time, count, plan):
    """With spans where blocks go beyond the last step."""
    if rows.spans is not None or time % plan.steps == 0:
        return rows
    spans = Spans(jnp.zeros(count, jnp.int32), jnp.full(count, time, jnp.int32))
    return dataclasses.replace(rows, spans=mesh.match_varying_axes((rows.state, spans))[1])


def vmem() -> int:
    """Bytes of a core's memory."""
    return pltpu.get_tpu_info().vmem_capacity_bytes if pltpu.is_tpu_device() else VMEM


def _up(size, multiple):
    return -(-size // multiple) * multiple


def _pad(array, *shape):
    """Zeros behind, up to a shape; axes that it does not name stay."""
    shape = (*shape, *array.shape[len(shape) :])
    return jnp.pad(array, [(0, to - size) for size, to in zip(array.shape, shape, strict=True)])


def _gates_to(array, units):
    """Zeros behind the columns of each gate, up to `units`."""
    gates = array.reshape(*array.shape[:-1], 4, -1)
    padded = jnp.pad(gates, [(0, 0)] * array.ndim + [(0, units - gates.shape[-1])])
    return padded.reshape(*array.shape[:-1], 4 * units)


def _gates_of(array, units):
    """The first `units` columns of each gate."""
    return array.reshape(*array.shape[:-1], 4, -1)[..., :units].reshape(*array.shape[:-1], 4 * units)
