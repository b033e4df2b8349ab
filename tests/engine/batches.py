"""Requests decoded together by random plans, as a scheduler without sense would."""

import random
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field

from wanspec_kernels.engine.plan import LogProbs, Part, PassPlan
from wanspec_kernels.engine.runner import Runner
from wanspec_kernels.kv_cache.pages import PageAllocator
from wanspec_kernels.tree import HostTree
from wanspec_kernels.wire.sampling import Sampling

Guess = Callable[["Text", random.Random], HostTree]


@dataclass
class Text:
    request: int
    token_ids: list[int]
    sampling: Sampling
    guess: Guess
    length: int  # to be decoded to
    written: int = 0  # slots that hold keys and values
    num_logprobs: int | None = None
    logprobs: list[LogProbs] = field(default_factory=list)
    passes: int = 0

    @property
    def done(self) -> bool:
        return len(self.token_ids) >= self.length


def decode(runner: Runner, texts: Sequence[Text], pages: PageAllocator, rng: random.Random) -> None:
    """Each pass takes some of the texts, and of a prompt a piece of some length."""
    while any(not text.done for text in texts):
        chosen = [text for text in texts if not text.done and rng.random() < 0.8]
        parts = [part_of(text, pages, rng) for text in chosen]
        if not parts:
            continue
        runner.launch(PassPlan(tuple(parts)))
        by_request = {text.request: text for text in chosen}
        for part in parts:
            by_request[part.request].written += len(part.prefix)
        for verdict in runner.result():
            text = by_request[verdict.request]
            assert not verdict.is_invalid
            assert len(verdict.token_ids) == len(verdict.accepted_nodes) + 1
            text.token_ids += verdict.token_ids
            text.written += len(verdict.token_ids)  # the root's slot, and the accepted drafts'
            text.logprobs += verdict.logprobs
            text.passes += 1


def part_of(text: Text, pages: PageAllocator, rng: random.Random) -> Part:
    unread = text.token_ids[text.written : -1]
    read = len(unread) if len(unread) < 2 else rng.randint(1, len(unread))
    whole = read == len(unread)
    tree = text.guess(text, rng) if whole else None
    slots = text.written + read + (len(tree.token_ids) if tree else 0)
    pages.reserve(text.request, slots)
    return Part(
        text.request,
        text.written,
        tuple(unread[:read]),
        tree,
        tuple(pages.pages_of(text.request)),
        text.sampling,
        text.num_logprobs,
    )
