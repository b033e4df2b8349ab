"""VerifierService: generations and drafter sessions, driven over ZeroMQ."""

import asyncio
import logging
from collections import Counter
from collections.abc import Callable, Collection, Coroutine, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from dataclasses import dataclass, field
from itertools import count
from typing import Any, Literal, TypeVar

from wanspec_kernels.control.estimates import Estimates
from wanspec_kernels.control.policies import ExpectedGain
from wanspec_kernels.control.policy import Policy
from wanspec_kernels.control.row_budget import RowBudget
from wanspec_kernels.drafts.refusals import Refusal
from wanspec_kernels.drafts.session import Session
from wanspec_kernels.engine.actions import Committed, DraftAtHome, Finished, StartPass
from wanspec_kernels.engine.generation import Generation
from wanspec_kernels.engine.interfaces import HomeDrafter, TargetModel
from wanspec_kernels.engine.request import Limits, Request
from wanspec_kernels.engine.runner import sampling_params
from wanspec_kernels.engine.statistics import Statistics
from wanspec_kernels.serving.endpoint import Endpoint, EndpointConfig, now_ms
from wanspec_kernels.wire import MAX_PROMPT_TOKENS, MAX_TREE_NODES, Draft
from wanspec_kernels.wire.keys import AllowList, Secret
from wanspec_kernels.wire.sampling import Sampling

logger = logging.getLogger(__name__)

HOME_CLOSES_S = 1.0  # what a home drafter at work is given to end when the service closes

T = TypeVar("T")
OnTokens = Callable[[tuple[int, ...], tuple[int | None, ...]], None]


@dataclass(frozen=True, slots=True)
class ServiceConfig:
    endpoint: EndpointConfig = field(default_factory=EndpointConfig)
    policy: Policy = field(default_factory=ExpectedGain)
    limits: Limits = field(default_factory=Limits)


@dataclass(frozen=True, slots=True)
class GenerationResult:
    token_ids: list[int]  # output
    sources: list[int | None]  # of each: 0 home, a remote's number, or None: the target's own
    source_names: dict[int, str]  # of the remotes that drafted for this request
    finish_reason: Literal["length", "stop"]
    statistics: Statistics
    prompt_ms: float  # until the prompt was read
    elapsed_ms: float  # that included
    wire_bytes_sent: int
    wire_bytes_received: int

    @property
    def wire_bytes_per_token(self) -> float:
        return (self.wire_bytes_sent + self.wire_bytes_received) / max(1, len(self.token_ids))


