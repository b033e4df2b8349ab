"""The simulator beside real processes: the same texts, paces, shapes and links.

The real ones are the engine, `wanspec-drafter` and the link emulator, over CURVE and TCP, with the
bundled pair. The passes of all three models are stretched to a stated time, long enough that two
cores never compete; links and the times of flow control are stretched by the same factor, so that
all ratios are those of a target pass of 30 ms. The simulator plays the pair's trace on those very
texts, at that pace.

python -m bench.agreement           measure: bench/results/agreement.json
python -m bench.agreement --draw    the table, into docs/wide-area.md
"""

import asyncio
import json
import tempfile
import time
from contextlib import ExitStack
from dataclasses import asdict, dataclass, replace
from importlib.resources import files
from pathlib import Path
from typing import Annotated, Any

import torch
import typer

from bench import agreement_report
from bench.machine import describe
from bench.real_run import Bench, Paces, until
from wanspec_kernels.assembly import Pair
from wanspec_kernels.demo.processes import EmulatedLink, RemoteDrafter, make_keys
from wanspec_kernels.engine.events import HomeBegan, PassBegan
from wanspec_kernels.engine.request import Request
from wanspec_kernels.events import Event
from wanspec_kernels.recording import Recording, record
from wanspec_kernels.simulation.link import LinkProfile
from wanspec_kernels.simulation.measures import mean, measure
from wanspec_kernels.simulation.scenario import (
    REMOTE_SHAPE,
    DrafterProfile,
    Machine,
    Scenario,
)
from wanspec_kernels.simulation.trace import Trace
from wanspec_kernels.wire.sampling import Sampling

RESULTS = Path("bench/results/agreement.json")
PACES = Paces(30.0, 3.0, 4.0)  # the studies'
TEMPERATURE = 0.6
WIDTH = 48
MAX_NODES = 2048
SHAPE = replace(REMOTE_SHAPE, width=WIDTH)  # 128 rows may take longer here than their pace
BEYOND = 64  # tokens of a trace past the text's end, for trees that reach there
CASES: dict[str, LinkProfile | None] = {
    "co-located": None,
    "10 ms": LinkProfile(10.0, jitter_ms=0.25, bandwidth_mbit=50.0),
    "30 ms": LinkProfile(30.0, jitter_ms=0.75, bandwidth_mbit=50.0),
    "80 ms": LinkProfile(80.0, jitter_ms=2.0, bandwidth_mbit=50.0),
    "150 ms": LinkProfile(150.0, jitter_ms=3.75, bandwidth_mbit=50.0),
    "30 ms, jitter of 10": LinkProfile(30.0, jitter_ms=10.0, bandwidth_mbit=50.0),
    "30 ms, stalls": LinkProfile(30.0, 0.75, 50.0, stall_ms=200.0, stall_every_ms=1000.0),
}


@dataclass(frozen=True, slots=True)
class Text:
    prompt: list[int]
    seed: int
    trace: Trace

    def expected(self, tokens: int) -> list[int]:
        return self.trace.token_ids[:tokens].tolist()


@dataclass(frozen=True, slots=True)
class Measured:
    latency_ms: float  # a token, at the scale of PACES
    local_passes: float  # a token
    tokens_per_pass: float
    hit_rate: float
    wire_bytes: float
    exact: bool


def stretch(link: LinkProfile, scale: float) -> LinkProfile:
    return replace(
        link,
        round_trip_ms=scale * link.round_trip_ms,
        jitter_ms=scale * link.jitter_ms,
        bandwidth_mbit=link.bandwidth_mbit and link.bandwidth_mbit / scale,
        stall_ms=scale * link.stall_ms,
        stall_every_ms=scale * link.stall_every_ms,
    )


def simulate(text: Text, link: LinkProfile | None, tokens: int, seed: int) -> Measured:
    drafter = link and DrafterProfile(link, Machine(PACES.remote_ms), SHAPE, MAX_NODES)
    found = measure(
        Scenario(
            text.trace,
            (drafter,) if drafter else (),
            target=Machine(PACES.target_ms),
            home=Machine(PACES.home_ms),
            tokens=tokens,
            seed=seed,
        )
    )
    return Measured(
        found.latency_ms,
        found.local_passes,
        found.tokens_per_pass,
        found.hit_rate,
        found.wire_bytes,
        found.exact,
    )


@dataclass
class Rounds:
    """Passes of the target, and those among them before which home did nothing."""

    passes: int = 0
    without_home: int = 0
    _home_drafted: bool = False

    def listen(self, event: Event) -> None:
        match event:
            case HomeBegan():
                self._home_drafted = True
            case PassBegan():
                self.passes += 1
                self.without_home += not self._home_drafted
                self._home_drafted = False


