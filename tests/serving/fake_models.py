"""A target that is a function of the text alone, and drafters that guess it more or less well."""

import threading
from random import Random
from zlib import crc32

import numpy as np

from wanspec_kernels.engine.plan import Verdict
from wanspec_kernels.wire import Draft, check_of

VOCAB_SIZE = 50
NUM_PAGES, PAGE_SIZE = 512, 16
WAIT_S = 20.0


def next_token(text):
    return crc32(bytes(text)) % VOCAB_SIZE


def continuation(prompt, count):
    text = list(prompt)
    for _ in range(count):
        text.append(next_token(text))
    return text[len(prompt) :]


def walk(text, tree):
    """What `match` accepts of a tree below `text`, which grows by it; and the accepted nodes."""
    tokens, accepted, at = [], [], 0
    while True:
        token = next_token(text)
        tokens.append(token)
        text.append(token)
        children = [
            i
            for i, parent in enumerate(tree.parents)
            if parent == at and tree.token_ids[i] == token
        ]
        assert len(children) <= 1
        if not children:
            return tokens, accepted
        at = children[0]
        accepted.append(at)


def guess(rng: Random, text, skill, depth, *, request=1, branches=1, base_length=None):
    """A draft below `text`: each level right with probability `skill`, wrong branches beside it."""
    base = len(text) if base_length is None else base_length
    text = list(text)
    tokens, parents, at = [], [], -1
    path = text[base:]
    for level in range(len(path) + depth):
        known = level < len(path)
        for _ in range(0 if known else branches):
            wrong = rng.randrange(VOCAB_SIZE)
            there = (at, wrong) in zip(parents, tokens, strict=True)
            if wrong != next_token(text) and not there:
                tokens.append(wrong)
                parents.append(at)
        if known:
            token = path[level]
        else:
            token = next_token(text) if rng.random() < skill else rng.randrange(VOCAB_SIZE)
            text.append(token)
        if (at, token) in zip(parents, tokens, strict=True):
            break
        tokens.append(token)
        parents.append(at)
        at = len(tokens) - 1
    return Draft(request, base, check_of(text[:base]), tuple(tokens), tuple(parents))


class FakeRunner:
    """A PassRunner whose keys and values are tokens in the slots of pages, as of a real target.

    So a page given to two requests, or a slot that was never written, shows in the text. While it
    is `stepped`, each pass waits for a permit, so that a test decides when it ends.
    """

    def __init__(self, stepped=False, num_pages=NUM_PAGES):
        self.slots = np.full((num_pages, PAGE_SIZE), 255, np.uint8)
        self.permits = threading.Semaphore(0)
        self.stepped = stepped
        self.passes = 0
        self.plans = []
        self._plan = None

    def launch(self, plan):
        self._plan = plan
        self.plans.append(plan)

    def result(self):
        plan, self._plan = self._plan, None
        if self.stepped:
            assert self.permits.acquire(timeout=WAIT_S)
        self.passes += 1
        return [verdict for part in plan.parts if (verdict := self._verify(part)) is not None]

    def free(self):
        self.stepped = False
        self.permits.release()

    def _verify(self, part):
        pages = list(part.pages)
        context = self.slots[pages].reshape(-1)[: part.context_len].tolist()
        text = [*context, *part.prefix]
        tokens, accepted = [], []
        if part.tree is not None:
            text.append(part.tree.token_ids[0])
            tokens, accepted = walk(text, part.tree)
        # What is accepted is moved to where the text goes on; its last token has no slot yet.
        written = text[:-1] if part.tree is not None else text
        for slot in range(part.context_len, len(written)):
            self.slots[pages[slot // PAGE_SIZE], slot % PAGE_SIZE] = written[slot]
        if part.tree is None:
            return None
        return Verdict(part.request, tuple(tokens), tuple(accepted))


class FakeHome:
    """A BatchDrafter of some skill; fails when told to."""

    def __init__(self, skill=0.8, failures=0, seed=0):
        self.skill, self.failures, self.rng = skill, failures, Random(seed)
        self.opened, self.known = [], set()

    def open(self, request):
        assert request.request not in self.known
        self.opened.append(request)
        self.known.add(request.request)

    def draft_all(self, jobs):
        assert {request for request, *_ in jobs} <= self.known
        if self.failures:
            self.failures -= 1
            raise RuntimeError("the home drafter is out of order")
        return {
            request: [guess(self.rng, text, self.skill, 1, request=request)]
            for request, text, _ in jobs
        }

    def close(self, request):
        self.known.remove(request)
