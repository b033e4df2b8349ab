"""Addresses to bind and to dial: both families of IP, names, and why one cannot be reached."""

import socket
import threading
from typing import Any
from urllib.parse import urlsplit

REASON_S = 1.0


class NotResolved(OSError):
    """A name that stands for no address, as far as can be found out here and now."""


def binds_ipv6(endpoint: str) -> bool:
    """Does a socket that binds this need IPv6? On `*` it serves both families.

    Not on anything else: libzmq would look for an interface's IPv6 address only, and call IPv4 ones
    by their IPv6 names.
    """
    host = endpoint.removeprefix("tcp://").rpartition(":")[0]
    return host == "*" or host.startswith("[")


def host_and_port(endpoint: str) -> tuple[str, int]:
    """Raises ValueError if it is not tcp://HOST:PORT."""
    try:
        url = urlsplit(endpoint)
        host, port = url.hostname, url.port
    except ValueError:  # a port that is no number, or past 65535; half a bracket
        host = port = None
    if not host or host == "*" or not port or endpoint.partition("://")[0] != "tcp":
        raise ValueError(f"expected tcp://HOST:PORT, got {endpoint}")
    return host, port


class Lookup:
    """Resolves a name in a thread, for nothing bounds the time that the system takes for it.

    `fileno` is readable once it is done; nobody has to wait for that. Raises ValueError.
    """

    def __init__(self, endpoint: str) -> None:
        self._host, self._port = host_and_port(endpoint)
        self._endpoints: list[str] = []
        self._trouble = "the name service does not answer"
        self._done, told = socket.socketpair()
        threading.Thread(target=self._resolve, args=(told,), name="resolve", daemon=True).start()

    def fileno(self) -> int:
        return self._done.fileno()

    def close(self) -> None:
        self._done.close()

    def endpoints(self) -> list[str]:
        """With numbers in place of the name, best first. Raises NotResolved, also if it goes on."""
        if not self._endpoints:
            raise NotResolved(f"the name {self._host} cannot be resolved: {self._trouble}")
        return self._endpoints

    def _resolve(self, told: socket.socket) -> None:
        with told:  # its end wakes the other one
            try:
                found = socket.getaddrinfo(self._host, self._port, type=socket.SOCK_STREAM)
            except (OSError, UnicodeError) as error:
                self._trouble = getattr(error, "strerror", None) or str(error)
                return
            hosts = dict.fromkeys(_host(address) for *_, address in found)
            self._endpoints = [_endpoint(host, self._port) for host in hosts]


def why_unreachable(endpoint: str) -> str:
    """What the system says to a connection there, within a second; nothing if it can be made."""
    try:
        socket.create_connection(host_and_port(endpoint), timeout=REASON_S).close()
    except TimeoutError:
        return "nothing answers"
    except OSError as error:
        return error.strerror or str(error)
    return ""


def _host(address: tuple[Any, ...]) -> str:
    zone = address[3] if len(address) == 4 else 0  # of a link-local address: its interface
    return f"{address[0]}%{zone}" if zone and "%" not in address[0] else str(address[0])


def _endpoint(host: str, port: int) -> str:
    return f"tcp://[{host}]:{port}" if ":" in host else f"tcp://{host}:{port}"
