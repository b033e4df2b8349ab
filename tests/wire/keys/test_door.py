"""The door over real sockets: whose name a connection has, and when it ends."""

import asyncio
import subprocess
import sys
from collections.abc import AsyncIterator, Coroutine
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import pytest
import zmq
import zmq.asyncio

from tests.wire.keys.key_folder import enroll, new_key
from wanspec_kernels.wire.keys import AllowList, Authenticator, Door, Secret, secure_client

WAIT_S = 10.0


class Place:
    """A door, and dealers of one context that dial it."""

    def __init__(self, tmp_path: Path, enrolled: Path) -> None:
        self.ours, self.theirs = new_key(tmp_path, "server"), new_key(tmp_path, "client")
        enroll(enrolled, "lab", self.theirs)
        self.enrolled = enrolled

    @asynccontextmanager
    async def door(self, kind: type[Door] = Door, **options: Any) -> AsyncIterator[Door]:
        context = zmq.asyncio.Context()
        door = kind(context, secret=self.ours, allowed=AllowList(self.enrolled), **options)
        door.socket.linger = 0
        door.socket.router_mandatory = True
        self.address = door.open("tcp://127.0.0.1:*")
        self.dealers = zmq.asyncio.Context()
        try:
            yield door
        finally:
            await door.close()
            context.term()
            self.dealers.destroy(linger=0)

    @asynccontextmanager
    async def dial(
        self, secret: Secret, routing_id: bytes = b""
    ) -> AsyncIterator[tuple[zmq.asyncio.Socket, zmq.asyncio.Socket]]:
        """A dealer, and the socket that tells of its end."""
        dealer = self.dealers.socket(zmq.DEALER)
        dealer.linger = 0
        dealer.reconnect_ivl = -1
        if routing_id:
            dealer.routing_id = routing_id
        secure_client(dealer, secret, self.ours.public)
        ends = dealer.get_monitor_socket(zmq.EVENT_DISCONNECTED)
        dealer.connect(self.address)
        try:
            yield dealer, ends
        finally:
            dealer.disable_monitor()
            ends.close()
            dealer.close()


@pytest.fixture
def place(tmp_path: Path, enrolled: Path) -> Place:
    return Place(tmp_path, enrolled)


def run(main: Coroutine[Any, Any, None]) -> None:
    asyncio.run(asyncio.wait_for(main, 3 * WAIT_S))


async def receive(door: Door) -> list[zmq.Frame]:
    return await asyncio.wait_for(door.socket.recv_multipart(copy=False), WAIT_S)


def test_a_connection_has_the_name_that_we_gave_it(place: Place) -> None:
    async def main() -> None:
        async with place.door() as door:
            names = set()
            for _ in range(3):
                async with place.dial(place.theirs, b"\0mine") as (dealer, _):
                    await dealer.send(b"hello")
                    frames = await receive(door)
                    assert door.admits(frames)
                    names.add(frames[0].bytes)
                    await door.socket.send_multipart([frames[0].bytes, b"welcome"])
                    assert await asyncio.wait_for(dealer.recv(), WAIT_S) == b"welcome"
            assert len(names) == 3
            assert all(len(name) == 24 for name in names)

    run(main())


def test_our_name_is_read_last(place: Place) -> None:
    """Of answers that come too early, some 2 in 100 are read before the peer's own name."""

    async def main() -> None:
        async with place.door() as door:
            for _ in range(300):
                async with place.dial(place.theirs, b"\0mine") as (dealer, _):
                    await dealer.send(b"hello")
                    assert door.admits(await receive(door))

    run(main())


class Nameless(Authenticator):
    """Lets in as ever, and names nobody."""

    def answer(self, request: list[bytes]) -> list[bytes]:
        return [*super().answer(request)[:-1], b""]


class NamelessDoor(Door):
    """As if libzmq had taken each peer's own name, which it may read after ours."""

    def __init__(self, context: zmq.asyncio.Context, **options: Any) -> None:
        super().__init__(context, **options)
        self._authenticator = Nameless(context, self.allowed)


@pytest.mark.parametrize("routing_id", [b"", b"\0mine", bytes(24)])
def test_a_connection_with_another_name_is_closed(place: Place, routing_id: bytes) -> None:
    async def main() -> None:
        dialled = place.dial(place.theirs, routing_id)
        async with place.door(NamelessDoor) as door, dialled as (dealer, ends):
            await dealer.send(b"hello")
            assert not door.admits(await receive(door))
            await asyncio.wait_for(ends.recv_multipart(), WAIT_S)
            assert door.num_closed == 1

    run(main())


def test_an_enrolled_connection_that_says_nothing_is_closed(place: Place) -> None:
    async def main() -> None:
        async with place.door(silent_ms=300.0) as door, place.dial(place.theirs) as (_, ends):
            await asyncio.wait_for(ends.recv_multipart(), WAIT_S)
            assert door.num_closed == 1
            assert door.num_refused == 0

    run(main())


def test_a_key_taken_off_the_list_is_not_heard_and_soon_out(place: Place) -> None:
    async def main() -> None:
        async with place.door() as door, place.dial(place.theirs) as (dealer, ends):
            await dealer.send(b"hello")
            assert door.admits(await receive(door))
            (place.enrolled / "lab.key").unlink()
            removed = asyncio.get_running_loop().time()
            while True:
                await dealer.send(b"hello")
                if not door.admits(await receive(door)):
                    break
            await asyncio.wait_for(ends.recv_multipart(), WAIT_S)
            assert asyncio.get_running_loop().time() - removed < 2.0
            assert door.num_closed == 1

    run(main())


def test_a_key_off_the_list_before_its_first_message_is_not_heard(place: Place) -> None:
    async def main() -> None:
        async with place.door() as door, place.dial(place.theirs) as (dealer, _):
            await dealer.send(b"hello")
            frames = await receive(door)
            (place.enrolled / "lab.key").unlink()
            assert not door.admits(frames)

    run(main())


AUTOMATIC_ID = """
import sys, zmq, zmq.asyncio
from wanspec_kernels.wire.keys import AllowList, Door, load_secret
folder = sys.argv[1]
with zmq.asyncio.Context() as context:
    door = Door(context, secret=load_secret(folder + "/server.secret"), allowed=AllowList(folder))
    door.socket.bind("inproc://here")  # where there is no handshake
    with zmq.Context.shadow(context).socket(zmq.DEALER) as dealer:
        dealer.connect("inproc://here")
        dealer.send(b"hello")
        print(zmq.Socket.shadow(door.socket).recv().hex())
    door.socket.close()
"""


def test_automatic_routing_ids_differ_from_process_to_process(tmp_path: Path) -> None:
    new_key(tmp_path, "server")
    command = [sys.executable, "-c", AUTOMATIC_ID, str(tmp_path)]
    ids = {subprocess.check_output(command) for _ in range(3)}
    assert len(ids) == 3
