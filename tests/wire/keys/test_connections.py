"""Bounds on connections, in virtual time and over real TCP."""

import os
import resource
import socket
import sys
from collections.abc import Iterator
from contextlib import ExitStack, closing

import pytest

from wanspec_kernels.wire.keys.connections import (
    MAX_OF_A_KEY,
    UNLISTED_MS,
    Connections,
    _affordable,
    _network,
)


class Dialler:
    """Both ends of real connections; the server's may be shut by `Connections`."""

    def __init__(self, stack: ExitStack) -> None:
        self._stack = stack
        self._listener = stack.enter_context(socket.create_server(("127.0.0.1", 0)))
        self._servers: list[socket.socket] = []
        self.clients: dict[int, socket.socket] = {}  # by the server's descriptor

    def dial(self, source: str = "127.0.0.1") -> int:
        there = self._listener.getsockname()
        client = socket.create_connection(there, source_address=(source, 0))
        self._stack.enter_context(client)
        server = self._stack.enter_context(self._listener.accept()[0])
        client.setblocking(False)
        self.clients[server.fileno()] = client
        self._servers.append(server)
        return server.fileno()

    def is_open(self, descriptor: int) -> bool:
        try:
            return self.clients[descriptor].recv(1) != b""
        except BlockingIOError:
            return True


@pytest.fixture
def dialler() -> Iterator[Dialler]:
    with ExitStack() as stack:
        yield Dialler(stack)


def test_silence_has_an_end(dialler: Dialler) -> None:
    with closing(Connections(silent_ms=100)) as connections:
        silent, spoken = dialler.dial(), dialler.dial()
        connections.accepted(silent, 0)
        connections.accepted(spoken, 0)
        connections.belongs(spoken, "lab")
        connections.tick({"lab"}, 100)
        assert dialler.is_open(silent)
        connection = connections.get(spoken)
        assert connection is not None
        connection.heard_ms = 100
        connections.tick({"lab"}, 101)
        assert not dialler.is_open(silent)
        assert dialler.is_open(spoken)
        connections.tick({"lab"}, 200)
        assert dialler.is_open(spoken)
        connections.tick({"lab"}, 201)
        assert not dialler.is_open(spoken)
        assert connection.shut
        assert (len(connections), connections.num_closed) == (0, 2)


@pytest.mark.skipif(sys.platform != "linux", reason="127.0.0.2 is no address of this machine")
def test_who_floods_the_door_crowds_out_itself(dialler: Dialler) -> None:
    flood, elsewhere = "127.0.0.1", "127.0.0.2"
    where = [flood] * 4 + [elsewhere] + [flood] * 4
    with closing(Connections(silent_ms=1e9, max_waiting=3)) as connections:
        descriptors = [dialler.dial(source) for source in where]
        for now, descriptor in enumerate(descriptors):
            connections.accepted(descriptor, now)
            connections.crowd_out()
            assert len(connections) <= 3
        assert [dialler.is_open(d) for d in descriptors] == [False] * 4 + [True] + [False] * 2 + [
            True
        ] * 2


def test_who_has_spoken_is_not_crowded_out(dialler: Dialler) -> None:
    with closing(Connections(silent_ms=1e9, max_waiting=1)) as connections:
        friend = dialler.dial()
        connections.accepted(friend, 0)
        connections.belongs(friend, "lab")
        for now in range(5):
            connections.accepted(dialler.dial(), now)
        connections.crowd_out()
        assert dialler.is_open(friend)
        assert len(connections) == 2


def test_a_key_has_so_many_connections_and_no_more(dialler: Dialler) -> None:
    with closing(Connections(silent_ms=1e9)) as connections:
        descriptors = [dialler.dial() for _ in range(MAX_OF_A_KEY + 2)]
        for now, descriptor in enumerate(descriptors):
            connections.accepted(descriptor, now)
            connections.belongs(descriptor, "lab")
        assert [dialler.is_open(d) for d in descriptors] == [False] * 2 + [True] * MAX_OF_A_KEY


def test_a_key_off_the_list_has_the_time_to_hear_so(dialler: Dialler) -> None:
    with closing(Connections(silent_ms=1e9)) as connections:
        descriptor = dialler.dial()
        connections.accepted(descriptor, 0)
        connections.belongs(descriptor, "lab")
        assert connections.tick(set(), 10) == {"lab"}
        assert connections.tick(set(), 11) == set()
        connections.tick(set(), 9 + UNLISTED_MS)
        assert dialler.is_open(descriptor)
        connections.tick({"lab"}, 9 + UNLISTED_MS)  # back again
        connections.tick(set(), 10 + UNLISTED_MS)
        connections.tick(set(), 9 + 2 * UNLISTED_MS)
        assert dialler.is_open(descriptor)
        connections.tick(set(), 10 + 2 * UNLISTED_MS)
        assert not dialler.is_open(descriptor)


def test_another_connection_with_the_same_descriptor_is_left_alone(dialler: Dialler) -> None:
    with closing(Connections(silent_ms=1e9)) as connections:
        descriptor, other = dialler.dial(), dialler.dial()
        connections.accepted(descriptor, 0)
        os.dup2(other, descriptor)  # ours has ended, and its event is still under way
        connections.shut(descriptor)
        assert dialler.is_open(other)
        assert connections.num_closed == 0


def test_no_descriptor_is_needed_to_close_one(dialler: Dialler) -> None:
    with closing(Connections(silent_ms=1)) as connections:
        descriptor = dialler.dial()
        connections.accepted(descriptor, 0)
        limits = resource.getrlimit(resource.RLIMIT_NOFILE)
        resource.setrlimit(resource.RLIMIT_NOFILE, (descriptor + 1, limits[1]))
        try:
            connections.tick(set(), 2)
        finally:
            resource.setrlimit(resource.RLIMIT_NOFILE, limits)
        assert not dialler.is_open(descriptor)


def test_a_process_with_few_descriptors_keeps_fewer(monkeypatch: pytest.MonkeyPatch) -> None:
    for soft, expected in ((256, 32), (1024, 128), (1 << 20, 128), (-1, 128)):
        monkeypatch.setattr(resource, "getrlimit", lambda _, soft=soft: (soft, soft))
        assert _affordable() == expected


@pytest.mark.parametrize(
    ("address", "network"),
    [
        (("192.0.2.7", 1), "192.0.2.7"),
        (("::ffff:192.0.2.7", 1, 0, 0), "192.0.2.7"),
        (("2001:db8:1:2:3:4:5:6", 1, 0, 0), "2001:db8:1:2::/64"),
        (("fe80::1%eth0", 1, 0, 2), "fe80::/64"),
        ("", ""),
    ],
)
def test_what_one_party_can_take_of_the_address_space(address: object, network: str) -> None:
    assert _network(address) == network
