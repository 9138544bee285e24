"""Data files: where they are looked for, and an error that says where they come from."""

from pathlib import Path

import pytest

from experiments.data import chorales, chunks, dialogues, files, shakespeare
from experiments.data.files import DataError


@pytest.fixture(autouse=True)
def folders(tmp_path, monkeypatch):
    monkeypatch.setenv("LSTMJAX_DATA", str(tmp_path / "data"))
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    return tmp_path / "data", files.cache()


def test_named_folder_comes_before_the_cache(folders):
    assert files.locate("a/b.txt") is None
    for folder in reversed(folders):
        (folder / "a").mkdir(parents=True)
        (folder / "a" / "b.txt").touch()
        assert files.locate("a/b.txt") == folder / "a" / "b.txt"


def test_folder_is_no_file_and_a_file_no_folder(folders):
    (folders[0] / "a").mkdir(parents=True)
    (folders[0] / "a" / "b").touch()
    assert files.locate("a") is None
    assert files.locate("a", Path.is_dir) == folders[0] / "a"
    assert files.locate("a/b", Path.is_dir) is None


@pytest.mark.parametrize(
    ("content", "lines"), [("", []), ("\n", [""]), ("a\n\nb", ["a", "", "b"]), ("a\r\nb\n", ["a", "b"])]
)
def test_lines_are_without_their_ends(content, lines, tmp_path):
    (tmp_path / "a").write_bytes(content.encode())
    assert files.lines(tmp_path / "a") == lines


MISSING = {
    chorales: (chorales.FILE, "https://github.com/"),
    shakespeare: (shakespeare.FILE, "https://github.com/"),
    chunks: (chunks.FILES["train"], "https://www.clips.uantwerpen.be/conll2000/chunking/"),
    dialogues: ("swda", "https://github.com/NathanDuran/Switchboard-Corpus"),
}


@pytest.mark.parametrize("module", MISSING)
def test_what_is_missing_is_answered_with_its_source(module, folders, monkeypatch):
    with pytest.raises(DataError) as missing:
        module.load()
    for words in (*MISSING[module], str(folders[0]), str(folders[1])):
        assert words in str(missing.value)
    monkeypatch.delenv("LSTMJAX_DATA")
    with pytest.raises(DataError, match="LSTMJAX_DATA is not set"):
        module.load()
