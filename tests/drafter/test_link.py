"""Link and `wanspec-drafter` against a real ROUTER over CURVE."""

import logging
import os
import signal
import socket
import subprocess
import sys
import time
from collections import deque
from contextlib import closing
from threading import Event, Thread

import pytest
import zmq
from typer.testing import CliRunner
from zmq.auth.thread import ThreadAuthenticator

from drafter.backoff import Backoff
from drafter.connection import Connection
from drafter.growth import GrowthShape
from drafter.link import Link, Refused
from drafter.main import app
from drafter.session import Limits, Session
from tests.drafter.test_growth import open_request, paths_of
from tests.drafter.test_session import FakeModel, commit
from tests.tiny_models import make_tiny_model
from wanspec_kernels.wire import (
    Close,
    Draft,
    Error,
    ErrorCode,
    Hello,
    Ping,
    Pong,
    Welcome,
    decode_frame,
    encode_frame,
)
from wanspec_kernels.wire.keys import ZAP_DOMAIN, generate, load_public, load_secret, secure_server

WAIT_MS = 20_000
VOCABULARY = bytes(32)


@pytest.fixture(scope="module")
def keys(tmp_path_factory):
    folder = tmp_path_factory.mktemp("keys")
    (folder / "enrolled").mkdir()
    generate(folder / "enrolled", "drafter")
    for name in ("verifier", "stranger"):
        generate(folder, name)
    return folder


class Verifier:
    """A ROUTER that lets the enrolled key in; what it says is up to the test."""

    def __init__(self, keys, *, heartbeat_ms: int = 60_000) -> None:
        self.context = zmq.Context()
        self.authenticator = ThreadAuthenticator(self.context)
        self.authenticator.start()
        self.authenticator.configure_curve(
            domain=ZAP_DOMAIN.decode(), location=str(keys / "enrolled")
        )
        self.keys = keys
        self.heartbeat_ms = heartbeat_ms
        self.peer = b""
        self.heard = deque()  # of frames that carried several
        self.bind("tcp://127.0.0.1:*")

    def bind(self, endpoint: str) -> None:
        self.socket = self.context.socket(zmq.ROUTER)
        self.socket.linger = 0
        secure_server(self.socket, load_secret(self.keys / "verifier.secret"))
        self.socket.bind(endpoint)
        self.endpoint = self.socket.get_string(zmq.LAST_ENDPOINT)

    def restart(self) -> None:
        self.socket.close()
        # The port is free once the I/O thread has closed it.
        deadline = time.monotonic() + WAIT_MS / 1000
        while True:
            try:
                return self.bind(self.endpoint)
            except zmq.ZMQError:
                self.socket.close()
                assert time.monotonic() < deadline

    def receive(self, kind):
        """The next message of `kind`; pings are answered, others passed over."""
        deadline = time.monotonic() + WAIT_MS / 1000
        while time.monotonic() < deadline:
            if not self.heard and not self.socket.poll(WAIT_MS):
                break
            message = self.next()
            if isinstance(message, kind):
                return message
            if isinstance(message, Ping):
                self.send(Pong(message.clock_us, 0))
        raise AssertionError(f"no {kind.__name__} came")

    def next(self):
        """The next message of any kind."""
        if not self.heard:
            self.peer, data = self.socket.recv_multipart()
            self.heard += decode_frame(data)
        return self.heard.popleft()

    def send(self, *messages) -> None:
        self.socket.send_multipart([self.peer, encode_frame(messages)])

    def welcome(self) -> Hello:
        hello = self.receive(Hello)
        self.send(Welcome(hello.clock_us, 0, self.heartbeat_ms, 65536))
        return hello

    def close(self) -> None:
        self.authenticator.stop()
        self.context.destroy(linger=0)


@pytest.fixture
def verifier(keys):
    with closing(Verifier(keys)) as verifier:
        yield verifier


