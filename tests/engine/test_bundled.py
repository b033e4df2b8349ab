"""The bundled pair: eight prompts at once, pages short, each as it is alone."""

import asyncio
import json
import random
from collections.abc import Sequence
from dataclasses import replace
from importlib.resources import files
from itertools import pairwise

import numpy as np
import pytest
from numpy.typing import NDArray

from drafter.home import HomeDrafter
from wanspec_kernels.assembly import Pair
from wanspec_kernels.engine.engine import Engine
from wanspec_kernels.engine.pages import PageBook
from wanspec_kernels.engine.request import Limits, Request
from wanspec_kernels.engine.runner import Runner
from wanspec_kernels.engine.scheduler import Scheduler, SchedulerLimits
from wanspec_kernels.engine.stream import Stream
from wanspec_kernels.tree import HostTree
from wanspec_kernels.wire.sampling import Sampling

TOKENS = 32
PROMPT = 96
PAGE_SIZE, MANY_PAGES = 16, 512
FEW_PAGES = 4 * (PROMPT // PAGE_SIZE + 1)  # Four are admitted, and find no room to go on.


class Alternating:
    """Even and odd tokens in turn: what may follow a node depends on the node."""

    def __init__(self, vocab_size: int) -> None:
        self._words = -(-vocab_size // 32)

    def bitmask(self, output_ids: Sequence[int], tree: HostTree) -> NDArray[np.int32]:
        masks = [0x55555555 if token % 2 else 0xAAAAAAAA for token in tree.token_ids]
        column = np.array(masks, np.uint32).view(np.int32)[:, None]
        return np.repeat(column, self._words, 1)


@pytest.fixture(scope="module")
def pair(device: str) -> Pair:
    return Pair.load("bundled:target", "bundled:draft", device)


def requests_of(pair: Pair, seed: int) -> list[Request]:
    prompts = json.loads(files("wanspec_kernels.bundled").joinpath("prompts.json").read_text())
    texts = [pair.target.tokenizer(each["text"])["input_ids"][:PROMPT] for each in prompts]
    texts += [texts[0] + texts[1][:9], texts[1][: PROMPT // 2]]  # They begin as others do.
    return [
        Request(
            tuple(text),
            TOKENS,
            Sampling((0.0, 0.8)[number % 2], seed=100 * seed + number),
            grammar=Alternating(pair.target.vocab_size) if number == 5 else None,
        )
        for number, text in enumerate(texts)
    ]


def engine_of(pair: Pair, num_pages: int, *, home: bool) -> Engine:
    assert pair.home is not None
    scheduler = Scheduler(
        vocab_size=pair.target.vocab_size,
        pages=PageBook(num_pages, PAGE_SIZE),
        limits=Limits(max_rows=8, max_length=pair.target.max_length),
        batch=SchedulerLimits(chunk_rows=48),
        home=home,
    )
    drafter = HomeDrafter(pair.home) if home else None
    return Engine(scheduler, Runner(pair.target), home=drafter, tokenizer=pair.target.tokenizer)


async def text_of(stream: Stream) -> tuple[list[int], str, str | None]:
    tokens = [token async for token in stream]
    text = "".join(token.text or "" for token in tokens)
    return [token.token_id for token in tokens], text, stream.finish_reason


async def alone(pair: Pair, requests: list[Request]) -> list[tuple]:
    async with engine_of(pair, MANY_PAGES, home=False) as engine:
        return [await text_of(engine.submit(request)) for request in requests]


async def together(pair: Pair, requests: list[Request], seed: int) -> list[tuple]:
    rng = random.Random(seed)
    async with engine_of(pair, FEW_PAGES, home=True) as engine:
        tasks = []
        for request in requests:
            tasks.append(asyncio.create_task(text_of(engine.submit(request))))
            stray = engine.submit(Request(request.token_ids[:20], 200))
            for _ in range(rng.randrange(5)):
                await anext(stray)
            stray.cancel()
        texts = list(await asyncio.gather(*tasks))
        scheduler = engine.scheduler
        assert scheduler.num_preempted > 0
        assert scheduler.pages.num_free == scheduler.pages.num_pages
        assert scheduler.home is not None
        assert scheduler.home.passes > 0
    return texts


@pytest.mark.parametrize("seed", range(2))
def test_each_text_is_the_one_it_has_alone(pair: Pair, seed: int) -> None:
    requests = requests_of(pair, seed)
    expected = asyncio.run(alone(pair, requests))
    bound = expected[5][0]
    assert all(a % 2 != b % 2 for a, b in pairwise([requests[5].token_ids[-1], *bound]))
    whole = expected[2][1]
    requests[2] = replace(requests[2], stop=(whole[20:23],))
    expected[2] = asyncio.run(alone(pair, requests[2:3]))[0]
    assert expected[2][1:] == (whole[: whole.index(whole[20:23])], "stop")
    assert asyncio.run(together(pair, requests, seed)) == expected
