"""Fuzz: an enrolled drafter sends mutations of what it should send to a verifier at work.

python -m bench.fuzz             20,000 frames, read one and all; then as many within a key's bounds

A `wanspec-drafter` process drafts meanwhile. The texts must be the target's own, the drafter must
still be of use at the end, and the verifier's memory must not have grown.
"""

import asyncio
import os
import tempfile
import time
from dataclasses import dataclass, field, replace
from pathlib import Path
from random import Random
from typing import Annotated

import torch
import typer
import zmq
import zmq.asyncio

from bench.machine import describe
from bench.mutations import every_message, mutation
from bench.real_run import Bench, Paces, until
from wanspec_kernels.assembly import Pair
from wanspec_kernels.demo.processes import EmulatedLink, RemoteDrafter, make_keys
from wanspec_kernels.drafts.admission import AdmissionConfig
from wanspec_kernels.drafts.exchange import ExchangeConfig
from wanspec_kernels.drafts.pool import Kind
from wanspec_kernels.drafts.session import SessionConfig
from wanspec_kernels.engine.request import Request
from wanspec_kernels.wire import (
    Commit,
    Draft,
    Error,
    ErrorCode,
    Expansion,
    Hello,
    Message,
    Open,
    Ping,
    Pong,
    check_of,
    decode_frame,
    encode_frame,
)
from wanspec_kernels.wire.keys import Secret, load_secret, secure_client

# Every frame is read, and whoever is quarantined is let in again at once.
READS_ALL = AdmissionConfig(1e9, 1e9, 1e9, max_malformed=10**9, quarantine_ms=0.0)
REOPENS_AT_ONCE = SessionConfig(reopen_ms=0.0)
TOKENS = 200
LINK = EmulatedLink(2.0, 0.0, 100.0)


@dataclass
class Fuzzer:
    """Follows the running request, so that its mutations begin with what would be right."""

    socket: zmq.asyncio.Socket
    hello: Hello
    rng: Random
    vocab_size: int
    request: int = 0
    text: list[int] = field(default_factory=lambda: [1])
    is_known: bool = False

    async def send(self, count: int) -> None:
        """So many frames; returns without an answer."""
        for _ in range(count):
            await self.listen()
            if not self.is_known:
                self.is_known = True  # until we hear otherwise
                await self.socket.send(encode_frame([self.hello]))
            await self.socket.send(mutation(self.rng, self._messages()))

    async def listen(self) -> None:
        """Take in what is here."""
        while await self.socket.poll(0):
            self._hear(await self.socket.recv())

    async def finish(self) -> None:
        """Until all that was sent is handled."""
        mark = Ping(self.rng.randrange(2**62), 0)
        for message in (self.hello, mark):
            await self.socket.send(encode_frame([message]))
        self.is_known = True
        while self._hear(await self.socket.recv()) != mark.clock_us:
            pass

    def _messages(self) -> tuple[Message, ...]:
        base = len(self.text)
        most = self.vocab_size + self.rng.randrange(2)  # now and then one too many
        tokens = tuple(self.rng.randrange(most) for _ in range(self.rng.randrange(1, 12)))
        chain = Draft(
            self.request, base, check_of(self.text), tokens, tuple(range(-1, len(tokens) - 1))
        )
        early = replace(chain, base_length=base + self.rng.randrange(1, 5))
        # What no honest drafter sends: draws that a request under `match` did not ask for.
        drawn = replace(chain, expansions=(Expansion(-1, (0,), tokens[:1], (1,)),))
        return (*every_message(), chain, chain, chain, early, drawn)

    def _hear(self, data: bytes) -> int | None:
        """The clock reading of a PONG in this frame."""
        answered = None
        for message in decode_frame(data):
            match message:
                case Open(request, token_ids):
                    self.request, self.text = request, list(token_ids)
                case Commit(request, length, token_ids) if request == self.request:
                    if length == len(self.text) + len(token_ids):
                        self.text += token_ids
                case Error(code, text) if code == ErrorCode.UNEXPECTED or "quarantined" in text:
                    self.is_known = False
                case Pong(clock_us):
                    answered = clock_us
        return answered


