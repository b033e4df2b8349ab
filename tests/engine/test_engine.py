"""Requests at random times, some cancelled, pages short: each has the text that it has alone."""

import asyncio
import random
from pathlib import Path

import pytest
import torch

from drafter.home import HomeDrafter
from drafter.model import DraftModel
from tests.tiny_models import VOCAB_SIZE, make_tiny_model
from wanspec_kernels.engine.engine import Engine
from wanspec_kernels.engine.model import Target
from wanspec_kernels.engine.pages import PageBook
from wanspec_kernels.engine.request import Limits, Request
from wanspec_kernels.engine.runner import Runner
from wanspec_kernels.engine.scheduler import RefusedError, Scheduler, SchedulerLimits
from wanspec_kernels.engine.stream import PassFailedError
from wanspec_kernels.wire.sampling import Sampling

NUM_PAGES, PAGE_SIZE = 12, 16


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_tiny_model(tmp_path_factory.mktemp("model"), seed=4)


@pytest.fixture(scope="module")
def target(folder: Path, device: str) -> Target:
    return Target.load(
        str(folder), device=device, dtype=torch.float32, num_pages=NUM_PAGES, page_size=PAGE_SIZE
    )


def engine_of(target: Target, home: Path | None = None, num_pages: int = NUM_PAGES) -> Engine:
    scheduler = Scheduler(
        vocab_size=VOCAB_SIZE,
        pages=PageBook(num_pages, PAGE_SIZE),
        limits=Limits(max_rows=8),
        batch=SchedulerLimits(max_queue=20, chunk_rows=24),
        home=home is not None,
    )
    drafter = HomeDrafter(DraftModel.load(str(home))) if home is not None else None
    return Engine(scheduler, Runner(target), home=drafter)


def requests_of(seed: int, count: int) -> list[dict]:
    rng = random.Random(seed)
    shared = [rng.randrange(VOCAB_SIZE) for _ in range(20)]
    return [
        {
            "token_ids": tuple(
                shared[: rng.choice((0, 20))]
                + [rng.randrange(VOCAB_SIZE) for _ in range(rng.randrange(1, 30))]
            ),
            "max_tokens": rng.randrange(8, 30),
            "sampling": Sampling(rng.choice((0.0, 0.8)), seed=number),
        }
        for number in range(count)
    ]


async def text_of(engine: Engine, fields: dict) -> list[int]:
    stream = engine.submit(Request(**fields))
    return [token.token_id async for token in stream]


@pytest.mark.parametrize("seed", range(3))
@pytest.mark.parametrize("with_home", [False, True], ids=["alone", "home"])
def test_texts_do_not_depend_on_what_else_runs(
    seed: int, with_home: bool, target: Target, folder: Path
) -> None:
    wanted = requests_of(seed, 8)

    async def one_by_one() -> list[list[int]]:
        async with engine_of(target) as engine:
            return [await text_of(engine, fields) for fields in wanted]

    async def together() -> tuple[list[list[int]], int, int]:
        rng = random.Random(seed)
        async with engine_of(target, folder if with_home else None) as engine:
            streams = []
            for number, fields in enumerate(wanted):
                streams.append(asyncio.create_task(text_of(engine, fields)))
                stray = engine.submit(Request((5, 6, 7), 200))
                for _ in range(rng.randrange(4)):
                    await anext(stray)
                stray.cancel()
                if number % 2:
                    async for _ in stray:
                        pass
            texts = list(await asyncio.gather(*streams))
            pages = engine.scheduler.pages
            home = engine.scheduler.home
            assert pages.num_free == pages.num_pages
            return texts, engine.scheduler.num_preempted, home.passes if home else 0

    expected = asyncio.run(one_by_one())
    texts, preempted, home_passes = asyncio.run(together())
    assert texts == expected
    assert preempted > 0
    assert (home_passes > 0) == with_home


def test_a_pass_that_raises_ends_its_requests_and_no_others(target: Target) -> None:
    class Failing(Runner):
        fails = False

        def launch(self, plan):
            if self.fails:
                self.fails = False
                raise RuntimeError("the device is on fire")
            super().launch(plan)

    async def run() -> None:
        engine = engine_of(target)
        engine._runner = runner = Failing(target)
        async with engine:
            stream = engine.submit(Request((5, 6, 7), 50))
            await anext(stream)
            runner.fails = True
            with pytest.raises(PassFailedError):
                async for _ in stream:
                    pass
            assert len(await text_of(engine, {"token_ids": (5,), "max_tokens": 3})) == 3

    asyncio.run(run())


def test_closing_ends_every_stream(target: Target) -> None:
    async def run() -> list[str | None]:
        async with engine_of(target) as engine:
            streams = [engine.submit(Request((5, 6), 100)) for _ in range(4)]
            await anext(streams[0])
        for stream in streams:
            async for _ in stream:
                pass
        with pytest.raises(RuntimeError, match="running engine"):
            engine.submit(Request((5,), 1))
        return [stream.finish_reason for stream in streams]

    assert asyncio.run(run()) == ["cancelled"] * 4


def test_a_full_queue_says_no_at_once(target: Target) -> None:
    async def run() -> None:
        async with engine_of(target) as engine:
            for _ in range(20):
                engine.submit(Request((5, 6), 4))
            with pytest.raises(RefusedError, match="20 wait"):
                engine.submit(Request((5, 6), 4))

    asyncio.run(run())
