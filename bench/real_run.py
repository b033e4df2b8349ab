"""Real processes at stated paces: a verifier here, a drafter and its emulated link elsewhere."""

import asyncio
import time
from collections.abc import AsyncIterator, Callable, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass
from pathlib import Path

from drafter.home import HomeDrafter
from wanspec_kernels.assembly import Pair
from wanspec_kernels.control.policies import ExpectedGain
from wanspec_kernels.control.policy import Policy
from wanspec_kernels.demo.processes import RemoteDrafter
from wanspec_kernels.engine.interfaces import TargetModel
from wanspec_kernels.engine.request import Limits
from wanspec_kernels.sampling import SamplingParams
from wanspec_kernels.serving.service import ServiceConfig, VerifierService
from wanspec_kernels.tree import HostTree
from wanspec_kernels.wire import Draft, Open
from wanspec_kernels.wire.keys import AllowList, load_secret

READY_S = 60.0


@dataclass(frozen=True, slots=True)
class Paces:
    """ms of a pass; each has to be longer than the pass really takes."""

    target_ms: float
    home_ms: float
    remote_ms: float


class PacedTarget:
    """A target whose pass takes at least `pass_ms`, as that of a larger model would."""

    def __init__(self, target: TargetModel, pass_ms: float) -> None:
        self._target = target
        self._pass_s = pass_ms / 1000

    def start(self, request: int, token_ids: Sequence[int], sampling: SamplingParams) -> None:
        self._target.start(request, token_ids, sampling)

    def verify(self, request: int, tree: HostTree) -> tuple[list[int], list[int]]:
        ends = time.perf_counter() + self._pass_s
        verdict = self._target.verify(request, tree)
        time.sleep(max(0.0, ends - time.perf_counter()))
        return verdict

    def finish(self, request: int) -> None:
        self._target.finish(request)


class PacedHome:
    """A drafter at home whose passes take `pass_ms` each."""

    def __init__(self, home: HomeDrafter, pass_ms: float) -> None:
        self._home, self._pass_s = home, pass_ms / 1e3
        self.late = 0

    def open(self, request: Open) -> None:
        self._home.open(request)

    def draft(
        self, request: int, token_ids: Sequence[int], passes: int, known: Draft | None
    ) -> list[Draft]:
        ends = time.perf_counter() + passes * self._pass_s
        drafts = self._home.draft(request, token_ids, passes, known)
        left_s = ends - time.perf_counter()
        self.late += left_s < 0
        time.sleep(max(0.0, left_s))
        return drafts

    def close(self, request: int) -> None:
        self._home.close(request)


@dataclass
class Bench:
    """What every run shares: the pair, its paces, and the drafters' keys in a folder."""

    pair: Pair
    paces: Paces
    folder: Path

    @asynccontextmanager
    async def service(
        self, bind: str | None, *, home: bool = True, policy: Policy | None = None
    ) -> AsyncIterator[VerifierService]:
        """A verifier process's worth of state, all of it new; `bind` None: co-located."""
        assert self.pair.home is not None
        drafter = HomeDrafter(self.pair.home)
        service = VerifierService(
            PacedTarget(self.pair.decoder(), self.paces.target_ms),
            vocabulary=self.pair.target.vocabulary,
            vocab_size=self.pair.target.vocab_size,
            bind=bind,
            secret=load_secret(self.folder / "verifier.secret"),
            allowed=AllowList(self.folder / "allowed"),
            home=PacedHome(drafter, self.paces.home_ms) if home else None,
            config=ServiceConfig(
                policy=policy or ExpectedGain(),
                limits=Limits(max_rows=64, max_length=self.pair.target.max_length),
            ),
        )
        async with service:
            yield service


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


def welcomed(service: VerifierService, count: int) -> Callable[[], bool]:
    """So many drafters have joined, and how far away they are is known."""
    return lambda: sum(s.round_trip_ms is not None for s in service.sessions) >= count
