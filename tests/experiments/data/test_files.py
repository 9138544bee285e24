"""Data files: where they are looked for, and an error that says where they come from."""

import pytest

from experiments.data import chorales, files, shakespeare
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


@pytest.mark.parametrize("module", [chorales, shakespeare])
def test_missing_file_is_answered_with_its_source(module, folders, monkeypatch):
    with pytest.raises(DataError) as missing:
        module.load()
    for words in (module.FILE, str(folders[0]), str(folders[1]), "https://github.com/"):
        assert words in str(missing.value)
    monkeypatch.delenv("LSTMJAX_DATA")
    with pytest.raises(DataError, match="LSTMJAX_DATA is not set"):
        module.load()
