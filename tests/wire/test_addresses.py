import select
import socket
import threading
from contextlib import closing

import pytest

from tests.ip_families import needs_ipv6
from wanspec_kernels.wire.addresses import (
    Lookup,
    NotResolved,
    binds_ipv6,
    host_and_port,
    why_unreachable,
)

WAIT_S = 10.0


def done(lookup: Lookup) -> bool:
    return bool(select.select([lookup], [], [], WAIT_S)[0])


@pytest.mark.parametrize(
    ("endpoint", "expected"),
    [
        ("tcp://*:5911", True),
        ("tcp://*:*", True),
        ("tcp://[::1]:5911", True),
        ("tcp://[::]:*", True),
        ("tcp://127.0.0.1:5911", False),
        ("tcp://0.0.0.0:5911", False),
        ("tcp://eth0:5911", False),
    ],
)
def test_what_is_bound_with_ipv6(endpoint: str, expected: bool) -> None:
    assert binds_ipv6(endpoint) is expected


@pytest.mark.parametrize(
    ("endpoint", "host", "port"),
    [
        ("tcp://127.0.0.1:5911", "127.0.0.1", 5911),
        ("tcp://verifier.example:1", "verifier.example", 1),
        ("tcp://[2001:db8::1]:65535", "2001:db8::1", 65535),
    ],
)
def test_an_address_to_dial_is_a_host_and_a_port(endpoint: str, host: str, port: int) -> None:
    assert host_and_port(endpoint) == (host, port)


@pytest.mark.parametrize(
    "endpoint",
    ["", "127.0.0.1:5911", "udp://127.0.0.1:1", "tcp://127.0.0.1", "tcp://127.0.0.1:0",
     "tcp://*:5911", "tcp://127.0.0.1:99999", "tcp://:5911", "tcp://[::1:5911", "tcp://::1"],
)  # fmt: skip
def test_what_is_no_address_to_dial_is_refused(endpoint: str) -> None:
    with pytest.raises(ValueError, match=r"expected tcp://HOST:PORT, got"):
        host_and_port(endpoint)


def test_a_name_stands_for_addresses_of_both_families(monkeypatch: pytest.MonkeyPatch) -> None:
    found = [
        (socket.AF_INET6, socket.SOCK_STREAM, 6, "", ("2001:db8::1", 5911, 0, 0)),
        (socket.AF_INET, socket.SOCK_STREAM, 6, "", ("192.0.2.1", 5911)),
        (socket.AF_INET, socket.SOCK_STREAM, 6, "", ("192.0.2.1", 5911)),
        (socket.AF_INET6, socket.SOCK_STREAM, 6, "", ("fe80::1", 5911, 0, 2)),
    ]
    monkeypatch.setattr(socket, "getaddrinfo", lambda *_, **__: found)
    with closing(Lookup("tcp://verifier.example:5911")) as lookup:
        assert done(lookup)
        assert lookup.endpoints() == [
            "tcp://[2001:db8::1]:5911",
            "tcp://192.0.2.1:5911",
            "tcp://[fe80::1%2]:5911",
        ]


@pytest.mark.parametrize("endpoint", ["tcp://127.0.0.1:5911", "tcp://[::1]:5911"])
def test_numbers_stand_for_themselves(endpoint: str) -> None:
    with closing(Lookup(endpoint)) as lookup:
        assert done(lookup)
        assert lookup.endpoints() == [endpoint]


def test_a_name_that_is_not_resolved_says_so(monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(*_: object, **__: object) -> None:
        raise socket.gaierror(socket.EAI_NONAME, "Name or service not known")

    monkeypatch.setattr(socket, "getaddrinfo", fail)
    expected = "the name verifier.example cannot be resolved: Name or service not known"
    with closing(Lookup("tcp://verifier.example:5911")) as lookup:
        assert done(lookup)
        with pytest.raises(NotResolved, match=expected):
            lookup.endpoints()


def test_a_name_that_no_host_may_have_says_so() -> None:
    with closing(Lookup(f"tcp://{'a' * 70}.example:5911")) as lookup:
        assert done(lookup)
        with pytest.raises(NotResolved, match="cannot be resolved"):
            lookup.endpoints()


def test_a_name_service_that_hangs_holds_up_nobody(monkeypatch: pytest.MonkeyPatch) -> None:
    goes_on = threading.Event()
    monkeypatch.setattr(socket, "getaddrinfo", lambda *_, **__: goes_on.wait(WAIT_S) and [])
    lookup = Lookup("tcp://verifier.example:5911")
    assert select.select([lookup], [], [], 0)[0] == []
    with pytest.raises(NotResolved, match="does not answer"):
        lookup.endpoints()
    lookup.close()
    goes_on.set()


def test_why_a_connection_cannot_be_made() -> None:
    with socket.create_server(("127.0.0.1", 0)) as listener:
        port = listener.getsockname()[1]
        assert why_unreachable(f"tcp://127.0.0.1:{port}") == ""
    assert why_unreachable(f"tcp://127.0.0.1:{port}") == "Connection refused"


@needs_ipv6
def test_why_a_connection_cannot_be_made_by_ipv6() -> None:
    with socket.create_server(("::1", 0), family=socket.AF_INET6) as listener:
        port = listener.getsockname()[1]
        assert why_unreachable(f"tcp://[::1]:{port}") == ""
    assert why_unreachable(f"tcp://[::1]:{port}") == "Connection refused"


def test_nobody_answers(monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(*_: object, **__: object) -> None:
        raise TimeoutError

    monkeypatch.setattr(socket, "create_connection", fail)
    assert why_unreachable("tcp://192.0.2.1:5911") == "nothing answers"
