"""Faults put into the code on purpose, which the default suite must notice: mutation tests.

`python -m tests.mutants [WORD ...]` makes each change in a copy of the tree and runs its tests,
which must pass before it and fail after it. Words select the changes whose names contain one of them.

Text that is no longer found is an error: adapt the change, or delete it if its code is gone.
"""

import dataclasses
import os
import queue
import re
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from pathlib import Path

from tests import programs

ROOT = Path(__file__).parents[1]
AT_A_TIME = 2
SECONDS = 600  # the limit of one run of pytest
IMPORTED = "tests/test_mutants.py::test_packages_are_imported_from_this_tree"


class Unusable(Exception):
    """Nothing can be concluded."""


@dataclasses.dataclass(frozen=True)
class Mutant:
    """A change that some test must notice.

    Args:
        name: what goes wrong.
        file: path from the root.
        old: text that occurs there once.
        new: what replaces it.
        tests: node ids of the default suite, as few as notice it.
    """

    name: str
    file: str
    old: str
    new: str
    tests: tuple[str, ...]

    def changed(self, text: str) -> str:
        """The text of `file` after the change."""
        if (count := text.count(self.old)) != 1:
            raise Unusable(f"{self.name}: {self.file} must contain once, and contains {count} times: {self.old}")
        return text.replace(self.old, self.new)


