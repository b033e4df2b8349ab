"""Faults: schedules in real processes, and random ones in virtual time.

python -m bench.faults           measure: bench/results/faults.json
python -m bench.faults --draw    the tables, into docs/wide-area.md

In real processes, `wanspec-drafter` dials through the link emulator, and several requests are
decoded at once. Its passes and the engine's are paced, so that what a fault costs is not the
machine's noise. Each text, and its time, is held against the same requests without a remote
(co-located speculation) and without any draft (plain decoding), whose texts are the target's own.
"""

import asyncio
import json
import tempfile
import time
from collections.abc import Callable, Sequence
from contextlib import AsyncExitStack
from dataclasses import asdict, dataclass
from importlib.resources import files
from pathlib import Path
from statistics import median
from typing import Annotated, Any

import torch
import typer

from bench import faults_report, virtual_faults
from bench.fault_schedules import SCHEDULES, Fault, Scene
from bench.machine import describe
from bench.real_run import Bench, Paces, RunningEngine, until
from wanspec_kernels.assembly import Pair
from wanspec_kernels.demo.processes import EmulatedLink, RemoteDrafter, make_keys
from wanspec_kernels.drafts.pool import HOME, Kind
from wanspec_kernels.engine.events import Committed
from wanspec_kernels.engine.request import Request
from wanspec_kernels.engine.stream import Stream
from wanspec_kernels.events import Asked, Event, Offered
from wanspec_kernels.wire.sampling import Sampling

RESULTS = Path("bench/results/faults.json")
PACES = Paces(100.0, 10.0, 14.0)
LINK = EmulatedLink(60.0, 3.0, 50.0)
REQUESTS = 4  # at once
TEMPERATURE = 0.6
STRIKES_AFTER = 0.2  # of all tokens
# Of the target: what a round may wait for drafts that are due, and for a pass at home that hangs.
BOUNDED_WAIT_PASSES = 2.5

Heard = tuple[int, int, int]  # which of the texts, by which engine, of which source


