"""Engine: requests submitted from an asyncio program, decoded many at a time."""

import asyncio
import logging
import time
from collections import deque
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from typing import Any, Protocol, TypeVar

from wanspec_kernels.control.home import DraftAtHome, HomeJob
from wanspec_kernels.engine.events import Committed, Finished, FinishReason, News
from wanspec_kernels.engine.output_text import OutputText
from wanspec_kernels.engine.plan import PassPlan, Verdict
from wanspec_kernels.engine.request import Request
from wanspec_kernels.engine.scheduler import Scheduler
from wanspec_kernels.engine.stream import Stream, Token
from wanspec_kernels.wire import MAX_TREE_NODES, Draft, Open

logger = logging.getLogger(__name__)

HOME_CLOSES_S = 1.0  # what a home drafter at work is given to end when the engine closes

HOST_TIMES = 1024  # kept, of the last passes

T = TypeVar("T")
_Drafted = tuple[dict[int, list[Draft] | None], BaseException | None]  # and why others failed


class PassRunner(Protocol):
    """As `Runner`; both calls are made by one worker thread.

    `launch` returns once the device has its work, and `result` waits for it.
    """

    def launch(self, plan: PassPlan) -> None: ...
    def result(self) -> list[Verdict]: ...


class BatchDrafter(Protocol):
    """As `HomeDrafter`; called by a worker thread of its own."""

    def open(self, request: Open) -> None: ...
    def draft_all(
        self, jobs: list[tuple[int, tuple[int, ...], Draft | None]]
    ) -> dict[int, list[Draft] | None]: ...
    def close(self, request: int) -> None: ...


class Drafters(Protocol):
    """As `serving.drafters.DrafterSocket`: what carries the messages of the scheduler's exchange.

    All calls are made on the engine's loop. `on_draft` is set by the engine, and called after a
    draft that adds something.
    """

    on_draft: Callable[[], None]
    address: str  # where they dial, once it is started

    async def start(self) -> None: ...
    def send(self) -> None: ...
    async def close(self) -> None: ...


