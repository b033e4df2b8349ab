"""A drafter's end of the wire in the tests' hands, and a service with a target that they step."""

import asyncio
import threading
from collections import deque
from contextlib import asynccontextmanager
from random import Random

import zmq
import zmq.asyncio

from tests.serving.fake_models import VOCAB_SIZE, FakeTarget, guess
from wanspec_kernels.serving.service import VerifierService
from wanspec_kernels.wire import (
    Close,
    Commit,
    Hello,
    Open,
    Ping,
    Pong,
    Welcome,
    check_of,
    decode_frame,
    encode_frame,
)
from wanspec_kernels.wire.keys import secure_client

VOCABULARY = bytes(range(32))
PROMPT = (3, 1, 4, 1, 5)
HELLO = Hello(VOCABULARY, "fake", 4, 256, 0)
WAIT_S = 20.0


class SteppedTarget(FakeTarget):
    """Each pass waits for a permit, so that a test decides when it ends."""

    def __init__(self, stepped=False):
        super().__init__()
        self.permits = threading.Semaphore(0)
        self.stepped = stepped
        self.passes = 0

    def verify(self, request, tree):
        if self.stepped:
            assert self.permits.acquire(timeout=WAIT_S)
        self.passes += 1
        return super().verify(request, tree)

    def free(self):
        self.stepped = False
        self.permits.release()


class Dialler:
    """A drafter's end of the wire."""

    def __init__(self, socket):
        self.socket = socket
        self._heard = deque()  # of frames that carried several

    async def say(self, message):
        await self.socket.send(message if isinstance(message, bytes) else encode_frame([message]))

    async def hear(self, *kinds):
        """The next message of these kinds; pings are answered."""
        while True:
            while not self._heard:
                async with asyncio.timeout(WAIT_S):  # `wait_for` may lose a cancellation
                    self._heard += decode_frame(await self.socket.recv())
            message = self._heard.popleft()
            if isinstance(message, Ping):
                await self.say(Pong(message.clock_us, 0))
            if isinstance(message, kinds):
                return message

    async def join(self):
        await self.say(HELLO)
        return await self.hear(Welcome)

    async def draft_forever(self, skill=1.0, depth=6):
        rng = Random(1)
        text = []
        while True:
            message = await self.hear(Open, Commit, Close)
            match message:
                case Open():
                    text = list(message.token_ids)
                case Commit():
                    text += message.token_ids
                    assert check_of(text) == message.check
                case Close():
                    return
            await self.say(guess(rng, text, skill, depth, request=message.request))


def run(keys, scenario, *, target=None, home=None, config=None):
    async def main():
        context = zmq.asyncio.Context()

        @asynccontextmanager
        async def dial(name="first", public=None):
            socket = context.socket(zmq.DEALER)
            socket.linger = 0
            if name is not None:
                secure_client(socket, keys[name], public or keys["verifier"].public)
            socket.connect(service.address)
            try:
                yield Dialler(socket)
            finally:
                socket.close()

        service = VerifierService(
            target or FakeTarget(),
            vocabulary=VOCABULARY,
            vocab_size=VOCAB_SIZE,
            bind="tcp://127.0.0.1:*",
            secret=keys["verifier"],
            allowed=keys["enrolled"],
            home=home,
            config=config,
        )
        try:
            async with service:
                await scenario(service, dial)
        finally:
            context.destroy(linger=0)

    asyncio.run(asyncio.wait_for(main(), 2 * WAIT_S))


async def until(condition):
    async with asyncio.timeout(WAIT_S):
        while not condition():
            await asyncio.sleep(0)
