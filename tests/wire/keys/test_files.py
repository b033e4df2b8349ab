import os
from pathlib import Path

import pytest

from wanspec_kernels.wire.keys import KeyFileError, generate, load_public, load_secret


def test_generated_keys_load(tmp_path: Path) -> None:
    secret_file = generate(tmp_path, "drafter")
    secret = load_secret(secret_file)
    assert load_public(tmp_path / "drafter.key") == secret.public
    assert secret_file.stat().st_mode & 0o777 == 0o600
    assert b"secret" not in (tmp_path / "drafter.key").read_bytes()
    assert secret.secret.decode() not in repr(secret)


@pytest.mark.parametrize("there", ["drafter.key", "drafter.secret"])
def test_nothing_is_overwritten(tmp_path: Path, there: str) -> None:
    (tmp_path / there).write_text("mine")
    with pytest.raises(FileExistsError, match=there):
        generate(tmp_path, "drafter")
    assert [file.name for file in tmp_path.iterdir()] == [there]
    assert (tmp_path / there).read_text() == "mine"


@pytest.mark.parametrize("name", ["", ".hidden", "..", "a/b", "../drafter"])
def test_a_name_that_is_no_plain_one_is_refused(tmp_path: Path, name: str) -> None:
    with pytest.raises(KeyFileError, match="expected a plain name"):
        generate(tmp_path, name)
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (None, "No such file"),
        ("hello", "public-key"),
        ('public-key = "abc"', "40 Z85 characters, got 3"),
        (f'public-key = "{"é" * 20}"', "40 Z85 characters"),
        (f'public-key = "{"a" * 40}"\nsecret-key = "{"b" * 39}"', "got 39"),
        ("#" * 5000, "public-key"),
    ],
)
def test_broken_key_files_say_what_is_wrong(
    tmp_path: Path, content: str | None, message: str
) -> None:
    path = tmp_path / "broken.key"
    if content is not None:
        path.write_text(content)
    with pytest.raises(KeyFileError, match=message):
        load_public(path)


def test_a_pipe_is_no_key_file(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "pipe.key")
    with pytest.raises(KeyFileError, match="public-key"):
        load_public(tmp_path / "pipe.key")


def test_a_secret_that_others_may_read_is_refused(tmp_path: Path) -> None:
    path = generate(tmp_path, "drafter")
    path.chmod(0o640)
    with pytest.raises(KeyFileError, match="expected mode 0600, got 0640"):
        load_secret(path)


def test_a_secret_file_needs_a_matching_pair(tmp_path: Path) -> None:
    generate(tmp_path, "drafter")
    with pytest.raises(KeyFileError, match="public one only"):
        load_secret(tmp_path / "drafter.key")
    other = generate(tmp_path, "other")
    first_public = load_public(tmp_path / "drafter.key")
    text = other.read_text().replace(load_secret(other).public.decode(), first_public.decode())
    other.write_text(text)
    with pytest.raises(KeyFileError, match="not that of the secret"):
        load_secret(other)
