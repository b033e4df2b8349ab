"""Waiting for drafters, out loud: who has joined, who was refused and why, what is missing."""

import asyncio
from collections.abc import Callable, Sequence
from contextlib import suppress

from wanspec_kernels.drafts.exchange import Exchange
from wanspec_kernels.drafts.refusals import Refusal

SAY_EVERY_S = 10.0


async def wait_for_drafters(
    exchange: Exchange,
    address: str,
    count: int,
    say: Callable[[str], None],
    *,
    say_every_s: float = SAY_EVERY_S,
) -> None:
    """Return once `count` drafters are ready. A refusal is told at once, the rest now and then.

    The exchange's events have to come on the loop's thread, as a `DrafterSocket` sees to.
    """
    clock = asyncio.get_running_loop().time
    told: set[tuple[str, str]] = set()
    news = asyncio.Event()
    unsubscribe = exchange.events.subscribe(lambda _: news.set())
    say_at = clock()
    try:
        while len(ready := _names(exchange)) < count:
            refusals = exchange.refusals.latest()
            for refusal in refusals:
                if (refusal.who, refusal.reason) not in told:
                    told.add((refusal.who, refusal.reason))
                    say(f"refused {refusal.who}: {refusal.reason}")
            if clock() >= say_at:
                say(_state(address, count, ready, refusals))
                say_at = clock() + say_every_s
            news.clear()
            with suppress(TimeoutError):
                async with asyncio.timeout_at(say_at):
                    await news.wait()
    finally:
        unsubscribe()


def _names(exchange: Exchange) -> list[str]:
    return [exchange.name_of(session.key) for session in exchange.sessions if session.ready]


def _state(address: str, count: int, ready: Sequence[str], refusals: Sequence[Refusal]) -> str:
    joined = f"{len(ready)} joined ({', '.join(ready)})" if ready else "nobody has joined yet"
    times = sum(refusal.count for refusal in refusals)
    if times:
        latest = refusals[-1]
        joined += f"; {times} attempts were refused, the last of {latest.who}: {latest.reason}"
    elif not ready:
        joined += "; nobody has knocked: can drafters reach this address through the firewall?"
    return f"waiting for {count} drafters at {address}: {joined}"