class Record:
    """What the events of a run say; times in s. A restarted verifier is another engine."""

    def __init__(
        self,
        prompts: Sequence[Sequence[int]],
        on_commit: Callable[[], None],
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self.lengths = [len(prompt) for prompt in prompts]  # of the texts, in order
        self.num_engines = 0
        self.remote_tokens = [0, 0]  # before all was whole again, and after
        self.commits_after = 0
        self.mended: float | None = None
        self._mended_lengths: list[int] = []
        self._asked: dict[Heard, float] = {}
        self._knows: dict[int, float] = {}  # by text: s from being mended, or asked, to knowing it
        self._on_commit, self._clock = on_commit, clock

    @property
    def num_tokens(self) -> int:
        return sum(self.lengths)

    def mends(self) -> None:
        self.mended = self._clock()
        self._mended_lengths = list(self.lengths)
        self._knows.clear()

    @property
    def recovery_ms(self) -> float | None:
        """Until a remote draft knows a text as it was when all was whole again; the longest.

        From then on, or from when OPEN was sent, where one was needed.
        """
        return max((1e3 * s for s in self._knows.values()), default=None)

    def listen(self, numbers: dict[int, int]) -> Callable[[Event], None]:
        """A subscriber for the next engine, in which the texts are requests of these numbers."""
        self.num_engines += 1
        engine = self.num_engines

        def hear(event: Event) -> None:
            match event:
                case Committed(request, token_ids, sources):
                    self.lengths[numbers[request]] += len(token_ids)
                    remote = sum(source not in (None, HOME) for source in sources)
                    self.remote_tokens[self.mended is not None] += remote
                    self.commits_after += self.mended is not None
                    self._on_commit()
                case Asked(request, source) if request in numbers:
                    self._asked[numbers[request], engine, source] = self._clock()
                case Offered(source, draft, outcome) if outcome.kind is not Kind.FOREIGN:
                    text = numbers[draft.request]
                    self._drafted((text, engine, source), draft.base_length)

        return hear

    def _drafted(self, heard: Heard, base_length: int) -> None:
        text, *_ = heard
        if self.mended is None or text in self._knows:
            return
        if base_length >= self._mended_lengths[text]:
            self._knows[text] = self._clock() - max(self.mended, self._asked[heard])


@dataclass(frozen=True, slots=True)
class Result:
    token_ids: list[list[int]]
    elapsed_ms: list[float]  # of each text; a restart's downtime left out
    recovery_ms: float | None
    remote_tokens: int  # accepted after everything was whole again
    commits_after: int  # of any request, since then
    remote_tokens_before: int
    num_engines: int  # more than one: the verifier was restarted


async def decode(
    bench: Bench,
    prompts: Sequence[Sequence[int]],
    tokens: int,
    faults: Sequence[Fault] = (),
    *,
    link: EmulatedLink | None = LINK,
    home: bool = True,
) -> Result:
    """The texts all at once, with a drafter if there is a link, and faults on the way."""
    outputs: list[list[int]] = [[] for _ in prompts]
    elapsed_ms = [0.0 for _ in prompts]
    restarting = asyncio.Event()
    striking: asyncio.Task[None] | None = None
    drafter: RemoteDrafter | None = None
    strikes_at = sum(map(len, prompts)) + STRIKES_AFTER * tokens * len(prompts)

    def on_commit() -> None:
        nonlocal striking
        if drafter is not None and striking is None and record.num_tokens > strikes_at:
            striking = asyncio.create_task(strike(faults, drafter, restarting.set, record))

    record = Record(prompts, on_commit)
    bind = "tcp://127.0.0.1:*" if link else None
    async with AsyncExitStack() as stack:
        while any(len(output) < tokens for output in outputs):
            restarting.clear()
            async with bench.engine(bind, home=home) as running:
                if link is not None and drafter is None:
                    bind = running.address
                    drafter = start_drafter(bench, bind, link)
                    stack.callback(drafter.stop)
                    await until(lambda running=running: running.welcomed(1), [drafter])
                streams = _submit(running, prompts, outputs, tokens, record)
                reading = asyncio.gather(*(_read(streams[i], outputs[i]) for i in streams))
                ends = asyncio.create_task(restarting.wait())
                await asyncio.wait([reading, ends], return_when=asyncio.FIRST_COMPLETED)
                ends.cancel()
            await reading  # The engine has ended whatever was still running.
            for i, stream in streams.items():
                s = stream.statistics
                elapsed_ms[i] += (s.last_token_ms or s.submitted_ms) - s.submitted_ms
        if striking is not None:
            await striking
    before, after = record.remote_tokens
    return Result(
        outputs,
        elapsed_ms,
        record.recovery_ms,
        after,
        record.commits_after,
        before,
        record.num_engines,
    )


def _submit(
    running: RunningEngine,
    prompts: Sequence[Sequence[int]],
    outputs: Sequence[Sequence[int]],
    tokens: int,
    record: Record,
) -> dict[int, Stream]:
    """What is left of each text, by its place."""
    numbers: dict[int, int] = {}
    running.exchange.events.subscribe(record.listen(numbers))
    streams = {}
    for i, (prompt, output) in enumerate(zip(prompts, outputs, strict=True)):
        if len(output) < tokens:
            sampling = Sampling(TEMPERATURE, seed=i)
            request = Request((*prompt, *output), tokens - len(output), sampling)
            streams[i] = running.engine.submit(request)
            numbers[streams[i].number] = i
    return streams


async def _read(stream: Stream, output: list[int]) -> None:
    async for token in stream:
        output.append(token.token_id)


async def strike(
    faults: Sequence[Fault],
    drafter: RemoteDrafter,
    restart_verifier: Callable[[], None],
    record: Record,
) -> None:
    scene = Scene(drafter, restart_verifier, record.mends)
    for fault in faults:
        await fault(scene)


def start_drafter(bench: Bench, address: str, link: EmulatedLink) -> RemoteDrafter:
    return RemoteDrafter.start(
        1,
        bench.folder,
        address,
        link,
        [
            *("--model", "bundled:draft"),
            *("--pass-ms", str(bench.paces.remote_ms)),
        ],
        module="bench.paced_drafter",
        niceness=0,
    )


def study(tokens: int, names: list[str], runs: int) -> list[dict[str, Any]]:
    """Medians of runs, which differ by a few target passes; the longest of their recoveries."""
    torch.set_num_threads(1)
    pair = Pair.load("bundled:target", "bundled:draft", "cpu", torch.float32)
    prompts = held_out_prompts(pair, REQUESTS)
    rows = []
    with tempfile.TemporaryDirectory(prefix="wanspec-faults-") as name:
        make_keys(Path(name), 1)
        bench = Bench(pair, PACES, Path(name))
        plain = asyncio.run(decode(bench, prompts, tokens, link=None, home=False))
        alone = [asyncio.run(decode(bench, prompts, tokens, link=None)) for _ in range(runs)]
        co_located_ms = median(max(run.elapsed_ms) for run in alone)
        for schedule in ("nothing", *names):
            faults = SCHEDULES.get(schedule, ())
            found = [asyncio.run(decode(bench, prompts, tokens, faults)) for _ in range(runs)]
            found.sort(key=lambda run: max(run.elapsed_ms))
            middle = found[runs // 2]
            recoveries = [run.recovery_ms for run in found if run.recovery_ms is not None]
            rows.append(
                {
                    "schedule": schedule,
                    "identical": all(run.token_ids == plain.token_ids for run in (*found, *alone)),
                    "elapsed_ms": max(middle.elapsed_ms),
                    "longest_ms": max(found[-1].elapsed_ms),
                    "co_located_ms": co_located_ms,
                    "over_plain": max(over_plain(run, plain) for run in found),
                    "bounded": all(
                        is_bounded(
                            run.elapsed_ms, plain.elapsed_ms, PACES.target_ms, run.num_engines
                        )
                        for run in found
                    ),
                    "recovery_ms": max(recoveries, default=None),
                    "remote_tokens": middle.remote_tokens,
                    "commits_after": middle.commits_after,
                    "remote_tokens_before": middle.remote_tokens_before,
                    "num_engines": middle.num_engines,
                }
            )
            typer.echo(faults_report.line(rows[-1]))
    return rows


def over_plain(run: Result, plain: Result) -> float:
    """Of the request that compares worst: its time over that without any draft."""
    pairs = zip(run.elapsed_ms, plain.elapsed_ms, strict=True)
    return max(mine / theirs for mine, theirs in pairs)


def is_bounded(
    elapsed_ms: Sequence[float], plain_ms: Sequence[float], target_ms: float, num_engines: int
) -> bool:
    """No request took more than 2 % longer than without any draft, and one bounded wait.

    A restarted verifier loses the pass under way, and may wait once more.
    """
    wait_ms = (BOUNDED_WAIT_PASSES * num_engines + num_engines - 1) * target_ms
    pairs = zip(elapsed_ms, plain_ms, strict=True)
    return all(mine <= 1.02 * theirs + wait_ms for mine, theirs in pairs)


def held_out_prompts(pair: Pair, count: int) -> list[tuple[int, ...]]:
    entries = json.loads(files("wanspec_kernels.bundled").joinpath("prompts.json").read_text())
    texts = [entries[i % len(entries)]["text"] for i in range(count)]
    return [tuple(pair.target.tokenizer(text)["input_ids"]) for text in texts]


def main(
    draw: Annotated[bool, typer.Option("--draw", help="From the stored data only.")] = False,
    tokens: int = 400,
    virtual: Annotated[int, typer.Option(help="Random schedules in virtual time.")] = 1000,
    runs: Annotated[int, typer.Option(help="Of each schedule in real processes.")] = 3,
    only: Annotated[list[str] | None, typer.Option(help="Only these; nothing is stored.")] = None,
) -> None:
    """Measure, or draw what was measured."""
    if not draw:
        rows = study(tokens, only or list(SCHEDULES), runs)
        if only:
            return
        results = {
            "machine": describe(),
            "tokens": tokens,
            "runs": runs,
            "requests": REQUESTS,
            "paces": asdict(PACES),
            "link": asdict(LINK),
            "real": rows,
            "virtual": virtual_faults.study(virtual),
        }
        RESULTS.write_text(json.dumps(results, indent=1) + "\n")
    faults_report.write(json.loads(RESULTS.read_text()))


if __name__ == "__main__":
    typer.run(main)
