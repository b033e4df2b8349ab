"""A target that is a function of the text alone, and drafters that guess it more or less well."""

from random import Random
from zlib import crc32

from wanspec_kernels.wire import Draft, check_of

VOCAB_SIZE = 50


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


class FakeTarget:
    """A TargetModel; `verify` walks the tree as `match` would."""

    def __init__(self):
        self.texts = {}
        self.trees = []

    def start(self, request, token_ids, sampling=None):
        self.texts[request] = list(token_ids)

    def verify(self, request, tree):
        text = self.texts[request]
        assert tree.token_ids[0] == text[-1]
        self.trees.append(tree)
        return walk(text, tree)

    def finish(self, request):
        del self.texts[request]


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


class FakeHome:
    """A HomeDrafter of some skill; fails when told to."""

    def __init__(self, skill=0.8, failures=0, seed=0):
        self.skill, self.failures, self.rng = skill, failures, Random(seed)
        self.opened = []

    def open(self, request):
        self.opened.append(request)

    def draft(self, request, token_ids, passes, known=None):
        if self.failures:
            self.failures -= 1
            raise RuntimeError("the home drafter is out of order")
        return [guess(self.rng, token_ids, self.skill, passes, request=request)]

    def close(self, request):
        assert self.opened[-1].request == request