class Running:
    """A link in a thread; `result` is what its `run` raised."""

    def __init__(
        self, keys, endpoint, secret="enrolled/drafter.secret", session=None, **changes
    ) -> None:
        settings = {
            "endpoint": endpoint,
            "secret": load_secret(keys / secret),
            "server_public": load_public(keys / "verifier.key"),
            "vocabulary": VOCABULARY,
            "model_name": "fake",
            "max_requests": 2,
            "max_nodes": 32,
            "backoff": Backoff(first_ms=1, most_ms=10),
        }
        self.session = session or Session(FakeModel(), limits=Limits(2, 32))
        self.link = Link(self.session, **(settings | changes))
        self.result: Exception | None = None
        self.thread = Thread(target=self.run)
        self.thread.start()

    def run(self) -> None:
        try:
            self.link.run()
        except Exception as error:
            self.result = error

    def close(self) -> None:
        self.link.stop()
        self.thread.join(10)
        assert not self.thread.is_alive()


def test_a_request_from_open_to_close(keys, verifier):
    with closing(Running(keys, verifier.endpoint)) as drafter:
        hello = verifier.welcome()
        assert (hello.vocabulary, hello.model, hello.max_requests) == (VOCABULARY, "fake", 2)
        verifier.send(open_request(request=3))
        draft = verifier.receive(Draft)
        token = paths_of(draft)[0][0]
        verifier.send(commit(3, (1, 2, 3), [token]))
        while verifier.receive(Draft).base_length != 4:
            pass
        drafter.link.stop()
        assert verifier.receive(Close).request == 3
        drafter.thread.join(5)
        assert drafter.result is None


