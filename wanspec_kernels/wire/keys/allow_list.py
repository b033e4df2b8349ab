"""The allow-list: who may dial in."""

import logging
import os
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from wanspec_kernels.wire.keys.files import KeyFileError, UnreadableKeyFile, load_public

logger = logging.getLogger(__name__)


@dataclass(slots=True)
class _File:
    """What was last read of one key file."""

    stat: object = None  # None: read it again
    key: bytes | None = None
    trouble: str = ""  # said already


class AllowList:
    """The public keys in a folder's *.key files.

    Files are read again when they change, so that enrolling or removing a drafter needs no restart.
    A file that is gone takes its key with it, and so does one that holds no key any more. What is
    only unreadable for now keeps the key that it had: a file with an error of the disk, all of them
    while the process is out of descriptors. A link to a file that is gone is a file that is gone.

    Raises:
        KeyFileError: there is no such folder.
    """

    def __init__(self, folder: Path | str) -> None:
        self.folder = Path(folder)
        self._files: dict[str, _File] = {}  # by name
        self._keys: dict[bytes, str] = {}
        self._trouble = ""
        if not self.folder.is_dir():
            raise KeyFileError(f"{self.folder}: expected a folder of *.key files")

    def read(self) -> Mapping[bytes, str]:
        """The enrolled Z85 public keys as they are now, and the names of their files without .key.

        The mapping never changes; another one takes its place.
        """
        try:
            names = sorted(name for name in os.listdir(self.folder) if name.endswith(".key"))
        except (FileNotFoundError, NotADirectoryError) as error:
            self._say(f"{error}; nobody is enrolled")
            names = []
        except OSError as error:
            self._say(f"{error}; the list stays as it was")
            return self._keys
        else:
            self._trouble = ""
        self._files = {name: self._files.get(name, _File()) for name in names}
        for name, file in self._files.items():
            self._read_file(self.folder / name, file)
        keys = {f.key: name.removesuffix(".key") for name, f in self._files.items() if f.key}
        if keys != self._keys:
            self._keys = keys
        return self._keys

    def name_of(self, public_key: bytes) -> str | None:
        """The name (of the file, without .key) that a Z85 public key is enrolled under."""
        return self.read().get(public_key)

    def __contains__(self, public_key: bytes) -> bool:
        return self.name_of(public_key) is not None

    def _read_file(self, path: Path, file: _File) -> None:
        trouble = ""
        try:
            status = path.stat()
            seen = (status.st_ino, status.st_size, status.st_mtime_ns, status.st_ctime_ns)
            if seen == file.stat:
                return
            file.key, file.stat = load_public(path), seen
        except FileNotFoundError as error:
            file.key = file.stat = None
            trouble = f"skipped {error.filename}: {error.strerror}"
        except (UnreadableKeyFile, OSError) as error:
            file.stat = None
            trouble = f"{error}; {'its key stays' if file.key else 'skipped'}"
        except KeyFileError as error:
            file.key, file.stat = None, seen
            trouble = f"skipped {error}"
        if trouble and trouble != file.trouble:
            logger.warning("allow-list: %s", trouble)
        file.trouble = trouble

    def _say(self, trouble: str) -> None:
        if trouble != self._trouble:
            logger.warning("allow-list: %s", trouble)
        self._trouble = trouble
