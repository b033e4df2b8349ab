"""Key pairs for what dials a verifier."""

import pytest

from wanspec_kernels.wire.keys import AllowList, generate, load_secret


@pytest.fixture(scope="module")
def keys(tmp_path_factory):
    """Secrets of the verifier, of enrolled drafters and of a stranger; the allow-list's folder."""
    folder = tmp_path_factory.mktemp("keys")
    enrolled = folder / "enrolled"
    enrolled.mkdir()
    secrets = {}
    for name in ("verifier", "stranger", "first", "second", "third"):
        where = enrolled if name in ("first", "second", "third") else folder
        secrets[name] = load_secret(generate(where, name))
    secrets["enrolled"] = AllowList(enrolled)
    return secrets