class Engine:
    """Drives a scheduler: passes and drafts at home block a worker thread each.

    Between a verdict and the next launch the loop does no more than the scheduler asks for. Tokens
    are turned into text and delivered while the device is at work.

    Use as ``async with Engine(...) as engine: stream = engine.submit(Request(...))``.
    """

    def __init__(
        self,
        scheduler: Scheduler,
        runner: PassRunner,
        *,
        home: BatchDrafter | None = None,
        drafters: Drafters | None = None,
        tokenizer: Any = None,
    ) -> None:
        """With a `tokenizer` of transformers, tokens come with their text.

        `drafters` carries messages between the scheduler's exchange and remote drafters; it is
        started and closed with the engine.
        """
        self.scheduler = scheduler
        self._runner = runner
        self._home = home
        self._drafters = drafters
        self._tokenizer = tokenizer
        self._known_at_home: set[int] = set()  # requests that it was told of
        self._failed_at_home: set[int] = set()  # requests of which it was said that home failed
        self._streams: dict[int, Stream] = {}
        self._wake = asyncio.Event()
        self._target_worker = ThreadPoolExecutor(1, "wanspec-target")
        self._home_worker = ThreadPoolExecutor(1, "wanspec-home")
        self._launching: asyncio.Future[float] | None = None  # done when the device has its work
        self._passing: asyncio.Future[tuple[list[Verdict], float]] | None = None
        self._failed: BaseException | None = None  # by what a launch did
        self._undelivered: list[tuple[News, BaseException | None]] = []
        # What the loop worked between a verdict and the next launch, without what it waited.
        self.host_ms: deque[float] = deque(maxlen=HOST_TIMES)
        self._host_s: float | None = None  # since the last verdict; None: launched
        self._drafting: asyncio.Future[_Drafted] | None = None
        self._loop: asyncio.Task[None] | None = None

    async def __aenter__(self) -> "Engine":
        """Raises OSError if the drafters' address cannot be bound."""
        if self._drafters is not None:
            self._drafters.on_draft = self._on_draft
            await self._drafters.start()
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
            await asyncio.wait([self._loop])  # raises our own cancellation, and not the loop's
            if self._loop.cancelled():
                self._take_results()
            self._loop = None
        self._deliver()
        for number in list(self.scheduler.sequences):  # if the loop has failed
            self.scheduler.exchange.close(number, "failed")
        for stream in list(self._streams.values()):
            stream.end("cancelled")
        if self._drafters is not None:
            self._drafters.send()  # CLOSE
            await self._drafters.close()
        self._streams.clear()
        self._target_worker.shutdown(wait=False, cancel_futures=True)
        self._home_worker.shutdown(wait=False, cancel_futures=True)

    @property
    def address(self) -> str:
        """Where remote drafters dial; empty if none can."""
        return "" if self._drafters is None else self._drafters.address

    def submit(self, request: Request) -> Stream:
        """Queue a request.

        Raises:
            RefusedError: the queue is full, or the prompt can never fit.
            ValueError: a token is none of the target's, or there are stop strings and no tokenizer.
            RuntimeError: the engine is not running.
        """
        if self._loop is None or self._loop.done():
            raise RuntimeError("submit: expected a running engine, as by `async with Engine(...)`")
        if request.stop and self._tokenizer is None:
            raise ValueError("stop: expected an engine with a tokenizer, it has none")
        sequence = self.scheduler.submit(request, _now_ms())
        text = OutputText(self._tokenizer, request.stop) if self._tokenizer is not None else None
        stream = self._streams[sequence.number] = Stream(
            sequence.number,
            sequence.statistics,
            self._cancel,
            text,
            sequence.text.source_names,
        )
        self._wake.set()
        return stream

    def _on_draft(self) -> None:
        self.scheduler.offered(_now_ms())
        if not self.scheduler.is_running:
            self._wake.set()

    def _cancel(self, number: int) -> None:
        self._add(self.scheduler.cancel(number, _now_ms()))
        self._wake.set()

    async def _run(self) -> None:
        try:
            while True:
                began_s = time.thread_time()
                if self._take_results():
                    self._host_s = 0.0
                has_launched = self._begin()
                if self._host_s is not None:
                    self._host_s += time.thread_time() - began_s
                    if has_launched:
                        self.host_ms.append(self._host_s * 1000)
                        self._host_s = None
                if self._drafters is not None:
                    self._drafters.send()
                if self._launching is None or self._launching.done():
                    self._deliver()
                await self._wait()
        except Exception as error:  # Ours is the fault, but nobody may wait for ever.
            logger.exception("the engine has failed")
            for stream in self._streams.values():
                stream.end("failed", error)
            self._streams.clear()

    def _begin(self) -> bool:
        """Start all that the scheduler wants run now; returns whether that is a pass."""
        self._add(self.scheduler.ended(_now_ms()))
        while (action := self.scheduler.step(_now_ms())) is not None:
            match action:
                case PassPlan():
                    worker = self._target_worker
                    self._launching = self._submit(worker, _launch, self._runner, action)
                    self._passing = self._submit(worker, _result, self._runner)
                case DraftAtHome(jobs):
                    assert self._home is not None
                    new = {job.request for job in jobs} - self._known_at_home
                    opens = [self._open_message(number) for number in new]
                    self._known_at_home |= new
                    self._drafting = self._submit(
                        self._home_worker, _draft, self._home, opens, jobs
                    )
        return self._launching is not None and not self._launching.done()

    def _open_message(self, number: int) -> Open:
        sequence = self.scheduler.sequences[number]
        most = min(sequence.limits.max_source_nodes, MAX_TREE_NODES)
        return sequence.open_message(most, home=True)

    async def _wait(self) -> None:
        """Until a job has ended, something was submitted or offered, or the scheduler's timer."""
        wake_ms = self.scheduler.wake_at()
        timeout = None if wake_ms is None else max(0.0, wake_ms - _now_ms()) / 1000
        with suppress(TimeoutError):
            async with asyncio.timeout(timeout):
                await self._wake.wait()
        self._wake.clear()

    def _take_results(self) -> bool:
        """Tell the scheduler what has ended; returns whether a pass has."""
        passing, launching = self._passing, self._launching
        if launching is not None and launching.done():
            self._launching = None
            error = launching.exception()
            if error is None:
                self.scheduler.began(launching.result())
            else:
                self._failed = error
        has_verdict = passing is not None and passing.done()
        if passing is not None and has_verdict:
            self._passing = None
            error = self._failed or passing.exception()
            self._failed = None
            if error is None:
                verdicts, ended_ms = passing.result()
                self._add(self.scheduler.verdict(verdicts, _now_ms(), ended_ms=ended_ms))
            else:
                logger.error("a pass of the target failed", exc_info=error)
                self._add(self.scheduler.failed(_now_ms()), error)
        if self._drafting is not None and self._drafting.done():
            drafting, self._drafting = self._drafting, None
            drafts, home_error = drafting.result()
            failed = self._asked_of_home() - drafts.keys()
            self._known_at_home -= failed
            self._log_home(failed, home_error)
            self.scheduler.drafted(drafts, _now_ms())
        return has_verdict

    def _asked_of_home(self) -> frozenset[int]:
        assert self.scheduler.home is not None
        return self.scheduler.home.asked

    def _log_home(self, failed: frozenset[int], error: BaseException | None) -> None:
        """Once for each request: a home drafter may fail in every round."""
        new = failed & self.scheduler.sequences.keys() - self._failed_at_home
        if new:
            logger.error("home drafter: a draft failed", exc_info=error)
        self._failed_at_home |= new

    def _add(self, events: list[News], error: BaseException | None = None) -> None:
        self._undelivered += [(event, error) for event in events]

    def _deliver(self) -> None:
        """Tell the streams what has happened; a stop string in their text ends a request."""
        events, self._undelivered = self._undelivered, []
        for event, error in events:
            stream = self._streams.get(event.request)
            match event:
                case Committed() if stream is not None:
                    if stream.put(_tokens_of(event)):
                        self._end(stream, "stop")
                        self._add(self.scheduler.stop(event.request, _now_ms()))
                        self._wake.set()
                case Finished(number, reason):
                    self._failed_at_home.discard(number)
                    if stream is not None:
                        self._end(stream, reason, error)
                    if self._home is not None and number in self._known_at_home:
                        self._known_at_home.discard(number)
                        self._home_worker.submit(_close, self._home, number)

    def _end(
        self, stream: Stream, reason: FinishReason, error: BaseException | None = None
    ) -> None:
        del self._streams[stream.number]
        stream.end(reason, error)

    def _submit(
        self, worker: ThreadPoolExecutor, call: Callable[..., T], *args: Any
    ) -> "asyncio.Future[T]":
        job = asyncio.get_running_loop().run_in_executor(worker, call, *args)
        job.add_done_callback(lambda _: self._wake.set())
        return job


