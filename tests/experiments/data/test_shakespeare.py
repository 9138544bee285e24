import pytest

from experiments.data import files, shakespeare


def test_real_text_if_it_is_here():
    if files.locate(shakespeare.FILE) is None:
        pytest.skip("tiny Shakespeare is not on this machine: LSTMJAX_DATA names no folder that has it")
    text = shakespeare.load()
    assert (len(text), len(set(text))) == (1_115_394, 65)
    assert text.startswith("First Citizen:\nBefore we proceed any further, hear me speak.\n")
