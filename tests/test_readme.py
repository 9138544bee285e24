import pathlib
import re

README = pathlib.Path(__file__).parent.parent / "README.md"


def test_examples_run_and_give_the_shapes_they_say():
    blocks = re.findall(r"```python\n(.*?)```", README.read_text(), flags=re.DOTALL)
    names = {}
    exec("\n".join(blocks), names)
    shapes = {name: names[name].shape for name in ("prediction", "y", "codes", "ys", "tags")}
    assert shapes == {"prediction": (8, 1), "y": (8, 3), "codes": (2, 5, 32), "ys": (2, 5, 32), "tags": (2, 5, 41)}
