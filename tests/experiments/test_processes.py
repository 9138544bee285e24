"""Several processes on this machine, which train together as they would on many."""

import json
import random
import re
import signal
import socket
import time

import pytest

pytestmark = pytest.mark.training
DEVICES = 4
ARGUMENTS = ["--train.log-every", "1", "--train.evaluate-every", "5", "--train.save-every", "5", "--model.units", "8"]


@pytest.fixture(scope="module")
def start(launch, configs):
    """Starts a command in a folder, in so many processes with four devices in all."""
    started = []

    def together(folder, count, command, *arguments, steps=50):
        with socket.socket() as free:
            free.bind(("localhost", 0))
            port = free.getsockname()[1]
        about = [configs / "airline.toml", "--train.steps", steps, *ARGUMENTS] if command == "run" else []
        common = {
            "JAX_NUM_CPU_DEVICES": str(DEVICES // count),
            "JAX_COORDINATOR_ADDRESS": f"localhost:{port}",
            "JAX_NUM_PROCESSES": str(count),
        }
        for number in range(count):
            words = [command, *about, *arguments, "--distributed"]
            started.append(launch(folder, *words, **common, JAX_PROCESS_ID=str(number)))
        return started[-count:]

    yield together
    for process in started:
        process.kill()


def ended(processes):
    """The exit codes, and what was said on stdout and stderr."""
    said = [process.communicate(timeout=240) for process in processes]
    return [process.returncode for process in processes], [out for out, _ in said], [err for _, err in said]


def lines(folder):
    if not (folder / "metrics.jsonl").exists():
        return []
    return [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines() if line.endswith("}")]


@pytest.fixture(scope="module")
def whole(start, tmp_path_factory):
    """The folder of a run of two processes that nothing stopped, and what they said."""
    folder = tmp_path_factory.mktemp("whole")
    codes, said, errors = ended(start(folder, 2, "run", "--mesh.data", 2, "--mesh.model", 2))
    assert codes == [0, 0], errors
    return folder / "runs", said


@pytest.fixture(scope="module")
def alone(call, configs, tmp_path_factory):
    """What one process with one device does."""
    folder = tmp_path_factory.mktemp("alone")
    code, _, err = call(folder, "run", configs / "airline.toml", "--train.steps", 50, *ARGUMENTS)
    assert (code, err) == (0, "")
    return lines(folder / "runs/airline-001")


def assert_trained_as(alone, folder, said, count, sizes):
    assert f"{sizes[0]} x {sizes[1]} cpu of {count} processes" in said[0]
    assert ["loss" in out for out in said] == [True, *[False] * (count - 1)]
    assert [path.name for path in folder.iterdir()] == ["airline-001"]
    found = lines(folder / "airline-001")
    assert [line.keys() for line in found] == [line.keys() for line in alone]
    for line, expected in zip(found, alone, strict=True):
        assert line == pytest.approx(expected, rel=1e-5)


@pytest.mark.slow
def test_two_processes_train_as_one_does(whole, alone):
    folder, said = whole
    assert_trained_as(alone, folder, said, 2, (2, 2))


@pytest.mark.long
def test_four_processes_train_as_one_does(start, alone, tmp_path):
    codes, said, _ = ended(start(tmp_path, 4, "run", "--mesh.data", 4, "--mesh.model", 1))
    assert codes == [0] * 4
    assert_trained_as(alone, tmp_path / "runs", said, 4, (4, 1))


@pytest.mark.long
@pytest.mark.parametrize("sizes", [(8, 1), (1, 8), (2, 4)])
def test_eight_devices_train_as_one_does(process, configs, alone, tmp_path, sizes):
    words = ["run", configs / "airline.toml", "--train.steps", 50, *ARGUMENTS]
    words += ["--mesh.data", sizes[0], "--mesh.model", sizes[1]]
    code, said, err = process(tmp_path, *words, JAX_NUM_CPU_DEVICES="8")
    assert (code, err) == (0, "")
    assert f"{sizes[0]} x {sizes[1]} cpu" in said
    for line, expected in zip(lines(tmp_path / "runs/airline-001"), alone, strict=True):
        assert line == pytest.approx(expected, rel=1e-5)


@pytest.mark.long
def test_a_run_goes_on_on_fewer_devices(launch, configs, tmp_path):
    """From 8 to 2 to 1, each time told to stop on the way."""
    losses = {}
    for name, sizes in (("alone", [(1, 1)]), ("fewer", [(4, 2), (2, 1), (1, 1)])):
        folder = tmp_path / f"runs/{name}-001"
        for number, (data, model) in enumerate(sizes):
            about = ["run", configs / "airline.toml", "--train.steps", 2000, *ARGUMENTS, "--name", name]
            words = [*(["resume", folder] if number else about), "--mesh.data", data, "--mesh.model", model]
            process = launch(tmp_path, *words, JAX_NUM_CPU_DEVICES=str(data * model))
            before = len(lines(folder)) if number else 0
            while number < len(sizes) - 1 and len(lines(folder)) <= before + 20:
                assert process.poll() is None, process.stderr.read()
                time.sleep(0.01)
            if number < len(sizes) - 1:
                process.terminate()
            codes, _, errors = ended([process])
            assert codes == [143 if number < len(sizes) - 1 else 0], errors
        losses[name] = [line["loss"] for line in lines(folder)]
    assert losses["fewer"][:60] == pytest.approx(losses["alone"][:60], rel=1e-5)
    assert losses["fewer"] == pytest.approx(losses["alone"], rel=1e-3)


@pytest.mark.long
def test_one_is_killed_and_all_go_on(start, whole, tmp_path):
    """At a random step: the others end, and once resumed the run is the same, bit for bit."""
    processes = start(tmp_path, 2, "run", "--mesh.data", 2, "--mesh.model", 2)
    folder = tmp_path / "runs/airline-001"
    until = random.Random(7).randrange(15, 35)
    while len(lines(folder)) < until:
        assert all(process.poll() is None for process in processes), [p.stderr.read() for p in processes]
        time.sleep(0.01)
    victim, survivor = random.Random(7).sample(processes, 2)
    victim.kill()
    codes, _, _ = ended([victim, survivor])
    assert codes[0] == -signal.SIGKILL
    assert codes[1] not in (0, None)
    assert not (folder / "result.json").exists()
    codes, _, errors = ended(start(tmp_path, 2, "resume", folder))
    assert codes == [0, 0], errors
    for name in ("metrics.jsonl", "result.json"):
        assert (folder / name).read_text() == (whole[0] / "airline-001" / name).read_text()


@pytest.mark.long
def test_one_is_told_to_stop_and_all_do(start, tmp_path):
    processes = start(tmp_path, 2, "run", "--mesh.data", 4, steps=5000)
    folder = tmp_path / "runs/airline-001"
    while len(lines(folder)) < 5:
        assert all(process.poll() is None for process in processes), [p.stderr.read() for p in processes]
        time.sleep(0.01)
    processes[1].terminate()
    codes, said, _ = ended(processes)
    assert codes == [143, 143]
    step = int(re.search(r"stopped and saved at step (\d+)", said[0])[1])  # pyright: ignore
    assert [path.name for path in (folder / "checkpoints").iterdir()].count(str(step)) == 1
    refused, _, errors = ended(start(tmp_path, 2, "resume", folder, "--train.steps", step))
    assert refused == [2, 2]
    assert all("no option but --mesh.data and --mesh.model can change" in error for error in errors)


@pytest.mark.long
def test_an_error_of_the_first_ends_all(start, tmp_path):
    processes = start(tmp_path, 2, "run", "--mesh.data", 4, steps=5000)
    folder = tmp_path / "runs/airline-001"
    while len(lines(folder)) < 5:
        assert all(process.poll() is None for process in processes), [p.stderr.read() for p in processes]
        time.sleep(0.01)
    (folder / "metrics.jsonl").rename(folder / "aside")
    (folder / "metrics.jsonl").mkdir()
    codes, _, errors = ended(processes)
    assert codes == [1, 1]
    assert all("metrics.jsonl cannot be written: Is a directory" in error for error in errors)


@pytest.mark.long
def test_a_sweep_of_several_processes(start, configs, tmp_path):
    (tmp_path / "two.toml").write_text(
        f'base = "{configs / "airline.toml"}"\n[train]\nsteps = 20\n[mesh]\ndata = 4\n[sweep.train]\nseed = [0, 1]\n'
    )
    codes, said, errors = ended(start(tmp_path, 2, "sweep", "two.toml"))
    assert codes == [0, 0], errors
    assert "mean" in said[0]
    assert "mean" not in said[1]


@pytest.mark.parametrize("command", ["evaluate", "list"])
def test_commands_that_one_process_runs(call, tmp_path, command):
    code, _, err = call(tmp_path, command, "runs/a", "--distributed")
    assert (code, err) == (2, f"error: --distributed is of run, sweep and resume, not of {command}\n")


@pytest.mark.slow
def test_no_cluster_is_found(process, tmp_path, configs):
    code, _, err = process(tmp_path, "run", configs / "airline.toml", "--distributed")
    assert code == 2
    assert re.match(r"error: --distributed: JAX finds no cluster here .*; set JAX_COORDINATOR_ADDRESS", err)
