import asyncio
from collections.abc import AsyncIterator, Callable, Coroutine
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import pytest
import zmq
import zmq.asyncio
from zmq.utils.monitor import recv_monitor_message

from tests.wire.keys.key_folder import enroll, new_key
from wanspec_kernels.wire.keys import AllowList, Authenticator, Secret, secure_client, secure_server

REFUSED = {
    zmq.EVENT_HANDSHAKE_FAILED_AUTH,
    zmq.EVENT_HANDSHAKE_FAILED_PROTOCOL,
    zmq.EVENT_HANDSHAKE_FAILED_NO_DETAIL,
}
WAIT_S = 5.0


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
