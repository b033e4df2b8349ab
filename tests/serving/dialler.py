"""A drafter's end of the wire in the tests' hands, and an engine whose passes they step."""

import asyncio
from collections import deque
from contextlib import asynccontextmanager
from dataclasses import replace
from random import Random

import zmq
import zmq.asyncio

from tests.serving.fake_models import (
    PAGE_SIZE,
    VOCAB_SIZE,
    WAIT_S,
    FakeRunner,
    continuation,
    guess,
)
from wanspec_kernels.control.pass_times import PassTimes
from wanspec_kernels.control.tuning import TUNING
from wanspec_kernels.drafts.exchange import Exchange
from wanspec_kernels.engine.engine import Engine
from wanspec_kernels.engine.pages import PageBook
from wanspec_kernels.engine.request import Request
from wanspec_kernels.engine.scheduler import Scheduler
from wanspec_kernels.serving.drafters import DrafterSocket, now_ms
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
TARGET_MS = 5.0  # is what a pass is taken to last
# Home is asked whenever it may bring anything: what it costs here is this machine's affair.
FREE_HOME = replace(TUNING, home_price=-1.0)
HELLO = Hello(VOCABULARY, "fake", 4, 256, 0)


class FlatTimes(PassTimes):
    """Rows cost nothing, whatever this machine is at."""

    def steps(self):
        return [TARGET_MS] * len(self.sizes)

    @property
    def context_ms(self):
        return 0.0

    @property
    def typical_ms(self):
        return TARGET_MS


class Verifier:
    """An engine at work, its socket, and what the tests look at."""

    def __init__(self, keys, runner, home=None, config=None, batch=None, bind="tcp://127.0.0.1:*"):
        exchange = Exchange(
            vocabulary=VOCABULARY, vocab_size=VOCAB_SIZE, now=now_ms(), config=config
        )
        self.drafters = None
        if keys is not None:
            self.drafters = DrafterSocket(
                bind, exchange=exchange, secret=keys["verifier"], allowed=keys["enrolled"]
            )
        self.scheduler = Scheduler(
            vocab_size=VOCAB_SIZE,
            pages=PageBook(len(runner.slots), PAGE_SIZE),
            batch=batch,
            tuning=FREE_HOME,
            times=FlatTimes(),
            exchange=exchange,
            home=home is not None,
        )
        self.engine = Engine(self.scheduler, runner, home=home, drafters=self.drafters)
        self.exchange, self.runner, self.home = exchange, runner, home

    @property
    def counters(self):
        return self.exchange.counters

    @property
    def sessions(self):
        return self.exchange.sessions

    def submit(self, prompt=PROMPT, max_tokens=30, **fields):
        return self.engine.submit(Request(tuple(prompt), max_tokens, **fields))

    def submit_many(self, count, max_tokens=30, **fields):
        """Requests of different texts, each with the text that it has to come to."""
        prompts = [(*PROMPT, number) for number in range(count)]
        return [
            (self.submit(prompt, max_tokens, **fields), continuation(prompt, max_tokens))
            for prompt in prompts
        ]

    async def text(self, prompt=PROMPT, max_tokens=30, **fields):
        stream = self.submit(prompt, max_tokens, **fields)
        return await text_of(stream), stream.statistics

    def check_nothing_is_left(self):
        """Of requests, whoever they were."""
        scheduler, exchange = self.scheduler, self.exchange
        assert scheduler.pages.num_free == scheduler.pages.num_pages
        sizes = sizes_of(scheduler) | sizes_of(self.engine) | sizes_of(exchange)
        for kept in ("counters", "_outbox", "_sessions", "_peers", "_keeping_up", "host_ms"):
            sizes.pop(kept)
        assert not any(sizes.values()), sizes
        if scheduler.home is not None:
            assert not any(sizes_of(scheduler.home).values())
        assert not any(session._known for session in exchange.sessions)


def sizes_of(thing):
    """Of all that grows in an object."""
    kinds = (dict, set, frozenset, list, deque)
    return {name: len(value) for name, value in vars(thing).items() if isinstance(value, kinds)}


async def text_of(stream):
    async with asyncio.timeout(2 * WAIT_S):
        return [token.token_id async for token in stream]


async def texts_are_right(submitted):
    """Of each of `Verifier.submit_many`."""
    for stream, expected in submitted:
        assert await text_of(stream) == expected
        assert stream.finish_reason == "length"


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
        """For every request that it is asked for."""
        rng = Random(1)
        texts = {}
        while True:
            message = await self.hear(Open, Commit, Close)
            match message:
                case Open():
                    texts[message.request] = list(message.token_ids)
                case Commit():
                    texts[message.request] += message.token_ids
                    assert check_of(texts[message.request]) == message.check
                case Close():
                    texts.pop(message.request, None)
                    continue
            text = texts[message.request]
            await self.say(guess(rng, text, skill, depth, request=message.request))


@asynccontextmanager
async def at_work(coroutine):
    """Beside what follows; it must not have ended by itself, and ends then."""
    task = asyncio.create_task(coroutine)
    try:
        yield task
        assert not task.done() or task.result() is None
    finally:
        task.cancel()
        await asyncio.wait([task])


def run(keys, scenario, *, runner=None, home=None, config=None, batch=None):
    async def main():
        context = zmq.asyncio.Context()

        @asynccontextmanager
        async def dial(name="first", public=None):
            socket = context.socket(zmq.DEALER)
            socket.linger = 0
            if name is not None:
                secure_client(socket, keys[name], public or keys["verifier"].public)
            socket.connect(verifier.drafters.address)
            try:
                yield Dialler(socket)
            finally:
                socket.close()

        verifier = Verifier(keys, runner or FakeRunner(), home, config, batch)
        try:
            async with verifier.engine:
                await scenario(verifier, dial)
        finally:
            context.destroy(linger=0)

    asyncio.run(asyncio.wait_for(main(), 3 * WAIT_S))


async def until(condition):
    async with asyncio.timeout(WAIT_S):
        while not condition():
            await asyncio.sleep(0)