def test_an_idle_drafter_sends_its_tree_by_the_pace_alone(keys, verifier):
    """Nothing is answered, so nothing but its clock can wake it."""
    shape = GrowthShape(512, max_children=16, min_probability=0.0, min_path_probability=1e-9)
    session = Session(FakeModel(), limits=Limits(2, 1024), shape=shape)
    with closing(Running(keys, verifier.endpoint, session=session)):
        hello = verifier.receive(Hello)
        # A round trip of a second, of which the tree takes half.
        verifier.send(Welcome(hello.clock_us - 1_000_000, 0, verifier.heartbeat_ms, 65536))
        verifier.send(open_request(request=1, max_nodes=1024))
        paths = set()
        while len(paths) < 1024:
            assert verifier.heard or verifier.socket.poll(WAIT_MS // 4), len(paths)
            message = verifier.next()
            if isinstance(message, Draft):
                paths.update(paths_of(message))


def test_no_message_stops_the_daemon(keys, verifier):
    with closing(Running(keys, verifier.endpoint)) as drafter:
        verifier.welcome()
        for frames in ([b""], [b"\xc1"], [b"\x91" * 5000], [b"a", b"b"], [os.urandom(100)]):
            verifier.socket.send_multipart([verifier.peer, *frames])
            assert verifier.receive(Error).code == ErrorCode.MALFORMED
        verifier.send(Hello(VOCABULARY, "me", 1, 1, 0))
        assert verifier.receive(Error).code == ErrorCode.UNEXPECTED
        verifier.send(open_request(request=1))
        assert verifier.receive(Draft).request == 1
        assert drafter.link.counters.num_malformed == 5


def test_a_restarted_verifier_gets_a_new_hello(keys, verifier):
    with closing(Running(keys, verifier.endpoint)) as drafter:
        verifier.welcome()
        verifier.send(open_request(request=1))
        verifier.receive(Draft)
        first = verifier.peer
        verifier.restart()
        verifier.welcome()
        assert verifier.peer != first
        verifier.send(open_request((9, 9), request=2))
        assert verifier.receive(Draft).request == 2  # request 1 went with its connection
        assert drafter.link.counters.num_connects >= 2


def test_silence_is_noticed(keys):
    with (
        closing(Verifier(keys, heartbeat_ms=20)) as verifier,
        closing(Running(keys, verifier.endpoint)),
    ):
        verifier.welcome()
        first = verifier.peer
        # Nothing is answered from here on: pings go unheard until the drafter gives up.
        while True:
            assert verifier.heard or verifier.socket.poll(WAIT_MS)
            if isinstance(verifier.next(), Hello):
                break
            assert verifier.peer == first
        assert verifier.peer != first


def test_a_refusal_ends_the_link(keys, verifier):
    with closing(Running(keys, verifier.endpoint)) as drafter:
        verifier.receive(Hello)
        verifier.send(Error(ErrorCode.VOCABULARY, "expected the target's aa, got bb"))
        drafter.thread.join(10)
        assert isinstance(drafter.result, Refused)
        assert "expected the target's aa, got bb" in str(drafter.result)


def test_a_key_not_enrolled_is_told_so(keys, verifier, caplog):
    caplog.set_level(logging.WARNING, "drafter")
    with closing(Running(keys, verifier.endpoint, "stranger.secret")) as drafter:
        deadline = time.monotonic() + 20
        while "does not accept this key" not in caplog.text:
            assert time.monotonic() < deadline
            drafter.thread.join(0.01)
        assert not verifier.socket.poll(0)


def test_an_address_that_cannot_be_dialled_ends_the_link(keys):
    with closing(Running(keys, "tcp://127.0.0.1")) as drafter:
        drafter.thread.join(10)
        assert isinstance(drafter.result, Refused)
        assert "not an address" in str(drafter.result)


def test_nobody_at_the_other_end(keys, caplog):
    caplog.set_level(logging.WARNING, "drafter")
    with closing(Running(keys, "tcp://127.0.0.1:1")) as drafter:
        deadline = time.monotonic() + 20
        while drafter.link.counters.num_connects < 3:
            assert time.monotonic() < deadline
            drafter.thread.join(0.01)
    assert "cannot connect" in caplog.text


def wait_for_log(caplog, drafter, text):
    deadline = time.monotonic() + 20
    while text not in caplog.text:
        assert time.monotonic() < deadline, caplog.text
        drafter.thread.join(0.01)


def test_a_name_that_is_not_resolved_is_told_and_tried_again(keys, verifier, caplog, monkeypatch):
    caplog.set_level(logging.WARNING, "drafter")
    resolve, tries = socket.getaddrinfo, []

    def fail(host, *args, **options):
        tries.append(host)
        if len(tries) < 3:
            raise socket.gaierror(socket.EAI_NONAME, "Name or service not known")
        return resolve("127.0.0.1", *args, **options)

    monkeypatch.setattr(socket, "getaddrinfo", fail)
    address = verifier.endpoint.replace("127.0.0.1", "verifier.example")
    with closing(Running(keys, address)):
        verifier.welcome()
    assert tries == ["verifier.example"] * 3
    told = "the name verifier.example cannot be resolved: Name or service not known; again in"
    assert caplog.text.count(told) == 2


def test_a_name_service_that_hangs_does_not_keep_it_from_stopping(keys, monkeypatch):
    asked, goes_on = Event(), Event()

    def hang(*args, **options):
        asked.set()
        goes_on.wait(60)
        return []

    monkeypatch.setattr(socket, "getaddrinfo", hang)
    drafter = Running(keys, "tcp://verifier.example:5911")
    assert asked.wait(10)
    drafter.close()
    goes_on.set()
    assert drafter.result is None


def test_a_second_address_of_the_name_is_dialled_if_the_first_refuses(keys, verifier, monkeypatch):
    resolve = socket.getaddrinfo

    def resolve_name(host, port, *args, **options):
        if host != "verifier.example":
            return resolve(host, port, *args, **options)
        # Nobody listens there: all of 127.0.0.0/8 is this machine.
        hosts = ("127.0.0.2", "127.0.0.1")
        return [(socket.AF_INET, socket.SOCK_STREAM, 6, "", (h, port)) for h in hosts]

    monkeypatch.setattr(socket, "getaddrinfo", resolve_name)
    address = verifier.endpoint.replace("127.0.0.1", "verifier.example")
    with closing(Running(keys, address)) as drafter:
        verifier.welcome()
        assert drafter.link.counters.num_connects == 2


def test_who_does_not_greet_is_told_from_who_does_not_answer(keys, caplog):
    caplog.set_level(logging.WARNING, "drafter")
    with socket.create_server(("127.0.0.1", 0)) as silent:
        address = f"tcp://127.0.0.1:{silent.getsockname()[1]}"
        with closing(Running(keys, address, greeting_timeout_us=200_000)) as drafter:
            wait_for_log(caplog, drafter, "it connects, but no verifier answers for 0.")
    with closing(Running(keys, address)) as drafter:
        reason = f"cannot connect ({address.removeprefix('tcp://')}: Connection refused)"
        wait_for_log(caplog, drafter, reason)


def test_a_key_taken_off_the_list_is_told_so_and_tries_again(keys, verifier, caplog):
    caplog.set_level(logging.WARNING, "drafter")
    with closing(Running(keys, verifier.endpoint)):
        verifier.welcome()
        first = verifier.peer
        verifier.send(Error(ErrorCode.NOT_ENROLLED, "taken off the list"))
        verifier.welcome()
        assert verifier.peer != first
    assert "not_enrolled: taken off the list; again in" in caplog.text


def test_what_cannot_be_sent_is_dropped_and_counted(keys):
    class Full:
        def send(self, data, flags):
            raise zmq.Again

    session = Session(FakeModel())
    connection = Connection(session, Hello(VOCABULARY, "fake", 2, 32, time.monotonic_ns() // 1000))
    link = Link(
        session,
        endpoint="tcp://127.0.0.1:1",
        secret=load_secret(keys / "verifier.secret"),
        server_public=load_public(keys / "verifier.key"),
        vocabulary=VOCABULARY,
        model_name="fake",
        max_requests=2,
        max_nodes=32,
    )
    link._send(Full(), connection)
    assert connection.counters.num_unsendable == 1
    link.stop()
    link.run()


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return make_tiny_model(tmp_path_factory.mktemp("tiny"), 0)


@pytest.fixture
def signals_restored():
    held = {number: signal.getsignal(number) for number in (signal.SIGTERM, signal.SIGINT)}
    root, ours = logging.getLogger(), logging.getLogger("drafter")
    levels = root.level, ours.level
    yield
    for number, handler in held.items():
        signal.signal(number, handler)
    root.setLevel(levels[0])
    ours.setLevel(levels[1])


def options(keys, endpoint, folder) -> list[str]:
    return [
        f"--connect={endpoint}",
        f"--key={keys / 'enrolled' / 'drafter.secret'}",
        f"--server-key={keys / 'verifier.key'}",
        f"--model={folder}",
        "--device=cpu",
    ]


# A machine without Triton: an import of it raises.
DAEMON = "import sys; sys.modules['triton'] = None; from drafter.main import app; app()"


def test_sigterm_says_goodbye(keys, verifier, folder):
    arguments = [*options(keys, verifier.endpoint, folder), "--threads=1"]
    daemon = subprocess.Popen(
        [sys.executable, "-c", DAEMON, *arguments], stderr=subprocess.PIPE, text=True
    )
    with daemon:
        try:
            verifier.welcome()
            verifier.send(open_request(tuple(b"hello"), request=6))
            assert verifier.receive(Draft).base_length == 5
            asked = time.monotonic()
            daemon.send_signal(signal.SIGTERM)
            assert verifier.receive(Close).request == 6
            assert daemon.wait(10) == 0
            # A second here; the interpreter's own teardown comes on top.
            assert time.monotonic() - asked < 3
        finally:
            daemon.kill()
        log = daemon.stderr.read()
    assert "stopped: opened=1" in log
    assert "Traceback" not in log


@pytest.mark.usefixtures("signals_restored")
def test_another_vocabulary_exits_with_2(keys, verifier, folder):
    def refuse() -> None:
        verifier.receive(Hello)
        verifier.send(Error(ErrorCode.VOCABULARY, "expected the target's aa, got bb"))

    refusing = Thread(target=refuse)
    refusing.start()
    result = CliRunner().invoke(app, options(keys, verifier.endpoint, folder))
    refusing.join()
    assert result.exit_code == 2
    assert "expected the target's aa, got bb" in result.stderr


@pytest.mark.usefixtures("signals_restored")
@pytest.mark.parametrize(
    ("change", "status", "text"),
    [
        ("--connect=udp://127.0.0.1:1", 2, "expected tcp://HOST:PORT"),
        ("--connect=tcp://127.0.0.1", 2, "expected tcp://HOST:PORT"),
        ("--connect=tcp://127.0.0.1:0", 2, "expected tcp://HOST:PORT"),
        ("--connect=tcp://127.0.0.1:99999", 2, "expected tcp://HOST:PORT"),
        ("--connect=tcp://*:5555", 2, "expected tcp://HOST:PORT"),
        ("--key=/nowhere/drafter.secret", 2, "drafter.secret"),
        ("--model=/nowhere/at-all", 2, "/nowhere/at-all"),
        ("--model=bundled:nothing", 2, "bundled:nothing"),
    ],
)
def test_wrong_options(keys, folder, change, status, text):
    result = CliRunner().invoke(app, [*options(keys, "tcp://127.0.0.1:1", folder), change])
    assert result.exit_code == status
    assert text in result.stderr
