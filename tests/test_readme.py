"""The README's example runs as it stands."""

import re
from pathlib import Path

README = Path(__file__).parents[1] / "README.md"


def test_the_example_verifies_a_tree(capsys):
    found = re.search(r"```python\n(.*?)```", README.read_text(), re.DOTALL)
    assert found is not None
    names: dict = {}
    exec(found[1], names)
    assert names["result"].token_ids.shape == (2, 3)
    assert (names["result"].status == 0).all()
    assert "tensor" in capsys.readouterr().out
