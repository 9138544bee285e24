"""Configs: files that are nearly right, nonsense or no text are read as they say, or refused with their place."""

import dataclasses
import tomllib
from pathlib import Path

import numpy as np
import pytest
from fuzz.cases import fuzz
from hypothesis import strategies as st

from experiments import config
from experiments.config import Config, ConfigError

FOLDER = Path(__file__).parents[2] / "configs"
CONFIGS = {path.name: path.read_text(encoding="utf-8") for path in sorted(FOLDER.glob("*.toml"))}
KEYS = sorted({key for text in CONFIGS.values() for key in (*tomllib.loads(text), "steps", "units", "kind", "seed")})
RUNS = [name for name, text in CONFIGS.items() if "[sweep]" not in text]
VALUES = [
    *("0", "1", "-1", "3", "2.5", "1e400", "-1e-400", "nan", "-nan", "inf", "-inf", "true", "false", "1_000", "0xff"),
    *(
        "9223372036854775807",
        "9223372036854775808",
        "-9223372036854775809",
        "1" * 5000,
        "0.1",
        "1e-45",
        "1e39",
        "1e308",
    ),
    *('""', '"lstm"', '"tcn"', '"tagger"', '"float32"', '"airline"', '"jsb"', '"a/b"', '".."', '"."', '"\\u0000"'),
    *('"\\ud800"', '"\\U0001F600"', "'''\n'''", '"e\\u0301"', "1979-05-27", "07:32:00", "1979-05-27T07:32:00Z"),
    *("[]", "[1]", "[[]]", '["airline.toml"]', "{}", "{ a = 1 }", "{ steps = 3 }", "[{}]", "=", "nul", "'", '"'),
]
LINES = [
    *(
        'task = "airline"',
        'base = "airline.toml"',
        'base = "copy.toml"',
        'base = "."',
        'base = "none.toml"',
        "base = 3",
    ),
    *("[data]", "[model]", "[train]", "[sweep]", "[[train]]", "[train.steps]", "[model.deeper.still]", "[", "]", "="),
    *("\x00", "\x7f", "\ufeff", "\u2028", "é = 1", '"" = 1', '"a b" = 1', "a.b.c = 1", "name = 1", 'out = ""', "#"),
    *("train.seed = [1, 2]", "model.units = [3, 5]", 'base = ["airline.toml", "adding.toml"]', "sweep = 3"),
]
PLACES = ("airline.toml", "copy.toml", "given.toml")


@st.composite
def documents(draw):
    """A config with lines changed, added, doubled, moved or lost; or bytes of whatever kind."""
    lines = CONFIGS[draw(st.sampled_from(list(CONFIGS)))].split("\n")
    for _ in range(draw(st.integers(0, 4))):
        place = draw(st.integers(0, len(lines) - 1))
        kind = draw(st.sampled_from(["value", "value", "value", "key", "line", "lost", "double", "moved"]))
        key, _, value = lines[place].partition("=")
        key = draw(st.sampled_from(KEYS)) if kind == "key" else key.strip() or draw(st.sampled_from(KEYS))
        if kind == "value":
            value = draw(st.sampled_from(VALUES))
        if kind in ("value", "key"):
            lines[place] = f"{key} = {value}"
        elif kind == "line":
            lines.insert(place, draw(st.sampled_from(LINES)))
        elif kind == "lost":
            lines[place] = ""
        else:
            lines.insert(draw(st.integers(0, len(lines))), lines[place])
    content = "\n".join(lines).encode("utf-8", "surrogatepass")
    at = draw(st.integers(0, len(content)))
    return draw(
        st.just(content)
        | st.just(content)
        | st.just(content)
        | st.sampled_from([content[:at], content[:at] + b"\xff\x00" + content[at:], b"", b"\x1f\x8b" + content])
        | st.binary(max_size=50)
        | st.text(max_size=50).map(lambda text: text.encode("utf-8", "surrogatepass"))
    )


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """A folder with the configs that bases may name."""
    folder = tmp_path_factory.mktemp("configs")
    for name, text in CONFIGS.items():
        (folder / name).write_text(text, encoding="utf-8")
    return folder


