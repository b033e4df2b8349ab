"""The demo's two runs: the target alone, then the same prompts with remote drafters."""

import asyncio
import tempfile
import time
from collections.abc import Callable, Sequence
from contextlib import ExitStack
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch

from wanspec_kernels.assembly import Pair
from wanspec_kernels.demo.observer import HOME_NAME, Observer, Prompt
from wanspec_kernels.demo.pacing import PacedRunner
from wanspec_kernels.demo.processes import EmulatedLink, RemoteDrafter, make_keys
from wanspec_kernels.demo.report import Decoded, report_of
from wanspec_kernels.drafts.exchange import Exchange
from wanspec_kernels.drafts.pool import HOME
from wanspec_kernels.engine.engine import Engine
from wanspec_kernels.engine.request import Request
from wanspec_kernels.engine.runner import Runner
from wanspec_kernels.engine.scheduler import SchedulerLimits
from wanspec_kernels.engine.stream import Stream
from wanspec_kernels.wire.keys import AllowList, load_secret
from wanspec_kernels.wire.sampling import Sampling

READY_S = 120.0
LOOK_EVERY_S = 0.05
MAX_ROWS = 32  # of one text's tree
# All prompts are read in the first pass, so that the time after it is that of decoding.
BATCH = SchedulerLimits(chunk_rows=1 << 14)
MAX_NODES = 160  # of a drafter's tree
BANDWIDTH_MBIT = 50.0
JITTER_SHARE = 0.05  # of the one-way delay
# Each engine decodes this much of other texts first, so that no run pays for what is done once.
WARM_UP, WARM_UP_TOKENS = "def warm_up(self):\n", 8


@dataclass(frozen=True, slots=True)
class Settings:
    prompts: tuple[Prompt, ...]
    model: str
    draft: str
    sampling: Sampling
    max_tokens: int
    round_trips_ms: tuple[float, ...]  # of the drafters' links
    target_pass_ms: float
    device: str


def run(settings: Settings, observe: Callable[[], Observer]) -> dict[str, Any]:
    """Make both runs and return the report, whose keys are `wanspec demo --json`'s."""
    return asyncio.run(_run(settings, observe))


async def _run(settings: Settings, observe: Callable[[], Observer]) -> dict[str, Any]:
    # Threads that wait for each other spin, and the drafters on this machine need the other cores.
    torch.set_num_threads(1)
    # In bf16 a GPU's logits depend on how many rows a pass has, so near-ties fall now this way, now
    # that; the demo compares texts.
    pair = Pair.load(settings.model, settings.draft, settings.device, torch.float32)
    observer = observe()  # once the models are there
    runner = PacedRunner(Runner(pair.target), settings.target_pass_ms)
    requests = [_request(pair, settings, prompt.text, prompt.seed) for prompt in settings.prompts]
    with ExitStack() as stack:
        folder = Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="wanspec-demo-")))
        allowed = make_keys(folder, len(settings.round_trips_ms))
        engine = pair.engine(
            bind="tcp://127.0.0.1:*",
            secret=load_secret(folder / "verifier.secret"),
            allowed=AllowList(allowed),
            max_rows=MAX_ROWS,
            batch=BATCH,
            runner=runner,
        )
        async with engine:
            drafters = []
            for number, round_trip_ms in enumerate(settings.round_trips_ms, start=1):
                drafter = RemoteDrafter.start(
                    number,
                    folder,
                    engine.address,
                    EmulatedLink(round_trip_ms, JITTER_SHARE * round_trip_ms / 2, BANDWIDTH_MBIT),
                    [
                        *("--model", settings.draft),
                        *("--device", settings.device),
                        *("--max-nodes", str(MAX_NODES)),
                    ],
                )
                stack.callback(drafter.stop)
                drafters.append(drafter)
                observer.progress(
                    f"{drafter.name}: process {drafter.process.pid}, {round_trip_ms:g} ms away"
                )
            exchange = engine.scheduler.exchange
            await _until_ready(exchange, drafters)
            observer.progress("the target alone …")
            # No socket and nobody at home: one pass, one token of each text. Its pages are those
            # of the engine above, which has not used any yet.
            async with pair.engine(home=False, batch=BATCH, runner=runner) as alone:
                await _warm_up(alone, pair, settings)
                baseline = await _decode(alone, requests)
            observer.progress("with remote drafters …")
            await _warm_up(engine, pair, settings)
            foreign = exchange.counters["drafts_without_request"]
            results = await _decode(engine, requests, observer, settings.prompts)
            foreign = exchange.counters["drafts_without_request"] - foreign
            measured = {
                exchange.name_of(session.key): session.round_trip_ms
                for session in exchange.sessions
            }
            round_trips = [measured.get(drafter.name) for drafter in drafters]
    return report_of(settings.prompts, results, baseline, round_trips, num_foreign=foreign)


def _request(pair: Pair, settings: Settings, text: str, seed: int) -> Request:
    return Request(
        tuple(pair.target.tokenizer(text)["input_ids"]),
        settings.max_tokens,
        replace(settings.sampling, seed=seed),
        stop_token_ids=pair.target.end_token_ids,
    )


async def _warm_up(engine: Engine, pair: Pair, settings: Settings) -> None:
    short = replace(settings, max_tokens=WARM_UP_TOKENS)
    await _decode(engine, [_request(pair, short, WARM_UP, n) for n in range(len(settings.prompts))])


async def _decode(
    engine: Engine,
    requests: Sequence[Request],
    observer: Observer | None = None,
    prompts: Sequence[Prompt] = (),
) -> list[Decoded]:
    """All at once."""
    if observer is not None:
        observer.begin(prompts)
    streams = [engine.submit(request) for request in requests]
    reading = [_read(number, stream, observer) for number, stream in enumerate(streams)]
    try:
        return await asyncio.gather(*reading)
    finally:
        if observer is not None:
            observer.end()


async def _read(number: int, stream: Stream, observer: Observer | None) -> Decoded:
    token_ids = []
    async for token in stream:
        token_ids.append(token.token_id)
        if observer is not None:
            names = {HOME: HOME_NAME, **stream.source_names}
            drafted_by = None if token.source is None else names.get(token.source)
            observer.token(number, token.text or "", drafted_by)
    if observer is not None:
        observer.text_ended(number, stream.statistics)
    return Decoded(tuple(token_ids), stream.statistics)


async def _until_ready(exchange: Exchange, drafters: Sequence[RemoteDrafter]) -> None:
    """Wait until every drafter has been welcomed and measured once.

    Raises:
        RuntimeError: a drafter ended, or it took too long.
    """
    gives_up = time.monotonic() + READY_S
    while sum(s.round_trip_ms is not None for s in exchange.sessions) < len(drafters):
        for drafter in drafters:
            reason = drafter.ended()
            if reason is not None:
                raise RuntimeError(reason)
        if time.monotonic() > gives_up:
            raise RuntimeError(f"the drafters did not dial in within {READY_S:g} s")
        await asyncio.sleep(LOOK_EVERY_S)
