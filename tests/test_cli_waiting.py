"""Waiting for drafters: over real sockets, each way of not being let in is told, and why."""

import asyncio
from contextlib import asynccontextmanager

import pytest
import zmq
import zmq.asyncio

from wanspec_kernels.commands.waiting import wait_for_drafters
from wanspec_kernels.drafts.exchange import Exchange, ExchangeConfig
from wanspec_kernels.drafts.refusals import MAX_REFUSALS, Refusals
from wanspec_kernels.serving.drafters import DrafterSocket, now_ms
from wanspec_kernels.wire import Hello, decode_frame, encode_frame
from wanspec_kernels.wire.keys import AllowList, generate, load_secret, secure_client

VOCABULARY = bytes(range(32))
VOCAB_SIZE = 100
HELLO = Hello(VOCABULARY, "fake", 4, 256, 0)
WAIT_S = 30.0


@pytest.fixture(scope="module")
def keys(tmp_path_factory):
    folder = tmp_path_factory.mktemp("keys")
    (folder / "enrolled").mkdir()
    found = {
        name: load_secret(generate(folder / where, name))
        for where, name in [
            ("", "verifier"), ("", "stranger"), ("enrolled", "first"), ("enrolled", "second"),
        ]
    }  # fmt: skip
    return found | {"enrolled": AllowList(folder / "enrolled")}


class Told:
    """The lines said so far, one after another."""

    def __init__(self):
        self.say = (lines := asyncio.Queue()).put_nowait
        self._lines = lines

    async def until(self, *parts):
        while True:
            line = await asyncio.wait_for(self._lines.get(), WAIT_S)
            if all(part in line for part in parts):
                return line


def run(keys, count, scenario, *, max_sessions=64):
    """`scenario` is given a way to dial and what is told; then the waiting has to end."""

    async def main():
        context = zmq.asyncio.Context()
        exchange = Exchange(
            vocabulary=VOCABULARY,
            vocab_size=VOCAB_SIZE,
            now=now_ms(),
            config=ExchangeConfig(max_sessions=max_sessions),
        )
        drafters = DrafterSocket(
            "tcp://127.0.0.1:*",
            exchange=exchange,
            secret=keys["verifier"],
            allowed=keys["enrolled"],
        )

        @asynccontextmanager
        async def dial(name, server="verifier"):
            socket = context.socket(zmq.DEALER)
            socket.linger = 0
            socket.reconnect_ivl = -1
            secure_client(socket, keys[name], keys[server].public)
            socket.connect(drafters.address)
            try:
                yield socket
            finally:
                socket.close()

        told = Told()
        try:
            await drafters.start()
            async with asyncio.timeout(WAIT_S):
                address = drafters.address
                waiting = asyncio.create_task(
                    wait_for_drafters(exchange, address, count, told.say, say_every_s=0.1)
                )
                await told.until(f"waiting for {count} drafters at {address}", "nobody has")
                await scenario(dial, told)
                await waiting
        finally:
            await drafters.close()
            context.term()

    asyncio.run(main())


def test_a_stranger_a_wrong_server_key_and_another_vocabulary_are_told_apart(keys):
    async def scenario(dial, told):
        async with dial("stranger"):
            await told.until(
                "refused 127.0.0.1, key ", keys["stranger"].public.decode(), "not enrolled",
                str(keys["enrolled"].folder),
            )  # fmt: skip
        async with dial("first", server="stranger"):
            await told.until("refused somebody: the encrypted handshake failed", "--server-key")
        async with dial("first") as socket:
            await socket.send(encode_frame([Hello(bytes(32), "other-model", 4, 256, 0)]))
            await told.until("refused first: vocabulary: expected the target's", "of other-model")
        await told.until("waiting for 1", "3 attempts were refused", "the last of first: vocab")
        async with dial("first") as socket:
            await socket.send(encode_frame([HELLO]))
            assert [*decode_frame(await socket.recv())]

    run(keys, 1, scenario)


def test_who_has_joined_is_told_and_that_there_is_no_room_for_more(keys):
    async def scenario(dial, told):
        async with dial("first") as first:
            await first.send(encode_frame([HELLO]))
            await told.until("waiting for 2", "1 joined (first)")
            async with dial("second") as second:
                await second.send(encode_frame([HELLO]))
                await told.until("refused second: capacity: expected at most 1 drafters")
                raise Enough

    with pytest.raises(Enough):
        run(keys, 2, scenario, max_sessions=1)


def test_a_drafter_in_quarantine_is_told(keys):
    async def scenario(dial, told):
        async with dial("first") as socket:
            await socket.send(encode_frame([HELLO]))
            for _ in range(8):
                await socket.send(b"no message")
            await socket.send(encode_frame([HELLO]))
            await told.until("refused first: quarantined: too many malformed messages")
            raise Enough

    with pytest.raises(Enough):
        run(keys, 2, scenario)


class Enough(Exception):
    """The scenario is over, though not the waiting."""


def test_refusals_are_bounded_and_counted():
    refusals = Refusals()
    for number in range(10 * MAX_REFUSALS):
        refusals.add(f"peer {number}", "why")
        refusals.add("again", "and again")
    found = refusals.latest()
    assert len(found) == MAX_REFUSALS
    assert (found[-1].who, found[-1].count) == ("again", 10 * MAX_REFUSALS)