def same(one, other):
    """Equality in which NaN, wherever it is let in, is NaN."""
    values = [[*dataclasses.asdict(part).values()] for part in (one.data, one.model, one.train, one.mesh)]
    others = [[*dataclasses.asdict(part).values()] for part in (other.data, other.model, other.train, other.mesh)]
    return (one.task, one.name, one.out, values) == (other.task, other.name, other.out, others)


def check_round_trip(read, folder):
    assert isinstance(read, Config)
    assert (read.name + read.out).isprintable()
    for part in (read.data, read.model, read.train):
        floats = [value for value in dataclasses.asdict(part).values() if isinstance(value, float)]
        assert np.isfinite(np.array(floats).astype(np.float32)).all()
    path = folder / "written.toml"
    path.write_text(config.dumps(read), encoding="utf-8")
    assert same(config.load(path), read)


def check_refusal(error, path):
    assert str(path.parent) in str(error), f"refused without the file, or its base: {error}"
    assert len(str(error)) < 3000, "refused with all that was given"


@fuzz(percent=12, content=documents())
def test_configs_are_read_or_refused(folder, content):
    path = folder / "given.toml"
    path.write_bytes(content)
    try:
        read = config.load(path)
    except ConfigError as error:
        check_refusal(error, path)
        return
    check_round_trip(read, folder)


VARIED = st.sampled_from(LINES[-4:]) | st.builds("{} = {}".format, st.sampled_from(KEYS), st.sampled_from(VALUES))


@fuzz(percent=3, content=documents(), lists=st.lists(VARIED, max_size=3))
def test_sweeps_are_read_or_refused(folder, content, lists):
    path = folder / "given.toml"
    path.write_bytes(b"\n".join([content, b"[sweep]", *(line.encode("utf-8", "surrogatepass") for line in lists)]))
    try:
        runs = config.load_sweep(path)
    except ConfigError as error:
        check_refusal(error, path)
        return
    assert runs
    for choice, read in runs:
        assert choice
        check_round_trip(read, folder)


def check_exit(code, words):
    assert code == 2 or {"--help", "-h"} & set(words)


WORDS = [
    *("--train.steps", "--train.seed", "--train.learning-rate", "--train.schedule", "--train.clip", "--model.units"),
    *("--model.forget-bias", "--model.chrono", "--name", "--out", "--data.log", "--data.no-log", "--data.look-back"),
    *(
        "--help",
        "-h",
        "--",
        "--train",
        "--task",
        "--modle.units",
        "--train.steps=3",
        "--train.clip=nan",
        "=",
        "--=",
        "",
    ),
    *(
        "3",
        "0",
        "-1",
        "1e400",
        "nan",
        "inf",
        "1" * 5000,
        "x",
        "True",
        "cosine",
        "a/b",
        "..",
        "é",
        "\udcff",
        "\x00",
        "1.5",
    ),
]


@fuzz(percent=0.3, words=st.lists(st.sampled_from(WORDS), min_size=1, max_size=4))
def test_overrides_are_read_or_refused(folder, words):
    try:
        read = config.load(folder / "airline.toml", words)
    except ConfigError as error:
        check_refusal(error, folder / "airline.toml")
        return
    except SystemExit as stopped:
        check_exit(stopped.code, words)
        return
    check_round_trip(read, folder)


@pytest.mark.parametrize("name", RUNS)
def test_the_configs_themselves_come_back(folder, name):
    check_round_trip(config.load(folder / name), folder)


@pytest.mark.parametrize("place", ["", "none.toml", "configs.toml/a.toml", "a\x00.toml", "é" * 300 + ".toml"])
@pytest.mark.parametrize("read", [config.load, config.load_sweep])
def test_what_is_no_file_is_refused(folder, place, read):
    with pytest.raises(ConfigError) as refused:
        read(folder / place)
    assert (place or folder.name)[:20] in str(refused.value)
