"""CURVE keys: key files, the allow-list, and the ZAP handler that enforces it.

A CURVE server without a ZAP handler lets any key in. `secure_server` therefore enforces a ZAP
domain: libzmq then refuses every handshake until an `Authenticator` runs in the same context.

The files are those of `zmq.auth` and CZMQ; NAME.key may be handed out, NAME.secret stays at home.
"""

import asyncio
import logging
import os
import stat
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path

import zmq
import zmq.asyncio
from zmq.auth import load_certificate
from zmq.utils import z85

ZAP_ENDPOINT = "inproc://zeromq.zap.01"
ZAP_VERSION = b"1.0"
ZAP_DOMAIN = b"wanspec"
MAX_KEY_FILE_BYTES = 4096

logger = logging.getLogger(__name__)


class KeyFileError(ValueError):
    """A key file that is missing, unreadable by us, readable by others, or no key file."""


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


class AllowList:
    """The public keys in a folder's *.key files.

    Files are read again when the folder changes, so that enrolling or removing a drafter needs no
    restart. A key removed is refused from its next connection on.

    Raises:
        KeyFileError: there is no such folder.
    """

    def __init__(self, folder: Path | str) -> None:
        self.folder = Path(folder)
        self._seen: object = None
        self._keys: dict[bytes, str] = {}
        if not self.folder.is_dir():
            raise KeyFileError(f"{self.folder}: expected a folder of *.key files")

    def name_of(self, public_key: bytes) -> str | None:
        """The name (of the file, without .key) that a Z85 public key is enrolled under."""
        self._refresh()
        return self._keys.get(public_key)

    def __contains__(self, public_key: bytes) -> bool:
        return self.name_of(public_key) is not None

    def _refresh(self) -> None:
        try:
            files = sorted(self.folder.glob("*.key"))
            stats = [(file.name, file.stat()) for file in files]
        except OSError as error:
            # A file went while we looked, or the folder did: nobody comes in until it reads again.
            logger.warning("allow-list: %s", error)
            self._seen, self._keys = None, {}
            return
        seen = [(name, s.st_ino, s.st_size, s.st_mtime_ns) for name, s in stats]
        if seen == self._seen:
            return
        self._seen, self._keys = seen, {}
        for file in files:
            try:
                self._keys[load_public(file)] = file.stem
            except KeyFileError as error:
                logger.warning("allow-list: skipped %s", error)


class Authenticator:
    """The ZAP handler (ZeroMQ RFC 27) of one context: keys of the allow-list come in, nobody else.

    A message's authenticated key is then ``frame.get("User-Id")``, as Z85 text, of a frame received
    with ``copy=False``. Use as ``async with Authenticator(context, allowed): ...``.
    """

    def __init__(
        self,
        context: zmq.asyncio.Context,
        allowed: AllowList,
        on_refused: Callable[[str, str], None] = lambda address, key: None,
    ) -> None:
        """`on_refused` gets the address and the public key (or "") of each peer turned away."""
        self.allowed = allowed
        self.num_refused = 0
        self._on_refused = on_refused
        self._context = context
        self._socket: zmq.asyncio.Socket | None = None
        self._task: asyncio.Task[None] | None = None

    def start(self) -> None:
        """Bind the handler and answer from a task of the running loop."""
        self._socket = self._context.socket(zmq.REP)
        self._socket.linger = 0
        self._socket.bind(ZAP_ENDPOINT)
        self._task = asyncio.create_task(self._serve(self._socket), name="zap")

    async def close(self) -> None:
        if self._task is not None:
            self._task.cancel()
            with suppress(asyncio.CancelledError):
                await self._task
        if self._socket is not None:
            self._socket.close()
        self._task = self._socket = None

    async def __aenter__(self) -> "Authenticator":
        self.start()
        return self

    async def __aexit__(self, *_: object) -> None:
        await self.close()

    async def _serve(self, socket: zmq.asyncio.Socket) -> None:
        while True:
            request = await socket.recv_multipart()
            await socket.send_multipart(self.answer(request))

    def answer(self, request: list[bytes]) -> list[bytes]:
        """The reply to one ZAP request; whatever is not an enrolled CURVE key is refused."""
        request_id = request[1] if len(request) > 1 else b""
        user = shown = ""
        address = request[3][:64].decode("ascii", "replace") if len(request) > 3 else ""
        with suppress(ValueError):
            version, _, domain, _, _, mechanism, key = request
            if (version, domain, mechanism) == (ZAP_VERSION, ZAP_DOMAIN, b"CURVE"):
                public_key = z85.encode(key)
                shown = public_key.decode("ascii")
                if public_key in self.allowed:
                    user = shown
        if user:
            return [ZAP_VERSION, request_id, b"200", b"OK", user.encode("ascii"), b""]
        self.num_refused += 1
        self._on_refused(address, shown)
        return [ZAP_VERSION, request_id, b"400", b"key not enrolled", b"", b""]


def secure_server(socket: zmq.Socket[bytes], secret: Secret) -> None:
    """Make a socket, before it binds, accept only keys that an `Authenticator` lets in."""
    socket.curve_server = True
    socket.curve_publickey = secret.public
    socket.curve_secretkey = secret.secret
    socket.zap_domain = ZAP_DOMAIN
    socket.set(zmq.ZAP_ENFORCE_DOMAIN, 1)


def secure_client(socket: zmq.Socket[bytes], secret: Secret, server_public: bytes) -> None:
    """Make a socket, before it connects, show `secret` and accept only the server of that key."""
    socket.curve_publickey = secret.public
    socket.curve_secretkey = secret.secret
    socket.curve_serverkey = server_public


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
        raise KeyFileError(f"{path}: {error.strerror or error}") from None
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
