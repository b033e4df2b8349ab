"""Faults: schedules in real processes, and random ones in virtual time.

python -m bench.faults           measure: bench/results/faults.json
python -m bench.faults --draw    the tables, into docs/wide-area.md

In real processes, `wanspec-drafter` dials through the link emulator; its passes and the verifier's
are paced, so that what a fault costs is not the machine's noise. Text and time are held against the
same request without a remote: co-located speculation, whose text is the target's own.
"""

import asyncio
import json
import tempfile
import time
from collections.abc import Iterator, Sequence
from contextlib import AsyncExitStack, contextmanager, suppress
from dataclasses import asdict, dataclass, field
from importlib.resources import files
from pathlib import Path
from statistics import median
from typing import Annotated, Any

import torch
import typer

from bench import faults_report, virtual_faults
from bench.fault_schedules import SCHEDULES, Fault, Scene
from bench.machine import describe
from bench.real_run import Bench, Paces, until, welcomed
from wanspec_kernels.assembly import Pair
from wanspec_kernels.demo.processes import EmulatedLink, RemoteDrafter, make_keys
from wanspec_kernels.drafts.pool import HOME, Kind, Outcome
from wanspec_kernels.engine.actions import Action
from wanspec_kernels.engine.generation import Generation
from wanspec_kernels.serving.service import VerifierService
from wanspec_kernels.wire import Draft
from wanspec_kernels.wire.sampling import Sampling

RESULTS = Path("bench/results/faults.json")
PACES = Paces(100.0, 10.0, 14.0)
LINK = EmulatedLink(60.0, 3.0, 50.0)
TEMPERATURE = 0.6
STRIKES_AFTER = 0.2  # of the text


Heard = tuple[float, tuple[Generation, int]]  # when, in s; and of which generation's which source


@dataclass
class Record:
    """What a run's generations saw; times in s."""

    generations: list[Generation] = field(default_factory=list)  # a restart begins another
    began: list[float] = field(default_factory=list)  # of each
    committed: list[float] = field(default_factory=list)
    opened: list[Heard] = field(default_factory=list)  # OPEN was sent
    drafts: list[tuple[Heard, int]] = field(default_factory=list)  # and their bases
    mended: float | None = None
    mended_length: int = 0  # of the text then

    def mends(self) -> None:
        self.mended = time.monotonic()
        self.mended_length = self.generations[-1].pool.length

    def recovery_ms(self) -> float | None:
        """Until a remote draft knows the text as it was when all was whole again.

        From then on, or from when OPEN was sent, where one was needed.
        """
        if self.mended is None:
            return None
        for (at, of), base_length in self.drafts:
            knows = of[0] is self.generations[-1] and base_length >= self.mended_length
            if at > self.mended and knows:
                opened = max(t for t, whom in self.opened if whom == of and t <= at)
                return 1e3 * (at - max(self.mended, opened))
        return None


@contextmanager
def recording() -> Iterator[Record]:
    record = Record()
    start, offer, enrol = Generation.start, Generation.offer, Generation.enrol

    def spied_start(self: Generation, now: float) -> list[Action]:
        record.generations.append(self)
        record.began.append(time.monotonic())
        return start(self, now)

    def spied_offer(self: Generation, source: int, draft: Draft, now: float) -> Outcome:
        outcome = offer(self, source, draft, now)
        if source != HOME and outcome.kind is not Kind.FOREIGN:
            record.drafts.append(((time.monotonic(), (self, source)), draft.base_length))
        return outcome

    def spied_enrol(self: Generation, source: int, round_trip_ms: float | None = None) -> None:
        record.opened.append((time.monotonic(), (self, source)))
        enrol(self, source, round_trip_ms)

    Generation.start, Generation.offer, Generation.enrol = (  # type: ignore[method-assign]
        spied_start,
        spied_offer,
        spied_enrol,
    )
    try:
        yield record
    finally:
        Generation.start, Generation.offer, Generation.enrol = (  # type: ignore[method-assign]
            start,
            offer,
            enrol,
        )


@dataclass(frozen=True, slots=True)
class Result:
    token_ids: list[int]
    elapsed_ms: float  # of decoding; prompts and a restart's downtime left out
    recovery_ms: float | None
    remote_tokens: int  # accepted after everything was whole again
    commits_after: int  # and target passes since then
    remote_tokens_before: int
    num_generations: int  # more than one: the verifier was restarted


