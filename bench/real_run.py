"""Real processes at stated paces: an engine here, drafters and their emulated links elsewhere."""

import asyncio
import time
from collections.abc import AsyncIterator, Callable, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from pathlib import Path

from drafter.home import HomeDrafter
from wanspec_kernels.assembly import Pair
from wanspec_kernels.demo.pacing import PacedRunner
from wanspec_kernels.demo.processes import RemoteDrafter
from wanspec_kernels.drafts.exchange import Exchange, ExchangeConfig
from wanspec_kernels.engine.engine import BatchDrafter, Engine
from wanspec_kernels.engine.events import FinishReason
from wanspec_kernels.engine.pages import PageBook
from wanspec_kernels.engine.request import Limits, Request
from wanspec_kernels.engine.runner import Runner
from wanspec_kernels.engine.scheduler import Scheduler
from wanspec_kernels.engine.statistics import Statistics
from wanspec_kernels.serving.drafters import DrafterSocket, now_ms
from wanspec_kernels.wire import Draft, Open
from wanspec_kernels.wire.keys import AllowList, load_secret

READY_S = 60.0


@dataclass(frozen=True, slots=True)
class Paces:
    """ms of a pass, whatever is in it; each has to be longer than the pass really takes."""

    target_ms: float
    home_ms: float
    remote_ms: float


class PacedHome:
    """A drafter at home whose passes take `pass_ms` each."""

    def __init__(self, home: BatchDrafter, pass_ms: float) -> None:
        self._home, self._pass_s = home, pass_ms / 1e3

    def open(self, request: Open) -> None:
        self._home.open(request)

    def draft_all(
        self, jobs: list[tuple[int, tuple[int, ...], Draft | None]]
    ) -> dict[int, list[Draft] | None]:
        ends = time.perf_counter() + self._pass_s
        drafts = self._home.draft_all(jobs)
        time.sleep(max(0.0, ends - time.perf_counter()))
        return drafts

    def close(self, request: int) -> None:
        self._home.close(request)


@dataclass
class Bench:
    """What every run shares: the pair, its paces, and the drafters' keys in a folder."""

    pair: Pair
    paces: Paces
    folder: Path
    exchange: ExchangeConfig = field(default_factory=ExchangeConfig)

    @asynccontextmanager
    async def engine(
        self, bind: str | None, *, home: bool = True
    ) -> AsyncIterator["RunningEngine"]:
        """A verifier process's worth of state, all of it new; no drafter dials without `bind`."""
        assert self.pair.home is not None
        target = self.pair.target
        exchange = Exchange(
            vocabulary=target.vocabulary,
            vocab_size=target.vocab_size,
            now=now_ms(),
            config=self.exchange,
        )
        drafters = None
        if bind is not None:
            drafters = DrafterSocket(
                bind,
                exchange=exchange,
                secret=load_secret(self.folder / "verifier.secret"),
                allowed=AllowList(self.folder / "allowed"),
            )
        scheduler = Scheduler(
            vocab_size=target.vocab_size,
            pages=PageBook(target.cache.num_pages, target.cache.page_size),
            limits=Limits(max_rows=64, max_length=target.max_length),
            exchange=exchange,
            home=home,
        )
        at_home = PacedHome(HomeDrafter(self.pair.home), self.paces.home_ms) if home else None
        runner = PacedRunner(Runner(target), self.paces.target_ms)
        engine = Engine(scheduler, runner, home=at_home, drafters=drafters)
        async with engine:
            yield RunningEngine(engine, exchange, drafters.address if drafters else "")


@dataclass(frozen=True, slots=True)
class Decoded:
    """What became of a request."""

    token_ids: list[int]
    statistics: Statistics
    reason: FinishReason | None

    @property
    def elapsed_ms(self) -> float:
        """From submission to the last token."""
        assert self.statistics.last_token_ms is not None
        return self.statistics.last_token_ms - self.statistics.submitted_ms


@dataclass(frozen=True, slots=True)
class RunningEngine:
    engine: Engine
    exchange: Exchange
    address: str  # where drafters dial

    async def decode(self, request: Request) -> Decoded:
        stream = self.engine.submit(request)
        try:
            token_ids = [token.token_id async for token in stream]
        except asyncio.CancelledError:
            stream.cancel()
            raise
        return Decoded(token_ids, stream.statistics, stream.finish_reason)

    def welcomed(self, count: int) -> bool:
        """So many drafters have joined, and how far away they are is known."""
        return sum(s.round_trip_ms is not None for s in self.exchange.sessions) >= count


async def until(condition: Callable[[], bool], drafters: Sequence[RemoteDrafter] = ()) -> None:
    """Raises RuntimeError if it takes too long, or a drafter has ended."""
    gives_up = time.monotonic() + READY_S
    while not condition():
        for drafter in drafters:
            if reason := drafter.ended():
                raise RuntimeError(reason)
        if time.monotonic() > gives_up:
            raise RuntimeError(f"gave up after {READY_S:g} s")
        await asyncio.sleep(0.01)