MUTANTS = (
    Mutant(
        "stack: layers from the second on share one dropout key",
        "lstmjax/stack.py",
        "            key=layer_key,\n            deterministic=deterministic,\n            **arguments,",
        "            key=keys[min(number, 1)][0],\n            deterministic=deterministic,\n            **arguments,",
        ("tests/test_stack.py::test_every_layer_and_boundary_of_four_drops_by_itself",),
    ),
    Mutant(
        "stack: the same between-layers mask from the second boundary on",
        "lstmjax/stack.py",
        "_dropped(below, dropout, between) if number",
        "_dropped(below, dropout, keys[min(number, 2)][1]) if number",
        ("tests/test_stack.py::test_every_layer_and_boundary_of_four_drops_by_itself",),
    ),
    Mutant(
        "chunked scan: the remainder after the last whole chunk starts one step early",
        "lstmjax/_src/chunked_scan.py",
        "scan(time % size)(time - time % size, state, rest)",
        "scan(time % size)(time - time % size - 1, state, rest)",
        ("tests/test_chunking.py::test_values_and_gradients_of_chunks_and_a_remainder[forward]",),
    ),
    Mutant(
        "CRF: no zero at the padding of marginals",
        "lstmjax/_src/crf/linear_chain.py",
        "    return jnp.where(jnp.arange(len(emissions))[:, None] < length, slopes, 0)",
        "    return slopes",
        ("tests/test_crf.py::test_marginals_of_padding_are_0_even_beside_nan",),
    ),
    Mutant(
        "TPU kernel: dc not multiplied by f on its way to the step before",
        "lstmjax/_src/lstm/pallas_tpu/tpu.py",
        '_product(refs["d_z"][t], refs["w_h"][...], d_h.dtype), d_kept',
        '_product(refs["d_z"][t], refs["w_h"][...], d_h.dtype), d_cell',
        ("tests/test_kernel_gradient.py",),
    ),
    Mutant(
        "cell: the peephole of f uses p_i",
        "lstmjax/_src/lstm/variants.py",
        "enumerate((w_i, *w_f)))",
        "enumerate((w_i, *[w_i] * len(w_f))))",
        ("tests/test_variants.py::test_values_and_gradients[peepholes-fused-True]",),
    ),
    Mutant(
        "init: all gates drawn from one key",
        "lstmjax/_src/lstm/initialization.py",
        "initializer, key, shape, dtype) for key in keys[:count]]",
        "initializer, keys[0], shape, dtype) for _ in keys[:count]]",
        ("tests/test_initialization.py::test_initial_weights_of_each_gate",),
    ),
    Mutant(
        "lstm: c is not kept in at least float32",
        "lstmjax/_src/lstm/implementations.py",
        "c=state.c.astype(wide))",
        "c=state.c.astype(dtype))",
        ("tests/test_precision.py::test_c_adds_up_in_float32[scan]",),
    ),
    Mutant(
        "CRF: the end score ignores lengths",
        "lstmjax/crf.py",
        '("end", steps == counts - 1)',
        '("end", steps == time - 1)',
        ("tests/test_crf.py::test_against_all_paths[5-none]",),
    ),
    Mutant(
        "CRF: one key for all sequences that are sampled",
        "lstmjax/crf.py",
        "jax.random.split(validation.key(key), arrays[2].shape)",
        "jnp.broadcast_to(validation.key(key), arrays[2].shape)",
        ("tests/test_crf.py::test_batch_axes_are_vmap",),
    ),
    Mutant(
        "fused: the tangent of zoneout is dropped",
        "lstmjax/_src/lstm/fused.py",
        "        d_after = variants.apply_zoneout(d_after, d_before, dropout, zoneout)\n",
        "",
        ("tests/test_regularize.py::test_values_and_gradients[zoneout of h-fused]",),
    ),
    Mutant(
        "truncated: <= for < at the boundary of a piece",
        "lstmjax/windows.py",
        "(boundary < ends)",
        "(boundary <= ends)",
        ("tests/test_windows.py::test_gradient_is_that_of_pieces_stopped_by_hand[plain-True-11]",),
    ),
    Mutant(
        "bidirectional: the halves share masks",
        "lstmjax/bidirectional.py",
        "else jax.random.split(validation.key(key))",
        "else [validation.key(key)] * 2",
        ("tests/test_regularize.py::test_the_halves_of_a_bidirectional_have_masks_of_their_own",),
    ),
    Mutant(
        "hierarchy: lengths of padded utterances are not ignored",
        "lstmjax/hierarchy.py",
        "steps, batch, time, *told, real=alive)",
        "steps, batch, time, *told)",
        ("tests/test_hierarchy.py::test_padding_reaches_nothing_be_it_nan_or_a_wrong_token[final]",),
    ),
    Mutant(
        "hierarchy: all levels share a dropout key",
        "lstmjax/hierarchy.py",
        "jax.random.split(validation.key(key), len(dropouts)), strict=True)",
        "[validation.key(key)] * len(dropouts), strict=True)",
        ("tests/test_hierarchy.py::test_dropout_needs_a_key_and_is_drawn_anew_at_each_level",),
    ),
    Mutant(
        "trace: the second bias is left out",
        "lstmjax/inspect/traces.py",
        "params = variants.sum_biases(params)",
        "params = variants.sum_biases(dataclasses.replace(params, bias_h=None))",
        ("tests/test_inspect.py::test_h_and_c_are_those_of_apply_at_every_step[two biases-False]",),
    ),
    Mutant(
        "residual: both convolutions of a block share a key",
        "lstmjax/residual.py",
        "if key is None else jax.random.split(key)\n",
        "if key is None else (key, key)\n",
        ("tests/test_residual.py::test_dropout_draws_anew_behind_every_convolution",),
    ),
    Mutant(
        "lstm: no gradient into the learned initial state from resets",
        "lstmjax/_src/lstm/implementations.py",
        "    initial = start(params)\n",
        "    initial = jax.lax.stop_gradient(start(params))\n",
        ("tests/test_initialization.py::test_learned_state",),
    ),
    Mutant(
        "from_haste: the scales of x and h are exchanged",
        "lstmjax/interop/haste.py",
        "LSTMNorm(x_scale, h_scale, part",
        "LSTMNorm(h_scale, x_scale, part",
        ("tests/peers/test_interop.py::test_haste[torch-True]",),
    ),
    Mutant(
        "flax.nnx: the dropout key never advances",
        "lstmjax/flax/nnx.py",
        "return rngs() if isinstance(rngs, nnx.RngStream) else rngs",
        "return nnx.clone(rngs)() if isinstance(rngs, nnx.RngStream) else rngs",
        ("tests/peers/test_flax_modules.py::test_dropout_is_drawn_anew_in_training_alone[LSTM-outputs]",),
    ),
    Mutant(
        "beam search: finished beams go on",
        "experiments/decoding.py",
        "jnp.where(done[..., None], ended, log_outputs)",
        "log_outputs",
        ("tests/experiments/test_decoding.py::test_a_beam_with_room_for_all_finds_what_enumeration_finds[0]",),
    ),
    Mutant(
        "train: gradients are clipped after the optimizer",
        "experiments/train.py",
        "optax.chain(optax.clip_by_global_norm(options.clip), step(_schedule(options)))",
        "optax.chain(step(_schedule(options)), optax.clip_by_global_norm(options.clip))",
        ("tests/experiments/test_train.py::test_loop_takes_the_steps_a_plain_loop_takes[sgd-constant]",),
    ),
    Mutant(
        "global_mean: divides by time",
        "lstmjax/pooling.py",
        "(total / jnp.maximum(_count(xs, valid), 1).astype(total.dtype))",
        "(total / max(xs.shape[-2], 1))",
        ("tests/test_pooling.py::test_of_the_valid_steps_alone",),
    ),
    Mutant(
        "checks: integers may be one above the range",
        "lstmjax/_src/validation.py",
        "values.max() > high)",
        "values.max() > high + 1)",
        ("tests/test_layers.py::test_embedding_never_gives_a_wrong_row",),
    ),
)


@dataclasses.dataclass(frozen=True)
class Ran:
    """A run of pytest: exit code, None where time ran out; what it printed; how long it took."""

    code: int | None
    output: str
    seconds: float

    def tests(self, *outcomes: str) -> list[str]:
        """Node ids of the tests that ended so: PASSED, FAILED or ERROR."""
        return re.findall(rf"^(?:{'|'.join(outcomes)}) (tests/.*?)(?: - .*)?$", self.output, re.MULTILINE)