class VerifierService:
    """Verifies what enrolled drafters send and generates text, one request at a time.

    The socket is served while the target runs: passes and home drafting block a worker thread each.
    A home drafter that hangs holds up no request: what comes after it waits in its thread.
    Use as ``async with VerifierService(...) as service: await service.generate(...)``.
    Without `bind` there is no socket at all, and `secret` and `allowed` are not needed.
    """

    def __init__(
        self,
        target: TargetModel,
        *,
        vocabulary: bytes,
        vocab_size: int,
        bind: str | None = None,
        secret: Secret | None = None,
        allowed: AllowList | None = None,
        home: HomeDrafter | None = None,
        config: ServiceConfig | None = None,
    ) -> None:
        self.config = config or ServiceConfig()
        self._target, self._home = target, home
        self._vocab_size = vocab_size
        self._estimates = Estimates()
        self._rows = RowBudget(self.config.limits.max_rows)
        self._request_numbers = count(1)
        self._one_at_a_time = asyncio.Lock()
        self._wake = asyncio.Event()
        self._target_worker = _Worker("wanspec-target", self._wake.set)
        self._home_worker = _Worker("wanspec-home", self._wake.set)
        self._callers: set[asyncio.Task[Any]] = set()
        self._closed = False
        self._endpoint: Endpoint | None = None
        if bind is not None:
            if secret is None or allowed is None:
                raise ValueError("bind: expected a secret key and an allow-list with it, got none")
            self._endpoint = Endpoint(
                bind,
                secret=secret,
                allowed=allowed,
                vocabulary=vocabulary,
                config=self.config.endpoint,
                on_offer=self._wake.set,
                on_leave=self._estimates.sources.retire,
            )

    @property
    def sessions(self) -> list[Session]:
        """Connections that said a valid HELLO."""
        return self._endpoint.sessions if self._endpoint else []

    @property
    def refusals(self) -> list[Refusal]:
        """Who was not let in of late, and why."""
        return self._endpoint.refusals.latest() if self._endpoint else []

    @property
    def source_names(self) -> dict[int, str]:
        """Names of the remotes asked to draft for the running request, or the last one."""
        return self._endpoint.source_names if self._endpoint else {}

    @property
    def address(self) -> str:
        """Where drafters dial, once started."""
        return self._endpoint.address if self._endpoint else ""

    @property
    def counters(self) -> Counter[str]:
        return self._endpoint.counters if self._endpoint else Counter()

    async def __aenter__(self) -> "VerifierService":
        await self.start()
        return self

    async def __aexit__(self, *_: object) -> None:
        await self.close()

    async def start(self) -> None:
        if self._endpoint is not None:
            await self._endpoint.start()

    async def close(self) -> None:
        """Cancel all generations, then end the sockets and the workers."""
        self._closed = True
        for caller in self._callers:
            caller.cancel()
        async with self._one_at_a_time:  # the running one lets go of the target
            pass
        if self._endpoint is not None:
            await self._endpoint.close()
        await self._target_worker.close(None)
        await self._home_worker.close(HOME_CLOSES_S)

    async def generate(
        self,
        token_ids: Sequence[int],
        *,
        max_tokens: int,
        stop_token_ids: Collection[int] = (),
        sampling: Sampling | None = None,
        on_tokens: OnTokens | None = None,
    ) -> GenerationResult:
        """Continue a prompt; fields as in `Request`. `on_tokens` gets tokens and their sources.

        Raises:
            ValueError: the prompt or a sampling value is out of range.
            RuntimeError: the service is closed.
        """
        if self._closed:
            raise RuntimeError("generate: expected an open service, got a closed one")
        request = Request(
            tuple(token_ids), max_tokens, sampling or Sampling(), frozenset(stop_token_ids)
        )
        caller = asyncio.current_task()
        assert caller is not None
        self._callers.add(caller)
        try:
            async with self._one_at_a_time:
                return await self._generate(request, on_tokens)
        finally:
            self._callers.discard(caller)

    async def _generate(self, request: Request, on_tokens: OnTokens | None) -> GenerationResult:
        number = next(self._request_numbers)
        generation = Generation(
            request,
            number=number,
            vocab_size=self._vocab_size,
            policy=self.config.policy,
            estimates=self._estimates,
            rows=self._rows,
            limits=self.config.limits,
            home=self._home is not None,
        )
        home = _HomeRequest(self._home, generation)
        began_ms = now_ms()
        before = self.counters.copy()
        started = False
        try:
            if self._endpoint is not None:
                self._endpoint.attach(generation)  # drafters read the prompt while the target does
                self._note_length(generation, len(request.token_ids))
            started = True
            await asyncio.shield(
                self._target_worker.submit(
                    self._target.start,
                    number,
                    request.token_ids,
                    sampling_params([request.sampling], "cpu"),
                )
            )
            prompt_ms = now_ms() - began_ms
            await self._drive(generation, home, on_tokens)
        finally:
            if self._endpoint is not None:
                self._endpoint.detach(generation.finish_reason or "cancelled")
            if started:
                await _to_its_end(self._release(number, home))
        assert generation.finish_reason is not None
        return GenerationResult(
            generation.output_ids,
            generation.output_sources,
            self.source_names,
            generation.finish_reason,
            generation.statistics,
            prompt_ms,
            now_ms() - began_ms,
            self.counters["bytes_sent"] - before["bytes_sent"],
            self.counters["bytes_received"] - before["bytes_received"],
        )

    async def _drive(
        self, generation: Generation, home: "_HomeRequest", on_tokens: OnTokens | None
    ) -> None:
        passing: asyncio.Future[tuple[list[int], list[int]]] | None = None
        drafting: asyncio.Future[list[Draft] | None] | None = None
        actions = generation.start(now_ms())
        while True:
            for action in actions:
                match action:
                    case StartPass(tree):
                        passing = self._target_worker.submit(
                            self._target.verify, generation.number, tree
                        )
                    case DraftAtHome(token_ids, passes, known):
                        drafting = self._home_worker.submit(home.draft, token_ids, passes, known)
                    case Committed(token_ids, sources):
                        if self._endpoint is not None:
                            self._endpoint.update_sessions()
                            self._note_length(generation, len(token_ids))
                        if on_tokens is not None:
                            on_tokens(token_ids, sources)
                    case Finished():
                        return
            jobs = [job for job in (passing, drafting) if job is not None]
            await self._wait(jobs, generation.wake_at_ms)
            actions = []
            if passing is not None and passing.done():
                verdict, passing = passing.result(), None
                actions += generation.pass_finished(*verdict, now_ms())
            if drafting is not None and drafting.done():
                drafts, drafting = drafting.result(), None
                actions += generation.home_finished(drafts, now_ms())
            if not actions:
                actions = generation.tick(now_ms())

    def _note_length(self, generation: Generation, grown: int) -> None:
        """Say it when these last tokens have made the text too long for an OPEN."""
        length = generation.pool.length
        if length - grown <= MAX_PROMPT_TOKENS < length:
            logger.warning(
                "request %d: its text has %d tokens and OPEN holds %d at most: no remote drafter is"
                " asked that does not follow it already",
                generation.number,
                length,
                MAX_PROMPT_TOKENS,
            )

    async def _wait(self, jobs: list["asyncio.Future[Any]"], wake_at_ms: float | None) -> None:
        """Until a job has ended, a draft has come or the time is up."""
        if not any(job.done() for job in jobs):
            timeout_s = None if wake_at_ms is None else max(0.0, wake_at_ms - now_ms()) / 1000
            # Not asyncio.wait_for, which in Python 3.11 loses a cancellation that follows a wake.
            with suppress(TimeoutError):
                async with asyncio.timeout(timeout_s):
                    await self._wake.wait()
        self._wake.clear()

    async def _release(self, request: int, home: "_HomeRequest") -> None:
        """Let target and home drafter forget the request once they are free."""
        await self._target_worker.idle()
        self._home_worker.submit(home.close)  # in its turn
        await self._target_worker.submit(self._target.finish, request)


