from pathlib import Path

import pytest


@pytest.fixture
def enrolled(tmp_path: Path) -> Path:
    folder = tmp_path / "enrolled"
    folder.mkdir()
    return folder
