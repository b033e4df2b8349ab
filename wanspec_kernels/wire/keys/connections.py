"""The TCP connections that a listening socket holds, and which of them have to go."""

import ipaddress
import os
import resource
import socket
from collections import Counter
from contextlib import suppress
from dataclasses import dataclass
from typing import Any

MAX_WAITING = 128  # connections that brought no message yet
MAX_OF_A_KEY = 8
UNLISTED_MS = 500.0  # left to a connection whose key was taken off the list, to be told so


@dataclass(slots=True, eq=False)
class Connection:
    descriptor: int
    peer: Any  # the address of the other end
    network: str  # what one party can take: an IPv4 address, 64 bits of an IPv6 one
    heard_ms: float  # accepted, or the last message
    user: str | None = None  # of its first message
    unlisted_ms: float | None = None
    shut: bool = False  # by us: what it still says does not count


class Connections:
    """Keeps what libzmq accepts within bounds, which libzmq itself does not.

    A connection is known by its descriptor, as libzmq's events and messages name it, and is closed
    by shutting it down, which libzmq takes for its peer's end. It is closed

    - after `silent_ms` without a message, whether or not its handshake is over;
    - while more than `max_waiting` brought no message yet: the oldest one of the network that has
      most of these, so that who floods us crowds out itself;
    - while its key has more than MAX_OF_A_KEY that brought messages: the one silent for longest;
    - half a second after its key was taken off the list.
    """

    def __init__(self, *, silent_ms: float, max_waiting: int | None = None) -> None:
        self.num_closed = 0
        self._silent_ms = silent_ms
        self._max_waiting = max_waiting or _affordable()
        self._by_descriptor: dict[int, Connection] = {}
        # Where there are no descriptors left is where connections have to be closed.
        self._nowhere = os.open(os.devnull, os.O_RDONLY)
        self._spare = os.dup(self._nowhere)

    def __len__(self) -> int:
        return len(self._by_descriptor)

    def close(self) -> None:
        self._by_descriptor.clear()
        os.close(self._spare)
        os.close(self._nowhere)

    def __contains__(self, connection: Connection) -> bool:
        return self._by_descriptor.get(connection.descriptor) is connection

    def get(self, descriptor: int) -> Connection | None:
        return self._by_descriptor.get(descriptor)

    def accepted(self, descriptor: int, now: float) -> None:
        try:
            peer = socket.socket(fileno=descriptor)
        except OSError:
            return  # it is gone; so its next event says
        try:
            address = peer.getpeername()
        except OSError:
            return
        finally:
            peer.detach()  # it is libzmq's
        self._by_descriptor[descriptor] = Connection(descriptor, address, _network(address), now)

    def ended(self, descriptor: int) -> None:
        self._by_descriptor.pop(descriptor, None)

    def belongs(self, descriptor: int, user: str) -> None:
        """The first message of an open connection has come, and says whose it is."""
        self._by_descriptor[descriptor].user = user
        of_user = [d for d, c in self._by_descriptor.items() if c.user == user]
        if len(of_user) > MAX_OF_A_KEY:
            self.shut(min(of_user, key=lambda d: self._by_descriptor[d].heard_ms))

    def tick(self, users: set[str], now: float) -> set[str]:
        """Close those whose time is over; `users` are on the list. Those newly off it."""
        newly_off = set()
        for connection in list(self._by_descriptor.values()):
            if connection.user is None or connection.user in users:
                connection.unlisted_ms = None
            elif connection.unlisted_ms is None:
                connection.unlisted_ms = now
                newly_off.add(connection.user)
            unlisted_ms = connection.unlisted_ms
            silent = now - connection.heard_ms > self._silent_ms
            if silent or (unlisted_ms is not None and now - unlisted_ms >= UNLISTED_MS):
                self.shut(connection.descriptor)
        return newly_off

    def crowd_out(self) -> None:
        """Close what waits past the bound.

        To be called when every event so far was told. A descriptor whose connection had ended when
        we looked at it may be of another socket of this process.
        """
        waiting = {d: c for d, c in self._by_descriptor.items() if c.user is None}
        counts = Counter(c.network for c in waiting.values())
        # Dictionaries keep the order of arrival.
        while len(waiting) > self._max_waiting:
            fullest = max(counts, key=lambda network: counts[network])
            oldest = next(d for d, c in waiting.items() if c.network == fullest)
            self.shut(oldest)
            del waiting[oldest]
            counts[fullest] -= 1

    def shut(self, descriptor: int) -> None:
        connection = self._by_descriptor.pop(descriptor, None)
        if connection is None:
            return
        connection.shut = True
        # Another connection may have its descriptor by now. Ours, once it is a copy, cannot change
        # hands between the look and the deed.
        with suppress(OSError):
            os.dup2(descriptor, self._spare)
            peer = socket.socket(fileno=self._spare)
            try:
                if peer.getpeername() == connection.peer:
                    peer.shutdown(socket.SHUT_RDWR)
                    self.num_closed += 1
            finally:
                peer.detach()
        os.dup2(self._nowhere, self._spare)


def _affordable() -> int:
    """An eighth of the descriptors that this process may have, and no more than MAX_WAITING."""
    soft, _ = resource.getrlimit(resource.RLIMIT_NOFILE)
    return MAX_WAITING if soft < 0 else max(1, min(MAX_WAITING, soft // 8))


def _network(address: Any) -> str:
    host = address[0] if isinstance(address, tuple) else ""
    try:
        ip = ipaddress.ip_address(host.partition("%")[0])
    except ValueError:
        return host
    if isinstance(ip, ipaddress.IPv4Address):
        return str(ip)
    if ip.ipv4_mapped is not None:
        return str(ip.ipv4_mapped)
    return str(ipaddress.ip_network((int(ip) >> 64 << 64, 64)))