def resident_mb() -> float:
    pages = int(Path("/proc/self/statm").read_text().split()[1])
    return pages * os.sysconf("SC_PAGE_SIZE") / 2**20


async def storm(
    pair: Pair, folder: Path, admission: AdmissionConfig, frames: int, seed: int
) -> None:
    """Raises AssertionError unless all of it is as it should be."""
    request = Request(tuple(pair.target.tokenizer("def main():\n")["input_ids"]), TOKENS)
    config = ExchangeConfig(REOPENS_AT_ONCE, admission)
    bench = Bench(pair, Paces(0.0, 0.0, 0.0), folder, config)
    async with bench.engine(None, home=False) as alone:
        expected = (await alone.decode(request)).token_ids
    context = zmq.asyncio.Context()
    async with bench.engine("tcp://127.0.0.1:*", home=False) as attacked:
        counters = attacked.exchange.counters
        options = ["--model", "bundled:draft", "--device", "cpu"]
        honest = RemoteDrafter.start(1, folder, attacked.address, LINK, options, niceness=0)
        try:
            await until(lambda: attacked.welcomed(1), [honest])
            socket = context.socket(zmq.DEALER)
            secret: Secret = load_secret(folder / "drafter-2.secret")
            secure_client(socket, secret, load_secret(folder / "verifier.secret").public)
            socket.connect(attacked.address)
            hello = Hello(pair.target.vocabulary, "fuzz", 4, 256, 0)
            fuzzer = Fuzzer(socket, hello, Random(seed), pair.target.vocab_size)
            warm = frames // 5
            began, resident, texts, remote = time.monotonic(), 0.0, 0, 0
            sending = asyncio.create_task(fuzzer.send(warm))
            rest = frames - warm
            while not sending.done():
                result = await attacked.decode(request)
                texts += 1
                remote += result.statistics.remote_tokens_accepted
                assert result.token_ids == expected, f"text {texts} is another"
                if sending.done() and rest:
                    sending.result()
                    resident = resident_mb()
                    sending, rest = asyncio.create_task(fuzzer.send(rest)), 0
            sending.result()
            if admission is READS_ALL:
                await asyncio.wait_for(fuzzer.finish(), 60)
            grown, seconds = resident_mb() - resident, time.monotonic() - began
            # The drafter is still of use once it is quiet again.
            result = await attacked.decode(request)
            assert result.token_ids == expected
            outcomes = result.statistics.outcomes
            heard = outcomes[Kind.NEW] + outcomes[Kind.LATE]
            assert heard > 0, "nothing of the drafter was of use"
            assert counters["internal_errors"] == 0
            assert grown < 32, f"{grown:.1f} MB more"
        finally:
            honest.stop()
            context.destroy(linger=0)
    names = ("received", "malformed", "in_quarantine", "over_share", "over_size", "over_rate")
    counts = ", ".join(f"{name} {counters[name]}" for name in names)
    typer.echo(
        f"{frames} frames, {seconds:.0f} s, {texts} texts as they should be; "
        f"memory {grown:+.1f} MB; {remote} tokens of the drafter's accepted meanwhile; "
        f"{heard} drafts of it of use after; {counts}"
    )


def main(
    frames: Annotated[int, typer.Option(help="How many frames are sent each time.")] = 20_000,
    seed: Annotated[int, typer.Option(help="The seed of the mutations.")] = 0,
) -> None:
    """Attack a verifier of the bundled pair; the exit status says how it went."""
    torch.set_num_threads(1)
    typer.echo(describe())
    pair = Pair.load("bundled:target", "bundled:draft", "cpu", torch.float32)
    with tempfile.TemporaryDirectory(prefix="wanspec-fuzz-") as name:
        make_keys(Path(name), 2)
        for admission in (READS_ALL, AdmissionConfig()):
            asyncio.run(storm(pair, Path(name), admission, frames, seed))


if __name__ == "__main__":
    typer.run(main)
