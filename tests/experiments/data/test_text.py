"""Every reader of text: byte order marks, blank lines and spaces of Unicode change nothing or stay where they are."""

import dataclasses

import pytest

from experiments import commands, config, results
from experiments.data import chunks, dialogues, files, shakespeare, treebank

MARK = b"\xef\xbb\xbf"
# Each is white space to `str.split`, or the end of a line to `str.splitlines`, and neither in a data file.
OTHER_SPACES = ["\u00a0", "\u2003", "\u3000", "\u2028", "\u2029", "\u0085", "\x0b", "\x0c", "\x1c", "\x1f"]
PLAY = "First Citizen:\n\nBefore we proceed any further, hear me speak.\n"
AIRLINE = 'task = "airline"\n[train]\nbatch = 8\n'


@pytest.fixture(autouse=True)
def root(tmp_path, monkeypatch):
    monkeypatch.setenv("LSTMJAX_DATA", str(tmp_path))
    monkeypatch.setattr(chunks, "VALIDATION", 1)
    return tmp_path


def put(root, name, content):
    (root / name).parent.mkdir(parents=True, exist_ok=True)
    (root / name).write_bytes(content)
    return root / name


def sentences(root, content):
    for name in chunks.FILES.values():
        put(root, name, content)
    return chunks.load()


def corpus(root, content):
    for folder in dialogues.FOLDERS.values():
        put(root, f"swda/{folder}/{folder}.txt", content)
    return dialogues.load()


def named(root, content):
    """The conversations that lists of names put into each split."""
    for folder in dialogues.FOLDERS.values():
        put(root, f"swda/{folder}/{folder}.txt", b"A|Hey.|fc\n")
    for split, name in dialogues.NAMES.items():
        put(root, name := f"swda/{name}", dialogues.FOLDERS[split].encode() + b"\n")
    put(root, f"swda/{dialogues.NAMES['train']}", content)
    return dialogues.load()["train"]


def chosen(root, content):
    """The bases of a sweep and what it varies."""
    put(root, "base.toml", AIRLINE.encode())
    return [(choice, run.train.batch) for choice, run in config.load_sweep(put(root, "sweep.toml", content))]


def based(root, content):
    put(root, "base.toml", content)
    return config.load(put(root, "a.toml", b'base = "base.toml"\n'))


READERS = {
    "lines": (b"a b\nc\n", lambda root, content: files.lines(put(root, "a", content))),
    "sentences": (b"a DT B-NP\nb NN I-NP\n\nc VB B-VP\n", sentences),
    "corpus": (b"A|Hello|sd\nB|Uh-huh|b\n", corpus),
    "names of splits": (b"train\n", named),
    "lines to label": (b"A|Hello\nB|Uh-huh\n", lambda root, content: dialogues.plain(put(root, "talk.txt", content))),
    "texts to label": (b"Hello\nUh-huh\n", lambda root, content: dialogues.plain(put(root, "talk.txt", content))),
    "play": (PLAY.encode(), lambda root, content: put(root, shakespeare.FILE, content) and shakespeare.load()),
    "config": (AIRLINE.encode(), lambda root, content: config.load(put(root, "a.toml", content))),
    "base": (AIRLINE.encode(), based),
    "sweep": (b'base = "base.toml"\n[sweep.train]\nbatch = [2, 3]\n', chosen),
    "sweep of bases": (b'[sweep]\nbase = ["base.toml"]\n', chosen),
}


@pytest.mark.parametrize("name", READERS)
def test_byte_order_mark_is_no_text(root, name):
    content, read = READERS[name]
    assert read(root, MARK + content) == read(root, content)


@pytest.mark.parametrize("name", sorted(READERS.keys() - {"lines", "play"}))
@pytest.mark.parametrize("end", [b"\n", b"\n\n \t\n", b"\r\n\r\n"])
def test_blank_lines_at_the_end_are_no_content(root, name, end):
    content, read = READERS[name]
    assert read(root, content + end) == read(root, content)


