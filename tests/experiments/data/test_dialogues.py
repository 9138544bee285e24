"""Conversations: read as they were written, put into the splits that are said, and what is none is refused."""

import pytest

from experiments.data import dialogues
from experiments.data.dialogues import Conversation
from experiments.data.files import DataError

FIRST = Conversation("2005", ("A", "B", "B"), ("Okay.", "", "So, how are you?"), ("b", "%", "qw"))


def write(root, content):
    for name, lines in content.items():
        path = root / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text("".join(f"{line}\n" for line in lines), encoding="utf-8")


@pytest.fixture
def root(tmp_path, monkeypatch):
    monkeypatch.setenv("LSTMJAX_DATA", str(tmp_path))
    corpus = {
        "train/2005.txt": ["A|Okay.|b", "B||%", "B|So, how are you?|qw"],
        "train/2006.txt": ["A|Naïve.|b"],
        "val/3001.txt": ["A|Hey.|fc"],
        "test/3002.txt": ["B|Bye.|fc", "A|Bye.|ft"],
    }
    write(tmp_path / "swda", corpus)
    return tmp_path / "swda"


def names(splits):
    return {split: [conversation.name for conversation in found] for split, found in splits.items()}


def test_conversations_come_back_as_written(root):
    splits = dialogues.load()
    assert splits["train"][0] == FIRST
    assert splits["train"][1].texts == ("Naïve.",)
    assert names(splits) == {"train": ["2005", "2006"], "validation": ["3001"], "test": ["3002"]}
    assert [len(conversation) for conversation in splits["train"]] == [3, 1]


def test_named_splits_come_before_the_folders(root):
    write(root, {"splits/train.txt": ["2006"], "splits/valid.txt": ["2005"], "splits/test.txt": ["3002", "3001"]})
    assert names(dialogues.load()) == {"train": ["2006"], "validation": ["2005"], "test": ["3002", "3001"]}


@pytest.mark.parametrize(
    ("split", "listed", "words"),
    [
        ("valid", ["9999"], "names 9999, but none of train, val, test has 9999.txt"),
        ("valid", ["2006"], "names 2006, which is in splits/train.txt already"),
        ("valid", [], "has no conversations for validation"),
    ],
)
def test_splits_that_are_none_are_refused(root, split, listed, words):
    write(root, {"splits/train.txt": ["2006"], "splits/valid.txt": ["2005"], "splits/test.txt": ["3002"]})
    write(root, {f"splits/{split}.txt": listed})
    with pytest.raises(DataError, match=words):
        dialogues.load()


def test_missing_list_of_a_split_is_named(root):
    write(root, {"splits/train.txt": ["2006"], "splits/test.txt": ["3002"]})
    with pytest.raises(DataError, match=r"splits has no valid\.txt"):
        dialogues.load()


@pytest.mark.parametrize(("column", "expected"), [("basic", "S"), ("general", "fh"), ("full", "fh^r")])
def test_column_of_three_is_chosen_by_its_name(tmp_path, monkeypatch, column, expected):
    monkeypatch.setenv("LSTMJAX_DATA", str(tmp_path))
    write(tmp_path / "mrda", {f"{folder}/Bmr001.txt": ["me011|so.|S|fh|fh^r"] for folder in ("train", "val", "test")})
    assert dialogues.load("mrda", column)["test"] == [Conversation("Bmr001", ("me011",), ("so.",), (expected,))]


@pytest.mark.parametrize(
    ("line", "column", "words"),
    [
        ("A|Okay.", "tag", "line 2: 'A|Okay.' has 2 columns; it must be speaker|text|tag or speaker|text|basic|"),
        ("\u00a0", "tag", "line 2: '\\xa0' has 1 columns"),
        ("A|a|b|c", "tag", "has 4 columns"),
        ("A|Okay.|", "tag", "line 2: 'A|Okay.|' has no tag"),
        ("A|Okay.|b", "basic", "column is 'basic'; a line of 3 columns has tag"),
        ("A|Okay.|S|s|s", "tag", "column is 'tag'; a line of 5 columns has basic and general and full"),
    ],
)
def test_malformed_line_is_refused_with_its_place(root, line, column, words):
    first = "A|Okay.|S|s|s" if column == "basic" else "A|Okay.|b"
    write(root, {"train/2005.txt": [first, line, first]})
    with pytest.raises(DataError) as refused:
        dialogues.load(column=column)
    assert words in str(refused.value)
    assert "2005.txt" in str(refused.value)


def test_empty_file_empty_folder_and_other_encodings_are_refused(root):
    write(root, {"train/2005.txt": []})
    with pytest.raises(DataError, match=r"2005\.txt has no lines; each should be speaker\|text\|tag or "):
        dialogues.load()
    (root / "train" / "2005.txt").write_bytes("A|Naïve|b\n".encode("latin1"))
    with pytest.raises(DataError, match=r"2005\.txt is no text in UTF-8"):
        dialogues.load()
    (root / "train" / "2005.txt").unlink()
    (root / "test" / "3002.txt").unlink()
    with pytest.raises(DataError, match="has no conversations for test"):
        dialogues.load()


def test_tags_are_those_of_all_splits_the_frequent_first(root):
    assert dialogues.tags(dialogues.load()) == ("b", "%", "qw", "fc", "ft")


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("", ""),
        ("  Okay. ", "okay ."),
        ("Uh-huh, I don't,", "uh - huh , i don't ,"),
        ("You’re in the '60s?!", "you’re in the ' 60s ? !"),
        ("Naïve café_3 -- <laughs>", "naïve café_3 - - < laughs >"),
    ],
)
def test_words_and_marks(text, expected):
    assert dialogues.words(text) == expected.split()


PLAIN = {
    "A|How are you?\n\nB|Fine.\n": (("A", "B"), ("How are you?", "Fine.")),
    "A|How are you?|qw\nB|Fine.|sd\n": (("A", "B"), ("How are you?", "Fine.")),
    "A|So.|S|fh|fh\nB|": (("A", "B"), ("So.", "")),
    "How are you?\r\n  Fine.": (("", ""), ("How are you?", "Fine.")),
}


@pytest.mark.parametrize("content", PLAIN)
def test_plain_conversation(content, tmp_path):
    path = tmp_path / "chat.txt"
    path.write_bytes(content.encode())
    assert dialogues.plain(path) == Conversation("chat", *PLAIN[content])


@pytest.mark.parametrize(
    ("content", "words"),
    [
        ("\n \n", "has no lines"),
        ("", "has no lines"),
        ("A|Hey.\nFine.\n", "line 2: 'Fine.' has 1 columns; it must be speaker|text"),
        ("A|Hey.\n\nB|a|b|c", "line 3: 'B|a|b|c' has 4 columns"),
    ],
)
def test_what_is_no_plain_conversation_is_refused(content, words, tmp_path):
    (tmp_path / "chat.txt").write_text(content)
    with pytest.raises(DataError) as refused:
        dialogues.plain(tmp_path / "chat.txt")
    assert words in str(refused.value)


@pytest.mark.slow
def test_real_corpus_if_it_is_here(switchboard):
    splits = switchboard
    counts = {split: (len(found), sum(map(len, found))) for split, found in splits.items()}
    assert counts == {"train": (1003, 174255), "validation": (112, 18135), "test": (19, 4078)}
    assert len(dialogues.tags(splits)) == 41
    assert dialogues.tags(splits)[:3] == ("sd", "b", "sv")
