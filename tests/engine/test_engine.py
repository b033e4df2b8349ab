"""Requests at random times, some cancelled, pages short: each has the text that it has alone."""

import asyncio
import random
import threading
from pathlib import Path

import numpy as np
import pytest
import torch

from drafter.home import HomeDrafter
from drafter.model import DraftModel
from tests.tiny_models import VOCAB_SIZE, make_tiny_model
from wanspec_kernels.engine.engine import Engine
from wanspec_kernels.engine.model import Target
from wanspec_kernels.engine.pages import PageBook
from wanspec_kernels.engine.plan import PassPlan, Verdict
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


def engine_of(
    target: Target,
    home: Path | None = None,
    num_pages: int = NUM_PAGES,
    runner: Runner | None = None,
) -> Engine:
    scheduler = Scheduler(
        vocab_size=VOCAB_SIZE,
        pages=PageBook(num_pages, PAGE_SIZE),
        limits=Limits(max_rows=8),
        batch=SchedulerLimits(max_queue=20, chunk_rows=24),
        home=home is not None,
    )
    drafter = HomeDrafter(DraftModel.load(str(home))) if home is not None else None
    runner = runner or Runner(target)
    return Engine(scheduler, runner, home=drafter, tokenizer=target.tokenizer)


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
        runner = Failing(target)
        async with engine_of(target, runner=runner) as engine:
            stream = engine.submit(Request((5, 6, 7), 50))
            await anext(stream)
            runner.fails = True
            with pytest.raises(PassFailedError):
                async for _ in stream:
                    pass
            assert len(await text_of(engine, {"token_ids": (5,), "max_tokens": 3})) == 3

    asyncio.run(run())


def test_a_stop_string_ends_the_text_inside_an_accepted_draft(target: Target, folder: Path) -> None:
    """Home is the target's own model: whole drafts are accepted, of which the string is a part."""
    fields = [each | {"max_tokens": 40} for each in requests_of(5, 6)]

    async def texts(stops: dict[int, str]) -> list[tuple[str, str | None]]:
        found = []
        async with engine_of(target, folder) as engine:
            streams = [
                engine.submit(Request(**f, stop=(stops[i],) if i in stops else ()))
                for i, f in enumerate(fields)
            ]
            for stream in streams:
                tokens = [token async for token in stream]
                text = "".join(token.text or "" for token in tokens)
                found.append((text, stream.finish_reason))
            # Not one pass more than was under way is spent on a text that is complete.
            for i, stream in enumerate(streams):
                assert (i in stops) == (stream.statistics.tokens < 40)
            assert engine.scheduler.pages.num_free == engine.scheduler.pages.num_pages
        return found

    whole = asyncio.run(texts({}))
    stops = {i: text[3:5] for i, (text, _) in enumerate(whole) if i % 2 == 0}
    stopped = asyncio.run(texts(stops))
    for i, ((text, reason), (before, _)) in enumerate(zip(stopped, whole, strict=True)):
        if i in stops:
            assert (text, reason) == (before[: before.index(stops[i])], "stop")
        else:
            assert (text, reason) == (before, "length")


def test_a_deadline_ends_a_request_and_leaves_what_is_decoded(target: Target) -> None:
    """The clock that counts is the scheduler's; the request that it ends would run for long."""

    async def run() -> None:
        async with engine_of(target) as engine:
            late = engine.submit(Request((5, 6), 150, deadline_ms=30.0))
            other = engine.submit(Request((7, 8), 5))
            assert len([token async for token in other]) == 5
            count = len([token async for token in late])
            assert late.finish_reason == "deadline"
            assert count == late.statistics.tokens < 150
            assert engine.scheduler.pages.num_free == engine.scheduler.pages.num_pages

    asyncio.run(run())


