import pathlib
import re

README = pathlib.Path(__file__).parent.parent / "README.md"


def test_examples_run_and_give_the_shapes_they_say():
    blocks = re.findall(r"```python\n(.*?)```", README.read_text(), flags=re.DOTALL)
    names = {}
    exec("\n".join(blocks), names)
    expected = {"prediction": (8, 1), "y": (8, 3), "tokens": (2, 3, 4), "words_in": (2, 3), "utterances_in": (2,)}
    expected |= {"ys": (2, 3, 64), "tags": (2, 3), "score": (2,), "loss": (2,)}
    assert {name: names[name].shape for name in expected} == expected
