import pytest

from experiments.data import files, shakespeare
from experiments.data.files import DataError


@pytest.mark.parametrize(
    ("content", "words"), [(b"", "has 0 characters; it should have 40 at least"), ("é".encode(), "is no text in ASCII")]
)
def test_what_is_no_play_is_refused(tmp_path, monkeypatch, content, words):
    monkeypatch.setenv("LSTMJAX_DATA", str(tmp_path))
    path = tmp_path / shakespeare.FILE
    path.parent.mkdir()
    path.write_bytes(content)
    with pytest.raises(DataError, match=words) as refused:
        shakespeare.load()
    assert str(path) in str(refused.value)


def test_real_text_if_it_is_here():
    if files.locate(shakespeare.FILE) is None:
        pytest.skip("tiny Shakespeare is not on this machine: LSTMJAX_DATA names no folder that has it")
    text = shakespeare.load()
    assert (len(text), len(set(text))) == (1_115_394, 65)
    assert text.startswith("First Citizen:\nBefore we proceed any further, hear me speak.\n")