def test_a_stop_string_needs_a_tokenizer(target: Target) -> None:
    async def run() -> None:
        engine = Engine(Scheduler(vocab_size=VOCAB_SIZE, pages=PageBook(4, 4)), Runner(target))
        async with engine:
            with pytest.raises(ValueError, match="tokenizer"):
                engine.submit(Request((5,), 5, stop=("x",)))

    asyncio.run(run())


class Steps:
    """A runner that shows where the device is, and works only when told to."""

    def __init__(self, runner: Runner) -> None:
        self._runner = runner
        self.has_launched = threading.Semaphore(0)
        self.may_end = threading.Semaphore(0)

    def launch(self, plan: PassPlan) -> None:
        self._runner.launch(plan)
        self.has_launched.release()

    def result(self) -> list[Verdict]:
        self.may_end.acquire()
        return self._runner.result()


def test_tokens_are_delivered_and_requests_come_while_the_device_works(target: Target) -> None:
    async def run() -> None:
        scheduler = Scheduler(vocab_size=VOCAB_SIZE, pages=PageBook(NUM_PAGES, PAGE_SIZE))
        steps = Steps(Runner(target))
        async with Engine(scheduler, steps, tokenizer=target.tokenizer) as engine:
            stream = engine.submit(Request((5, 6), 2))
            steps.may_end.release()
            assert await anext(stream)
            try:
                # The second pass was launched before the first token came, and is not to end yet.
                assert steps.has_launched.acquire(blocking=False)
                assert steps.has_launched.acquire(blocking=False)
                assert scheduler.is_running
                cancelled = engine.submit(Request((7,), 2))
                cancelled.cancel()
                assert [token async for token in cancelled] == []
                assert scheduler.is_running
            finally:
                steps.may_end.release()
            assert len([token async for token in stream]) == 1
            assert len(engine.host_ms) == 1

    asyncio.run(run())


def test_log_probabilities_are_for_who_asks(target: Target) -> None:
    async def run() -> None:
        async with engine_of(target) as engine:
            streams = [engine.submit(Request((5, 6), 6, logprobs=n)) for n in (None, 0, 3)]
            for stream, count in zip(streams, (None, 0, 3), strict=True):
                async for token in stream:
                    assert (token.logprobs is None) == (count is None)
                    if token.logprobs is not None:
                        assert len(token.logprobs.top) == count

    asyncio.run(run())


def test_what_happened_when_is_known_of_each_request(target: Target) -> None:
    async def run() -> None:
        async with engine_of(target) as engine:
            streams = [engine.submit(Request((5, 6), 6)) for _ in range(3)]
            for stream in streams:
                async for _ in stream:
                    pass
        for s in (stream.statistics for stream in streams):
            assert s.admitted_ms is not None
            assert s.first_token_ms is not None
            assert s.last_token_ms is not None
            assert s.submitted_ms <= s.admitted_ms < s.first_token_ms < s.last_token_ms
            assert 0 <= s.waited_ms < s.last_token_ms - s.admitted_ms

    asyncio.run(run())


def test_a_grammar_binds_drafts_and_one_that_fails_costs_its_request_alone(
    target: Target, folder: Path
) -> None:
    class Even:
        def bitmask(self, output_ids, tree):
            row = np.full((len(tree.token_ids), -(-VOCAB_SIZE // 32)), 0x55555555, np.uint32)
            return row.view(np.int32)

    class Broken:
        def bitmask(self, output_ids, tree):
            return np.zeros((1, 1), np.int32)

    async def run(home: Path | None) -> list[int]:
        async with engine_of(target, home) as engine:
            streams = [engine.submit(Request((5, 6), 12, grammar=g)) for g in (Even(), Broken())]
            with pytest.raises(PassFailedError):
                await anext(streams[1])
            return [token.token_id async for token in streams[0]]

    alone = asyncio.run(run(None))
    assert len(alone) == 12
    assert all(token % 2 == 0 for token in alone)
    assert asyncio.run(run(folder)) == alone


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
