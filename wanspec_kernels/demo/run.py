"""The demo's two runs: the target alone, then the same prompts with remote drafters."""

import asyncio
import tempfile
import time
from collections import Counter
from collections.abc import Callable, Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from wanspec_kernels.assembly import Pair
from wanspec_kernels.demo.processes import EmulatedLink, RemoteDrafter, make_keys
from wanspec_kernels.drafts.pool import HOME, Kind
from wanspec_kernels.engine.interfaces import TargetModel
from wanspec_kernels.sampling import SamplingParams
from wanspec_kernels.serving.service import GenerationResult, VerifierService
from wanspec_kernels.tree import HostTree
from wanspec_kernels.wire.keys import AllowList, load_secret
from wanspec_kernels.wire.sampling import Sampling

HOME_NAME = "home"
READY_S = 120.0
# On one CPU core 32 rows take about the default pace, 64 half as long again.
MAX_ROWS = 32
MAX_NODES = 160  # of a drafter's tree
BANDWIDTH_MBIT = 50.0
JITTER_SHARE = 0.05  # of the one-way delay


@dataclass(frozen=True, slots=True)
class Settings:
    prompts: tuple[tuple[str, str], ...]  # (name, text)
    model: str
    draft: str
    sampling: Sampling
    max_tokens: int
    round_trips_ms: tuple[float, ...]  # of the drafters' links
    target_pass_ms: float
    device: str


class Observer:
    """Is told how the demo goes on; every method may be overridden."""

    def progress(self, text: str) -> None: ...

    def prompt(self, name: str, text: str) -> None: ...

    def tokens(self, token_ids: Sequence[int], drafted_by: Sequence[str | None]) -> None:
        """Committed tokens, and who drafted each: a drafter's name, `HOME_NAME`, or nobody."""

    def text_ended(self) -> None:
        """The last prompt's text is complete."""


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


def run(settings: Settings, observe: Callable[[Pair], Observer]) -> dict[str, Any]:
    """Make both runs and return the report, whose keys are `wanspec demo --json`'s."""
    return asyncio.run(_run(settings, observe))


async def _run(settings: Settings, observe: Callable[[Pair], Observer]) -> dict[str, Any]:
    # Threads that wait for each other spin, and the drafters on this machine need the other cores.
    torch.set_num_threads(1)
    # In bf16 a GPU's logits depend on how many rows a pass has, so near-ties fall now this way, now
    # that; the demo compares texts.
    pair = Pair.load(settings.model, settings.draft, settings.device, torch.float32)
    observer = observe(pair)
    target = PacedTarget(pair.decoder(), settings.target_pass_ms)
    with ExitStack() as stack:
        folder = Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="wanspec-demo-")))
        allowed = AllowList(make_keys(folder, len(settings.round_trips_ms)))
        service = pair.service(
            target,
            bind="tcp://127.0.0.1:*",
            secret=load_secret(folder / "verifier.secret"),
            allowed=allowed,
            max_rows=MAX_ROWS,
        )
        async with service:
            drafters = []
            for number, round_trip_ms in enumerate(settings.round_trips_ms, start=1):
                drafter = RemoteDrafter.start(
                    number,
                    folder,
                    service.address,
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
            await _until_ready(service, drafters)
            observer.progress("the target alone …")
            # No socket and nobody at home: one pass, one token.
            async with Pair(pair.target, None).service(target) as alone:
                baseline = [
                    await _generate(alone, pair, settings, text) for _, text in settings.prompts
                ]
            observer.progress("with remote drafters …")
            results = []
            for name, text in settings.prompts:
                observer.prompt(name, text)
                results.append(await _generate(service, pair, settings, text, observer))
            measured = {
                allowed.name_of(session.key.encode()): session.round_trip_ms
                for session in service.sessions
            }
            round_trips = [measured.get(drafter.name) for drafter in drafters]
    return _report(results, baseline, drafters, round_trips)


async def _generate(
    service: VerifierService,
    pair: Pair,
    settings: Settings,
    text: str,
    observer: Observer | None = None,
) -> GenerationResult:
    def on_tokens(token_ids: Sequence[int], sources: Sequence[int | None]) -> None:
        if observer is not None:
            names = {HOME: HOME_NAME} | service.source_names
            observer.tokens(token_ids, [names.get(s) if s is not None else None for s in sources])

    result = await service.generate(
        pair.target.tokenizer(text)["input_ids"],
        max_tokens=settings.max_tokens,
        stop_token_ids=pair.target.end_token_ids,
        sampling=settings.sampling,
        on_tokens=on_tokens,
    )
    if observer is not None:
        observer.text_ended()
    return result


async def _until_ready(service: VerifierService, drafters: Sequence[RemoteDrafter]) -> None:
    """Wait until every drafter has been welcomed and measured once.

    Raises:
        RuntimeError: a drafter ended, or it took too long.
    """
    gives_up = time.monotonic() + READY_S
    while sum(s.round_trip_ms is not None for s in service.sessions) < len(drafters):
        for drafter in drafters:
            reason = drafter.ended()
            if reason is not None:
                raise RuntimeError(reason)
        if time.monotonic() > gives_up:
            raise RuntimeError(f"the drafters did not dial in within {READY_S:g} s")
        await asyncio.sleep(0.05)


def _decoding_s(result: GenerationResult) -> float:
    """Without the prompt: it is not paced, and drafts change nothing there."""
    return (result.elapsed_ms - result.prompt_ms) / 1000


def _report(
    results: Sequence[GenerationResult],
    baseline: Sequence[GenerationResult],
    drafters: Sequence[RemoteDrafter],
    round_trips_ms: Sequence[float | None],
) -> dict[str, Any]:
    tokens = sum(len(r.token_ids) for r in results)
    passes = sum(r.statistics.target_passes for r in results)
    seconds = sum(map(_decoding_s, results))
    alone_tokens = sum(len(r.token_ids) for r in baseline)
    alone_seconds = sum(map(_decoding_s, baseline))
    outcomes: Counter[Kind] = sum((r.statistics.outcomes for r in results), Counter())
    return {
        "tokens": tokens,
        "target_passes": passes,
        "tokens_per_target_pass": round(tokens / passes, 3),
        "identical_to_target_alone": [r.token_ids for r in results]
        == [r.token_ids for r in baseline],
        # By the token, as a sampled text of another length may be compared under `rejection`.
        "speedup_over_target_alone": round((alone_seconds / alone_tokens) / (seconds / tokens), 3),
        "drafters": len(drafters),
        "round_trip_ms": [None if r is None else round(r, 1) for r in round_trips_ms],
        "drafts": {kind.value: outcomes[kind] for kind in Kind},
        "remote_tokens_accepted": sum(r.statistics.remote_tokens_accepted for r in results),
        "home_tokens_accepted": sum(r.statistics.home_tokens_accepted for r in results),
        "local_draft_passes": sum(r.statistics.local_draft_passes for r in results),
        "wire_bytes_per_token": round(
            sum(r.wire_bytes_sent + r.wire_bytes_received for r in results) / tokens, 1
        ),
        "seconds": round(seconds, 3),
        "seconds_target_alone": round(alone_seconds, 3),
    }