async def _to_its_end(work: Coroutine[Any, Any, None]) -> None:
    """Await all of it, whoever cancels us meanwhile; only then are we cancelled."""
    task = asyncio.create_task(work)
    cancelled: asyncio.CancelledError | None = None
    while not task.done():
        try:
            await asyncio.wait([task])
        except asyncio.CancelledError as error:
            cancelled = error
    if cancelled is not None:
        raise cancelled from task.exception()
    task.result()


class _Worker:
    """A thread, and the blocking calls that run or wait there."""

    def __init__(self, name: str, on_end: Callable[[], None]) -> None:
        self._executor = ThreadPoolExecutor(1, name)
        self._jobs: set[asyncio.Future[Any]] = set()
        self._on_end = on_end

    def submit(self, call: Callable[..., T], *args: object) -> "asyncio.Future[T]":
        job = asyncio.get_running_loop().run_in_executor(self._executor, call, *args)
        self._jobs.add(job)
        job.add_done_callback(self._ended)
        return job

    def _ended(self, job: "asyncio.Future[Any]") -> None:
        self._jobs.discard(job)
        self._on_end()

    async def idle(self, timeout_s: float | None = None) -> None:
        """Until all calls have ended, and what they raised is passed over; or the time is up."""
        if self._jobs:
            done, _ = await asyncio.wait(self._jobs, timeout=timeout_s)
            for job in done:
                job.exception()

    async def close(self, timeout_s: float | None) -> None:
        await self.idle(timeout_s)
        self._executor.shutdown(wait=False, cancel_futures=True)


class _HomeRequest:
    """The home drafter's view of one request; called in its worker thread."""

    def __init__(self, home: HomeDrafter | None, generation: Generation) -> None:
        self._home = home
        self._generation = generation
        self._opened = False
        self._num_failures = 0

    def draft(
        self, token_ids: tuple[int, ...], passes: int, known: Draft | None
    ) -> list[Draft] | None:
        """None: it failed. It is opened anew next time, since nobody knows what it still knows."""
        assert self._home is not None
        limits = self._generation.limits
        try:
            if not self._opened:
                max_nodes = min(limits.max_source_nodes, MAX_TREE_NODES)
                self._home.open(self._generation.open_message(max_nodes, home=True))
                self._opened = True
            return self._home.draft(self._generation.number, token_ids, passes, known)
        except Exception as error:
            self._num_failures += 1
            if self._num_failures == 1:  # the statistics count the others
                logger.exception("home drafter: a draft failed")
            else:
                logger.debug("home drafter: failure %d: %s", self._num_failures, error)
            self.close()
            return None

    def close(self) -> None:
        if self._home is None or not self._opened:
            return
        self._opened = False
        try:
            self._home.close(self._generation.number)
        except Exception:
            logger.exception("home drafter: a close failed")
