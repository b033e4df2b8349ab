"""The README's example runs as it stands."""

import re
from pathlib import Path

README = Path(__file__).parents[1] / "README.md"


def test_the_example_verifies_a_tree(capsys):
    found = re.search(r"```python\n(.*?)```", README.read_text(), re.DOTALL)
    assert found is not None
    names: dict = {}
    exec(found[1], names)
    result = names["result"]
    assert result.num_accepted.tolist() == [2, 1]
    assert result.token_ids[0, :2].tolist() == [8, 4]
    assert result.token_ids[1, 0] == 6
    assert (result.status == 0).all()
    assert "tensor([2, 1]" in capsys.readouterr().out
