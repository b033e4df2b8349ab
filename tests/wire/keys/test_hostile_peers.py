"""Peers that are after the process: of the verifier's socket and of the one that answers probes."""

import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import ExitStack, closing, contextmanager, suppress
from pathlib import Path

import pytest
import zmq

from tests.wire.keys import serve
from tests.wire.keys.key_folder import new_key
from wanspec_kernels.probing.frames import Frame
from wanspec_kernels.wire import Hello, Ping, encode_frame
from wanspec_kernels.wire.keys import Secret, secure_client

WAIT_MS = 20_000
KINDS = ("endpoint", "responder")
# What libzmq's unseeded generator gives the first ROUTER of a process, and the second.
FIRST_IDS = (0x6B8B4567, 0xE43C9869)


class Server:
    """`serve` in a process of its own, and dealers that dial it."""

    def __init__(self, kind: str, folder: Path, *, descriptors: int = 1024) -> None:
        (folder / "enrolled").mkdir()
        self.kind = kind
        self.ours = new_key(folder, "server")
        self.keys = {name: new_key(folder / "enrolled", name) for name in ("hostile", "friend")}
        command = [sys.executable, serve.__file__, kind, str(folder), str(descriptors)]
        self.process = subprocess.Popen(
            command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
        )
        assert self.process.stdout is not None
        self.address = self.process.stdout.readline().strip()
        self.context = zmq.Context()
        self.dealers: list[zmq.Socket[bytes]] = []

    def dial(self, key: Secret, routing_id: bytes = b"") -> zmq.Socket[bytes]:
        dealer = self.context.socket(zmq.DEALER)
        self.dealers.append(dealer)
        dealer.linger = 0
        dealer.reconnect_ivl = -1
        if routing_id:
            dealer.routing_id = routing_id
        secure_client(dealer, key, self.ours.public)
        dealer.connect(self.address)
        return dealer

    def is_served(self, dealer: zmq.Socket[bytes], message: object = None) -> bool:
        """Does it answer? A PING without a HELLO is answered by an ERROR."""
        asked = encode_frame([message or Ping(1, 0)])
        dealer.send(asked if self.kind == "endpoint" else Frame(1, 1).encode(64))
        return bool(dealer.poll(WAIT_MS)) and self.process.poll() is None

    def processor_s(self) -> float:
        assert self.process.stdin is not None
        assert self.process.stdout is not None
        self.process.stdin.write("\n")
        self.process.stdin.flush()
        return float(self.process.stdout.readline())

    def close(self) -> None:
        self.process.kill()
        self.process.communicate()
        for dealer in self.dealers:
            dealer.close()
        self.context.term()


@contextmanager
def raw(address: str, count: int) -> Iterator[None]:
    """Connections that never say a word, or as many as the server takes."""
    host, port = address.removeprefix("tcp://").split(":")
    with ExitStack() as stack:
        with suppress(TimeoutError):
            for _ in range(count):
                stack.enter_context(socket.create_connection((host, int(port)), timeout=2))
        yield


@pytest.mark.parametrize("kind", KINDS)
def test_a_peer_that_takes_a_coming_routing_id_ends_nothing(tmp_path: Path, kind: str) -> None:
    coming = [b"\0" + (first + i).to_bytes(4) for first in FIRST_IDS for i in range(4)]
    with closing(Server(kind, tmp_path)) as server:
        for routing_id in coming:
            assert server.is_served(server.dial(server.keys["hostile"], routing_id))
        for _ in range(2 * len(coming)):
            with server.dial(server.keys["friend"]) as friend:
                assert server.is_served(friend)


@pytest.mark.parametrize("kind", KINDS)
def test_connections_without_a_key_keep_nobody_out_and_cost_no_time(
    tmp_path: Path, kind: str
) -> None:
    with closing(Server(kind, tmp_path, descriptors=256)) as server, raw(server.address, 400):
        began = time.monotonic()
        friend = server.dial(server.keys["friend"])
        assert server.is_served(friend, Hello(bytes(32), "fake", 1, 1, 0))
        assert time.monotonic() - began < 5
        used = server.processor_s()
        assert not server.dial(server.keys["hostile"]).poll(1000)  # nothing comes in this second
        assert server.processor_s() - used < 0.3