async def decode(
    bench: Bench,
    prompt: Sequence[int],
    tokens: int,
    seed: int,
    faults: Sequence[Fault] = (),
    *,
    link: EmulatedLink | None = LINK,
) -> Result:
    """One text, with a drafter if there is a link, and faults from `STRIKES_AFTER` of it on."""
    output: list[int] = []
    remote_before: list[int] = []
    remote_after: list[int] = []
    elapsed_s = 0.0
    async with AsyncExitStack() as stack:
        record = stack.enter_context(recording())
        restarting = asyncio.Event()
        striking: asyncio.Task[None] | None = None
        drafter: RemoteDrafter | None = None
        bind = "tcp://127.0.0.1:*" if link else None

        def on_tokens(token_ids: Sequence[int], sources: Sequence[int | None]) -> None:
            nonlocal striking
            output.extend(token_ids)
            record.committed.append(time.monotonic())
            remote = sum(source not in (None, HOME) for source in sources)
            (remote_before if record.mended is None else remote_after).append(remote)
            if drafter is not None and striking is None and len(output) > STRIKES_AFTER * tokens:
                striking = asyncio.create_task(strike(faults, drafter, restarting.set, record))

        while len(output) < tokens:
            restarting.clear()
            async with bench.service(bind) as service:
                if link is not None and drafter is None:
                    bind = service.address
                    drafter = start_drafter(bench, bind, link)
                    stack.callback(drafter.stop)
                    await until(welcomed(service, 1), [drafter])
                await _generate(
                    service,
                    [*prompt, *output],
                    restarting,
                    max_tokens=tokens - len(output),
                    sampling=Sampling(TEMPERATURE, seed=seed),
                    on_tokens=on_tokens,
                )
            last = max(record.committed[-1], record.began[-1])
            elapsed_s += last - record.began[-1]
        if striking is not None:
            await striking
    return Result(
        output,
        1e3 * elapsed_s,
        record.recovery_ms(),
        sum(remote_after),
        len(remote_after),
        sum(remote_before),
        len(record.began),
    )


async def _generate(
    service: VerifierService, prompt: list[int], restarting: asyncio.Event, **options: Any
) -> None:
    """Until the text ends or the verifier is to go down."""
    generating = asyncio.create_task(service.generate(prompt, **options))
    ends = asyncio.create_task(restarting.wait())
    await asyncio.wait([generating, ends], return_when=asyncio.FIRST_COMPLETED)
    ends.cancel()
    if not generating.done():
        generating.cancel()
    with suppress(asyncio.CancelledError):
        await generating


async def strike(
    faults: Sequence[Fault], drafter: RemoteDrafter, restart_verifier: Any, record: Record
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
            *("--model", "bundled:draft", "--device", "cpu"),
            *("--pass-ms", str(bench.paces.remote_ms)),
        ],
        module="bench.paced_drafter",
        niceness=0,
    )


def study(tokens: int, names: list[str], runs: int) -> list[dict[str, Any]]:
    """Medians of runs, which differ by a few target passes; the longest of their recoveries."""
    torch.set_num_threads(1)
    pair = Pair.load("bundled:target", "bundled:draft", "cpu", torch.float32)
    prompt = held_out_prompt(pair)
    rows = []
    with tempfile.TemporaryDirectory(prefix="wanspec-faults-") as name:
        make_keys(Path(name), 1)
        bench = Bench(pair, PACES, Path(name))
        alone = [asyncio.run(decode(bench, prompt, tokens, 0, link=None)) for _ in range(runs)]
        co_located_ms = median(run.elapsed_ms for run in alone)
        for schedule in ("nothing", *names):
            faults = SCHEDULES.get(schedule, ())
            found = [asyncio.run(decode(bench, prompt, tokens, 0, faults)) for _ in range(runs)]
            found.sort(key=lambda run: run.elapsed_ms)
            recoveries = [run.recovery_ms for run in found if run.recovery_ms is not None]
            row = asdict(found[runs // 2]) | {
                "schedule": schedule,
                "identical": all(run.token_ids == alone[0].token_ids for run in found),
                "recovery_ms": max(recoveries, default=None),
                "longest_ms": found[-1].elapsed_ms,
                "co_located_ms": co_located_ms,
            }
            del row["token_ids"]
            rows.append(row)
            typer.echo(faults_report.line(row))
    return rows


def held_out_prompt(pair: Pair) -> list[int]:
    entries = json.loads(files("wanspec_kernels.bundled").joinpath("prompts.json").read_text())
    return list(pair.target.tokenizer(entries[0]["text"])["input_ids"])


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
            "paces": asdict(PACES),
            "link": asdict(LINK),
            "real": rows,
            "virtual": virtual_faults.study(virtual),
        }
        RESULTS.write_text(json.dumps(results, indent=1) + "\n")
    faults_report.write(json.loads(RESULTS.read_text()))


if __name__ == "__main__":
    typer.run(main)