def _tokens_of(event: Committed) -> Iterator[Token]:
    # The verdict may go on after the text's end.
    logprobs = event.verdict.logprobs or (None,) * len(event.token_ids)
    return map(Token, event.token_ids, event.sources, logprobs)


def _launch(runner: PassRunner, plan: PassPlan) -> float:
    """In the worker's thread: when it took the pass up, after whatever was before it."""
    began_ms = _now_ms()
    runner.launch(plan)
    return began_ms


def _result(runner: PassRunner) -> tuple[list[Verdict], float]:
    """In the worker's thread, which knows when the pass ended; the loop may be late."""
    verdicts = runner.result()
    return verdicts, _now_ms()


def _draft(home: BatchDrafter, opens: list[Open], jobs: tuple[HomeJob, ...]) -> _Drafted:
    """In the worker's thread. What failed is closed: nobody knows what home still knows of it."""
    found: dict[int, list[Draft] | None] = {}
    failure: Exception | None = None
    try:
        for message in opens:
            home.open(message)
        found = home.draft_all([(job.request, job.token_ids, job.known) for job in jobs])
    except Exception as error:
        failure = error
    for job in jobs:
        if job.request not in found:
            _close(home, job.request)
    return found, failure


def _close(home: BatchDrafter, request: int) -> None:
    try:
        home.close(request)
    except Exception:
        logger.exception("home drafter: a close failed")


def _now_ms() -> float:
    return time.monotonic() * 1000
