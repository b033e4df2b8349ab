import errno
import logging
import os
import resource
from pathlib import Path

import pytest

from tests.wire.keys.key_folder import enroll, new_key
from wanspec_kernels.wire.keys import AllowList, KeyFileError


def test_the_allow_list_follows_its_folder(
    tmp_path: Path, enrolled: Path, caplog: pytest.LogCaptureFixture
) -> None:
    allowed = AllowList(enrolled)
    first, second = new_key(tmp_path, "first"), new_key(tmp_path, "second")
    assert first.public not in allowed
    enroll(enrolled, "lab", first)
    assert allowed.name_of(first.public) == "lab"
    (enrolled / "broken.key").write_text("nonsense")
    enroll(enrolled, "second", second)
    with caplog.at_level(logging.WARNING):
        assert second.public in allowed
    assert "broken.key" in caplog.text
    enroll(enrolled, "lab", second)
    assert first.public not in allowed
    for file in enrolled.iterdir():
        file.unlink()
    enrolled.rmdir()
    assert second.public not in allowed
    with pytest.raises(KeyFileError, match="folder"):
        AllowList(enrolled)


def test_a_link_to_nowhere_is_skipped_and_named_once(
    tmp_path: Path, enrolled: Path, caplog: pytest.LogCaptureFixture
) -> None:
    key = new_key(tmp_path, "key")
    (enrolled / "dangling.key").symlink_to(tmp_path / "gone.key")
    enroll(enrolled, "lab", key)
    allowed = AllowList(enrolled)
    for _ in range(3):
        assert allowed.name_of(key.public) == "lab"
    assert caplog.text.count("dangling.key") == 1
    (tmp_path / "key.key").rename(tmp_path / "gone.key")
    (enrolled / "lab.key").unlink()
    assert allowed.name_of(key.public) == "dangling"
    (tmp_path / "gone.key").unlink()
    assert key.public not in allowed
    assert caplog.text.count("dangling.key") == 2


def unavailable(number: int, path: object = None) -> OSError:
    return OSError(number, os.strerror(number), path)


@pytest.mark.parametrize("number", [errno.EMFILE, errno.EIO, errno.EACCES])
def test_a_folder_that_cannot_be_listed_leaves_the_list_as_it_was(
    tmp_path: Path,
    enrolled: Path,
    caplog: pytest.LogCaptureFixture,
    monkeypatch: pytest.MonkeyPatch,
    number: int,
) -> None:
    key = new_key(tmp_path, "key")
    enroll(enrolled, "lab", key)
    allowed = AllowList(enrolled)
    assert key.public in allowed

    def fail(folder: object) -> list[str]:
        raise unavailable(number, folder)

    with monkeypatch.context() as patch:
        patch.setattr(os, "listdir", fail)
        assert key.public in allowed
        assert allowed.name_of(key.public) == "lab"
        assert caplog.text.count(os.strerror(number)) == 1
    (enrolled / "lab.key").unlink()
    assert key.public not in allowed


def test_a_file_that_cannot_be_read_for_now_keeps_its_key_while_it_is_there(
    tmp_path: Path,
    enrolled: Path,
    caplog: pytest.LogCaptureFixture,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    old, new, other, late = (new_key(tmp_path, name) for name in ("old", "new", "other", "late"))
    enroll(enrolled, "lab", old)
    enroll(enrolled, "other", other)
    allowed = AllowList(enrolled)
    assert old.public in allowed

    def fail(path: object) -> tuple[bytes, bytes]:
        raise unavailable(errno.EMFILE, path)

    with monkeypatch.context() as patch:
        patch.setattr("wanspec_kernels.wire.keys.files.load_certificate", fail)
        enroll(enrolled, "lab", new)
        enroll(enrolled, "late", late)
        for _ in range(3):
            assert set(allowed.read()) == {old.public, other.public}
        assert caplog.text.count("late.key") == 1
        assert caplog.text.count("lab.key") == 1
        (enrolled / "other.key").unlink()
        assert set(allowed.read()) == {old.public}
    assert allowed.read() == {new.public: "lab", late.public: "late"}
    (enrolled / "lab.key").write_text("")  # what is no key file takes the key with it
    assert set(allowed.read()) == {late.public}


def test_the_list_outlives_the_process_running_out_of_descriptors(
    tmp_path: Path, enrolled: Path
) -> None:
    key = new_key(tmp_path, "key")
    enroll(enrolled, "lab", key)
    allowed = AllowList(enrolled)
    assert key.public in allowed
    limits = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (0, limits[1]))
    try:
        assert key.public in allowed
    finally:
        resource.setrlimit(resource.RLIMIT_NOFILE, limits)
