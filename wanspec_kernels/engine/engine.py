"""Engine: requests submitted from an asyncio program, decoded many at a time."""

import asyncio
import logging
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from typing import Any, Protocol, TypeVar

from wanspec_kernels.control.home import DraftAtHome, HomeJob
from wanspec_kernels.engine.plan import PassPlan, Verdict
from wanspec_kernels.engine.request import Request
from wanspec_kernels.engine.scheduler import Committed, Event, Finished, Scheduler
from wanspec_kernels.engine.stream import Stream, Token
from wanspec_kernels.wire import MAX_TREE_NODES, Draft, Open

logger = logging.getLogger(__name__)

HOME_CLOSES_S = 1.0  # what a home drafter at work is given to end when the engine closes

T = TypeVar("T")


class PassRunner(Protocol):
    """As `Runner`; both calls are made by one worker thread."""

    def launch(self, plan: PassPlan) -> None: ...
    def result(self) -> list[Verdict]: ...


class BatchDrafter(Protocol):
    """As `HomeDrafter`; called by a worker thread of its own."""

    def open(self, request: Open) -> None: ...
    def draft_all(
        self, jobs: list[tuple[int, tuple[int, ...], Draft | None]]
    ) -> dict[int, list[Draft] | None]: ...
    def close(self, request: int) -> None: ...


