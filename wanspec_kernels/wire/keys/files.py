"""Key files, as `zmq.auth` and CZMQ have them.

NAME.key may be handed out, NAME.secret stays at home.
"""

import os
import stat
from dataclasses import dataclass, field
from pathlib import Path

import zmq
from zmq.auth import load_certificate
from zmq.utils import z85

MAX_KEY_FILE_BYTES = 4096


class KeyFileError(ValueError):
    """A key file that is missing, unreadable by us, readable by others, or no key file."""


class UnreadableKeyFile(KeyFileError):
    """A key file that the system does not let us read now; it says nothing of what is in it."""


@dataclass(frozen=True, slots=True)
class Secret:
    """A key pair, Z85-encoded (40 bytes each)."""

    public: bytes
    secret: bytes = field(repr=False)


def generate(folder: Path | str, name: str) -> Path:
    """Write ``folder/name.key`` (public) and ``folder/name.secret`` (mode 0600); return the latter.

    Raises:
        FileExistsError: one of them is there already; nothing is ever overwritten.
        KeyFileError: the name is empty, hidden or a path.
    """
    if not name or name.startswith(".") or Path(name).name != name:
        raise KeyFileError(f"expected a plain name such as my-university, got {name!r}")
    folder = Path(folder)
    public, secret = (key.decode("ascii") for key in zmq.curve_keypair())
    public_file, secret_file = folder / f"{name}.key", folder / f"{name}.secret"
    if public_file.exists():
        raise FileExistsError(f"{public_file}: a key of this name is there already")
    body = f'curve\n    public-key = "{public}"\n'
    _write_new(secret_file, f'{body}    secret-key = "{secret}"\n', 0o600)
    _write_new(public_file, body, 0o644)
    return secret_file


def load_public(path: Path | str) -> bytes:
    """The Z85 public key in a NAME.key file. Raises KeyFileError, also for a NAME.secret."""
    public, secret = _load(Path(path))
    if secret is not None:
        # Whoever gives us a secret has taken the wrong file, and may hand it to others as well.
        raise KeyFileError(f"{path}: expected a public NAME.key, got a file with a secret key")
    return public


def load_secret(path: Path | str) -> Secret:
    """The key pair in a NAME.secret file. Raises KeyFileError, also if others may read the file."""
    path = Path(path)
    public, secret = _load(path)
    if secret is None:
        raise KeyFileError(f"{path}: expected a secret key, got a public one only")
    mode = stat.S_IMODE(path.stat().st_mode)
    if mode & 0o077:
        raise KeyFileError(f"{path}: expected mode 0600, got {mode:04o}; others may read the key")
    if zmq.curve_public(secret) != public:
        raise KeyFileError(f"{path}: the public key is not that of the secret key")
    return Secret(public, secret)


def _write_new(path: Path, text: str, mode: int) -> None:
    try:
        descriptor = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL, mode)
    except FileExistsError:
        raise FileExistsError(f"{path}: a key of this name is there already") from None
    with os.fdopen(descriptor, "w", encoding="ascii") as file:
        file.write(text)


def _load(path: Path) -> tuple[bytes, bytes | None]:
    try:
        # A pipe or a device of that name would hold us up.
        sound = path.stat().st_size <= MAX_KEY_FILE_BYTES and path.is_file()
        public, secret = load_certificate(path) if sound else (None, None)
    except OSError as error:
        raise UnreadableKeyFile(f"{path}: {error.strerror or error}") from None
    except ValueError:
        public = secret = None
    if public is None:
        raise KeyFileError(f"{path}: expected a key file with a line public-key = ...")
    for key in (public, secret):
        # The message must not show the key: a broken secret is still nearly the secret.
        if key is not None and not _is_key(key):
            raise KeyFileError(f"{path}: expected keys of 40 Z85 characters, got {len(key)} bytes")
    return public, secret


def _is_key(key: bytes) -> bool:
    try:
        return len(key) == 40 and len(z85.decode(key)) == 32
    except Exception:  # z85 has no error of its own
        return False
