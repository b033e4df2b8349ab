"""Waiting for drafters, out loud: who has joined, who was refused and why, what is missing."""

import asyncio
from collections.abc import Callable, Sequence
from typing import Protocol

from wanspec_kernels.drafts.refusals import Refusal
from wanspec_kernels.drafts.session import Session
from wanspec_kernels.wire.keys import AllowList

SAY_EVERY_S = 10.0
LOOK_EVERY_S = 0.05


class Service(Protocol):
    """What is asked of a `VerifierService`."""

    @property
    def sessions(self) -> list[Session]: ...
    @property
    def refusals(self) -> list[Refusal]: ...
    @property
    def address(self) -> str: ...


async def wait_for_drafters(
    service: Service,
    count: int,
    allowed: AllowList,
    say: Callable[[str], None],
    *,
    say_every_s: float = SAY_EVERY_S,
) -> None:
    """Return once `count` drafters are ready. A refusal is told at once, the rest now and then."""
    clock = asyncio.get_running_loop().time
    told: set[tuple[str, str]] = set()
    say_at = clock()
    while len(ready := _names(service, allowed)) < count:
        refusals = service.refusals
        for refusal in refusals:
            if (refusal.who, refusal.reason) not in told:
                told.add((refusal.who, refusal.reason))
                say(f"refused {refusal.who}: {refusal.reason}")
        if clock() >= say_at:
            say(_state(service.address, count, ready, refusals))
            say_at = clock() + say_every_s
        await asyncio.sleep(LOOK_EVERY_S)


def _names(service: Service, allowed: AllowList) -> list[str]:
    return [allowed.name_of(s.key.encode()) or s.key for s in service.sessions if s.ready]


def _state(address: str, count: int, ready: Sequence[str], refusals: Sequence[Refusal]) -> str:
    joined = f"{len(ready)} joined ({', '.join(ready)})" if ready else "nobody has joined yet"
    times = sum(refusal.count for refusal in refusals)
    if times:
        latest = refusals[-1]
        joined += f"; {times} attempts were refused, the last of {latest.who}: {latest.reason}"
    elif not ready:
        joined += "; nobody has knocked: can drafters reach this address through the firewall?"
    return f"waiting for {count} drafters at {address}: {joined}"