async def run_real(
    bench: Bench, link: LinkProfile | None, texts: list[Text], tokens: int, scale: float
) -> list[Measured]:
    """One drafter process for all texts; each meets an engine that knows nothing yet."""
    with ExitStack() as stack:
        bind = "tcp://127.0.0.1:*" if link is not None else None
        drafters: list[RemoteDrafter] = []
        found = []
        for text in texts:
            async with bench.engine(bind) as running:
                if link is not None and not drafters:
                    bind = running.address
                    drafters.append(start_drafter(bench, bind, stretch(link, scale), scale))
                    stack.callback(drafters[0].stop)
                await until(lambda running=running: running.welcomed(len(drafters)), drafters)
                rounds = Rounds()
                running.exchange.events.subscribe(rounds.listen)
                stalling = None
                if link is not None and link.stall_ms:
                    stalling = asyncio.create_task(stall(drafters[0], stretch(link, scale)))
                sampling = Sampling(TEMPERATURE, seed=text.seed)
                decoded = await running.decode(Request(tuple(text.prompt), tokens, sampling))
                if stalling is not None:
                    stalling.cancel()
                    drafters[0].tell_link("resume")
            s = decoded.statistics
            found.append(
                Measured(
                    decoded.elapsed_ms / tokens / scale,
                    s.local_draft_passes / tokens,
                    tokens / s.target_passes,
                    rounds.without_home / rounds.passes,
                    (s.wire_bytes_sent + s.wire_bytes_received) / tokens,
                    decoded.token_ids == text.expected(tokens),
                )
            )
        return found


def start_drafter(bench: Bench, address: str, link: LinkProfile, scale: float) -> RemoteDrafter:
    return RemoteDrafter.start(
        1,
        bench.folder,
        address,
        EmulatedLink(link.round_trip_ms, link.jitter_ms, link.bandwidth_mbit),
        [
            *("--model", "bundled:draft"),
            *("--max-nodes", str(MAX_NODES)),
            *("--width", str(WIDTH), "--pass-ms", str(scale * PACES.remote_ms)),
            *("--scale", str(scale)),
        ],
        module="bench.paced_drafter",
        niceness=0,
    )


async def stall(drafter: RemoteDrafter, link: LinkProfile) -> None:
    """As `LinkProfile` has it: a period ends with its stall."""
    began, number = time.monotonic(), 0
    while True:
        number += 1
        ends = began + number * link.stall_every_ms / 1e3
        await asyncio.sleep(ends - link.stall_ms / 1e3 - time.monotonic())
        drafter.tell_link("stall")
        await asyncio.sleep(ends - time.monotonic())
        drafter.tell_link("resume")


def study(
    tokens: int, num_texts: int, scale: float, seeds: int, cases: list[str]
) -> dict[str, Any]:
    torch.set_num_threads(1)
    pair = Pair.load("bundled:target", "bundled:draft", "cpu", torch.float32)
    assert pair.home is not None
    texts = record_texts(pair, num_texts, tokens)
    rows = []
    with tempfile.TemporaryDirectory(prefix="wanspec-agreement-") as name:
        folder = Path(name)
        make_keys(folder, 1)
        p = PACES
        paces = Paces(scale * p.target_ms, scale * p.home_ms, scale * p.remote_ms)
        bench = Bench(pair, paces, folder)
        for case in cases:
            link = CASES[case]
            real = asyncio.run(run_real(bench, link, texts, tokens, scale))
            simulated = [
                mean([simulate(text, link, tokens, seed) for seed in range(seeds)])
                for text in texts
            ]
            rows.append(
                {
                    "case": case,
                    "link": link and asdict(link),
                    "real": [asdict(one) for one in real],
                    "simulated": [asdict(one) for one in simulated],
                }
            )
            typer.echo(agreement_report.line(rows[-1]))
            log = folder / "drafter-1.log"
            if link is not None:
                typer.echo(f"  {log.read_text().strip().splitlines()[-1]}")
    return {
        "machine": describe(),
        "tokens": tokens,
        "texts": num_texts,
        "scale": scale,
        "simulated_seeds": seeds,
        "paces": asdict(PACES),
        "rows": rows,
    }


def record_texts(pair: Pair, count: int, tokens: int) -> list[Text]:
    """Continuations of the held-out prompts, in turn, each with the trace of the pair on it."""
    assert pair.home is not None
    entries = json.loads(files("wanspec_kernels.bundled").joinpath("prompts.json").read_text())
    texts = []
    for seed in range(count):
        prompt = pair.target.tokenizer(entries[seed % len(entries)]["text"])["input_ids"]
        recording = Recording(pair.home, TEMPERATURE)
        record(recording, pair.target, [prompt], tokens=tokens + BEYOND, seeds=[seed])
        texts.append(Text(list(prompt), seed, recording.trace({})))
    return texts


def main(
    draw: Annotated[bool, typer.Option("--draw", help="From the stored data only.")] = False,
    tokens: int = 250,
    texts: int = 4,
    scale: Annotated[float, typer.Option(help="Of all times; 1 is a target pass of 30 ms.")] = 10.0,
    seeds: Annotated[int, typer.Option(help="Simulated runs of each text.")] = 8,
    case: Annotated[list[str] | None, typer.Option(help="Only these; nothing is stored.")] = None,
) -> None:
    """Measure, or draw what was measured."""
    if not draw:
        results = study(tokens, texts, scale, seeds, case or list(CASES))
        if case:
            return
        RESULTS.write_text(json.dumps(results, indent=1) + "\n")
    agreement_report.write(json.loads(RESULTS.read_text()))


if __name__ == "__main__":
    typer.run(main)