@pytest.mark.parametrize("space", OTHER_SPACES)
def test_other_spaces_stay_within_their_token(root, space):
    word = f"to{space}day"
    assert files.lines(put(root, "a", f"{word}\n{word}".encode())) == [word, word]
    found = sentences(root, f"{word} \t{word}  B-{word}\n\nb NN O\n\n".encode())
    assert found["train"][0] == chunks.Sentence((word,), (word,), (f"B-{word}",))
    said = corpus(root, f"{word}|{space}{word}{space} |{word}\n\n".encode())["train"][0]
    assert (said.speakers, said.texts, said.tags) == ((word,), (f"{space}{word}{space}",), (word,))
    for line in (f"{word}|{space}{word}{space}\t", f"{word}|{space}{word}{space}|x"):
        told = dialogues.plain(put(root, "train.txt", f"\n{line}\n".encode()))
        assert told == dataclasses.replace(said, name="train", tags=())
    assert dialogues.plain(put(root, "talk.txt", f" {word}\n".encode())).texts == (word,)
    assert treebank.words(f" {word}\t{word} \n\t\n{word}\n") == [word, word, "<eos>", word, "<eos>"]


@pytest.mark.parametrize("space", [" ", "\t", *OTHER_SPACES])
def test_any_space_parts_the_words_of_an_utterance(space):
    assert dialogues.words(f"to{space}day") == ["to", "day"]


@pytest.mark.parametrize("before", ["\n", "\n \n\t\n", "\r\n"])
def test_blank_lines_before_the_head_of_a_config_are_passed_over(before, root, monkeypatch, capsys):
    monkeypatch.chdir(root)
    put(root, "configs/a.toml", f"{before}# A series.\n#\n# Tried: this.\n{AIRLINE}".encode())
    put(root, "configs/b.toml", f"{before}{AIRLINE}".encode())
    assert commands.show() == 0
    assert [line.split("│")[2].strip() for line in capsys.readouterr().out.splitlines() if ".toml" in line] == [
        "A series.",
        "",
    ]
    record = {"runs": [RUN], "config": config.dumps(config.load("configs/a.toml"))}
    told = results._told("a", record, root / "configs")
    assert (told[0], told[-1]) == ("**a**: A series.", "Tried: this.")


@pytest.mark.parametrize("space", OTHER_SPACES)
def test_name_of_a_conversation_keeps_its_spaces(root, space):
    put(root, f"swda/train/a{space}.txt", b"A|Hey.|fc\n")
    assert [talk.name for talk in named(root, f" a{space}\n\n".encode())] == [f"a{space}"]


TALK = "\nA | How are you? \n\n \nB|\u00a0Fine.\nB|\n\n"


@pytest.mark.parametrize("folder", dialogues.FOLDERS.values())
def test_a_corpus_and_what_is_to_be_labelled_are_read_alike(root, folder):
    tagged = "".join(f"{line}|x\n" if "|" in line else f"{line}\n" for line in TALK.split("\n"))
    talks = {talk.name: talk for talks in corpus(root, tagged.encode()).values() for talk in talks}
    for content in (TALK, tagged):
        told = dialogues.plain(put(root, f"{folder}.txt", content.encode()))
        assert told == dataclasses.replace(talks[folder], tags=())
        assert len(told) == 3


@pytest.mark.parametrize(
    "boundary",
    [
        "-DOCSTART- -X- O",
        "-DOCSTART- -X- O O",
        "-DOCSTART-",
        "-DOCSTART- -X- B-NP\n",
        "-DOCSTART-(12) -X- O",
        " -DOCSTART-x",
    ],
)
def test_start_of_a_document_is_no_sentence(root, boundary):
    content = "a DT B-NP\nb NN I-NP\n{}c VB B-VP\n"
    plain = sentences(root, content.format("\n").encode())
    assert sentences(root, f"{boundary}\n{content.format(boundary + chr(10))}{boundary}\n".encode()) == plain
    assert list(map(len, plain["test"])) == [2, 1]


def test_configs_are_shown_and_told_without_their_mark(root, monkeypatch, capsys):
    monkeypatch.chdir(root)
    put(root, "configs/a.toml", MARK + f"# A series.\n#\n# Tried: this\u2028and that.\n{AIRLINE}".encode())
    assert commands.show() == 0
    assert "A series." in capsys.readouterr().out
    record = {"runs": [RUN], "config": config.dumps(config.load("configs/a.toml"))}
    told = results._told("a", record, root / "configs")
    assert told[0] == "**a**: A series."
    assert told[-1] == "Tried: this\u2028and that."


RUN = {
    "seed": 0,
    "seconds": 1.0,
    "steps_timed": 0,
    "step": 1,
    "parameters": 1,
    "published": {},
    "resumed_at": [],
    "curve": [{"step": 1}],
    "environment": {"git": None, "cpus": 1, "devices": 1, "device": "cpu", "python": "3", "jax": "0"},
}