def verdict(ran: Ran) -> str:
    """Killed if a test failed, survived if all passed; other exit codes, and time that ran out, are errors."""
    return {0: "survived", 1: "killed"}.get(ran.code, "error")


def without_a_pass(mutants: Sequence[Mutant], ran: Ran) -> list[str]:
    """The tests of these changes that did not pass: failed, skipped, or not in the suite."""
    passed = set(ran.tests("PASSED"))
    for test in ran.tests("PASSED"):
        parts = test.split("[")[0].split("::")  # its file, class and function pass with it
        passed |= {"::".join(parts[:count]) for count in range(1, len(parts) + 1)}
    return [test for test in named(mutants) if test not in passed]


def named(mutants: Sequence[Mutant]) -> list[str]:
    """The tests of these changes, each once."""
    return list(dict.fromkeys(test for mutant in mutants for test in mutant.tests))


def copied(folder: Path) -> Path:
    """Copy the files of the tree, those that git has and those that it would add."""
    command = ["git", "ls-files", "-z", "--cached", "--others", "--exclude-standard"]
    for name in subprocess.run(command, cwd=ROOT, capture_output=True, check=True, text=True).stdout.split("\0"):
        if (ROOT / name).is_file():  # git still has what is deleted but not committed
            (folder / name).parent.mkdir(parents=True, exist_ok=True)
            shutil.copy2(ROOT / name, folder / name)
    return folder


def run(folder: Path, tests: Sequence[str]) -> Ran:
    """Run tests in a copy, until the first fails."""
    environment = {name: value for name, value in os.environ.items() if not name.startswith("PYTEST_")}
    environment.setdefault("JAX_COMPILATION_CACHE_DIR", str(programs.folder(programs.processor())))
    # Bytecode is reused for a file of equal size and time in seconds, and so for another change.
    environment["PYTHONDONTWRITEBYTECODE"] = "1"
    command = [sys.executable, "-m", "pytest", "-x", "-q", "-rA", "-p", "no:cacheprovider", *tests]
    started = time.monotonic()
    try:
        done = subprocess.run(
            command,
            cwd=folder,
            env=environment,
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            timeout=SECONDS,
        )
        code, output = done.returncode, done.stdout
    except subprocess.TimeoutExpired as error:
        code, output = None, str(error)
    return Ran(code, output, time.monotonic() - started)


def tried(mutant: Mutant, copies: queue.Queue[Path]) -> Ran:
    """Run the tests of a change in one of the copies, which is restored."""
    folder = copies.get()
    file = folder / mutant.file
    text = file.read_text()
    try:
        file.write_text(mutant.changed(text))
        return run(folder, mutant.tests)
    finally:
        file.write_text(text)
        copies.put(folder)


def main(words: Sequence[str]) -> int:
    """Print what became of each change; 0 if all were killed."""
    mutants = [mutant for mutant in MUTANTS if not words or any(word in mutant.name for word in words)]
    if not mutants:
        raise Unusable(f"no name of a change contains {' or '.join(words)}")
    for mutant in mutants:
        mutant.changed((ROOT / mutant.file).read_text())
    with tempfile.TemporaryDirectory() as temporary:
        first = copied(Path(temporary, "0"))
        copies: queue.Queue[Path] = queue.Queue()
        copies.put(first)
        for number in range(1, AT_A_TIME):
            copies.put(shutil.copytree(first, Path(temporary, str(number))))
        before = run(first, [IMPORTED, *named(mutants)])
        if missing := without_a_pass(mutants, before):
            raise Unusable(f"{before.output}\nThese must pass before there are changes: {', '.join(missing)}")
        if before.code != 0:
            raise Unusable(f"{before.output}\nThe code must pass its tests before there are changes.")
        print(f"{len(mutants)} changes, whose tests pass without them in {before.seconds:.0f} s", flush=True)
        widths = [max(len(getattr(mutant, column)) for mutant in mutants) for column in ("name", "file")]
        verdicts = []
        with ThreadPoolExecutor(AT_A_TIME) as pool:
            for mutant, ran in zip(mutants, pool.map(partial(tried, copies=copies), mutants), strict=True):
                verdicts.append(verdict(ran))
                by = next(iter(ran.tests("FAILED", "ERROR")), "")
                told = f"{verdicts[-1]:8}  {ran.seconds:4.0f} s  {by}"
                print(f"{mutant.name:{widths[0]}}  {mutant.file:{widths[1]}}  {told}".rstrip(), flush=True)
                if verdicts[-1] == "error":
                    print(ran.output, flush=True)
    killed = verdicts.count("killed")
    print(f"{killed} of {len(mutants)} changes killed")
    return int(killed < len(mutants))


if __name__ == "__main__":
    try:
        sys.exit(main(sys.argv[1:]))
    except Unusable as error:
        sys.exit(str(error))
