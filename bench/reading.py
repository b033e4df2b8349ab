"""Reading: what a message takes to decode, and what that takes from the target beside it.

python -m bench.reading

The second table decodes the largest DRAFT so many times a second beside a thread that makes the
bundled target's passes: on the event loop, in a thread of its own, and not at all.
"""

import asyncio
import threading
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from random import Random
from statistics import median
from typing import Annotated

import torch
import typer

from bench.machine import describe
from wanspec_kernels.assembly import Pair
from wanspec_kernels.engine.plan import Part, PassPlan
from wanspec_kernels.engine.runner import Runner
from wanspec_kernels.tree import HostTree
from wanspec_kernels.wire import (
    MAX_DEPTH,
    MAX_DRAFT_NODES,
    Draft,
    Error,
    Expansion,
    Hello,
    Message,
    Ping,
    decode,
    encode,
)
from wanspec_kernels.wire.sampling import Sampling

REPEATS = 50


def chains(num_nodes: int, num_expanded: int, num_draws: int, support: int) -> Draft:
    """Chains of MAX_DEPTH nodes; the first expanded ones have so many draws, of their one child."""
    parents = tuple(node - 1 if node % MAX_DEPTH else -1 for node in range(num_nodes))
    rng, expansions = Random(0), []
    for parent in range(-1, num_expanded - 1):
        child = parents.index(parent) if parent in parents else None
        if child is None:
            continue
        tokens = (100_000 + child, *range(support - 1))
        weights = tuple(rng.randrange(1, 65536) for _ in tokens)
        expansions.append(Expansion(parent, (child,) * num_draws, tokens, weights))
    ids = tuple(100_000 + node for node in range(num_nodes))
    codes = b"" if expansions else bytes(num_nodes)
    return Draft(2**40, 1000, 2**31, ids, parents, tuple(expansions), codes)


MESSAGES: dict[str, Message] = {
    "PING": Ping(2**40, 31_000),
    "HELLO": Hello(bytes(32), "bundled:draft", 16, 256, 12345),
    "ERROR, longest": Error("x" * 1024, "y" * 1024, 2**40),
    "DRAFT, 8 nodes": chains(8, 0, 0, 0),
    "DRAFT, 50 nodes": chains(50, 0, 0, 0),
    "DRAFT, 256 nodes": chains(256, 0, 0, 0),
    "DRAFT, 16 nodes, 16 expanded, 4 draws of 64": chains(16, 16, 4, 64),
    "DRAFT, 64 nodes, 64 expanded, 4 draws of 64": chains(64, 64, 4, 64),
    "DRAFT, largest": chains(MAX_DRAFT_NODES, MAX_DRAFT_NODES, 64, 64),
}


def microseconds(call: Callable[[], object]) -> float:
    times = []
    for _ in range(REPEATS):
        began = time.thread_time()
        call()
        times.append(time.thread_time() - began)
    return 1e6 * median(times)


def costs() -> None:
    typer.echo("| message | bytes | µs to decode | ns a byte |\n|---|---|---|---|")
    for name, message in MESSAGES.items():
        data = encode(message)
        us = microseconds(lambda data=data: decode(data))
        typer.echo(f"| {name} | {len(data):,} | {us:,.0f} | {1000 * us / len(data):.0f} |")


class Passes:
    """A target's passes over one row, again and again in a thread, as an engine's runner makes."""

    def __init__(self, pair: Pair) -> None:
        self.count = 0
        self._runner = Runner(pair.target)
        self._text = list(pair.target.tokenizer("def main():\n")["input_ids"])
        cache = pair.target.cache
        self._page_size = cache.page_size
        self._room = min(pair.target.max_length, cache.num_pages * cache.page_size)
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._run)

    def _run(self) -> None:
        pages = tuple(range(self._room // self._page_size))
        prompt, written = list(self._text), 0
        while not self._stop.is_set():
            if len(self._text) + 1 > self._room:
                self._text, written = list(prompt), 0
            root = HostTree((self._text[-1],), (-1,))
            prefix = tuple(self._text[written:-1])
            self._runner.launch(PassPlan((Part(1, written, prefix, root, pages, Sampling()),)))
            (verdict,) = self._runner.result()
            written = len(self._text)
            self._text += verdict.token_ids
            self.count += 1

    def __enter__(self) -> "Passes":
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._stop.set()
        self._thread.join()


async def passes_beside(pair: Pair, rate: float, seconds: float, *, in_thread: bool) -> float:
    """Passes a second, while so many of the largest DRAFTs are decoded a second."""
    data = encode(MESSAGES["DRAFT, largest"])
    loop, executor = asyncio.get_running_loop(), ThreadPoolExecutor(1)
    with Passes(pair) as passes:
        began, decoded = time.monotonic(), 0
        while (elapsed := time.monotonic() - began) < seconds:
            if decoded >= rate * elapsed:
                await asyncio.sleep(0.001)
            elif in_thread:
                await loop.run_in_executor(executor, decode, data)
                decoded += 1
            else:
                decode(data)
                decoded += 1
                await asyncio.sleep(0)
        count = passes.count
    executor.shutdown()
    return count / elapsed


def beside(seconds: float) -> None:
    pair = Pair.load("bundled:target", "bundled:draft", "cpu", torch.float32)
    typer.echo("| DRAFTs a second | passes a second, decoded on the loop | in a thread |")
    typer.echo("|---|---|---|")
    for rate in (0, 10, 50, 175):
        found = [
            median(
                asyncio.run(passes_beside(pair, rate, seconds, in_thread=in_thread))
                for _ in range(3)
            )
            for in_thread in (False, True)
        ]
        typer.echo(f"| {rate} | {found[0]:.0f} | {found[1]:.0f} |")


def main(
    seconds: Annotated[float, typer.Option(help="How long each run of passes lasts.")] = 1.5,
) -> None:
    """Print both tables."""
    torch.set_num_threads(1)
    typer.echo(describe())
    costs()
    beside(seconds)


if __name__ == "__main__":
    typer.run(main)