class Engine:
    """Drives a scheduler: passes and drafts at home block a worker thread each.

    Use as ``async with Engine(...) as engine: stream = engine.submit(...)``.
    """

    def __init__(
        self, scheduler: Scheduler, runner: PassRunner, *, home: BatchDrafter | None = None
    ) -> None:
        self.scheduler = scheduler
        self._runner = runner
        self._home = home
        self._known_at_home: set[int] = set()  # requests that it was told of
        self._streams: dict[int, Stream] = {}
        self._wake = asyncio.Event()
        self._target_worker = ThreadPoolExecutor(1, "wanspec-target")
        self._home_worker = ThreadPoolExecutor(1, "wanspec-home")
        self._passing: asyncio.Future[list[Verdict]] | None = None
        self._drafting: asyncio.Future[dict[int, list[Draft] | None]] | None = None
        self._loop: asyncio.Task[None] | None = None

    async def __aenter__(self) -> "Engine":
        self._loop = asyncio.create_task(self._run(), name="engine")
        return self

    async def __aexit__(self, *_: object) -> None:
        await self.close()

    async def close(self) -> None:
        """End all requests as cancelled, let the pass under way end, and stop."""
        for stream in list(self._streams.values()):
            stream.cancel()
        if self._passing is not None:
            await asyncio.wait([self._passing])
        if self._drafting is not None:
            await asyncio.wait([self._drafting], timeout=HOME_CLOSES_S)
        if self._loop is not None:
            self._loop.cancel()
            with suppress(asyncio.CancelledError):
                await self._loop
            self._loop = None
        for stream in list(self._streams.values()):
            stream.end("cancelled")
        self._streams.clear()
        self._target_worker.shutdown(wait=False, cancel_futures=True)
        self._home_worker.shutdown(wait=False, cancel_futures=True)

    def submit(self, request: Request) -> Stream:
        """Queue a request.

        Raises:
            RefusedError: the queue is full, or the prompt can never fit.
            ValueError: a value is out of range.
            RuntimeError: the engine is not running.
        """
        if self._loop is None or self._loop.done():
            raise RuntimeError("submit: expected a running engine, as by `async with Engine(...)`")
        sequence = self.scheduler.submit(request, _now_ms())
        stream = self._streams[sequence.number] = Stream(sequence, self._cancel)
        self._wake.set()
        return stream

    def _cancel(self, number: int) -> None:
        self._deliver(self.scheduler.cancel(number, _now_ms()))
        self._wake.set()

    async def _run(self) -> None:
        try:
            while True:
                self._begin()
                await self._wait()
                self._take_results()
        except Exception as error:  # Ours is the fault, but nobody may wait for ever.
            logger.exception("the engine has failed")
            for stream in self._streams.values():
                stream.end("failed", error)
            self._streams.clear()

    def _begin(self) -> None:
        """Start all that the scheduler wants run now."""
        while (action := self.scheduler.step(_now_ms())) is not None:
            match action:
                case PassPlan():
                    self.scheduler.began(_now_ms())
                    self._passing = self._submit(self._target_worker, self._pass, action)
                case DraftAtHome(jobs):
                    assert self._home is not None
                    new = {job.request for job in jobs} - self._known_at_home
                    opens = [self._open_message(number) for number in new]
                    self._known_at_home |= new
                    self._drafting = self._submit(
                        self._home_worker, _draft, self._home, opens, jobs
                    )

    def _open_message(self, number: int) -> Open:
        sequence = self.scheduler.sequences[number]
        most = min(sequence.limits.max_source_nodes, MAX_TREE_NODES)
        return sequence.open_message(most, home=True)

    async def _wait(self) -> None:
        """Until a job has ended, something was submitted or offered, or the scheduler's timer."""
        wake_ms = None if self.scheduler.is_running else self.scheduler.wake_at()
        timeout = None if wake_ms is None else max(0.0, wake_ms - _now_ms()) / 1000
        with suppress(TimeoutError):
            async with asyncio.timeout(timeout):
                await self._wake.wait()
        self._wake.clear()

    def _take_results(self) -> None:
        if self._passing is not None and self._passing.done():
            passing, self._passing = self._passing, None
            error = passing.exception()
            if error is None:
                self._deliver(self.scheduler.verdict(passing.result(), _now_ms()))
            else:
                logger.error("a pass of the target failed", exc_info=error)
                self._deliver(self.scheduler.failed(_now_ms()), error)
        if self._drafting is not None and self._drafting.done():
            drafting, self._drafting = self._drafting, None
            drafts = drafting.result()
            self._known_at_home -= self._asked_of_home() - drafts.keys()
            self.scheduler.drafted(drafts, _now_ms())

    def _asked_of_home(self) -> frozenset[int]:
        assert self.scheduler.home is not None
        return self.scheduler.home.asked

    def _deliver(self, events: list[Event], error: BaseException | None = None) -> None:
        for event in events:
            match event:
                case Committed(number, token_ids, sources, verdict):
                    logprobs = verdict.logprobs or (None,) * len(token_ids)
                    for token in zip(token_ids, sources, logprobs, strict=False):
                        self._streams[number].put(Token(*token))
                case Finished(number, reason):
                    self._streams.pop(number).end(reason, error)
                    if self._home is not None and number in self._known_at_home:
                        self._known_at_home.discard(number)
                        self._home_worker.submit(_close, self._home, number)

    def _pass(self, plan: PassPlan) -> list[Verdict]:
        self._runner.launch(plan)
        return self._runner.result()

    def _submit(
        self, worker: ThreadPoolExecutor, call: Callable[..., T], *args: Any
    ) -> "asyncio.Future[T]":
        job = asyncio.get_running_loop().run_in_executor(worker, call, *args)
        job.add_done_callback(lambda _: self._wake.set())
        return job


def _draft(
    home: BatchDrafter, opens: list[Open], jobs: tuple[HomeJob, ...]
) -> dict[int, list[Draft] | None]:
    """In the worker's thread. What failed is closed: nobody knows what home still knows of it."""
    try:
        for message in opens:
            home.open(message)
        found = home.draft_all([(job.request, job.token_ids, job.known) for job in jobs])
    except Exception:
        logger.exception("home drafter: a draft failed")
        found = {}
    for job in jobs:
        if job.request not in found:
            _close(home, job.request)
    return found


def _close(home: BatchDrafter, request: int) -> None:
    try:
        home.close(request)
    except Exception:
        logger.exception("home drafter: a close failed")


def _now_ms() -> float:
    return time.monotonic() * 1000
