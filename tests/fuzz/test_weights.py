"""Files of weights that were cut, changed or forged: refused, or read as params that can be written again."""

import json
import struct

import jax
import pytest
from fuzz.calls import HIERARCHY, STACK
from fuzz.cases import fuzz
from fuzz.hostile import JUNK
from hypothesis import strategies as st

from lstmjax import LSTMOptions, files
from lstmjax.files import FileError


@pytest.fixture(scope="module")
def path(tmp_path_factory):
    return tmp_path_factory.mktemp("weights") / "any.safetensors"


@pytest.fixture(scope="module")
def good(path):
    files.save(path, {"stack": STACK, "levels": [HIERARCHY]}, {"encoder": LSTMOptions()})
    return path.read_bytes()


def check_refusal(error, path):
    assert str(path) in str(error)
    assert len(str(error)) < 3000


@fuzz(percent=0.7, data=st.data())
def test_files_with_other_bytes_are_refused(path, good, data):
    at = data.draw(st.integers(0, len(good) - 1), label="at")
    put = data.draw(st.binary(min_size=1, max_size=4), label="put")
    cut = data.draw(st.integers(0, 4), label="cut")
    content = data.draw(st.sampled_from([good[:at], good[:at] + put + good[at + cut :], put + good, put]))
    path.write_bytes(content)
    try:
        files.load(path)
    except FileError as error:
        check_refusal(error, path)
    else:
        assert content == good


VALUES = [junk for junk in JUNK if isinstance(junk, type(None) | bool | int | str | list | dict) and junk != 10**400]
VALUES += ["array", {"dict": {}}, {"tuple": ["array"]}, {"LSTMParams": {}}, {"LSTMState": {"h": "array", "c": "array"}}]


@fuzz(percent=0.7, data=st.data())
def test_headers_that_are_forged_are_refused(path, good, data):
    """With the sum of what they now hold, so that nothing but the description can be at fault."""
    size = struct.unpack("<Q", good[:8])[0]
    header = json.loads(good[8 : 8 + size])
    document = json.loads(header["__metadata__"]["lstmjax"])
    node = document["tree"] if data.draw(st.booleans()) else header
    while isinstance(node, dict | list) and node:
        key = data.draw(st.sampled_from(list(node) if isinstance(node, dict) else list(range(len(node)))))
        if key == "__metadata__" or not isinstance(node[key], dict | list) or data.draw(st.integers(0, 3)) == 0:
            node[key] = data.draw(st.sampled_from(VALUES))
            break
        node = node[key]
    if isinstance(header.get("__metadata__"), dict):
        header["__metadata__"]["lstmjax"] = json.dumps(document, separators=(",", ":"))
    text = json.dumps(header, separators=(",", ":")).encode()
    content = bytearray(struct.pack("<Q", len(text)) + text + good[8 + size :])
    if content[8 : files.DIGITS.start] == files.START:
        content[files.DIGITS] = files._sum(content)
    path.write_bytes(content)
    try:
        params, options = files.load(path)
    except FileError as error:
        check_refusal(error, path)
        return
    files.save(path, params, options)
    assert jax.tree.structure(files.load(path)[0]) == jax.tree.structure(params)
