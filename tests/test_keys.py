import asyncio
import logging
import os
from collections.abc import AsyncIterator, Callable, Coroutine
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import pytest
import zmq
import zmq.asyncio
from zmq.utils.monitor import recv_monitor_message

from wanspec_kernels.keys import (
    AllowList,
    Authenticator,
    KeyFileError,
    Secret,
    generate,
    load_public,
    load_secret,
    secure_client,
    secure_server,
)

REFUSED = {
    zmq.EVENT_HANDSHAKE_FAILED_AUTH,
    zmq.EVENT_HANDSHAKE_FAILED_PROTOCOL,
    zmq.EVENT_HANDSHAKE_FAILED_NO_DETAIL,
}
WAIT_S = 5.0


def new_key(folder: Path, name: str) -> Secret:
    return load_secret(generate(folder, name))


@pytest.fixture
def enrolled(tmp_path: Path) -> Path:
    folder = tmp_path / "enrolled"
    folder.mkdir()
    return folder


def enroll(folder: Path, name: str, key: Secret) -> None:
    (folder / f"{name}.key").write_text(f'curve\n    public-key = "{key.public.decode()}"\n')


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


@asynccontextmanager
async def server(secret: Secret) -> AsyncIterator[tuple[zmq.asyncio.Socket, str, Any]]:
    """A bound ROUTER with CURVE, its address, and the socket its handshakes are reported on."""
    context = zmq.asyncio.Context()
    router = context.socket(zmq.ROUTER)
    router.linger = 0
    secure_server(router, secret)
    events = router.get_monitor_socket(
        zmq.EVENT_HANDSHAKE_SUCCEEDED
        | zmq.EVENT_HANDSHAKE_FAILED_AUTH
        | zmq.EVENT_HANDSHAKE_FAILED_PROTOCOL
        | zmq.EVENT_HANDSHAKE_FAILED_NO_DETAIL
    )
    port = router.bind_to_random_port("tcp://127.0.0.1")
    try:
        yield router, f"tcp://127.0.0.1:{port}", events
    finally:
        router.close()
        context.destroy(linger=0)


@asynccontextmanager
async def dealer(
    address: str, secure: Callable[[zmq.asyncio.Socket], None]
) -> AsyncIterator[zmq.asyncio.Socket]:
    context = zmq.asyncio.Context()
    socket = context.socket(zmq.DEALER)
    socket.linger = 0
    secure(socket)
    socket.connect(address)
    try:
        yield socket
    finally:
        socket.close()
        context.destroy(linger=0)


async def assert_refused(router: zmq.asyncio.Socket, events: Any) -> None:
    event = await asyncio.wait_for(recv_monitor_message(events), WAIT_S)
    assert event["event"] in REFUSED
    assert await router.poll(0) == 0


def run(main: Coroutine[Any, Any, None]) -> None:
    asyncio.run(asyncio.wait_for(main, 4 * WAIT_S))


def test_an_enrolled_key_comes_in_and_is_named_on_its_messages(
    tmp_path: Path, enrolled: Path
) -> None:
    ours, theirs = new_key(tmp_path, "server"), new_key(tmp_path, "client")
    enroll(enrolled, "lab", theirs)

    async def main() -> None:
        async with (
            server(ours) as (router, address, _),
            Authenticator(router.context, AllowList(enrolled)) as authenticator,
            dealer(address, lambda s: secure_client(s, theirs, ours.public)) as client,
        ):
            await client.send(b"hello")
            route, payload = await asyncio.wait_for(router.recv_multipart(copy=False), WAIT_S)
            assert payload.bytes == b"hello"
            assert payload.get("User-Id") == theirs.public.decode()
            await router.send_multipart([route.bytes, b"welcome"])
            assert await asyncio.wait_for(client.recv(), WAIT_S) == b"welcome"
            assert authenticator.num_refused == 0

    run(main())


def no_security(socket: zmq.asyncio.Socket) -> None:
    pass


def plain(socket: zmq.asyncio.Socket) -> None:
    socket.plain_username = b"drafter"
    socket.plain_password = b"drafter"


@pytest.mark.parametrize("who", ["unknown key", "no key", "password", "wrong server key"])
def test_nobody_else_gets_a_message_through(tmp_path: Path, enrolled: Path, who: str) -> None:
    ours, known, stranger = (new_key(tmp_path, name) for name in ("server", "known", "stranger"))
    enroll(enrolled, "known", known)
    secure = {
        "unknown key": lambda s: secure_client(s, stranger, ours.public),
        "no key": no_security,
        "password": plain,
        "wrong server key": lambda s: secure_client(s, known, stranger.public),
    }[who]

    async def main() -> None:
        async with (
            server(ours) as (router, address, events),
            Authenticator(router.context, AllowList(enrolled)) as authenticator,
            dealer(address, secure) as client,
        ):
            await client.send(b"hello")
            await assert_refused(router, events)
            assert authenticator.num_refused == (1 if who == "unknown key" else 0)

    run(main())


def test_without_an_authenticator_nobody_comes_in(tmp_path: Path) -> None:
    ours, theirs = new_key(tmp_path, "server"), new_key(tmp_path, "client")

    async def main() -> None:
        async with (
            server(ours) as (router, address, events),
            dealer(address, lambda s: secure_client(s, theirs, ours.public)) as client,
        ):
            await client.send(b"hello")
            await assert_refused(router, events)

    run(main())


def test_a_key_removed_is_refused_at_its_next_connection(tmp_path: Path, enrolled: Path) -> None:
    ours, theirs = new_key(tmp_path, "server"), new_key(tmp_path, "client")
    enroll(enrolled, "lab", theirs)

    def secure(socket: zmq.asyncio.Socket) -> None:
        secure_client(socket, theirs, ours.public)

    async def main() -> None:
        async with (
            server(ours) as (router, address, events),
            Authenticator(router.context, AllowList(enrolled)),
        ):
            async with dealer(address, secure) as client:
                await client.send(b"hello")
                await asyncio.wait_for(router.recv_multipart(), WAIT_S)
                event = await asyncio.wait_for(recv_monitor_message(events), WAIT_S)
                assert event["event"] == zmq.EVENT_HANDSHAKE_SUCCEEDED
            (enrolled / "lab.key").unlink()
            async with dealer(address, secure) as client:
                await client.send(b"hello")
                await assert_refused(router, events)

    run(main())


@pytest.mark.parametrize(
    "request_frames",
    [
        [],
        [b"1.0"],
        [b"1.0", b"1", b"wanspec", b"127.0.0.1", b"", b"NULL"],
        [b"1.0", b"1", b"wanspec", b"127.0.0.1", b"", b"CURVE"],
        [b"1.0", b"1", b"wanspec", b"127.0.0.1", b"", b"CURVE", b"short"],
        [b"1.0", b"1", b"other", b"127.0.0.1", b"", b"CURVE", b"\0" * 32],
        [b"1.0", b"1", b"wanspec", b"127.0.0.1", b"", b"CURVE", b"\0" * 32, b"more"],
    ],
)
def test_the_handler_refuses_what_it_does_not_know(
    enrolled: Path, request_frames: list[bytes]
) -> None:
    with zmq.asyncio.Context() as context:
        authenticator = Authenticator(context, AllowList(enrolled))
        reply = authenticator.answer(request_frames)
    assert reply[2] == b"400"
    assert reply[4] == b""
    assert authenticator.num_refused == 1
